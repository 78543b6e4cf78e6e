"""A client process on a host of its own, started with an address: asks without a pause, and keeps books.

Each line of its input is answered by one of output, as JSON: how many answers it has, by which workers, and which
workers there are on which hosts. When its input ends, it waits for what is under way, and tells what its books say.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
from collections import Counter, deque

import numpy as np

import tensoryard as ty
from tensoryard.client.client import Client
from tensoryard.client.connection import resolve_address
from tensoryard.deploy.chaos_books import FINISHED, LOST, WRONG, Books
from tensoryard.deploy.chaos_client import TappedConnection
from tensoryard.errors import ReplyTimeout, TensoryardError
from tensoryard.settings import from_environment

IN_FLIGHT = 8
PATIENCE_S = 90.0
PREFIX = f"{socket.gethostname()}-"


class Asker:
    """Requests to the model `moody`, each with an answer of its own length."""

    def __init__(self, address: str) -> None:
        self.books = Books()
        #: Answers by worker.
        self.by: Counter[str] = Counter()
        self._under_way: deque[tuple[int, ty.Reply]] = deque()
        self._number = 0
        connection = TappedConnection(resolve_address(address), from_environment(), self._again)
        connection.open(PATIENCE_S)
        self._client = Client(connection)

    def _again(self, request_id: str, what: str) -> None:
        self.books.answer_again("client", int(request_id.removeprefix(PREFIX)), detail=what)

    def run(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            self._ask()
            if len(self._under_way) >= IN_FLIGHT:
                self._settle(*self._under_way.popleft())
        while self._under_way:
            self._settle(*self._under_way.popleft())
        self._client.close()
        self.books.client_left("client")
        self.books.check_balance()

    def told(self) -> dict[str, object]:
        """What a line is answered by; without workers while no coordinator is heard."""
        told: dict[str, object] = {"answered": self.books.answered, "by": dict(self.by), "workers": {}, "epoch": ""}
        with contextlib.suppress(TensoryardError):
            status = self._client.status()
            workers = [worker for model in status.models for worker in model.workers]
            told |= {"workers": {worker.name: worker.host for worker in workers}, "epoch": status.epoch}
        return told

    def _ask(self) -> None:
        number, self._number = self._number, self._number + 1
        request = ty.EmbeddingsRequest(
            request_id=ty.RequestID(f"{PREFIX}{number}"), model="moody", input="x" * _length(number)
        )
        self.books.send("client", number, kind="moody")
        try:
            self._under_way.append((number, self._client.submit(request)))
        except TensoryardError as error:
            self.books.end("client", number, error.code, detail=error.text)

    def _settle(self, number: int, reply: ty.Reply) -> None:
        try:
            found = reply.result(PATIENCE_S).embeddings
        except ReplyTimeout:
            self.books.end("client", number, LOST, detail=f"none within {PATIENCE_S} s")
        except TensoryardError as error:
            self.books.end("client", number, error.code, detail=f"{error.text} {error.story}")
        else:
            right = np.array_equal(found, np.full((1, 4), _length(number), np.float32))
            self.books.end("client", number, FINISHED if right else WRONG, detail=repr(found))
            self.by[reply.ledger.worker] += 1


def _length(number: int) -> int:
    return 1 + number % 97


def main(address: str) -> None:
    asker = Asker(address)
    stopping = threading.Event()
    thread = threading.Thread(target=asker.run, args=(stopping,))
    thread.start()
    for _ in sys.stdin:
        print(json.dumps(asker.told()), flush=True)
    stopping.set()
    thread.join()
    books = asker.books
    print(json.dumps({"sent": books.sent, "outcomes": books.outcomes, "violations": books.violations}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
