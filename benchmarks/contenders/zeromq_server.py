"""The other side of `zeromq.py`: a worker, or the broker between clients and workers. Ends when it is told by a signal.

`python -m …zeromq_server worker ADDRESS` (PAIR), `… peer ADDRESS` (DEALER, behind a broker), `… broker FRONT BACK`.
"""

from __future__ import annotations

import sys
from typing import Any

import msgpack
import numpy as np
import zmq

from ..works import fill, page_sum, touched
from .zeromq import COPY_BELOW_BYTES


class Worker:
    """Answers as its header says; keeps the arrays it makes, so that none has to be made anew."""

    def __init__(self) -> None:
        self._sources: dict[int, Any] = {}
        self._targets: dict[int, Any] = {}

    def answer(self, header: dict[str, Any], body: Any) -> Any:
        """The body of the answer."""
        match header["op"]:
            case "read":
                array = np.frombuffer(body, header["dtype"]).reshape(header["shape"])
                return page_sum(array).to_bytes(8, "little")
            case "make":
                nbytes = header["nbytes"]
                if nbytes not in self._sources:
                    self._sources[nbytes], self._targets[nbytes] = touched(nbytes), touched(nbytes)
                return fill(self._targets[nbytes], header["seed"], self._sources[nbytes])
            case _:
                return bytes(body)


def work(link: zmq.Socket[bytes]) -> None:
    """Whatever comes before header and body is the way back."""
    worker = Worker()
    while True:
        *way, header, body = link.recv_multipart(copy=False)
        told = msgpack.unpackb(header.buffer)
        answer = worker.answer(told, body.buffer)
        frames = [*way, msgpack.packb({"id": told["id"]}), answer]
        link.send_multipart(frames, copy=memoryview(answer).nbytes < COPY_BELOW_BYTES)


def pass_on(front: zmq.Socket[bytes], back: zmq.Socket[bytes]) -> None:
    """A Python broker, as simple as one can be: clients' identities travel along, workers' are not needed (one)."""
    poller = zmq.Poller()
    poller.register(front, zmq.POLLIN)
    poller.register(back, zmq.POLLIN)
    while True:
        ready = dict(poller.poll())
        for source, target in ((front, back), (back, front)):
            if source in ready:
                _drain(source, target)


def _drain(source: zmq.Socket[bytes], target: zmq.Socket[bytes]) -> None:
    while True:
        try:
            frames = source.recv_multipart(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return
        target.send_multipart(frames, copy=False)


def main() -> None:
    """Take the role and the addresses from the command line."""
    role, *addresses = sys.argv[1:]
    context: zmq.Context[Any] = zmq.Context()
    if role == "broker":
        front, back = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
        front.bind(addresses[0])
        back.bind(addresses[1])
        pass_on(front, back)
        return
    link = context.socket(zmq.PAIR if role == "worker" else zmq.DEALER)
    link.connect(addresses[0])
    work(link)


if __name__ == "__main__":
    main()
