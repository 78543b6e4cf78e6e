"""All that changes the state of a request lives here: a pure machine, `handle(event) -> effects`.

It knows no socket, clock, thread or pipeline; `process.py` feeds it and acts on what it says. Events and effects are
in `events.py`, the order of waiting requests and the choice of workers in `queues.py`, the books in `records.py`.

    request   QUEUED → RUNNING → (QUEUED again when its worker is lost) → ended: finished, failed, cancelled, expired
    worker    STARTING → READY → DRAINING → gone

An accepted request gets exactly one terminal effect: SendOutput with `done`, or SendError; unless its client is gone.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable
from typing import Any

from .. import errors
from . import events as ev
from .records import Client, Limits, Model, Request, RequestState, Worker, WorkerState
from .story import Stories

#: A request lost with this many workers is taken for their killer.
MAX_ATTEMPTS = 3


class Router:
    """Admission, order, dispatch, retry, cancellation and drain of every request of one cluster."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.requests: dict[str, Request] = {}
        self.workers: dict[str, Worker] = {}
        self.models: dict[str, Model] = {}
        self.clients: dict[str, Client] = {}
        self.accepting = True
        #: Requests by outcome since the start.
        self.outcomes: dict[str, int] = {}
        self._stories = Stories()
        #: (deadline, request_id) of live requests, lazily deleted.
        self._deadlines: list[tuple[float, str]] = []
        #: Whether a fleet has told what is expected; without one, standalone workers define the models.
        self._has_fleet = False
        self._effects: list[ev.Effect] = []
        self._at = 0.0

    def handle(self, event: ev.Event) -> list[ev.Effect]:
        """Take one event and say what is to be done, in order."""
        self._at = event.at
        _HANDLERS[type(event)](self, event)
        effects, self._effects = self._effects, []
        return effects

    def story(self, request_id: str) -> tuple[str, ...]:
        """What happened to a request so far, or while it lived."""
        return self._stories.tell(request_id)

    def next_deadline(self) -> float | None:
        """When a `Ticked` is due for a request's deadline, in the time of the events; None for never."""
        while self._deadlines and not self._deadline_counts(self._deadlines[0]):
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    # -- requests arrive ----------------------------------------------------------------------------------------------

    def _on_request(self, event: ev.RequestArrived) -> None:
        known = self.requests.get(event.request_id)
        if known is not None and known.client == event.client:
            self._tell(known, "sent again by its client, already known")
            return
        refusal = self._refusal(event, known)
        if refusal is not None:
            self._refuse(event, refusal)
            return
        self._accept(event)

    def _refusal(self, event: ev.RequestArrived, known: Request | None) -> errors.TensoryardError | None:
        """Why a request is not accepted; None when it is."""
        if not self.accepting:
            return errors.ShuttingDown("the cluster is shutting down and accepts nothing new")
        if known is not None:
            return errors.DuplicateRequest("a request with this RequestID is live, from another client; use a fresh id")
        model = self.models.get(event.model)
        if model is None:
            return errors.UnknownModel(f"no deployment serves model {event.model!r}; served are {sorted(self.models)}")
        if model.task != event.task:
            return errors.WrongTask(f"model {event.model!r} serves task {model.task!r}, not {event.task!r}")
        if model.unhealthy and not model.workers:
            return errors.DeploymentUnhealthy(_unhealthy_text(model))
        return self._overload(event, model)

    def _overload(self, event: ev.RequestArrived, model: Model) -> errors.Overloaded | None:
        client = self.clients.get(event.client)
        weight = event.shared_bytes + event.body_bytes
        if client is not None and len(client.live) >= self.limits.max_in_flight_per_client:
            over = f"this client has {len(client.live)} requests in flight, the most one client may have"
        elif len(model.queue) >= model.max_queued:
            over = f"{len(model.queue)} requests wait for model {model.name!r}, the most that may (max_queued)"
        elif model.queued_bytes + weight > model.max_queued_bytes and len(model.queue):
            over = f"{model.queued_bytes} bytes wait for model {model.name!r}, near the most that may (max_queued_bytes)"
        else:
            return None
        retry_after_s = model.expected_wait_s()
        return errors.Overloaded(f"{over}; try again in {retry_after_s:.2f} s", retry_after_s=retry_after_s)

    def _refuse(self, event: ev.RequestArrived, error: errors.TensoryardError) -> None:
        self._count("rejected")
        self._effects.append(
            ev.SendError(
                client=event.client,
                request_id=event.request_id,
                code=error.code,
                text=error.text,
                retry_after_s=getattr(error, "retry_after_s", 0.0),
            ),
        )
        if event.request_id not in self.requests:
            self._effects.append(ev.ForgetBody(request_id=event.request_id))

    def _accept(self, event: ev.RequestArrived) -> None:
        deadline = self._at + event.deadline_s if event.deadline_s is not None else math.inf
        request = Request(
            request_id=event.request_id,
            client=event.client,
            model=event.model,
            priority=event.priority,
            deadline=deadline,
            host=event.host if event.shared_bytes else "",
            weight_bytes=event.shared_bytes + event.body_bytes,
            arrived=self._at,
        )
        self.requests[request.request_id] = request
        self.clients.setdefault(event.client, Client()).live.add(request.request_id)
        if deadline < math.inf:
            heapq.heappush(self._deadlines, (deadline, request.request_id))
        self._tell(request, "accepted")
        if not self._adopt(request):
            self._enqueue(request)
            self._dispatch(self.models[request.model])

    def _adopt(self, request: Request) -> bool:
        """A worker that joined from an earlier coordinator may be at work on it already."""
        for worker in self.models[request.model].workers.values():
            attempt = worker.adopted.pop(request.request_id, None)
            if attempt is not None:
                request.state = RequestState.RUNNING
                request.worker, request.attempt, request.started = worker.name, attempt, self._at
                self._tell(request, f"already running on {worker.name}, attempt {attempt}")
                return True
        return False

    def _enqueue(self, request: Request) -> None:
        model = self.models[request.model]
        request.state = RequestState.QUEUED
        request.worker = ""
        if request.losses:
            model.suspects[request.request_id] = None
        else:
            model.queue.push(
                request.request_id,
                client=request.client,
                priority=request.priority,
                deadline=request.deadline,
            )
        model.queued_bytes += request.weight_bytes

    # -- dispatch -----------------------------------------------------------------------------------------------------

    def _dispatch(self, model: Model) -> None:
        """Hand out requests while a worker of the model has a credit."""
        self._dispatch_suspects(model)
        while len(model.queue):
            if model.free_workers.least() is None:
                return
            request_id = model.queue.pop()
            assert request_id is not None, "a queue that is not empty has a first request"
            request = self.requests[request_id]
            name = model.free_workers.least(request.host)
            assert name is not None, "there was a free worker a moment ago"
            self._start(model, request, self.workers[name])

    def _dispatch_suspects(self, model: Model) -> None:
        """Run requests that were lost with a worker alone, one per worker, so that a poisonous one harms no other.

        A worker is reserved for the first of them: it gets nothing new until it is idle.
        """
        while model.suspects:
            worker = self._reserve(model)
            if worker is None or worker.slots:
                return
            request_id = next(iter(model.suspects))
            del model.suspects[request_id]
            model.reserved = ""
            worker.exclusive = True
            self._start(model, self.requests[request_id], worker)

    def _reserve(self, model: Model) -> Worker | None:
        reserved = self.workers.get(model.reserved)
        if reserved is not None and reserved.state is WorkerState.READY:
            return reserved
        candidates = [w for w in model.workers.values() if w.state is WorkerState.READY and not w.exclusive]
        if not candidates:
            return None
        worker = min(candidates, key=lambda candidate: len(candidate.slots))
        model.reserved = worker.name
        self._offer(model, worker)
        return worker

    def _start(self, model: Model, request: Request, worker: Worker) -> None:
        model.queued_bytes -= request.weight_bytes
        request.state = RequestState.RUNNING
        request.attempt += 1
        request.worker = worker.name
        request.started = self._at
        if not worker.slots:
            worker.progressed = self._at
        worker.slots[request.request_id] = request.attempt
        self._offer(model, worker)
        self._tell(request, f"sent to {worker.name}, attempt {request.attempt}")
        left = request.deadline - self._at if request.deadline < math.inf else None
        self._effects.append(
            ev.SendRequest(
                worker=worker.name,
                request_id=request.request_id,
                attempt=request.attempt,
                deadline_s=left,
            ),
        )

    def _offer(self, model: Model, worker: Worker) -> None:
        """Enter a worker among the free ones of its model, or take it out."""
        free = worker.state is WorkerState.READY and not worker.exclusive and model.reserved != worker.name
        if free and len(worker.slots) < worker.credits:
            model.free_workers.set(worker.name, len(worker.slots) / worker.credits, worker.host)
        else:
            model.free_workers.remove(worker.name)

    # -- answers ------------------------------------------------------------------------------------------------------

    def _on_output(self, event: ev.OutputArrived) -> None:
        worker = self.workers.get(event.worker)
        ends = event.done or bool(event.code)
        if worker is not None:
            worker.progressed = self._at
        request = self.requests.get(event.request_id)
        current = request is not None and (request.worker, request.attempt) == (event.worker, event.attempt)
        if request is not None and current and event.seq >= request.delivered:
            self._deliver(request, event)
        elif not event.code:
            self._effects.append(_discard(event))
        if worker is not None and ends:
            self._free_slot(worker, event.request_id, event.attempt)

    def _deliver(self, request: Request, event: ev.OutputArrived) -> None:
        if event.code:
            self._finish_with_error(request, event.code, event.text)
            return
        if event.seq > request.delivered:
            self._effects.append(_discard(event))
            text = f"worker {event.worker} sent part {event.seq} where part {request.delivered} was due"
            self._finish_with_error(request, errors.PipelineError.code, text)
            self._effects.append(
                ev.SendCancel(worker=event.worker, request_id=event.request_id, attempt=event.attempt),
            )
            return
        request.delivered += 1
        self._effects.append(
            ev.SendOutput(client=request.client, request_id=request.request_id, seq=event.seq, done=event.done),
        )
        if event.done:
            self.models[request.model].learn(self._at - request.started)
            self._end(request, "finished")

    def _free_slot(self, worker: Worker, request_id: str, attempt: int) -> None:
        if worker.slots.get(request_id) != attempt:
            return
        del worker.slots[request_id]
        worker.adopted.pop(request_id, None)
        worker.exclusive = worker.exclusive and bool(worker.slots)
        model = self.models.get(worker.model)
        if model is not None:
            self._offer(model, worker)
            self._dispatch(model)

    # -- ends ---------------------------------------------------------------------------------------------------------

    def _finish_with_error(self, request: Request, code: str, text: str) -> None:
        self._tell(request, f"{code}: {text[:200]}")
        error = ev.SendError(
            client=request.client,
            request_id=request.request_id,
            code=code,
            text=text,
            story=self.story(request.request_id),
        )
        self._effects.append(error)
        outcome = code if code in ("cancelled", "expired", "worker_lost", "poison_request") else "failed"
        self._end(request, outcome)

    def _end(self, request: Request, outcome: str) -> None:
        """The one place where a request leaves the books."""
        self._unqueue(request)
        del self.requests[request.request_id]
        client = self.clients[request.client]
        client.live.discard(request.request_id)
        if not client.live:
            del self.clients[request.client]
        self._count(outcome)
        self._tell(request, outcome)
        self._stories.end(request.request_id)
        self._effects.append(ev.ForgetBody(request_id=request.request_id))

    def _unqueue(self, request: Request) -> None:
        model = self.models.get(request.model)
        if model is None or request.state is not RequestState.QUEUED:
            return
        model.queue.remove(request.request_id)
        model.suspects.pop(request.request_id, None)
        model.queued_bytes -= request.weight_bytes

    def _stop_work(self, request: Request) -> None:
        if request.state is RequestState.RUNNING:
            self._effects.append(
                ev.SendCancel(worker=request.worker, request_id=request.request_id, attempt=request.attempt),
            )

    def _on_cancel(self, event: ev.CancelAsked) -> None:
        request = self.requests.get(event.request_id)
        if request is not None and request.client == event.client:
            self._stop_work(request)
            self._finish_with_error(request, errors.RequestCancelled.code, "cancelled by its client")

    def _on_client_gone(self, event: ev.ClientGone) -> None:
        client = self.clients.get(event.client)
        for request_id in sorted(client.live) if client else ():
            request = self.requests[request_id]
            self._tell(request, "its client is gone")
            self._stop_work(request)
            self._end(request, "cancelled")

    def _on_tick(self, _event: ev.Ticked) -> None:
        while (due := self.next_deadline()) is not None and due <= self._at:
            request = self.requests[heapq.heappop(self._deadlines)[1]]
            where = "waiting" if request.state is RequestState.QUEUED else f"running on {request.worker}"
            waited = self._at - request.arrived
            self._stop_work(request)
            self._finish_with_error(request, "expired", f"its deadline passed after {waited:.3f} s, while {where}")
        for worker in [w for w in self.workers.values() if w.is_hung(self._at)]:
            idle_s = self._at - worker.progressed
            self._lose_worker(worker, "hung", f"worker {worker.name} made no progress for {idle_s:.1f} s")

    def _deadline_counts(self, entry: tuple[float, str]) -> bool:
        request = self.requests.get(entry[1])
        return request is not None and request.deadline == entry[0]

    # -- workers ------------------------------------------------------------------------------------------------------

    def _on_worker_joined(self, event: ev.WorkerJoined) -> None:
        if event.worker in self.workers:
            self._lose_worker(self.workers[event.worker], "gone", f"worker {event.worker} joined anew")
        self.workers[event.worker] = Worker(name=event.worker, host=event.host, progressed=self._at)

    def _on_worker_ready(self, event: ev.WorkerReadied) -> None:
        worker = self.workers.get(event.worker)
        if worker is None or worker.state is not WorkerState.STARTING:
            return
        model = self.models.get(event.model)
        if model is None:
            model = self.models[event.model] = Model(name=event.model, task=event.task, deployment=event.deployment)
            model.max_queued, model.max_queued_bytes = event.max_queued, event.max_queued_bytes
        worker.ready(event, self._at)
        model.workers[worker.name] = worker
        model.unhealthy = ""
        self._offer(model, worker)
        self._notify(worker.name, event.deployment, "ready")
        self._dispatch(model)

    def _on_start_failed(self, event: ev.WorkerStartFailed) -> None:
        self.workers.pop(event.worker, None)
        self._notify(event.worker, event.deployment, "start_failed", event.text)

    def _on_beat(self, event: ev.WorkerBeat) -> None:
        worker = self.workers.get(event.worker)
        if worker is not None and (event.progress != worker.progress or not event.busy):
            worker.progress, worker.progressed = event.progress, self._at

    def _on_worker_gone(self, event: ev.WorkerGone) -> None:
        worker = self.workers.get(event.worker)
        if worker is not None:
            self._lose_worker(worker, "gone", f"worker {worker.name} {event.reason}")

    def _lose_worker(self, worker: Worker, what: str, text: str) -> None:
        del self.workers[worker.name]
        self._notify(worker.name, worker.deployment, what, text)
        model = self.models.get(worker.model)
        if model is None:
            return
        del model.workers[worker.name]
        model.free_workers.remove(worker.name)
        if model.reserved == worker.name:
            model.reserved = ""
        for request_id, attempt in worker.slots.items():
            request = self.requests.get(request_id)
            if request is not None and (request.worker, request.attempt) == (worker.name, attempt):
                self._retry(request, text)
        self._forget_if_abandoned(model)
        if worker.model in self.models:
            self._dispatch(model)

    def _retry(self, request: Request, text: str) -> None:
        request.losses += 1
        self._tell(request, text)
        if request.losses < MAX_ATTEMPTS:
            self._enqueue(request)
            return
        self._finish_with_error(
            request,
            errors.PoisonRequest.code,
            f"{request.losses} workers of model {request.model!r} were lost while they ran this request "
            f"(the last: {text}); look at that deployment's logs before sending it again",
        )

    def _on_drain(self, event: ev.DrainAsked) -> None:
        worker = self.workers.get(event.worker)
        if worker is None or worker.state is WorkerState.DRAINING:
            return
        worker.state = WorkerState.DRAINING
        model = self.models.get(worker.model)
        if model is not None:
            if model.reserved == worker.name:
                model.reserved = ""
            self._offer(model, worker)
            self._dispatch(model)
        self._effects.append(ev.SendDrain(worker=worker.name))

    # -- deployments --------------------------------------------------------------------------------------------------

    def _on_deployments(self, event: ev.DeploymentsChanged) -> None:
        self._has_fleet = True
        expected = {entry.model: entry for entry in event.deployments}
        for entry in event.deployments:
            self._expect(entry)
        for model in [model for model in self.models.values() if model.name not in expected]:
            model.expected = False
            self._forget_if_abandoned(model)

    def _expect(self, entry: ev.DeploymentExpected) -> None:
        model = self.models.get(entry.model)
        if model is None:
            model = self.models[entry.model] = Model(name=entry.model, task=entry.task, deployment=entry.deployment)
        model.expected = True
        model.replicas = entry.replicas
        model.max_queued, model.max_queued_bytes = entry.max_queued, entry.max_queued_bytes
        model.unhealthy = "" if model.workers else entry.unhealthy
        if model.unhealthy:
            self._fail_waiting(model, errors.DeploymentUnhealthy.code, _unhealthy_text(model))

    def _forget_if_abandoned(self, model: Model) -> None:
        """A model that no fleet expects and no worker serves is served no more; its requests must not wait for ever."""
        if model.expected or model.workers:
            return
        text = f"the last worker of model {model.name!r} has left and none is expected"
        self._fail_waiting(model, errors.WorkerLost.code, text)
        del self.models[model.name]

    def _fail_waiting(self, model: Model, code: str, text: str) -> None:
        for request_id in [*model.suspects, *model.queue.waiting()]:
            self._finish_with_error(self.requests[request_id], code, text)

    def _on_shutdown(self, _event: ev.ShutdownAsked) -> None:
        self.accepting = False

    # -- small things -------------------------------------------------------------------------------------------------

    def _tell(self, request: Request, text: str) -> None:
        self._stories.add(request.request_id, self._at, text)

    def _count(self, outcome: str) -> None:
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    def _notify(self, worker: str, deployment: str, what: str, text: str = "") -> None:
        self._effects.append(ev.NotifyFleet(worker=worker, deployment=deployment, what=what, text=text))

    def check_invariants(self) -> None:
        """Raise AssertionError when the books do not balance; O(everything), for tests."""
        for request in self.requests.values():
            self._check_request(request)
        for model in self.models.values():
            waiting = {*model.queue.waiting(), *model.suspects}
            assert all(self.requests[r].state is RequestState.QUEUED for r in waiting), "a waiting request is not QUEUED"
            weight = sum(self.requests[r].weight_bytes for r in waiting)
            assert weight == model.queued_bytes, f"{model.name}: {model.queued_bytes} bytes counted, {weight} waiting"
        for name, worker in self.workers.items():
            assert len(worker.slots) <= worker.credits, f"{name} holds more than its credits"
            model_known = worker.state is WorkerState.STARTING or name in self.models[worker.model].workers
            assert model_known, f"{name} is not among its model's workers"
        _check_clients(self.clients, self.requests.values())

    def _check_request(self, request: Request) -> None:
        model = self.models[request.model]
        queued = request.request_id in model.queue or request.request_id in model.suspects
        if request.state is RequestState.QUEUED:
            assert queued, f"{request.request_id} is QUEUED and in no queue"
            assert not request.worker, f"{request.request_id} is QUEUED and has a worker"
        else:
            assert not queued, f"{request.request_id} is RUNNING and in a queue"
            slots = self.workers[request.worker].slots
            assert slots.get(request.request_id) == request.attempt, f"{request.request_id} runs in no slot"


def _check_clients(clients: dict[str, Client], requests: Iterable[Request]) -> None:
    live: dict[str, set[str]] = {}
    for request in requests:
        live.setdefault(request.client, set()).add(request.request_id)
    assert live == {name: client.live for name, client in clients.items()}, "a client's live requests are miscounted"


def _discard(event: ev.OutputArrived) -> ev.SendDiscard:
    return ev.SendDiscard(
        worker=event.worker,
        request_id=event.request_id,
        attempt=event.attempt,
        seq=event.seq,
    )


def _unhealthy_text(model: Model) -> str:
    return f"model {model.name!r} cannot start: {model.unhealthy}"


_HANDLERS: dict[type[ev.Event], Callable[[Router, Any], None]] = {
    ev.RequestArrived: Router._on_request,
    ev.CancelAsked: Router._on_cancel,
    ev.ClientGone: Router._on_client_gone,
    ev.WorkerJoined: Router._on_worker_joined,
    ev.WorkerReadied: Router._on_worker_ready,
    ev.WorkerStartFailed: Router._on_start_failed,
    ev.WorkerBeat: Router._on_beat,
    ev.WorkerGone: Router._on_worker_gone,
    ev.DrainAsked: Router._on_drain,
    ev.OutputArrived: Router._on_output,
    ev.DeploymentsChanged: Router._on_deployments,
    ev.ShutdownAsked: Router._on_shutdown,
    ev.Ticked: Router._on_tick,
}
