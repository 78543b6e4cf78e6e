"""What a cluster costs that has nothing to do: processor time of the coordinator and of each worker, in % of one core.

`python -m tensoryard.benchmarks.idle`: plain processes, two workers, one client that stays connected. The goal is under
1 % each.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import tensoryard as ty

from . import part
from .process_clock import used_s

PIPELINES = Path(__file__).parent / "contenders" / "ours_pipelines.py"
SECONDS, QUICK_SECONDS = 20.0, 4.0
WORKERS = 2
#: What starting has set off is let settle first.
SETTLE_S = 2.0


def measure(seconds: float, workers: int = WORKERS) -> dict[str, Any]:
    """Percent of one core, by process."""
    task = ty.PipelineTask.EMBEDDINGS_GENERATION
    deployment = ty.Deployment(model="works", task=task, pipeline=f"{PIPELINES}:works", replicas=workers)
    with ty.local([deployment], runtime="process") as yard:
        yard.wait_ready()
        with yard.connect() as client:
            pids = {worker.name: worker.pid for model in client.status().models for worker in model.workers}
            pids = {"coordinator": yard._runtime.coordinator_pid, **pids}  # type: ignore[attr-defined]  # noqa: SLF001
            pids["client and fleet"] = os.getpid()
            time.sleep(min(SETTLE_S, seconds))
            percent = _percent(pids, seconds)
    # Ours is the process that measures as well; it is shown, and not judged.
    beside = percent.pop("client and fleet")
    return {"seconds": seconds, "percent": percent, "beside": {"client and fleet": beside}}


def _percent(pids: dict[str, int], seconds: float) -> dict[str, float]:
    began = time.monotonic()
    before = {name: used_s(pid) for name, pid in pids.items()}
    time.sleep(seconds)
    after = {name: used_s(pid) for name, pid in pids.items()}
    took = time.monotonic() - began
    return {name: (after[name] - before[name]) / took * 100 for name in pids}


def as_text(found: dict[str, Any]) -> str:
    """For a terminal."""
    rows = {**found["percent"], **found["beside"]}
    return "\n".join(f"{name:24}{share:8.3f} % of a core" for name, share in rows.items())


if __name__ == "__main__":
    part.main(__doc__, measure, as_text, seconds=(SECONDS, QUICK_SECONDS))
