"""A client that asks without a pause, for tests that change a cluster: each answer must come, and be right."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import numpy as np

import tensoryard as ty


class Load:
    """Requests to the model `moody`, some in flight at any time, from a thread of its own until the block ends."""

    def __init__(self, client: ty.Client, in_flight: int = 8) -> None:
        self._client = client
        self._in_flight = in_flight
        self._stop = threading.Event()
        self.answered = 0
        self.wrong: list[object] = []
        self._thread = threading.Thread(target=self._run)

    def _requests(self) -> Iterator[ty.EmbeddingsRequest]:
        while not self._stop.is_set():
            yield ty.EmbeddingsRequest(model="moody", input="four")

    def _run(self) -> None:
        try:
            for output in self._client.map(self._requests(), max_in_flight=self._in_flight):
                self.answered += 1
                if not np.array_equal(output.embeddings, np.full((1, 4), 4, np.float32)):
                    self.wrong.append(output)
        except BaseException as error:
            self.wrong.append(error)

    def has_answered_more_than(self, answered: int) -> bool:
        return self.answered > answered

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _value: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(60)
        if kind is None:
            assert not self._thread.is_alive()
            assert self.wrong == []
            assert self.answered
