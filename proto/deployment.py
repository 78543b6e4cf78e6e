"""A deployment: one model, the pipeline that serves it, and how many workers run it with what.

Declared in Python or in a file (`deploy/config.py` reads those); the fleet starts workers from it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ..errors import ConfigError
from .outputs import served_tasks
from .pipeline import PipelineTask


class Deployment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to serve. Raises ConfigError, naming the key, for a value that cannot be."""

    #: The name requests ask for; one deployment per model.
    model: str
    task: PipelineTask
    #: "package.module:factory", "file.py:factory", or an entry point of group `tensoryard.pipelines`.
    pipeline: str
    #: Keyword arguments of the factory.
    options: dict[str, Any] = {}
    #: Workers to keep running.
    replicas: int = 1
    #: What Ray reserves for each worker; fractions of a GPU share it.
    num_gpus: float = 0
    num_cpus: float = 1
    resources: dict[str, float] = {}
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
        if not self.model or len(self.model) > 128:
            raise ConfigError("`model` must be a name of 1 to 128 characters")
        if self.task.value not in served_tasks():
            raise ConfigError(f"`task` of model {self.model!r} must be one of {served_tasks()}, not {self.task.value!r}")
        if not self.pipeline:
            raise ConfigError(f"`pipeline` of model {self.model!r} must be 'module:factory', 'file.py:factory' or a name")
        for key, least in _LEAST.items():
            value = getattr(self, key)
            if value is not None and not value >= least:
                raise ConfigError(f"`{key}` of model {self.model!r} must be at least {least}, not {value!r}")

    @property
    def name(self) -> str:
        """The deployment's name: its model's."""
        return self.model


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
