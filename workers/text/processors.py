"""Logits processors by name: what a request or a deployment may ask for, with options that are checked.

Code never travels: a name and its options do, and the worker looks the name up here or among the entry points that
other packages declare. `shipped_processors.py` has ours; the contract is `proto/logits.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

import msgspec

from ...errors import ConfigError, InvalidRequest
from ...proto.logits import BatchLogitsProcessor, LogitsProcessor, NamedProcessor
from ...proto.sampling import MAX_NAMED_PROCESSORS
from ...proto.text_context import TextContext
from ..device import Device

#: Where packages declare processors of their own: name = "module:function", decorated as ours are.
ENTRY_POINTS = "tensoryard.logits_processors"

O = TypeVar("O", bound=msgspec.Struct)  # noqa: E741 - options


@dataclass(frozen=True)
class Setting:
    """Where a processor will run."""

    device: Device
    vocabulary: int


@dataclass(frozen=True)
class _Kind:
    """A processor that can be asked for. `whole_batch`: it sees every row, and belongs to a deployment."""

    options: type[msgspec.Struct]
    create: Callable[..., Any]
    whole_batch: bool


_KINDS: dict[str, _Kind] = {}

Create = Callable[[O, Setting, TextContext], LogitsProcessor]
CreateBatch = Callable[[O, Setting], BatchLogitsProcessor]


def logits_processor(name: str, options: type[O]) -> Callable[[Create[O]], Create[O]]:
    """Register a function that makes a request's processor from its options; one is made per request.

    `options`: a msgspec Struct; unknown keys and values of other types are refused by it. Raises ConfigError for a name
    that is taken.
    """

    def register(create: Create[O]) -> Create[O]:
        _add(name, _Kind(options, create, whole_batch=False))
        return create

    return register


def batch_logits_processor(name: str, options: type[O]) -> Callable[[CreateBatch[O]], CreateBatch[O]]:
    """The same for a deployment's processor, which sees the logits of a whole step."""

    def register(create: CreateBatch[O]) -> CreateBatch[O]:
        _add(name, _Kind(options, create, whole_batch=True))
        return create

    return register


def _add(name: str, kind: _Kind) -> None:
    if name in _KINDS and _KINDS[name].create.__qualname__ != kind.create.__qualname__:
        raise ConfigError(f"there is a logits processor called {name!r} already")
    _KINDS[name] = kind


def request_processors(context: TextContext, setting: Setting) -> list[LogitsProcessor]:
    """The processors that a request asks for by name, in its order.

    Raises InvalidRequest that names the processor and its option.
    """
    made: list[LogitsProcessor] = []
    for each in context.sampling_params.named_processors or ():
        kind = _kind(each.name, whole_batch=False)
        made.append(kind.create(_options(each, kind), setting, context))
    return made


def deployment_processors(asked: Sequence[NamedProcessor], setting: Setting) -> list[BatchLogitsProcessor]:
    """The processors that a deployment has for every step, in its order; ConfigError as above."""
    try:
        kinds = [_kind(each.name, whole_batch=True) for each in asked[: MAX_NAMED_PROCESSORS + 1]]
        if len(asked) > MAX_NAMED_PROCESSORS:
            raise ConfigError(f"a deployment has at most {MAX_NAMED_PROCESSORS} logits processors, not {len(asked)}")
        return [kind.create(_options(each, kind), setting) for each, kind in zip(asked, kinds, strict=True)]
    except InvalidRequest as error:
        raise ConfigError(error.text) from None


def known_processors(*, whole_batch: bool = False) -> list[str]:
    """The names that may be asked for, sorted."""
    from . import shipped_processors  # noqa: F401 - registers ours

    loaded = {name for name, kind in _KINDS.items() if kind.whole_batch == whole_batch}
    return sorted(loaded | (set(_declared()) - set(_KINDS)))


@cache
def _declared() -> dict[str, EntryPoint]:
    """What installed packages declare; read once, since it reads files."""
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}


def _kind(name: str, *, whole_batch: bool) -> _Kind:
    from . import shipped_processors  # noqa: F401 - registers ours

    if name not in _KINDS and name in _declared():
        _declared()[name].load()
    kind = _KINDS.get(name)
    if kind is None or kind.whole_batch != whole_batch:
        known = ", ".join(known_processors(whole_batch=whole_batch))
        whose = "a deployment" if whole_batch else "a request"
        raise InvalidRequest(f"{whose} has no logits processor called {name!r:.80}; there are {known}")
    return kind


def _options(asked: NamedProcessor, kind: _Kind) -> Any:
    allowed = ", ".join(field.name for field in msgspec.structs.fields(kind.options))
    unknown = sorted(set(asked.options) - {field.name for field in msgspec.structs.fields(kind.options)})
    if unknown:
        raise InvalidRequest(f"logits processor {asked.name!r} has no option {unknown[0]!r:.80}; it has {allowed}")
    try:
        return msgspec.convert(asked.options, kind.options, str_keys=True)
    except (msgspec.ValidationError, ValueError) as error:
        raise InvalidRequest(f"logits processor {asked.name!r}: {error}") from None
