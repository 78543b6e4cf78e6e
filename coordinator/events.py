"""What happens to the router (events, in the past tense) and what it wants done (effects, verbs): plain data.

`router.py` maps one to the other; `broker.py` makes events from messages and acts on effects.
Structs rather than dataclasses, because one is made for every message: 0.15 µs against 1 µs.
"""

from __future__ import annotations

import msgspec


class Event(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Base of events. `at`: monotonic seconds, never going back."""

    at: float


class RequestArrived(Event, frozen=True):
    """A client asks for work; `body_bytes` wait in the coordinator, `shared_bytes` in shared memory on `host`."""

    client: str
    request_id: str
    task: str
    model: str
    priority: int = 0
    deadline_s: float | None = None
    host: str = ""
    shared_bytes: int = 0
    body_bytes: int = 0
    #: How much of a stream may be unread, and how many outputs of it have been read; see `wire.Submit`.
    window_parts: int = 0
    window_bytes: int = 0
    consumed: int = 0
    submission: int = 0


class CancelAsked(Event, frozen=True):
    """A client does not want an answer any more."""

    client: str
    request_id: str


class PartsConsumed(Event, frozen=True):
    """A client's caller has read so many outputs of a stream, counted from its first."""

    client: str
    request_id: str
    parts: int


class ClientGone(Event, frozen=True):
    """A client left or fell silent."""

    client: str


class WorkerJoined(Event, frozen=True):
    """A worker said hello; its pipeline is loading."""

    worker: str
    host: str = ""


class WorkerReadied(Event, frozen=True):
    """A worker's pipeline is loaded. `running`: (request_id, attempt) it still holds, of these `submissions`.

    `sent`: how many outputs it has sent of each. `cancelled`: whether each was told to stop.
    """

    worker: str
    model: str
    task: str
    deployment: str
    credits: int
    hang_limit_s: float = 300.0
    max_queued: int = 10_000
    max_queued_bytes: int = 8 << 30
    running: tuple[tuple[str, int], ...] = ()
    #: In the order of `running`; what is missing is not known, like 0.
    submissions: tuple[int, ...] = ()
    sent: tuple[int, ...] = ()
    cancelled: tuple[bool, ...] = ()
    #: Whether it can be asked to load adapters, and those that it has: (name, path).
    takes_adapters: bool = False
    adapters: tuple[tuple[str, str], ...] = ()


class WorkerStartFailed(Event, frozen=True):
    """A worker's factory raised."""

    worker: str
    deployment: str
    text: str


class WorkerBeat(Event, frozen=True):
    """A worker lives; `progress` moves while its work moves."""

    worker: str
    progress: int
    busy: bool


class WorkerGone(Event, frozen=True):
    """A worker died, left or fell silent."""

    worker: str
    reason: str


class DrainAsked(Event, frozen=True):
    """A worker is to finish what it holds and leave."""

    worker: str


class OutputArrived(Event, frozen=True):
    """A worker answered: a part of a stream, the last part (`done`), or an error (`code`)."""

    worker: str
    request_id: str
    attempt: int
    seq: int
    done: bool
    code: str = ""
    text: str = ""


class DeploymentExpected(msgspec.Struct, frozen=True, kw_only=True):
    """One deployment as the fleet means it to be."""

    deployment: str
    model: str
    task: str
    replicas: int
    unhealthy: str = ""
    max_queued: int = 10_000
    max_queued_bytes: int = 8 << 30
    pending: str = ""


class DeploymentsChanged(Event, frozen=True):
    """The fleet's list of deployments, complete."""

    deployments: tuple[DeploymentExpected, ...]


class ShutdownAsked(Event, frozen=True):
    """Nothing new is to be accepted."""


class TimeLost(Event, frozen=True):
    """The coordinator did not run for so long, up to now, and may not have read what workers said of their work."""

    seconds: float


class AdapterAsked(Event, frozen=True):
    """A client wants an adapter loaded on all workers of a model, or unloaded; to be answered within `timeout_s`."""

    client: str
    query: int
    operation: str
    name: str
    path: str = ""
    model: str = ""
    timeout_s: float = 30.0


class AdapterDone(Event, frozen=True):
    """A worker has done what it was asked for by that number, or could not."""

    worker: str
    number: int
    name: str
    status: str
    text: str = ""


class Ticked(Event, frozen=True):
    """Time has passed; deadlines and hung workers are looked at."""


class Effect(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Base of effects."""


class SendRequest(Effect, frozen=True):
    """Give a request to a worker."""

    worker: str
    request_id: str
    attempt: int
    deadline_s: float | None
    window_parts: int = 0
    window_bytes: int = 0
    consumed: int = 0
    submission: int = 0
    adapter: str = ""


class SendCancel(Effect, frozen=True):
    """Tell a worker that an attempt is not wanted any more."""

    worker: str
    request_id: str
    attempt: int


class SendConsumed(Effect, frozen=True):
    """Tell a worker how many outputs of an attempt's stream have been read."""

    worker: str
    request_id: str
    attempt: int
    parts: int


class SendDiscard(Effect, frozen=True):
    """Tell a worker that the output just received goes to nobody."""

    worker: str
    request_id: str
    attempt: int
    seq: int


class SendDrain(Effect, frozen=True):
    """Tell a worker to finish and leave."""

    worker: str


class SendOutput(Effect, frozen=True):
    """Pass the output just received on to its client."""

    client: str
    request_id: str
    seq: int
    done: bool
    submission: int = 0


class SendError(Effect, frozen=True):
    """End a request with an error."""

    client: str
    request_id: str
    code: str
    text: str
    #: One of `errors.OUTCOMES`.
    outcome: str = "rejected"
    retry_after_s: float = 0.0
    story: tuple[str, ...] = ()
    submission: int = 0


class ForgetBody(Effect, frozen=True):
    """The request has ended; its body is not needed for a retry any more."""

    request_id: str


class NotifyFleet(Effect, frozen=True):
    """Tell the fleet what happened to a worker: ready, start_failed, hung or gone."""

    worker: str
    deployment: str
    what: str
    text: str = ""


class SendAdapter(Effect, frozen=True):
    """Have a worker load or unload an adapter."""

    worker: str
    number: int
    operation: str
    name: str
    path: str = ""


class AnswerAdapter(Effect, frozen=True):
    """Tell a client what became of the adapter that it asked for: a `LoRAStatus`, and texts for people."""

    client: str
    query: int
    status: str
    texts: tuple[str, ...]
