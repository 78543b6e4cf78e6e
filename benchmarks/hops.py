"""What a request costs each process it passes, in processor time: the coordinator's share says how many one can serve.

`python -m tensoryard.benchmarks.hops`: plain processes, one worker; requests one at a time, 64 in flight, as handles in
flight, and tokens of concurrent streams. One core can do no more than the inverse of the coordinator's figure.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import tensoryard as ty

from . import part
from .contenders.ours_pipelines import token_request
from .process_clock import used_s
from .works import IN_FLIGHT, MIB, STREAMS, TOKENS

PIPELINES = Path(__file__).parent / "contenders" / "ours_pipelines.py"
SECONDS, QUICK_SECONDS = 3.0, 0.5
CHUNK = 256


def measure(seconds: float) -> dict[str, Any]:
    """By kind of traffic: microseconds of processor time per request or token in each process, and their rate."""
    embeddings, text = ty.PipelineTask.EMBEDDINGS_GENERATION, ty.PipelineTask.TEXT_GENERATION
    deployments = [
        ty.Deployment(model="works", task=embeddings, pipeline=f"{PIPELINES}:works", max_wait_ms=0),
        ty.Deployment(model="tokens", task=text, pipeline=f"{PIPELINES}:tokens", max_wait_ms=0),
    ]
    with ty.local(deployments, runtime="process") as yard:
        yard.wait_ready()
        with yard.connect() as client:
            workers = {model.model: model.workers[0].pid for model in client.status().models}
            coordinator = yard._runtime.coordinator_pid  # type: ignore[attr-defined]  # noqa: SLF001
            pids = {"client": os.getpid(), "coordinator": coordinator}
            traffic = _traffic(client)
            return {
                "per": {
                    name: _costs(send, {**pids, "worker": workers[model]}, seconds)
                    for name, (model, send) in traffic.items()
                },
            }


def _traffic(client: ty.Client) -> dict[str, tuple[str, Callable[[], int]]]:
    """By name: the model that serves it, and a function that sends some and returns how many came back."""
    small, lent = np.zeros(4, np.float32), client.empty((MIB,), np.uint8)
    lent.fill(0)

    def one_at_a_time() -> int:
        for _ in range(CHUNK):
            client.submit(ty.EmbeddingsRequest(model="works", input=small)).result()
        return CHUNK

    def in_flight(array: Any, options: dict[str, Any]) -> int:
        requests = [ty.EmbeddingsRequest(model="works", input=array, options=options) for _ in range(4 * CHUNK)]
        return sum(1 for _ in client.map(requests, max_in_flight=IN_FLIGHT))

    def streams() -> int:
        replies = [client.submit(token_request(stream, TOKENS)) for stream in range(STREAMS)]
        return sum(1 for reply in replies for _ in reply)

    return {
        "small, one at a time": ("works", one_at_a_time),
        f"small, {IN_FLIGHT} in flight": ("works", lambda: in_flight(small, {})),
        f"1 MiB by handle, {IN_FLIGHT} in flight": ("works", lambda: in_flight(lent, {"op": "shape"})),
        f"token of {STREAMS} streams": ("tokens", streams),
    }


def _costs(send: Callable[[], int], pids: dict[str, int], seconds: float) -> dict[str, float]:
    send()
    began, before = time.monotonic(), {name: used_s(pid) for name, pid in pids.items()}
    count = 0
    while time.monotonic() < began + seconds:
        count += send()
    took, after = time.monotonic() - began, {name: used_s(pid) for name, pid in pids.items()}
    costs = {name: (after[name] - before[name]) / count * 1e6 for name in pids}
    return {**costs, "per second": count / took}


def as_text(found: dict[str, Any]) -> str:
    """For a terminal."""
    columns = list(next(iter(found["per"].values())))
    lines = [f"{'processor time, µs':36}" + "".join(f"{name:>14}" for name in columns)]
    for name, costs in found["per"].items():
        lines.append(f"{name:36}" + "".join(f"{costs[column]:14,.1f}" for column in columns))
    return "\n".join(lines)


if __name__ == "__main__":
    part.main(__doc__, measure, as_text, seconds=(SECONDS, QUICK_SECONDS))
