"""Ray's actor call and Serve handle, on one local Ray. `ray_graph.py` has the compiled graph, on a Ray of its own.

The same worker class behind each. Arrays travel through Ray's object store or, compiled, through a channel of it.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from ..works import IN_FLIGHT, Array, fill, page_sum, touched
from .base import Contender, NotHereError

#: Ray's store: room for the largest array there and back, twice.
STORE_BYTES = 1 << 30
TIMEOUT_S = 60.0


class Worker:
    """What is done on the other side."""

    def __init__(self) -> None:
        self._sources: dict[int, Array] = {}
        self._targets: dict[int, Array] = {}

    def echo(self, message: bytes) -> bytes:
        """Back."""
        return message

    def read(self, array: Array) -> int:
        """The page sum."""
        return page_sum(array)

    def make(self, asked: tuple[int, int]) -> Array:
        """An array, in memory that is used again."""
        nbytes, seed = asked
        if nbytes not in self._sources:
            self._sources[nbytes], self._targets[nbytes] = touched(nbytes), touched(nbytes)
        return fill(self._targets[nbytes], seed, self._sources[nbytes])


class RayCluster:
    """One Ray for all contenders of a module."""

    def __init__(self) -> None:
        self._users = 0

    def start(self) -> None:
        """Without a dashboard, which would only take turns on the processors."""
        self._users += 1
        if self._users > 1:
            return
        os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0", RAY_SERVE_LOG_TO_STDERR="0")
        import ray

        ray.init(
            address="local",
            num_cpus=8,  # slots, not cores: all contenders have their actors at once
            object_store_memory=STORE_BYTES,
            include_dashboard=False,
            configure_logging=True,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )

    def stop(self) -> None:
        """The last one ends it."""
        self._users -= 1
        if self._users == 0:
            import ray

            ray.shutdown()


class RayContender(Contender):
    """What the three have in common: how results are waited for."""

    def __init__(self, cluster: RayCluster) -> None:
        self._cluster = cluster

    def start(self) -> None:
        """Ray, then what is particular."""
        self._cluster.start()
        self.set_up()

    def set_up(self) -> None:
        """The actor, the graph or the deployment."""

    def stop(self) -> None:
        """Ray's own shutdown ends the actors."""
        self._cluster.stop()

    def _call(self, method: str, value: Any) -> Any:
        """Start one call; what `_get` takes."""
        raise NotImplementedError

    def _get(self, call: Any) -> Any:
        import ray

        return ray.get(call, timeout=TIMEOUT_S)

    def echo(self, message: bytes) -> bytes:
        """One call."""
        answer: bytes = self._get(self._call("echo", message))
        return answer

    def flight(self, messages: Sequence[bytes], in_flight: int) -> list[bytes]:
        """Calls under way, taken in order."""
        under_way: deque[Any] = deque()
        answers = []
        for message in messages:
            if len(under_way) >= in_flight:
                answers.append(self._get(under_way.popleft()))
            under_way.append(self._call("echo", message))
        answers += [self._get(call) for call in under_way]
        return answers

    def read(self, array: Array) -> int:
        """One call with the array as its argument."""
        return int(self._get(self._call("read", array)))

    def make(self, nbytes: int, seed: int) -> Array:
        """One call; the array is a view of the object store."""
        made: Array = self._get(self._call("make", (nbytes, seed)))
        return made


class RayActor(RayContender):
    """`actor.method.remote(value)`."""

    name = "ray-actor"

    def set_up(self) -> None:
        """One actor."""
        import ray

        self._actor = ray.remote(num_cpus=0)(Worker).remote()
        self.echo(b"are you there?")

    def _call(self, method: str, value: Any) -> Any:
        return getattr(self._actor, method).remote(value)


class RayServe(RayContender):
    """A deployment, called by its handle; no HTTP in between."""

    name = "ray-serve"

    def set_up(self) -> None:
        """One replica."""
        try:
            from ray import serve
        except ImportError as error:
            raise NotHereError(f"ray[serve] is not installed: {error}") from error
        serve.start(proxy_location="Disabled")
        options = {"num_replicas": 1, "max_ongoing_requests": 2 * IN_FLIGHT, "ray_actor_options": {"num_cpus": 0}}
        self._handle = serve.run(serve.deployment(**options)(Worker).bind(), name="bench", route_prefix=None)
        self.echo(b"are you there?")

    def stop(self) -> None:
        """Serve first, then Ray."""
        if hasattr(self, "_handle"):
            from ray import serve

            serve.shutdown()
        super().stop()

    def _call(self, method: str, value: Any) -> Any:
        call: Callable[[Any], Any] = getattr(self._handle, method).remote
        return call(value)

    def _get(self, call: Any) -> Any:
        return call.result(timeout_s=TIMEOUT_S)


def make() -> list[Contender]:
    """Both, on one Ray."""
    cluster = RayCluster()
    return [RayActor(cluster), RayServe(cluster)]
