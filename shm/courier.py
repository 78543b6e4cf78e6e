"""Arrays that lie on another host: the porter of this one is asked to bring them, and lands them in a pool of its own.

`reader.py` comes here with handles of other hosts, and gets a handle of this one in return; who serves the socket is
`workers/porter_door.py`. One packet of JSON each way: what is asked is bounded, and the answer is small.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import socket
import struct
import threading
import time
from pathlib import Path
from typing import Any

from ..errors import ForgedHandle, OutOfReach, TensoryardError, from_wire
from . import messages
from .handle import SharedMemoryArray
from .os_memory import host_name
from .runtime_dir import runtime_dir

#: A handle, and a text of an error, as JSON.
MAX_PACKET_BYTES = 16 << 10
#: How long an array may take to come; the porter gives up sooner and says why.
FETCH_S = 60.0
_ANSWER_S = 1.5 * FETCH_S
#: How long a porter that has died is waited for: Ray makes it anew.
_PATIENCE_S = 15.0
_RETRY_S = 0.1
#: Connections kept for the next question.
_MAX_IDLE = 8


def porter_path(cluster: str, host: str) -> Path:
    """The socket of a cluster's porter for this host, in the runtime folder; short, whatever the names are."""
    digest = hashlib.blake2b(f"{cluster}\0{host}".encode(), digest_size=6).hexdigest()
    return runtime_dir() / f"porter-{digest}.sock"


class Courier:
    """Asks this host's porter. Thread-safe; each question waits for its answer."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._cluster = ""
        self._lock = threading.Lock()
        self._idle: list[socket.socket] = []

    def serve(self, cluster: str) -> None:
        """Whose porter is asked; "": nobody's."""
        if cluster != self._cluster:
            self._path = porter_path(cluster, host_name()) if cluster else None
            self._cluster = cluster
            self.forget()

    @property
    def is_there(self) -> bool:
        """Whether this host has a porter, as far as can be seen without asking it."""
        return self._path is not None and self._path.exists()

    def fetch(self, handle: SharedMemoryArray, use: int = 0) -> SharedMemoryArray:
        """A handle of this host to the same bytes, to be claimed once. `use`: see `Loan.use`; 0 where it is not known.

        Raises StaleHandle, SegmentGone, or OutOfReach when nobody can bring it. A porter that dies is asked again.
        """
        # Whoever asks twice, since the first porter died, means the same array; nobody else does.
        question = json.dumps([*handle.to_wire(), use, "" if use else secrets.token_hex(8)]).encode()
        give_up = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return self._ask(question)
            except OSError as error:
                self.forget()
                if not self.is_there or time.monotonic() > give_up:
                    raise OutOfReach(
                        f"the array lies in shared memory of host {handle.host}, and this host's porter does not "
                        f"answer ({error})"
                    ) from error
                time.sleep(_RETRY_S)

    def _ask(self, question: bytes) -> SharedMemoryArray:
        sock = self._take()
        try:
            sock.sendall(messages.FETCH + question)
            packet, _fds = messages.receive(sock, MAX_PACKET_BYTES)
        except BaseException:
            sock.close()
            raise
        if not packet:
            sock.close()
            raise ConnectionResetError("it has ended")
        with self._lock:
            keep = len(self._idle) < _MAX_IDLE
            if keep:
                self._idle.append(sock)
        if not keep:
            sock.close()
        return _read(packet)

    def _take(self) -> socket.socket:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        if self._path is None:
            raise ConnectionRefusedError("none is known")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", int(_ANSWER_S), 0))
            sock.connect(str(self._path))
        except BaseException:
            sock.close()
            raise
        return sock

    def forget(self) -> None:
        """Let go of all connections."""
        with self._lock:
            idle, self._idle = self._idle, []
        for sock in idle:
            sock.close()

    def begin_anew(self) -> None:
        """In a forked child, which shares its parent's connections and may not use them."""
        self._lock = threading.Lock()
        self.forget()


def _read(packet: bytes) -> SharedMemoryArray:
    """The handle of an answer; raises the error that it holds."""
    kind, content = packet[:1], json.loads(packet[1:])
    if kind == messages.LANDED:
        return handle_of(content)
    raise from_wire(*content) if kind == messages.FAILED else ForgedHandle("the porter's answer is none")


def handle_of(fields: Any) -> SharedMemoryArray:
    """A handle from JSON; ForgedHandle for anything else."""
    if not isinstance(fields, list) or len(fields) != len(SharedMemoryArray.__slots__):
        raise ForgedHandle("a handle has six fields")
    return SharedMemoryArray(*fields)


def question_of(packet: bytes) -> tuple[SharedMemoryArray, int, str]:
    """What a reader asks its porter for: a handle, the use of its memory, and a word that names the question.

    ForgedHandle for anything else.
    """
    try:
        *fields, use, word = json.loads(packet)
    except (ValueError, TypeError, RecursionError) as error:
        raise ForgedHandle(f"what came is no question of a reader's: {error!r:.200}") from error
    if not isinstance(use, int) or not isinstance(word, str) or len(word) > MAX_PACKET_BYTES:
        raise ForgedHandle("what came is no question of a reader's")
    return handle_of(fields), use, word


def answer_of(result: SharedMemoryArray | TensoryardError) -> bytes:
    """The packet that answers it."""
    if isinstance(result, SharedMemoryArray):
        return messages.LANDED + json.dumps(result.to_wire()).encode()
    return messages.FAILED + json.dumps([result.code, result.text[:2000]]).encode()


def is_same_user(sock: socket.socket) -> bool:
    """Whether the process at the other end is this user's, as the kernel says."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    uid: int = struct.unpack("3i", raw)[1]
    return uid == os.geteuid()
