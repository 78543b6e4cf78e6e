"""How the next token is chosen: what a caller may ask, what a model's files propose, and the two merged and checked.

Requests (`text_request.py`, `audio.py`) carry a `SamplingParams`; pipelines read it and need not check anything again.

Source: `max.interfaces.context` (26.3), `max.pipelines.context.sampling_params` (26.7).
"""

from __future__ import annotations

import functools
import logging
import math
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import msgspec
import numpy as np

from ..errors import InvalidRequest
from .logits import LogitsProcessor, NamedProcessor

#: Bounds on what one request may ask a worker to look for at each token.
MAX_STOP_STRINGS = 64
MAX_STOP_STRING_CHARS = 256
MAX_STOP_TOKEN_IDS = 1024
MAX_NAMED_PROCESSORS = 16

_MAX_TEMPERATURE = 2.0
_MAX_PENALTY = 2.0
_MAX_ID = 2**63 - 1

logger = logging.getLogger(__name__)

# Seeded once from the OS, so that a request without a seed costs no system call (7 us each). Not the `random` module's
# own generator: a user who seeds that one must not make all requests alike.
_seeds = random.Random()  # noqa: S311 - sampling, not secrets
# A forked child would otherwise repeat its parent's seeds.
os.register_at_fork(after_in_child=_seeds.seed)


def _fresh_seed() -> int:
    return _seeds.getrandbits(32)


@dataclass
class SamplingParamsInput:
    """What the caller asked for; None means "not specified". Checked when it becomes a `SamplingParams`."""

    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    temperature: float | None = None
    thinking_temperature: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    ignore_eos: bool | None = None
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    detokenize: bool | None = None
    seed: int | None = None
    logits_processors: Sequence[LogitsProcessor] | None = None
    named_processors: list[NamedProcessor] | None = None


@dataclass(frozen=True)
class SamplingParamsGenerationConfigDefaults:
    """What the model's own generation config proposes; None means that it says nothing.

    `do_sample` False asks for greedy decoding. The list in `eos_token_id` is copied in. Raises InvalidRequest (a
    ValueError) for an `eos_token_id` that is neither an int nor a collection of ints.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    do_sample: bool | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self) -> None:
        if self.eos_token_id is not None:
            ids = self.eos_token_id
            checked = _token_id("eos_token_id", ids) if _is_int(ids) else _token_ids("eos_token_id", ids)
            object.__setattr__(self, "eos_token_id", checked)

    def __hash__(self) -> int:
        values = (getattr(self, spec.name) for spec in fields(self))
        return hash(tuple(tuple(value) if isinstance(value, list) else value for value in values))

    @property
    def values_to_update(self) -> dict[str, Any]:
        """A fresh dict of what is said, with `eos_token_id` as the list `stop_token_ids`; nothing in it is shared."""
        values = {spec.name: getattr(self, spec.name) for spec in fields(self)}
        ids = values.pop("eos_token_id")
        if ids is not None:
            values["stop_token_ids"] = list(ids) if isinstance(ids, list) else [ids]
        return {name: value for name, value in values.items() if value is not None}


@dataclass
class SamplingParams:
    """How the next token is chosen, checked.

    `top_k`: how many of the most likely tokens take part, -1 for all (0 and None mean the same). `top_p`, `min_p`:
    probability mass and floor, in [0, 1]. `temperature`, `thinking_temperature` (None: as `temperature`): in [0, 2]; a
    temperature of 0 is greedy and sets `top_k` to 1. `frequency_penalty`, `presence_penalty`: in [-2, 2].
    `repetition_penalty`: above 0. `max_new_tokens` (None: the model's limit), `min_new_tokens`: in tokens. `seed`: a
    64-bit integer, drawn when not given. `logits_processors` run inside the worker and cannot travel;
    `named_processors` do, as names and options (dicts are converted), and run before them.

    What is not given, or given as None, is left open: it reads as its default, does not travel, and where the model's
    files propose something else the worker takes that. `given` tells what is; `dataclasses.replace` gives everything.

    Each value is checked when set, at construction, on arrival from the wire, and by assignment; lists are copied in.
    Raises InvalidRequest (a ValueError) that names the field and what is allowed; NaN is allowed nowhere.
    """

    top_k: int = -1
    top_p: float = 1
    min_p: float = 0.0
    temperature: float = 1
    thinking_temperature: float | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    ignore_eos: bool = False
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    detokenize: bool = True
    seed: int = field(default_factory=_fresh_seed)
    logits_processors: Sequence[LogitsProcessor] | None = None
    named_processors: list[NamedProcessor] | None = None

    def __post_init__(self) -> None:
        state = self.__dict__
        # A decoder sets what has travelled and nothing else.
        for name, value in state.items():
            check, default = _CHECKS[name]
            if value is not default:
                state[name] = check(name, value)
        if "seed" not in state:
            state["seed"] = _fresh_seed()
        _keep_greedy(state)

    def __setattr__(self, name: str, value: Any) -> None:
        state = self.__dict__
        # `seed` is among the last that are set: until then this is construction, and __post_init__ checks all at once.
        if "seed" not in state:
            state[name] = value
        elif name in _CHECKS:
            state[name] = _CHECKS[name][0](name, value)
            if name in ("temperature", "top_k"):
                _keep_greedy(state)
        else:
            raise AttributeError(f"SamplingParams has no field {name!r}; it has {', '.join(_CHECKS)}")

    @property
    def given(self) -> frozenset[str]:
        """The fields that the caller set, and the seed; the others are left open."""
        return frozenset(self.__dict__)

    @classmethod
    def from_input_and_generation_config(
        cls,
        input_params: SamplingParamsInput,
        sampling_params_defaults: SamplingParamsGenerationConfigDefaults,
    ) -> SamplingParams:
        """What the caller asked for, over what the model's config proposes, over the defaults above.

        A config with `do_sample` False means greedy decoding, unless the caller asks for a temperature above 0: then
        the config's other values count as if it had sampled. The caller's `stop_token_ids` replace the config's.
        """
        asked = {spec.name: getattr(input_params, spec.name) for spec in fields(input_params)}
        asked = {name: value for name, value in asked.items() if value is not None}
        merged = sampling_params_defaults.values_to_update
        if merged.pop("do_sample", None) is False and not asked.get("temperature"):
            merged.update(temperature=0, top_k=1)
        merged.update(asked)
        return cls(**merged)

    @property
    def needs_penalties(self) -> bool:
        """Whether any penalty is off its neutral value."""
        return self.frequency_penalty != 0 or self.presence_penalty != 0 or self.repetition_penalty != 1

    def log_sampling_info(self) -> None:
        """Write every value, the seed included, to the log at INFO."""
        logger.info("sampling: %s", ", ".join(f"{spec.name}={getattr(self, spec.name)!r}" for spec in fields(self)))


def _keep_greedy(state: dict[str, Any]) -> None:
    if state.get("temperature") == 0:
        state["top_k"] = 1


def _refuse(name: str, value: object, allowed: str) -> InvalidRequest:
    text = repr(value)
    return InvalidRequest(f"`{name}` must be {allowed}, not {text if len(text) <= 40 else text[:37] + '...'}")


def _is_int(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _number(name: str, value: Any, low: float, high: float, *, open_low: bool = False) -> float:
    # NaN fails every comparison; comparing before converting lets huge ints through to the refusal.
    is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not is_number or not low <= value <= high or math.isinf(value) or (open_low and value == low):
        bounds = f"above {low:g}" if math.isinf(high) else f"from {low:g} to {high:g}"
        raise _refuse(name, value, f"a finite number {bounds}")
    return value if type(value) in (int, float) else float(value)


def _integer(name: str, value: Any, low: int, high: int) -> int:
    if not _is_int(value) or not low <= value <= high:
        raise _refuse(name, value, f"an integer from {low} to {high}")
    return int(value)


def _top_k(name: str, value: Any) -> int:
    if value is None:
        return -1
    if not _is_int(value) or not -1 <= value <= _MAX_ID:
        raise _refuse(name, value, "-1 (all tokens) or an integer of at least 1")
    return int(value) or -1


def _top_p(name: str, value: Any) -> float:
    return 1 if value is None else _number(name, value, 0, 1)


def _probability(name: str, value: Any) -> float:
    return _number(name, value, 0, 1)


def _temperature(name: str, value: Any) -> float:
    return _number(name, value, 0, _MAX_TEMPERATURE)


def _thinking_temperature(name: str, value: Any) -> float | None:
    return None if value is None else _number(name, value, 0, _MAX_TEMPERATURE)


def _penalty(name: str, value: Any) -> float:
    return _number(name, value, -_MAX_PENALTY, _MAX_PENALTY)


def _repetition_penalty(name: str, value: Any) -> float:
    return _number(name, value, 0, math.inf, open_low=True)


def _count(name: str, value: Any) -> int:
    return _integer(name, value, 0, _MAX_ID)


def _optional_count(name: str, value: Any) -> int | None:
    return None if value is None else _count(name, value)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool):
        raise _refuse(name, value, "True or False")
    return bool(value)


def _stop(name: str, value: Any) -> list[str] | None:
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not all(
        isinstance(text, str) and 0 < len(text) <= MAX_STOP_STRING_CHARS for text in value
    ):
        raise _refuse(name, value, f"a list of strings of 1 to {MAX_STOP_STRING_CHARS} characters")
    if len(value) > MAX_STOP_STRINGS:
        raise _refuse(name, value, f"a list of at most {MAX_STOP_STRINGS} strings")
    return list(value)


def _token_id(name: str, value: Any) -> int:
    return _integer(name, value, 0, _MAX_ID)


def _token_ids(name: str, value: Any) -> list[int]:
    if not isinstance(value, list | tuple | set | frozenset) or len(value) > MAX_STOP_TOKEN_IDS:
        raise _refuse(name, value, f"a list of at most {MAX_STOP_TOKEN_IDS} token ids")
    return [_token_id(name, token) for token in value]


def _optional_token_ids(name: str, value: Any) -> list[int] | None:
    return None if value is None else _token_ids(name, value)


def _seed(name: str, value: Any) -> int:
    return _fresh_seed() if value is None else _integer(name, value, -(2**63), 2**64 - 1)


def _processors(name: str, value: Any) -> tuple[LogitsProcessor, ...] | None:
    if value is None:
        return None
    if not isinstance(value, Sequence) or not all(callable(processor) for processor in value):
        raise _refuse(name, value, "a sequence of callables that take a ProcessorInputs")
    return tuple(value)


def _named_processors(name: str, value: Any) -> list[NamedProcessor] | None:
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) > MAX_NAMED_PROCESSORS:
        raise _refuse(name, value, f"a list of at most {MAX_NAMED_PROCESSORS} names with options")
    try:
        return msgspec.convert(list(value), list[NamedProcessor])
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"`{name}`: {error}") from None


_Check = Callable[[str, Any], Any]

_BY_NAME: dict[str, _Check] = {
    "top_k": _top_k,
    "top_p": _top_p,
    "min_p": _probability,
    "temperature": _temperature,
    "thinking_temperature": _thinking_temperature,
    "frequency_penalty": _penalty,
    "presence_penalty": _penalty,
    "repetition_penalty": _repetition_penalty,
    "max_new_tokens": _optional_count,
    "min_new_tokens": _count,
    "ignore_eos": _flag,
    "stop": _stop,
    "stop_token_ids": _optional_token_ids,
    "detokenize": _flag,
    "seed": _seed,
    "logits_processors": _processors,
    "named_processors": _named_processors,
}

#: Field to its check and its default; a value that is the default itself needs no check.
_CHECKS: dict[str, tuple[_Check, Any]] = {
    spec.name: (_BY_NAME[spec.name], spec.default) for spec in fields(SamplingParams)
}
_NAMES = tuple(_CHECKS)

_set_all = SamplingParams.__init__


@functools.wraps(_set_all)
def _set_given(self: SamplingParams, *values: Any, **named: Any) -> None:
    """Take out again what nobody gave, so that it lies in the class alone."""
    _set_all(self, *values, **named)
    given = {name for name, value in (*zip(_NAMES, values, strict=False), *named.items()) if value is not None}
    state = self.__dict__
    for name in _NAMES:
        if name not in given and state[name] == _CHECKS[name][1]:
            del state[name]


SamplingParams.__init__ = _set_given  # type: ignore[method-assign]
