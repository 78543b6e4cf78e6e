"""`tensoryard chaos`: load and faults against a cluster, and proof that nothing was lost, wrong, doubled or leaked.

Puts the parts together: clients (`chaos_clients.py`) keep the books (`chaos_books.py`), faults (`chaos_faults.py`) come
at moments drawn from a seed, and what processes hold is compared before and after (`chaos_watch.py`). On an embedded
cluster by default; on one that runs only after saying what will be done to it, and being told to.
"""

from __future__ import annotations

import contextlib
import dataclasses
import heapq
import itertools
import random
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from ..client import Client, connect
from ..client.connection import resolve_address
from ..coordinator.connection import connections
from ..errors import ConfigError, InvalidRequest, NotConnected, TensoryardError
from ..proto.embeddings import EmbeddingsRequest
from ..proto.outputs import served_tasks
from ..proto.pipeline import PipelineTask
from ..proto.request import RequestID
from ..proto.status import ClusterStatus
from ..settings import Settings, from_environment
from . import chaos_pipelines
from .chaos_books import LOST, WRONG
from .chaos_client import Order
from .chaos_clients import Clerk, Clients
from .chaos_faults import Arena, Fault, chosen_faults
from .chaos_jobs import Example, learn, write_examples
from .chaos_watch import Known, Series, Watch
from .local import local
from .running import is_kept, open_client, terminations_as_interrupts
from .text import duration, say, several, size, table
from .vitals import Vitals

#: Calm load before the faults: libraries load, pools and connections are made.
WARM_UP_S = 3.0
#: How long a cluster may take to be whole again after the last fault.
WHOLE_S = 120.0
READY_S = 180.0
#: The settings of an embedded cluster: what takes seconds to tens of seconds elsewhere is to happen often here.
SETTINGS: dict[str, Any] = {
    "heartbeat_s": 0.25,
    "liveness_s": 2.5,
    "pool_idle_s": 1.0,
    "claim_timeout_s": 5.0,
    "allocate_timeout_s": 1.0,
    "peer_backlog": 500,
    "drain_s": 10.0,
}
#: Shared memory of each worker, and of each client, of an embedded cluster: little enough to be full at times.
POOL_BYTES = 48 << 20
#: The same of a client that asks somebody else's models: all of it is taken at times, and the machine is theirs.
THEIR_POOL_BYTES = 256 << 20
#: How often a run that is longer than this (s) tells how it goes.
WORDS, LONG_S = 20, 60.0
#: Most lines of the timeline that are kept.
MAX_TIMELINE = 20_000
#: A long-lived process whose memory grows faster than this over a long run leaks.
LEAK_BYTES_PER_MIN = 4 << 20
LEAK_WATCH_S = 300.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to do. Without `address` and `name`: to the cluster that runs here, or to one of our own if none does.

    `embedded`: to one of our own in any case; `replicas` are its workers for each model.
    """

    address: str | None = None
    name: str | None = None
    embedded: bool = False
    runtime: Literal["ray", "process"] = "process"
    models: tuple[str, ...] = ()
    inputs: str | None = None
    duration_s: float = 60.0
    seed: int | None = None
    faults: str = "all"
    every_s: float = 2.0
    clients: int = 3
    in_flight: int = 6
    replicas: int = 2
    freeze_s: float = 4.0
    patience_s: float = 120.0
    hurt_coordinator: bool = False
    #: End the faults at the first violation.
    fail_fast: bool = False
    agreed: bool = False
    as_json: bool = False


class Moment(msgspec.Struct, frozen=True):
    """One line of the timeline; `at` in seconds since the run began."""

    at: float
    what: str
    detail: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a run came to. `orphaned`: requests whose client was killed before they ended."""

    seed: int
    cluster: str
    faults: list[str]
    took_s: float
    sent: int
    answered: int
    orphaned: int
    outcomes: dict[str, int]
    kinds: dict[str, int]
    wrong: int
    lost: int
    slowest_s: float
    injected: dict[str, int]
    violations: list[str]
    violation_count: int
    processes: list[Series]
    timeline: list[Moment]


@dataclass(kw_only=True)
class Target:
    """The cluster that is to suffer. `alone`: nobody else uses it. `models`: those whose workers may be hurt."""

    client: Client
    settings: Settings
    own: bool
    alone: bool
    restarts: bool
    says: str
    models: set[str] | None = None
    examples: list[Example] = field(default_factory=list)

    def request(self, request_id: str) -> Any:
        """A request that it serves."""
        if self.examples:
            return self.examples[0].request(RequestID(request_id))
        return EmbeddingsRequest(request_id=RequestID(request_id), model=chaos_pipelines.VECTORS, input=request_id)


def run(plan: Plan) -> int:
    """Do it, print the report; 0 when nothing was violated, 1 otherwise, 2 when it may not be done."""
    seed = plan.seed if plan.seed is not None else secrets.randbelow(1 << 32)
    with terminations_as_interrupts(), _target(plan) as target:
        faults = chosen_faults(plan.faults, own=target.own, restarts=target.restarts or plan.hurt_coordinator)
        if not target.own and not plan.agreed:
            say(_warning(plan, target, faults), error=True)
            return 2
        if not target.own:
            target.examples = _examples(plan, target)
        report = Run(plan, target, faults, seed).go()
    say(msgspec.json.format(msgspec.json.encode(report), indent=2).decode() if plan.as_json else describe(report))
    return 1 if report.violation_count else 0


# -- whom -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _target(plan: Plan) -> Iterator[Target]:
    if plan.embedded or (plan.address is None and plan.name is None and not _one_runs()):
        with _own_cluster(plan) as target:
            yield target
        return
    with open_client(address=plan.address, name=plan.name, timeout_s=10.0) as client:
        status = client.status()
        restarts = is_kept(status.name) and any(found.address == status.address for found in connections())
        yield Target(
            client=client,
            settings=dataclasses.replace(from_environment(), pool_budget_bytes=THEIR_POOL_BYTES),
            own=False,
            alone=status.clients <= 1,
            restarts=restarts,
            says=f"cluster {status.name!r} at {status.address}",
            models=set(_models(plan, status)),
        )


def _one_runs() -> bool:
    """Whether there is a cluster that a client without an address would find, or could be told of."""
    try:
        return bool(resolve_address(None))
    except NotConnected:
        return bool(connections())


@contextlib.contextmanager
def _own_cluster(plan: Plan) -> Iterator[Target]:
    if plan.models or plan.inputs:
        raise ConfigError("--model and --inputs are for a cluster that runs; an embedded one serves models of its own")
    deployments = chaos_pipelines.deployments(replicas=plan.replicas, pool_budget_bytes=POOL_BYTES)
    settings = Settings(**SETTINGS, pool_budget_bytes=POOL_BYTES)
    _say(plan, f"starting an embedded cluster ({plan.runtime} runtime): 3 models, {plan.replicas} workers each ...")
    with local(deployments, runtime=plan.runtime, settings=settings) as yard, terminations_as_interrupts():
        yard.wait_ready(READY_S)
        with yard.connect() as client:
            says = f"an embedded cluster ({plan.runtime} runtime)"
            yield Target(client=client, settings=settings, own=True, alone=True, restarts=True, says=says)


def _models(plan: Plan, status: ClusterStatus) -> list[str]:
    """The models that are asked, and whose workers are hurt: those named, or all that can be asked."""
    able = {model.model for model in status.models if model.task in served_tasks()}
    unknown = [model for model in plan.models if model not in able]
    if unknown or not able:
        raise InvalidRequest(f"no model {', '.join(unknown)} is served; served are {', '.join(sorted(able)) or 'none'}")
    models = list(plan.models) or sorted(able)
    if plan.inputs and len(models) != 1:
        raise InvalidRequest("--inputs is for one model: say which with --model")
    return models


def _examples(plan: Plan, target: Target) -> list[Example]:
    tasks = {model.model: PipelineTask(model.task) for model in target.client.status().models}
    models = sorted(target.models or ())
    _say(plan, f"asking {', '.join(models)} in calm, to know the right answers ...")
    # A client of its own: its pool is not to be counted among what is open when nobody asks anything.
    with connect(target.client.address, settings=target.settings) as client:
        examples = [example for model in models for example in learn(client, model, tasks[model], plan.inputs)]
    for model in {example.model for example in examples if not example.steady}:
        _say(plan, f"{model} does not answer the same twice: only shapes and dtypes are compared")
    return examples


def _warning(plan: Plan, target: Target, faults: list[Fault]) -> str:
    what = "\n".join(f"  - {fault.says}" for fault in faults) or "  - no harm"
    return (
        f"For {duration(plan.duration_s)}, about every {plan.every_s:g} s, chaos would do one of this to {target.says} "
        f"(workers of {', '.join(sorted(target.models or ()))}), under the load of {several(plan.clients, 'client')}:\n"
        f"{what}\nOther users' requests on it will be slowed down, run again, or fail. Say --yes to do that, or "
        "--embedded for a cluster of its own."
    )


# -- the run ----------------------------------------------------------------------------------------------------------


class Run:
    """One run, from calm to calm."""

    def __init__(self, plan: Plan, target: Target, faults: list[Fault], seed: int) -> None:
        self._plan = plan
        self._target = target
        self._faults = faults
        self._seed = seed
        self._rng = random.Random(f"{seed}/faults")  # noqa: S311 - to be the same again for the same seed
        self._prefix = f"chaos-{secrets.token_hex(3)}-"
        self._clerk = Clerk()
        self._began = time.monotonic()
        self._watch = Watch(target.client, prefix=self._prefix, alone=target.alone, began=self._began)
        self._timeline: list[Moment] = []
        self._injected: dict[str, int] = {}
        #: What is to be undone, by when.
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._sample_every_s = min(max(plan.duration_s / 120, 0.5), 10.0)
        self._next_sample = 0.0
        self._next_word = self._began + plan.duration_s / WORDS

    def go(self) -> Report:
        """Calm, harm, calm; and the report."""
        with tempfile.TemporaryDirectory(prefix="ty-chaos-") as folder:
            clients = Clients(self._order(Path(folder)), self._clerk, count=self._plan.clients)
            try:
                before = self._calm(clients)
                self._harm(clients)
                self._recover(clients)
                self._settle(before)
            finally:
                self._undo_all()
                clients.close()
        return self._report()

    def _order(self, folder: Path) -> Order:
        path = ""
        if self._target.examples:
            path = str(folder / "examples")
            write_examples(Path(path), self._target.examples)
        return Order(
            address=self._target.client.address,
            prefix=self._prefix,
            seed=str(self._seed),
            settings=self._target.settings,
            examples=path,
            in_flight=self._plan.in_flight,
            patience_s=self._plan.patience_s,
        )

    def _calm(self, clients: Clients) -> dict[Known, Vitals]:
        """Load without faults, then none: how things are when all is well."""
        self._note("calm", f"{several(self._plan.clients, 'client')} for {duration(WARM_UP_S)}, then a look around")
        if not self._target.alone:
            self._note("not alone", "others use this cluster: afterwards only what our own requests left is looked for")
        self._start(clients)
        self._go_on(clients, time.monotonic() + WARM_UP_S, [])
        clients.stop()
        before, problems = self._watch.settled(tell=self._waits)
        for problem in problems:
            self._violated(f"before any fault: {problem}")
        return before

    def _start(self, clients: Clients) -> None:
        clients.start()
        if not clients.wait_ready(time.monotonic() + READY_S):
            self._violated(f"not every client was let in within {duration(READY_S)}")

    def _harm(self, clients: Clients) -> None:
        self._start(clients)
        self._note("faults", ", ".join(fault.name for fault in self._faults) or "none")
        self._go_on(clients, time.monotonic() + self._plan.duration_s, self._faults)

    def _go_on(self, clients: Clients, until: float, faults: list[Fault]) -> None:
        """Let time pass: faults come, what is due is undone, processes are looked at."""
        arena = Arena(
            client=self._target.client,
            clients=clients,
            rng=self._rng,
            later=self._later,
            request=self._target.request,
            prefix=self._prefix,
            freeze_s=self._plan.freeze_s,
            models=self._target.models,
        )
        next_fault = time.monotonic() + self._pause()
        while (now := time.monotonic()) < until and not (self._plan.fail_fast and self._has_failed()):
            self._undo(now)
            if now >= self._next_sample:
                self._next_sample = now + self._sample_every_s
                self._watch.sample()
                self._say_how_it_goes(now)
            if faults and now >= next_fault:
                self._inject(self._rng.choices(faults, [fault.weight for fault in faults])[0], arena)
                next_fault = time.monotonic() + self._pause()
            wake = [until, self._next_sample, *([next_fault] if faults else []), *(due[0] for due in self._due[:1])]
            time.sleep(max(min(wake) - time.monotonic(), 0.0))

    def _say_how_it_goes(self, now: float) -> None:
        """Now and then, in a long run."""
        if now < self._next_word or self._plan.duration_s < LONG_S:
            return
        self._next_word = now + self._plan.duration_s / WORDS
        with self._clerk.books() as books:
            so_far = f"{books.sent} sent, {books.answered} answered, {several(books.violation_count, 'violation')}"
        self._note("so far", f"{so_far}; at most: {self._watch.now()}")

    def _pause(self) -> float:
        return self._rng.expovariate(1 / self._plan.every_s)

    def _inject(self, fault: Fault, arena: Arena) -> None:
        try:
            did = fault.do(arena)
        except Exception as error:  # as when descriptors run out: the cluster is to be blamed for nothing by that
            self._note(fault.name, f"could not be done: {error!r}")
            return
        if did is not None:
            self._injected[fault.name] = self._injected.get(fault.name, 0) + 1
            self._note(fault.name, did)

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._due, (time.monotonic() + seconds, next(self._numbers), action))

    def _undo(self, now: float) -> None:
        while self._due and self._due[0][0] <= now:
            heapq.heappop(self._due)[2]()

    def _undo_all(self) -> None:
        self._undo(float("inf"))

    def _recover(self, clients: Clients) -> None:
        """No more harm: the cluster is to be whole again, and every request is to have its answer."""
        self._undo_all()
        self._note("calm", "waiting until every model has its workers and every request its answer")
        started = time.monotonic()
        missing = self._wait_whole(started + WHOLE_S)
        if missing:
            self._violated(f"{duration(WHOLE_S)} after the last fault the cluster is not whole: {missing}")
        else:
            self._note("whole", f"after {duration(time.monotonic() - started)}")
        clients.stop()
        with self._clerk.books() as books:
            books.check_balance()

    def _wait_whole(self, give_up: float) -> str:
        while True:
            missing = _missing(self._target)
            if not missing or time.monotonic() > give_up:
                return missing
            time.sleep(0.1)

    def _settle(self, before: dict[Known, Vitals]) -> None:
        self._watch.sample()
        _, problems = self._watch.settled(before, tell=self._waits)
        for problem in [*problems, *_grown(self._watch.series())]:
            self._violated(problem)

    def _waits(self, for_what: str) -> None:
        self._note("waiting", for_what)

    def _has_failed(self) -> bool:
        with self._clerk.books() as books:
            return books.violation_count > 0

    def _violated(self, text: str) -> None:
        with self._clerk.books() as books:
            books.violated(text)

    def _note(self, what: str, detail: str) -> None:
        moment = Moment(round(time.monotonic() - self._began, 1), what, detail)
        if len(self._timeline) < MAX_TIMELINE:
            self._timeline.append(moment)
        _say(self._plan, _line(moment))

    def _report(self) -> Report:
        with self._clerk.books() as books:
            return Report(
                seed=self._seed,
                cluster=self._target.says,
                faults=[fault.name for fault in self._faults],
                took_s=time.monotonic() - self._began,
                sent=books.sent,
                answered=books.answered,
                orphaned=books.orphaned,
                outcomes=dict(books.outcomes),
                kinds=dict(books.kinds),
                wrong=books.outcomes[WRONG],
                lost=books.outcomes[LOST],
                slowest_s=books.slowest_s,
                injected=self._injected,
                violations=list(books.violations),
                violation_count=books.violation_count,
                processes=self._watch.series(),
                timeline=self._timeline,
            )


def _missing(target: Target) -> str:
    """Which models have fewer workers than they should; "" when none has."""
    try:
        models = target.client.status(timeout_s=2.0).models
    except TensoryardError as error:
        return error.text
    wanted = [model for model in models if target.models is None or model.model in target.models]
    return ", ".join(f"{model.model} {model.unhealthy or 'lacks workers'}" for model in wanted if not model.is_ready)


def _grown(processes: list[Series]) -> list[str]:
    """Long-lived processes whose memory grew all the time."""
    return [
        f"{series.name} (pid {series.pid}) grew by {size(slope)} a minute over {duration(series.watched_s)}"
        for series in processes
        if series.watched_s > LEAK_WATCH_S and (slope := series.slope_bytes_per_min or 0.0) > LEAK_BYTES_PER_MIN
    ]


# -- telling ----------------------------------------------------------------------------------------------------------

#: Rows of the table of processes.
MAX_ROWS = 12
_PROCESS_HEAD = ("PROCESS", ">PID", ">WATCHED", ">PRIVATE", ">THEN", ">PER MINUTE", ">FDS", ">THEN", ">MAPS", ">THEN")


def _say(plan: Plan, text: str) -> None:
    """While it runs; with --json that is not the command's result."""
    say(text, error=plan.as_json)


def _line(moment: Moment) -> str:
    return f"{moment.at:>8.1f} s  {moment.what:<18}  {moment.detail}"


def describe(report: Report) -> str:
    """The report as text; the timeline has been told while it happened."""
    return "\n\n".join(part for part in (_books_text(report), _processes_text(report), _verdict(report)) if part)


def _books_text(report: Report) -> str:
    outcomes = ", ".join(f"{count} {name}" for name, count in sorted(report.outcomes.items(), key=lambda i: -i[1]))
    kinds = ", ".join(f"{count} {name}" for name, count in sorted(report.kinds.items()))
    injected = ", ".join(f"{count} {name}" for name, count in report.injected.items()) or "none"
    return (
        f"\n{report.cluster}, {duration(report.took_s)}, seed {report.seed}\n"
        f"faults: {injected}\n"
        f"requests sent: {report.sent} ({kinds})\n"
        f"terminal answers received: {report.answered}, and {report.orphaned} died with a killed client\n"
        f"outcomes: {outcomes}; the slowest took {duration(report.slowest_s)}"
    )


def _processes_text(report: Report) -> str:
    rows = [_process_row(series) for series in report.processes[:MAX_ROWS]]
    return table(_PROCESS_HEAD, rows) if rows else ""


def _process_row(series: Series) -> tuple[object, ...]:
    slope = series.slope_bytes_per_min
    told = "-" if slope is None else f"{'+' if slope >= 0 else '-'}{size(abs(slope))}"
    memory = [size(count) for count in series.private_bytes]
    return (
        series.name,
        series.pid,
        duration(series.watched_s),
        *memory,
        told,
        *series.descriptors,
        *series.mappings,
    )


def _verdict(report: Report) -> str:
    if not report.violation_count:
        return (
            f"{report.sent} requests sent = {report.answered} answered + {report.orphaned} without a client; "
            "0 wrong, 0 twice, 0 lost, nothing leaked"
        )
    lines = [f"VIOLATION: {text}" for text in report.violations]
    more = report.violation_count - len(report.violations)
    lines += [f"and {several(more, 'violation')} more"] if more else []
    total = several(report.violation_count, "violation")
    return "\n".join([*lines, f"{total}; the same faults in the same order again: --seed {report.seed}"])
