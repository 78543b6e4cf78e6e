"""Starting and killing workers: as plain processes here; as Ray actors in `ray_runtime.py`.

`fleet_runner.py` uses either through the one interface below.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from ..errors import ShuttingDown
from ..logs import logger
from ..proto.deployment import Deployment
from ..settings import Settings

log = logger(__name__)

#: What numerical libraries read for their number of threads.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
#: Called from any thread when a worker has ended: its name, and how.
OnEnd = Callable[[str, str], None]


class Launcher(Protocol):
    """What a fleet needs to run workers."""

    def unplaced(self) -> dict[str, str]:
        """Workers that were launched a while ago and have no place to run yet: their names, and what is missing."""

    def doomed(self) -> set[str]:
        """Workers whose place is about to go, by their names."""

    def plan(self, wanted: Sequence[tuple[Deployment, int]]) -> None:
        """How many workers of each deployment are wanted now; a cluster that can grow may prepare for them."""

    def launch(self, name: str, deployment: Deployment, address: str, on_end: OnEnd) -> None:
        """Start a worker; `on_end` is called once when it has ended, and never when this raises."""

    def kill(self, name: str) -> None:
        """End a worker at once; unknown names are ignored."""

    def close(self) -> None:
        """End every worker at once and wait for it. Again is harmless; nothing can be launched any more."""


class Order(msgspec.Struct, frozen=True):
    """What a worker process is started with. As msgpack: JSON would change options such as infinity or bytes."""

    deployment: Deployment
    settings: Settings


class ProcessLauncher:
    """Workers as child processes of this one; they end when it does, even by `kill -9`, and their own children too."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        #: As it is now: a worker that takes another's place is to find what that one found.
        self._environment = dict(os.environ)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()
        self._watchers: list[threading.Thread] = []
        self._closed = False
        # Held open by us alone: the workers see the other end close when we are gone.
        self._life_read, self._life_write = os.pipe2(os.O_CLOEXEC)
        _launchers.add(self)

    def unplaced(self) -> dict[str, str]:
        """A process starts at once."""
        return {}

    def doomed(self) -> set[str]:
        """This machine stays."""
        return set()

    def plan(self, wanted: Sequence[tuple[Deployment, int]]) -> None:
        """This machine is as large as it is."""

    def launch(self, name: str, deployment: Deployment, address: str, on_end: OnEnd) -> None:
        """Start a worker process in a session of its own, so that Ctrl-C is ours to act on."""
        with _memory_file(msgspec.msgpack.encode(Order(deployment, self._settings))) as order_fd, self._lock:
            if self._closed:
                raise ShuttingDown("this launcher is closed")
            command = [sys.executable, "-m", "tensoryard.workers", "--connect", address, "--name", name]
            command += ["--order-fd", str(order_fd), "--life-fd", str(self._life_read)]
            process = subprocess.Popen(
                command,
                pass_fds=[order_fd, self._life_read],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=child_environment(deployment, own=self._environment),
            )
            self._processes[name] = process
            watcher = threading.Thread(target=self._watch, args=(name, process, on_end, _oom_kills()), daemon=True)
            self._watchers = [thread for thread in self._watchers if thread.is_alive()] + [watcher]
            watcher.start()

    def _watch(self, name: str, process: subprocess.Popen[bytes], on_end: OnEnd, oom_kills: int) -> None:
        with contextlib.suppress(ChildProcessError):  # where this program ignores SIGCHLD
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            # Only now is the process reaped, so that nobody signals another one that was given its number.
            _kill_group(process.pid)
            self._processes.pop(name, None)
            code = process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        if code == -signal.SIGKILL and _oom_kills() > oom_kills:
            how += "; meanwhile the kernel has killed processes of this machine because memory ran out"
            log.warning("the process of worker %s %s", name, how)
        on_end(name, f"its process {how}")

    def kill(self, name: str) -> None:
        """SIGKILL, for the worker and what it started."""
        with self._lock:
            process = self._processes.get(name)
            if process is not None:
                _kill_group(process.pid)

    def close(self) -> None:
        """SIGKILL for all, then wait until they are gone."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for process in self._processes.values():
                _kill_group(process.pid)
        for watcher in self._watchers:
            watcher.join(timeout=10)
        self._close_pipe()

    def _close_pipe(self) -> None:
        os.close(self._life_read)
        os.close(self._life_write)

    def _forget(self) -> None:
        """In a forked child: it must neither keep its parent's workers alive nor end them."""
        self._lock = threading.Lock()
        self._processes, self._watchers = {}, []
        if not self._closed:
            self._closed = True
            self._close_pipe()

    def pids(self) -> dict[str, int]:
        """The processes that run now."""
        with self._lock:
            return {name: process.pid for name, process in self._processes.items()}


@contextlib.contextmanager
def _memory_file(data: bytes) -> Iterator[int]:
    """A descriptor to read `data` from: an argument of a command is bounded, and seen by everybody."""
    with os.fdopen(os.memfd_create("tensoryard-order", os.MFD_CLOEXEC), "wb") as file:
        file.write(data)
        file.flush()
        file.seek(0)
        yield file.fileno()


def _oom_kills() -> int:
    """How many processes of this machine the kernel has killed because memory ran out; 0 where it does not tell."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def _kill_group(pid: int) -> None:
    """SIGKILL for a process of ours that leads its group, not yet reaped, and for what it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


#: Launchers of this process, for the fork handler.
_launchers: weakref.WeakSet[ProcessLauncher] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for launcher in list(_launchers):
        launcher._forget()  # noqa: SLF001 - this module's own class


os.register_at_fork(after_in_child=_after_fork_in_child)


def child_environment(deployment: Deployment | None = None, *, own: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a child of ours, made from our `own`; None: as it is now.

    PYTHONSAFEPATH keeps the working folder off sys.path, where a folder `proto` would shadow the package that Ray's
    dependencies use. A worker computes with as many threads as it was given CPUs, as under Ray: libraries that each
    take all cores would stand in each other's way. One without a GPU of its own must not see anybody's.
    """
    environment = {**(os.environ if own is None else own), "PYTHONSAFEPATH": "1"}
    if deployment is not None:
        for name in _THREAD_VARIABLES:
            environment.setdefault(name, str(max(1, int(deployment.num_cpus))))
        if not deployment.num_gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ""
    return environment
