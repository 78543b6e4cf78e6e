"""Ray's compiled graph: one actor in a loop, values through channels that are made beforehand. See `ray_peers.py`.

It has a Ray of its own, to be stopped apart from the others: its actors use processor time while they wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .base import Contender
from .ray_peers import RayCluster, RayContender, Worker

#: A compiled graph's channels are made for the largest value that they will carry.
CHANNEL_BYTES = 80 << 20
#: It executes at most so many at once by its own default.
GRAPH_IN_FLIGHT = 10


class AnyWorker(Worker):
    """One method for everything: a graph has one, and a second graph's actor would only stand in the way."""

    def any(self, value: Any) -> Any:
        """What to do is seen by what comes."""
        method = {bytes: self.echo, tuple: self.make}.get(type(value), self.read)
        return method(value)


class RayGraph(RayContender):
    """A graph of one actor with one method."""

    name = "ray-graph"
    _graph: Any = None

    def set_up(self) -> None:
        """Compile it, and see that it works."""
        import ray
        from ray.dag import InputNode

        actor = ray.remote(num_cpus=0)(AnyWorker).remote()
        with InputNode() as value:
            graph = actor.any.bind(value)
        self._graph = graph.experimental_compile(_buffer_size_bytes=CHANNEL_BYTES)
        self.echo(b"are you there?")

    def stop(self) -> None:
        """Tear it down first: its actor sits in a loop."""
        if self._graph is not None:
            self._graph.teardown(kill_actors=True)
        super().stop()

    def _call(self, _method: str, value: Any) -> Any:
        return self._graph.execute(value)

    def flight(self, messages: Sequence[bytes], in_flight: int) -> list[bytes]:
        """It takes fewer at once."""
        return super().flight(messages, min(in_flight, GRAPH_IN_FLIGHT))


def make() -> list[Contender]:
    """The one here."""
    return [RayGraph(RayCluster())]
