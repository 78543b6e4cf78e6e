"""What one step brought for one request, as schedulers hand it on: an output, an end without one, or a failure.

Decoders of a whole step take their type from `PipelineTask.output_type`; the messages of `wire.py` carry outputs bare.
"""

from __future__ import annotations

from typing import Any, Generic, Self, TypeVar

import msgspec

from ..errors import InvalidRequest

_Output = TypeVar("_Output")


class SchedulerResult(msgspec.Struct, Generic[_Output], array_like=True):
    """An output of one request, or how the request ended without one. Travels as an array, without field names.

    `is_done`: nothing more comes. `result`: None ends the stream. `error`: why, for the caller; None when it was
    cancelled. `batch_id`: the step that it comes from. Raises InvalidRequest (a ValueError), also when decoded, for an
    error beside a result, and for a result that is missing although more comes.
    """

    is_done: bool
    result: _Output | None
    error: str | None = None
    batch_id: int | None = None

    def __post_init__(self) -> None:
        if self.result is None and not self.is_done:
            raise InvalidRequest("a SchedulerResult without `result` ends its request: `is_done` must be True")
        if self.result is not None and self.error is not None:
            raise InvalidRequest("a SchedulerResult has a `result` or an `error`, not both")

    @classmethod
    def create(cls, result: Any, batch_id: int | None = None) -> Self:
        """An output; whether it is the last is the output's to say."""
        return cls(result.is_done, result, None, batch_id)

    @classmethod
    def cancelled(cls) -> Self:
        """The request was cancelled."""
        return cls(True, None)

    @classmethod
    def failed(cls, error: str) -> Self:
        """The request failed, with a text for its caller."""
        return cls(True, None, error)
