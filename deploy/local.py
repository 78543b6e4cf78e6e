"""An embedded cluster: coordinator, fleet and workers on this machine, for as long as a `with` block.

The same parts as in production, under one of two runtimes: `ray` (actors of a local or existing Ray cluster) or
`process` (child processes: tests, laptops). `cli.py` and the demo stand on it.
"""

from __future__ import annotations

import logging
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal, Protocol, Self

import msgspec

from ..client import Client, connect
from ..errors import ConfigError, DeploymentUnhealthy
from ..proto.deployment import Deployment
from ..settings import Settings, from_environment
from ..workers.fleet import Expectation
from ..workers.fleet_runner import FleetRunner
from ..workers.launchers import ProcessLauncher, child_environment

log = logging.getLogger(__name__)

_STOP_TIMEOUT_S = 10.0
_POLL_S = 0.05
#: A coordinator that dies sooner than this after its start is replaced with growing delay.
_QUICK_DEATH_S = 2.0
_FIRST_DELAY_S = 0.1
_MAX_DELAY_S = 5.0


def local(
    deployments: Sequence[Deployment],
    *,
    runtime: Literal["ray", "process"] = "ray",
    name: str | None = None,
    settings: Settings | None = None,
) -> Yard:
    """Start a cluster on this machine; use as a context manager, or call `close`.

    `name` (say "default") is what clients on this host find it by without an address; None gives it a name of its own.
    Returns when the coordinator listens; workers come up behind it (`Yard.wait_ready`), requests wait for them.

    Raises ConfigError for a name that is taken, two deployments of one model, or an unknown runtime.
    """
    check_models(deployments)
    settings = settings or from_environment()
    name = name or f"local-{secrets.token_hex(4)}"
    if runtime == "process":
        return Yard(name, ProcessRuntime(name, deployments, settings), deployments, settings)
    if runtime == "ray":
        from .ray_local import RayRuntime

        return Yard(name, RayRuntime(name, deployments, settings), deployments, settings)
    raise ConfigError(f"`runtime` is 'ray' or 'process', not {runtime!r}")


def check_models(deployments: Sequence[Deployment]) -> None:
    """ConfigError for two deployments of one model."""
    models = [deployment.model for deployment in deployments]
    twice = sorted({model for model in models if models.count(model) > 1})
    if twice:
        raise ConfigError(f"more than one deployment serves model {', '.join(twice)}; one model has one deployment")


def wait_settled(look: Callable[[], Sequence[Expectation]], give_up: float) -> None:
    """Wait until every deployment is as it should be, as its fleet knows it. `give_up` in monotonic seconds.

    Raises DeploymentUnhealthy for one that is given up; TimeoutError with what is still awaited.
    """
    while True:
        expected = look()
        if all(found.is_settled for found in expected):
            return
        for found in expected:
            if found.unhealthy:
                raise DeploymentUnhealthy(f"model {found.deployment.model!r} cannot start: {found.unhealthy}")
        if time.monotonic() > give_up:
            waiting = [_unsettled(found) for found in expected if not found.is_settled]
            raise TimeoutError(f"still without all workers: {'; '.join(waiting)}")
        time.sleep(_POLL_S)


def _unsettled(found: Expectation) -> str:
    pending = f" ({found.pending})" if found.pending else ""
    return f"model {found.deployment.model!r} has {found.ready} of {found.replicas} workers{pending}"


class Runtime(Protocol):
    """What a cluster runs in."""

    address: str

    def deploy(self, deployments: Sequence[Deployment]) -> None:
        """Change what should run: the complete list."""

    def expectations(self) -> Sequence[Expectation]:
        """How far each deployment is."""

    def close(self) -> None:
        """Drain and end everything."""

    def wait_ended(self) -> None:
        """Wait until a client has shut the cluster down."""


class Yard:
    """A running embedded cluster."""

    def __init__(self, name: str, runtime: Runtime, deployments: Sequence[Deployment], settings: Settings) -> None:
        self.name = name
        self._models = {deployment.model for deployment in deployments}
        self.address = runtime.address
        self._runtime = runtime
        self._settings = settings
        self._closed = False

    def connect(self, *, timeout_s: float = 10.0) -> Client:
        """A client of this cluster."""
        return connect(self.address, timeout_s=timeout_s, settings=self._settings)

    def deploy(self, deployments: Sequence[Deployment]) -> None:
        """Change what runs to this complete list, one worker after the other: requests go on being served.

        Returns at once (`wait_ready` waits). Raises ConfigError for two deployments of one model.
        """
        check_models(deployments)
        self._models = {deployment.model for deployment in deployments}
        self._runtime.deploy(deployments)

    def wait_ready(self, timeout_s: float = 120.0) -> None:
        """Wait until every deployment has all its workers, and after a change none of the earlier kind.

        Raises DeploymentUnhealthy, with the traceback, for one whose pipeline cannot start; TimeoutError otherwise.
        """
        give_up = time.monotonic() + timeout_s
        wait_settled(self._runtime.expectations, give_up)
        with self.connect() as client:
            while True:
                models = [model for model in client.status().models if model.model in self._models]
                for model in models:
                    if model.unhealthy and not model.workers:
                        raise DeploymentUnhealthy(f"model {model.model!r} cannot start: {model.unhealthy}")
                if len(models) == len(self._models) and all(model.is_ready for model in models):
                    return
                if time.monotonic() > give_up:
                    waiting = sorted(self._models - {model.model for model in models if model.is_ready})
                    raise TimeoutError(f"after {timeout_s} s still without all workers: {', '.join(waiting)}")
                time.sleep(_POLL_S)

    def wait_ended(self) -> None:
        """Wait until somebody shuts the cluster down (`tensoryard down`)."""
        self._runtime.wait_ended()

    def close(self) -> None:
        """Let workers finish what they hold, then end everything. Again is harmless."""
        if not self._closed:
            self._closed = True
            self._runtime.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ProcessRuntime:
    """Coordinator and workers as child processes, the fleet as a thread of this one."""

    def __init__(self, name: str, deployments: Sequence[Deployment], settings: Settings) -> None:
        self._coordinator = CoordinatorProcess(name, settings)
        self.address = self._coordinator.address
        self._launcher = ProcessLauncher(settings)
        self._fleet = FleetRunner(
            address=self.address,
            deployments=deployments,
            launcher=self._launcher,
            settings=settings,
        )
        self._fleet.start()

    def deploy(self, deployments: Sequence[Deployment]) -> None:
        """To the fleet."""
        self._fleet.deploy(deployments)

    def expectations(self) -> Sequence[Expectation]:
        """From the fleet."""
        return self._fleet.expectations()

    def close(self) -> None:
        """Drain the fleet, then end the coordinator."""
        self._fleet.close()
        self._coordinator.close()

    def wait_ended(self) -> None:
        """The coordinator ends last."""
        self._coordinator.ended.wait()

    @property
    def coordinator_pid(self) -> int:
        """For people and tests."""
        return self._coordinator.pid

    def worker_pids(self) -> dict[str, int]:
        """For people and tests."""
        return self._launcher.pids()


class CoordinatorProcess:
    """A coordinator as a child process, started anew when it is killed; it ends when we do."""

    def __init__(self, name: str, settings: Settings) -> None:
        self._command = [sys.executable, "-m", "tensoryard.coordinator", "--expects-fleet", "--name", name]
        self._command += ["--settings", msgspec.json.encode(settings).decode()]
        self._environment = child_environment()
        # Held open by us alone: the child sees the other end close when we are gone.
        self._life_read, self._life_write = os.pipe2(os.O_CLOEXEC)
        self._closing = threading.Event()
        self.ended = threading.Event()
        self._process, self.address = self._start()
        threading.Thread(target=self._supervise, name="tensoryard-supervisor", daemon=True).start()

    @property
    def pid(self) -> int:
        """The process that serves at present."""
        return self._process.pid

    def _start(self) -> tuple[subprocess.Popen[bytes], str]:
        """A process, and the address that it tells through a pipe once it listens."""
        ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
        with os.fdopen(ready_read) as told:
            try:
                process = subprocess.Popen(
                    [*self._command, "--ready-fd", str(ready_write), "--life-fd", str(self._life_read)],
                    pass_fds=[ready_write, self._life_read],
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                    env=self._environment,
                )
            finally:
                os.close(ready_write)
            line = told.readline().strip()
        if not line.startswith("address "):
            process.wait()
            raise ConfigError(line.removeprefix("error ") or "the coordinator did not start; see what it printed")
        return process, line.removeprefix("address ")

    def _supervise(self) -> None:
        """Crash-only: one that was killed or failed is replaced at the same address; one that left has ended."""
        delay_s, started = 0.0, time.monotonic()
        while (code := self._process.wait()) != 0 and not self._closing.is_set():
            how = f"was killed by signal {-code}" if code < 0 else f"failed (exit code {code})"
            log.warning("the coordinator %s; starting a new one", how)
            # At once, unless it dies as soon as it is there, again and again.
            soon = time.monotonic() - started < _QUICK_DEATH_S
            delay_s = min(max(2 * delay_s, _FIRST_DELAY_S), _MAX_DELAY_S) if soon else 0.0
            self._closing.wait(delay_s)
            started = time.monotonic()
            self._start_again()
        self.ended.set()

    def _start_again(self) -> None:
        """A new one; where that fails, `_supervise` sees that it has ended, and tries again."""
        try:
            self._process, _ = self._start()
        except (ConfigError, OSError) as error:
            log.error("the coordinator could not be started again: %s", error)  # noqa: TRY400 - it has said why
        if self._closing.is_set():
            self._process.terminate()

    def close(self) -> None:
        """End it, and wait."""
        self._closing.set()
        self._process.terminate()
        if not self.ended.wait(_STOP_TIMEOUT_S):
            self._process.kill()
            self.ended.wait(_STOP_TIMEOUT_S)
        os.close(self._life_read)
        os.close(self._life_write)
