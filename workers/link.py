"""The worker's side of its session: reads requests while the main thread computes.

Hands requests to `intake.py`, sends the answers of `engine.py`, and notices when nobody is there to work for. `main.py`
puts the parts together.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from .. import errors
from ..links import Frames, Session
from ..proto import wire
from ..proto.pipeline import Pipeline, PipelineTask
from ..settings import Settings
from ..shm import Pool
from .engine import ENVELOPE_BYTES, MAX_FRAMES, Answer, clean_text, describe
from .inbox import Inbox
from .intake import Intake, Key

log = logging.getLogger(__name__)

#: Exit codes of a worker process.
EXIT_DRAINED = 0
EXIT_START_FAILED = 3
EXIT_ORPHANED = 4
EXIT_REFUSED = 5
#: Outputs whose shared memory can still be taken back by a DISCARD; older ones fall to the pool's claim timeout.
_MAX_REMEMBERED = 8192
#: Outputs of one message: with the longest error texts, all of them stay below the limit of an envelope.
_MAX_OUTPUTS = 100
#: A coordinator that was asked to let us go is waited for so many heartbeats.
_DRAIN_BEATS = 2
#: After being told to go, how long the main thread may take before the process ends without it.
_GRACE_S = 5.0


class WorkerLink:
    """Speaks for one worker. `start` says hello, `begin` takes the pipeline, `ready` announces it."""

    def __init__(
        self,
        *,
        address: str,
        name: str,
        inbox: Inbox,
        pool: Pool,
        settings: Settings,
        life_fd: int | None = None,
    ) -> None:
        self.name = name
        self._inbox = inbox
        self._pool = pool
        self._settings = settings
        self._intake = Intake(inbox=inbox, pool=pool, settings=settings, reject=self._reject)
        self._ready: wire.Ready | None = None
        self._progress: Callable[[], int] = int
        #: What may be sent: the coordinator's limits, where they are lower than ours.
        self.max_frame_bytes = settings.max_frame_bytes
        self.max_message_bytes = settings.max_message_bytes
        #: Generations of the blocks that outputs lend, by RequestID, attempt and number of the output.
        self._sent: OrderedDict[tuple[str, int, int], list[int]] = OrderedDict()
        self._lock = threading.Lock()
        self._welcomed = False
        #: Why the coordinator does not admit us; set once, by the session's thread.
        self.refusal: errors.TensoryardError | None = None
        self.orphaned = False
        #: Ends the process when the main thread does not.
        self._last_resort: threading.Timer | None = None
        #: Written to by `drain_soon`, which may not take a lock; -1 once closed.
        self._drain_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        #: When the coordinator was asked to let us go, in monotonic seconds; 0: it was not.
        self._asked_at = 0.0
        # Nobody writes to that pipe: it becomes readable when the process that started us has ended.
        life = {} if life_fd is None else {life_fd: lambda: os._exit(EXIT_ORPHANED)}
        self._session = Session(
            address=address,
            role="worker",
            name=name,
            decoder=wire.TO_WORKER,
            callbacks=self,
            settings=settings,
            watch={self._drain_fd: self._ask_to_leave, **life},
        )

    # -- for the main thread ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Connect and say hello."""
        self._session.start()

    def begin(self, pipeline: Pipeline[Any, Any], task: PipelineTask) -> None:
        """The pipeline is made; ConfigError when no requests can be read for it."""
        self._intake.begin(pipeline, task)

    def ready(self, message: wire.Ready, progress: Callable[[], int]) -> None:
        """Ask for work."""
        self._progress = progress
        with self._lock:
            self._ready = message
            if self._welcomed:
                self._announce(message)

    def start_failed(self, deployment: str, text: str) -> None:
        """The factory raised; the coordinator is to know why."""
        self._session.post(wire.StartFailed(deployment=deployment, text=clean_text(text[-60_000:], 60_000)))

    def send(self, answers: list[Answer]) -> None:
        """Answers of one step leave as one message, if it is not too large; what they lend waits for its reader."""
        for part in _messages(answers, self.max_message_bytes):
            outputs: list[wire.Output] = []
            frames: Frames = []
            for output, body, loans in part:
                if loans:
                    key = (output.request_id, output.attempt, output.seq)
                    self._remember(key, [loan.generation for loan in loans])
                for loan in loans:
                    self._pool.send(loan)
                outputs.append(output)
                frames.extend(body)
            self._session.post(wire.Outputs(outputs=outputs), frames)

    def drain_soon(self) -> None:
        """Have the coordinator send nothing more, finish, and end. Safe in a signal handler."""
        if self._drain_fd >= 0:
            os.eventfd_write(self._drain_fd, 1)

    def close(self) -> None:
        """Send what is queued, say goodbye, end the thread. Again is harmless."""
        self._session.close(_GRACE_S)
        if self._last_resort is not None:
            self._last_resort.cancel()
        self._intake.close()
        fd, self._drain_fd = self._drain_fd, -1
        if fd >= 0:
            os.close(fd)

    @property
    def exit_code(self) -> int:
        """What the process ends with, once the engine has."""
        if self.refusal is not None:
            return EXIT_REFUSED
        return EXIT_ORPHANED if self.orphaned else EXIT_DRAINED

    def _remember(self, key: tuple[str, int, int], generations: list[int]) -> None:
        self._sent[key] = generations
        if len(self._sent) > _MAX_REMEMBERED:
            self._sent.popitem(last=False)

    # -- callbacks of the session -------------------------------------------------------------------------------------

    def on_welcome(self, welcome: wire.Welcome) -> None:
        """We are known; once the pipeline is loaded, say what we serve and what we still hold from before."""
        self.max_frame_bytes = min(welcome.max_frame_bytes, self._settings.max_frame_bytes)
        self.max_message_bytes = min(welcome.max_message_bytes, self._settings.max_message_bytes)
        with self._lock:
            self._welcomed = True
            if self._ready is not None:
                self._announce(self._ready)

    def _announce(self, ready: wire.Ready) -> None:
        running = [wire.Running(request_id=request_id, attempt=attempt) for request_id, attempt in self._intake.held()]
        self._session.post(msgspec.structs.replace(ready, running=running))

    def on_message(self, message: Any, body: Frames) -> None:
        """Work, and word about work."""
        match message:
            case wire.Dispatch():
                self._intake.take(message, body)
            case wire.CancelWork():
                self._intake.cancel((message.request_id, message.attempt))
            case wire.Discard():
                for generation in self._sent.pop((message.request_id, message.attempt, message.seq), ()):
                    self._pool.discard(generation)
            case wire.Drain():
                self._intake.drain()
            case wire.Disconnect():
                log.info("the coordinator has left")

    def on_refused(self, error: errors.TensoryardError) -> None:
        """Before READY it means that we may not join; later, that one message of ours was not understood."""
        log.error("the coordinator refused worker %s: %s", self.name, error)
        if isinstance(error, errors.VersionMismatch) or not self._welcomed:
            self.refusal = error
            self._leave()
        elif self._asked_at:  # perhaps that was not understood
            self._intake.drain()

    def on_beat(self, silent_s: float) -> wire.Heartbeat:
        """Tell our progress; end the worker when it has been alone for too long."""
        self._intake.housekeep()
        if self._asked_at and time.monotonic() - self._asked_at > _DRAIN_BEATS * self._settings.heartbeat_s:
            self._intake.drain()
        if silent_s > self._settings.orphan_s and not self.orphaned:
            log.error("no coordinator was heard for %.0f s: worker %s ends", silent_s, self.name)
            self.orphaned = True
            self._leave()
        return wire.Heartbeat(progress=self._progress(), busy=bool(self._inbox.held()))

    def on_failure(self, _error: Exception) -> None:
        """Without a session there is nobody to work for."""
        self.orphaned = True
        self._leave()

    def _ask_to_leave(self) -> None:
        """Somebody wants this worker to end: what the coordinator sends until it knows is still served."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._drain_fd)
        if not self._asked_at:
            self._asked_at = time.monotonic()
            self._session.post(wire.DrainWorker(worker=self.name))

    def _leave(self) -> None:
        """End the worker, also when its main thread is stuck in the pipeline."""
        self._inbox.abandon()
        if self._last_resort is None:
            self._last_resort = threading.Timer(_GRACE_S, os._exit, [self.exit_code])
            self._last_resort.daemon = True
            self._last_resort.start()

    def _reject(self, key: Key, error: Exception) -> None:
        """A request is answered without being run. From any thread."""
        code, text = describe(error)
        output = wire.Output(request_id=key[0], attempt=key[1], seq=0, done=False, code=code, text=text)
        self._session.post(wire.Outputs(outputs=[output]))


def _messages(answers: list[Answer], max_message_bytes: int) -> Iterator[list[Answer]]:
    """The answers in as few messages as the limits allow; each fits by itself."""
    part: list[Answer] = []
    size = frames = 0
    for answer in answers:
        output, body, _ = answer
        # A character takes at most four bytes.
        weight = ENVELOPE_BYTES + 4 * len(output.text) + sum(memoryview(frame).nbytes for frame in body)
        if part and (len(part) >= _MAX_OUTPUTS or frames + len(body) > MAX_FRAMES or size + weight > max_message_bytes):
            yield part
            part, size, frames = [], 0, 0
        part.append(answer)
        size, frames = size + weight, frames + len(body)
    if part:
        yield part
