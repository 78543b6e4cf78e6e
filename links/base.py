"""What a link is: a peer's end, and the hub's end that many peers share.

Implementations live beside this file and pass one conformance suite; `choice.py` picks one by its address. A link is
made, used and closed in one thread; one with `any_thread` in one thread at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ..proto import wire

#: One message: bytes-like objects, the envelope first.
Frames = wire.Frames
#: Makes the message that begins a peer's conversation with a hub. It is asked for one each time the peer knows that it
#: has reached a hub; what was queued for an earlier hub is dropped then, since a conversation begins anew.
Opening = Callable[[], Sequence[Any]]


class PeerLink(Protocol):
    """A client's, worker's or fleet's end. It finds its hub, and a hub that replaced it, by itself."""

    @property
    def any_thread(self) -> bool:
        """Whether `send` may be called from any thread, and the rest from one at a time; else all from one thread."""

    @property
    def pollables(self) -> Sequence[Any]:
        """What a `Poller` can wait on for input."""

    @property
    def connected(self) -> bool:
        """Whether a hub is there, as far as this end can tell."""

    @property
    def trouble(self) -> str:
        """Why no hub is reached, where more is known than that; "" otherwise."""

    def next_try(self) -> float:
        """When `receive` is to be called though there is no input, in monotonic seconds; infinity: not at all."""

    def send(self, frames: Sequence[Any], *, more: bool = False) -> None:
        """Queue a message, without waiting; it leaves when the hub is there. Its owner bounds what is queued.

        With `more`, another one or `flush` follows at once, and both may leave together. Frames of 64 KiB and more may
        be sent from where they are: they must not change until they have left.
        """

    def flush(self) -> None:
        """Send what `more` may have kept back."""

    def receive(self) -> Frames | None:
        """The next message, or None when none has come yet. Only after None may its owner wait on `pollables`."""

    def begin_anew(self) -> None:
        """Leave the hub without a word and find it again, where the hub can see that: what was received is in doubt."""

    def close(self) -> None:
        """Send what is queued for at most a moment, then let go. Again is harmless; what is sent later is dropped."""


class HubLink(Protocol):
    """The coordinator's end. A peer is named by its identity, 16 random bytes that it chose."""

    @property
    def addresses(self) -> Sequence[str]:
        """Where peers connect."""

    @property
    def pollables(self) -> Sequence[Any]:
        """What a `Poller` can wait on for input; few, however many peers there are."""

    def send(self, peer: bytes, frames: Sequence[Any], *, more: bool = False) -> bool:
        """Send to a peer without waiting; False when it is gone, or too far behind to take more.

        With `more`, another message, to whomever, or `flush` follows at once.
        """

    def flush(self) -> None:
        """Send what `more` may have kept back."""

    def receive(self) -> tuple[bytes, Frames | None] | None:
        """The next message and who sent it, or None when none has come yet; only after None may its owner wait.

        None in place of the message: that peer's connection has ended, after all that came before. It may come back,
        under the same identity, and then begins anew. Links that cannot know never say so.
        """

    def close(self) -> None:
        """Send what is queued for at most a moment, then let go; again is harmless."""
