"""What a seed decides beforehand: who is there, what is asked, what goes wrong and when. Plain data.

`run.py` acts it out. A part of a plan is a plan too, which is how a failing one is made smaller.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import tensoryard as ty
from tensoryard.proto.deployment import Deployment
from tensoryard.settings import Settings

EMBED = ty.PipelineTask.EMBEDDINGS_GENERATION
SPEAK = ty.PipelineTask.AUDIO_GENERATION
#: Asks come within so many seconds.
LOAD_S = 4.0
#: Arrays from this size on go by handle.
THRESHOLD_BYTES = 512
#: What a pipeline can be told to do with a request; the rest of `KINDS` never gets that far.
RUNS = ("plain", "fail", "explode", "poison", "hang", "hang_once", "unsendable")
KINDS = (*RUNS, "stranger", "wrong_task", "bad_option")


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One request that a caller means to make."""

    at: float
    client: int
    deployment: int
    kind: str = "plain"
    #: Bytes of its input; 0: a text.
    size: int = 0
    #: Whether the input is written where it will be sent from.
    in_place: bool = False
    #: Bytes of each of its outputs, and whether the pipeline writes them where they are sent from.
    answer_size: int = 64
    answer_in_place: bool = False
    #: Outputs of a stream.
    parts: int = 1
    run_s: float = 0.1
    deadline_s: float | None = None
    priority: int = 0
    #: Seconds after which the caller does not want it any more.
    cancel_s: float | None = None
    #: Seconds that its caller keeps the answer.
    hold_s: float = 0.0
    #: Seconds that its caller takes to read one output; None: it takes the whole as it comes.
    reads_in_s: float | None = None
    #: Whether its client tries again by itself (`ty.Retry`).
    patient: bool = False
    #: The earlier ask that it shares its RequestID with.
    again: int | None = None
    #: Times that the caller asks again when it is told that it may.
    retries: int = 0


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that goes wrong. `pick` chooses among those it can happen to."""

    what: str
    pick: float
    #: When: after so many seconds, or events; or at the `nth` message of a name, before or after it is read.
    at: float | None = None
    at_event: int | None = None
    at_message: tuple[str, int, str] | None = None
    #: Seconds until it is over.
    for_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Serves:
    """A deployment, and how its workers come up."""

    deployment: Deployment
    max_batch_size: int
    pool_segments: int
    #: Starts that fail, of the first workers.
    fails_to_start: int = 0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One schedule."""

    seed: int
    settings: Settings
    #: Whether a fleet keeps the workers; else each is started again by hand.
    fleet: bool
    clients: int
    #: Whether the processes of the coordinator's host are linked by UNIX sockets; else, as all others, by ZeroMQ.
    unix: bool
    #: Of each client, whether it knows messages that came later than the first ones.
    modern: tuple[bool, ...]
    #: Of each client, whether the coordinator sees it end, and its host.
    seen: tuple[bool, ...]
    far: tuple[bool, ...]
    client_pool_segments: int
    serves: tuple[Serves, ...]
    asks: tuple[Ask, ...]
    faults: tuple[Fault, ...]
    latency_s: float
    #: Chance of a message to be lost, doubled or overtaken.
    hostility: float = 0.0
    #: A client asks for the end of the cluster when the load is over.
    shutdown: bool = False
    #: Waiting requests are bounded so low that some are refused.
    tight: bool = False

    def without(self, faults=(), asks=()):
        """The plan less these faults and asks, by their places; asks keep their numbers."""
        kept = tuple(fault for number, fault in enumerate(self.faults) if number not in faults)
        left = tuple(None if number in asks else ask for number, ask in enumerate(self.asks))
        return replace(self, faults=kept, asks=left)


def make_plan(seed, *, hostile=False):
    """The plan of a seed."""
    rng = random.Random(f"{seed}: the plan")
    tight = rng.random() < 0.2
    serves = _serves(rng, tight)
    clients = rng.randint(2, 4)
    fleet = rng.random() < 0.85
    two_hosts = rng.random() < 0.1
    return Plan(
        seed=seed,
        settings=_settings(rng, random.Random(f"{seed}: the bounds"), tight),
        fleet=fleet,
        clients=clients,
        unix=rng.random() < 0.6,
        modern=tuple(rng.random() < 0.9 for _ in range(clients)),
        seen=tuple(rng.random() < 0.8 for _ in range(clients)),
        far=tuple(two_hosts and rng.random() < 0.5 for _ in range(clients)),
        client_pool_segments=rng.choice((2, 4, 50)),
        serves=serves,
        asks=_asks(rng, clients, serves, fleet=fleet),
        faults=_faults(rng, fleet=fleet),
        latency_s=rng.choice((0.0005, 0.002, 0.02)),
        hostility=rng.choice((0.01, 0.05)) if hostile else 0.0,
        shutdown=rng.random() < 0.05,
        tight=tight,
    )


def _settings(rng, bounds, tight):
    heartbeat_s = rng.choice((1.0, 2.0, 3.0))
    return Settings(
        heartbeat_s=heartbeat_s,
        liveness_s=heartbeat_s * rng.choice((2.0, 3.0)),
        reconnect_s=rng.choice((4.0, 8.0, 20.0)),
        orphan_s=rng.choice((6.0, 20.0, 60.0)),
        settle_s=heartbeat_s + rng.choice((2.0, 4.0)),
        claim_timeout_s=rng.choice((4.0, 10.0)),
        pool_idle_s=rng.choice((1.0, 30.0)),
        drain_s=rng.choice((3.0, 10.0)),
        peer_backlog=rng.choice((20, 1000)),
        max_in_flight=rng.choice((4, 8)) if tight else 4096,
        max_in_flight_bytes=bounds.choice((4000, 4 << 30)) if tight else 4 << 30,
        max_kept_bytes=bounds.choice((1500, 4 << 30)) if tight else 4 << 30,
        allocate_timeout_s=1.0,
        stream_window_parts=rng.choice((1, 2, 3, 256)),
        stream_window_bytes=rng.choice((1000, 64 << 20)),
        unread_s=rng.choice((2.0, 40.0)),
    )


def _serves(rng, tight):
    tasks = rng.choice(((EMBED,), (EMBED, SPEAK), (EMBED, EMBED), (EMBED, SPEAK, EMBED), (SPEAK,)))
    return tuple(_one_served(rng, number, task, tight) for number, task in enumerate(tasks))


def _one_served(rng, number, task, tight):
    max_batch_size = rng.choice((1, 2, 4))
    deployment = Deployment(
        model=f"m{number}",
        task=task,
        pipeline="sim:sim",
        replicas=rng.choice((1, 1, 2, 2, 3)),
        max_wait_ms=rng.choice((0.0, 2.0, 200.0)),
        max_ongoing_requests=rng.choice((None, 1, 6)),
        max_queued=rng.choice((1, 3)) if tight else 10_000,
        max_queued_bytes=rng.choice((2000, 8 << 30)) if tight else 8 << 30,
        hang_limit_s=rng.choice((3.0, 6.0)),
    )
    fails = rng.choice((1, 2, 5)) if rng.random() < 0.1 else 0
    return Serves(
        deployment=deployment,
        max_batch_size=max_batch_size,
        pool_segments=rng.choice((1, 3, 50)),
        fails_to_start=fails,
    )


def _asks(rng, clients, serves, *, fleet):
    count = rng.randint(1, rng.choice((6, 6, 12, 36)))
    times = sorted(rng.uniform(0.0, LOAD_S) for _ in range(count))
    return tuple(_ask(rng, number, at, clients, serves, fleet=fleet) for number, at in enumerate(times))


def _ask(rng, number, at, clients, serves, *, fleet):
    deployment = rng.randrange(len(serves))
    streams = serves[deployment].deployment.task is SPEAK
    return Ask(
        at=at,
        client=rng.randrange(clients),
        deployment=deployment,
        kind=_kind(rng, fleet=fleet),
        size=rng.choice((0, 0, 64, 600, 1500, 5000)),
        in_place=rng.random() < 0.5,
        answer_size=rng.choice((64, 64, 800, 1600, 6000)),
        answer_in_place=rng.random() < 0.5,
        parts=rng.choice((1, 2, 3, 4, 8)) if streams else 1,
        run_s=rng.choice((0.01, 0.1, 0.5, 1.5)),
        deadline_s=rng.choice((0.0, 0.2, 1.0, 3.0, 8.0)) if rng.random() < 0.2 else None,
        priority=rng.choice((-1, 0, 0, 0, 5)),
        cancel_s=rng.choice((0.0, 0.05, 0.5, 2.0)) if rng.random() < 0.15 else None,
        hold_s=rng.choice((0.0, 0.0, 1.0, 8.0, 60.0)),
        again=rng.randrange(number) if number and rng.random() < 0.12 else None,
        retries=rng.choice((0, 0, 1, 3)),
        reads_in_s=rng.choice((None, None, 0.01, 0.3, 4.0)),
        patient=rng.random() < 0.3,
    )


def _kind(rng, *, fleet):
    if rng.random() < 0.8:
        return "plain"
    # Without a fleet nobody ends a worker that hangs.
    kinds = [kind for kind in KINDS if fleet or "hang" not in kind]
    weights = [3 if kind in ("fail", "poison", "hang_once") else 1 for kind in kinds]
    return rng.choices(kinds, weights)[0]


#: What can happen, and how often, compared.
FAULTS = {
    "redeploy": 2,
    "kill worker": 5,
    "kill client": 2,
    "kill coordinator": 4,
    "kill fleet": 1,
    "freeze worker": 3,
    "freeze client": 2,
    "freeze coordinator": 2,
    "freeze fleet": 1,
    "pause host": 1,
    "partition": 3,
    "lose host": 2,
    "reset": 2,
    "slow reader": 2,
    "drain worker": 2,
    "close client": 1,
    "leap": 2,
    "fill pool": 2,
}
#: Those that can strike whoever reads, or sent, a message.
_AT_MESSAGE = ("kill reader", "kill sender", "freeze reader", "freeze sender", "reset sender")
_MESSAGES = (
    "HELLO", "WELCOME", "READY", "DEPLOYMENTS", "SUBMIT", "REQUEST", "OUTPUTS", "PARTIAL", "FINAL", "ERROR", "CANCEL",
    "CANCEL_WORK", "DISCARD", "HEARTBEAT", "DRAIN", "REJOIN", "WORKER_NOTICE",
)  # fmt: skip


def _faults(rng, *, fleet):
    """Of all kinds, or of a few, so that one does not hide what another would show."""
    kinds = list(FAULTS) if rng.random() < 0.4 else rng.sample(list(FAULTS), rng.randint(1, 4))
    at_messages = rng.choice((0.0, 0.3, 0.3, 0.8))
    return tuple(_fault(rng, kinds, at_messages, fleet=fleet) for _ in range(rng.choice((1, 3, 4, 5, 6, 7, 12))))


def _fault(rng, kinds, at_messages, *, fleet):
    for_s = rng.choice((0.05, 0.5, 2.0, 4.0, 7.0))
    if rng.random() < at_messages:
        trigger = (rng.choice(_MESSAGES), rng.randint(1, 12), rng.choice(("before", "after")))
        return Fault(what=rng.choice(_AT_MESSAGE), pick=rng.random(), at_message=trigger, for_s=for_s)
    what = rng.choices(kinds, [FAULTS[kind] for kind in kinds])[0]
    if not fleet and "fleet" in what:
        what = "kill worker"
    if rng.random() < 0.4:
        return Fault(what=what, pick=rng.random(), at_event=rng.randint(20, 800), for_s=for_s)
    return Fault(what=what, pick=rng.random(), at=rng.uniform(0.0, LOAD_S + 1.0), for_s=for_s)
