"""A deployment: one model, the pipeline that serves it, and how many workers run it with what.

Declared in Python or in a file (`deploy/config.py` reads those); the fleet starts workers from it.
"""

from __future__ import annotations

from typing import Any, NoReturn

import msgspec

from ..errors import ConfigError
from .autoscale import Autoscale
from .outputs import served_tasks
from .pipeline import PipelineTask

#: Longest name of a model, in characters.
MAX_MODEL_CHARS = 128
#: How the workers of a deployment may lie towards each other; the empty one leaves it to Ray.
PLACEMENTS = ("", "SPREAD", "PACK", "STRICT_PACK")


class Deployment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to serve. Raises ConfigError, naming the key, for a value that cannot be."""

    #: The name requests ask for; one deployment per model.
    model: str
    task: PipelineTask
    #: "package.module:factory", "file.py:factory", or an entry point of group `tensoryard.pipelines`.
    pipeline: str
    #: Keyword arguments of the factory.
    options: dict[str, Any] = {}
    #: Workers to keep running: a number, or how it follows the load.
    replicas: int | Autoscale = 1
    #: What Ray reserves for each worker; fractions of a GPU share it.
    num_gpus: float = 0
    num_cpus: float = 1
    resources: dict[str, float] = {}
    #: How its workers lie towards each other: SPREAD over nodes, PACK on few, STRICT_PACK on one; "": as Ray likes.
    placement: str = ""
    #: Labels of the nodes that they may run on.
    node_labels: dict[str, str] = {}
    #: Most requests in one batch; None: the pipeline's own limit, which always holds.
    max_batch_size: int | None = None
    #: How long an idle worker waits for more requests to fill its batch, in milliseconds.
    max_wait_ms: float = 2.0
    #: Requests a worker may hold, running and waiting; None: two batches.
    max_ongoing_requests: int | None = None
    #: Requests that may wait in the coordinator, and their bytes (shared memory included); beyond: Overloaded.
    max_queued: int = 10_000
    max_queued_bytes: int = 8 << 30
    #: A busy worker that makes no progress for so many seconds is replaced.
    hang_limit_s: float = 300.0
    #: Budget of each worker's tensor pool in bytes; None: an eighth of the machine's memory.
    pool_budget_bytes: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not 0 < len(self.model) <= MAX_MODEL_CHARS:
            raise ConfigError(f"`model` must be a name of 1 to {MAX_MODEL_CHARS} characters, not {self.model!r:.60}")
        if not isinstance(self.task, PipelineTask) or self.task.value not in served_tasks():
            self._refuse("task", f"the PipelineTask of one of {served_tasks()}")
        if not isinstance(self.pipeline, str) or not self.pipeline:
            self._refuse("pipeline", "'module:factory', 'file.py:factory' or a name")
        if not isinstance(self.options, dict) or not all(isinstance(key, str) for key in self.options):
            self._refuse("options", "a dict with string keys")
        for key, least in _LEAST.items():
            value = getattr(self, key)
            if key == "replicas" and isinstance(value, Autoscale):
                continue
            if not _is_number(value, least, whole=key in _WHOLE) and not (value is None and key in _OPTIONAL):
                whole = f"a whole number of at least {least}"
                self._refuse(key, whole if key in _WHOLE else f"a number from {least} to {_MOST:.0e}")
        self._check_place()

    def _check_place(self) -> None:
        if not isinstance(self.resources, dict) or not all(_is_number(n, 0) for n in self.resources.values()):
            self._refuse("resources", f"a dict of names to numbers from 0 to {_MOST:.0e}")
        if self.num_gpus > 1 and self.num_gpus != int(self.num_gpus):
            self._refuse("num_gpus", "a fraction of one, or a whole number")
        if self.placement not in PLACEMENTS:
            self._refuse("placement", f"one of {', '.join(PLACEMENTS[1:])}, or empty")
        if not isinstance(self.node_labels, dict) or not all(
            isinstance(text, str) and text for pair in self.node_labels.items() for text in pair
        ):
            self._refuse("node_labels", "a dict of names to values, all texts")

    def _refuse(self, key: str, allowed: str) -> NoReturn:
        raise ConfigError(f"`{key}` of model {self.model!r} must be {allowed}, not {getattr(self, key)!r:.60}")

    @property
    def least_replicas(self) -> int:
        """Workers without load."""
        return self.replicas.min if isinstance(self.replicas, Autoscale) else self.replicas

    @property
    def most_replicas(self) -> int:
        """Workers under any load."""
        return self.replicas.max if isinstance(self.replicas, Autoscale) else self.replicas

    @property
    def name(self) -> str:
        """The deployment's name: its model's."""
        return self.model


def _is_number(value: object, least: float, *, whole: bool = False) -> bool:
    """NaN, infinity and bools are no numbers here, nor what a message cannot carry."""
    if whole:
        return type(value) is int and least <= value < 1 << 63
    return type(value) in (int, float) and least <= value <= _MOST  # type: ignore[operator]


#: The most of anything that is not counted: `wire.py` takes no longer time.
_MOST = 1e9
_LEAST: dict[str, float] = {
    "replicas": 0,
    "num_gpus": 0,
    "num_cpus": 0,
    "max_batch_size": 1,
    "max_wait_ms": 0,
    "max_ongoing_requests": 1,
    "max_queued": 1,
    "max_queued_bytes": 1,
    "hang_limit_s": 0.1,
    "pool_budget_bytes": 1 << 20,
}
_WHOLE = {"replicas", "max_batch_size", "max_ongoing_requests", "max_queued", "max_queued_bytes", "pool_budget_bytes"}
_OPTIONAL = {"max_batch_size", "max_ongoing_requests", "pool_budget_bytes"}
