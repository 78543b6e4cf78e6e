"""A client's connection: its session with the coordinator, its tensor pool, and what is under way.

`client.py` and `aio.py` are the interfaces that people use; this is what both stand on.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
from typing import Any

import msgspec

from .. import errors
from ..coordinator.connection import read_connection
from ..links import Frames, Session
from ..proto import wire
from ..proto.codec import decode_body, encode_body
from ..proto.outputs import task_of, task_types
from ..proto.request import RequestID
from ..settings import Settings
from ..shm import Loan, Pool, Reader, host_name
from .pending import Pending, PendingTable, frames_of
from .reply import Reply, monotonic

log = logging.getLogger(__name__)

#: A request whose result's memory was lost with its worker is sent again so many times.
_MAX_RESENDS = 3
_LOST_MEMORY = (errors.StaleHandle, errors.SegmentGone)


def resolve_address(address: str | None) -> str:
    """The address to connect to: the given one, else $TENSORYARD_ADDRESS, else the local connection file's.

    Raises NotConnected when there is neither.
    """
    return address or os.environ.get("TENSORYARD_ADDRESS") or read_connection().address


class Connection:
    """Submits requests and settles their replies. All `on_…` methods run in the session's thread."""

    def __init__(self, address: str | None, settings: Settings) -> None:
        self.settings = settings
        self.address = resolve_address(address)
        self._pending = PendingTable()
        self._queries: dict[int, tuple[threading.Event, list[bytes]]] = {}
        self._query_numbers = itertools.count(1)
        self._reader = Reader()
        self._pool: Pool | None = None
        self._pool_lock = threading.Lock()
        self._changed = threading.Event()
        self._welcome: wire.Welcome | None = None
        self._refusal: errors.TensoryardError | None = None
        self._closed = False
        self._session = Session(
            address=self.address,
            role="client",
            name=f"client-{os.getpid()}",
            decoder=wire.TO_CLIENT,
            callbacks=self,
            settings=settings,
        )

    def open(self, timeout_s: float) -> None:
        """Say hello and wait for the answer.

        Raises NotConnected after `timeout_s` seconds of silence, VersionMismatch when the other side is another version.
        """
        self._session.start()
        self._changed.wait(timeout_s)
        if self._welcome is None:
            self.close()
            raise self._refusal or errors.NotConnected(
                f"no coordinator answered at {self.address} within {timeout_s} s; "
                "is it running (`tensoryard status`), and is the address right?",
            )

    def close(self) -> None:
        """Leave: what is under way is cancelled and its replies fail; arrays in the caller's hands stay good."""
        if self._closed:
            return
        self._closed = True
        self._session.close()
        self._pending.fail_all(errors.RequestCancelled, "its client was closed")
        self._reader.close()
        if self._pool is not None:
            self._pool.close()

    # -- sending ------------------------------------------------------------------------------------------------------

    @property
    def pool(self) -> Pool:
        """This client's tensor pool, made when it is first needed."""
        with self._pool_lock:
            if self._pool is None:
                self._pool = Pool(
                    budget_bytes=self.settings.pool_budget_bytes,
                    idle_s=self.settings.pool_idle_s,
                    claim_timeout_s=self.settings.claim_timeout_s,
                )
            return self._pool

    def submit(self, request: Any, *, deadline_s: float | None, priority: int) -> Reply:
        """Encode a request, send it, and return its reply. See `Client.submit`."""
        welcome = self._require_open()
        task = _task_of(request)
        key = str(request.request_id)
        local = welcome.host == self._reader.host
        body = encode_body(
            request,
            place=(lambda array: self._place(array, key)) if local else None,
            out_of_band=not local,
            threshold_bytes=self.settings.threshold_bytes,
        )
        try:
            self._check_size(body.frames, body.socket_bytes, welcome, key)
            submit = _submit_message(request, task, body.shared_bytes, deadline_s, priority)
            now = monotonic()
            entry = Pending(
                reply=Reply(request.request_id, self.cancel),
                submit=submit,
                body=body,
                output_type=task_types(task).output,
                sent_at=now,
                deadline=now + deadline_s if deadline_s is not None else None,
            )
            self._pending.add(entry)
        except BaseException:
            body.release()
            raise
        self._session.post(submit, frames_of(entry))
        return entry.reply

    def _place(self, array: Any, tag: str) -> tuple[Loan, bool]:
        """Where the array already lies, else copied into the pool; waits for room, then PoolExhausted."""
        loan = self._pool.lend(array) if self._pool is not None else None
        if loan is not None:
            return loan, False
        return self.pool.place(array, timeout_s=self.settings.allocate_timeout_s, tag=tag), True

    def _check_size(self, frames: Frames, size: int, welcome: wire.Welcome, key: str) -> None:
        largest = max(memoryview(frame).nbytes for frame in frames)
        if largest > welcome.max_frame_bytes or size > welcome.max_message_bytes or len(frames) >= wire.MAX_FRAMES:
            raise errors.MessageTooLarge(
                f"the request takes {size} bytes in {len(frames)} frames, the largest {largest} bytes; the coordinator "
                f"takes {welcome.max_message_bytes} (max_message_bytes), {wire.MAX_FRAMES} frames, and "
                f"{welcome.max_frame_bytes} per frame (max_frame_bytes). Send large data as arrays: those go by handle",
                request_id=key,
            )

    def _require_open(self) -> wire.Welcome:
        if self._closed:
            raise errors.NotConnected("this client is closed")
        if self._refusal is not None:
            raise self._refusal
        assert self._welcome is not None, "an open connection was welcomed"
        if self._session.silent_s > self.settings.reconnect_s:
            raise errors.NotConnected(
                f"the coordinator at {self.address} has not been heard for {self._session.silent_s:.0f} s; "
                "this client goes on by itself when it comes back",
            )
        return self._welcome

    def cancel(self, request_id: RequestID) -> None:
        """Tell the coordinator that an answer is not wanted."""
        self._session.post(wire.Cancel(request_id=str(request_id)))

    def shutdown(self) -> None:
        """Ask for the end of the whole cluster."""
        self._require_open()
        self._session.post(wire.Shutdown())

    def ask(self, make: Any, type_: Any, timeout_s: float) -> Any:
        """Send a question made by `make(query=number)` and wait for the body of its REPORT."""
        self._require_open()
        number = next(self._query_numbers)
        event, answer = self._queries[number] = (threading.Event(), [])
        try:
            self._session.post(make(query=number))
            if not event.wait(timeout_s):
                raise errors.ReplyTimeout(f"the coordinator at {self.address} did not answer within {timeout_s} s")
        finally:
            del self._queries[number]
        return msgspec.msgpack.decode(answer[0], type=type_)

    # -- the session's callbacks --------------------------------------------------------------------------------------

    def on_welcome(self, welcome: wire.Welcome) -> None:
        """Known to a coordinator; if not for the first time, it may not know what is under way."""
        again = self._welcome is not None
        self._welcome = welcome
        self._changed.set()
        if again:
            for entry in self._pending.all():
                self._session.post(entry.message(), frames_of(entry))

    def on_refused(self, error: errors.TensoryardError) -> None:
        """Not admitted; or one message was not understood, which its own reply's timeout will show."""
        log.error("the coordinator refused this client: %s", error)
        if self._welcome is None or isinstance(error, errors.VersionMismatch):
            self._refusal = error
            self._changed.set()
            self._pending.fail_all(type(error), error.text)

    def on_beat(self, silent_s: float) -> wire.Heartbeat:
        """Once a heartbeat: unmap what is gone, give up on a coordinator that does not come back."""
        self._reader.housekeep()
        if silent_s > self.settings.reconnect_s:
            self._pending.fail_all(
                errors.CoordinatorLost,
                f"the coordinator at {self.address} has not been heard for {silent_s:.0f} s; it is safe to send again",
            )
        return wire.Heartbeat()

    def on_failure(self, error: Exception) -> None:
        """Our own thread ended: nothing will ever be answered."""
        self._refusal = error if isinstance(error, errors.TensoryardError) else errors.NotConnected(f"{error!r}")
        self._changed.set()
        self._pending.fail_all(errors.CoordinatorLost, f"this client's session failed: {error!r}")

    def on_message(self, message: Any, body: Frames) -> None:
        """Answers."""
        match message:
            case wire.Partial() | wire.Final():
                self._on_output(message, body)
            case wire.Error():
                self._on_error(message)
            case wire.Report():
                if message.query in self._queries:
                    event, answer = self._queries[message.query]
                    answer.append(bytes(body[0]))
                    event.set()
            case wire.Disconnect():
                self._pending.fail_all(errors.CoordinatorLost, "the cluster has shut down; it is safe to send again")

    def _on_output(self, message: wire.Partial | wire.Final, body: Frames) -> None:
        entry = self._pending.get(message.request_id)
        try:
            output = decode_body(body, entry.output_type if entry else Any, resolve=self._reader.claim)
        except _LOST_MEMORY as error:
            if entry is not None:
                self._resend(entry, error)
            return
        except errors.TensoryardError as error:
            if entry is not None:
                self._pending.settle(message.request_id)
                entry.reply.fail(errors.DecodeError(error.text, request_id=message.request_id))
            return
        # An answer nobody waits for is decoded too: that takes its lease, which ends with `output`.
        if entry is not None and message.seq >= entry.received:
            self._deliver(entry, message, output, body)

    def _deliver(self, entry: Pending, message: wire.Partial | wire.Final, output: Any, body: Frames) -> None:
        entry.received += 1
        entry.received_bytes += len(wire.encode(message)) + sum(memoryview(frame).nbytes for frame in body)
        done = isinstance(message, wire.Final)
        if done:
            self._pending.settle(message.request_id)
        entry.reply.add_output(output, entry.ledger(message.ledger), done=done)

    def _resend(self, entry: Pending, error: errors.TensoryardError) -> None:
        """A result's memory went away with its worker before it was read. The request runs again; parts of the stream
        that have arrived are not taken twice.
        """
        entry.resends += 1
        key = entry.submit.request_id
        if entry.resends > _MAX_RESENDS:
            self._pending.settle(key)
            entry.reply.fail(errors.WorkerLost(f"its result was lost {entry.resends} times: {error}", request_id=key))
            return
        # If this was a PARTIAL the request still runs: end that run first, or SUBMIT would change nothing.
        self._session.post(wire.Cancel(request_id=key))
        self._session.post(entry.message(), frames_of(entry))

    def _on_error(self, message: wire.Error) -> None:
        entry = self._pending.get(message.request_id)
        if entry is None or (entry.resends and message.code == errors.RequestCancelled.code):
            return
        self._pending.settle(message.request_id)
        error = errors.from_wire(
            message.code,
            message.text,
            request_id=message.request_id,
            story=tuple(message.story),
            retry_after_s=message.retry_after_s,
        )
        entry.reply.fail(error)


def _task_of(request: Any) -> Any:
    try:
        return task_of(request)
    except ValueError as error:
        raise errors.InvalidRequest(str(error)) from None


def _submit_message(
    request: Any,
    task: Any,
    shared_bytes: int,
    deadline_s: float | None,
    priority: int,
) -> wire.Submit:
    if deadline_s is not None and not 0 <= deadline_s < 1e9:
        raise errors.InvalidRequest(f"`deadline_s` is a number of seconds from now, not {deadline_s!r}")
    if not isinstance(priority, int) or not -1000 <= priority <= 1000:
        raise errors.InvalidRequest(f"`priority` is a whole number from -1000 to 1000, not {priority!r}")
    return wire.Submit(
        request_id=str(request.request_id),
        task=task.value,
        model=request.model,
        priority=priority,
        deadline_s=deadline_s,
        host=host_name() if shared_bytes else "",
        shared_bytes=shared_bytes,
    )
