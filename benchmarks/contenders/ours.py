"""Ourselves, by our public API alone: one coordinator, one worker, plain processes, arrays as they are or lent.

The worker's pipelines are in `ours_pipelines.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import tensoryard as ty

from ..works import Array, Work
from .base import Contender
from .ours_pipelines import token_request

PIPELINES = Path(__file__).with_name("ours_pipelines.py")


class Cluster:
    """One cluster for both contenders here; started by the first, stopped by the last."""

    def __init__(self) -> None:
        self._users = 0
        self._yard: ty.Yard | None = None
        self.client: Any = None
        self._streams: ty.Yard | None = None
        self._streams_client: Any = None

    def start(self) -> None:
        """Returns when the worker is ready."""
        self._users += 1
        if self._yard is None:
            self._yard = _yard("works", ty.PipelineTask.EMBEDDINGS_GENERATION)
            self._yard.wait_ready()
            self.client = self._yard.connect()

    def stop(self) -> None:
        """The second stop ends it."""
        self._users -= 1
        if self._users == 0:
            for part in (self.client, self._streams_client, self._yard, self._streams):
                if part is not None:
                    part.close()

    def streaming_client(self) -> Any:
        """A client of a cluster of its own, started when it is first needed: else it would beat beside all others."""
        if self._streams is None:
            self._streams = _yard("tokens", ty.PipelineTask.TEXT_GENERATION)
            self._streams.wait_ready()
            self._streams_client = self._streams.connect()
        return self._streams_client


def _yard(model: str, task: ty.PipelineTask) -> ty.Yard:
    deployment = ty.Deployment(model=model, task=task, pipeline=f"{PIPELINES}:{model}", max_wait_ms=0)
    return ty.local([deployment], runtime="process")


class Tensoryard(Contender):
    """An array of the caller's: copied once, into this client's pool."""

    name = "tensoryard"
    largest_bytes = 1 << 30

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._last: ty.Reply | None = None

    def start(self) -> None:
        """The cluster, if the other has not started it."""
        self._cluster.start()

    def stop(self) -> None:
        """Let go of it."""
        self._last = None
        self._cluster.stop()

    def _submit(self, value: Any, **options: Any) -> ty.Reply:
        request = ty.EmbeddingsRequest(model="works", input=value, options=options)
        return self._cluster.client.submit(request)

    def _ask(self, value: Any, **options: Any) -> Any:
        self._last = self._submit(value, **options)
        return self._last.result().embeddings

    def echo(self, message: bytes) -> bytes:
        """As a small array, which travels inside the message."""
        answer: bytes = self._ask(np.frombuffer(message, np.float32)).tobytes()
        return answer

    def flight(self, messages: Sequence[bytes], in_flight: int) -> list[bytes]:
        """By `client.map`."""
        requests = [ty.EmbeddingsRequest(model="works", input=np.frombuffer(m, np.float32)) for m in messages]
        answers = self._cluster.client.map(requests, max_in_flight=in_flight)
        return [answer.embeddings.tobytes() for answer in answers]

    def read(self, array: Array) -> int:
        """By handle."""
        return int(self._ask(array, op="read")[0])

    def shape(self, array: Array) -> int:
        """By handle, and nobody looks."""
        return int(self._ask(array, op="shape")[0])

    def make(self, nbytes: int, seed: int) -> Array:
        """A view of the worker's memory."""
        made: Array = self._ask("make", op="make", nbytes=nbytes, seed=seed)
        return made.view(np.uint8)

    def stream(self, streams: int, tokens: int) -> list[list[int]]:
        """All submitted, then read one after the other; the steps go on meanwhile."""
        client = self._cluster.streaming_client()
        replies = [client.submit(token_request(stream, tokens)) for stream in range(streams)]
        return [[output.tokens[0] for output in reply] for reply in replies]

    def notes(self) -> dict[str, float]:
        """From the copy ledger."""
        if self._last is None:
            return {}
        ledger = self._last.ledger
        return {"copies": ledger.copies_in + ledger.copies_out, "socket bytes": ledger.socket_bytes}


class Lent(Tensoryard):
    """An array from `client.empty()`: not copied at all."""

    name = "tensoryard-lent"
    cannot = dict.fromkeys(("echo", "flight", "make", "stream"), "the same as without lending")

    def borrow(self, nbytes: int) -> Array:
        """Shared memory, filled in place."""
        array: Array = self._cluster.client.empty((nbytes,), np.uint8)
        array.fill(0)
        return array


class Plain(Tensoryard):
    """The first of the two."""

    def refuses(self, work: Work) -> str:
        """To be independent of size takes no copy."""
        return "copies, so it depends on size" if work.kind == "shape" else super().refuses(work)


def make() -> list[Contender]:
    """Both, on one cluster."""
    cluster = Cluster()
    return [Plain(cluster), Lent(cluster)]
