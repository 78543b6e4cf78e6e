"""How long a request waits that was on a worker when that was killed: from SIGKILL until another worker begins with it.

`python -m tensoryard.benchmarks.detection`: plain processes, two workers; the pipeline (`detection_pipeline.py`) tells
when it begins, by the clock that all processes of a machine share. The goal is a median under 100 ms.
"""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import tensoryard as ty

from . import figures, part

PIPELINE = Path(__file__).with_name("detection_pipeline.py")
KILLS, QUICK_KILLS = 30, 5
TIMEOUT_S = 60.0


class Listener:
    """Hears from the pipelines: who began, and when."""

    def __init__(self, folder: str) -> None:
        self.address = f"{folder}/began"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._socket.settimeout(TIMEOUT_S)

    def next(self) -> tuple[int, float]:
        """The process, and monotonic seconds."""
        pid, at = self._socket.recv(64).split()
        return int(pid), float(at)

    def close(self) -> None:
        """Hear no more."""
        self._socket.close()


def measure(kills: int) -> dict[str, Any]:
    """Milliseconds of each kill."""
    with tempfile.TemporaryDirectory(prefix="tyd-") as folder:
        listener = Listener(folder)
        task = ty.PipelineTask.EMBEDDINGS_GENERATION
        deployment = ty.Deployment(
            model="waits", task=task, pipeline=f"{PIPELINE}:create", replicas=2, max_batch_size=1, max_wait_ms=0
        )
        with ty.local([deployment], runtime="process") as yard, yard.connect() as client:
            found = [_kill(yard, client, listener) for _ in range(kills)]
        listener.close()
    return {"ms": found}


def _kill(yard: ty.Yard, client: ty.Client, listener: Listener) -> float:
    """One: the first run waits for a gate that opens when its worker is dead, the second finds it open."""
    yard.wait_ready()
    gate = Path(f"{listener.address}.gate")
    gate.unlink(missing_ok=True)
    told = {"tell": listener.address, "gate": str(gate)}
    reply = client.submit(ty.EmbeddingsRequest(model="waits", input="go", options=told))
    first, _ = listener.next()
    killed_at = time.monotonic()
    os.kill(first, signal.SIGKILL)
    gate.touch()
    second, began_at = listener.next()
    assert second != first, "a dead worker began anew"
    reply.result(TIMEOUT_S)
    return (began_at - killed_at) * 1e3


def as_text(found: dict[str, Any]) -> str:
    """For a terminal."""
    spread = figures.spread(found["ms"])
    tail = f"90th percentile {figures.percentile(found['ms'], 0.9):.1f} ms, longest {max(found['ms']):.1f} ms"
    return f"from SIGKILL to the next worker's start: {spread} ms; {tail}; {len(found['ms'])} kills"


if __name__ == "__main__":
    part.main(__doc__, measure, as_text, kills=(KILLS, QUICK_KILLS))
