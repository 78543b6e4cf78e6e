"""The cluster of one moment, as `proto/status.py` words it: the answer to ASK_STATUS.

Read off the router's and the roster's books by `broker.py`; LOADS, for the fleet, too.
"""

from __future__ import annotations

from ..proto import wire
from ..proto.status import AdapterStatus, ModelStatus, WorkerStatus
from .records import Adapter, Model, Worker
from .roster import Roster
from .router import Router


def model_statuses(router: Router, roster: Roster, at: float) -> list[ModelStatus]:
    """Every model, by name."""
    return [_model_status(router.models[name], router, roster, at) for name in sorted(router.models)]


def take_loads(router: Router) -> wire.Loads:
    """How much every model has to do, for the fleet; the peaks begin anew."""
    return wire.Loads(
        loads=[
            wire.Load(deployment=model.deployment, ongoing=model.live, peak=model.take_peak())
            for model in router.models.values()
        ]
    )


def _model_status(model: Model, router: Router, roster: Roster, at: float) -> ModelStatus:
    mine = [worker for worker in router.workers.values() if worker.model == model.name]
    return ModelStatus(
        model=model.name,
        task=model.task,
        deployment=model.deployment,
        replicas=model.replicas,
        unhealthy=model.unhealthy,
        queued=model.waiting,
        queued_bytes=model.queued_bytes,
        workers=[_worker_status(worker, roster, at) for worker in mine],
        pending=model.pending,
        adapters=[_adapter_status(model.adapters[name]) for name in sorted(model.adapters)],
    )


def _adapter_status(adapter: Adapter) -> AdapterStatus:
    return AdapterStatus(
        name=adapter.name,
        path=adapter.path,
        state=adapter.state.value,
        workers=len(adapter.on),
        live=len(adapter.live),
        failures={worker: text for worker, (_, text) in sorted(adapter.failures.items())},
    )


def _worker_status(worker: Worker, roster: Roster, at: float) -> WorkerStatus:
    peer = roster.named("worker", worker.name)
    return WorkerStatus(
        name=worker.name,
        host=worker.host,
        pid=peer.pid if peer else 0,
        state=worker.state.value,
        in_flight=len(worker.slots),
        credits=worker.credits,
        seen_s=at - peer.seen if peer else 0.0,
    )
