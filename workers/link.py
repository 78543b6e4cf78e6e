"""The worker's side of its session: reads requests while the main thread computes.

Decodes requests and builds their contexts for `inbox.py`, sends the answers of `engine.py`, and notices when nobody
is there to work for. `main.py` puts the parts together.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import msgspec

from .. import errors
from ..links import Frames, Session
from ..proto import wire
from ..proto.codec import decode_body
from ..proto.one_shot import OneShotContext, new_context
from ..proto.outputs import task_types
from ..proto.pipeline import Pipeline, PipelineTask
from ..settings import Settings
from ..shm import Pool, Reader
from .batcher import Work
from .engine import Answer, describe
from .inbox import Inbox

log = logging.getLogger(__name__)

#: Exit codes of a worker process.
EXIT_DRAINED = 0
EXIT_START_FAILED = 3
EXIT_ORPHANED = 4
EXIT_REFUSED = 5
#: Outputs whose shared memory can still be taken back by a DISCARD; older ones fall to the pool's claim timeout.
_MAX_REMEMBERED = 8192
#: After being told to go, how long the main thread may take before the process ends without it.
_GRACE_S = 5.0


class WorkerLink:
    """Speaks for one worker. `start` says hello; `ready` announces the loaded pipeline."""

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
        self._reader = Reader()
        self._pipeline: Pipeline[Any, Any] | None = None
        self._task = PipelineTask.UNDEFINED
        self._ready: wire.Ready | None = None
        self._progress: Callable[[], int] = int
        self._sent: OrderedDict[tuple[str, int, int], list[int]] = OrderedDict()
        self._lock = threading.Lock()
        self._welcomed = False
        #: Why the coordinator does not admit us; set once, by the session's thread.
        self.refusal: errors.TensoryardError | None = None
        self.orphaned = False
        self._session = Session(
            address=address,
            role="worker",
            name=name,
            decoder=wire.TO_WORKER,
            callbacks=self,
            settings=settings,
            # Nobody writes to that pipe: it becomes readable when the process that started us has ended.
            watch={} if life_fd is None else {life_fd: lambda: os._exit(EXIT_ORPHANED)},
        )

    # -- for the main thread ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Connect and say hello."""
        self._session.start()

    def ready(self, pipeline: Pipeline[Any, Any], message: wire.Ready, progress: Callable[[], int]) -> None:
        """The pipeline is loaded: ask for work."""
        self._pipeline = pipeline
        self._task = PipelineTask(message.task)
        self._progress = progress
        with self._lock:
            self._ready = message
            if self._welcomed:
                self._announce(message)

    def start_failed(self, deployment: str, text: str) -> None:
        """The factory raised; the coordinator is to know why."""
        self._session.post(wire.StartFailed(deployment=deployment, text=text[-60_000:]))

    def send(self, answers: list[Answer]) -> None:
        """Answers of one step leave as one message; what they lend waits for its reader from now on."""
        outputs: list[wire.Output] = []
        frames: Frames = []
        for output, body, loans in answers:
            if loans:
                self._remember((output.request_id, output.attempt, output.seq), [loan.generation for loan in loans])
            for loan in loans:
                self._pool.send(loan)
            outputs.append(output)
            frames.extend(body)
        self._session.post(wire.Outputs(outputs=outputs), frames)

    def close(self) -> None:
        """Send what is queued, say goodbye, end the thread."""
        self._session.close(_GRACE_S)
        self._reader.close()

    def _remember(self, key: tuple[str, int, int], generations: list[int]) -> None:
        self._sent[key] = generations
        if len(self._sent) > _MAX_REMEMBERED:
            self._sent.popitem(last=False)

    # -- callbacks of the session -------------------------------------------------------------------------------------

    def on_welcome(self, _welcome: wire.Welcome) -> None:
        """We are known; once the pipeline is loaded, say what we serve and what we still hold from before."""
        with self._lock:
            self._welcomed = True
            if self._ready is not None:
                self._announce(self._ready)

    def _announce(self, ready: wire.Ready) -> None:
        running = [wire.Running(request_id=work.request_id, attempt=work.attempt) for work in self._inbox.held()]
        self._session.post(msgspec.structs.replace(ready, running=running))

    def on_message(self, message: Any, body: Frames) -> None:
        """Work, and word about work."""
        match message:
            case wire.Dispatch():
                self._accept(message, body)
            case wire.CancelWork():
                self._cancel(message)
            case wire.Discard():
                for generation in self._sent.pop((message.request_id, message.attempt, message.seq), ()):
                    self._pool.discard(generation)
            case wire.Drain():
                self._inbox.drain()
            case wire.Disconnect():
                log.info("the coordinator has left")

    def on_refused(self, error: errors.TensoryardError) -> None:
        """Before READY it means that we may not join; later, that one message of ours was not understood."""
        log.error("the coordinator refused worker %s: %s", self.name, error)
        if isinstance(error, errors.VersionMismatch) or not self._welcomed:
            self.refusal = error
            self._leave()

    def on_beat(self, silent_s: float) -> wire.Heartbeat:
        """Tell our progress; end the worker when it has been alone for too long."""
        self._reader.housekeep()
        if silent_s > self._settings.orphan_s and not self.orphaned:
            log.error("no coordinator was heard for %.0f s: worker %s ends", silent_s, self.name)
            self.orphaned = True
            self._leave()
        return wire.Heartbeat(progress=self._progress(), busy=bool(self._inbox.held()))

    def on_failure(self, _error: Exception) -> None:
        """Without a session there is nobody to work for."""
        self.orphaned = True
        self._leave()

    def _leave(self) -> None:
        """End the worker, also when its main thread is stuck in the pipeline."""
        self._inbox.abandon()
        timer = threading.Timer(_GRACE_S, os._exit, [EXIT_ORPHANED])
        timer.daemon = True
        timer.start()

    # -- requests -----------------------------------------------------------------------------------------------------

    def _accept(self, message: wire.Dispatch, body: Frames) -> None:
        """Build the context; a request that cannot be read fails alone."""
        try:
            context = self._context(message, body)
        except Exception as error:
            code, text = describe(error)
            if isinstance(error, errors.DecodeError):
                code = errors.InvalidRequest.code
            self._reject(message.request_id, message.attempt, code, text)
            return
        work = Work(message.request_id, message.attempt, context, time.monotonic())
        work.request_socket_bytes = len(wire.encode(message)) + sum(memoryview(frame).nbytes for frame in body)
        self._inbox.put(work)

    def _context(self, message: wire.Dispatch, body: Frames) -> OneShotContext:
        assert self._pipeline is not None, "requests come after READY"
        request = decode_body(body, task_types(self._task).request, resolve=self._reader.open)
        if request.request_id.value != message.request_id:
            raise errors.InvalidRequest("the body carries another RequestID than its envelope")
        allocate = functools.partial(
            self._pool.empty,
            timeout_s=self._settings.allocate_timeout_s,
            tag=message.request_id,
        )
        return new_context(request, options=_read_options(self._pipeline, request.options), allocate=allocate)

    def _cancel(self, message: wire.CancelWork) -> None:
        work = self._inbox.cancel(message.request_id, message.attempt)
        if work is not None:
            self._reject(work.request_id, work.attempt, errors.RequestCancelled.code, "cancelled before it ran")

    def _reject(self, request_id: str, attempt: int, code: str, text: str) -> None:
        output = wire.Output(request_id=request_id, attempt=attempt, seq=0, done=False, code=code, text=text)
        self._session.post(wire.Outputs(outputs=[output]))


def _read_options(pipeline: Pipeline[Any, Any], options: dict[str, Any]) -> Any:
    """The request's options in the pipeline's own type, where it has one; a wrong key or value is named."""
    if pipeline.options_type is None:
        return options
    try:
        return msgspec.convert(options, pipeline.options_type)
    except (msgspec.ValidationError, TypeError) as error:
        raise errors.InvalidRequest(f"`options`: {error}") from error
