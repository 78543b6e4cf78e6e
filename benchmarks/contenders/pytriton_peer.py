"""PyTriton: Triton in front of a Python worker, by HTTP with binary tensors (KServe v2). `pytriton_server.py` serves.

It needs a Python of its own (numpy 1, and one whose library the system has): `.venv-pytriton` in the repository, or the
one that TYBENCH_PYTRITON names. `make bench` makes the first where it can.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..works import SMALL_BYTES, Array
from . import http1
from .base import Contender, NotHereError, end, free_port, run_script, wait_for

ROOT = Path(__file__).parents[2]
SERVER = Path(__file__).with_name("pytriton_server.py")
#: Triton starts slowly, and a busy machine makes it slower.
START_TIMEOUT_S = 90


class PyTriton(Contender):
    """One kept connection; many for requests in flight."""

    name = "pytriton"

    def __init__(self) -> None:
        self._server: subprocess.Popen[bytes] | None = None
        self._connection: http1.Connection | None = None
        self._port = 0

    def start(self) -> None:
        """Until its models answer."""
        python = os.environ.get("TYBENCH_PYTRITON") or str(ROOT / ".venv-pytriton/bin/python")
        _require_pytriton(python)
        ports = [free_port() for _ in range(3)]
        self._port = ports[0]
        self._server = run_script(python, str(SERVER), *map(str, ports))
        first = {
            "echo": {"message": np.zeros((1, SMALL_BYTES), np.uint8)},
            "read": {"array": np.zeros(SMALL_BYTES, np.uint8)},
            "make": {"asked": np.array([SMALL_BYTES, 0], np.int64)},
        }
        for model, inputs in first.items():
            body, headers = _request(inputs)
            told = (self._port, _path(model), body, headers)
            wait_for(lambda told=told: http1.answers_at(*told), self._server, START_TIMEOUT_S)
        self._connection = http1.Connection(self._port)

    def stop(self) -> None:
        """It takes SIGTERM, and some seconds."""
        if self._connection is not None:
            self._connection.close()
        end(self._server, timeout_s=20)

    def _ask(self, model: str, inputs: dict[str, Any]) -> memoryview:
        assert self._connection is not None
        body, headers = _request(inputs)
        return _tensor(*self._connection.ask(_path(model), body, headers))

    def echo(self, message: bytes) -> bytes:
        """A batch of one."""
        return bytes(self._ask("echo", {"message": np.frombuffer(message, np.uint8)[None]}))

    def flight(self, messages: Sequence[bytes], in_flight: int) -> list[bytes]:
        """A connection for each under way."""
        made = [_request({"message": np.frombuffer(message, np.uint8)[None]}) for message in messages]
        bodies = [body for body, _ in made]
        answers = http1.flight(self._port, _path("echo"), bodies, in_flight, made[0][1])
        # The tensor is what is left behind the JSON, whose length the head would tell.
        return [bytes(answer[-SMALL_BYTES:]) for answer in answers]

    def read(self, array: Array) -> int:
        """The array behind a JSON head."""
        found: int = struct.unpack("<q", self._ask("read", {"array": array}))[0]
        return found

    def make(self, nbytes: int, seed: int) -> Array:
        """A view of what came."""
        return np.frombuffer(self._ask("make", {"asked": np.array([nbytes, seed], np.int64)}), np.uint8)


def _require_pytriton(python: str) -> None:
    if not Path(python).exists():
        raise NotHereError("not installed: there is no .venv-pytriton (it needs a Python of its own, with numpy 1)")
    tried = subprocess.run([python, "-c", "import pytriton"], capture_output=True, text=True, check=False)
    if tried.returncode:
        raise NotHereError(f"not installed: {(tried.stderr.strip().splitlines() or ['it cannot be imported'])[-1]}")


def _path(model: str) -> str:
    return f"/v2/models/{model}/infer"


def _request(inputs: dict[str, Any]) -> tuple[list[Any], str]:
    """A JSON head and the tensors' bytes behind it, as pieces; and the header that says where it ends."""
    named = [
        {
            "name": name,
            "shape": list(array.shape),
            "datatype": {"uint8": "UINT8", "int64": "INT64"}[array.dtype.name],
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in inputs.items()
    ]
    head = json.dumps({"inputs": named, "parameters": {"binary_data_output": True}}).encode()
    return [head, *inputs.values()], f"Inference-Header-Content-Length: {len(head)}\r\n"


def _tensor(head: str, body: bytearray) -> memoryview:
    """The one output's bytes."""
    for line in head.lower().split("\r\n"):
        if line.startswith("inference-header-content-length:"):
            return memoryview(body)[int(line.partition(":")[2]) :]
    raise OSError("the answer has no binary tensor")


def make() -> list[Contender]:
    """The one here."""
    return [PyTriton()]
