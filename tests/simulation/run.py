"""One schedule from beginning to end: the plan of a seed is acted out, and what must hold is checked.

The load, with faults; then a calm, in which every request must end; then callers let go of everything, and nothing may
be left in any book.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import logging
import os
import traceback
from dataclasses import dataclass, field, replace

from . import memory
from .checks import Ledger, leftovers
from .client import Client
from .coordinator import Coordinator
from .faults import Faults, Tripwires
from .fleet import ByHand, FleetProcess
from .network import Network
from .plan import LOAD_S, make_plan
from .world import Violation, World

#: After the last fault, every request ends within so many seconds. Requests that kill workers make it long: each takes
#: three, and a fleet starts them later and later.
SETTLES_IN_S = 900.0
#: And so many seconds later nothing is left of any. Callers may still be asking again, and some results are claimed by
#: nobody.
CLEARS_IN_S = 300.0
_LOOK_S = 1.0
#: After each event the books of the processes that it touched are checked; after every so many, all.
_LOOK_AT_ALL = 64
#: A coordinator that nobody stops, or a shutdown, has this long.
_SHUTS_DOWN_IN_S = 60.0


class Site:
    """Everything that is there."""

    def __init__(self, plan):
        self.plan = plan
        self.world = World(plan.seed)
        self.ledger = Ledger()
        self.memory = memory.Memory(self.world)
        self.tripwires = Tripwires()
        self.network = Network(self.world, plan)
        self.faults = Faults(self)
        self.workers = []
        self.clients = []
        self.fleet = None
        #: RequestIDs that a pipeline hung for once.
        self.lost_on_purpose = set()
        #: How far clocks leapt, together.
        self.leapt_s = 0.0
        #: A coordinator opened its doors before its fleet had spoken.
        self.unheard_fleet = False
        self.shutting_down = False
        #: Workers that something went wrong with, and that ended before the fleet knew that they were ready.
        self.died_starting = 0
        self._lives = {}
        self._starts = {}
        #: By number of the ask: its RequestID, and its ask and number as they were.
        self._asked = {}
        self._numbers = 0

    def start(self):
        """Bring everything up, and set what is going to happen."""
        self._start_coordinator()
        if self.plan.fleet:
            self._start_fleet()
        self._by_hand = ByHand(self, () if self.plan.fleet else self.plan.serves)
        for number in range(self.plan.clients):
            self._start_client(number)
        for number, ask in enumerate(self.plan.asks):
            if ask is not None:
                self.world.later(ask.at, self._ask, number, ask)
        self.faults.set(self.plan.faults)
        for _ in range(3):
            self.world.later(self.world.rng.uniform(0, LOAD_S), self._ask_status)
        if self.plan.shutdown:
            self.world.later(LOAD_S, self._shut_down)

    # -- processes ----------------------------------------------------------------------------------------------------

    def _life(self, name):
        self._lives[name] = self._lives.get(name, 0) + 1
        return self._lives[name]

    def _start_coordinator(self):
        if self.network.hub is None:
            Coordinator(self, self._life("coordinator"))

    def _start_fleet(self):
        self.fleet = FleetProcess(self, self._life("fleet"))

    def _start_client(self, number):
        client = Client(self, number, self._life(f"client-{number}"))
        before = [client for client in self.clients if client.number == number]
        self.clients.append(client)
        if before:
            for asked in self.ledger.asked:
                if asked.client is before[-1] and asked.outcome is None:
                    client.later(0.1, client.ask, asked.ask, asked.request_id, asked.number, asked.retries)

    def restart_of(self, process):
        """What brings a process back, where that is not somebody else's business."""
        if isinstance(process, Client):
            return lambda: self._start_client(process.number)
        if isinstance(process, Coordinator):
            return self._start_coordinator
        if isinstance(process, FleetProcess):
            return self._start_fleet
        return None

    def peers(self):
        """Processes with a session, that live."""
        fleet = [self.fleet] if self.fleet is not None else []
        return [process for process in (*self.clients, *self.workers, *fleet) if process.alive]

    def processes(self):
        """All that live."""
        return self.peers() + ([self.network.hub] if self.network.hub is not None else [])

    def forget(self):
        """The world is over; its story is left."""
        self.world._queue.clear()
        self.faults._to_undo.clear()
        for asked in self.ledger.asked:
            asked.held.clear()
            asked.reply = None
        for process in {*self.clients, *self.workers, *self.processes()}:
            process.forget()

    def check_books(self):
        """What must hold after every event, in every process that lives."""
        for process in self.processes():
            process.check_books()

    def process_ended(self, peer):
        """The coordinator may see it."""
        if self.network.hub is not None:
            self.network.hub.process_ended(peer)

    def pipelines(self):
        """Every pipeline there was."""
        return [worker.pipeline for worker in self.workers if worker.pipeline is not None]

    def served(self, ask):
        """What an ask is for."""
        return self.plan.serves[ask.deployment]

    def fails_to_start(self, serves):
        """Whether this start fails."""
        starts = self._starts[serves.deployment.name] = self._starts.get(serves.deployment.name, 0) + 1
        return starts <= serves.fails_to_start

    def _ask_status(self):
        client = self.world.rng.choice(self.clients)
        if client.alive and not client.frozen:
            client.ask_status()

    def _shut_down(self):
        for client in self.clients:
            if client.alive and not client.frozen and not self.shutting_down:
                self.shutting_down = client.shut_down()
        if self.shutting_down:
            self.world.note("shutdown")
            self.faults.struck["shutdown"] = 1
            self._by_hand.stopped = True

    # -- requests -----------------------------------------------------------------------------------------------------

    def _ask(self, number, ask):
        client = [client for client in self.clients if client.number == ask.client][-1]
        if client.alive and not client.frozen:
            request_id, ask, value = self._identity(number, ask)
            self._asked[number] = (request_id, ask, value)
            client.ask(ask, request_id, value, ask.retries)

    def _identity(self, number, ask):
        """RequestID and number. An id that was used before goes with the same request, or with another."""
        self._numbers += 1
        if ask.again not in self._asked:
            return f"r{number}", ask, self._numbers
        request_id, before, value = self._asked[ask.again]
        if self.world.rng.random() < 0.5:
            return request_id, ask, self._numbers
        same = {"at": ask.at, "client": ask.client, "cancel_s": ask.cancel_s, "hold_s": ask.hold_s}
        return request_id, replace(before, **same), value


@dataclass
class Result:
    """What came of a schedule."""

    seed: int
    violation: Violation | None
    events: int
    seconds: float
    outcomes: dict = field(default_factory=dict)
    faults: dict = field(default_factory=dict)
    #: What happened to messages, and how many there were.
    messages: dict = field(default_factory=dict)
    site: Site | None = None

    @property
    def trace_hash(self):
        """The same for the same events."""
        digest = hashlib.blake2b(digest_size=16)
        for line in self.site.world.trace:
            digest.update(repr(line).encode())
        return digest.hexdigest()


def run_seed(seed, *, hostile=False):
    """The schedule of a seed."""
    return run_plan(make_plan(seed, hostile=hostile))


def run_plan(plan):
    """Act a plan out."""
    with _on_host("h1"):
        return _act_out(plan)


def _act_out(plan):
    site = Site(plan)
    violation = None
    with memory.small_segments(), _quiet():
        try:
            _play(site)
        except Violation as error:
            violation = error
        except Exception as error:
            violation = Violation(f"{error!r}\n{traceback.format_exc()}")
            violation.__cause__ = error
    site.forget()
    world = site.world
    return Result(
        plan.seed,
        violation,
        world.events,
        world.now,
        site.ledger.outcomes,
        site.faults.struck,
        site.network.counts,
        site,
    )


@contextlib.contextmanager
def _on_host(name):
    """While inside, this process is on a host of that name; what starts later is not to find it in its environment."""
    before = os.environ.get("TENSORYARD_HOST")
    os.environ["TENSORYARD_HOST"] = name
    try:
        yield
    finally:
        del os.environ["TENSORYARD_HOST"]
        if before is not None:
            os.environ["TENSORYARD_HOST"] = before


@contextlib.contextmanager
def _quiet():
    """While inside, nothing is logged, since what goes wrong is meant to, and no memory is given back by chance."""
    before, collects = logging.root.manager.disable, gc.isenabled()
    logging.disable(logging.CRITICAL)
    gc.disable()
    try:
        yield
    finally:
        logging.disable(before)
        if collects:
            gc.enable()


def _play(site):
    world = site.world

    def after_event():
        site.faults.after_event(world.events)
        for process in world.touched if world.events % _LOOK_AT_ALL else site.processes():
            if process.alive:
                process.check_books()
        world.touched.clear()

    world.after_event = after_event
    site.start()
    world.run(LOAD_S + 1.0)
    world.run(LOAD_S + 10.0, lambda: site.faults.calm)
    site.faults.end()
    world.note("calm")
    site.check_books()
    if site.plan.hostility:
        _let_go(site)
        world.run(world.now + 5.0)
        site.check_books()
        return
    if (
        not world.run(world.now + SETTLES_IN_S, lambda: world.events % 8 == 0 and not site.ledger.open())
        and site.ledger.open()
    ):
        asked = site.ledger.open()[0]
        raise Violation(f"{asked.request_id} of {asked.client.name} never ended", asked.request_id)
    _clear(site)
    site.check_books()


def _let_go(site):
    """Callers keep no answer any longer."""
    for asked in site.ledger.asked:
        if asked.reply is not None and asked.outcome is not None:
            asked.let_go()


def _clear(site):
    """Nothing may be left, soon, when callers keep nothing; some of them are still asking again."""
    give_up = site.world.now + CLEARS_IN_S
    while True:
        _let_go(site)
        left = leftovers(site)
        if not left:
            return
        if site.world.now >= give_up:
            raise Violation(f"left over: {'; '.join(left)[:2000]}")
        site.world.run(site.world.now + _LOOK_S)
