"""Adapters on the router's books: case by case, and among workers that fail, die and come late in any order."""

from __future__ import annotations

import random

import pytest

from tensoryard.coordinator import adapters as adapters_module
from tensoryard.coordinator import events as ev
from tensoryard.coordinator.records import AdapterState
from tensoryard.proto.lora import LoRAStatus

from .test_router import Yard

OK, FAILED = LoRAStatus.SUCCESS.value, LoRAStatus.LOAD_INVALID_ADAPTER.value


class LoraYard(Yard):
    """Verbs about adapters; the questions that workers have not answered yet, in order."""

    def __init__(self, **limits):
        super().__init__(**limits)
        self.queries = 0
        self.questions = []

    def feed(self, kind, **fields):
        effects = super().feed(kind, **fields)
        self.questions += self.of(ev.SendAdapter, effects)
        return effects

    def start(self, *workers, takes_adapters=True, **fields):
        return super().start(*workers, takes_adapters=takes_adapters, **fields)

    def ask(self, operation, name="x", path="/x", model="m", client="c", query=None, **fields):
        self.queries += 1
        fields |= {"query": query or self.queries, "operation": operation, "client": client}
        return self.feed(ev.AdapterAsked, name=name, path=path, model=model, **fields)

    def load(self, name="x", path="/x", **fields):
        return self.ask("load", name, path, **fields)

    def unload(self, name="x", model="", **fields):
        return self.ask("unload", name, "", model, **fields)

    def done(self, worker, status=OK, text="said"):
        """A worker answers its first open question."""
        question = next(each for each in self.questions if each.worker == worker)
        self.questions.remove(question)
        return self.feed(
            ev.AdapterDone, worker=worker, number=question.number, name=question.name, status=status, text=text
        )

    def all_done(self):
        """Every worker does what it was asked for."""
        effects = []
        while self.questions:
            effects += self.done(self.questions[0].worker)
        return effects

    def answers(self, effects=None):
        return [(effect.query, effect.status) for effect in self.of(ev.AnswerAdapter, effects)]

    def state(self, name="x"):
        adapter = self.router.adapters.named(name)
        return None if adapter is None else adapter.state


@pytest.fixture
def yard():
    return LoraYard()


def asked(effects):
    return [(effect.worker, effect.operation) for effect in effects if isinstance(effect, ev.SendAdapter)]


# -- loading ----------------------------------------------------------------------------------------------------------


def test_loaded_when_every_worker_has_it(yard):
    """All are asked at once; the answer comes with the last of theirs, and then requests are taken."""
    yard.start("a", "b")
    assert asked(yard.load()) == [("a", "load"), ("b", "load")]
    assert yard.answers(yard.done("a")) == []
    yard.submit("early", model="x")
    assert yard.ends("early") == ["unknown_model"]
    assert yard.answers(yard.done("b")) == [(1, OK)]
    yard.submit("r", model="x")
    assert yard.of(ev.SendRequest)[-1].adapter == "x"
    assert yard.router.models["m"].lanes == {}


def test_what_one_worker_cannot_load_is_taken_back(yard):
    """All are told to unload; the answer comes when they have, with the failure's status and text; nothing stays."""
    yard.start("a", "b")
    yard.load()
    yard.done("a")
    effects = yard.done("b", FAILED, "wrong rank")
    assert asked(effects) == [("a", "unload"), ("b", "unload")]
    assert yard.answers() == []
    yard.done("a")
    effects = yard.done("b", LoRAStatus.UNLOAD_NAME_NONEXISTENT.value)
    assert yard.answers(effects) == [(1, FAILED)]
    assert yard.of(ev.AnswerAdapter)[-1].texts == ("wrong rank",)
    assert yard.state() is None


def test_loading_again(yard):
    """The same path joins what is under way, or is a success at once; another path, model or a model's name is not."""
    yard.start("a")
    yard.start("n", model="n")
    yard.load()
    assert asked(yard.load()) == []
    assert yard.answers(yard.done("a")) == [(1, OK), (2, OK)]
    assert yard.answers(yard.load()) == [(3, OK)]
    exists = LoRAStatus.LOAD_NAME_EXISTS.value
    assert yard.answers(yard.load(path="/y")) == [(4, exists)]
    assert yard.answers(yard.load(model="n")) == [(5, exists)]
    assert yard.answers(yard.load(name="n")) == [(6, exists)]


def test_a_worker_that_dies_while_it_loads_is_not_waited_for(yard):
    """The others' success counts; when none is left, its successor is waited for until the time is over."""
    yard.start("a", "b")
    yard.load()
    yard.done("a")
    assert yard.answers(yard.gone("b")) == [(1, OK)]
    yard.load("y", "/y", timeout_s=5.0)
    yard.expect("m")
    yard.gone("a")
    assert yard.answers() == [(1, OK)]
    yard.start("c")
    yard.all_done()
    assert yard.answers() == [(1, OK), (2, OK)]


def test_who_waits_too_long_is_told(yard):
    """At its deadline, and not before, an asker hears who has not answered; what nobody waits for is taken back."""
    yard.start("a", "b")
    yard.load(timeout_s=5.0)
    yard.done("a")
    assert yard.router.next_deadline() == 5.0
    yard.tick(4.9)
    assert yard.answers() == []
    effects = yard.tick(5.0)
    assert yard.answers(effects) == [(1, LoRAStatus.UNSPECIFIED_ERROR.value)]
    assert "no answer yet from ['b']" in yard.of(ev.AnswerAdapter)[-1].texts[0]
    assert asked(effects) == [("a", "unload"), ("b", "unload")]
    yard.done("b")  # the load, late: it was asked to unload since
    assert yard.state() is AdapterState.UNLOADING
    yard.all_done()
    assert yard.state() is None


def test_where_nothing_can_be_loaded(yard):
    """An unknown model, a pipeline without adapters, no path: each is refused at once."""
    yard.start("a", takes_adapters=False)
    error = LoRAStatus.LOAD_ERROR.value
    assert yard.answers(yard.load(model="nobody")) == [(1, error)]
    assert yard.answers(yard.load()) == [(2, error)]
    assert "takes no adapters" in yard.of(ev.AnswerAdapter)[-1].texts[0]
    assert yard.answers(yard.load(path="")) == [(3, LoRAStatus.LOAD_INVALID_PATH.value)]
    assert yard.answers(yard.ask("list")) == [(4, LoRAStatus.UNSPECIFIED_ERROR.value)]


def test_adapters_have_a_bound(yard, monkeypatch):
    """Beyond it one more is refused, nothing is evicted, and a place that was given up is free again."""
    monkeypatch.setattr(adapters_module, "MAX_LORAS", 2)
    yard.start("a")
    for name in "xyz":
        yard.load(name, f"/{name}")
        yard.all_done()
    assert [status for _, status in yard.answers()] == [OK, OK, LoRAStatus.LOAD_ERROR.value]
    yard.unload("x")
    yard.all_done()
    yard.load("z", "/z")
    yard.all_done()
    assert yard.answers()[-1] == (5, OK)


def test_askers_have_a_bound(yard, monkeypatch):
    """Beyond it a wish is refused at once."""
    monkeypatch.setattr(adapters_module, "MAX_ASKED", 1)
    yard.start("a")
    yard.load()
    assert yard.answers(yard.load("y")) == [(2, LoRAStatus.LOAD_ERROR.value)]
    yard.all_done()
    yard.submit("r", model="x")
    yard.unload()
    assert yard.answers(yard.unload()) == [(4, LoRAStatus.UNLOAD_ERROR.value)]


def test_who_kills_its_workers_is_given_up(yard):
    """With three workers lost in a row while they loaded it, nobody is asked to load it again."""
    yard.expect("m")
    yard.start("w0")
    yard.load(timeout_s=1000.0)
    for number in range(3):
        yard.gone(f"w{number}")
        yard.start(f"w{number + 1}")
    assert yard.answers() == [(1, LoRAStatus.LOAD_ERROR.value)]
    assert "3 workers were lost while they loaded it" in yard.of(ev.AnswerAdapter)[-1].texts[0]
    assert yard.state() is None


def test_the_last_worker_takes_its_adapters_with_it(yard):
    """Where no fleet expects the model, nobody will ever load it."""
    yard.start("a")
    yard.load()
    assert yard.answers(yard.gone("a")) == [(1, LoRAStatus.LOAD_ERROR.value)]
    assert yard.state() is None


# -- unloading --------------------------------------------------------------------------------------------------------


def test_unloading_waits_for_those_that_run(yard):
    """New requests are refused at once; workers are asked when the last one has ended, the answer follows theirs."""
    yard.start("a", "b")
    yard.load()
    yard.all_done()
    yard.submit("r", model="x")
    assert asked(yard.unload()) == []
    yard.submit("late", model="x")
    assert yard.ends("late") == ["unknown_model"]
    effects = yard.answer(yard.where("r"), "r")
    assert asked(effects) == [("a", "unload"), ("b", "unload")]
    yard.done("a")
    assert yard.answers(yard.done("b")) == [(2, OK)]
    assert yard.answers(yard.unload()) == [(3, LoRAStatus.UNLOAD_NAME_NONEXISTENT.value)]


def test_requests_that_wait_count_as_running(yard):
    """They were accepted: they run first, also on another worker after theirs has died."""
    yard.expect("m")
    yard.start("a", credits=1)
    yard.load()
    yard.all_done()
    yard.submit("r", model="x")
    yard.submit("waits", model="x")
    yard.unload(timeout_s=5.0)
    yard.gone("a")
    yard.start("b", credits=1)
    yard.done("b")
    for request_id in ("r", "waits"):
        assert yard.state() is AdapterState.DRAINING
        yard.answer("b", request_id)
    yard.all_done()
    assert yard.answers() == [(1, OK), (2, OK)]


def test_a_drain_that_takes_long_goes_on(yard):
    """Its asker is told what it waits for; asked again, it joins what is under way."""
    yard.start("a")
    yard.load()
    yard.all_done()
    yard.submit("r", model="x")
    yard.unload(timeout_s=5.0)
    effects = yard.tick(5.0)
    assert yard.answers(effects) == [(2, LoRAStatus.UNSPECIFIED_ERROR.value)]
    assert "1 requests still run with the adapter 'x'" in yard.of(ev.AnswerAdapter)[-1].texts[0]
    yard.unload()
    yard.answer("a", "r")
    yard.all_done()
    assert yard.answers()[-1] == (3, OK)


def test_a_worker_that_cannot_unload_is_told_of(yard):
    """The name is free all the same."""
    yard.start("a")
    yard.load()
    yard.all_done()
    yard.unload()
    yard.done("a", LoRAStatus.UNLOAD_ERROR.value, "busy")
    assert yard.answers()[-1] == (2, LoRAStatus.UNLOAD_ERROR.value)
    assert yard.of(ev.AnswerAdapter)[-1].texts == ("a: busy",)
    assert yard.state() is None


def test_one_thing_at_a_time(yard):
    """What is being loaded is not unloaded, and what is being unloaded is not loaded, until that is done."""
    yard.start("a")
    yard.load()
    assert yard.answers(yard.unload()) == [(2, LoRAStatus.UNLOAD_ERROR.value)]
    yard.all_done()
    yard.unload()
    assert yard.answers(yard.load()) == [(4, LoRAStatus.LOAD_NAME_EXISTS.value)]
    assert yard.answers(yard.unload("x", "another")) == [(5, LoRAStatus.UNLOAD_NAME_NONEXISTENT.value)]


# -- workers that come later ------------------------------------------------------------------------------------------


def loaded(yard, *workers, **fields):
    yard.start(*workers, **fields)
    yard.load()
    yard.all_done()


def test_w_62_a_worker_gets_no_request_for_what_it_has_not(yard):
    """A newcomer serves the base model at once, and the adapter's requests when it has told that it has it."""
    loaded(yard, "a")
    assert asked(yard.start("b")) == [("b", "load")]
    for number in range(2):
        yard.submit(f"x{number}", model="x")
        yard.submit(f"m{number}")
    assert yard.sent() == [("a", "x0"), ("b", "m0")]
    yard.answer("b", "m0")
    assert yard.where("m1") == "b", "what waits for an adapter lets others pass"
    assert yard.where("x1") == ""
    yard.answer("b", "m1")
    yard.done("b")
    assert yard.where("x1") == "b"
    assert yard.router.models["m"].lanes == {}


def test_those_that_wait_apart_keep_their_order(yard):
    """Urgent ones go first among those of an adapter too; deadlines pass and cancels hold."""
    loaded(yard, "a")
    yard.start("b")
    yard.submit("busy", model="x")
    yard.submit("plain", model="x")
    yard.submit("urgent", model="x", priority=5)
    yard.submit("late", model="x", deadline_s=2.0, priority=9)
    yard.submit("unwanted", model="x", priority=9)
    assert yard.router.models["m"].waiting == 4
    yard.cancel("unwanted")
    yard.tick(3.0)
    assert yard.ends("late") == ["expired"]
    yard.answer("a", "busy")
    assert yard.where("urgent") == "a"
    yard.answer("a", "urgent")
    assert yard.where("plain") == "a"


def test_a_newcomer_that_cannot_load_it_serves_the_rest(yard):
    """The others go on with it; asked to load it again, it tries, and the asker hears how that ended."""
    loaded(yard, "a")
    yard.start("b")
    yard.done("b", FAILED, "no such file here")
    assert yard.state() is AdapterState.LOADED
    assert asked(yard.load()) == [("b", "load")]
    assert yard.answers(yard.done("b", FAILED, "still none")) == [(2, FAILED)]
    yard.load()
    assert yard.answers(yard.done("b")) == [(3, OK)]


def test_without_any_worker_that_has_it_requests_end(yard):
    """Its last worker has died and the successor cannot load it: who waits is told why, and the name is free."""
    yard.expect("m")
    loaded(yard, "a")
    yard.gone("a")
    yard.submit("r", model="x")
    yard.start("b")
    yard.done("b", FAILED, "the folder is gone")
    assert yard.ends("r") == ["deployment_unhealthy"]
    error = yard.of(ev.SendError)[-1]
    assert "cannot be loaded any more: b: the folder is gone" in error.text
    yard.all_done()
    assert yard.state() is None
    assert yard.is_empty()


def test_a_killers_request_waits_for_a_worker_with_its_adapter(yard):
    """What was lost with a worker runs apart, on one that has its adapter, and does not hold up what others can run."""
    yard.expect("m", replicas=3)
    loaded(yard, "a", "b", credits=1)
    yard.submit("x", model="x")
    assert yard.where("x") == "a"
    yard.start("c", credits=1)
    yard.done("c", FAILED)
    yard.submit("x2", model="x")
    yard.gone("a")
    assert yard.where("x") == "", "c is free, and has not what it needs"
    yard.submit("m0")
    assert yard.where("m0") == "c"
    yard.answer("b", "x2")
    assert yard.where("x") == "b"


def test_a_new_coordinator_learns_from_its_workers(yard):
    """What one brings along its like are asked to load; what does not fit is taken from it."""
    effects = yard.start("a", adapters=(("x", "/x"), ("m", "/m")))
    assert asked(effects) == [("a", "unload")], "a model's own name is no adapter's"
    yard.submit("r", model="x")
    assert yard.where("r") == "a"
    effects = yard.start("b", adapters=(("x", "/other"),))
    assert asked(effects) == [("b", "unload"), ("b", "load")]
    yard.done("a")
    yard.done("b")  # of its own; the answer that counts comes after
    assert yard.router.models["m"].lanes
    yard.done("b")
    assert not yard.router.models["m"].lanes


def test_what_comes_back_while_it_is_unloaded_goes_too(yard):
    """A worker that joins anew with it, in the midst of that or after, is asked as well; loaded again, it may stay."""
    loaded(yard, "a", "b", "c")
    yard.unload()
    yard.gone("a")
    assert ("a", "unload") in asked(yard.start("a", adapters=(("x", "/x"),)))
    assert yard.state() is AdapterState.UNLOADING
    yard.all_done()
    assert yard.answers()[-1] == (2, OK)
    assert asked(yard.start("b", adapters=(("x", "/x"),))) == [("b", "unload")]
    assert yard.state() is None
    yard.all_done()
    yard.load()
    yard.all_done()
    assert asked(yard.start("b", adapters=(("x", "/x"),))) == []
    assert yard.state() is AdapterState.LOADED


def test_what_is_gone_is_remembered_within_bounds(yard, monkeypatch):
    """The oldest is forgotten."""
    monkeypatch.setattr(adapters_module, "MAX_LORAS", 2)
    yard.start("a")
    for name in "xyz":
        yard.load(name, f"/{name}")
        yard.all_done()
        yard.unload(name)
        yard.all_done()
    assert list(yard.router.adapters._gone) == [("y", "/y"), ("z", "/z")]


def test_a_stale_answer_changes_nothing(yard):
    """Of another number, another worker or another adapter."""
    yard.start("a", "b")
    yard.load()
    number = yard.questions[0].number
    for fields in ({"worker": "b"}, {"name": "y"}, {"number": number + 7}, {"worker": "stranger"}):
        assert yard.feed(ev.AdapterDone, **{"worker": "a", "number": number, "name": "x", "status": OK} | fields) == []
    assert yard.router.adapters.named("x").asked.keys() == {"a", "b"}


def test_who_leaves_is_not_asked_and_kills_nothing(yard):
    """A worker that drains loads nothing more; that it goes in the midst of a load is not the adapter's doing."""
    yard.expect("m")
    yard.start("stays")
    for number in range(4):
        yard.start(f"w{number}")
        yard.load(f"x{number}", f"/{number}")
        yard.drain(f"w{number}")
        yard.gone(f"w{number}", "left")
    yard.start("leaves")
    yard.drain("leaves")
    assert ("leaves", "load") not in asked(yard.load())
    yard.all_done()
    assert [status for _, status in yard.answers()] == [OK] * 5


# -- any course -------------------------------------------------------------------------------------------------------


class World:
    """A client that wishes and asks at random, and workers that obey, fail, die and come."""

    NAMES = ("x", "y", "z")

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.yard = LoraYard()
        #: What the processes really have, and hold.
        self.has: dict[str, set[str]] = {}
        self.holds: dict[str, list[ev.SendRequest]] = {}
        self.workers = self.requests = 0
        self.asked: dict[int, int] = {}

    def look(self, effects):
        for effect in effects:
            match effect:
                case ev.SendRequest(worker=worker, adapter=adapter):
                    assert not adapter or adapter in self.has[worker], f"{worker} has no {adapter}"
                    self.holds[worker].append(effect)
                case ev.SendCancel(worker=worker, request_id=name, attempt=attempt):
                    for held in [h for h in self.holds.get(worker, ()) if (h.request_id, h.attempt) == (name, attempt)]:
                        self.answer(worker, held)
                case ev.AnswerAdapter(query=query):
                    assert self.asked.pop(query, None) is not None, "answered twice, or never asked"

    def step(self):
        yard, pick = self.yard, self.random.random()
        if pick < 0.08 or not self.has:
            self.start_worker()
        elif pick < 0.10:
            self.look(yard.drain(self.random.choice(list(self.has))))
        elif pick < 0.13 and len(self.has) > 1:
            worker = self.random.choice(list(self.has))
            del self.has[worker], self.holds[worker]
            yard.questions = [each for each in yard.questions if each.worker != worker]
            self.look(yard.gone(worker))
        elif pick < 0.25:
            name = self.random.choice(self.NAMES)
            self.asked[yard.queries + 1] = 1
            operation = self.random.choice(("load", "load", "unload"))
            path = f"/{name}" if operation == "load" else ""
            self.look(yard.ask(operation, name, path, "m" if operation == "load" else "", timeout_s=20.0))
        elif pick < 0.5:
            self.requests += 1
            model = self.random.choice((*self.NAMES, "m"))
            deadline = self.random.choice((None, None, 5.0))
            self.look(yard.submit(f"r{self.requests}", model=model, deadline_s=deadline))
        elif pick < 0.75 and yard.questions:
            self.obey(yard.questions[0].worker)
        elif pick < 0.97:
            busy = [worker for worker, held in self.holds.items() if held]
            if busy:
                worker = self.random.choice(busy)
                self.answer(worker, self.holds[worker][0])
        else:
            yard.at += self.random.choice((0.5, 3.0, 25.0))
            for worker in list(self.has):
                yard.beat(worker, progress=self.random.randrange(1 << 40))
            self.look(yard.tick())

    def start_worker(self):
        self.workers += 1
        name = f"w{self.workers}"
        self.has[name], self.holds[name] = set(), []
        adapters = [("x", "/x")] if self.random.random() < 0.2 else []
        self.has[name].update(path for path, _ in adapters)
        self.look(self.yard.start(name, credits=2, adapters=tuple(adapters)))

    def obey(self, worker):
        question = next(each for each in self.yard.questions if each.worker == worker)
        if question.operation == "unload":
            self.has[worker].discard(question.name)
            self.look(self.yard.done(worker))
        elif self.random.random() < 0.1:
            self.look(self.yard.done(worker, FAILED))
        else:
            self.has[worker].add(question.name)
            self.look(self.yard.done(worker))

    def answer(self, worker, held):
        self.holds[worker].remove(held)
        self.look(self.yard.answer(worker, held.request_id, attempt=held.attempt))

    def settle(self):
        """All workers do what they were asked for, and answer what they hold."""
        while self.yard.questions or any(self.holds.values()):
            for question in self.yard.questions[:1]:
                has = self.has[question.worker]
                (has.discard if question.operation == "unload" else has.add)(question.name)
                self.look(self.yard.done(question.worker))
            for worker, held in self.holds.items():
                if held:
                    self.answer(worker, held[0])


@pytest.mark.parametrize("seed", range(40))
def test_any_course(seed):
    """Requests go to those that have their adapter alone, each wish and each request has one end, and none waits."""
    world = World(seed)
    for _ in range(400):
        world.step()
    world.settle()
    world.start_worker()
    world.settle()
    assert not world.yard.router.requests, "a request waits for nothing"
    world.yard.at += 60.0
    for worker in world.has:
        world.yard.beat(worker, progress=1 << 50)
    world.look(world.yard.tick())
    world.settle()
    assert not world.asked, "a wish has no answer"
    assert world.yard.is_empty()
