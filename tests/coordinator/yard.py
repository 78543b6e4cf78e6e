"""A router with its clock, for tests that feed it one event after the other."""

from __future__ import annotations

from tensoryard.coordinator import events as ev
from tensoryard.coordinator.records import Limits
from tensoryard.coordinator.router import Router


class Yard:
    """A router with its clock; each verb feeds one event, checks the books and returns the effects."""

    def __init__(self, **limits):
        self.router = Router(Limits(**limits))
        self.at = 0.0
        #: Every effect since the start.
        self.effects = []

    def feed(self, kind, **fields):
        effects = self.router.handle(kind(at=self.at, **fields))
        self.router.check_invariants()
        self.effects += effects
        return effects

    # clients

    def submit(self, request_id, client="c", model="m", task="t", **fields):
        return self.feed(ev.RequestArrived, request_id=request_id, client=client, model=model, task=task, **fields)

    def cancel(self, request_id, client="c"):
        return self.feed(ev.CancelAsked, request_id=request_id, client=client)

    def consume(self, request_id, parts, client="c"):
        return self.feed(ev.PartsConsumed, request_id=request_id, client=client, parts=parts)

    def client_gone(self, client="c"):
        return self.feed(ev.ClientGone, client=client)

    # workers

    def join(self, *workers, host=""):
        return [effect for name in workers for effect in self.feed(ev.WorkerJoined, worker=name, host=host)]

    def ready(self, worker, model="m", task="t", **fields):
        fields = {"deployment": "d", "credits": 1} | fields
        return self.feed(ev.WorkerReadied, worker=worker, model=model, task=task, **fields)

    def start(self, *workers, host="", **fields):
        """Workers join and become ready."""
        out = []
        for name in workers:
            out += self.join(name, host=host) + self.ready(name, **fields)
        return out

    def gone(self, worker, reason="died"):
        return self.feed(ev.WorkerGone, worker=worker, reason=reason)

    def drain(self, worker):
        return self.feed(ev.DrainAsked, worker=worker)

    def beat(self, worker, progress=0, busy=True):
        return self.feed(ev.WorkerBeat, worker=worker, progress=progress, busy=busy)

    def answer(self, worker, request_id, *, attempt=None, seq=0, done=True, code="", text=""):
        """An output; of the attempt that was sent to this worker last, unless told otherwise."""
        if attempt is None:
            attempt = self.attempt(worker, request_id)
        return self.feed(
            ev.OutputArrived,
            worker=worker,
            request_id=request_id,
            attempt=attempt,
            seq=seq,
            done=done,
            code=code,
            text=text,
        )

    def part(self, worker, request_id, seq, attempt=None):
        return self.answer(worker, request_id, seq=seq, done=False, attempt=attempt)

    # the rest

    def expect(self, *models, **fields):
        defaults = {"deployment": "d", "task": "t", "replicas": 1}
        entries = tuple(ev.DeploymentExpected(**(defaults | {"model": model} | fields)) for model in models)
        return self.feed(ev.DeploymentsChanged, deployments=entries)

    def tick(self, at=None):
        self.at = self.at if at is None else at
        return self.feed(ev.Ticked)

    def attempt(self, worker, request_id):
        return [e for e in self.of(ev.SendRequest) if (e.worker, e.request_id) == (worker, request_id)][-1].attempt

    def of(self, kind, effects=None):
        return [effect for effect in (self.effects if effects is None else effects) if isinstance(effect, kind)]

    def sent(self, effects=None):
        """Requests sent, as (worker, request_id)."""
        return [(effect.worker, effect.request_id) for effect in self.of(ev.SendRequest, effects)]

    def ends(self, request_id):
        """How a request ended, in order: "done", or the code of its error."""
        out = []
        for effect in self.effects:
            if isinstance(effect, ev.SendError) and effect.request_id == request_id:
                out.append(effect.code)
            if isinstance(effect, ev.SendOutput) and effect.request_id == request_id and effect.done:
                out.append("done")
        return out

    def outputs(self, request_id):
        return [effect.seq for effect in self.of(ev.SendOutput) if effect.request_id == request_id]

    def forgotten(self, request_id):
        return sum(effect.request_id == request_id for effect in self.of(ev.ForgetBody))

    def where(self, request_id):
        return self.router.requests[request_id].worker

    def is_empty(self):
        """Whether nothing of any request is left."""
        router = self.router
        return not any((router.requests, router.clients, len(router._deadlines))) and not any(
            worker.slots or worker.exclusive for worker in router.workers.values()
        )


def only(kind, effects):
    """The one effect of a kind."""
    found = [effect for effect in effects if isinstance(effect, kind)]
    assert len(found) == 1, effects
    return found[0]


def kinds(effects):
    return [type(effect).__name__ for effect in effects]


def refusal(effects, request_id="r"):
    """The error of a request that was not accepted."""
    assert kinds(effects) == ["SendError", "ForgetBody"]
    assert {effect.request_id for effect in effects} == {request_id}
    return effects[0]
