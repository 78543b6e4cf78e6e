"""A link without sockets, threads or a clock: what is sent waits until whoever drives the network delivers it.

For simulations and tests of what speaks over a link. It keeps the promises of `base.py` while each parcel is delivered
once and in order; a driver that drops, repeats, delays or reorders parcels makes a network as bad as it likes.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .base import Frames, Opening
from .framing import IDENTITY_BYTES, MAX_FRAMES


@dataclass(slots=True, eq=False)
class Connection:
    """One connection of a peer with a hub, from the one's `connect` to the end that either side makes."""

    peer: MemoryPeer
    hub: MemoryHub
    #: Grows from one of a peer's connections to the next.
    number: int
    #: Messages on their way to the peer or not yet received by it, and their bytes.
    backlog: int = 0
    backlog_bytes: int = 0
    #: The hub has closed it; what the peer had sent before is delivered all the same.
    cut: bool = False
    #: The hub has told its end.
    over: bool = False


@dataclass(slots=True, eq=False)
class Parcel:
    """One message on its way, or the news that its connection has ended (`frames` is None)."""

    connection: Connection
    to_hub: bool
    frames: Frames | None

    @property
    def size_bytes(self) -> int:
        """Of all frames."""
        return sum(map(len, self.frames or ()))


class MemoryNetwork:
    """Hubs, peers, and the parcels between them, `parcels`, oldest first. Identities are numbers, in order of birth."""

    def __init__(self) -> None:
        self.parcels: list[Parcel] = []
        self._hubs: dict[str, MemoryHub] = {}
        self._numbers = itertools.count(1)

    def hub(
        self,
        addresses: Sequence[str],
        *,
        max_frame_bytes: float = math.inf,
        max_message_bytes: float = math.inf,
        peer_backlog: float = math.inf,
    ) -> MemoryHub:
        """A hub at these addresses, which nobody may have."""
        hub = MemoryHub(self, addresses, max_frame_bytes, max_message_bytes, peer_backlog)
        for address in addresses:
            assert address not in self._hubs, f"{address} has a hub"
            self._hubs[address] = hub
        return hub

    def peer(self, address: str, *, opening: Opening | None = None) -> MemoryPeer:
        """A peer of the hub at an address, or of the one that will be there."""
        return MemoryPeer(self, address, next(self._numbers).to_bytes(IDENTITY_BYTES, "big"), opening)

    def find(self, address: str) -> MemoryHub | None:
        """The hub at an address now."""
        return self._hubs.get(address)

    def remove(self, hub: MemoryHub) -> None:
        """A hub has closed."""
        self._hubs = {address: other for address, other in self._hubs.items() if other is not hub}

    # -- for the driver -----------------------------------------------------------------------------------------------

    def deliver(self, parcel: Parcel) -> None:
        """Hand a parcel to its receiver. What belongs to a connection that is over vanishes."""
        self.parcels.remove(parcel)
        if parcel.to_hub:
            parcel.connection.hub.take(parcel)
        else:
            parcel.connection.peer.take(parcel)

    def drop(self, parcel: Parcel) -> None:
        """Lose a parcel."""
        self.parcels.remove(parcel)
        if not parcel.to_hub:
            _taken(parcel)

    def repeat(self, parcel: Parcel) -> Parcel:
        """A second copy of a parcel, behind all others."""
        copy = Parcel(parcel.connection, parcel.to_hub, parcel.frames)
        self.post(copy)
        return copy

    def deliver_all(self) -> None:
        """Hand over every parcel, oldest first, and those that come up meanwhile."""
        while self.parcels:
            self.deliver(self.parcels[0])

    def post(self, parcel: Parcel) -> None:
        """Put a parcel on its way."""
        if not parcel.to_hub:
            parcel.connection.backlog += 1
            parcel.connection.backlog_bytes += parcel.size_bytes
        self.parcels.append(parcel)


class MemoryPeer:
    """A peer's end; `MemoryNetwork.peer` makes it. Its `close`, without a goodbye before, is the death of a process."""

    any_thread = False
    pollables: Sequence[Any] = ()
    trouble = ""

    def __init__(self, network: MemoryNetwork, address: str, identity: bytes, opening: Opening | None) -> None:
        self.identity = identity
        self._network = network
        self._address = address
        self._opening = opening
        self._connection: Connection | None = None
        #: So many connections it has had.
        self._connections = 0
        self._queue: list[Frames] = []
        self._inbox: deque[Parcel] = deque()
        self._closed = False
        self._connect()

    @property
    def connected(self) -> bool:
        """Whether it has a hub, as far as it has heard."""
        return self._connection is not None

    def next_try(self) -> float:
        """At once, while no hub is there."""
        return math.inf if self.connected else -math.inf

    def send(self, frames: Sequence[Any], *, more: bool = False) -> None:
        """Put a message on its way, or queue it until a hub is there."""
        if not self._closed:
            self._queue.append([bytes(frame) for frame in frames])
            if not more:
                self.flush()

    def receive(self) -> Frames | None:
        """The next message that was delivered, or None; looks for a hub when it has none."""
        if self._connection is None:
            self._connect()
        while self._inbox:
            parcel = self._inbox.popleft()
            _taken(parcel)
            if parcel.connection is not self._connection:
                continue
            if parcel.frames is not None:
                return parcel.frames
            self._connection = None
            self._connect()
        return None

    def take(self, parcel: Parcel) -> None:
        """A parcel is delivered."""
        self._inbox.append(parcel)

    def begin_anew(self) -> None:
        """Nothing: it is used by one thread."""

    def close(self) -> None:
        """Go; what was sent stays on its way. Again is harmless."""
        self._closed = True
        if self._connection is not None:
            self._network.post(Parcel(self._connection, to_hub=True, frames=None))
            self._connection = None

    def _connect(self) -> None:
        hub = None if self._closed else self._network.find(self._address)
        if hub is None:
            return
        if self._opening is not None:
            if self._connections:
                self._queue.clear()
            self._queue.insert(0, [bytes(frame) for frame in self._opening()])
        self._connection = hub.enter(self, self._connections)
        self._connections += 1
        self.flush()

    def flush(self) -> None:
        """Put on its way what `more` has kept back."""
        if self._connection is not None and not self._connection.cut:
            for frames in self._queue:
                self._network.post(Parcel(self._connection, to_hub=True, frames=frames))
            self._queue.clear()


class MemoryHub:
    """The hub's end; `MemoryNetwork.hub` makes it."""

    pollables: Sequence[Any] = ()

    def __init__(
        self,
        network: MemoryNetwork,
        addresses: Sequence[str],
        max_frame_bytes: float,
        max_message_bytes: float,
        peer_backlog: float,
    ) -> None:
        self.addresses: Sequence[str] = list(addresses)
        self._network = network
        self._max_frame_bytes = max_frame_bytes
        self._max_message_bytes = max_message_bytes
        self._peer_backlog = peer_backlog
        #: Every connection that has not ended, also of those that have said nothing yet; a dict for its order.
        self._open: dict[Connection, None] = {}
        #: By identity, once its first word was delivered.
        self._connections: dict[bytes, Connection] = {}
        self._inbox: deque[tuple[bytes, Frames | None]] = deque()
        self._closed = False

    def send(self, peer: bytes, frames: Sequence[Any], *, more: bool = False) -> bool:  # noqa: ARG002 - see `flush`
        """Put a message on its way; False when the peer is gone, or was cut off since it has too much unread."""
        connection = self._connections.get(peer)
        if connection is None or connection.cut:
            return False
        parcel = Parcel(connection, to_hub=False, frames=[bytes(frame) for frame in frames])
        too_many_bytes = connection.backlog_bytes + parcel.size_bytes > self._max_message_bytes
        if connection.backlog >= self._peer_backlog or (connection.backlog and too_many_bytes):
            connection.cut = True
            self._network.post(Parcel(connection, to_hub=True, frames=None))
            self._network.post(Parcel(connection, to_hub=False, frames=None))
            return False
        self._network.post(parcel)
        return True

    def flush(self) -> None:
        """Nothing is kept back: parcels wait for their driver anyway."""

    def receive(self) -> tuple[bytes, Frames | None] | None:
        """The next message that was delivered and who sent it, a peer's end, or None."""
        return self._inbox.popleft() if self._inbox else None

    def enter(self, peer: MemoryPeer, number: int) -> Connection:
        """A peer connects."""
        connection = Connection(peer, self, number)
        self._open[connection] = None
        return connection

    def take(self, parcel: Parcel) -> None:
        """A parcel is delivered. The first of a new connection ends those before it."""
        connection, frames = parcel.connection, parcel.frames
        known = self._connections.get(connection.peer.identity)
        if self._closed or connection.over or (known is not None and known.number > connection.number):
            return
        if known is not connection:
            if known is not None:
                self._end(known)
            self._connections[connection.peer.identity] = connection
        if frames is None:
            self._end(connection)
        elif self._is_too_large(frames):
            self._end(connection)
            self._network.post(Parcel(connection, to_hub=False, frames=None))
        else:
            self._inbox.append((connection.peer.identity, frames))

    def _is_too_large(self, frames: Frames) -> bool:
        sizes = [len(frame) for frame in frames]
        too_many_bytes = max(sizes) > self._max_frame_bytes or sum(sizes) > self._max_message_bytes
        return too_many_bytes or len(frames) > MAX_FRAMES

    def _end(self, connection: Connection) -> None:
        connection.over = connection.cut = True
        del self._connections[connection.peer.identity]
        self._open.pop(connection, None)
        self._inbox.append((connection.peer.identity, None))

    def close(self) -> None:
        """Go; what was sent stays on its way. Again is harmless."""
        if not self._closed:
            self._closed = True
            self._network.remove(self)
            for connection in self._open:
                connection.cut = True
                self._network.post(Parcel(connection, to_hub=False, frames=None))


def _taken(parcel: Parcel) -> None:
    """A parcel to a peer is on its way no more."""
    parcel.connection.backlog -= 1
    parcel.connection.backlog_bytes -= parcel.size_bytes
