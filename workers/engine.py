"""The worker's main loop: takes batches, runs the pipeline, turns what it returns into answers.

Gets its batches from `inbox.py` and leaves answers with `link.py`; knows pipelines and pools, no sockets.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable
from typing import Any

from .. import errors
from ..proto import wire
from ..proto.codec import Encoded, encode_body
from ..proto.one_shot import AudioContext
from ..proto.outputs import batch_inputs, task_types
from ..proto.pipeline import Pipeline, PipelineTask
from ..proto.request import RequestID
from ..settings import Settings
from ..shm import Loan, Pool
from .batcher import Work
from .inbox import Inbox

log = logging.getLogger(__name__)

#: One answer on its way: its part of OUTPUTS, the frames, and the shared memory that they name.
Answer = tuple[wire.Output, list[Any], list[Loan]]
_MAX_TEXT_CHARS = 8000


class Engine:
    """Runs one pipeline until its inbox ends. `send` passes answers on, from the main thread."""

    def __init__(
        self,
        *,
        pipeline: Pipeline[Any, Any],
        task: PipelineTask,
        inbox: Inbox,
        pool: Pool,
        send: Callable[[list[Answer]], None],
        settings: Settings,
        worker: str,
    ) -> None:
        self._pipeline = pipeline
        self._task = task
        self._output_type = task_types(task).output
        self._inbox = inbox
        self._pool = pool
        self._send = send
        self._settings = settings
        self._worker = worker
        #: Moves with every step: what the coordinator sees of our being alive rather than hung.
        self.progress = 0

    def run(self) -> None:
        """Work until the inbox says that it is over."""
        while (batch := self._inbox.next_batch()) is not None:
            self._step(batch)

    def _step(self, batch: list[Work]) -> None:
        self.progress += 1
        began = time.monotonic()
        results = self._execute(batch)
        took = time.monotonic() - began
        answers = []
        for work in batch:
            work.execute_s += took
            answers.append(self._answer(work, results.get(work.context.request_id)))
        ended = [work for work, (output, _, _) in zip(batch, answers, strict=True) if output.done or output.code]
        for work in ended:
            self._inbox.finish(work)
        self._send(answers)
        self.progress += 1
        for work in ended:
            self._release(work)

    def _execute(self, batch: list[Work]) -> dict[RequestID, Any]:
        """One step of the pipeline; what it raises becomes the answer of the whole batch."""
        contexts = {work.context.request_id: work.context for work in batch}
        for work in batch:
            work.started = True
        try:
            results = self._pipeline.execute(batch_inputs(self._task, contexts))
        except Exception as error:
            log.exception("the pipeline raised for a batch of %d", len(batch))
            return dict.fromkeys(contexts, error)
        if not isinstance(results, dict):
            problem = errors.PipelineError(f"the pipeline returned a {type(results).__name__}, not a dict by RequestID")
            return dict.fromkeys(contexts, problem)
        return results

    def _answer(self, work: Work, value: Any) -> Answer:
        """The answer for one request; anything wrong with it is that request's alone."""
        if work.context.cancelled:
            value = errors.RequestCancelled("cancelled while it ran")
        elif value is None:
            value = errors.PipelineError("the pipeline's answer has no entry for this request")
        elif not isinstance(value, Exception | self._output_type):
            kind, wanted = type(value).__name__, self._output_type.__name__
            value = errors.PipelineError(f"the pipeline answered a {kind}; task {self._task.value} answers {wanted}")
        if not isinstance(value, Exception):
            try:
                return self._encode(work, value)
            except Exception as error:
                log.exception("an output of request %s cannot be sent", work.request_id)
                value = error
        return self._error(work, value)

    def _encode(self, work: Work, value: Any) -> Answer:
        encoded = encode_body(
            value,
            place=lambda array: self._place(array, work.request_id),
            out_of_band=True,
            threshold_bytes=self._settings.threshold_bytes,
        )
        self._check_size(encoded)
        work.output_socket_bytes += encoded.socket_bytes
        work.output_shared_bytes += encoded.shared_bytes
        work.output_copies += encoded.copies
        output = wire.Output(
            request_id=work.request_id,
            attempt=work.attempt,
            seq=work.seq,
            done=value.is_done,
            frames=len(encoded.frames),
            ledger=self._ledger(work),
        )
        work.seq += 1
        if isinstance(work.context, AudioContext):
            work.context.chunks_sent = work.seq
        return output, encoded.frames, encoded.loans

    def _place(self, array: Any, request_id: str) -> tuple[Loan, bool] | None:
        """Into the pool; a full pool sends the array out-of-band instead: slower, not broken."""
        try:
            return self._pool.publish(array, timeout_s=self._settings.allocate_timeout_s, tag=request_id)
        except errors.PoolExhausted as error:
            log.warning("an output goes through the socket: %s", error)
            return None

    def _check_size(self, encoded: Encoded) -> None:
        largest = max(memoryview(frame).nbytes for frame in encoded.frames)
        if largest > self._settings.max_frame_bytes or len(encoded.frames) > wire.MAX_FRAMES // 2:
            encoded.release()
            raise errors.MessageTooLarge(
                f"the output has a frame of {largest} bytes, over the limit of {self._settings.max_frame_bytes} "
                "(max_frame_bytes), and the worker's tensor pool is full",
            )

    def _error(self, work: Work, error: Exception) -> Answer:
        code, text = describe(error)
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
        try:
            self._pipeline.release(work.context.request_id)
        except Exception:
            log.exception("the pipeline's release of request %s raised", work.request_id)


def describe(error: Exception) -> tuple[str, str]:
    """Code and text of what went wrong with a request: ours as they are, others as the pipeline's error."""
    if isinstance(error, errors.TensoryardError):
        return error.code, error.text[:_MAX_TEXT_CHARS]
    frames = traceback.extract_tb(error.__traceback__)
    where = f" (at {frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return errors.PipelineError.code, f"{type(error).__name__}: {error}{where}"[:_MAX_TEXT_CHARS]
