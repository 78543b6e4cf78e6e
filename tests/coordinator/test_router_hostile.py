"""The router among liars, strangers and the dying: whatever comes, each request has one answer and nothing is left.

`World` plays clients, workers and fleet, honest and not, and keeps a ledger of its own of what the router may still
do; every effect is held against it. Hypothesis drives it step by step, and a long simulation drives it with a seed.
"""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tensoryard.coordinator import events as ev
from tensoryard.coordinator.records import Limits
from tensoryard.coordinator.router import Router
from tensoryard.coordinator.story import MAX_ENDED

TASKS = {"m": "t", "n": "u"}
HANG_LIMIT_S = 20.0
IN_FLIGHT = 4
BOUNDS = {"max_queued": 4, "max_queued_bytes": 200}


@dataclass
class Life:
    """What the ledger knows of one request, from its arrival to its ForgetBody."""

    client: str
    model: str
    deadline: float
    submission: int = 0
    next_seq: int = 0
    #: It has had its one terminal effect, or its client is gone.
    ended: bool = False
    #: What its worker was told last of what has been read.
    told: int = 0
    #: The (worker, attempt) it was sent to last, while that worker is known.
    on: tuple[str, int] | None = None


@dataclass
class Known:
    """What the ledger knows of a worker that the router must know."""

    state: str = "starting"
    model: str = ""
    credits: int = 0
    held: set[tuple[str, int]] = field(default_factory=set)
    moved: float = 0.0
    progress: int = 0


class World:
    """Clients, workers and fleet around one router."""

    def __init__(self, *, check_every=1):
        self.router = Router(Limits(max_in_flight_per_client=IN_FLIGHT))
        self.at = 0.0
        self.lives: dict[str, Life] = {}
        self.known: dict[str, Known] = {}
        #: What the processes really hold, known or not: (request_id, attempt) to the number of their next part.
        self.processes: dict[str, dict[tuple[str, int], int]] = {}
        self.expected: set[str] = set()
        self.unhealthy: set[str] = set()
        #: Outputs said lately, to be said again.
        self.said: deque[ev.OutputArrived] = deque(maxlen=32)
        #: Terminal effects, refusals, and requests whose client left.
        self.ends = 0
        self.check_every = check_every
        self.events = 0

    # -- the ledger ---------------------------------------------------------------------------------------------------

    def feed(self, kind, **fields):
        event = kind(at=self.at, **fields)
        effects = self.handle(event)
        passed = [e for e in effects if isinstance(e, ev.SendOutput | ev.SendDiscard)]
        if isinstance(event, ev.OutputArrived):
            # Its memory is lent either to the client or to nobody, never to both and never to the winds.
            assert len(passed) == (not event.code), effects
        else:
            assert not passed, effects
        if isinstance(event, ev.WorkerJoined):
            self.part_from(event.worker)
        for effect in effects:
            getattr(self, f"take_{type(effect).__name__}")(effect, event)
        if isinstance(event, ev.WorkerJoined):
            self.known[event.worker] = Known(moved=self.at)
        self.events += 1
        if self.events % self.check_every == 0:
            self.router.check_invariants()
            assert set(self.router.requests) == {r for r, life in self.lives.items() if not life.ended}
            assert set(self.router.workers) == set(self.known)
            for name, worker in self.known.items():
                assert set(self.router.workers[name].slots) == worker.held
            assert sum(self.router.outcomes.values()) == self.ends
            self.nobody_waits_in_vain()
        return effects

    def handle(self, event):
        """Every other last output goes the short way; what the dispatcher does for it is told as effects."""
        if not isinstance(event, ev.OutputArrived) or not event.done or event.code or self.events % 2:
            return self.router.handle(event)
        request = self.router.take_last(event.worker, event.request_id, event.attempt, event.seq, event.at)
        if request is None:
            return self.router.handle(event)
        name, client, submission = request.request_id, request.client, request.submission
        sent = ev.SendOutput(client=client, request_id=name, seq=event.seq, done=True, submission=submission)
        more = self.router.handle(ev.Ticked(at=self.at)) if self.router.has_news else []
        return [sent, ev.ForgetBody(request_id=name), *more]

    def take_SendOutput(self, effect, event):
        life = self.lives[effect.request_id]
        assert not life.ended, "an output after the end"
        assert life.client == effect.client
        assert effect.seq == life.next_seq == event.seq, "a part is missing, or comes twice"
        assert effect.submission == life.submission
        assert effect.done == event.done
        life.next_seq += 1
        life.ended = effect.done
        self.ends += effect.done

    def take_SendError(self, effect, event):
        life = self.lives[effect.request_id]
        self.ends += 1
        arrived = isinstance(event, ev.RequestArrived) and event.request_id == effect.request_id
        if arrived and event.client != life.client:
            assert effect.client == event.client
            assert effect.code == ("duplicate_request" if self.router.accepting else "shutting_down")
            return
        assert not life.ended, "a second end"
        assert life.client == effect.client
        assert effect.submission == life.submission
        assert effect.code != "expired" or life.deadline <= self.at
        assert effect.retry_after_s >= 0
        assert (effect.retry_after_s > 0) == (effect.code == "overloaded")
        life.ended = True

    def take_ForgetBody(self, effect, event):
        assert self.lives[effect.request_id].ended, "a body is forgotten that may be needed"
        del self.lives[effect.request_id]

    def take_SendRequest(self, effect, event):
        life, worker = self.lives[effect.request_id], self.known[effect.worker]
        assert not life.ended
        assert effect.submission == life.submission
        assert worker.state == "ready"
        assert worker.model == life.model
        assert len(worker.held) < worker.credits, "sent without a credit"
        assert life.on is None, "sent while it runs elsewhere"
        slot = (effect.request_id, effect.attempt)
        assert all(attempt < effect.attempt for r, attempt in worker.held if r == effect.request_id)
        if effect.deadline_s is None:
            assert life.deadline == math.inf
        else:
            assert effect.deadline_s > 0
            assert effect.deadline_s == pytest.approx(life.deadline - self.at)
        life.on = (effect.worker, effect.attempt)
        if not worker.held:
            worker.moved = self.at
        worker.held.add(slot)
        self.processes.setdefault(effect.worker, {})[slot] = 0

    def take_SendCancel(self, effect, event):
        slot = (effect.request_id, effect.attempt)
        assert slot in self.known[effect.worker].held, "cancelled what is not there"
        life = self.lives.get(effect.request_id)
        if life is not None and life.on == (effect.worker, effect.attempt):
            life.on = None

    def take_SendConsumed(self, effect, event):
        life = self.lives[effect.request_id]
        assert life.on == (effect.worker, effect.attempt), "told somebody who does not run it"
        assert effect.parts > life.told or not isinstance(event, ev.PartsConsumed)
        life.told = effect.parts

    def take_SendDiscard(self, effect, event):
        said = (event.worker, event.request_id, event.attempt, event.seq)
        assert (effect.worker, effect.request_id, effect.attempt, effect.seq) == said

    def take_SendDrain(self, effect, event):
        assert self.known[effect.worker].state != "draining"
        self.known[effect.worker].state = "draining"

    def take_NotifyFleet(self, effect, event):
        worker = self.known[effect.worker]
        if effect.what == "ready":
            assert isinstance(event, ev.WorkerReadied)
            worker.state, worker.model, worker.moved = "ready", event.model, self.at
            worker.held = set(event.running)
            worker.credits = max(event.credits, len(worker.held))
            self.unhealthy.discard(event.model)
            return
        if effect.what == "hung":
            assert isinstance(event, ev.Ticked)
            assert worker.held
            assert self.at >= worker.moved + HANG_LIMIT_S
        else:
            causes = {
                "gone": ev.WorkerGone,
                "start_failed": ev.WorkerStartFailed | ev.WorkerReadied,
            }
            assert isinstance(event, causes[effect.what])
            assert event.worker == effect.worker
        self.part_from(effect.worker)

    def part_from(self, worker):
        self.known.pop(worker, None)
        for life in self.lives.values():
            if life.on is not None and life.on[0] == worker:
                life.on = None

    # -- clients ------------------------------------------------------------------------------------------------------

    def submit(
        self,
        request_id,
        client,
        *,
        model="m",
        wrong_task=False,
        priority=0,
        deadline_s=None,
        shared=0,
        body=0,
        submission=0,
    ):
        life = self.lives.get(request_id)
        if life is not None and life.client == client and len({0, life.submission, submission}) == 3:
            self.ends += 1  # its client has given it up
            life = None
        if life is None:
            deadline = math.inf if deadline_s is None else self.at + deadline_s
            self.lives[request_id] = Life(client, model, deadline, submission)
        effects = self.feed(
            ev.RequestArrived,
            client=client,
            request_id=request_id,
            task="wrong" if wrong_task else TASKS.get(model, "t"),
            model=model,
            priority=priority,
            deadline_s=deadline_s,
            host="h1",
            shared_bytes=shared,
            body_bytes=body,
            submission=submission,
        )
        if life is not None:
            assert len(effects) == (life.client != client), "a duplicate has an effect"

    def cancel(self, request_id, client):
        life = self.lives.get(request_id)
        self.feed(ev.CancelAsked, client=client, request_id=request_id)
        if life is not None:
            assert life.ended == (life.client == client)

    def consume(self, request_id, client, parts):
        life = self.lives.get(request_id)
        effects = self.feed(ev.PartsConsumed, client=client, request_id=request_id, parts=parts)
        assert len(effects) <= (life is not None and life.client == client and life.on is not None)

    def client_gone(self, client):
        mine = [life for life in self.lives.values() if life.client == client]
        self.ends += len(mine)
        for life in mine:
            life.ended = True
        self.feed(ev.ClientGone, client=client)
        assert not any(life.client == client for life in self.lives.values()), "a body outlives its client"

    # -- workers ------------------------------------------------------------------------------------------------------

    def join(self, worker, host):
        effects = self.feed(ev.WorkerJoined, worker=worker, host=host)
        assert not any(isinstance(e, ev.NotifyFleet) for e in effects), "a fleet would end the newcomer"

    def ready(self, worker, *, model="m", wrong_task=False, room=1, invented=(), submissions=(), counts=True):
        """READY, with what the process still holds and, when it lies, with what it never had."""
        held = self.processes.get(worker, {})
        running = (*held, *invented)
        fields = {
            "model": model,
            "task": "wrong" if wrong_task else TASKS[model],
            "deployment": "d",
            "credits": room,
        }
        told = {"running": running, "submissions": submissions, "sent": tuple(held.values()) if counts else ()}
        self.feed(ev.WorkerReadied, worker=worker, hang_limit_s=HANG_LIMIT_S, **told, **fields, **BOUNDS)
        if worker in self.known and self.known[worker].state == "ready":
            for slot in invented:
                self.processes.setdefault(worker, {}).setdefault(slot, 0)

    def start_failed(self, worker):
        self.feed(ev.WorkerStartFailed, worker=worker, deployment="d", text="no such file")
        assert worker not in self.known

    def beat(self, worker, progress, *, busy):
        known = self.known.get(worker)
        if known is not None and known.progress != progress:
            known.progress, known.moved = progress, self.at
        assert self.feed(ev.WorkerBeat, worker=worker, progress=progress, busy=busy) == []

    def gone(self, worker, *, dead):
        """The router is told of its end; a worker that is not dead goes on with what it holds."""
        if dead:
            self.processes.pop(worker, None)
        self.feed(ev.WorkerGone, worker=worker, reason="died")
        assert worker not in self.known

    def drain(self, worker):
        self.feed(ev.DrainAsked, worker=worker)
        assert worker not in self.known or self.known[worker].state == "draining"

    def output(self, worker, request_id, attempt, seq, *, done=False, code=""):
        """A worker says something, true or not."""
        known, slot = self.known.get(worker), (request_id, attempt)
        if known is not None:
            known.moved = self.at
        event = {"worker": worker, "request_id": request_id, "attempt": attempt, "seq": seq, "done": done, "code": code}
        if known is not None and (done or code):
            known.held.discard(slot)
            life = self.lives.get(request_id)
            if life is not None and life.on == (worker, attempt):
                life.on = None
        self.said.append(ev.OutputArrived(at=self.at, **event))
        self.feed(ev.OutputArrived, **event)

    def work(self, worker, choice, verb):
        """A process goes on with something it holds: a part, the last part, an error, a gap, a repeat."""
        held = self.processes.get(worker)
        if not held:
            return
        slot = sorted(held)[choice % len(held)]
        seq = held[slot]
        ends = verb in ("final", "error", "early", "late")
        if ends:
            del held[slot]
        else:
            held[slot] += 1
        seq += {"gap": 2, "late": 1, "repeat": -1, "early": -1}.get(verb, 0)
        self.output(
            worker, *slot, max(seq, 0), done=verb in ("final", "early", "late"), code="boom" * (verb == "error")
        )

    def repeat(self, choice):
        """Something said before is said again."""
        if self.said:
            old = self.said[choice % len(self.said)]
            if old.done or old.code:
                self.processes.get(old.worker, {}).pop((old.request_id, old.attempt), None)
            self.output(old.worker, old.request_id, old.attempt, old.seq, done=old.done, code=old.code)

    # -- fleet and time -----------------------------------------------------------------------------------------------

    def deployments(self, models, unhealthy=(), task=None):
        entries = tuple(
            ev.DeploymentExpected(
                deployment="d",
                model=model,
                task=task or TASKS[model],
                replicas=1,
                unhealthy="Traceback" * (model in unhealthy),
                **BOUNDS,
            )
            for model in models
        )
        self.expected = set(models)
        self.feed(ev.DeploymentsChanged, deployments=entries)
        self.unhealthy = {model for model in models if model in unhealthy}
        self.nobody_waits_in_vain()

    def nobody_waits_in_vain(self):
        """What no worker serves and none is going to serve has nothing waiting."""
        served = {worker.model for worker in self.known.values() if worker.model}
        hoped = self.expected if self.router.accepting else set()
        assert set(self.router.models) == served | hoped
        for life in self.lives.values():
            assert life.model in served | (hoped - self.unhealthy), "it waits for nobody"

    def shutdown(self):
        self.feed(ev.ShutdownAsked)
        self.nobody_waits_in_vain()

    def tick(self, dt):
        self.at += dt
        due = self.router.next_deadline()
        effects = self.feed(ev.Ticked)
        assert effects == [] or due <= self.at
        assert all(life.deadline > self.at for life in self.lives.values()), "a deadline has passed unnoticed"
        for name, worker in self.known.items():
            assert not worker.held or self.at < worker.moved + HANG_LIMIT_S, f"{name} hangs unnoticed"
        after = self.router.next_deadline()
        assert after is None or after > self.at

    # -- the end ------------------------------------------------------------------------------------------------------

    def finish_by_working(self):
        """New, honest workers come and work; every request must end, without help of deadlines."""
        for worker in list(self.known):
            self.gone(worker, dead=True)
        self.processes.clear()
        self.deployments(list(TASKS))
        for number in range(40):
            for model in TASKS:
                worker = f"honest-{model}-{number % 3}"
                if worker not in self.known:
                    self.join(worker, "h1")
                    self.ready(worker, model=model, room=2)
            for worker in list(self.known):
                self.work(worker, 0, "part")
                self.work(worker, 0, "final")
                self.work(worker, 1, "final")
            if not self.lives:
                break
        assert not self.lives, "a request has had no answer"
        assert not any(worker.held for worker in self.known.values())
        self.nothing_is_left()

    def finish_by_leaving(self):
        """Workers leave, the fleet gives up, time passes; what nobody can answer must end all the same."""
        for worker in list(self.known):
            self.drain(worker)
            self.gone(worker, dead=True)
        self.deployments([])
        assert not self.lives, "a request waits for ever"
        assert not self.router.models
        assert not self.router.workers
        self.tick(1000.0)
        assert self.router.next_deadline() is None
        self.nothing_is_left()

    def nothing_is_left(self):
        router = self.router
        router.check_invariants()
        assert not router.requests
        assert not router.clients
        assert len(router._deadlines) == 0
        assert not any(worker.slots or worker.exclusive for worker in router.workers.values())
        for model in router.models.values():
            assert not model.waiting
            assert model.queued_bytes == 0
            assert not model.adoptable
            assert not model.reserved
            assert not model.queue._levels


def check_sizes(router):
    """No container of the router is larger than a small multiple of what lives."""
    live, workers = len(router.requests), len(router.workers)
    assert len(router._deadlines._heap) <= 2 * live + 16
    assert len(router._hang_checks._heap) <= 2 * workers + 16
    assert len(router._stories._ended) <= MAX_ENDED
    assert len(router.clients) <= live
    assert len(router.outcomes) <= 8
    assert len(router.models) <= len(TASKS)
    assert not router._effects
    for model in router.models.values():
        queue, free = model.queue, model.free_workers
        assert len(queue._levels) == len(queue._order) <= len(queue)
        lines = [line for ring in queue._levels.values() for line in ring.values()]
        assert all(lines)
        assert sum(len(line) for line in lines) == len(queue)
        assert all(len(line._heap) <= 2 * len(line) + 16 for line in lines)
        assert len(free._all._heap) <= 2 * len(free._all) + 16
        assert len(free._groups) <= len(free._group_of) <= workers
        assert all(len(heap._heap) <= 2 * len(heap) + 16 for heap in free._groups.values())
        held = sum(len(worker.slots) for worker in model.workers.values())
        assert len(model.adoptable) <= held


# -- by Hypothesis -----------------------------------------------------------------------------------------------------

REQUESTS = st.sampled_from([f"r{number}" for number in range(10)])
CLIENTS = st.sampled_from(["a", "b", "c"])
WORKERS = st.sampled_from(["w0", "w1", "w2", "w3"])
MODELS = st.sampled_from(["m", "m", "m", "n"])
VERBS = st.sampled_from(["final", "part", "part", "error", "gap", "repeat", "early", "late"])
NUMBERS = st.integers(0, 7)
SUBMISSIONS = st.integers(0, 2)
RARELY = st.integers(0, 15).map(lambda number: number == 15)


class HostileWorld(RuleBasedStateMachine):
    """Any order of anything."""

    def __init__(self):
        super().__init__()
        self.world = World()
        self.steps = 0

    @rule(
        request_id=REQUESTS,
        client=CLIENTS,
        model=st.sampled_from(["m", "m", "m", "n", "unknown"]),
        wrong_task=RARELY,
        priority=st.integers(-1, 1),
        deadline_s=st.sampled_from([None, None, 0.0, 1.0, 30.0]),
        shared=st.sampled_from([0, 10, 150]),
        body=st.sampled_from([0, 5]),
        submission=SUBMISSIONS,
    )
    def submit(self, request_id, client, **fields):
        self.world.submit(request_id, client, **fields)

    @rule(request_id=REQUESTS, client=CLIENTS, submission=SUBMISSIONS)
    def submit_simply(self, request_id, client, submission):
        self.world.submit(request_id, client, submission=submission)

    @rule(worker=WORKERS, model=MODELS, room=st.integers(1, 3))
    def start(self, worker, model, room):
        """An honest start, of a name that is free."""
        if worker not in self.world.known:
            self.world.join(worker, "h1")
            self.world.ready(worker, model=model, room=room)

    @rule(worker=WORKERS, host=st.sampled_from(["h1", "h2", ""]))
    def join(self, worker, host):
        self.world.join(worker, host)

    @rule(
        worker=WORKERS,
        model=MODELS,
        wrong_task=RARELY,
        room=st.integers(1, 3),
        invented=st.lists(st.tuples(REQUESTS, st.integers(0, 5)), max_size=2),
        submissions=st.lists(SUBMISSIONS, max_size=3).map(tuple),
        counts=st.booleans(),
    )
    def ready(self, worker, **fields):
        self.world.ready(worker, **fields)

    @rule(worker=WORKERS)
    def start_failed(self, worker):
        self.world.start_failed(worker)

    @rule(worker=WORKERS, progress=st.integers(0, 2), busy=st.booleans())
    def beat(self, worker, progress, busy):
        self.world.beat(worker, progress, busy=busy)

    @rule(worker=WORKERS, dead=st.booleans())
    def gone(self, worker, dead):
        self.world.gone(worker, dead=dead)

    @rule(worker=WORKERS)
    def drain(self, worker):
        self.world.drain(worker)

    @rule(worker=WORKERS, choice=NUMBERS, verb=VERBS)
    def work(self, worker, choice, verb):
        self.world.work(worker, choice, verb)

    @rule(worker=WORKERS, choice=NUMBERS)
    def answer(self, worker, choice):
        self.world.work(worker, choice, "final")

    @rule(choice=st.integers(0, 31))
    def repeat(self, choice):
        self.world.repeat(choice)

    @rule(
        worker=st.sampled_from(["w0", "w1", "stranger"]),
        request_id=REQUESTS,
        attempt=st.integers(0, 12),
        seq=st.integers(0, 2),
        done=st.booleans(),
        code=st.sampled_from(["", "", "boom"]),
    )
    def lie(self, worker, request_id, attempt, seq, done, code):
        """An output made up; when it happens to be about held work, that work is over for the process too."""
        if done or code:
            self.world.processes.get(worker, {}).pop((request_id, attempt), None)
        self.world.output(worker, request_id, attempt, seq, done=done, code=code)

    @rule(request_id=REQUESTS, client=CLIENTS)
    def cancel(self, request_id, client):
        self.world.cancel(request_id, client)

    @rule(request_id=REQUESTS, client=CLIENTS, parts=st.integers(0, 4))
    def consume(self, request_id, client, parts):
        self.world.consume(request_id, client, parts)

    @rule(client=CLIENTS)
    def client_gone(self, client):
        self.world.client_gone(client)

    @rule(models=st.sampled_from(["mn", "mn", "m", ""]), unhealthy=st.sampled_from(["", "", "m"]))
    def deployments(self, models, unhealthy):
        self.world.deployments(list(models), unhealthy=unhealthy)

    @rule(dt=st.sampled_from([0.01, 0.5, 2.0, HANG_LIMIT_S / 2, HANG_LIMIT_S, 100.0]))
    def tick(self, dt):
        self.world.tick(dt)

    @rule(dt=st.sampled_from([0.01, 2.0]))
    def time_passes_unnoticed(self, dt):
        self.world.at += dt

    @rule(sure=RARELY)
    def shutdown(self, sure):
        if sure:
            self.world.shutdown()

    @invariant()
    def stays_small(self):
        self.steps += 1
        check_sizes(self.world.router)

    def teardown(self):
        if self.steps % 2:
            self.world.finish_by_working()
        else:
            self.world.finish_by_leaving()


HostileWorld.TestCase.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
TestHostileWorld = HostileWorld.TestCase


# -- by a long simulation ----------------------------------------------------------------------------------------------


class Simulation:
    """A seeded crowd: mostly honest traffic for two models, with everything that can go wrong now and then."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.world = World(check_every=1000)
        self.world.deployments(["m", "n"])
        self.numbers = iter(range(10**9))
        #: Requests sent lately: they are cancelled, sent again, lied about.
        self.recent: deque[tuple[str, str]] = deque(maxlen=24)

    def step(self):
        verbs = (self.traffic, self.work, self.fault, self.fleet, self.lie)
        self.rng.choices(verbs, (40, 50, 2, 0.2, 4))[0]()
        self.world.tick(self.rng.choice((0.0, 0.001, 0.01))) if self.rng.random() < 0.3 else None

    def traffic(self):
        rng, world = self.rng, self.world
        verb = rng.choices(("new", "again", "cancel", "gone"), (80, 8, 10, 2))[0]
        if verb == "new" or not self.recent:
            request = (f"r{next(self.numbers)}", f"c{rng.randrange(6) if rng.random() < 0.9 else next(self.numbers)}")
            self.recent.append(request)
        else:
            request = rng.choice(self.recent)
        if verb == "cancel":
            world.cancel(*request)
        elif verb == "gone":
            world.client_gone(request[1])
        else:
            world.submit(
                *request,
                model=rng.choice("mmmn"),
                priority=rng.randrange(-3, 3) if rng.random() < 0.2 else 0,
                deadline_s=rng.choice((None, 0.05, 5.0, 3600.0)),
                submission=rng.choice((0, 1, 1, 2)),
                shared=rng.choice((0, 20)),
                body=5,
            )

    def work(self):
        name = f"w{self.rng.randrange(8)}"
        if name not in self.world.known:
            self.world.join(name, f"h{self.rng.choice((1, 2, next(self.numbers)))}")
        if self.world.known[name].state == "starting":
            self.world.ready(name, model="n" if name in ("w6", "w7") else "m", room=2)
        verb = self.rng.choices(("part", "final", "error", "gap", "repeat", "early", "late"), (20, 70, 3, 1, 3, 1, 1))[
            0
        ]
        self.world.work(name, self.rng.randrange(4), verb)

    def fault(self):
        rng, world, name = self.rng, self.world, f"w{self.rng.randrange(8)}"
        verb = rng.choice(("dead", "silent", "drain", "anew", "start_failed", "hang"))
        if verb in ("dead", "silent"):
            world.gone(name, dead=verb == "dead")
        elif verb == "drain":
            world.drain(name)
            world.gone(name, dead=True)
        elif verb == "anew":
            world.join(name, "h1")
        elif verb == "start_failed":
            world.start_failed(name)
        elif rng.random() < 0.1:
            world.tick(HANG_LIMIT_S)

    def fleet(self):
        self.world.deployments(self.rng.choice(("mn", "mn", "m")), unhealthy=self.rng.choice(("", "", "n")))

    def lie(self):
        rng, world = self.rng, self.world
        world.repeat(rng.randrange(32))
        if self.recent:
            world.output(f"ghost{next(self.numbers)}", rng.choice(self.recent)[0], rng.randrange(50), 0, done=True)
        world.beat(f"w{rng.randrange(8)}", rng.randrange(3), busy=rng.random() < 0.5)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_long_life_leaves_nothing_behind(seed):
    """After 100,000 events of a mixed crowd no container has grown, and at the end the books are empty."""
    simulation = Simulation(seed)
    world = simulation.world
    checked = 0
    while world.events < 100_000:
        simulation.step()
        if world.events >= checked:
            check_sizes(world.router)
            checked += 200
    outcomes = world.router.outcomes
    assert {"finished", "failed", "cancelled", "expired", "rejected", "poison_request"} <= set(outcomes)
    assert outcomes["finished"] > 10_000, "the simulation is no traffic"
    world.finish_by_working()
    world.finish_by_leaving()
