"""How messages lie in packets on a UNIX link: announced by the sizes of their frames, cut where a packet is full.

Pure: bytes in, bytes out. `channel.py` moves the packets; docs/spec/wire.md has the rules (W-40 to W-42).
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ..proto import wire
from .base import Frames
from .buffers import Buffers

#: The most a packet holds. Measured: larger ones are no faster, and four of them fit the smallest usual send buffer.
PACKET_BYTES = 128 << 10
#: Frames of one message. Twice what a coordinator takes, so that a request a little over its limit gets an error.
MAX_FRAMES = 2 * wire.MAX_FRAMES
#: A peer's name for itself.
IDENTITY_BYTES = 16
#: What the first packet of a connection begins with: the name of this framing, and its version.
_MAGIC = b"tyard\x00\x00\x02"
#: Buffers that one system call takes (IOV_MAX is 1024).
_MAX_BUFFERS = 1000
#: A message of more frames has a packet of its own: to join so many would cost more than it saves.
_MAX_SHARED_FRAMES = 64
#: A frame from this size on is not copied when it must wait, so that its sender may not change it until it has left.
_COPY_BELOW_BYTES = 64 << 10
_COUNT = struct.Struct("<I")
#: Headers of messages with few frames, which nearly all have.
_FEW = 9
_HEADERS = [struct.Struct(f"<I{count}Q") for count in range(_FEW)]
#: A packet up to this size is copied as a whole before it is cut: one copy more, and one object less per frame.
_CUT_WHOLE_BYTES = 32 << 10

#: A message that waits: its header, its frames, and their bytes together.
Kept = tuple[bytes, Frames, int]


class FramingError(Exception):
    """The other end does not keep to the framing, or goes beyond a limit."""


class Limits(NamedTuple):
    """What is taken from the other end, in bytes."""

    frame_bytes: float
    message_bytes: float


def greeting(identity: bytes) -> bytes:
    """The first packet of a connection."""
    return _MAGIC + identity


def read_greeting(packet: memoryview) -> bytes:
    """The identity in a greeting."""
    data = bytes(packet)
    if len(data) != len(_MAGIC) + IDENTITY_BYTES or not data.startswith(_MAGIC):
        raise FramingError(f"its greeting is not {_MAGIC!r} and {IDENTITY_BYTES} bytes")
    return data[len(_MAGIC) :]


def sizes_of(frames: Sequence[Any]) -> list[int]:
    """The size of each frame, in bytes."""
    return [len(frame) if type(frame) is bytes else memoryview(frame).nbytes for frame in frames]


def header_of(sizes: list[int]) -> bytes:
    """What a message's first packet begins with. ValueError for a message that no link takes."""
    count = len(sizes)
    if not 1 <= count <= MAX_FRAMES:
        raise ValueError(f"a message has 1 to {MAX_FRAMES} frames, not {count}")
    return _header(count).pack(count, *sizes)


def _header(count: int) -> struct.Struct:
    return _HEADERS[count] if count < _FEW else struct.Struct(f"<I{count}Q")


def fits_one_packet(header: bytes, frames: Sequence[Any], total: int) -> bool:
    """Whether a message of `total` bytes leaves in one system call."""
    return len(header) + total <= PACKET_BYTES and len(frames) < _MAX_BUFFERS


def take_together(queue: deque[Kept]) -> tuple[list[Kept], bytes]:
    """Take from a queue its first message, and those behind it that fit the same packet: that is made of several only.

    Others may append to the queue meanwhile.
    """
    if len(queue) == 1:
        return [queue.popleft()], b""
    taken: list[Kept] = []
    parts: list[bytes] = []
    room = PACKET_BYTES
    while queue:
        header, frames, total = queue[0]
        room -= len(header) + total
        alone = room < 0 or len(frames) > _MAX_SHARED_FRAMES
        if alone and taken:
            break
        taken.append(queue.popleft())
        if alone:
            break
        parts.append(header)
        parts.extend(frames)
    return taken, b"".join(parts) if len(taken) > 1 else b""


def kept(frames: Sequence[Any]) -> Kept:
    """A message as it may wait to be sent: what its sender may change meanwhile is copied, unless it is large."""
    own = [frame if type(frame) is bytes else _own(frame) for frame in frames]
    sizes = sizes_of(own)
    return header_of(sizes), own, sum(sizes)


def _own(frame: Any) -> Any:
    return frame if memoryview(frame).nbytes >= _COPY_BELOW_BYTES else bytes(frame)


def packets(header: bytes, frames: Sequence[Any]) -> Iterator[list[memoryview]]:
    """A message as packets, each a list of buffers that belong together; no byte is copied. No packet is empty."""
    packet: list[memoryview] = []
    room = PACKET_BYTES
    for piece in (header, *frames):
        view = memoryview(piece)
        if not view.nbytes:
            continue
        view = view.cast("B")
        while len(view) > room:
            yield [*packet, view[:room]]
            view = view[room:]
            packet, room = [], PACKET_BYTES
        packet.append(view)
        room -= len(view)
        if len(packet) == _MAX_BUFFERS:
            yield packet
            packet, room = [], PACKET_BYTES
    if packet:
        yield packet


class Assembly:
    """A message of several packets on its way in."""

    __slots__ = ("_buffer", "_got", "_sizes")

    def __init__(self, sizes: tuple[int, ...], buffer: memoryview, first: memoryview) -> None:
        self._sizes = sizes
        self._buffer = buffer
        self._buffer[: len(first)] = first
        self._got = len(first)

    @property
    def rest(self) -> memoryview:
        """Where the next packet belongs."""
        return self._buffer[self._got : self._got + PACKET_BYTES]

    def add(self, size: int) -> Frames | None:
        """So many bytes came into `rest`; the message, once it is complete."""
        self._got += size
        if self._got < len(self._buffer):
            return None
        whole, start = self._buffer.toreadonly(), 0
        frames: Frames = []
        for length in self._sizes:
            frame = whole[start : start + length]
            frames.append(bytes(frame) if length < _COPY_BELOW_BYTES else frame)
            start += length
        return frames


def open_packet(packet: memoryview, limits: Limits, buffers: Buffers) -> deque[Frames] | Assembly:
    """The messages that lie in a packet, or what to receive the rest of its only one with.

    Raises FramingError, before any memory is taken for what is announced.
    """
    messages: deque[Frames] = deque()
    start, end = 0, len(packet)
    most = min(limits)
    data: Any = bytes(packet) if end <= _CUT_WHOLE_BYTES else packet
    while start < end or not messages:
        sizes, start = _read_header(data, start)
        total = sum(sizes)
        if total > most:
            _check(total, max(sizes), limits)
        if start + total > end:
            if messages:
                raise FramingError(f"a message of {total} bytes begins in a packet that cannot hold it, behind others")
            return _assembly(sizes, total, packet[start:], buffers)
        frames = []
        for size in sizes:
            frames.append(bytes(data[start : start + size]))
            start += size
        messages.append(frames)
    return messages


def _assembly(sizes: tuple[int, ...], total: int, first: memoryview, buffers: Buffers) -> Assembly:
    try:
        return Assembly(sizes, buffers.take(total), first)
    except (MemoryError, ValueError) as error:
        raise FramingError(f"there is no memory for a message of {total} bytes") from error


def _read_header(packet: bytes | memoryview, at: int) -> tuple[tuple[int, ...], int]:
    """The sizes of the frames of the message that begins there, and where the first frame begins."""
    if len(packet) < at + _COUNT.size:
        raise FramingError("a message begins with fewer than 4 bytes")
    (count,) = _COUNT.unpack_from(packet, at)
    start = at + _COUNT.size + 8 * count
    if not 1 <= count <= MAX_FRAMES or len(packet) < start:
        raise FramingError(f"it announces {count} frames in a packet of {len(packet) - at} bytes")
    return _header(count).unpack_from(packet, at)[1:], start


def _check(total: int, largest: int, limits: Limits) -> None:
    if total > limits.message_bytes or largest > limits.frame_bytes:
        raise FramingError(
            f"a message of {total} bytes, its largest frame {largest}, is over the limits of {limits.message_bytes} "
            f"and {limits.frame_bytes} bytes",
        )
