"""ZeroMQ without pickle: a msgpack header and the array as a frame of its own, sent without a copy (`copy=False`).

Point to point it is what MAX serve does today; through a broker (ROUTER, forwarding frames unread) it is the usual
cluster. `zeromq_server.py` runs on the other side.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from typing import Any

import msgpack
import numpy as np
import zmq

from ..works import Array
from .base import Contender, end, run_server

#: A frame of this size goes without a copy; below, the bookkeeping costs more (pyzmq's own advice).
COPY_BELOW_BYTES = 64 << 10


class ZmqDirect(Contender):
    """A PAIR of sockets over ipc."""

    name = "zeromq-direct"
    socket_type = zmq.PAIR

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="zq-")
        self._context: zmq.Context[Any] = zmq.Context()
        self._socket = self._context.socket(self.socket_type)
        self._servers: list[subprocess.Popen[bytes]] = []

    def address(self, name: str) -> str:
        """A socket in this contender's own folder."""
        return f"ipc://{self._folder}/{name}"

    def start(self) -> None:
        """A worker that connects to us."""
        self._socket.bind(self.address("w"))
        self._servers.append(run_server("zeromq_server", "worker", self.address("w")))
        self.echo(b"are you there?")

    def stop(self) -> None:
        """They have no state: end them."""
        for server in self._servers:
            end(server)
        self._socket.close(linger=0)
        self._context.term()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _send(self, header: dict[str, Any], body: Any) -> None:
        self._socket.send_multipart([msgpack.packb(header), body], copy=memoryview(body).nbytes < COPY_BELOW_BYTES)

    def _receive(self) -> tuple[dict[str, Any], Any]:
        header, body = self._socket.recv_multipart(copy=False)
        return msgpack.unpackb(header.buffer), body

    def echo(self, message: bytes) -> bytes:
        """One round trip."""
        self._send({"id": 1, "op": "echo"}, message)
        return bytes(self._receive()[1].buffer)

    def flight(self, messages: Sequence[bytes], in_flight: int) -> list[bytes]:
        """As many on their way as may be; answers are told apart by their number."""
        answers = [b""] * len(messages)
        sent = min(in_flight, len(messages))
        for number in range(sent):
            self._send({"id": number, "op": "echo"}, messages[number])
        for _ in messages:
            header, body = self._receive()
            answers[header["id"]] = bytes(body.buffer)
            if sent < len(messages):
                self._send({"id": sent, "op": "echo"}, messages[sent])
                sent += 1
        return answers

    def read(self, array: Array) -> int:
        """The array as a frame that ZeroMQ reads where it lies."""
        self._send({"id": 1, "op": "read", "dtype": array.dtype.str, "shape": array.shape}, array)
        return int.from_bytes(self._receive()[1].buffer, "little")

    def make(self, nbytes: int, seed: int) -> Array:
        """A view of the frame that came."""
        self._send({"id": 1, "op": "make", "nbytes": nbytes, "seed": seed}, b"")
        return np.frombuffer(self._receive()[1].buffer, np.uint8)


class ZmqBroker(ZmqDirect):
    """DEALER, ROUTER in a process of its own, DEALER."""

    name = "zeromq-broker"
    socket_type = zmq.DEALER

    def start(self) -> None:
        """A broker and, behind it, a worker."""
        self._servers.append(run_server("zeromq_server", "broker", self.address("f"), self.address("b")))
        self._servers.append(run_server("zeromq_server", "peer", self.address("b")))
        self._socket.connect(self.address("f"))
        self.echo(b"are you there?")


def make() -> list[Contender]:
    """Both."""
    return [ZmqDirect(), ZmqBroker()]
