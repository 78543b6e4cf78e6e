"""LitServe: FastAPI in front of worker processes, arrays as raw HTTP bodies. `litserve_server.py` is the server."""

from __future__ import annotations

import importlib.util

from . import http1
from .base import Contender, NotHereError, free_port, run_server, wait_for
from .mosec_peer import Mosec


class LitServe(Mosec):
    """The paths and bodies are Mosec's."""

    name = "litserve"
    batched = "/echo"

    def start(self) -> None:
        """Until it answers."""
        if importlib.util.find_spec("litserve") is None:
            raise NotHereError("litserve is not installed")
        self._port = free_port()
        self._server = run_server("litserve_server", str(self._port))
        wait_for(lambda: http1.answers_at(self._port, "/echo", b"are you there?"), self._server)
        self._connection = http1.Connection(self._port)


def make() -> list[Contender]:
    """The one here."""
    return [LitServe()]
