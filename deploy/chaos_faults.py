"""The faults of `tensoryard chaos`: what each does, to whom, and for how long.

A fault is a function that does its work now, leaves to `later` what is to be undone, and says what it did, or None when
there was nobody to do it to. Which comes when is drawn in `chaos.py`, from the seed; processes are signalled only as
`chaos_victims.py` and `chaos_clients.py` let them be.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..client import Client
from ..errors import ConfigError
from ..shm import Inspector
from .chaos_clients import ClientProcess, Clients
from .chaos_strangers import Deaf, babble
from .chaos_victims import ASK_S, Victim, find_coordinator, find_workers

#: How long processes are stopped, in seconds; the longest is the plan's own.
SHORT_FREEZES_S = (0.2, 1.0)
#: Nothing replaces a coordinator that is only stopped, and clients give it up after `reconnect_s`.
COORDINATOR_FREEZE_S = 3.0
#: How long results are held, and a pool kept full.
HOLD_S = (1.0, 4.0)
#: Requests of a client that never reads.
DEAF_REQUESTS = 150

Later = Callable[[float, Callable[[], None]], None]


@dataclass(kw_only=True)
class Arena:
    """What faults act on. `later(seconds, action)`: undo something then, at the end of the run at the latest.

    `models`: whose workers may be hurt, None: all. `request(request_id)`: a request that the cluster serves.
    """

    client: Client
    clients: Clients
    rng: random.Random
    later: Later
    request: Callable[[str], Any]
    prefix: str
    freeze_s: float
    models: set[str] | None = None
    _strays: int = field(default=0, init=False)

    def freeze_time(self) -> float:
        """How long this one is stopped: as a hiccup, or until it is given up."""
        return self.rng.choice((*SHORT_FREEZES_S, self.freeze_s))

    def one_client(self) -> ClientProcess | None:
        """A client process of ours."""
        able = [client for client in self.clients.present if client.is_alive and client.ready.is_set()]
        return self.rng.choice(able) if able else None

    def stray_requests(self, count: int) -> list[Any]:
        """Requests whose answers nobody reads."""
        self._strays += 1
        return [self.request(f"{self.prefix}deaf-{self._strays}-{number}") for number in range(count)]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One way to do harm. `weight`: how often, compared with the others; `says`: what is told before it is allowed.

    `own_only`: only on a cluster of our own; `restarts`: only where something starts a new coordinator.
    """

    name: str
    weight: int
    says: str
    do: Callable[[Arena], str | None]
    own_only: bool = False
    restarts: bool = False


# -- workers and coordinator ------------------------------------------------------------------------------------------


def _with_worker(arena: Arena, act: Callable[[Victim], str | None]) -> str | None:
    """One worker; the others that were looked at are let go of. The act keeps or closes its own."""
    victims = find_workers(arena.client, models=arena.models)
    if not victims:
        return None
    chosen = arena.rng.choice(victims)
    for victim in victims:
        if victim is not chosen:
            victim.close()
    return act(chosen)


def _kill(victim: Victim) -> str | None:
    with victim:
        return str(victim) if victim.signal(signal.SIGKILL) else None


def _freeze(arena: Arena, victim: Victim, seconds: float) -> str | None:
    if not victim.signal(signal.SIGSTOP):
        victim.close()
        return None

    def thaw() -> None:
        with victim:
            victim.signal(signal.SIGCONT)

    arena.later(seconds, thaw)
    return f"{victim} for {seconds:.1f} s"


def worker_kill(arena: Arena) -> str | None:
    """Kill -9 of a worker."""
    return _with_worker(arena, _kill)


def worker_freeze(arena: Arena) -> str | None:
    """SIGSTOP of a worker, SIGCONT later, if it has not been replaced."""
    return _with_worker(arena, lambda victim: _freeze(arena, victim, arena.freeze_time()))


def coordinator_kill(arena: Arena) -> str | None:
    """Kill -9 of the coordinator."""
    victim = find_coordinator(arena.client)
    return _kill(victim) if victim is not None else None


def coordinator_freeze(arena: Arena) -> str | None:
    """SIGSTOP of the coordinator, SIGCONT soon."""
    victim = find_coordinator(arena.client)
    seconds = arena.rng.choice((*SHORT_FREEZES_S, COORDINATOR_FREEZE_S))
    return _freeze(arena, victim, seconds) if victim is not None else None


# -- clients ----------------------------------------------------------------------------------------------------------


def client_kill(arena: Arena) -> str | None:
    """Kill -9 of a client process of ours; another takes its place."""
    client = arena.one_client()
    if client is None:
        return None
    client.kill()
    arena.clients.start()
    return f"{client.name} (pid {client.pid})"


def client_freeze(arena: Arena) -> str | None:
    """SIGSTOP of a client process of ours: nobody reads its answers for a while."""
    client = arena.one_client()
    if client is None:
        return None
    seconds = arena.freeze_time()
    client.signal(signal.SIGSTOP)
    arena.later(seconds, lambda: client.signal(signal.SIGCONT))
    return f"{client.name} (pid {client.pid}) for {seconds:.1f} s"


def full_pool(arena: Arena) -> str | None:
    """A client of ours takes all of its own pool: what it sends meanwhile finds no room."""
    client = arena.one_client()
    if client is None:
        return None
    seconds = arena.rng.uniform(*HOLD_S)
    client.tell("fill", seconds)
    return f"{client.name} for {seconds:.1f} s"


def poison(arena: Arena) -> str | None:
    """A request that kills each worker that runs it."""
    client = arena.one_client()
    if client is None:
        return None
    client.tell("poison")
    return f"by {client.name}"


def hang(arena: Arena) -> str | None:
    """A request that its worker never has done with: each is found by its want of progress, and replaced."""
    client = arena.one_client()
    if client is None:
        return None
    client.tell("hang")
    return f"by {client.name}"


def slow_reader(arena: Arena) -> str | None:
    """A client of ours keeps its results, so that workers' pools fill; a stranger asks much and never reads."""
    client = arena.one_client()
    seconds = arena.rng.uniform(*HOLD_S)
    if client is not None:
        client.tell("hold", seconds)
    deaf = Deaf(arena.client.address, arena.stray_requests(DEAF_REQUESTS))
    arena.later(seconds, deaf.end)
    return f"{client.name if client else 'nobody'} keeps its results, a stranger reads nothing, for {seconds:.1f} s"


def corrupt(arena: Arena) -> str | None:
    """A stranger sends broken messages to the coordinator, and to the doors of the workers' pools."""
    workers = find_workers(arena.client, models=arena.models)
    pids = {victim.pid for victim in workers}
    for victim in workers:
        victim.close()
    with Inspector() as inspector:
        pools = [report.pool for report in inspector.look(timeout_s=ASK_S, max_blocks=1) if report.pid in pids]
    (request,) = arena.stray_requests(1)
    address, ids = arena.client.address, arena.clients.live_ids()
    return babble(address, arena.rng, request=request, their_ids=ids, pools=pools)


# Each deadly request costs three workers of one model their lives, which are replaced ever later: few of those.
FAULTS = (
    Fault(name="worker-kill", weight=12, says="kill -9 workers", do=worker_kill),
    Fault(name="worker-freeze", weight=8, says="SIGSTOP workers, and SIGCONT them later", do=worker_freeze),
    Fault(name="coordinator-kill", weight=4, says="kill -9 the coordinator", do=coordinator_kill, restarts=True),
    Fault(name="coordinator-freeze", weight=4, says="SIGSTOP the coordinator for up to 3 s", do=coordinator_freeze,
          restarts=True),
    Fault(name="client-kill", weight=6, says="kill -9 client processes of its own", do=client_kill),
    Fault(name="client-freeze", weight=4, says="SIGSTOP client processes of its own", do=client_freeze),
    Fault(name="corrupt", weight=4, says="send broken messages to coordinator and pools", do=corrupt),
    Fault(name="slow-reader", weight=4, says="hold results, and ask without reading the answers", do=slow_reader),
    Fault(name="full-pool", weight=4, says="fill the pools of its own clients", do=full_pool),
    Fault(name="hang", weight=1, says="send requests that never end", do=hang, own_only=True),
    Fault(name="poison", weight=1, says="send requests that kill their workers", do=poison, own_only=True),
)  # fmt: skip


def chosen_faults(text: str, *, own: bool, restarts: bool) -> list[Fault]:
    """The faults that a comma-separated list names (`all`, `none`, names, or their beginnings), and that are possible.

    `own`: the cluster is our own; `restarts`: something starts a new coordinator. Named by `all`, what is impossible is
    left out; named by itself, it is a ConfigError, as is a name that there is not.
    """
    found: list[Fault] = []
    for word in (part.strip() for part in text.split(",")):
        if word in ("none", ""):
            continue
        named = [fault for fault in FAULTS if word in {"all", fault.name} or fault.name.startswith(f"{word}-")]
        if not named:
            raise ConfigError(f"--faults knows no {word!r}; known are all, none, {_names(FAULTS)}")
        possible = [fault for fault in named if (own or not fault.own_only) and (restarts or not fault.restarts)]
        if not possible:
            raise ConfigError(_why_not(named))
        found += [fault for fault in possible if fault not in found]
    return found


def _why_not(faults: Sequence[Fault]) -> str:
    if any(fault.own_only for fault in faults):
        return f"{_names(faults)}: only on an embedded cluster"
    return (
        f"{_names(faults)}: nothing that is known of starts this coordinator anew when it dies (`tensoryard up` does); "
        "--hurt-coordinator does it all the same"
    )


def _names(faults: Sequence[Fault]) -> str:
    return ", ".join(fault.name for fault in faults)
