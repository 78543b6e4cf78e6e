"""The worker's main loop: takes batches, runs the pipeline, turns what it returns into answers.

Gets its batches from `inbox.py` and leaves answers (`answers.py`) with `link.py`; knows pipelines and pools, but no
sockets.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from .. import errors, faults
from ..logs import logger
from ..proto import wire
from ..proto.codec import Encoded, encode_body, plain_encoder
from ..proto.one_shot import AudioContext
from ..proto.outputs import batch_inputs, task_types
from ..proto.pipeline import Pipeline, PipelineTask
from ..proto.plain_types import is_plain
from ..proto.request import RequestID
from ..settings import Settings
from ..shm import Loan, Pool
from .answers import ENVELOPE_BYTES, MAX_FRAMES, Answer, describe
from .batcher import Work
from .inbox import Inbox

log = logger(__name__)

#: What a step brought for a request that it left out, where that is no error.
_SILENCE = object()


class Limits(Protocol):
    """How large a message may be: the link's, as the coordinator told it."""

    @property
    def max_frame_bytes(self) -> int:
        """Of one frame."""

    @property
    def max_message_bytes(self) -> int:
        """Of all frames together."""


class Executed(NamedTuple):
    """A batch and what the pipeline made of it: outputs and errors by RequestID, or less than all of them."""

    batch: list[Work]
    results: dict[RequestID, Any]


class Engine:
    """Runs one pipeline until its inbox ends. `send` passes answers on, from the main thread.

    A step is `execute`, then `answer`: apart, so that time can pass between them where nothing really runs.
    Arrays of at least `threshold_bytes` leave by handle.
    """

    def __init__(
        self,
        *,
        pipeline: Pipeline[Any, Any],
        task: PipelineTask,
        inbox: Inbox,
        pool: Pool,
        send: Callable[[list[Answer]], None],
        limits: Limits,
        settings: Settings,
        threshold_bytes: int,
        worker: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pipeline = pipeline
        self._task = task
        output = task_types(task).output
        self._output: type[Any] = output
        self._plain = plain_encoder(threshold_bytes)
        self._encode = self._encode_plainly if is_plain(output) else self._encode_closely
        #: What a request gets that a step brought nothing for. Of a text request that may be: its prompt is still being
        #: read, or it waits for room.
        self._nothing = _SILENCE if task is PipelineTask.TEXT_GENERATION else None
        self._inbox = inbox
        self._pool = pool
        self._send = send
        self._limits = limits
        self._settings = settings
        self._threshold_bytes = threshold_bytes
        self._worker = worker
        self._clock = clock
        #: Moves with every step: what the coordinator sees of our being alive rather than hung.
        self.progress = 0
        #: Until when the outputs of this step, all together, may wait for room in the pool (monotonic seconds).
        self._place_until = 0.0
        #: A body of one frame and so many bytes at most needs no closer look in this step.
        self._surely_fits = 0

    def run(self) -> None:
        """Work until the inbox says that it is over; then release what is left unfinished.

        SystemExit and KeyboardInterrupt of the pipeline end the worker; its requests run again elsewhere.
        """
        while self._run_batch():
            pass
        self.release_all()

    def release_all(self) -> None:
        """The pipeline is to let go of everything that was begun and not finished."""
        for work in self._inbox.held():
            self._release(work)

    def _run_batch(self) -> bool:
        """Wait for a batch and run it. A function of its own, so that no batch outlives its step while we wait."""
        batch = self._inbox.next_batch()
        if batch is None:
            return False
        self.answer(self.execute(batch))
        return True

    def execute(self, batch: list[Work]) -> Executed:
        """One step of the pipeline, for those of a batch that are still wanted."""
        if faults.ARMED:
            faults.reach("worker.before_execute")
        self.progress += 1
        began = self._clock()
        wanted = [work for work in batch if not work.context.cancelled]
        results = self._execute(wanted) if wanted else {}
        took_s = self._clock() - began
        for work in wanted:
            work.execute_s += took_s
        if faults.ARMED:
            faults.reach("worker.after_execute")
        return Executed(batch, results)

    def answer(self, executed: Executed) -> None:
        """Answer each request of the batch for itself, and let go of those that have ended."""
        self._place_until = self._clock() + self._settings.allocate_timeout_s
        self._surely_fits = min(self._limits.max_frame_bytes, self._limits.max_message_bytes) - ENVELOPE_BYTES
        batch, results = executed
        answers: list[Answer] = []
        ended = [work for work in batch if self._answer_all(work, results, answers)]
        _cut_tracebacks(results)
        for work in ended:
            self._inbox.finish(work)
        if answers:
            self._send(answers)
        self.progress += 1
        for work in ended:
            self._release(work)

    def _answer_all(self, work: Work, results: dict[RequestID, Any], answers: list[Answer]) -> bool:
        """Add what a step brought for a request, one part or a list of them; whether the request has ended."""
        value = results.get(work.context.request_id, self._nothing)
        if value is _SILENCE and not work.context.cancelled:
            return False
        if not isinstance(value, list) or not value:
            return self._answer(work, value, answers)
        return any(self._answer(work, part, answers) for part in value)

    def _execute(self, batch: list[Work]) -> dict[RequestID, Any]:
        """What the pipeline returns; what it raises becomes the answer of the whole batch."""
        contexts = []
        for work in batch:
            work.started = True
            contexts.append(work.context)
        try:
            results = self._pipeline.execute(batch_inputs(self._task, contexts))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # asyncio's CancelledError is no Exception, and a failed batch all the same
            log.exception("the pipeline raised for a batch of %d", len(batch))
            # Told anew: an exception and our frames in its traceback would keep each other, and all arrays, alive.
            return _to_all(contexts, errors.from_wire(*describe(error)))
        if not isinstance(results, dict):
            problem = errors.PipelineError(f"the pipeline returned a {type(results).__name__}, not a dict by RequestID")
            return _to_all(contexts, problem)
        return results

    def _answer(self, work: Work, value: Any, answers: list[Answer]) -> bool:
        """Add the answer for one request; anything wrong with it is that request's alone. Whether it is the last."""
        if type(value) is not self._output or work.failure is not None or work.context.cancelled:
            value = self._checked(work, value)
        if not isinstance(value, BaseException):
            try:
                done: bool = value.is_done
                answers.append(self._encode(work, value, done=done))
            except Exception as error:
                log.exception("an output of request %s cannot be sent", work.request_id)
                value = error
                if isinstance(error, errors.UnsupportedArray):  # of the pipeline's making, not the caller's
                    value = errors.PipelineError(f"the pipeline's output cannot be sent: {error.text}")
            else:
                return done
        answers.append(self._error(work, value))
        return True

    def _checked(self, work: Work, value: Any) -> Any:
        """What a request is answered: what the pipeline says, or an error in its place."""
        if work.failure is not None:
            return work.failure
        if work.context.cancelled:
            return errors.RequestCancelled(f"cancelled {'while' if work.started else 'before'} it ran")
        if value is None:
            return errors.PipelineError("the pipeline's answer has no entry for this request")
        if not isinstance(value, self._output | BaseException):
            kind, wanted = type(value).__name__, self._output.__name__
            return errors.PipelineError(f"the pipeline answered a {kind}; task {self._task.value} answers {wanted}")
        return value

    def _encode_plainly(self, work: Work, value: Any, *, done: bool) -> Answer:
        """An output that should be small and hold no arrays, like a token; any other takes a closer look."""
        try:
            body = self._plain(value)
        except Exception:
            return self._encode_closely(work, value, done=done)
        if len(body) > self._surely_fits:
            return self._encode_closely(work, value, done=done)
        return self._leaving(work, [body], [], len(body), done=done)

    def _encode_closely(self, work: Work, value: Any, *, done: bool) -> Answer:
        """The same for any value: arrays go where there is room for them, and the size is looked at."""
        encoded = encode_body(
            value,
            place=(lambda array: self._place(array, work.request_id)) if work.by_handle else None,
            out_of_band=True,
            threshold_bytes=self._threshold_bytes,
        )
        size = encoded.socket_bytes
        if len(encoded.frames) > 1 or size > self._surely_fits:
            self._check_size(encoded, size + ENVELOPE_BYTES)
        # The pipeline may use its arrays again as soon as we return, and these wait for a socket.
        for number in range(1, len(encoded.frames)):
            encoded.frames[number] = bytes(encoded.frames[number])
            encoded.copies += 1
        work.output_copies += encoded.copies
        work.output_shared_bytes += encoded.shared_bytes
        answer = self._leaving(work, encoded.frames, encoded.loans, size, done=done, shared_bytes=encoded.shared_bytes)
        if isinstance(work.context, AudioContext):
            work.context.chunks_sent = work.seq
        return answer

    def _leaving(
        self, work: Work, frames: list[Any], loans: list[Loan], size: int, *, done: bool, shared_bytes: int = 0
    ) -> Answer:
        """An output as it leaves, entered in the books."""
        work.output_socket_bytes += size
        seq = work.seq
        output = wire.Output(
            request_id=work.request_id,
            attempt=work.attempt,
            seq=seq,
            done=done,
            frames=len(frames),
            ledger=self._ledger(work) if done or not seq or shared_bytes else None,
        )
        work.seq = seq + 1
        work.window.send(size + shared_bytes)
        return output, frames, loans

    def _place(self, array: Any, request_id: str) -> tuple[Loan, bool] | None:
        """Into the pool; a full pool sends the array out-of-band instead: slower, not broken."""
        try:
            timeout_s = max(self._place_until - self._clock(), 0.0)
            return self._pool.publish(array, timeout_s=timeout_s, tag=request_id)
        except errors.PoolExhausted as error:
            log.warning("an output goes through the socket: %s", error)
            return None

    def _check_size(self, encoded: Encoded, size: int) -> None:
        limits, frames = self._limits, encoded.frames
        largest = len(frames[0]) if len(frames) == 1 else max(memoryview(frame).nbytes for frame in frames)
        fits = largest <= limits.max_frame_bytes and size <= limits.max_message_bytes
        if not fits or len(encoded.frames) > MAX_FRAMES:
            encoded.release()
            raise errors.MessageTooLarge(
                f"the output takes {size} bytes in {len(encoded.frames)} frames, the largest {largest} bytes; limits "
                f"are {limits.max_message_bytes} (max_message_bytes), {MAX_FRAMES} frames, and "
                f"{limits.max_frame_bytes} per frame (max_frame_bytes). Large arrays go by handle while the worker's "
                "tensor pool has room (pool_budget_bytes)",
            )

    def _error(self, work: Work, error: BaseException) -> Answer:
        code, text = describe(error)
        error.__traceback__ = None  # the pipeline may keep it in a frame that its traceback leads to, with all arrays
        output = wire.Output(
            request_id=work.request_id,
            attempt=work.attempt,
            seq=work.seq,
            done=False,
            code=code,
            text=text,
            ledger=self._ledger(work),
        )
        return output, [], []

    def _ledger(self, work: Work) -> wire.Ledger:
        return wire.Ledger(
            request_socket_bytes=work.request_socket_bytes,
            output_socket_bytes=work.output_socket_bytes,
            output_shared_bytes=work.output_shared_bytes,
            output_copies=work.output_copies,
            wait_s=work.wait_s,
            execute_s=work.execute_s,
            worker=self._worker,
        )

    def _release(self, work: Work) -> None:
        if not work.started:
            return
        try:
            self._pipeline.release(work.context.request_id)
        except Exception:
            log.exception("the pipeline's release of request %s raised", work.request_id)


def _to_all(contexts: list[Any], error: errors.TensoryardError) -> dict[RequestID, Any]:
    return {context.request_id: error for context in contexts}


def _cut_tracebacks(results: dict[RequestID, Any]) -> None:
    """Of errors that nobody was told too: they lead to the pipeline's frames, and those to all arrays."""
    for value in results.values():
        if isinstance(value, BaseException):
            value.__traceback__ = None
