"""Mosec, serving raw bytes: `python -m …mosec_server --address 127.0.0.1 --port PORT` (its own options).

One worker process for each route; arrays come and go as the bodies of HTTP messages, with nothing around them.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from mosec import Server, Worker

from ..works import Array, fill, page_sum, touched

#: Requests in one batch, as our worker has; a batch waits for no more, as far as Mosec lets one say so (1 ms). One
#: request at a time would wait in vain, so those have a route of their own.
BATCH, WAIT_MS = 32, 1


class Raw(Worker):
    """Bytes in, bytes out."""

    def deserialize(self, data: bytes) -> Any:
        """As they are."""
        return data

    def serialize(self, data: Any) -> bytes:
        """As they are."""
        return bytes(data)


class Echo(Raw):
    """The same bytes."""

    def forward(self, data: Any) -> Any:
        """Of one, or a batch's list."""
        return data


class Read(Raw):
    """An array's page sum."""

    def forward(self, data: Any) -> Any:
        """One at a time."""
        return struct.pack("<q", page_sum(np.frombuffer(data, np.uint8)))


class Make(Raw):
    """An array."""

    def __init__(self) -> None:
        super().__init__()
        self._sources: dict[int, Array] = {}
        self._targets: dict[int, Array] = {}

    def forward(self, data: Any) -> Any:
        """Into memory that is used again."""
        nbytes, seed = struct.unpack("<qq", data)
        if nbytes not in self._sources:
            self._sources[nbytes], self._targets[nbytes] = touched(nbytes), touched(nbytes)
        return memoryview(fill(self._targets[nbytes], seed, self._sources[nbytes]))


def main() -> None:
    """Serve until a signal."""
    server = Server()
    server.append_worker(Echo, num=1, route="/echo", timeout=60)
    server.append_worker(Echo, num=1, max_batch_size=BATCH, max_wait_time=WAIT_MS, route="/batched", timeout=60)
    server.append_worker(Read, num=1, route="/read", timeout=60)
    server.append_worker(Make, num=1, route="/make", timeout=60)
    server.run()


if __name__ == "__main__":
    main()
