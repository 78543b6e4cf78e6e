"""What `tensoryard chaos` sees of the cluster's processes: what they have open over time, and forgot to close.

Looks at /proc and at the leak ledger; `compare` and `slope_per_minute` are pure. `chaos.py` asks before, during and
after.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from ..client import Client
from ..coordinator.connection import connections
from ..errors import TensoryardError
from ..proto.status import ClusterStatus
from ..shm import Inspector, PoolReport, host_name
from .text import several, size
from .vitals import Vitals, started_ticks, vitals

#: How long what is on its way back may take to arrive, and how often it is looked for.
SETTLE_S = 45.0
_POLL_S = 0.1
#: When what is waited for is told.
_TELL_S = 3.0
#: What libraries open once, when they are first used: seven by pyzmq's collector of large frames. A process may have so
#: many descriptors more than before, however long the run.
ONCE_DESCRIPTORS = 8
#: Samples of one process in the report.
MAX_SAMPLES = 60
#: Samples of a process before its slope is worth telling.
MIN_SAMPLES = 8
_ASK_S = 2.0


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """One process: what it is (a worker of which model, the coordinator), its name, and its id for ever."""

    role: str
    name: str
    pid: int
    started: int

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


@dataclass(frozen=True)
class Sample:
    """One look at one process; `at` in seconds since the run began."""

    at: float
    found: Vitals


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """How one process grew: seconds watched; first and last of each figure; memory per minute, None while unknown.

    `samples`: (seconds since the run began, private bytes, descriptors, mappings), some of those that were taken.
    """

    role: str
    name: str
    pid: int
    watched_s: float
    private_bytes: tuple[int, int]
    descriptors: tuple[int, int]
    mappings: tuple[int, int]
    slope_bytes_per_min: float | None
    samples: list[tuple[float, int, int, int]] = []


class Watch:
    """Looks at the processes of one cluster."""

    def __init__(self, client: Client, *, prefix: str, alone: bool, began: float) -> None:
        """`prefix`: of our RequestIDs; `alone`: nobody else uses the cluster, so that all it holds is ours."""
        self._client = client
        self._prefix = prefix
        self._alone = alone
        self._began = began
        self._samples: dict[Known, list[Sample]] = {}
        self._present: set[Known] = set()

    def processes(self) -> list[Known]:
        """Those that are there now: coordinator, workers of this host, and the process that we are in."""
        found = [("chaos", "chaos itself", os.getpid())]
        status = self._status()
        if status is not None:
            found += [("coordinator", "coordinator", pid) for pid in _coordinator_pids(status)]
            found += [
                (f"worker of {model.model}", worker.name, worker.pid)
                for model in status.models
                for worker in model.workers
                if worker.state == "ready" and worker.host == host_name()
            ]
        known = [Known(role=role, name=name, pid=pid, started=started_ticks(pid)) for role, name, pid in found]
        return [process for process in known if process.started]

    def _status(self) -> ClusterStatus | None:
        try:
            return self._client.status(timeout_s=_ASK_S)
        except TensoryardError:
            return None

    def sample(self) -> None:
        """Look at every process; also at those that the coordinator cannot tell of just now."""
        looked_at = {*self.processes(), *self._present}
        for process in looked_at:
            found = vitals(process.pid) if started_ticks(process.pid) == process.started else None
            if found is not None:
                self._samples.setdefault(process, []).append(Sample(time.monotonic() - self._began, found))
        self._present = {process for process in looked_at if started_ticks(process.pid) == process.started}

    def now(self) -> str:
        """The last look in a line: the most that a process of each kind has."""
        latest: dict[str, list[Vitals]] = {}
        for process in self._present & self._samples.keys():
            latest.setdefault(process.role.partition(" ")[0], []).append(self._samples[process][-1].found)
        return "; ".join(f"{role} {_most(found)}" for role, found in sorted(latest.items()))

    def series(self) -> list[Series]:
        """What each process did over time, the longest watched first."""
        found = [_series(process, samples) for process, samples in self._samples.items() if len(samples) > 1]
        return sorted(found, key=lambda series: -series.watched_s)

    def snapshot(self) -> dict[Known, Vitals]:
        """What each process has at this moment."""
        return {process: found for process in self.processes() if (found := vitals(process.pid)) is not None}

    def settled(
        self,
        before: dict[Known, Vitals] | None = None,
        *,
        tell: Callable[[str], None] = lambda _text: None,
    ) -> tuple[dict[Known, Vitals], list[str]]:
        """Wait until everything has come back; the snapshot then, and what has not come after SETTLE_S.

        With `before`, descriptors too are to be as they were. `tell` is told what is waited for, should it take long.
        """
        started = time.monotonic()
        told = False
        while True:
            with Inspector() as inspector:  # a new one each time: its connections are not to be counted among the rest
                reports = inspector.look(timeout_s=_ASK_S)
            problems = self._held(reports)
            snapshot = self.snapshot()
            if self._alone:
                problems += leftovers(snapshot, {r.pid: r.statistics.segments for r in reports if r.statistics})
                problems += compare(before, snapshot) if before is not None else []
            waited_s = time.monotonic() - started
            if not problems or waited_s > SETTLE_S:
                return snapshot, problems
            if waited_s > _TELL_S and not told:
                told = True
                tell("; ".join(problems))
            time.sleep(_POLL_S)

    def _held(self, reports: Sequence[PoolReport]) -> list[str]:
        """Shared memory and requests that nobody should hold any more."""
        status = self._status()
        if status is None:
            return ["the coordinator does not answer"]
        workers = {f"worker {worker.name}" for model in status.models for worker in model.workers}
        problems = in_use(reports, prefix=self._prefix, owners=workers if self._alone else set())
        if self._alone and status.live_requests:
            problems.append(f"{several(status.live_requests, 'request')} still live in the coordinator")
        return problems


def _coordinator_pids(status: ClusterStatus) -> list[int]:
    return [found.pid for found in connections() if found.address == status.address]


# -- pure -------------------------------------------------------------------------------------------------------------


def in_use(reports: Iterable[PoolReport], *, prefix: str, owners: set[str]) -> list[str]:
    """What the ledger says is still held: blocks of our requests, and anything at all in the pools of `owners`."""
    problems = []
    for report in reports:
        whose = f"{report.owner or 'process'} (pid {report.pid})"
        ours = report.owner in owners
        if ours and report.trouble:
            problems.append(f"the pool of {whose} does not tell: {report.trouble}")
        kept = [block for block in report.blocks if ours or block.request_id.startswith(prefix)]
        if kept:
            total = size(sum(block.size_bytes for block in kept))
            names = ", ".join(f"{block.request_id or 'no request'} [{block.state}]" for block in kept[:5])
            problems.append(f"{several(len(kept), 'block')} ({total}) still in use at {whose}: {names}")
        if ours and report.statistics is not None and report.statistics.readers:
            problems.append(f"{several(report.statistics.readers, 'reader')} still connected to {whose}")
    return problems


def leftovers(now: dict[Known, Vitals], segments: dict[int, int]) -> list[str]:
    """Shared memory that workers still have open or mapped besides the segments of their own pools, by process id.

    Each segment has one mapping and two descriptors, its own and its mapping's. Without clients there are no others.
    """
    problems = []
    for process, found in now.items():
        own = segments.get(process.pid, 0)
        fds, maps = found.memory_descriptors - 2 * own, found.memory_mappings - own
        if process.role.startswith("worker") and (fds > 0 or maps > 0):
            problems.append(f"{process} still has {fds} descriptors and {maps} mappings of others' shared memory")
    return problems


def compare(before: dict[Known, Vitals], after: dict[Known, Vitals]) -> list[str]:
    """What processes have more than before: each than itself, a new one than the like of it that had most."""
    problems = []
    for process, now in after.items():
        alike = [found for known, found in before.items() if known.role == process.role]
        then = before.get(process) or max(alike, key=lambda found: found.descriptors, default=now)
        if now.descriptors > then.descriptors + ONCE_DESCRIPTORS:
            more = Counter(now.kinds)
            more.subtract(then.kinds)
            what = ", ".join(f"{count:+d} {kind}" for kind, count in sorted(more.items()) if count)
            problems.append(f"{process} has {now.descriptors} descriptors open, and {then.descriptors} before: {what}")
    return problems


def _series(process: Known, samples: Sequence[Sample]) -> Series:
    first, last = samples[0], samples[-1]

    def ends(figure: Callable[[Vitals], int]) -> tuple[int, int]:
        return figure(first.found), figure(last.found)

    return Series(
        role=process.role,
        name=process.name,
        pid=process.pid,
        watched_s=last.at - first.at,
        private_bytes=ends(lambda found: found.private_bytes),
        descriptors=ends(lambda found: found.descriptors),
        mappings=ends(lambda found: found.mappings),
        samples=[_figures(sample) for sample in samples[:: -(-len(samples) // MAX_SAMPLES)]],
        slope_bytes_per_min=slope_per_minute([(sample.at, sample.found.private_bytes) for sample in samples]),
    )


def _most(found: Sequence[Vitals]) -> str:
    private = size(max(vital.private_bytes for vital in found))
    return (
        f"{private}, {max(vital.descriptors for vital in found)} descriptors, "
        f"{max(vital.mappings for vital in found)} mappings"
    )


def _figures(sample: Sample) -> tuple[float, int, int, int]:
    found = sample.found
    return round(sample.at, 1), found.private_bytes, found.descriptors, found.mappings


def slope_per_minute(points: Sequence[tuple[float, float]]) -> float | None:
    """Growth per minute by least squares over the later two thirds of (seconds, value); None for too few points.

    The first third is left out: caches fill, and libraries are loaded.
    """
    later = points[len(points) // 3 :]
    if len(points) < MIN_SAMPLES:
        return None
    mean_at = sum(at for at, _ in later) / len(later)
    mean_value = sum(value for _, value in later) / len(later)
    spread = sum((at - mean_at) ** 2 for at, _ in later)
    if not spread:
        return None
    return 60 * sum((at - mean_at) * (value - mean_value) for at, value in later) / spread
