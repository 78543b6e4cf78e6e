"""Token state of one sequence: the growable buffer, its ranges, and log probabilities.

Contexts (`text_context.py`, `one_shot.py`) each hold one `TokenBuffer` and decide when a sequence ends; this module
knows no stop rule and no request. Only `to_wire` and `from_wire` know how a buffer travels: `codec.py` calls them.

Source: `max.interfaces.tokens` and `.log_probabilities` (26.3), `max.pipelines.context` (26.7).
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex, TypeAlias, overload

import msgspec
import numpy as np
import numpy.typing as npt

from ..errors import InvalidRequest

#: A read-only view of int64 token ids, shape `(n,)`.
TokenSlice: TypeAlias = npt.NDArray[np.int64]

#: Largest id that a slot can hold.
MAX_TOKEN_ID = 2**63 - 1

#: Slots kept free behind a new buffer's prompt, so that the first tokens of an answer need no growth (512 bytes).
_SPARE_SLOTS = 64

#: What lies in the last slot while its token is still being computed; never shown as output. A valid id, so that a
#: gather over the active window stays in bounds.
_PLACEHOLDER_ID = 0

_WIRE_FIELDS = 7


class LogProbabilities(msgspec.Struct, tag=True, omit_defaults=True):
    """Log probabilities (natural logarithm) of the tokens of one commit, as parallel lists.

    `token_log_probabilities`: of each chosen token. `top_log_probabilities`: token id to log probability of the most
    likely candidates at each position. `sampled_token_ids`: the chosen ids themselves, or empty when not recorded.
    `pieces`: what the ids here say, in bytes; of tokens that are part of the answer's text, where one is made.

    Raises InvalidRequest (a ValueError) when the lists differ in length.
    """

    token_log_probabilities: list[float]
    top_log_probabilities: list[dict[int, float]]
    sampled_token_ids: list[int] = []
    pieces: dict[int, bytes] = {}

    def __post_init__(self) -> None:
        positions = len(self.token_log_probabilities)
        if len(self.top_log_probabilities) != positions or len(self.sampled_token_ids) not in (0, positions):
            raise InvalidRequest(
                "the lists of LogProbabilities are parallel, not of "
                f"{positions}, {len(self.top_log_probabilities)} and {len(self.sampled_token_ids)} entries",
            )


@dataclass(slots=True)
class Range:
    """A mutable half-open range of positions, `[start, end)`; an empty one is falsy.

    Raises InvalidRequest (a ValueError) for bounds that are no ints, negative, or crossed, also when decoded.
    """

    start: int
    end: int

    def __post_init__(self) -> None:
        _check_bounds(self.start, self.end)

    def __len__(self) -> int:
        return self.end - self.start

    def bump_start(self, n: int) -> None:
        """Move the start by `n` (may be negative); ValueError, and no change, if it would leave `[0, end]`."""
        _check_bounds(self.start + n, self.end)
        self.start += n

    def bump_end(self, n: int) -> None:
        """Move the end by `n` (may be negative); ValueError, and no change, if it would come before the start."""
        _check_bounds(self.start, self.end + n)
        self.end += n

    def advance(self) -> None:
        """Leave nothing: the start moves to the end."""
        self.start = self.end


def _check_bounds(start: object, end: object) -> None:
    if type(start) is not int or type(end) is not int:
        raise InvalidRequest(f"a Range has int bounds, not {start!r} and {end!r}")
    if not 0 <= start <= end:
        raise InvalidRequest(f"a Range needs 0 <= start <= end, not [{start}, {end})")


class TokenBuffer:
    """All tokens of one sequence: one growable int64 array seen through three independent views.

    - storage: prompt, then generated tokens (`all`, `prompt`, `generated`, `len()`);
    - processing: processed, then the active window that the next step reads, then what is pending while a long prompt
      is worked on in chunks (`active`, `processed_length`, `current_position`, `actively_chunked`);
    - streaming: generated tokens already handed out, then the outstanding ones.

    The caller's array is copied in. Every array handed out is a read-only view of shape `(n,)`; tokens once written
    stay as they are (save for `overwrite_last_token`), so a view keeps its content when the buffer grows. Each method
    checks first and moves afterwards: a call that raises has changed nothing. One writer; not thread-safe.

    Raises InvalidRequest (a ValueError) for an array that is not one-dimensional, not int64, or empty.
    """

    __slots__ = (
        "_end",
        "_length",
        "_offset",
        "_pending",
        "_processed",
        "_prompt_length",
        "_returned",
        "_slots",
        "_view",
    )

    #: The storage, `_length` of its slots in use.
    _slots: TokenSlice
    #: The same memory, read-only; every view handed out is a slice of it.
    _view: TokenSlice
    #: Tokens held.
    _length: int
    #: Leading tokens that are prompt, 1 to `_length`.
    _prompt_length: int
    #: Leading tokens whose state the model holds: the start of the processing window.
    _processed: int
    #: End of the processing window; below `_length` exactly while chunked.
    _end: int
    #: Shift of the visible start of the window against `_processed`.
    _offset: int
    #: Tokens that are prompt or already handed out; `[_returned, _length)` is outstanding.
    _returned: int
    #: Whether the last token is a placeholder: a slot whose token is not known yet.
    _pending: bool

    def __init__(self, array: TokenSlice) -> None:
        _check_tokens(array)
        length = len(array)
        self._allocate(length + _SPARE_SLOTS)
        self._slots[:length] = array
        self._length = self._prompt_length = self._returned = self._end = length
        self._processed = self._offset = 0
        self._pending = False

    # Storage

    @property
    def array(self) -> TokenSlice:
        """The same as `all`: the buffer's spare slots are never shown."""
        return self._view[: self._length]

    @property
    def all(self) -> TokenSlice:
        """Every token, prompt first."""
        return self._view[: self._length]

    @property
    def prompt(self) -> TokenSlice:
        """The prompt."""
        return self._view[: self._prompt_length]

    @property
    def generated(self) -> TokenSlice:
        """The tokens after the prompt, a placeholder included."""
        return self._view[self._prompt_length : self._length]

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt."""
        return self._prompt_length

    @property
    def generated_length(self) -> int:
        """Tokens after the prompt, a placeholder included."""
        return self._length - self._prompt_length

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, key: slice) -> TokenSlice: ...

    @overload
    def __getitem__(self, key: SupportsIndex) -> np.int64: ...

    def __getitem__(self, key: SupportsIndex | slice) -> TokenSlice | np.int64:
        """One token (IndexError outside the buffer), or a view; TypeError for any other key."""
        if not isinstance(key, slice):
            key = operator.index(key)
        item: TokenSlice | np.int64 = self._view[: self._length][key]
        return item

    # Processing

    @property
    def active(self) -> TokenSlice:
        """The tokens that the next step reads."""
        return self._view[self._processed + self._offset : self._end]

    @property
    def processed_length(self) -> int:
        """Leading tokens whose state the model already holds."""
        return self._processed

    @property
    def active_length(self) -> int:
        """Tokens of the active window, those shown by a negative offset included."""
        return self._end - self._processed - self._offset

    @property
    def current_position(self) -> int:
        """Where the active window ends: the index that the next token gets. No processing offset moves it."""
        return self._end

    @property
    def actively_chunked(self) -> bool:
        """Whether the window was cut short by `chunk` and tokens are pending behind it."""
        return self._end < self._length

    def chunk(self, chunk_size: int) -> None:
        """Cut the active window to its first `chunk_size` tokens; may be repeated to cut further.

        ValueError unless `1 <= chunk_size < active_length`: a chunk of full size is simply not asked for.
        """
        end = self._processed + self._offset + operator.index(chunk_size)
        if not 0 < chunk_size < self.active_length or end < self._processed:
            raise ValueError(f"cannot cut {self.active_length} active tokens to a chunk of {chunk_size}")
        self._end = end

    def advance_chunk(self) -> None:
        """Mark the chunk as processed; everything behind it becomes active. ValueError when there is no chunk."""
        if self._end >= self._length:
            raise ValueError("advance_chunk() follows chunk(); the whole window is active")
        self._processed, self._end, self._offset = self._end, self._length, 0

    def advance_with_token(self, token: int) -> None:
        """Mark the active window as processed and append `token` as the new window, outstanding for the reader.

        ValueError while chunked, while the last token is a placeholder, or for an id outside `[0, 2**63)`; TypeError
        for an id that is no integer.
        """
        if self._pending:
            raise ValueError("the last token is a placeholder: overwrite_last_token() it before appending")
        self._append(_as_token(token))

    def advance_with_placeholder(self) -> None:
        """Append a slot whose token is not known yet, so that the step after it can be prepared.

        There is at most one, always last. It is never handed out as output; `overwrite_last_token` makes it a token,
        `reset_as_new_prompt` drops it. ValueError while chunked or when there is one already.
        """
        if self._pending:
            raise ValueError("the last token is a placeholder already; at most one may be pending")
        self._append(_PLACEHOLDER_ID)
        self._pending = True

    @property
    def has_placeholder(self) -> bool:
        """Whether the last token is a placeholder."""
        return self._pending

    def overwrite_last_token(self, token: int) -> None:
        """Replace the last token, or the placeholder there; no range moves.

        ValueError for an id outside `[0, 2**63)`; TypeError for one that is no integer.
        """
        self._slots[self._length - 1] = _as_token(token)
        self._pending = False

    def rewind_processing(self, n: int) -> None:
        """Move the window's start left by `n`, to work on those tokens again; its end stays.

        ValueError for a negative `n` or one that reaches before the first token.
        """
        if not 0 <= n <= min(self._processed, self._processed + self._offset):
            raise ValueError(f"cannot rewind by {n}: {self._processed} tokens are processed, offset {self._offset}")
        self._processed -= operator.index(n)

    def skip_processing(self, n: int) -> None:
        """Move the window's start right by `n`, as a prefix-cache hit does; 0 is allowed.

        ValueError for a negative `n` or one that would leave no active token.
        """
        if n and not 0 < n < min(self._end - self._processed, self.active_length):
            raise ValueError(f"cannot skip {n} of {self.active_length} active tokens: at least one stays")
        self._processed += operator.index(n)

    def apply_processing_offset(self, value: int) -> None:
        """Shift the visible start of the window by `value`: negative shows earlier tokens again.

        Absolute, not cumulative; `processed_length` stays. ValueError outside the tokens up to the window's end.
        """
        if not 0 <= self._processed + value <= self._end:
            raise ValueError(f"offset {value} from {self._processed} is outside [0, {self._end}]")
        self._offset = operator.index(value)

    def reset_as_new_prompt(self, delete_last_generated_token: bool = False) -> None:
        """Make all tokens prompt and all of them active; nothing is outstanding, nothing chunked, no offset.

        A placeholder is dropped. With `delete_last_generated_token` the last token is dropped first (the placeholder,
        if there is one): ValueError when nothing was generated.
        """
        if delete_last_generated_token and self._length == self._prompt_length:
            raise ValueError("no generated token to delete: the buffer holds only its prompt")
        if delete_last_generated_token or self._pending:
            self._length -= 1
        self._prompt_length = self._returned = self._end = self._length
        self._processed = self._offset = 0
        self._pending = False

    # Streaming

    @property
    def has_outstanding_generated_tokens(self) -> bool:
        """Whether a generated token has not been handed out yet; a placeholder does not count."""
        return self._returned + self._pending < self._length

    def consume_recently_generated_tokens(self) -> TokenSlice:
        """The outstanding tokens, which count as handed out from now on; ValueError when there are none."""
        end = self._length - self._pending
        if self._returned >= end:
            raise ValueError("no generated token is outstanding")
        start, self._returned = self._returned, end
        return self._view[start:end]

    # Identity and travel

    def to_wire(self) -> tuple[TokenSlice, int, int, int, int, int, bool]:
        """What travels: a copy of the tokens without spare slots, then the state.

        Prompt length, processed length, window end, offset, handed-out length, and whether the last is a placeholder.
        """
        return (
            self._view[: self._length].copy(),
            self._prompt_length,
            self._processed,
            self._end,
            self._offset,
            self._returned,
            self._pending,
        )

    @classmethod
    def from_wire(cls, wire: Sequence[Any]) -> TokenBuffer:
        """The buffer that `to_wire` described; everything is checked again.

        Raises InvalidRequest (a ValueError) for a state that no buffer can have had.
        """
        if not isinstance(wire, list | tuple) or len(wire) != _WIRE_FIELDS:
            raise InvalidRequest(f"a TokenBuffer travels as {_WIRE_FIELDS} fields")
        array, *state, pending = wire
        if any(type(number) is not int for number in state) or type(pending) is not bool:
            raise InvalidRequest("the state of a TokenBuffer is five ints and a bool")
        buffer = cls(array)
        buffer._prompt_length, buffer._processed, buffer._end, buffer._offset, buffer._returned = state
        buffer._pending = pending
        buffer._check_state()
        return buffer

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickles and copies leave the spare slots behind too.
        return (TokenBuffer.from_wire, (self.to_wire(),))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TokenBuffer):
            return NotImplemented
        mine, theirs = self.to_wire(), other.to_wire()
        return mine[1:] == theirs[1:] and np.array_equal(mine[0], theirs[0])

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return (
            f"TokenBuffer(prompt={self._prompt_length}, generated={self.generated_length}, "
            f"window=[{self._processed}, {self._end}), offset={self._offset}, returned={self._returned}, "
            f"placeholder={self._pending})"
        )

    # Inside

    def _append(self, token: int) -> None:
        end = self._length
        if self._end < end:
            raise ValueError("the prompt is being worked on in chunks: advance_chunk() before appending")
        if end == len(self._slots):
            self._grow()
        # Only after the store can nothing fail any more: the state moves last.
        self._slots[end] = token
        self._processed = end
        self._length = self._end = end + 1
        self._offset = 0

    def _check_state(self) -> None:
        if not (
            1 <= self._prompt_length <= self._returned <= self._length - self._pending
            and 0 <= self._processed <= self._end <= self._length
            and 0 <= self._processed + self._offset <= self._end
        ):
            raise InvalidRequest(f"no TokenBuffer of {self._length} tokens has this state: {self!r}")
        if self.generated_length and self.generated.min() < 0:
            raise InvalidRequest("a generated token id is negative")

    def _grow(self) -> None:
        old = self._slots
        self._allocate(2 * len(old))
        self._slots[: self._length] = old[: self._length]

    def _allocate(self, capacity: int) -> None:
        self._slots = np.empty(capacity, np.int64)
        # Over a read-only memoryview, so that no reader can set the writeable flag again.
        self._view = np.frombuffer(self._slots.data.toreadonly(), np.int64)


def _as_token(token: int) -> int:
    if type(token) is not int:
        token = operator.index(token)
    if not 0 <= token <= MAX_TOKEN_ID:
        raise InvalidRequest(f"a token id is 0 to {MAX_TOKEN_ID}, not {token}")
    return token


def _check_tokens(array: object) -> None:
    if not isinstance(array, np.ndarray):
        raise InvalidRequest(f"a TokenBuffer is made of a numpy array, not of a {type(array).__name__}")
    if array.ndim != 1 or array.dtype != np.int64 or not array.size:
        raise InvalidRequest(
            f"a TokenBuffer is made of a one-dimensional, non-empty int64 array, not of {array.dtype} {array.shape}",
        )
