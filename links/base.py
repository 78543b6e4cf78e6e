"""What a link is: a peer's end, and the hub's end that many peers share.

Implementations live beside this file and pass one conformance suite. A link is made, used and closed in one thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ..proto import wire

#: One message: bytes-like objects, the envelope first.
Frames = wire.Frames


class PeerLink(Protocol):
    """A client's, worker's or fleet's end."""

    @property
    def pollable(self) -> Any:
        """What a `zmq.Poller` can wait on for input."""

    def send(self, frames: Sequence[Any]) -> None:
        """Queue a message; it leaves when the hub is there."""

    def receive(self) -> Frames | None:
        """The next message, or None when none has come yet."""

    def close(self) -> None:
        """Send what is queued for at most a moment, then let go."""


class HubLink(Protocol):
    """The coordinator's end. A peer is named by its identity, 16 random bytes that it chose."""

    @property
    def addresses(self) -> Sequence[str]:
        """Where peers connect."""

    @property
    def pollable(self) -> Any:
        """What a `zmq.Poller` can wait on for input."""

    def send(self, peer: bytes, frames: Sequence[Any]) -> bool:
        """Send to a peer without waiting; False when it is gone, or too far behind to take more."""

    def receive(self) -> tuple[bytes, Frames] | None:
        """The next message and who sent it, or None when none has come yet."""

    def close(self) -> None:
        """Send what is queued for at most a moment, then let go."""
