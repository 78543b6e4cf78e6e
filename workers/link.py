"""The worker's side of its session: reads requests while the main thread computes.

The shell around `conversation.py`: the session's thread, the main thread's calls, signals, and the end of the process.
`intake.py` takes the requests, `engine.py` makes the answers, `main.py` puts the parts together.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from .. import errors, faults
from ..links import Frames, Session
from ..proto import wire
from ..proto.pipeline import Pipeline, PipelineTask
from ..settings import Settings
from ..shm import Courier, Pool, Reader
from .answers import Answer
from .conversation import EXIT_ORPHANED, Conversation, Key
from .inbox import Inbox
from .intake import Intake

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
        self._progress: Callable[[], int] = int
        #: Beats at which all work paused for its readers: time that is not held against the pipeline.
        self._stalls = 0
        #: Keeps READY from the main thread and a welcome in the session's from missing each other; and outputs from
        #: leaving between the moment that READY counts them and its own.
        self._lock = threading.Lock()
        #: Ends the process when the main thread does not.
        self._last_resort: threading.Timer | None = None
        #: Written to by `drain_soon`, which may not take a lock; -1 once closed.
        self._drain_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
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
        inbox.wait_by(self._session.wait, self._session.nudge)
        self._courier = Courier()
        self._intake = Intake(
            inbox=inbox,
            pool=pool,
            settings=settings,
            reject=self._reject,
            reader=Reader(courier=self._courier),
            reaches=lambda: self._courier.is_there,
        )
        self._conversation = Conversation(
            name=name,
            settings=settings,
            post=self._session.post,
            requests=self._intake,
            memory=pool,
            leave=self._leave,
            begin_anew=self._session.begin_anew,
            fences=address.startswith("tcp://"),
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
            self._conversation.ready(message)

    def start_failed(self, deployment: str, text: str) -> None:
        """The factory raised; the coordinator is to know why."""
        self._conversation.start_failed(deployment, text)

    def send(self, answers: list[Answer]) -> None:
        """The answers of one step leave."""
        with self._lock:
            self._conversation.send(answers)

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
    def max_frame_bytes(self) -> int:
        """The largest frame that may be sent."""
        return self._conversation.max_frame_bytes

    @property
    def max_message_bytes(self) -> int:
        """The largest message that may be sent."""
        return self._conversation.max_message_bytes

    @property
    def refusal(self) -> errors.TensoryardError | None:
        """Why the coordinator does not admit us."""
        return self._conversation.refusal

    @property
    def exit_code(self) -> int:
        """What the process ends with, once the engine has."""
        return self._conversation.exit_code

    # -- callbacks of the session -------------------------------------------------------------------------------------

    def on_welcome(self, welcome: wire.Welcome) -> None:
        """We are known."""
        self._courier.serve(welcome.cluster)
        with self._lock:
            self._conversation.welcomed(welcome)

    def on_message(self, message: Any, body: Frames) -> None:
        """Work, and word about work."""
        if faults.ARMED:
            faults.reach(f"worker.on_{wire.word_of(message)}")
        self._conversation.message(message, body)

    def on_refused(self, error: errors.TensoryardError) -> None:
        """We, or a message of ours, were not admitted."""
        self._conversation.refused(error)

    def on_beat(self, silent_s: float) -> wire.Heartbeat:
        """Tell our progress."""
        self._intake.housekeep()
        self._conversation.beat(silent_s, time.monotonic())
        self._stalls += self._inbox.is_stalled
        return wire.Heartbeat(progress=self._progress() + self._stalls, busy=bool(self._inbox.held()))

    def on_failure(self, _error: Exception) -> None:
        """The session's thread has ended."""
        self._conversation.failed()

    def _ask_to_leave(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._drain_fd)
        self._conversation.ask_to_leave(time.monotonic())

    def _reject(self, key: Key, error: Exception) -> None:
        self._conversation.reject(key, error)

    def _leave(self) -> None:
        """End the worker, also when its main thread is stuck in the pipeline."""
        self._inbox.abandon()
        if self._last_resort is None:
            self._last_resort = threading.Timer(_GRACE_S, os._exit, [self.exit_code])
            self._last_resort.daemon = True
            self._last_resort.start()
