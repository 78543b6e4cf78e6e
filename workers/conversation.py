"""A worker's side of the dialogue, a pure machine: when it asks for work, what it takes back, and when it is to end.

`link.py` is the shell around it, with the session, the threads and the process; `intake.py` takes requests in,
`answers.py` is what leaves.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import msgspec

from .. import errors
from ..logs import logger
from ..proto import wire
from ..settings import Settings
from ..shm import Loan
from .answers import Answer, clean_text, describe, in_messages

log = logger(__name__)

#: Exit codes of a worker process.
EXIT_DRAINED = 0
EXIT_START_FAILED = 3
EXIT_ORPHANED = 4
EXIT_REFUSED = 5
#: Outputs whose shared memory can still be taken back by a DISCARD; older ones fall to the pool's claim timeout.
_MAX_REMEMBERED = 8192
#: A coordinator that was asked to let us go is waited for so many heartbeats.
_DRAIN_BEATS = 2

#: A request and one attempt to answer it.
Key = tuple[str, int]


class Post(Protocol):
    """Sends a message some time; what is posted first arrives first."""

    def __call__(self, message: wire.Message, body: wire.Frames | tuple[()] = ()) -> None:
        """`body`: further frames."""


class Held(NamedTuple):
    """What a coordinator is to know of an attempt under way: its submission, and how many outputs have left."""

    submission: int = 0
    sent: int = 0
    #: It was told to stop.
    cancelled: bool = False


class Requests(Protocol):
    """Where requests go: `intake.py`."""

    def take(self, message: wire.Dispatch, body: wire.Frames) -> None:
        """A request has come."""

    def cancel(self, key: Key) -> None:
        """Nobody wants this attempt any more."""

    def consume(self, key: Key, parts: int) -> None:
        """So many outputs of an attempt's stream have been read."""

    def drain(self) -> None:
        """Nothing new comes."""

    def held(self) -> dict[Key, Held]:
        """Every request taken in and not finished."""


class Adapters(Protocol):
    """Where adapters are loaded: `adapters.py`."""

    def announce(self) -> list[wire.LoadedAdapter]:
        """What is loaded; what was asked for before is dropped."""

    def take(self, message: wire.LoraWork) -> None:
        """The coordinator asks for something."""


class Memory(Protocol):
    """Where outputs lie: the worker's pool."""

    def send(self, loan: Loan) -> None:
        """The block waits for its reader."""

    def discard(self, generation: int) -> None:
        """It has none."""


class Conversation:
    """Everything between a worker and its coordinator, whichever that is at the time.

    With `fences`, where both can live and not hear each other, a worker that does not hear its coordinator for about as
    long as that waits for it fences itself: others are given its requests, so it stops them, answers none, and joins
    anew. On the coordinator's own host silence means that it is frozen, and gives nothing to others.

    `leave` is called, perhaps more than once, when the worker is to end whatever it is doing; `begin_anew` has the
    link make another connection, on which HELLO is said. Times, `at`, are monotonic seconds. `ready`, `send` and
    `reject` may be called from other threads than the rest, `ready` and `send` not at the same time as `welcomed`.
    """

    def __init__(
        self,
        *,
        name: str,
        settings: Settings,
        post: Post,
        requests: Requests,
        memory: Memory,
        leave: Callable[[], None],
        adapters: Adapters | None = None,
        begin_anew: Callable[[], None],
        fences: bool = True,
    ) -> None:
        self._name = name
        self._settings = settings
        self._post = post
        self._requests = requests
        self._memory = memory
        self._leave = leave
        self._adapters = adapters
        self._begin_anew = begin_anew
        self._fences = fences
        #: Alone for too long: what it holds is others' by now.
        self.fenced = False
        #: How long the coordinator waits for us.
        self._liveness_s = settings.liveness_s
        #: What may be sent: the coordinator's limits, where they are lower than ours.
        self.max_frame_bytes = settings.max_frame_bytes
        self.max_message_bytes = settings.max_message_bytes
        #: A coordinator knows us, or one did.
        self.is_welcome = False
        #: Why the coordinator does not admit us; set once.
        self.refusal: errors.TensoryardError | None = None
        #: There is nobody to work for.
        self.orphaned = False
        self._ready: wire.Ready | None = None
        #: Generations of the blocks that outputs lend, by RequestID, attempt and number of the output.
        self._sent: OrderedDict[tuple[str, int, int], list[int]] = OrderedDict()
        #: When the coordinator was asked to let us go.
        self._asked_at: float | None = None

    @property
    def exit_code(self) -> int:
        """What the process ends with, once its work has."""
        if self.refusal is not None:
            return EXIT_REFUSED
        return EXIT_ORPHANED if self.orphaned else EXIT_DRAINED

    # -- what the worker says -----------------------------------------------------------------------------------------

    def ready(self, message: wire.Ready) -> None:
        """The pipeline is loaded: ask for work, now or as soon as we are known."""
        self._ready = message
        if self.is_welcome:
            self._announce(message)

    def start_failed(self, deployment: str, text: str) -> None:
        """The factory raised; the coordinator is to know why."""
        self._post(wire.StartFailed(deployment=deployment, text=clean_text(text[-60_000:], 60_000)))

    def send(self, answers: list[Answer]) -> None:
        """Answers of one step leave as one message, if it is not too large; what they lend waits for its reader.

        Behind the fence they go nowhere, and their memory is free.
        """
        if self.fenced:
            return
        for part in in_messages(answers, self.max_message_bytes):
            for output, _, loans in part:
                if loans:
                    self._lend(output, loans)
            frames = [frame for _, body, _ in part for frame in body]
            self._post(wire.Outputs(outputs=[output for output, _, _ in part]), frames)

    def reject(self, key: Key, error: Exception) -> None:
        """A request is answered without being run; behind the fence it is not."""
        if self.fenced:
            return
        code, text = describe(error)
        output = wire.Output(request_id=key[0], attempt=key[1], seq=0, done=False, code=code, text=text)
        self._post(wire.Outputs(outputs=[output]))

    def ask_to_leave(self, at: float) -> None:
        """Somebody wants this worker to end: what the coordinator sends until it knows is still served."""
        if self._asked_at is None:
            self._asked_at = at
            self._post(wire.DrainWorker(worker=self._name))

    def _lend(self, output: wire.Output, loans: list[Loan]) -> None:
        """What an output names waits for its reader; until that has it, a DISCARD may take it back."""
        self._sent[output.request_id, output.attempt, output.seq] = [loan.generation for loan in loans]
        for loan in loans:
            self._memory.send(loan)
        if len(self._sent) > _MAX_REMEMBERED:
            self._sent.popitem(last=False)

    # -- what happens -------------------------------------------------------------------------------------------------

    def welcomed(self, welcome: wire.Welcome) -> None:
        """We are known; once the pipeline is loaded, say what we serve and what we still hold from before."""
        self.max_frame_bytes = min(welcome.max_frame_bytes, self._settings.max_frame_bytes)
        self.max_message_bytes = min(welcome.max_message_bytes, self._settings.max_message_bytes)
        self._liveness_s = welcome.liveness_s
        self.is_welcome = True
        self.fenced = False
        if self._ready is not None:
            self._announce(self._ready)

    def _announce(self, ready: wire.Ready) -> None:
        running = [
            wire.Running(request_id=request_id, attempt=attempt, **held._asdict())
            for (request_id, attempt), held in self._requests.held().items()
        ]
        adapters = self._adapters.announce() if self._adapters is not None else []
        self._post(msgspec.structs.replace(ready, running=running, adapters=adapters))

    def message(self, message: Any, body: wire.Frames) -> None:
        """Work, and word about work; messages that keep the session alive mean nothing here."""
        match message:
            case wire.Dispatch():
                self._requests.take(message, body)
            case wire.CancelWork():
                self._requests.cancel((message.request_id, message.attempt))
            case wire.Consumed(parts=parts):
                self._requests.consume((message.request_id, message.attempt), parts)
            case wire.Discard():
                for generation in self._sent.pop((message.request_id, message.attempt, message.seq), ()):
                    self._memory.discard(generation)
            case wire.LoraWork() if self._adapters is not None:
                self._adapters.take(message)
            case wire.Drain():
                self._requests.drain()
            case wire.Disconnect():
                log.info("the coordinator has left")

    def refused(self, error: errors.TensoryardError) -> None:
        """Before READY it means that we may not join; later, that one message of ours was not understood."""
        log.error("the coordinator refused worker %s: %s", self._name, error)
        if isinstance(error, errors.VersionMismatch) or not self.is_welcome:
            self.refusal = error
            self._leave()
        elif self._asked_at is not None:  # perhaps that was not understood
            self._requests.drain()

    def beat(self, silent_s: float, at: float) -> None:
        """About once a heartbeat: go when nobody lets us; alone for long, stop what we do, and then go."""
        if self._asked_at is not None and at - self._asked_at > _DRAIN_BEATS * self._settings.heartbeat_s:
            self._requests.drain()
        lapsed = silent_s > self._liveness_s - self._settings.heartbeat_s
        if lapsed and self._fences and self.is_welcome and not self.fenced:
            self._fence(silent_s)
        if silent_s > self._settings.orphan_s and not self.orphaned:
            log.error("no coordinator was heard for %.0f s: worker %s ends", silent_s, self._name)
            self.orphaned = True
            self._leave()

    def _fence(self, silent_s: float) -> None:
        """Stop, without a word. The coordinator may have heard us all the while: it must learn that we have stopped."""
        held = self._requests.held()
        log.warning("no coordinator was heard for %.1f s: worker %s stops %d requests", silent_s, self._name, len(held))
        self.fenced = True
        for key in held:
            self._requests.cancel(key)
        self._begin_anew()

    def failed(self) -> None:
        """Without a session there is nobody to work for."""
        self.orphaned = True
        self._leave()
