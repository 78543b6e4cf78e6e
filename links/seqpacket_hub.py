"""The hub's end of the UNIX link: any number of peers of this user behind one descriptor, each heard in its turn.

`seqpacket_peer.py` is the other end, `channel.py` a connection between them. A peer's end of file is told at once: the
kernel makes it when a process dies, however it dies.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from .base import Frames
from .buffers import Buffers
from .channel import Channel
from .door import Door
from .framing import PACKET_BYTES, FramingError, Kept, Limits, kept, read_greeting, take_together
from .unix_socket import abandon_in_children

log = logging.getLogger(__name__)

_IN, _OUT = select.EPOLLIN, select.EPOLLOUT
#: Connections looked at by one call of `receive` when none of them has a whole message.
_LOOKS_PER_CALL = 64
#: Messages given out before the kernel is asked who else has some.
_GIVEN_PER_LOOK = 16
#: Messages kept back for one peer, in the hope of more, before they leave.
_MOST_KEPT_BACK = 256
#: A closing hub gives up when no peer takes anything for so long, and after so long in any case, in seconds.
_PATIENCE_S = 0.5
_LINGER_S = 3.0
#: Peers that were cut off are logged up to this many, then only counted.
_LOGGED = 100


class _Connection(Channel):
    """One peer, from its `connect` to its end of file."""

    __slots__ = ("cut", "identity", "queue", "queued_bytes", "successor")

    def __init__(self, sock: socket.socket, limits: Limits, buffers: Buffers) -> None:
        super().__init__(sock, limits, buffers)
        #: None until its greeting has come.
        self.identity: bytes | None = None
        #: Messages that wait for room or, kept back, for more; and their bytes.
        self.queue: deque[Kept] = deque()
        self.queued_bytes = 0
        #: It is served no more, and ends once what it had sent is read.
        self.cut = False
        #: The connection of the same identity that waits for this one's end.
        self.successor: _Connection | None = None

    def flush(self) -> bool:
        """There is room again: send what waits, as far as it goes; True when nothing is left."""
        while self.resume():
            if not self.queue:
                return True
            taken, packet = take_together(self.queue)
            self.queued_bytes -= sum([total for _, _, total in taken])
            if not self.send_all(taken, packet):
                break
        return False


class SeqpacketHub:
    """Listens at one or more `unix://` addresses; ConfigError when it cannot.

    A peer whose message is over `max_frame_bytes` or `max_message_bytes`, or that breaks the framing, is cut off: its
    connection ends. So is one for which `peer_backlog` messages wait, or more than `max_message_bytes` bytes would
    (but one message of any size may), when another is to be sent; what waited for it is dropped.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        max_frame_bytes: int,
        max_message_bytes: int,
        peer_backlog: int,
    ) -> None:
        self._limits = Limits(max_frame_bytes, max_message_bytes)
        self._peer_backlog = peer_backlog
        self._peer_backlog_bytes = max_message_bytes
        self._addresses = list(addresses)
        self._doors: dict[int, Door] = {}
        #: By descriptor, from the moment a peer is let in.
        self._connections: dict[int, _Connection] = {}
        #: By identity, from its greeting on.
        self._peers: dict[bytes, _Connection] = {}
        #: Peers for which messages are kept back until `flush`; a dict for its order.
        self._kept_back: dict[_Connection, None] = {}
        #: Descriptors that the kernel has called ready, or of whose last packet some messages are left, in turn.
        self._ready: deque[tuple[int, int]] = deque()
        #: Messages given out since the kernel was asked.
        self._given = 0
        self._scratch = memoryview(bytearray(PACKET_BYTES))
        self._buffers = Buffers()
        #: Peers that were cut off so far.
        self.cut_off = 0
        self._epoll = select.epoll()
        try:
            for address in addresses:
                door = Door(address)
                self._doors[door.fileno()] = door
                self._epoll.register(door, _IN)
        except BaseException:
            self.close()
            raise
        abandon_in_children(self)

    @property
    def addresses(self) -> Sequence[str]:
        """Where peers connect."""
        return self._addresses

    @property
    def pollables(self) -> Sequence[Any]:
        """One descriptor for all peers."""
        return (self._epoll,)

    # -- out ----------------------------------------------------------------------------------------------------------

    def send(self, peer: bytes, frames: Sequence[Any], *, more: bool = False) -> bool:
        """Send to a peer without waiting; False when it is gone, or is cut off since too much waits for it."""
        connection = self._peers.get(peer)
        if connection is None or connection.cut:
            return False
        if connection.sending:
            return self._enqueue(connection, frames)
        if more or connection.queue:
            self._keep_back(connection, frames)
            if not more and connection in self._kept_back:
                self._release(connection)
            return True
        try:
            if not connection.send(frames):
                self._epoll.modify(connection.sock, _IN | _OUT)
        except OSError:  # its end of file comes next
            return False
        return True

    def _keep_back(self, connection: _Connection, frames: Sequence[Any]) -> None:
        """Until `flush`, or until there is a packet full."""
        self._kept_back[connection] = None
        message = kept(frames)
        connection.queue.append(message)
        connection.queued_bytes += message[2]
        if connection.queued_bytes >= PACKET_BYTES or len(connection.queue) >= _MOST_KEPT_BACK:
            self._release(connection)

    def flush(self) -> None:
        """Send what `more` has kept back."""
        while self._kept_back:
            self._release(next(iter(self._kept_back)))

    def _release(self, connection: _Connection) -> None:
        del self._kept_back[connection]
        try:
            if not connection.flush():
                self._epoll.modify(connection.sock, _IN | _OUT)
        except OSError:  # its end of file comes next
            return

    def _enqueue(self, connection: _Connection, frames: Sequence[Any]) -> bool:
        message = kept(frames)
        size = message[2]
        waiting = len(connection.queue)
        if waiting >= self._peer_backlog or (waiting and connection.queued_bytes + size > self._peer_backlog_bytes):
            self._count_cut(connection, f"{waiting} messages, {connection.queued_bytes} bytes, wait for it")
            self._cut(connection)
            return False
        connection.queue.append(message)
        connection.queued_bytes += size
        return True

    # -- in -----------------------------------------------------------------------------------------------------------

    def receive(self) -> tuple[bytes, Frames | None] | None:
        """The next message and who sent it, or None; a peer's end is told as None in place of its message.

        Each peer that has something to say is heard before any is heard for long.
        """
        ready = self._ready
        for _ in range(max(_LOOKS_PER_CALL, len(ready))):  # all of which the kernel does not know any more
            if not ready or self._given >= _GIVEN_PER_LOOK:
                self._look_around()
                if not ready:
                    return None
            fd, events = ready.popleft()
            connection = self._connections.get(fd)
            if connection is None:
                if fd in self._doors:
                    self._let_in(self._doors[fd])
                continue
            if events & _OUT:
                self._flush(connection)
            if events & ~_OUT:
                received = self._read(connection)
                if connection.has_more:
                    ready.append((fd, _IN))
                if received is not None:
                    self._given += 1
                    return received
        return None

    def _look_around(self) -> None:
        """Ask the kernel who has something to say; not each time while messages wait that have come already."""
        self._given = 0
        if len(self._ready) <= _LOOKS_PER_CALL:
            self._ready.extend(self._epoll.poll(0, _LOOKS_PER_CALL))

    def _let_in(self, door: Door) -> None:
        for sock in door.let_in():
            self._connections[sock.fileno()] = _Connection(sock, self._limits, self._buffers)
            self._epoll.register(sock, _IN)

    def _flush(self, connection: _Connection) -> None:
        with contextlib.suppress(OSError):  # its end of file comes next
            if connection.flush():
                self._epoll.modify(connection.sock, _IN)

    def _read(self, connection: _Connection) -> tuple[bytes, Frames | None] | None:
        try:
            if connection.identity is None:
                self._greet(connection)
                return None
            frames = connection.receive(self._scratch)
        except FramingError as error:
            self._count_cut(connection, str(error))
            return self._end(connection)
        except (OSError, EOFError):
            return self._end(connection)
        return None if frames is None else (connection.identity, frames)

    def _greet(self, connection: _Connection) -> None:
        """Learn who it is. One that is known has connected anew: all that it said before comes first, then its end."""
        packet = connection.receive_packet(self._scratch)
        if packet is None:
            return
        connection.identity = read_greeting(packet)
        earlier = self._peers.setdefault(connection.identity, connection)
        if earlier is connection:
            return
        self._epoll.unregister(connection.sock)
        if earlier.successor is not None:
            self._close_connection(earlier.successor)
        earlier.successor = connection
        self._cut(earlier)

    # -- ends ---------------------------------------------------------------------------------------------------------

    def _cut(self, connection: _Connection) -> None:
        """Serve it no more. What it has sent is still read, then comes its end of file."""
        connection.cut = True
        self._kept_back.pop(connection, None)
        connection.queue.clear()
        connection.drop()
        self._epoll.modify(connection.sock, _IN)
        with contextlib.suppress(OSError):  # it has gone by itself
            connection.sock.shutdown(socket.SHUT_RDWR)

    def _count_cut(self, connection: _Connection, why: str) -> None:
        self.cut_off += 1
        if self.cut_off <= _LOGGED:
            log.warning("peer %s is cut off: %s", (connection.identity or b"").hex()[:12] or "without a name", why)

    def _end(self, connection: _Connection) -> tuple[bytes, None] | None:
        """Let go of one that has ended; its successor, if there is one, may begin."""
        self._epoll.unregister(connection.sock)
        self._close_connection(connection)
        identity = connection.identity
        if identity is None:
            return None
        del self._peers[identity]
        if connection.successor is not None:
            self._peers[identity] = connection.successor
            self._epoll.register(connection.successor.sock, _IN)
        return identity, None

    def _close_connection(self, connection: _Connection) -> None:
        del self._connections[connection.sock.fileno()]
        self._kept_back.pop(connection, None)
        connection.sock.close()

    def close(self) -> None:
        """Deliver what peers take without long pauses, then let go; again is harmless."""
        if not self._epoll.closed:
            self.flush()
            self._deliver(time.monotonic() + _LINGER_S)
            for door in self._doors.values():
                door.close()
            self.abandon()

    def _deliver(self, give_up: float) -> None:
        """Wait for those that have not taken all yet, and for nothing else."""
        poller = select.poll()
        waiting = {fd: connection for fd, connection in self._connections.items() if connection.sending}
        for fd in waiting:
            poller.register(fd, select.POLLOUT)
        while waiting and time.monotonic() < give_up:
            ready = poller.poll(_PATIENCE_S * 1000)
            if not ready:
                return
            for fd, _ in ready:
                try:
                    done = waiting[fd].flush()
                except OSError:
                    done = True
                if done:
                    poller.unregister(fd)
                    del waiting[fd]

    def abandon(self) -> None:
        """Close every descriptor and do nothing else: they may be copies, in a forked child."""
        for door in self._doors.values():
            door.abandon()
        for connection in self._connections.values():
            connection.sock.close()
        self._connections.clear()
        self._peers.clear()
        self._epoll.close()
