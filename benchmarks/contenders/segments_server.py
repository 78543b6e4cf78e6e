"""The other side of `segments.py`: reads segments by name, and makes its own. Ends at end of file.

`python -m …segments_server FD`.
"""

from __future__ import annotations

import socket
import sys
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import msgpack
import numpy as np

from ..works import Array, fill, page_sum, touched
from .segments import MAX_BYTES, attach


class Worker:
    """One segment of its own at a time: the last one it made."""

    def __init__(self) -> None:
        self._sources: dict[int, Array] = {}
        self._last: SharedMemory | None = None

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        """By `op`."""
        match message["op"]:
            case "read":
                return {"sum": self._read(message["name"], message["nbytes"])}
            case "make":
                return {"name": self._make(message["nbytes"], message["seed"])}
            case _:
                return {"body": message["body"]}

    def _read(self, name: str, nbytes: int) -> int:
        segment = attach(name)
        array = np.frombuffer(segment.buf, np.uint8, nbytes)
        found = page_sum(array)
        del array
        segment.close()
        return found

    def _make(self, nbytes: int, seed: int) -> str:
        self.clear()
        if nbytes not in self._sources:
            self._sources[nbytes] = touched(nbytes)
        self._last = SharedMemory(create=True, size=nbytes)
        target = np.frombuffer(self._last.buf, np.uint8, nbytes)
        fill(target, seed, self._sources[nbytes])
        del target
        return self._last.name

    def clear(self) -> None:
        """Take the last one away."""
        if self._last is not None:
            self._last.close()
            self._last.unlink()
            self._last = None


def main() -> None:
    """Serve the socket of the command line."""
    link, worker = socket.socket(fileno=int(sys.argv[1])), Worker()
    while message := link.recv(MAX_BYTES):
        link.send(msgpack.packb(worker.answer(msgpack.unpackb(message))))
    worker.clear()


if __name__ == "__main__":
    main()
