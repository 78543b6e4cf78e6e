"""A reply: what a caller holds while a request runs.

`conversation.py` fills it from whichever thread serves the session, any thread may wait for it; `reading.py` keeps
count of what was read.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..errors import InvalidRequest, ReplyTimeout, TensoryardError
from ..logs import logger
from ..proto.outputs import merge_outputs
from ..proto.request import RequestID
from .ledger import CopyLedger
from .reading import Reading

log = logger(__name__)


#: Waits on a condition until something is so, for so many seconds at most: `Session.wait`.
Wait = Callable[[threading.Condition, Callable[[], bool], float | None], bool]


def _wait_idly(condition: threading.Condition, done: Callable[[], bool], timeout_s: float | None) -> bool:
    with condition:
        return condition.wait_for(done, timeout_s)


def _nobody(_request_id: RequestID, _parts: int) -> None:
    """For replies whose stream has no window."""


class Reply:
    """The answer to one request, as it comes.

    Iterate for the outputs of a stream one by one; `result` for the whole. Both raise what ended the request: see
    `tensoryard.errors`. A reply may be waited for again after a ReplyTimeout.

    A stream that is not read pauses at its worker (setting `stream_window_parts`); `result` and `collect` read it as it
    comes. What iteration has read is kept for `result` and for other iterations up to the same bound; beyond, the
    oldest is let go of, and those who come too late for it get InvalidRequest.
    """

    def __init__(
        self,
        request_id: RequestID,
        cancel: Callable[[RequestID], None],
        *,
        consumed: Callable[[RequestID, int], None] = _nobody,
        reading: Reading | None = None,
        wait: Wait = _wait_idly,
    ) -> None:
        """`consumed` is told, from any thread, how many outputs of a running stream have been read.

        `wait` may do something useful meanwhile, such as having the answer come.
        """
        self.request_id = request_id
        self._cancel = cancel
        self._consumed = consumed
        self._reading = reading or Reading()
        self._wait = wait
        self._lock = threading.RLock()
        #: Made when somebody waits: few do where many requests are under way, and to make one costs more than a lock.
        self._changed: threading.Condition | None = None
        #: Those from `_reading.dropped` on.
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
    def outcome(self) -> str | None:
        """How it ended, one of `tensoryard.errors.OUTCOMES`; None while it runs."""
        if not self._done:
            return None
        return "finished" if self._error is None else self._error.outcome

    @property
    def ledger(self) -> CopyLedger:
        """What became of the request's bytes: who serves it from the first output on, the whole when it is done."""
        return self._ledger

    def collect(self) -> None:
        """Take in the whole answer as it comes, before anybody waits for `result`. Again is harmless."""
        with self._lock:
            self._reading.collecting = True
        self._tell()

    def result(self, timeout_s: float | None = None) -> Any:
        """The task's output: for a stream, all of it joined. ReplyTimeout after `timeout_s` seconds without it.

        Raises InvalidRequest when parts of it were read by iteration and let go of.
        """
        self.collect()
        if not self._done and not self._wait(self._condition(), lambda: self._done, timeout_s):
            raise ReplyTimeout(f"no answer within {timeout_s} s; it still runs", request_id=str(self.request_id))
        with self._lock:
            if self._error is not None:
                raise _fresh(self._error)
            self._require_kept(0)
            return merge_outputs(self._outputs)

    def __iter__(self) -> Iterator[Any]:
        """Each output when it comes, the last one included."""
        position = 0
        while True:
            if self._reading.came <= position and not self._done:
                self._wait(self._condition(), lambda: self._reading.came > position or self._done, None)  # noqa: B023
            outputs, done = self.outputs_from(position, self._reading.stride)
            position += len(outputs)
            yield from outputs
            if done:
                return

    def outputs_from(self, position: int, most: int | None = None) -> tuple[list[Any], bool]:
        """The outputs that have come from `position` on, at most so many, and whether they are the last.

        They count as read. Raises what ended the request, once there is nothing more to give, and InvalidRequest when
        the first of them was let go of.
        """
        with self._lock:
            self._require_kept(position)
            start = position - self._reading.dropped
            outputs = self._outputs[start : None if most is None else start + most]
            if self._done and self._error is not None and not outputs:
                raise _fresh(self._error)
            end = position + len(outputs)
            self._reading.read_to(end)
            del self._outputs[: self._reading.drop()]
            last = self._done and self._error is None and end == self._reading.came
            told = None if self._done else self._reading.tell()
        if told is not None:
            self._consumed(self.request_id, told)
        return outputs, last

    def _condition(self) -> threading.Condition:
        with self._lock:
            if self._changed is None:
                self._changed = threading.Condition(self._lock)
            return self._changed

    def _require_kept(self, position: int) -> None:
        dropped = self._reading.dropped
        if position < dropped and self._error is not None:
            raise _fresh(self._error)
        if position < dropped:
            raise InvalidRequest(
                f"the first {dropped} outputs of this stream have been read and let go of: it is longer than what is "
                "kept (stream_window_parts, stream_window_bytes). Iterate once, or call `collect` before",
                request_id=str(self.request_id),
            )

    def _tell(self, *, all_of_it: bool = False) -> None:
        """Say how much has been read, if the worker is to know; not under the lock."""
        with self._lock:
            parts = None if self._done else self._reading.tell(all_of_it=all_of_it)
        if parts is not None:
            self._consumed(self.request_id, parts)

    def cancel(self) -> None:
        """Say that the answer is not wanted; `result` then raises RequestCancelled, unless the answer came first."""
        if not self._done:
            self._cancel(self.request_id)

    def add_listener(self, listener: Callable[[], None]) -> None:
        """Call `listener` at each output and at the end, in the thread that serves the session; at once if done.

        It must not wait for anything; what it raises is logged.
        """
        with self._lock:
            self._listeners.append(listener)
            done = self._done
        if done:
            listener()

    # -- for whoever serves the session --------------------------------------------------------------------------------

    @property
    def consumed(self) -> int:
        """How many outputs the worker need not hold back for, counted from the first."""
        return self._reading.consumed

    def tell_all(self) -> None:
        """Have told whatever has been read and was not worth a message yet."""
        self._tell(all_of_it=True)

    def add_output(self, output: Any, ledger: CopyLedger | None, *, done: bool, size_bytes: int = 0) -> None:
        """One output has come; `size_bytes` is what it takes, shared memory included. `ledger`: None for no news."""
        with self._lock:
            if self._done:
                return
            self._outputs.append(output)
            self._reading.add(size_bytes)
            if ledger is not None:
                self._ledger = ledger
            self._done = done
            # What comes counts as read only where the whole is wanted.
            told = self._reading.tell() if self._reading.collecting and not done else None
            listeners = self._awaken() if self._changed is not None or self._listeners else ()
        if told is not None:
            self._consumed(self.request_id, told)
        if listeners:
            self._call(listeners)

    def fail(self, error: TensoryardError) -> None:
        """The request ended without its answer; what came before stays readable by iteration."""
        with self._lock:
            if self._done:
                return
            self._error = error
            self._done = True
            listeners = self._awaken()
        self._call(listeners)

    def _awaken(self) -> Sequence[Callable[[], None]]:
        """Whoever waits is to look; under the lock. Returns whom to call besides."""
        if self._changed is not None:
            self._changed.notify_all()
        return tuple(self._listeners)

    def _call(self, listeners: Sequence[Callable[[], None]]) -> None:
        for listener in listeners:
            try:
                listener()
            except Exception:  # the session serves other requests too
                log.exception("a listener of %r raised", self)

    def __repr__(self) -> str:
        state = "done" if self._done else "running"
        return f"<Reply to {self.request_id}: {state}, {self._reading.came} outputs>"


def _fresh(error: TensoryardError) -> TensoryardError:
    """The same error, to be raised: its traceback leads to the reply, which must not keep itself and its outputs."""
    return copy.copy(error)


def monotonic() -> float:
    """The clock of replies and ledgers."""
    return time.monotonic()
