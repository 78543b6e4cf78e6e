"""Starting and killing workers: as plain processes here; as Ray actors in `ray_runtime.py`.

`fleet_runner.py` uses either through the one interface below.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Protocol

import msgspec

from ..proto.deployment import Deployment
from ..settings import Settings

log = logging.getLogger(__name__)

#: Called from any thread when a worker has ended: its name, and how.
OnEnd = Callable[[str, str], None]


class Launcher(Protocol):
    """What a fleet needs to run workers."""

    def launch(self, name: str, deployment: Deployment, address: str, on_end: OnEnd) -> None:
        """Start a worker; `on_end` is called once when it has ended, also when it could not be started."""

    def kill(self, name: str) -> None:
        """End a worker at once; unknown names are ignored."""

    def close(self) -> None:
        """End every worker at once and wait for it."""


class ProcessLauncher:
    """Workers as child processes of this one; they end when it does, even by `kill -9`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = msgspec.json.encode(settings).decode()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()
        self._watchers: list[threading.Thread] = []
        # Held open by us alone: the workers see the other end close when we are gone.
        self._life_read, self._life_write = os.pipe2(os.O_CLOEXEC)

    def launch(self, name: str, deployment: Deployment, address: str, on_end: OnEnd) -> None:
        """Start a worker process in a session of its own, so that Ctrl-C is ours to act on."""
        command = [sys.executable, "-m", "tensoryard.workers", "--connect", address, "--name", name]
        command += ["--deployment", msgspec.json.encode(deployment).decode()]
        command += ["--settings", self._settings, "--life-fd", str(self._life_read)]
        process = subprocess.Popen(
            command,
            pass_fds=[self._life_read],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=child_environment(deployment),
        )
        with self._lock:
            self._processes[name] = process
        watcher = threading.Thread(target=self._watch, args=(name, process, on_end), daemon=True)
        self._watchers = [thread for thread in self._watchers if thread.is_alive()] + [watcher]
        watcher.start()

    def _watch(self, name: str, process: subprocess.Popen[bytes], on_end: OnEnd) -> None:
        code = process.wait()
        with self._lock:
            self._processes.pop(name, None)
        on_end(name, f"its process was killed by signal {-code}" if code < 0 else f"its process ended with code {code}")

    def kill(self, name: str) -> None:
        """SIGKILL."""
        with self._lock:
            process = self._processes.get(name)
        if process is not None:
            process.kill()

    def close(self) -> None:
        """SIGKILL for all, then wait until they are gone."""
        with self._lock:
            processes = list(self._processes.values())
        for process in processes:
            process.kill()
        for watcher in self._watchers:
            watcher.join(timeout=10)
        os.close(self._life_read)
        os.close(self._life_write)

    def pids(self) -> dict[str, int]:
        """The processes that run now."""
        with self._lock:
            return {name: process.pid for name, process in self._processes.items()}


def child_environment(deployment: Deployment | None = None) -> dict[str, str]:
    """The environment of a child of ours.

    PYTHONSAFEPATH keeps the working folder off sys.path, where a folder `proto` would shadow the package that Ray's
    dependencies use. A worker without a GPU of its own must not see anybody's.
    """
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    if deployment is not None and not deployment.num_gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return environment
