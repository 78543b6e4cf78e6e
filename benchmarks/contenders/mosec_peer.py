"""Mosec: a Rust HTTP server in front of Python workers, arrays as raw HTTP bodies. `mosec_server.py` is the server."""

from __future__ import annotations

import importlib.util
import struct
import subprocess
from collections.abc import Sequence

import numpy as np

from ..works import Array
from . import http1
from .base import Contender, NotHereError, end, free_port, run_server, wait_for


class Mosec(Contender):
    """One kept connection; many for requests in flight."""

    name = "mosec"
    #: Where small requests in flight go.
    batched = "/batched"

    def __init__(self) -> None:
        self._server: subprocess.Popen[bytes] | None = None
        self._connection: http1.Connection | None = None
        self._port = 0

    def start(self) -> None:
        """Until it answers."""
        if importlib.util.find_spec("mosec") is None:
            raise NotHereError("mosec is not installed")
        self._port = free_port()
        options = ["--address", "127.0.0.1", "--port", str(self._port), "--timeout", "60000"]
        options += ["--max-request-size", str(256 << 20), "--log-level", "error"]
        self._server = run_server("mosec_server", *options)
        wait_for(lambda: http1.answers_at(self._port, "/echo", b"are you there?"), self._server)
        self._connection = http1.Connection(self._port)

    def stop(self) -> None:
        """It takes SIGTERM."""
        if self._connection is not None:
            self._connection.close()
        end(self._server)

    def _ask(self, path: str, body: object) -> bytearray:
        assert self._connection is not None
        return self._connection.ask(path, body)[1]

    def echo(self, message: bytes) -> bytes:
        """POST /echo."""
        return bytes(self._ask("/echo", message))

    def flight(self, messages: Sequence[bytes], in_flight: int) -> list[bytes]:
        """A connection for each under way."""
        return [bytes(answer) for answer in http1.flight(self._port, self.batched, messages, in_flight)]

    def read(self, array: Array) -> int:
        """POST /read."""
        found: int = struct.unpack("<q", self._ask("/read", array))[0]
        return found

    def make(self, nbytes: int, seed: int) -> Array:
        """POST /make."""
        return np.frombuffer(self._ask("/make", struct.pack("<qq", nbytes, seed)), np.uint8)


def make() -> list[Contender]:
    """The one here."""
    return [Mosec()]
