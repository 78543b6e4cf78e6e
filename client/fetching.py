"""Threads in which outputs are read whose arrays lie on another host: the session's own may not wait for a network.

`connection.py` has one; `abroad.py` keeps the order of a request's outputs meanwhile.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from ..proto import wire

#: Outputs fetched at once; a network is not faster for more.
MAX_THREADS = 4
#: A thread without work for so long ends.
_IDLE_S = 5.0

#: An output to be read: its request, its body, and its type.
Order = tuple[str, wire.Frames, Any]


class Fetching:
    """Reads outputs aside: `fd` is readable when some have been read, and `take` gives them."""

    def __init__(self, decode: Callable[[wire.Frames, Any], Any]) -> None:
        self._decode = decode
        self._orders: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
        self._results: deque[tuple[str, Any]] = deque()
        self._lock = threading.Lock()
        self._threads = 0
        self._undone = 0
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fetch(self, request_id: str, body: wire.Frames, type_: Any) -> None:
        """Read an output; one at a time of each request."""
        with self._lock:
            self._undone += 1
            starts = self._threads < min(self._undone, MAX_THREADS)
            self._threads += starts
        self._orders.put((request_id, body, type_))
        if starts:
            threading.Thread(target=self._run, name="tensoryard-fetching", daemon=True).start()

    def take(self) -> list[tuple[str, Any]]:
        """The outputs read since, each with its request; an exception in place of one that cannot be read."""
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            return []
        return [self._results.popleft() for _ in range(len(self._results))]

    def _run(self) -> None:
        while (order := self._next()) is not None:
            request_id, body, type_ = order
            try:
                result = self._decode(body, type_)
            except Exception as error:
                result = error
            del order, body
            with self._lock:
                self._undone -= 1
                if self.fd >= 0:
                    self._results.append((request_id, result))
                    os.eventfd_write(self.fd, 1)
            del result

    def _next(self) -> Order | None:
        """The next order; None when there was none for a while, and this thread does not count any more."""
        while True:
            try:
                order = self._orders.get(timeout=_IDLE_S)
            except queue.Empty:
                order = None
            with self._lock:
                if order is not None or not self._undone or self.fd < 0:
                    self._threads -= order is None
                    return order

    def close(self) -> None:
        """Nobody wants the rest; threads end when what they wait for has come."""
        with self._lock:
            fd, self.fd = self.fd, -1
            self._results.clear()
        if fd >= 0:
            os.close(fd)
        for _ in range(MAX_THREADS):
            self._orders.put(None)
