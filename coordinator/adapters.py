"""Which adapters the models have, and which workers have them: loaded, unloaded, given to workers that come later.

A part of the router's machine, and as pure: `router.py` tells it what happens to workers and requests, and asks it
whose a name is. The records are in `records.py`.

    adapter   LOADING → LOADED → DRAINING → UNLOADING → forgotten; what cannot be loaded goes UNLOADING at once

It is loaded when every worker that was asked has it. What one of them cannot load is taken back from all, so that an
answer which is no success leaves nothing behind. A worker that comes later is asked to load what its model has; until
it has it, requests for that adapter go to others, or wait apart (`Model.lanes`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from ..logs import logger
from ..proto.lora import MAX_LORAS, LoRAOperation, LoRAStatus
from . import events as ev
from .queues import LazyHeap, LeastLoaded
from .records import Adapter, AdapterState, Model, Request, Worker, WorkerState

log = logger(__name__)

#: Questions of clients that may wait for their answers at once.
MAX_ASKED = 1024
#: An adapter with which so many workers in a row were lost while they loaded it is taken for their killer.
MAX_LOSSES = 3

_LOAD, _UNLOAD = LoRAOperation.LOAD.value, LoRAOperation.UNLOAD.value
#: States in which workers are to have an adapter.
_WANTED = (AdapterState.LOADING, AdapterState.LOADED, AdapterState.DRAINING)


class Answer(NamedTuple):
    """What an asker is told."""

    status: LoRAStatus
    texts: tuple[str, ...]


class _Asker(NamedTuple):
    client: str
    query: int
    adapter: Adapter


class AdapterBooks:
    """All adapters, by name.

    `offer(model, worker)`: what a worker may be given has changed; `stir(model)`: a request may start now;
    `fail(request_id, text)`: end a request, since nobody will have its adapter.
    """

    def __init__(
        self,
        models: dict[str, Model],
        requests: dict[str, Request],
        *,
        emit: Callable[[ev.Effect], None],
        offer: Callable[[Model, Worker], None],
        stir: Callable[[Model], None],
        fail: Callable[[str, str], None],
    ) -> None:
        self._models = models
        self._requests = requests
        self._emit = emit
        self._offer = offer
        self._stir = stir
        self._fail = fail
        self._by_name: dict[str, Adapter] = {}
        #: Those who wait for an answer, and when they have waited long enough.
        self._askers: dict[str, _Asker] = {}
        self._deadlines = LazyHeap()
        #: Names and paths that were unloaded or could not be loaded: a worker that was away and still has one is told.
        self._gone: OrderedDict[tuple[str, str], None] = OrderedDict()
        #: Number of the last question to a worker.
        self._number = 0

    # -- requests -----------------------------------------------------------------------------------------------------

    def named(self, name: str) -> Adapter | None:
        """The adapter of a name, in whatever state."""
        return self._by_name.get(name)

    def entered(self, request: Request) -> None:
        """A request was taken for its adapter."""
        if request.adapter:
            self._by_name[request.adapter].live[request.request_id] = None

    def left(self, request: Request) -> None:
        """It has ended."""
        adapter = self._by_name.get(request.adapter) if request.adapter else None
        if adapter is not None:
            adapter.live.pop(request.request_id, None)
            self._unload_when_empty(adapter)

    # -- wishes -------------------------------------------------------------------------------------------------------

    def ask(self, event: ev.AdapterAsked) -> None:
        """A client wants an adapter loaded or unloaded."""
        if event.operation == _LOAD:
            found = self._load(event)
        elif event.operation == _UNLOAD:
            found = self._unload(event)
        else:
            found = Answer(LoRAStatus.UNSPECIFIED_ERROR, (f"{event.operation!r} is no operation on adapters",))
        if isinstance(found, Answer):
            self._tell(event.client, event.query, found)
            return
        key = f"{event.client} {event.query}"
        if key not in self._askers:
            found.askers[key] = None
            self._askers[key] = _Asker(event.client, event.query, found)
            self._deadlines.set(key, event.at + event.timeout_s)
        self._settle(found)

    def _load(self, event: ev.AdapterAsked) -> Adapter | Answer:
        there = self._by_name.get(event.name)
        if there is not None:
            return self._load_again(there, event)
        model = self._models.get(event.model)
        if model is None:
            text = f"no deployment serves model {event.model!r}; served are {sorted(self._models)}"
            return Answer(LoRAStatus.LOAD_ERROR, (text,))
        refusal = self._refusal(event, model)
        if refusal is not None:
            return refusal
        adapter = self._enter(model, event.name, event.path, AdapterState.LOADING)
        self._ask_missing(adapter)
        return adapter

    def _refusal(self, event: ev.AdapterAsked, model: Model) -> Answer | None:
        if event.name in self._models:
            return Answer(LoRAStatus.LOAD_NAME_EXISTS, (f"{event.name!r} is the name of a model",))
        if not event.path:
            return Answer(LoRAStatus.LOAD_INVALID_PATH, ("`lora_path` must say where the adapter's files are",))
        if model.workers and not any(worker.takes_adapters for worker in model.workers.values()):
            return Answer(LoRAStatus.LOAD_ERROR, (f"the pipeline of model {model.name!r} takes no adapters",))
        if len(model.adapters) >= MAX_LORAS:
            text = f"model {model.name!r} has {len(model.adapters)} adapters, the most that may be; unload one first"
            return Answer(LoRAStatus.LOAD_ERROR, (text,))
        if len(self._askers) >= MAX_ASKED:
            return Answer(LoRAStatus.LOAD_ERROR, (f"{MAX_ASKED} operations on adapters are under way; try again",))
        return None

    def _load_again(self, there: Adapter, event: ev.AdapterAsked) -> Adapter | Answer:
        if there.path != event.path or there.model != event.model:
            text = f"the adapter {there.name!r} of model {there.model!r} is from {there.path}; unload it first"
            return Answer(LoRAStatus.LOAD_NAME_EXISTS, (text,))
        if there.state not in (AdapterState.LOADING, AdapterState.LOADED):
            text = f"the adapter {there.name!r} is being unloaded; load it when that is done"
            return Answer(LoRAStatus.LOAD_NAME_EXISTS, (text,))
        there.losses = 0
        self._ask_missing(there)
        return there

    def _unload(self, event: ev.AdapterAsked) -> Adapter | Answer:
        there = self._by_name.get(event.name)
        if there is None or event.model not in ("", there.model) or there.verdict is not None:
            whose = f" of model {event.model!r}" if event.model else ""
            text = f"no adapter{whose} is called {event.name!r:.80}; loaded are {sorted(self._by_name)}"
            return Answer(LoRAStatus.UNLOAD_NAME_NONEXISTENT, (text[:4000],))
        if there.state is AdapterState.LOADING or (there.state is AdapterState.LOADED and there.askers):
            return Answer(LoRAStatus.UNLOAD_ERROR, (f"the adapter {there.name!r} is still being loaded",))
        if len(self._askers) >= MAX_ASKED:
            return Answer(LoRAStatus.UNLOAD_ERROR, (f"{MAX_ASKED} operations on adapters are under way; try again",))
        if there.state is AdapterState.LOADED:
            there.state = AdapterState.DRAINING
            self._unload_when_empty(there)
        return there

    def _tell(self, client: str, query: int, answer: Answer) -> None:
        told = ev.AnswerAdapter(client=client, query=query, status=answer.status.value, texts=answer.texts)
        self._emit(told)

    def _tell_all(self, adapter: Adapter, answer: Answer) -> None:
        for key in list(adapter.askers):
            self._tell_one(key, answer)

    def _tell_one(self, key: str, answer: Answer) -> None:
        asker = self._askers.pop(key)
        self._deadlines.remove(key)
        del asker.adapter.askers[key]
        self._tell(asker.client, asker.query, answer)

    # -- time ---------------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float:
        """When `tick` is due; infinite for never."""
        return self._deadlines.first_rank()

    def tick(self, at: float) -> None:
        """Who has waited long enough is answered; what nobody waits for any more is not loaded after all."""
        while (key := self._deadlines.pop_due(at)) is not None:
            adapter = self._askers[key].adapter
            self._tell_one(key, _late(adapter))
            if adapter.state is AdapterState.LOADING and not adapter.askers:
                self._take_back(adapter)

    # -- workers ------------------------------------------------------------------------------------------------------

    def joined(self, model: Model, worker: Worker, has: tuple[tuple[str, str], ...]) -> None:
        """A worker has become ready, with these adapters: names and paths."""
        for name, path in has if worker.takes_adapters else ():
            adapter = self._by_name.get(name) or self._adopt(model, name, path)
            if adapter is None or (adapter.model, adapter.path) != (model.name, path):
                log.warning("worker %s has an adapter %r from %s that it is not to have", worker.name, name, path)
                self._send(worker.name, _UNLOAD, name)
            elif adapter.state is AdapterState.UNLOADING:
                adapter.asked[worker.name] = self._send(worker.name, _UNLOAD, name)
            else:
                adapter.on.add(worker.name)
        for adapter in list(model.adapters.values()):
            self._ask_missing(adapter)
            self._give_up_if_nowhere(adapter)
            self._settle(adapter)
        self.sort_lanes(model)

    def _adopt(self, model: Model, name: str, path: str) -> Adapter | None:
        """A worker brings one along: its deployment's own, or what an earlier coordinator had it load."""
        if name in self._models or (name, path) in self._gone or len(model.adapters) >= MAX_LORAS:
            return None
        return self._enter(model, name, path, AdapterState.LOADED)

    def lost(self, model: Model, worker: Worker) -> None:
        """A worker is gone; the model's books have it no more."""
        for adapter in list(model.adapters.values()):
            adapter.on.discard(worker.name)
            adapter.failures.pop(worker.name, None)
            adapter.free.remove(worker.name)
            was_loading = adapter.asked.pop(worker.name, None) is not None and adapter.state in _WANTED
            adapter.losses += was_loading and worker.state is WorkerState.READY
            if adapter.losses >= MAX_LOSSES and not adapter.on:
                self._give_up(adapter, f"{adapter.losses} workers were lost while they loaded it")
            elif len(model.workers) >= max(model.replicas, 1):
                self._give_up_if_nowhere(adapter)
            self._settle(adapter)
        self.sort_lanes(model)

    def done(self, event: ev.AdapterDone) -> None:
        """A worker has done what it was asked for, or could not."""
        adapter = self._by_name.get(event.name)
        if adapter is None or adapter.asked.get(event.worker) != event.number:
            return
        del adapter.asked[event.worker]
        wanted = adapter.state in _WANTED
        if event.status == LoRAStatus.SUCCESS.value and wanted:
            adapter.on.add(event.worker)
            adapter.losses = 0
        elif event.status not in (LoRAStatus.SUCCESS.value, LoRAStatus.UNLOAD_NAME_NONEXISTENT.value):
            adapter.failures[event.worker] = (event.status, event.text)
        model = self._models[adapter.model]
        self.sort_lanes(model)
        if wanted:
            self._offer(model, model.workers[event.worker])
            self._stir(model)
            self._give_up_if_nowhere(adapter)
        self._settle(adapter)

    def forget(self, model: Model) -> None:
        """The model is gone, with its last worker and all its requests."""
        text = f"no worker of model {model.name!r} is left, and none is expected"
        for adapter in model.adapters.values():
            loading = adapter.state in (AdapterState.LOADING, AdapterState.LOADED)
            status = LoRAStatus.LOAD_ERROR if loading else LoRAStatus.SUCCESS
            self._tell_all(adapter, Answer(status, (text,)))
            del self._by_name[adapter.name]
        model.adapters.clear()
        model.lanes.clear()

    # -- one adapter --------------------------------------------------------------------------------------------------

    def _enter(self, model: Model, name: str, path: str, state: AdapterState) -> Adapter:
        adapter = Adapter(name=name, model=model.name, path=path, state=state)
        self._by_name[name] = model.adapters[name] = adapter
        self._gone.pop((name, path), None)
        return adapter

    def _ask_missing(self, adapter: Adapter) -> None:
        """Have every worker that can load it, and has not, and was not asked to."""
        if adapter.state not in _WANTED or adapter.losses >= MAX_LOSSES:
            return
        for worker in self._models[adapter.model].workers.values():
            can = worker.takes_adapters and worker.state is WorkerState.READY  # not those that leave
            if can and worker.name not in adapter.on and worker.name not in adapter.asked:
                adapter.failures.pop(worker.name, None)
                adapter.asked[worker.name] = self._send(worker.name, _LOAD, adapter.name, adapter.path)

    def _send(self, worker: str, operation: str, name: str, path: str = "") -> int:
        self._number += 1
        self._emit(ev.SendAdapter(worker=worker, number=self._number, operation=operation, name=name, path=path))
        return self._number

    def _settle(self, adapter: Adapter) -> None:
        """Whether all that were asked have answered, and what that means."""
        if adapter.asked or self._by_name.get(adapter.name) is not adapter:
            return
        match adapter.state:
            case AdapterState.LOADING if adapter.failures:
                adapter.verdict = _failure(adapter)
                self._take_back(adapter)
            case AdapterState.LOADING if adapter.on:
                adapter.state = AdapterState.LOADED
                self.sort_lanes(self._models[adapter.model])
                self._tell_all(adapter, _loaded(adapter))
            case AdapterState.LOADED if adapter.on:
                told = Answer(*_failure(adapter)) if adapter.failures else _loaded(adapter)
                self._tell_all(adapter, told)
            case AdapterState.UNLOADING:
                self._forget_one(adapter)

    def _unload_when_empty(self, adapter: Adapter) -> None:
        if adapter.state is AdapterState.DRAINING and not adapter.live:
            self._take_back(adapter)

    def _take_back(self, adapter: Adapter) -> None:
        """Have every worker unload it; none of its requests is left."""
        model = self._models[adapter.model]
        adapter.state = AdapterState.UNLOADING
        adapter.on.clear()
        adapter.failures.clear()
        takers = [worker.name for worker in model.workers.values() if worker.takes_adapters]
        adapter.asked = {worker: self._send(worker, _UNLOAD, adapter.name) for worker in takers}
        self.sort_lanes(model)
        self._settle(adapter)

    def _forget_one(self, adapter: Adapter) -> None:
        self._gone[adapter.name, adapter.path] = None
        if len(self._gone) > MAX_LORAS:
            self._gone.popitem(last=False)
        del self._by_name[adapter.name]
        del self._models[adapter.model].adapters[adapter.name]
        if adapter.verdict is not None:
            self._tell_all(adapter, Answer(*adapter.verdict))
        elif adapter.failures:
            texts = tuple(f"{worker}: {text}" for worker, (_, text) in sorted(adapter.failures.items()))
            self._tell_all(adapter, Answer(LoRAStatus.UNLOAD_ERROR, texts))
        else:
            self._tell_all(adapter, Answer(LoRAStatus.SUCCESS, (f"the adapter {adapter.name!r} is unloaded",)))

    def _give_up_if_nowhere(self, adapter: Adapter) -> None:
        """No worker has it, none is loading it, and those that are there could not."""
        serving = adapter.state in (AdapterState.LOADED, AdapterState.DRAINING)
        if serving and not adapter.on and not adapter.asked and self._models[adapter.model].workers:
            texts = [f"{worker}: {text}" for worker, (_, text) in sorted(adapter.failures.items())]
            self._give_up(adapter, "; ".join(texts) or "no worker that has it is left")

    def _give_up(self, adapter: Adapter, why: str) -> None:
        """Nobody will have it: its requests end, and its name is free."""
        if adapter.state is AdapterState.UNLOADING:
            return
        text = f"the adapter {adapter.name!r} of model {adapter.model!r} cannot be loaded any more: {why}"
        log.warning("%s", text)
        adapter.verdict = (LoRAStatus.LOAD_ERROR, (text,))
        adapter.state = AdapterState.LOADED  # whatever it was: the end of its last request is not the end of it
        for request_id in list(adapter.live):
            self._fail(request_id, text)
        self._take_back(adapter)

    # -- lanes --------------------------------------------------------------------------------------------------------

    def sort_lanes(self, model: Model) -> None:
        """Adapters that only some workers have get a lane; those that all have need none. O(adapters)."""
        for adapter in model.adapters.values():
            serving = adapter.state in (AdapterState.LOADED, AdapterState.DRAINING)
            partial = serving and len(adapter.on) < len(model.workers)
            if partial and adapter.name not in model.lanes:
                self._open_lane(model, adapter)
            elif not partial and adapter.name in model.lanes:
                self._close_lane(model, adapter)

    def _open_lane(self, model: Model, adapter: Adapter) -> None:
        adapter.free = LeastLoaded()
        model.lanes[adapter.name] = adapter
        for name in adapter.on:
            self._offer(model, model.workers[name])

    def _close_lane(self, model: Model, adapter: Adapter) -> None:
        """Every worker has it: its requests wait among the others again."""
        del model.lanes[adapter.name]
        while (request_id := adapter.queue.pop()) is not None:
            request = self._requests[request_id]
            model.queue.push(request_id, client=request.client, priority=request.priority, deadline=request.deadline)
        self._stir(model)


def _loaded(adapter: Adapter) -> Answer:
    text = f"the adapter {adapter.name!r} is loaded on {len(adapter.on)} workers of model {adapter.model!r}"
    return Answer(LoRAStatus.SUCCESS, (text,))


def _failure(adapter: Adapter) -> tuple[LoRAStatus, tuple[str, ...]]:
    """The first worker's status, and what each said, once where they said the same."""
    told = sorted(adapter.failures.items())
    texts = {text for _, (_, text) in told}
    if len(texts) == 1:
        return LoRAStatus(told[0][1][0]), tuple(texts)
    return LoRAStatus(told[0][1][0]), tuple(f"{worker}: {text}" for worker, (_, text) in told)


def _late(adapter: Adapter) -> Answer:
    """What an asker is told whose time has passed."""
    if adapter.verdict is not None:
        return Answer(*adapter.verdict)
    match adapter.state:
        case AdapterState.DRAINING:
            text = (
                f"{len(adapter.live)} requests still run with the adapter {adapter.name!r}; it takes no new ones, and "
                "is unloaded when they have ended"
            )
        case AdapterState.UNLOADING:
            text = f"no answer yet from {sorted(adapter.asked)}; the adapter {adapter.name!r} takes no new requests"
        case _:
            who = f"no answer yet from {sorted(adapter.asked)}" if adapter.asked else "no worker is ready"
            text = f"the adapter {adapter.name!r} could not be loaded in time: {who}"
    return Answer(LoRAStatus.UNSPECIFIED_ERROR, (text,))
