"""Several hubs as one, so that a coordinator serves peers of this host and of others at once.

`choice.py` puts one together when addresses are of different kinds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .base import Frames, HubLink


class ManyHubs:
    """Owns the hubs it is given. Which of them a peer belongs to needs no book: only one of them knows it."""

    def __init__(self, hubs: Sequence[HubLink]) -> None:
        self._hubs = list(hubs)
        #: Whose turn it is to be heard.
        self._turn = 0

    @property
    def addresses(self) -> Sequence[str]:
        """Those of each hub in turn."""
        return [address for hub in self._hubs for address in hub.addresses]

    @property
    def pollables(self) -> Sequence[Any]:
        """Those of all hubs."""
        return [pollable for hub in self._hubs for pollable in hub.pollables]

    def send(self, peer: bytes, frames: Sequence[Any], *, more: bool = False) -> bool:
        """Send to a peer of any of them; False when it is gone, or too far behind to take more."""
        return any(hub.send(peer, frames, more=more) for hub in self._hubs)

    def flush(self) -> None:
        """Send what `more` has kept back."""
        for hub in self._hubs:
            hub.flush()

    def receive(self) -> tuple[bytes, Frames | None] | None:
        """The next message and who sent it, of each hub in turn."""
        for _ in self._hubs:
            hub = self._hubs[self._turn]
            self._turn = (self._turn + 1) % len(self._hubs)
            received = hub.receive()
            if received is not None:
                return received
        return None

    def close(self) -> None:
        """Close them all; again is harmless."""
        for hub in self._hubs:
            hub.close()
