"""The state of one request inside a worker: its status and the protocol that every context satisfies.

The contexts that the one-shot pipelines receive are in `one_shot.py`; token state is in `tokens.py`.
"""

from __future__ import annotations

from enum import Enum
from typing import Protocol, TypeVar, runtime_checkable

from .request import RequestID


class GenerationStatus(str, Enum):
    """How far a request is; equal to its string value."""

    ACTIVE = "active"
    END_OF_SEQUENCE = "end_of_sequence"
    MAXIMUM_LENGTH = "maximum_length"
    CANCELLED = "cancelled"

    @property
    def is_done(self) -> bool:
        """True for every status but ACTIVE."""
        return self is not GenerationStatus.ACTIVE


@runtime_checkable
class BaseContext(Protocol):
    """What every scheduler may rely on."""

    status: GenerationStatus

    @property
    def request_id(self) -> RequestID:
        """The request this context belongs to."""
        ...

    @property
    def is_done(self) -> bool:
        """Whether the request has ended: `status.is_done`."""
        return self.status.is_done


BaseContextType = TypeVar("BaseContextType", bound=BaseContext)
