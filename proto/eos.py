"""When a generated sequence ends: end tokens, token sequences and stop strings, found also across pieces.

Contexts (`text_context.py`) ask after each token and each decoded piece of text; this module knows neither statuses nor
length limits.

Source: `max.interfaces.eos_tracking` (26.3), `max.pipelines.context.eos_tracking` (26.7).
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import InvalidRequest
from .sampling import MAX_STOP_STRING_CHARS, MAX_STOP_STRINGS, MAX_STOP_TOKEN_IDS, SamplingParams

#: Most token sequences, and most tokens in one: what `MAX_STOP_STRINGS` strings can become.
MAX_EOS_SEQUENCES = MAX_STOP_STRINGS
MAX_EOS_SEQUENCE_TOKENS = MAX_STOP_STRING_CHARS * 4

_WIRE_FIELDS = 4


class StopMatch(NamedTuple):
    """A stop string found: which one, and where it begins, counted from the start of the piece just given.

    `start` is negative when the string began in an earlier piece.
    """

    stop: str
    start: int


class EOSTracker:
    """The stop rules of one request.

    `eos_token_ids`: tokens that end it alone. `eos_sequences`: token sequences that end it as a suffix.
    `eos_stop_strings`: texts that end it; what was decoded before is remembered as far as a stop string can reach back.
    The rules cannot change after construction; only the remembered text does.

    Raises InvalidRequest (a ValueError) for ids that are no non-negative ints, an empty sequence, or an empty or
    non-string stop string (an empty one would match everything), or more than the stated bounds.
    """

    __slots__ = (
        "_endings",
        "_ids",
        "_longest_sequence",
        "_longest_string",
        "_pattern",
        "_sequences",
        "_strings",
        "_tail",
    )

    #: Tokens that end the request alone.
    _ids: frozenset[int]
    _sequences: tuple[tuple[int, ...], ...]
    _strings: tuple[str, ...]
    #: Each token that can be the last of an ending, to the sequences it is the last of; one lookup settles most tokens.
    _endings: dict[int, list[list[int]]]
    #: Tokens of the longest ending, at least 1.
    _longest_sequence: int
    #: Characters of the longest stop string, 0 when there is none.
    _longest_string: int
    #: All stop strings as one automaton, made when the first text comes.
    _pattern: re.Pattern[str] | None
    #: The end of the text so far, shorter than the longest stop string; it holds no whole stop string.
    _tail: str

    def __init__(
        self,
        *,
        eos_token_ids: Iterable[int] = (),
        eos_sequences: Sequence[Sequence[int]] = (),
        eos_stop_strings: Sequence[str] = (),
    ) -> None:
        self._ids = frozenset(_ids("eos_token_ids", eos_token_ids, MAX_STOP_TOKEN_IDS))
        self._sequences = _check_sequences(eos_sequences)
        self._strings = _check_strings(eos_stop_strings)
        self._endings = {token: [] for token in self._ids}
        for sequence in self._sequences:
            self._endings.setdefault(sequence[-1], []).append(list(sequence))
        self._longest_sequence = max(map(len, self._sequences), default=1)
        self._longest_string = max(map(len, self._strings), default=0)
        self._pattern = None
        self._tail = ""

    @classmethod
    def from_sampling_params(
        cls,
        params: SamplingParams,
        *,
        model_eos_token_ids: Iterable[int] = (),
        stop_sequences: Sequence[Sequence[int]] = (),
    ) -> EOSTracker:
        """The rules of a request: the model's end tokens, its own, and its stop strings.

        `stop_sequences` are the stop strings as tokens, without special tokens; empty ones are left out. `ignore_eos`
        leaves only the stop strings.
        """
        if params.ignore_eos:
            return cls(eos_stop_strings=params.stop or ())
        return cls(
            eos_token_ids={*model_eos_token_ids, *(params.stop_token_ids or ())},
            eos_sequences=[sequence for sequence in stop_sequences if len(sequence)],
            eos_stop_strings=params.stop or (),
        )

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Tokens that end the request alone."""
        return self._ids

    @property
    def eos_sequences(self) -> tuple[tuple[int, ...], ...]:
        """Token sequences that end the request as a suffix."""
        return self._sequences

    @property
    def eos_stop_strings(self) -> tuple[str, ...]:
        """Texts that end the request."""
        return self._strings

    # Tokens

    @property
    def eos_sequence_lookback(self) -> int:
        """How many tokens before a new one can take part in an ending with it."""
        return self._longest_sequence - 1

    def may_end(self, token: int) -> bool:
        """Whether any ending has `token` as its last; False means that `is_eos_from_tokens` need not be asked."""
        return token in self._endings

    def is_eos_from_tokens(self, generated_tokens: npt.NDArray[np.int64]) -> bool:
        """Whether the last of the generated tokens, shape `(n,)`, ends the request; ValueError when there are none."""
        if not len(generated_tokens):
            raise ValueError("is_eos_from_tokens() needs at least one generated token")
        if generated_tokens[-1] not in self._endings:
            return False
        return self._ends(_as_list(generated_tokens[-self._longest_sequence :]))

    def first_eos_offset(self, prior_generated: Sequence[int], new_tokens: Sequence[int]) -> int | None:
        """Where in `new_tokens` (list or array) the first token lies that ends the request; None when none does.

        `prior_generated` are the tokens before them, of which the last `eos_sequence_lookback` are looked at.
        """
        lookback = self.eos_sequence_lookback
        tokens = _as_list(prior_generated[-lookback:]) if lookback else []
        for offset, token in enumerate(_as_list(new_tokens)):
            tokens.append(token)
            if token in self._endings and self._ends(tokens):
                return offset
        return None

    def _ends(self, tokens: list[int]) -> bool:
        last = tokens[-1]
        return last in self._ids or any(tokens[-len(sequence) :] == sequence for sequence in self._endings[last])

    # Text

    def find_stop(self, piece: str) -> StopMatch | None:
        """The first stop string in the text so far, whose newest part is `piece`; None when there is none.

        Of several, the one that begins first; of those that begin together, the one listed first. After a match
        nothing is remembered, so that one occurrence is found once.
        """
        if not self._longest_string:
            return None
        tail = self._tail
        text = tail + piece
        found = (self._pattern or self._compile()).search(text)
        if found is not None:
            self._tail = ""
            return StopMatch(found.group(), found.start() - len(tail))
        keep = self._longest_string - 1
        # Only after the search: cutting before it would lose a stop string inside a long piece.
        self._tail = text if len(text) <= keep else text[len(text) - keep :]
        return None

    def is_eos_from_string(self, next_token_decoded: str) -> str | None:
        """The stop string that the text reaches with its next piece, or None; see `find_stop`."""
        found = self.find_stop(next_token_decoded)
        return None if found is None else found.stop

    @property
    def partial_stop_length(self) -> int:
        """How many of the last characters given may be the beginning of a stop string.

        A streamer holds those back, since text once sent cannot be recalled.
        """
        tail = self._tail
        longest = 0
        for stop in self._strings:
            start = tail.find(stop[0], max(0, len(tail) - len(stop) + 1))
            while start >= 0 and not stop.startswith(tail[start:]):
                start = tail.find(stop[0], start + 1)
            if start >= 0:
                longest = max(longest, len(tail) - start)
        return longest

    def reset(self) -> None:
        """Forget the text so far."""
        self._tail = ""

    def _compile(self) -> re.Pattern[str]:
        # Alternatives are tried in order at each position: leftmost first, then as listed.
        self._pattern = re.compile("|".join(map(re.escape, self._strings)))
        return self._pattern

    # Identity and travel

    def to_wire(self) -> tuple[list[int], tuple[tuple[int, ...], ...], tuple[str, ...], str]:
        """What travels: ids (sorted), sequences, stop strings, and the text remembered.

        The text goes along so that a moved request still finds a stop string that the move cut in two.
        """
        return sorted(self._ids), self._sequences, self._strings, self._tail

    @classmethod
    def from_wire(cls, wire: Sequence[Any]) -> EOSTracker:
        """The tracker that `to_wire` described, checked again; InvalidRequest (a ValueError) when it is none."""
        if not isinstance(wire, list | tuple) or len(wire) != _WIRE_FIELDS:
            raise InvalidRequest(f"an EOSTracker travels as {_WIRE_FIELDS} fields")
        ids, sequences, strings, tail = wire
        tracker = cls(eos_token_ids=ids, eos_sequences=sequences, eos_stop_strings=strings)
        if not isinstance(tail, str) or len(tail) > max(tracker._longest_string - 1, 0):
            raise InvalidRequest("the text remembered by an EOSTracker is shorter than its longest stop string")
        tracker._tail = tail
        return tracker

    def __reduce__(self) -> tuple[Any, ...]:
        return (EOSTracker.from_wire, (self.to_wire(),))

    def __eq__(self, other: object) -> bool:
        """Whether the rules are the same; the text remembered does not count."""
        if not isinstance(other, EOSTracker):
            return NotImplemented
        return self.to_wire()[:3] == other.to_wire()[:3]

    def __hash__(self) -> int:
        return hash((self._ids, self._sequences, self._strings))

    def __repr__(self) -> str:
        return (
            f"EOSTracker(eos_token_ids={set(self._ids) or '{}'}, eos_sequences={list(self._sequences)}, "
            f"eos_stop_strings={list(self._strings)})"
        )


def _as_list(tokens: Sequence[int] | npt.NDArray[np.int64]) -> list[int]:
    return tokens.tolist() if isinstance(tokens, np.ndarray) else list(tokens)


def _ids(name: str, values: object, most: int) -> tuple[int, ...]:
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise InvalidRequest(f"`{name}` holds token ids, not a {type(values).__name__}")
    try:
        ids = tuple(map(operator.index, values))
    except TypeError:
        raise InvalidRequest(f"`{name}` holds token ids, which are ints") from None
    if len(ids) > most or (ids and min(ids) < 0):
        raise InvalidRequest(f"`{name}` holds at most {most} token ids, none negative; got {len(ids)}")
    return ids


def _check_sequences(sequences: object) -> tuple[tuple[int, ...], ...]:
    if isinstance(sequences, str | bytes) or not isinstance(sequences, Sequence) or len(sequences) > MAX_EOS_SEQUENCES:
        raise InvalidRequest(f"`eos_sequences` is a list of at most {MAX_EOS_SEQUENCES} token sequences")
    checked = tuple(_ids("eos_sequences", sequence, MAX_EOS_SEQUENCE_TOKENS) for sequence in sequences)
    if not all(checked):
        raise InvalidRequest("an empty sequence in `eos_sequences` would match everything")
    return checked


def _check_strings(strings: object) -> tuple[str, ...]:
    if isinstance(strings, str | bytes) or not isinstance(strings, Sequence) or len(strings) > MAX_STOP_STRINGS:
        raise InvalidRequest(f"`eos_stop_strings` is a list of at most {MAX_STOP_STRINGS} strings")
    if not all(isinstance(text, str) and 0 < len(text) <= MAX_STOP_STRING_CHARS for text in strings):
        raise InvalidRequest(f"each of `eos_stop_strings` is a string of 1 to {MAX_STOP_STRING_CHARS} characters")
    return tuple(strings)
