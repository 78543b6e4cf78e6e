"""The fault matrix: a process of each role, killed or frozen at each step of a request's life, for each kind of it.

`test_matrix.py` names the cells. Clusters stand side by side, each in a thread of its own, and take cell after cell: a
fault is over when its cell is, and what it costs is mostly waiting.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

import tensoryard as ty
from tensoryard.client.client import Client
from tensoryard.deploy.chaos_client import TappedConnection
from tensoryard.deploy.chaos_watch import Known, Watch, in_use
from tensoryard.deploy.vitals import Vitals
from tensoryard.faults import Orders
from tensoryard.shm import Inspector

from ..conftest import wait_until
from .conftest import PIPELINES
from .matrix_requests import KINDS, SAMPLES, is_right, request

#: Deaths by silence and memory that nobody comes for are to be seen soon; all else is patient.
SETTINGS = ty.Settings(
    heartbeat_s=0.2,
    liveness_s=1.5,
    claim_timeout_s=3.0,
    reconnect_s=100.0,
    pool_budget_bytes=64 << 20,
)
#: A frozen coordinator is missed when it has been silent for so long, in seconds.
MISSED_S = 2.0
PATIENCE_S = 100.0


@dataclass(frozen=True)
class Cell:
    """One fault: who, where, what, amid which kind of request; at the so-manieth passing of the point."""

    role: str
    point: str
    fault: str
    kind: str
    passing: int = 1

    def __str__(self) -> str:
        nth = f"-{self.passing}" if self.passing > 1 else ""
        return f"{self.role}-{self.fault}-{self.point}{nth}-{self.kind}"


#: The environment is this process's, and each cluster begins with one of its own.
_one_environment = threading.Lock()


def deployments() -> list[ty.Deployment]:
    """Two workers for arrays of any size, two for streams."""
    return [
        ty.Deployment(
            model="echo",
            task=ty.PipelineTask.EMBEDDINGS_GENERATION,
            pipeline=f"{PIPELINES}:echo",
            replicas=2,
        ),
        ty.Deployment(
            model="drip",
            task=ty.PipelineTask.AUDIO_GENERATION,
            pipeline=f"{PIPELINES}:drip",
            options={"samples": SAMPLES},
            replicas=2,
        ),
    ]


@contextlib.contextmanager
def armed(folder: Path) -> Iterator[Orders]:
    """What is started inside looks for orders in a folder of its own, as long as it lives."""
    orders = Orders(folder)
    with _one_environment, pytest.MonkeyPatch.context() as patch:
        for name, value in orders.environment.items():
            patch.setenv(name, value)
        yield orders


def tapped(address: str, again: list[str]) -> ty.Client:
    """A client that notes each answer to a request whose answer it has."""
    connection = TappedConnection(address, SETTINGS, lambda *what: again.append(str(what)))
    connection.open(PATIENCE_S)
    return Client(connection)


class Cluster:
    """What is done to one cluster, whose processes obey `orders`; `folder` is for the orders to clients."""

    def __init__(self, yard: ty.Yard, orders: Orders, folder: Path) -> None:
        self._yard = yard
        self._orders = orders
        self._client_orders = Orders(folder)
        self._prefix = f"{yard.name}-"
        self._spare = self._start_client()
        self._looker = yard.connect(timeout_s=PATIENCE_S)
        self._cells = 0

    def warm_up(self) -> None:
        """All that a calm cluster opens is opened."""
        self._yard.wait_ready()
        self._watch = Watch(self._looker, prefix=self._prefix, alone=True, began=time.monotonic())
        with tapped(self._yard.address, []) as client:
            for number in range(4):
                self._all_are_answered([self._submit(client, kind, f"warm-{number}-{kind}") for kind in KINDS])
        before = self._settled()
        # What this very process has open changes by what other threads do.
        self._before = {process: found for process, found in before.items() if process.role != "chaos"}

    def run(self, cell: Cell) -> None:
        """The fault, and all that has to be true after it."""
        self._cells += 1
        try:
            self._run(cell)
        except Exception as error:
            error.add_note(self._tells(cell))
            raise

    def _run(self, cell: Cell) -> None:
        again: list[str] = []
        with tapped(self._yard.address, again) as client:
            if cell.role == "client":
                self._hurt_a_client(cell, client)
            else:
                self._hurt_the_cluster(cell, client)
            self._all_are_answered([self._submit(client, kind, f"later-{kind}") for kind in KINDS])
            wait_until(lambda: _used(client) == 0, "the client's memory has come back")
            wait_until(lambda: not self._held(), "the workers' memory has come back, while who has read it lives")
        assert not again, "a request was answered twice"
        self._settled(self._before)

    def _settled(self, before: dict[Known, Vitals] | None = None) -> dict[Known, Vitals]:
        """What each process has, once nothing is left of all requests, also on a machine that is very busy."""
        give_up = time.monotonic() + PATIENCE_S
        while True:
            found, problems = self._watch.settled(before)
            if not problems:
                return found
            assert time.monotonic() < give_up, problems

    def _hurt_the_cluster(self, cell: Cell, client: ty.Client) -> None:
        """Coordinator or worker: whose request it was, and who asks meanwhile, is answered."""
        self._orders.give(cell.point, cell.fault, passing=cell.passing)
        struck = self._submit(client, cell.kind, "struck")
        pid = self._wait_reached(self._orders, cell)
        others = [self._submit(client, kind, f"meanwhile-{kind}") for kind in KINDS]
        if cell.fault == "stop" and cell.role == "coordinator":
            wait_until(lambda: client._connection._session.silent_s > MISSED_S, "the coordinator is missed")
            os.kill(pid, signal.SIGCONT)
        self._all_are_answered([struck, *others])

    def _hurt_a_client(self, cell: Cell, client: ty.Client) -> None:
        """Others are served on; one that was frozen so long that it was forgotten has its answer all the same."""
        self._wait_spare()
        process, self._spare = self._spare, self._start_client()
        self._client_orders.give(cell.point, cell.fault, passing=cell.passing)
        print(cell.kind, self._name("struck"), file=process.stdin, flush=True)
        pid = self._wait_reached(self._client_orders, cell)
        assert pid == process.pid
        self._all_are_answered([self._submit(client, kind, f"meanwhile-{kind}") for kind in KINDS])
        if cell.fault == "stop":
            self._wait_spare()
            # Of this cluster there are the looker, the bystander, and the spare.
            wait_until(lambda: self._looker.status().clients == 3, "it is given up")
            os.kill(pid, signal.SIGCONT)
        said, _ = process.communicate(timeout=PATIENCE_S)
        if cell.fault == "stop":
            assert (said, process.returncode) == ("right\n", 0)
        else:
            assert process.returncode == -signal.SIGKILL

    def _held(self) -> list[str]:
        with Inspector() as inspector:
            return in_use(inspector.look(), prefix=self._prefix, owners=set())

    def _wait_reached(self, orders: Orders, cell: Cell) -> int:
        wait_until(lambda: orders.reached(cell.point), f"{cell.point} is reached")
        pid = orders.reached(cell.point)
        orders.withdraw(cell.point)
        wait_until(lambda: _state(pid) in ("T" if cell.fault == "stop" else "ZX"), "it is frozen, or dead")
        return pid

    # -- clients ------------------------------------------------------------------------------------------------------

    def _start_client(self) -> subprocess.Popen[str]:
        """Comes up while others work."""
        script = Path(__file__).with_name("matrix_client.py")
        command = [sys.executable, str(script), self._yard.address, msgspec.json.encode(SETTINGS).decode()]
        environment = {**os.environ, **self._client_orders.environment, "PYTHONPATH": _paths(script.parent)}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._spare_is_ready = False
        return subprocess.Popen(command, env=environment, text=True, **pipes)

    def _wait_spare(self) -> None:
        """Until the next client has joined."""
        if not self._spare_is_ready:
            assert self._spare.stdout.readline() == "ready\n"
            self._spare_is_ready = True

    def _name(self, what: str) -> str:
        return f"{self._prefix}{self._cells}-{what}"

    def _submit(self, client: ty.Client, kind: str, what: str) -> tuple[ty.Reply, str, str]:
        name = self._name(what)
        return client.submit(request(client, kind, name)), kind, name

    def _all_are_answered(self, asked: list[tuple[ty.Reply, str, str]]) -> None:
        for reply, kind, name in asked:
            assert is_right(reply.result(PATIENCE_S), kind, name), f"{name} got a wrong answer"

    def _tells(self, cell: Cell) -> str:
        """For a cell that failed: how the cluster looks, and what became of the request that was struck."""
        try:
            return f"{cell}: {self._looker.status()}; {self._looker.story(self._name('struck'))}"
        except Exception as error:
            return f"{cell}: {error!r}"

    def close(self) -> None:
        """Let go of the cluster."""
        self._spare.kill()
        self._spare.communicate()
        self._looker.close()


class Matrix:
    """The cells that are to be run, and their outcomes as they come."""

    def __init__(self, cells: list[Cell], folder: Path, clusters: int) -> None:
        self._outcomes: dict[Cell, Future[None]] = {cell: Future() for cell in cells}
        self._waiting: queue.SimpleQueue[Cell] = queue.SimpleQueue()
        for cell in cells:
            self._waiting.put(cell)
        self._numbers = iter(range(1000))
        self._folder = folder
        self._threads = [threading.Thread(target=self._work) for _ in range(min(clusters, len(cells)))]
        for thread in self._threads:
            thread.start()

    def outcome(self, cell: Cell) -> None:
        """Returns when a cell has passed; raises what it failed with."""
        self._outcomes[cell].result()

    def _work(self) -> None:
        while (cell := self._next()) is not None:
            self._run_some(cell)

    def _run_some(self, cell: Cell | None) -> None:
        """On a cluster of their own: cell after cell, until one fails."""
        number = next(self._numbers)
        try:
            with armed(_made(self._folder / f"cluster-{number}")) as orders:
                yard = ty.local(deployments(), runtime="process", settings=SETTINGS)
            with yard, contextlib.closing(Cluster(yard, orders, _made(self._folder / f"clients-{number}"))) as cluster:
                cluster.warm_up()
                while cell is not None:
                    cluster.run(cell)
                    self._outcomes[cell].set_result(None)
                    cell = self._next()
        except BaseException as error:
            self._outcomes[cell].set_exception(error)

    def _next(self) -> Cell | None:
        try:
            return self._waiting.get_nowait()
        except queue.Empty:
            return None

    def close(self) -> None:
        """Wait for what runs; nothing new begins."""
        while self._next() is not None:
            pass
        for thread in self._threads:
            thread.join()


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _paths(first: Path) -> str:
    return os.pathsep.join([str(first), *filter(None, [os.environ.get("PYTHONPATH")])])


def _used(client: ty.Client) -> int:
    return client._connection.pool.statistics().used_blocks


def _state(pid: int) -> str:
    """As the kernel names it: T is stopped, Z dead; X here: gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


#: What each role passes, once for a request; for an output of its; and where memory goes by handle.
ONCE = {
    "coordinator": ("on_submit", "before_request", "after_request", "before_final", "after_final"),
    "worker": ("on_request", "request_read"),
    "client": ("before_submit", "after_submit", "on_final"),
}
EACH = {
    "coordinator": ("on_outputs",),
    "worker": ("before_execute", "inside", "after_execute", "before_outputs", "after_outputs"),
    "client": (),
}
STREAM = {"coordinator": ("before_partial",), "worker": (), "client": ("on_partial",)}
HANDLE = {
    "coordinator": (),
    "worker": ("shm.allocated", "shm.sent"),
    "client": ("shm.claimed", "shm.before_release"),
}


def cells() -> list[Cell]:
    """All of them, in an order in which no role suffers many times in a row."""
    of_roles = [[Cell(role, *rest) for rest in _steps(role)] for role in ONCE]
    longest = max(len(of_role) for of_role in of_roles)
    return [of_role[number] for number in range(longest) for of_role in of_roles if number < len(of_role)]


def _steps(role: str) -> Iterator[tuple[str, str, str, int]]:
    """Point, fault, kind and passing: of a stream's outputs, the third."""
    for fault in ("kill", "stop"):
        for kind in KINDS:
            middle = 3 if kind == "stream" else 1
            yield from ((f"{role}.{point}", fault, kind, 1) for point in ONCE[role])
            yield from ((f"{role}.{point}", fault, kind, middle) for point in EACH[role])
            if kind != "small":
                yield from ((point, fault, kind, middle) for point in HANDLE[role])
        yield from ((f"{role}.{point}", fault, "stream", 2) for point in STREAM[role])
    if role == "client":
        yield from (("shm.allocated", fault, "handle", 1) for fault in ("kill", "stop"))
