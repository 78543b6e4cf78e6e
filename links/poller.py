"""Waiting for input of any kind: by the kernel's epoll, or by ZeroMQ's poller where one of its sockets is among it.

Sessions and the coordinator wait here. ZeroMQ's poller takes several times as long for the same answer, since it asks
its own sockets as well, and looks at every descriptor each time.
"""

from __future__ import annotations

import math
import select
from collections.abc import Iterable
from typing import Any

import zmq

#: Told by one call: epoll takes memory for as many, each time.
_MOST = 64


class Poller:
    """Waits on `pollables`: descriptors, what has a `fileno`, and ZeroMQ's sockets. Not thread-safe."""

    def __init__(self, pollables: Iterable[Any]) -> None:
        wanted = list(pollables)
        self._epoll: select.epoll | None = None
        self._zmq = zmq.Poller()
        if any(isinstance(pollable, zmq.Socket) for pollable in wanted):
            for pollable in wanted:
                self._zmq.register(pollable, zmq.POLLIN)
        else:
            self._epoll = select.epoll()
            for pollable in wanted:
                self._epoll.register(pollable, select.EPOLLIN)

    def poll(self, timeout_s: float) -> dict[Any, int]:
        """What has input, after at most so many seconds; descriptors by number. Ends early for nothing, at times."""
        if self._epoll is not None:
            return dict(self._epoll.poll(timeout_s, _MOST))
        # Rounded up: to be woken too early means to ask again and again.
        return dict(self._zmq.poll(math.ceil(timeout_s * 1000)))

    def close(self) -> None:
        """Wait on nothing any more. Again is harmless."""
        if self._epoll is not None:
            self._epoll.close()
