"""One connection of a UNIX link: whole messages out and in over a SOCK_SEQPACKET socket, never waiting.

`framing.py` says how messages lie in packets; the two ends, `seqpacket_hub.py` and `seqpacket_peer.py`, own the queues.
"""

from __future__ import annotations

import errno
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from .base import Frames
from .buffers import Buffers
from .framing import (
    Assembly,
    FramingError,
    Kept,
    Limits,
    fits_one_packet,
    header_of,
    kept,
    open_packet,
    packets,
    sizes_of,
)

#: Packets of a large message moved before others have their turn: 2 MiB.
_PACKETS_PER_TURN = 16
#: The kernel has no room, or no memory, at this moment.
_NOT_NOW = {errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM}
_FLAGS = socket.MSG_NOSIGNAL


class Channel:
    """A connected socket. Every method raises OSError or EOFError when the connection has ended."""

    __slots__ = ("_assembly", "_buffers", "_limits", "_opened", "_packet", "_packets", "sock", "torn")

    def __init__(self, sock: socket.socket, limits: Limits, buffers: Buffers) -> None:
        self.sock = sock
        self._limits = limits
        self._buffers = buffers
        #: What is left of the message that is being sent, and its next packet; None when none is.
        self._packets: Iterator[list[memoryview]] | None = None
        self._packet: list[memoryview] = []
        #: A part of that message has left.
        self.torn = False
        #: The message that is being received, when its first packet did not hold it all.
        self._assembly: Assembly | None = None
        #: Messages of the last packet that have not been asked for yet.
        self._opened: deque[Frames] = deque()

    @property
    def has_more(self) -> bool:
        """Whether `receive` has a message without looking at the socket."""
        return bool(self._opened)

    @property
    def sending(self) -> bool:
        """Whether a message has begun to leave and has not left."""
        return self._packets is not None

    def send(self, frames: Sequence[Any]) -> bool:
        """Begin a message, when none is being sent; True when it has left, else `resume` goes on."""
        sizes = sizes_of(frames)
        return self._send(header_of(sizes), frames, sum(sizes)) or self._begin(*kept(frames))

    def _send(self, header: bytes, frames: Sequence[Any], total: int) -> bool:
        """Send a message that fits one packet, if there is room for it now."""
        if not fits_one_packet(header, frames, total):
            return False
        try:
            self.sock.sendmsg([header, *frames], (), _FLAGS)
        except OSError as error:
            if error.errno not in _NOT_NOW:
                raise
            return False
        return True

    def _begin(self, header: bytes, frames: Frames, _total: int) -> bool:
        self._packets = packets(header, frames)
        self._packet = next(self._packets)
        return self.resume()

    def send_all(self, messages: Sequence[Kept], packet: bytes) -> bool:
        """The same for what `take_together` took."""
        if not packet:
            return self._send(*messages[0]) or self._begin(*messages[0])
        self._packets, self._packet = iter(()), [memoryview(packet)]
        return self.resume()

    def resume(self) -> bool:
        """Go on with the message that is being sent; True when it has left. Some packets at a time."""
        if self._packets is None:
            return True
        for _ in range(_PACKETS_PER_TURN):
            try:
                self.sock.sendmsg(self._packet, (), _FLAGS)
            except OSError as error:
                if error.errno not in _NOT_NOW:
                    raise
                return False
            packet = next(self._packets, None)
            if packet is None:
                self.drop()
                return True
            self._packet = packet
            self.torn = True
        return False

    def drop(self) -> None:
        """Be done with the message that is being sent."""
        self._packets = None
        self.torn = False

    def receive_packet(self, scratch: memoryview) -> memoryview | None:
        """The next packet, in `scratch`; None when none has come yet. FramingError when it is larger than that."""
        size = self._receive_into(scratch)
        return None if size < 0 else scratch[:size]

    def receive(self, scratch: memoryview) -> Frames | None:
        """The next message; None when none is complete yet. FramingError when the other end breaks the framing.

        `scratch` holds a packet while it is looked at.
        """
        if self._opened:
            return self._opened.popleft()
        for _ in range(_PACKETS_PER_TURN):
            assembly = self._assembly
            size = self._receive_into(scratch if assembly is None else assembly.rest)
            if size < 0:
                return None
            if assembly is None:
                opened = open_packet(scratch[:size], self._limits, self._buffers)
                if not isinstance(opened, Assembly):
                    self._opened = opened
                    return opened.popleft()
                self._assembly = opened
            elif frames := assembly.add(size):
                self._assembly = None
                return frames
        return None

    def _receive_into(self, target: memoryview) -> int:
        """The size of a packet that was received; -1 when none has come."""
        while True:
            try:
                size = self.sock.recv_into(target, 0, socket.MSG_TRUNC)
            except BlockingIOError:
                return -1
            except ConnectionResetError:
                # The other end went without reading all; what it sent before comes now, then the end of file.
                continue
            if not size:
                raise EOFError
            if size > len(target):
                raise FramingError(f"a packet of {size} bytes came where at most {len(target)} were due")
            return size
