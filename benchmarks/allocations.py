"""What a request allocates, in client, coordinator and worker: blocks, bytes, what is not given back, collections.

`python -m tensoryard.benchmarks.allocations`: every process of a cluster counts at its allocators by a small library
(`counting_allocator.c`, compiled here: it needs a C compiler), and this one sends small requests, one at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import struct
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from . import part

HERE = Path(__file__).parent
PIPELINES = HERE / "contenders" / "ours_pipelines.py"
REQUESTS, QUICK_REQUESTS = 5000, 500
#: Before counting: caches fill, and what is kept of ended requests reaches its bound.
WARM_UP = 2500


class Counts(NamedTuple):
    """What one process has counted so far."""

    blocks: int
    bytes: int
    freed: int
    collections: int
    collecting_ns: int


def read(folder: str, pid: int) -> Counts:
    """Of a process that carries the probe."""
    return Counts(*struct.unpack("<5Q", Path(folder, str(pid)).read_bytes()[:40]))


def compiled(folder: str) -> str:
    """The counting library. Raises OSError where no compiler is, or no headers of Python's."""
    library = f"{folder}/counting.so"
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise OSError("there is no C compiler")
    include = sysconfig.get_paths()["include"]
    command = [compiler, "-O2", "-shared", "-fPIC", f"-I{include}", str(HERE / "counting_allocator.c"), "-o", library]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"the counting library does not compile: {done.stderr.strip().splitlines()[0]}")
    return library


def measure(requests: int, warm_up: int = WARM_UP) -> dict[str, Any]:
    """Per request, by process; or the reason why nothing can be counted."""
    with tempfile.TemporaryDirectory(prefix="tya-") as folder:
        try:
            library = compiled(folder)
        except OSError as error:
            return {"reason": str(error), "per_request": {}}
        # A process of its own, since the probe is loaded when Python starts; its children inherit it.
        path = os.pathsep.join([str(HERE / "allocation_probe"), *_path()])
        environment = {**os.environ, "PYTHONPATH": path, "TYBENCH_PROBE": f"{folder}:{library}"}
        command = [sys.executable, "-m", f"{__package__}.allocations", "--count-in", folder, "--warm-up", str(warm_up)]
        done = subprocess.run(
            [*command, "--requests", str(requests)], env=environment, stdout=subprocess.PIPE, check=True
        )
        found: dict[str, Any] = json.loads(done.stdout)
        return found


def _path() -> Sequence[str]:
    return [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]


def count(folder: str, requests: int, warm_up: int) -> dict[str, Any]:
    """In a process that carries the probe: run the cluster, send, and see what its processes counted meanwhile."""
    import numpy as np

    import tensoryard as ty

    task = ty.PipelineTask.EMBEDDINGS_GENERATION
    deployment = ty.Deployment(model="works", task=task, pipeline=f"{PIPELINES}:works", max_wait_ms=0)
    message = np.zeros(4, np.float32)
    with ty.local([deployment], runtime="process") as yard:
        yard.wait_ready()
        with yard.connect() as client:
            (worker,) = (worker.pid for model in client.status().models for worker in model.workers)
            coordinator = yard._runtime.coordinator_pid  # type: ignore[attr-defined]  # noqa: SLF001
            pids = {"client": os.getpid(), "coordinator": coordinator, "worker": worker}

            def send(count: int) -> None:
                for _ in range(count):
                    client.submit(ty.EmbeddingsRequest(model="works", input=message)).result()

            send(warm_up)
            before = {name: read(folder, pid) for name, pid in pids.items()}
            send(requests)
            after = {name: read(folder, pid) for name, pid in pids.items()}
    return {"requests": requests, "per_request": {name: _each(before[name], after[name], requests) for name in pids}}


def _each(before: Counts, after: Counts, requests: int) -> dict[str, float]:
    grown = Counts(*(b - a for a, b in zip(before, after, strict=True)))
    return {
        "blocks": grown.blocks / requests,
        "bytes": grown.bytes / requests,
        "kept": (grown.blocks - grown.freed) / requests,
        "collections per 1000": grown.collections / requests * 1000,
        "collecting, µs": grown.collecting_ns / requests / 1e3,
    }


def as_text(found: dict[str, Any]) -> str:
    """For a terminal."""
    if not found["per_request"]:
        return f"not counted: {found['reason']}"
    names = list(next(iter(found["per_request"].values())))
    lines = [f"{'per small request':20}" + "".join(f"{name:>22}" for name in names)]
    for process, counted in found["per_request"].items():
        lines.append(f"{process:20}" + "".join(f"{counted[name]:22.2f}" for name in names))
    return "\n".join(lines)


def main() -> None:
    """Read the command line, measure, print."""
    parser = part.parser(__doc__)
    parser.add_argument("--requests", type=int)
    parser.add_argument("--warm-up", type=int, default=WARM_UP, help="requests before those that count")
    parser.add_argument("--count-in", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    requests = asked.requests or (QUICK_REQUESTS if asked.quick else REQUESTS)
    if asked.count_in:
        print(json.dumps(count(asked.count_in, requests, asked.warm_up)))
        return
    part.tell(measure(requests, asked.warm_up), as_text, asked.json)


if __name__ == "__main__":
    main()
