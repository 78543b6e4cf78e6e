"""A reply: what a caller holds while a request runs.

`pending.py` fills it from the session's thread; any thread may wait for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import ReplyTimeout, TensoryardError
from ..proto.outputs import merge_outputs
from ..proto.request import RequestID
from .ledger import CopyLedger

log = logging.getLogger(__name__)


class Reply:
    """The answer to one request, as it comes.

    Iterate for the outputs of a stream one by one; `result` for the whole. Both raise what ended the request: see
    `tensoryard.errors`. A reply may be waited for again after a ReplyTimeout.
    """

    def __init__(self, request_id: RequestID, cancel: Callable[[RequestID], None]) -> None:
        self.request_id = request_id
        self._cancel = cancel
        self._changed = threading.Condition()
        self._outputs: list[Any] = []
        self._error: TensoryardError | None = None
        self._done = False
        self._ledger = CopyLedger()
        self._listeners: list[Callable[[], None]] = []

    # -- for the caller -----------------------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Whether the request has ended, one way or another."""
        return self._done

    @property
    def ledger(self) -> CopyLedger:
        """What became of the request's bytes; grows until the reply is done."""
        return self._ledger

    def result(self, timeout_s: float | None = None) -> Any:
        """The task's output: for a stream, all of it joined. ReplyTimeout after `timeout_s` seconds without it."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._done, timeout_s):
                raise ReplyTimeout(f"no answer within {timeout_s} s; it still runs", request_id=str(self.request_id))
            if self._error is not None:
                raise self._error
            return merge_outputs(self._outputs)

    def __iter__(self) -> Iterator[Any]:
        """Each output when it comes, the last one included."""
        position = 0
        while True:
            with self._changed:
                while len(self._outputs) <= position and not self._done:
                    self._changed.wait()
            outputs, done = self.outputs_from(position)
            position += len(outputs)
            yield from outputs
            if done:
                return

    def outputs_from(self, position: int) -> tuple[list[Any], bool]:
        """The outputs that have come from `position` on, and whether they are the last.

        Raises what ended the request, once there is nothing more to give.
        """
        with self._changed:
            outputs = self._outputs[position:]
            if self._done and self._error is not None and not outputs:
                raise self._error
            return outputs, self._done and self._error is None

    def cancel(self) -> None:
        """Say that the answer is not wanted; `result` then raises RequestCancelled, unless the answer came first."""
        if not self._done:
            self._cancel(self.request_id)

    def add_listener(self, listener: Callable[[], None]) -> None:
        """Call `listener` at each output and at the end, from the session's thread; at once if done already.

        It must not wait for anything; what it raises is logged.
        """
        with self._changed:
            self._listeners.append(listener)
            done = self._done
        if done:
            listener()

    # -- for the session's thread -------------------------------------------------------------------------------------

    def add_output(self, output: Any, ledger: CopyLedger, *, done: bool) -> None:
        """One output has come."""
        with self._changed:
            if self._done:
                return
            self._outputs.append(output)
            self._ledger = ledger
            self._done = done
        self._notify()

    def fail(self, error: TensoryardError) -> None:
        """The request ended without its answer; what came before stays readable by iteration."""
        with self._changed:
            if self._done:
                return
            self._error = error
            self._done = True
        self._notify()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()
            listeners = list(self._listeners)
        for listener in listeners:
            try:
                listener()
            except Exception:  # the session serves other requests too
                log.exception("a listener of %r raised", self)

    def __repr__(self) -> str:
        state = "done" if self._done else "running"
        return f"<Reply to {self.request_id}: {state}, {len(self._outputs)} outputs>"


def monotonic() -> float:
    """The clock of replies and ledgers."""
    return time.monotonic()
