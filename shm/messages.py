"""The few messages between a pool and its readers, one per SOCK_SEQPACKET packet.

`server.py` speaks them with `reader.py` and `inspector.py`: one letter, then at most one unsigned number,
little-endian; a page of the ledger is a letter and JSON. Descriptors travel beside them (SCM_RIGHTS).
"""

from __future__ import annotations

import contextlib
import socket
import struct

#: Owner → reader, first packet, with the descriptor of the reader's lease table.
WELCOME = b"TYSHM-1"
#: Reader → owner: send me segment N. Answered by SEGMENT N with its descriptor, or NO_SEGMENT N.
ATTACH = b"A"
SEGMENT = b"S"
NO_SEGMENT = b"N"
#: Reader → owner: I came for the block of generation N and took a copy (my lease table has no free slot).
COPIED = b"C"
#: Reader → owner: I released something while you were waiting for memory.
WAKE = b"W"
#: Whoever looks → owner: tell of your blocks behind generation N. Answered by one PAGE (`ledger.py`).
TELL = b"T"
PAGE = b"P"
#: Whoever reads → porter of its host: bring me the array of this handle (JSON); `courier.py`. Answered by LANDED and a
#: handle of the porter's own pool, or FAILED with a code and a text.
FETCH = b"F"
LANDED = b"L"
FAILED = b"E"

MAX_PACKET_BYTES = 64
_NUMBER = struct.Struct("<Q")


def pack(kind: bytes, number: int = 0) -> bytes:
    """One packet."""
    return kind + _NUMBER.pack(number)


def unpack(packet: bytes) -> tuple[bytes, int]:
    """Kind and number; an unknown shape gives (b"", 0)."""
    if len(packet) != 1 + _NUMBER.size:
        return b"", 0
    return packet[:1], _NUMBER.unpack(packet[1:])[0]


def receive(sock: socket.socket, max_bytes: int = MAX_PACKET_BYTES) -> tuple[bytes, list[int]]:
    """One packet and the descriptors that came with it, as many as this process may open; (b"", []) at end of file."""
    packet, fds, _flags, _address = socket.recv_fds(sock, max_bytes, 4, socket.MSG_CMSG_CLOEXEC)
    return packet, list(fds)


def send_quietly(sock: socket.socket, packet: bytes) -> None:
    """Send without waiting; a peer that is gone or does not read loses the packet, and that is all right.

    Used for what may be missed: WAKE is backed by the owner's own polling, COPIED by its `claim_timeout_s`; who asks
    for a PAGE waits a bounded time.
    """
    with contextlib.suppress(OSError):
        sock.send(packet, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
