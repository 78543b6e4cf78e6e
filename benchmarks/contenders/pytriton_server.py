"""PyTriton, with three models: `PYTHON pytriton_server.py HTTP_PORT GRPC_PORT METRICS_PORT`. Ends at SIGTERM.

Run by a Python of its own, since PyTriton needs numpy 1: so it is a script, and imports nothing of ours but `works.py`.
"""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig
from works import SMALL_BYTES, fill, page_sum, touched

#: Requests in one batch, as our worker has; a batch waits for no more.
BATCH = 32
_memory: dict[int, tuple[np.ndarray, np.ndarray]] = {}


@batch
def echo(message: np.ndarray) -> list[np.ndarray]:
    """The same bytes, a batch at a time."""
    return [message]


def read(requests: list) -> list[dict[str, np.ndarray]]:
    """The page sum of each array."""
    return [{"sum": np.array([page_sum(request.data["array"])], np.int64)} for request in requests]


def make(requests: list) -> list[dict[str, np.ndarray]]:
    """An array for each, in memory that is used again."""
    answers = []
    for request in requests:
        nbytes, seed = (int(number) for number in request.data["asked"])
        if nbytes not in _memory:
            _memory[nbytes] = touched(nbytes), touched(nbytes)
        source, target = _memory[nbytes]
        answers.append({"array": fill(target, seed, source)})
    return answers


def main() -> None:
    """Serve until a signal."""
    http, grpc, metrics = (int(port) for port in sys.argv[1:4])
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    ports = {"http_port": http, "grpc_port": grpc, "metrics_port": metrics}
    one_at_a_time = ModelConfig(batching=False)
    batched = ModelConfig(max_batch_size=BATCH, batcher=DynamicBatcher(max_queue_delay_microseconds=0))
    with Triton(config=TritonConfig(http_address="127.0.0.1", grpc_address="127.0.0.1", **ports)) as triton:
        small = [Tensor(name="message", dtype=np.uint8, shape=(SMALL_BYTES,))]
        arrays = [Tensor(name="array", dtype=np.uint8, shape=(-1,))]
        numbers = [Tensor(name="asked", dtype=np.int64, shape=(2,))]
        sums = [Tensor(name="sum", dtype=np.int64, shape=(1,))]
        triton.bind("echo", echo, small, small, config=batched)
        triton.bind("read", read, arrays, sums, config=one_at_a_time)
        triton.bind("make", make, numbers, arrays, config=one_at_a_time)
        triton.run()
        ended.wait()


if __name__ == "__main__":
    main()
