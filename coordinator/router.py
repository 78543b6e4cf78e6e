"""All that changes the state of a request lives here: a pure machine, `handle(event) -> effects`.

It knows no socket, clock, thread or pipeline; `broker.py` feeds it and acts on what it says. Events and effects are
in `events.py`, the order of waiting requests and the choice of workers in `queues.py`, the books in `records.py`.

    request   QUEUED → RUNNING → (QUEUED again when its worker is lost) → ended: finished, failed, cancelled, expired
    worker    STARTING → READY → DRAINING → gone

Handlers change the books and mark models in which a request may start now; `handle` starts them at its end, so that
nothing starts while the books are half changed.

An accepted request gets exactly one terminal effect: SendOutput with `done`, or SendError; unless its client is gone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

from .. import errors
from . import events as ev
from .adapters import AdapterBooks
from .admission import overload
from .queues import LazyHeap, RequestQueue
from .records import (
    Adapter,
    AdapterState,
    Client,
    Limits,
    Model,
    Request,
    RequestState,
    Worker,
    WorkerState,
    check_adapters,
    check_clients,
    check_model,
    check_request,
    check_worker,
    same_submission,
)
from .story import Stories, told, write

#: A request lost with this many workers is taken for their killer.
MAX_ATTEMPTS = 3
#: Looked at for each part of each stream; asking the class for it takes three times as long.
_RUNNING = RequestState.RUNNING


class Router:
    """Admission, order, dispatch, retry, cancellation and drain of every request of one cluster."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.requests: dict[str, Request] = {}
        self.workers: dict[str, Worker] = {}
        self.models: dict[str, Model] = {}
        self.clients: dict[str, Client] = {}
        self.accepting = True
        #: Bytes of the bodies of live requests, which the coordinator keeps for a retry.
        self.kept_bytes = 0
        #: Requests by outcome (`errors.OUTCOMES`) since the start.
        self.outcomes: dict[str, int] = {}
        self._stories = Stories()
        #: Live requests that have a deadline, by it.
        self._deadlines = LazyHeap()
        #: Workers that hold work, and some that did, by when to look whether they hang; never later than `hangs_at`.
        self._hang_checks = LazyHeap()
        #: Number of the last dispatch. Never used twice, and above all that workers bring along: a RequestID may be
        #: used again while a worker still holds an attempt of its earlier life.
        self._attempts = 0
        #: Models in which a request may start now.
        self._stirred: dict[str, Model] = {}
        self._effects: list[ev.Effect] = []
        self._at = 0.0
        self.adapters = AdapterBooks(
            self.models,
            self.requests,
            emit=self._emit,
            offer=self._offer,
            stir=self._stir,
            fail=self._fail_without_adapter,
        )
        self._handlers: dict[type[ev.Event], Callable[[Any], None]] = {
            ev.RequestArrived: self._on_request,
            ev.CancelAsked: self._on_cancel,
            ev.PartsConsumed: self._on_consumed,
            ev.ClientGone: self._on_client_gone,
            ev.WorkerJoined: self._on_worker_joined,
            ev.WorkerReadied: self._on_worker_ready,
            ev.WorkerStartFailed: self._on_start_failed,
            ev.WorkerBeat: self._on_beat,
            ev.WorkerGone: self._on_worker_gone,
            ev.DrainAsked: self._on_drain,
            ev.OutputArrived: self._on_output,
            ev.DeploymentsChanged: self._on_deployments,
            ev.ShutdownAsked: self._on_shutdown,
            ev.TimeLost: self._on_time_lost,
            ev.AdapterAsked: self.adapters.ask,
            ev.AdapterDone: self.adapters.done,
            ev.Ticked: self._on_tick,
        }

    def handle(self, event: ev.Event) -> list[ev.Effect]:
        """Take one event and say what is to be done, in order."""
        self._at = max(self._at, event.at)
        self._handlers[type(event)](event)
        while self._stirred:
            self._dispatch(self._stirred.popitem()[1])
        effects, self._effects = self._effects, []
        return effects

    @property
    def has_news(self) -> bool:
        """Something may start, or is to be done, since a `take_last`: the next event, whichever it is, brings it."""
        return bool(self._stirred or self._effects)

    def knows(self, client: str, request_id: str, submission: int) -> bool:
        """Whether a request of that name lives that such an arrival would not replace."""
        known = self.requests.get(request_id)
        return known is not None and (known.client != client or same_submission(known.submission, submission))

    def story(self, request_id: str) -> tuple[str, ...]:
        """What happened to a request so far, or while it lived."""
        request = self.requests.get(request_id)
        return told(self._stories.of(request_id) if request is None else request.lines)

    def next_deadline(self) -> float | None:
        """When a `Ticked` is due for a deadline or a hung worker, in the time of the events; None for never."""
        due = min(self._deadlines.first_rank(), self._hang_checks.first_rank(), self.adapters.next_deadline())
        return due if due < math.inf else None

    # -- requests arrive ----------------------------------------------------------------------------------------------

    def _on_request(self, event: ev.RequestArrived) -> None:
        known = self.requests.get(event.request_id)
        if known is not None and known.client == event.client:
            if same_submission(known.submission, event.submission):
                self._tell(known, "sent again by its client, already known")
                self._move_window(known, event.consumed)
                return
            self._replace(known)
            known = None
        model = self.served(event.model)
        refusal = self._refusal(event, known, model)
        if refusal is not None:
            self._refuse(event, refusal)
            return
        assert model is not None, "requests for what nobody serves were refused"
        self._accept(event, model)

    def _refusal(
        self, event: ev.RequestArrived, known: Request | None, model: Model | None
    ) -> errors.TensoryardError | None:
        """Why a request, which would go to that model, is not accepted; None when it is."""
        if not self.accepting:
            return errors.ShuttingDown("the cluster is shutting down and accepts nothing new")
        if known is not None:
            return errors.DuplicateRequest("a request with this RequestID is live, from another client; use a fresh id")
        return self._refusal_by_model(event, model)

    def _refusal_by_model(self, event: ev.RequestArrived, model: Model | None) -> errors.TensoryardError | None:
        if model is None:
            return errors.UnknownModel(self._unknown_text(event.model))
        if model.task != event.task:
            return errors.WrongTask(f"model {event.model!r} serves task {model.task!r}, not {event.task!r}")
        if model.unhealthy and not model.workers:
            return errors.DeploymentUnhealthy(_unhealthy_text(model))
        if model.adoptable and _runs_already(model, event.request_id, event.submission):
            return None  # an earlier coordinator has accepted it
        client = self.clients.get(event.client) or Client()
        return overload(event, model=model, client=client, kept_bytes=self.kept_bytes, limits=self.limits)

    def served(self, name: str) -> Model | None:
        """The model that requests for this name go to: its own, or that of an adapter which takes requests."""
        model = self.models.get(name)
        if model is not None:
            return model
        adapter = self.adapters.named(name)
        loaded = adapter is not None and adapter.state is AdapterState.LOADED
        return self.models[adapter.model] if adapter is not None and loaded else None

    def _unknown_text(self, name: str) -> str:
        adapter = self.adapters.named(name)
        if adapter is not None:
            return f"the adapter {name!r} of model {adapter.model!r} is {adapter.state.value}, and takes no requests"
        return f"no deployment serves model {name!r}, and no adapter is called so; served are {sorted(self.models)}"

    def _refuse(self, event: ev.RequestArrived, error: errors.TensoryardError) -> None:
        self.count("rejected")
        self._effects.append(
            ev.SendError(
                client=event.client,
                request_id=event.request_id,
                code=error.code,
                text=error.text,
                retry_after_s=getattr(error, "retry_after_s", 0.0),
                submission=event.submission,
            ),
        )
        if event.request_id not in self.requests:
            self._effects.append(ev.ForgetBody(request_id=event.request_id))

    def _accept(self, event: ev.RequestArrived, model: Model) -> None:
        deadline = self._at + event.deadline_s if event.deadline_s is not None else math.inf
        request = Request(
            request_id=event.request_id,
            client=event.client,
            model=model.name,
            adapter="" if model.name == event.model else event.model,
            priority=event.priority,
            deadline=deadline,
            host=event.host if event.shared_bytes else "",
            weight_bytes=event.shared_bytes + event.body_bytes,
            body_bytes=event.body_bytes,
            arrived=self._at,
            window_parts=event.window_parts,
            window_bytes=event.window_bytes,
            consumed=event.consumed,
            submission=event.submission,
            porter=event.porter,
            uses=event.uses,
        )
        self.requests[request.request_id] = request
        if request.adapter:
            self.adapters.entered(request)
        model.count_live(1)
        client = self.clients.get(event.client)
        if client is None:
            client = self.clients[event.client] = Client()
        client.live.add(request.request_id)
        client.weight_bytes += request.weight_bytes
        self.kept_bytes += request.body_bytes
        if deadline < math.inf:
            self._deadlines.set(request.request_id, deadline)
        write(request.lines, self._at, "accepted")
        if model.adoptable and self._adopted(model, request):
            return
        if not self._start_at_once(model, request):
            self._enqueue(request)

    def _adopted(self, model: Model, request: Request) -> bool:
        """Whether a worker is at work on a request that has just come: then it goes on."""
        runs_already = _runs_already(model, request.request_id, request.submission)
        worker, attempt, _ = model.adoptable.pop(request.request_id, (None, 0, 0))
        if worker is not None and runs_already:
            self._adopt(request, worker, attempt)
        elif worker is not None:  # at work on another request of that name, which nobody can ask for any more
            self._effects.append(ev.SendCancel(worker=worker.name, request_id=request.request_id, attempt=attempt))
        return runs_already

    def _start_at_once(self, model: Model, request: Request) -> bool:
        """Where nobody waits and a worker is free, a newcomer need not queue: the same outcome by a shorter way."""
        if model.waiting or request.deadline <= self._at:
            return False
        name = model.least(request)
        if name is None:
            return False
        model.queued_bytes += request.weight_bytes
        self._start(model, request, self.workers[name])
        return True

    def _replace(self, request: Request) -> None:
        """Its client has given it up, unheard by us, and now asks for something else by its name.

        Whoever waited for it has been told by the client, and what is kept as its body is the newcomer's by now.
        """
        self._tell(request, "given up by its client, which sent another request of this name")
        self._stop_work(request)
        self._end(request, "cancelled", forget_body=False)

    def _adopt(self, request: Request, worker: Worker, attempt: int) -> None:
        """A worker that was here before, or with an earlier coordinator, is at work on it already."""
        request.state = RequestState.RUNNING
        request.worker, request.attempt, request.adopted = worker.name, attempt, True
        request.started = self._at
        self._tell(request, f"already running on {worker.name}, attempt {attempt}")
        self._tell_consumed(request)

    def _enqueue(self, request: Request) -> None:
        model = self.models[request.model]
        self._stirred[model.name] = model
        request.state = RequestState.QUEUED
        request.worker = ""
        if request.losses:
            model.suspects[request.request_id] = None
        else:
            _push(model.queue, request)
        model.queued_bytes += request.weight_bytes

    # -- dispatch -----------------------------------------------------------------------------------------------------

    def _dispatch(self, model: Model) -> None:
        """Hand out requests while a worker of the model has a credit."""
        if model.suspects:
            self._dispatch_suspects(model)
        for lane in list(model.lanes.values()) if model.lanes else ():
            self._dispatch_lane(model, lane)
        while len(model.queue) and model.free_workers.least() is not None:
            request_id = model.queue.pop()
            assert request_id is not None, "a queue with a length has a first"
            request = self.requests[request_id]
            if request.deadline <= self._at:
                self._expire(request)
                continue
            name = model.least(request)
            if name is not None:
                self._start(model, request, self.workers[name])
            else:  # those that are free lack its adapter: it lets others pass, and goes first when one has it
                _push(model.lanes[request.adapter].queue, request)

    def _dispatch_lane(self, model: Model, lane: Adapter) -> None:
        """The same for those that wait for a worker with their adapter."""
        while (name := lane.free.least()) is not None:
            request_id = lane.queue.pop()
            if request_id is None:
                return
            request = self.requests[request_id]
            if request.deadline <= self._at:
                self._expire(request)
            else:
                self._start(model, request, self.workers[model.least(request) or name])

    def _dispatch_suspects(self, model: Model) -> None:
        """Run requests that were lost with a worker apart from the others, so that a poisonous one harms none of them.

        On their second try they share a worker with their like, on their last each has one alone: then it shows who
        the killer is. Where no worker is idle, one is reserved for them: it gets nothing new until it is idle.
        """
        while (request := self._first_suspect(model)) is not None:
            if request.deadline <= self._at:
                self._expire(request)
                continue
            worker = self._reserve(model, request)
            if worker is None or worker.slots:
                return
            model.reserved = ""
            worker.exclusive = True
            for companion in self._company(model, request, worker):
                del model.suspects[companion.request_id]
                self._start(model, companion, worker)

    def _first_suspect(self, model: Model) -> Request | None:
        """The first for which a worker is free, or kept, that has its adapter."""
        kept = model.reserved
        for request in map(self.requests.__getitem__, model.suspects):
            if model.least(request) is not None or (kept and model.can_run(kept, request)):
                return request
        return None

    def _company(self, model: Model, first: Request, worker: Worker) -> list[Request]:
        """The first suspect, and those that may share a worker with it."""
        if first.losses >= MAX_ATTEMPTS - 1:
            return [first]
        waiting = (self.requests[request_id] for request_id in model.suspects)
        alike = (r for r in waiting if r.losses < MAX_ATTEMPTS - 1 and r.deadline > self._at)
        able = (r for r in alike if model.can_run(worker.name, r))
        return list(itertools.islice(able, worker.credits))

    def _reserve(self, model: Model, request: Request) -> Worker | None:
        """The worker for the next suspect: an idle one, else the one that is kept free. None while all are full."""
        if model.reserved and not model.can_run(model.reserved, request):
            self._release_reserved(model)
        least = self.workers.get(model.least(request) or "")
        kept = self.workers.get(model.reserved)
        if least is not None and (kept is None or not least.slots):
            model.reserved = least.name
            self._offer(model, least)
            if kept is not None:
                self._offer(model, kept)
            return least
        return kept

    def _release_reserved(self, model: Model) -> None:
        """Nothing is suspect any more, or the reserved worker is not to get anything."""
        worker = self.workers.get(model.reserved)
        model.reserved = ""
        if worker is not None:
            self._offer(model, worker)
        self._stirred[model.name] = model

    def _start(self, model: Model, request: Request, worker: Worker) -> None:
        model.queued_bytes -= request.weight_bytes
        self._attempts += 1
        request.state = RequestState.RUNNING
        request.worker, request.attempt, request.adopted = worker.name, self._attempts, False
        request.started = self._at
        if not worker.slots:
            worker.progressed = self._at
        worker.slots[request.request_id, request.attempt] = None
        self._watch(worker)
        self._offer(model, worker)
        write(request.lines, self._at, f"sent to {worker.name}, attempt {request.losses + 1}")
        left = request.deadline - self._at if request.deadline < math.inf else None
        self._effects.append(
            ev.SendRequest(
                worker=worker.name,
                request_id=request.request_id,
                attempt=request.attempt,
                deadline_s=left,
                window_parts=request.window_parts,
                window_bytes=request.window_bytes,
                consumed=request.consumed,
                submission=request.submission,
                adapter=request.adapter,
            ),
        )

    def _offer(self, model: Model, worker: Worker) -> None:
        """Enter a worker among the free ones of its model, or take it out."""
        free = worker.state is WorkerState.READY and not worker.exclusive and model.reserved != worker.name
        if free and len(worker.slots) < worker.credits:
            model.offer(worker)
        else:
            model.withdraw(worker)

    def _stir(self, model: Model) -> None:
        self._stirred[model.name] = model

    def _emit(self, effect: ev.Effect) -> None:
        self._effects.append(effect)

    # -- answers ------------------------------------------------------------------------------------------------------

    def take_part(self, worker_name: str, request_id: str, attempt: int, seq: int, at: float) -> Request | None:
        """The request whose stream this is the next part of; it has been entered, and is to go to the client.

        None, and nothing is changed, for any other output: that is an `OutputArrived`. Parts of streams are by far the
        most frequent events, and mean so little that an event and an effect would cost more than what they say.
        """
        request = self.requests.get(request_id)
        if request is None or request.attempt != attempt or request.delivered != seq:
            return None
        if request.worker != worker_name or request.state is not _RUNNING:
            return None
        if at > self._at:  # noqa: PLR1730 - a call of `max` costs a tenth of all this
            self._at = at
        self.workers[worker_name].progressed = self._at
        request.delivered = seq + 1
        return request

    def take_last(self, worker_name: str, request_id: str, attempt: int, seq: int, at: float) -> Request | None:
        """The same for the last output of a request that runs: it has ended, and is to be forgotten.

        What follows from that for others comes with the next event's effects; `has_news` says whether there is any.
        """
        request = self.requests.get(request_id)
        if request is None or request.attempt != attempt or request.delivered != seq:
            return None
        if request.worker != worker_name or request.state is not RequestState.RUNNING:
            return None
        worker = self.workers[worker_name]
        self._at = worker.progressed = max(self._at, at)
        request.delivered += 1
        self.models[request.model].learn(self._at - request.started)
        self._end(request, "finished", forget_body=False)
        self._free_slot(worker, request_id, attempt)
        return request

    def _on_output(self, event: ev.OutputArrived) -> None:
        worker = self.workers.get(event.worker)
        if worker is not None:
            worker.progressed = self._at
        request = self.requests.get(event.request_id)
        if request is not None and (request.worker, request.attempt) == (event.worker, event.attempt):
            self._deliver(request, event)
        elif not event.code:
            self._effects.append(_discard(event))
            if worker is not None and not event.done:
                self._give_up_adoptable(worker, event.request_id, event.attempt)
        if worker is not None and (event.done or event.code):
            self._free_slot(worker, event.request_id, event.attempt)

    def _deliver(self, request: Request, event: ev.OutputArrived) -> None:
        """An answer of the attempt that counts. An error counts whatever its number."""
        if event.code:
            self._finish_with_error(request, event.code, event.text)
            return
        if event.seq != request.delivered:
            self._effects.append(_discard(event))
            if event.done or event.seq > request.delivered:
                self._out_of_step(request, event)
            return
        request.delivered += 1
        self._effects.append(
            ev.SendOutput(
                client=request.client,
                request_id=request.request_id,
                seq=event.seq,
                done=event.done,
                submission=request.submission,
            ),
        )
        if event.done:
            self.models[request.model].learn(self._at - request.started)
            self._end(request, "finished")

    def _out_of_step(self, request: Request, event: ev.OutputArrived) -> None:
        """Parts are missing, or the last part comes before parts that were passed on already.

        Of adopted work they may have gone to an earlier coordinator, so it is run again, from its first part.
        """
        if not event.done:
            self._stop_work(request)
        text = f"worker {event.worker} sent part {event.seq} where part {request.delivered} was due"
        if request.adopted:
            self._tell(request, f"{text}; to be run again")
            self._enqueue(request)
        else:
            self._finish_with_error(request, errors.PipelineError.code, text)

    def _on_consumed(self, event: ev.PartsConsumed) -> None:
        request = self.requests.get(event.request_id)
        if request is not None and request.client == event.client:
            self._move_window(request, event.parts)

    def _move_window(self, request: Request, consumed: int) -> None:
        """Its caller has read on: its worker may go on. A worker that gets it later is told with the request."""
        if consumed > request.consumed:
            request.consumed = consumed
            self._tell_consumed(request)

    def _tell_consumed(self, request: Request) -> None:
        if request.consumed and request.state is RequestState.RUNNING:
            told = ev.SendConsumed(
                worker=request.worker,
                request_id=request.request_id,
                attempt=request.attempt,
                parts=request.consumed,
            )
            self._effects.append(told)

    def _free_slot(self, worker: Worker, request_id: str, attempt: int) -> None:
        slot = (request_id, attempt)
        if slot not in worker.slots:
            return
        del worker.slots[slot]
        worker.exclusive = worker.exclusive and bool(worker.slots)
        model = self.models[worker.model]
        if model.adoptable:
            _forget_adoptable(model, worker, request_id, attempt)
        self._offer(model, worker)
        if model.waiting:
            self._stirred[model.name] = model

    # -- ends ---------------------------------------------------------------------------------------------------------

    def _finish_with_error(self, request: Request, code: str, text: str) -> None:
        self._tell(request, f"{code}: {text}")
        outcome = errors.outcome_of(code)
        error = ev.SendError(
            client=request.client,
            request_id=request.request_id,
            code=code,
            text=text,
            outcome=outcome,
            story=told(request.lines),
            submission=request.submission,
        )
        self._effects.append(error)
        self._end(request, outcome)

    def _end(self, request: Request, outcome: str, *, forget_body: bool = True) -> None:
        """The one place where a request leaves the books."""
        if request.state is RequestState.QUEUED:
            self._unqueue(request)
        del self.requests[request.request_id]
        self.models[request.model].count_live(-1)
        if request.adapter:
            self.adapters.left(request)
        if request.deadline < math.inf:
            self._deadlines.remove(request.request_id)
        client = self.clients[request.client]
        client.live.discard(request.request_id)
        client.weight_bytes -= request.weight_bytes
        self.kept_bytes -= request.body_bytes
        if not client.live:
            del self.clients[request.client]
        self.count(outcome)
        write(request.lines, self._at, outcome)
        self._stories.keep(request.request_id, request.lines)
        if forget_body:
            self._effects.append(ev.ForgetBody(request_id=request.request_id))

    def _unqueue(self, request: Request) -> None:
        model = self.models[request.model]
        model.queue.remove(request.request_id)
        if request.adapter in model.lanes:
            model.lanes[request.adapter].queue.remove(request.request_id)
        model.suspects.pop(request.request_id, None)
        model.queued_bytes -= request.weight_bytes
        if model.reserved and not model.suspects:
            self._release_reserved(model)

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
        while (request_id := self._deadlines.pop_due(self._at)) is not None:
            self._expire(self.requests[request_id])
        while (name := self._hang_checks.pop_due(self._at)) is not None:
            self._look_whether_hung(self.workers[name])
        self.adapters.tick(self._at)

    def _on_time_lost(self, event: ev.TimeLost) -> None:
        """Time in which nobody was heard makes no worker hang; deadlines pass all the same."""
        for worker in self.workers.values():
            worker.progressed = min(worker.progressed + event.seconds, self._at)

    def _expire(self, request: Request) -> None:
        where = "waiting" if request.state is RequestState.QUEUED else f"running on {request.worker}"
        waited_s = self._at - request.arrived
        self._stop_work(request)
        text = f"its deadline passed after {waited_s:.3f} s, while {where}"
        self._finish_with_error(request, errors.DeadlineExpired.code, text)

    def _look_whether_hung(self, worker: Worker) -> None:
        if not worker.slots:
            return
        if worker.hangs_at > self._at:
            self._watch(worker)
            return
        idle_s = self._at - worker.progressed
        self._report_lost(worker, "hung", f"worker {worker.name} made no progress for {idle_s:.1f} s")

    def _watch(self, worker: Worker) -> None:
        """Look at a worker that holds work when it may be hung; one look per limit, not per answer."""
        if worker.name not in self._hang_checks:
            self._hang_checks.set(worker.name, worker.hangs_at)

    # -- workers ------------------------------------------------------------------------------------------------------

    def _on_worker_joined(self, event: ev.WorkerJoined) -> None:
        earlier = self.workers.get(event.worker)
        if earlier is not None:  # the fleet is not told: it would take that for the end of the newcomer
            self._lose_worker(earlier, f"worker {event.worker} joined anew")
        self.workers[event.worker] = Worker(name=event.worker, host=event.host, progressed=self._at)

    def _on_worker_ready(self, event: ev.WorkerReadied) -> None:
        worker = self.workers.get(event.worker)
        if worker is None or worker.state is not WorkerState.STARTING:
            return
        model = self.models.get(event.model)
        if model is None:
            model = self.models[event.model] = Model(name=event.model, task=event.task, deployment=event.deployment)
            model.max_queued, model.max_queued_bytes = event.max_queued, event.max_queued_bytes
        if model.task != event.task:
            self._turn_away(worker, event, model)
            return
        worker.ready(event, self._at)
        model.workers[worker.name] = worker
        model.credits += worker.credits
        model.unhealthy = ""
        self._notify(worker.name, event.deployment, "ready")
        told = itertools.zip_longest(event.submissions, event.sent, event.cancelled, fillvalue=0)
        known = dict(zip(event.running, told, strict=False))
        for slot in worker.slots:
            self._find_again(model, worker, slot, known.get(slot, (0, 0, False)))
        if worker.slots:
            self._watch(worker)
        self.adapters.joined(model, worker, event.adapters)
        self._offer(model, worker)
        self._stirred[model.name] = model

    def _turn_away(self, worker: Worker, event: ev.WorkerReadied, model: Model) -> None:
        """A worker for another task than the model's could answer none of its requests."""
        text = f"model {model.name!r} serves task {model.task!r}, and this worker serves {event.task!r}"
        worker.deployment = event.deployment
        self._effects.append(ev.SendDrain(worker=worker.name))
        self._report_lost(worker, "start_failed", text)

    def _find_again(
        self, model: Model, worker: Worker, slot: tuple[str, int], told: tuple[int, int, bool | int]
    ) -> None:
        """A worker brings work along. It goes on when its client wants it and nobody else does it, now or later.

        Not what was told to stop, nor where outputs have left it that came to nobody here: they are not sent again, and
        a worker whose window is full of them would wait for ever to hear that they were read.
        """
        (request_id, attempt), (submission, sent, cancelled) = slot, told
        self._attempts = max(self._attempts, attempt)
        request = self.requests.get(request_id)
        whole = not cancelled and sent <= (request.delivered if request is not None else 0)
        if whole and request is None and request_id not in model.adoptable:
            model.adoptable[request_id] = (worker, attempt, submission)
        elif whole and request is not None and _waits_for(request, model, attempt, submission):
            self._unqueue(request)
            self._adopt(request, worker, attempt)
        else:
            self._effects.append(ev.SendCancel(worker=worker.name, request_id=request_id, attempt=attempt))

    def _give_up_adoptable(self, worker: Worker, request_id: str, attempt: int) -> None:
        """An output came before anybody asked for it, and was lost: nobody can go on with this work any more."""
        model = self.models.get(worker.model)
        if model is not None and _forget_adoptable(model, worker, request_id, attempt):
            self._effects.append(ev.SendCancel(worker=worker.name, request_id=request_id, attempt=attempt))

    def _on_start_failed(self, event: ev.WorkerStartFailed) -> None:
        worker = self.workers.get(event.worker)
        if worker is not None:
            worker.deployment = event.deployment
            self._report_lost(worker, "start_failed", event.text)

    def _on_beat(self, event: ev.WorkerBeat) -> None:
        """Only progress counts: a worker that calls itself idle while it holds work has lost that work."""
        worker = self.workers.get(event.worker)
        if worker is not None and event.progress != worker.progress:
            worker.progress, worker.progressed = event.progress, self._at

    def _on_worker_gone(self, event: ev.WorkerGone) -> None:
        worker = self.workers.get(event.worker)
        if worker is not None:
            self._report_lost(worker, "gone", f"worker {worker.name} {event.reason}")

    def _report_lost(self, worker: Worker, what: str, text: str) -> None:
        """A worker is lost, and its fleet is to know."""
        self._notify(worker.name, worker.deployment, what, text)
        self._lose_worker(worker, text)

    def _lose_worker(self, worker: Worker, text: str) -> None:
        del self.workers[worker.name]
        self._hang_checks.remove(worker.name)
        model = self.models.get(worker.model)
        if model is None:
            return
        del model.workers[worker.name]
        model.credits -= worker.credits
        model.withdraw(worker)
        if model.reserved == worker.name:
            self._release_reserved(model)
        for request_id, attempt in worker.slots:
            _forget_adoptable(model, worker, request_id, attempt)
            request = self.requests.get(request_id)
            if request is not None and (request.worker, request.attempt) == (worker.name, attempt):
                self._retry(request, text)
        self.adapters.lost(model, worker)
        self._fail_if_abandoned(model)

    def _fail_without_adapter(self, request_id: str, text: str) -> None:
        self._stop_work(self.requests[request_id])
        self._finish_with_error(self.requests[request_id], errors.DeploymentUnhealthy.code, text)

    def _retry(self, request: Request, text: str) -> None:
        request.losses += 1
        self._tell(request, text)
        if request.losses < MAX_ATTEMPTS:
            self._enqueue(request)
            return
        deployment = self.models[request.model].deployment
        self._finish_with_error(
            request,
            errors.PoisonRequest.code,
            f"{request.losses} workers of deployment {deployment!r} were lost while they ran this request "
            f"(the last: {text}); look at its logs before sending the request again",
        )

    def _on_drain(self, event: ev.DrainAsked) -> None:
        worker = self.workers.get(event.worker)
        if worker is not None:
            self._drain(worker)

    def _drain(self, worker: Worker) -> None:
        if worker.state is WorkerState.DRAINING:
            return
        worker.state = WorkerState.DRAINING
        self._effects.append(ev.SendDrain(worker=worker.name))
        model = self.models.get(worker.model)
        if model is not None:
            model.withdraw(worker)
            if model.reserved == worker.name:
                self._release_reserved(model)

    # -- deployments --------------------------------------------------------------------------------------------------

    def _on_deployments(self, event: ev.DeploymentsChanged) -> None:
        expected = {entry.model: entry for entry in event.deployments}
        for entry in event.deployments:
            self._expect(entry)
        for model in [model for model in self.models.values() if model.name not in expected]:
            model.expected = False
            self._fail_if_abandoned(model)

    def _expect(self, entry: ev.DeploymentExpected) -> None:
        model = self.models.get(entry.model)
        if model is None:
            model = self.models[entry.model] = Model(name=entry.model, task=entry.task, deployment=entry.deployment)
        if model.task != entry.task:
            self._change_task(model, entry.task)
        model.expected = True
        model.deployment = entry.deployment
        model.replicas = entry.replicas
        model.max_queued, model.max_queued_bytes = entry.max_queued, entry.max_queued_bytes
        model.unhealthy, model.pending = entry.unhealthy, entry.pending
        self._fail_if_abandoned(model)

    def _change_task(self, model: Model, task: str) -> None:
        """The fleet serves another task under this name now: what waits cannot run, and the old workers are to go."""
        text = f"model {model.name!r} serves task {task!r} now, not {model.task!r}"
        self._fail_waiting(model, errors.WrongTask.code, text)
        for worker in model.workers.values():
            self._drain(worker)
        model.task = task

    def _fail_if_abandoned(self, model: Model) -> None:
        """Requests must not wait for ever for a model that no worker serves and none is going to."""
        if model.workers:
            return
        if not model.expected or not self.accepting:
            why = "none is expected" if self.accepting else "the cluster is shutting down"
            self._fail_waiting(model, errors.WorkerLost.code, f"no worker of model {model.name!r} is left and {why}")
            self.adapters.forget(model)
            del self.models[model.name]
        elif model.unhealthy:
            self._fail_waiting(model, errors.DeploymentUnhealthy.code, _unhealthy_text(model))

    def _fail_waiting(self, model: Model, code: str, text: str) -> None:
        for request_id in model.waiting_ids():
            self._finish_with_error(self.requests[request_id], code, text)

    def _on_shutdown(self, _event: ev.ShutdownAsked) -> None:
        self.accepting = False
        for model in list(self.models.values()):
            self._fail_if_abandoned(model)

    # -- small things -------------------------------------------------------------------------------------------------

    def _tell(self, request: Request, text: str) -> None:
        write(request.lines, self._at, text)

    def count(self, outcome: str) -> None:
        """A request has ended so: one of `errors.OUTCOMES`."""
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    def _notify(self, worker: str, deployment: str, what: str, text: str = "") -> None:
        self._effects.append(ev.NotifyFleet(worker=worker, deployment=deployment, what=what, text=text))

    def check_invariants(self) -> None:
        """Raise AssertionError when the books do not balance; O(everything), for tests."""
        assert not self._stirred, "a model was marked and not dispatched"
        for request in self.requests.values():
            check_request(request, self.models, self.workers)
        for model in self.models.values():
            check_model(model, self.requests, self.workers)
            check_adapters(model, self.requests)
        for worker in self.workers.values():
            check_worker(worker, self.models, self.requests)
            assert not worker.slots or worker.name in self._hang_checks, f"{worker.name} holds work and is not watched"
        check_clients(self.clients, self.requests)
        kept = sum(request.body_bytes for request in self.requests.values())
        assert kept == self.kept_bytes, f"{self.kept_bytes} bytes of bodies counted for {kept}"
        timed = sum(request.deadline < math.inf for request in self.requests.values())
        assert len(self._deadlines) == timed, f"{len(self._deadlines)} deadlines for {timed} requests"


def _discard(event: ev.OutputArrived) -> ev.SendDiscard:
    return ev.SendDiscard(
        worker=event.worker,
        request_id=event.request_id,
        attempt=event.attempt,
        seq=event.seq,
    )


def _push(queue: RequestQueue, request: Request) -> None:
    queue.push(request.request_id, client=request.client, priority=request.priority, deadline=request.deadline)


def _forget_adoptable(model: Model, worker: Worker, request_id: str, attempt: int) -> bool:
    """Whether it was adoptable, which it is no more."""
    adoptable = model.adoptable.get(request_id, ())[:2] == (worker, attempt)
    if adoptable:
        del model.adoptable[request_id]
    return adoptable


def _runs_already(model: Model, request_id: str, submission: int) -> bool:
    """A worker is at work on it that was here before, or with an earlier coordinator."""
    found = model.adoptable.get(request_id)
    return found is not None and same_submission(found[2], submission)


def _waits_for(request: Request, model: Model, attempt: int, submission: int) -> bool:
    """It waits for this model, and this attempt is its last, or that of an earlier coordinator."""
    waits = request.state is RequestState.QUEUED and request.attempt in (0, attempt)
    return waits and request.model == model.name and same_submission(request.submission, submission)


def _unhealthy_text(model: Model) -> str:
    return f"model {model.name!r} cannot start: {model.unhealthy}"
