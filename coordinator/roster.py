"""Which peers are connected, under which names, and which of them have gone quiet.

Kept by `broker.py`; knows nothing of requests.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..proto import wire

#: Peers that sent unreadable messages and are remembered for it.
_MAX_COMPLAINTS = 4096


@dataclass(slots=True, eq=False)
class Peer:
    """One connected process."""

    identity: bytes
    role: str
    #: Unique within its role; a client's is its identity, a worker's the one the fleet gave it.
    name: str
    host: str
    pid: int
    #: Monotonic time of its last message.
    seen: float
    #: What it speaks beyond the messages that all know, as it told; see `wire.FEATURES`.
    features: frozenset[str] = frozenset()
    #: What it was sent since.
    unheard_bytes: int = 0
    #: Which of its connections it speaks on.
    connection: int = 0

    def hear(self, at: float) -> None:
        """It lives, and so it reads."""
        self.seen = at
        self.unheard_bytes = 0


class Roster:
    """The connected peers."""

    def __init__(self) -> None:
        self._by_identity: dict[bytes, Peer] = {}
        self._by_name: dict[tuple[str, str], Peer] = {}
        self._complaints: dict[bytes, int] = {}

    def get(self, identity: bytes) -> Peer | None:
        """The peer of an identity."""
        return self._by_identity.get(identity)

    def named(self, role: str, name: str) -> Peer | None:
        """The peer of a name."""
        return self._by_name.get((role, name))

    def all(self, role: str = "") -> list[Peer]:
        """Every peer, or every one of a role."""
        return [peer for peer in self._by_identity.values() if not role or peer.role == role]

    def count(self, role: str) -> int:
        """How many peers have a role."""
        return sum(peer.role == role for peer in self._by_identity.values())

    def replaced_by(self, identity: bytes, hello: wire.Hello) -> list[Peer]:
        """Peers whose place a newcomer takes: the one it was before, and one of the same name."""
        found = {id(p): p for p in (self.get(identity), self.named(hello.role, _name(identity, hello))) if p}
        return list(found.values())

    def join(self, identity: bytes, hello: wire.Hello, at: float) -> Peer:
        """Enter a peer."""
        peer = Peer(
            identity,
            hello.role,
            _name(identity, hello),
            hello.host,
            hello.pid,
            at,
            frozenset(hello.features),
            connection=hello.connection,
        )
        self._by_identity[identity] = peer
        self._by_name[peer.role, peer.name] = peer
        return peer

    def leave(self, peer: Peer) -> bool:
        """Strike a peer off; False when it was struck off before."""
        if self._by_identity.get(peer.identity) is not peer:
            return False
        del self._by_identity[peer.identity]
        del self._by_name[peer.role, peer.name]
        self._complaints.pop(peer.identity, None)
        return True

    def silent_since(self, before: float) -> list[Peer]:
        """Peers whose last message is older."""
        return [peer for peer in self._by_identity.values() if peer.seen < before]

    def excuse(self, seconds: float, at: float) -> None:
        """For so long nobody could be heard, because we did not listen."""
        for peer in self._by_identity.values():
            peer.seen = min(peer.seen + seconds, at)

    def complain(self, identity: bytes) -> int:
        """Count an unreadable message; returns how many this peer has sent."""
        if identity not in self._complaints and len(self._complaints) >= _MAX_COMPLAINTS:
            self._complaints.clear()
        self._complaints[identity] = self._complaints.get(identity, 0) + 1
        return self._complaints[identity]


def _name(identity: bytes, hello: wire.Hello) -> str:
    return identity.hex() if hello.role == "client" else hello.name
