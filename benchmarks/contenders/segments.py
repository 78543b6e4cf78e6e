"""A fresh shared-memory segment for every array, its name through a socket: what MAX, SGLang and Dynamo did or do.

`multiprocessing.shared_memory` on both sides, made, filled, attached, read, closed and unlinked for each message;
`segments_server.py` runs on the other side.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory

import msgpack
import numpy as np

from ..works import Array
from .base import Contender, end, run_server

MAX_BYTES = 4096


class Segments(Contender):
    """The caller makes the segments of its arrays, the server those of its own."""

    name = "segments"
    cannot = dict.fromkeys(("echo", "flight"), "the same as seqpacket: no array, no segment")

    def __init__(self) -> None:
        self._own, self._other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._server: subprocess.Popen[bytes] | None = None
        self._last: SharedMemory | None = None

    def start(self) -> None:
        """A worker on the other end of the socket."""
        self._server = run_server("segments_server", str(self._other.fileno()), pass_fds=[self._other.fileno()])
        self._other.close()
        self._ask(op="echo", body=b"are you there?")

    def stop(self) -> None:
        """Ends at the end of file."""
        self._let_go()
        self._own.close()
        end(self._server, by_itself_s=2)

    def _ask(self, **message: object) -> dict[str, object]:
        self._own.send(msgpack.packb(message))
        answer: dict[str, object] = msgpack.unpackb(self._own.recv(MAX_BYTES))
        return answer

    def read(self, array: Array) -> int:
        """A segment, a copy, a name."""
        segment = SharedMemory(create=True, size=array.nbytes)
        target = np.frombuffer(segment.buf, np.uint8, array.nbytes)
        np.copyto(target, array)
        found = self._ask(op="read", name=segment.name, nbytes=array.nbytes)["sum"]
        del target
        segment.close()
        segment.unlink()
        return int(found)  # type: ignore[call-overload, no-any-return]

    def make(self, nbytes: int, seed: int) -> Array:
        """Attached where it lies; the server takes it away when the next one is asked for."""
        self._let_go()
        name = self._ask(op="make", nbytes=nbytes, seed=seed)["name"]
        self._last = attach(str(name))
        return np.frombuffer(self._last.buf, np.uint8, nbytes)

    def _let_go(self) -> None:
        if self._last is not None:
            with contextlib.suppress(BufferError):  # its caller has a view yet; the mapping goes with it
                self._last.close()
            self._last = None


def attach(name: str) -> SharedMemory:
    """Somebody else's segment. Before Python 3.13 whoever attaches one is held to own it, and would remove it."""
    segment = SharedMemory(name=name)
    resource_tracker.unregister(f"/{segment.name.lstrip('/')}", "shared_memory")
    return segment


def make() -> list[Contender]:
    """The one here."""
    return [Segments()]
