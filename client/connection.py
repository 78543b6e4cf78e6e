"""A client's connection: its session with the coordinator, its tensor pool, and what is under way.

`client.py` and `aio.py` are the interfaces that people use; this is what both stand on.
"""

from __future__ import annotations

import itertools
import logging
import numbers
import os
import queue
import threading
from typing import Any, NamedTuple

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


class _Query(NamedTuple):
    """A question under way; None as the answer says that there will be none."""

    message: wire.AskStatus | wire.AskStory
    answer: queue.SimpleQueue[bytes | None]


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
        self._queries: dict[int, _Query] = {}
        self._query_numbers = itertools.count(1)
        self._reader = Reader()
        self._pool: Pool | None = None
        self._pool_lock = threading.Lock()
        self._changed = threading.Event()
        self._welcome: wire.Welcome | None = None
        self._refusal: errors.TensoryardError | None = None
        self._closed = False
        self._pid = os.getpid()
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

        Raises NotConnected after `timeout_s` seconds of silence, VersionMismatch when the other side is another
        version, ConfigError for an address that is none.
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
        with self._pool_lock:
            self._closed = True
        self._session.close()
        self._pending.fail_all(errors.RequestCancelled, "its client was closed")
        self._end_queries()
        self._reader.close()
        if self._pool is not None:
            self._pool.close()

    # -- sending ------------------------------------------------------------------------------------------------------

    @property
    def pool(self) -> Pool:
        """This client's tensor pool, made when it is first needed; NotConnected once the client is closed."""
        with self._pool_lock:
            if self._closed:
                raise errors.NotConnected("this client is closed")
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
        deadline_s, priority = _checked(deadline_s, priority)
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
            # They wait for a socket, perhaps more than once, and the caller may go on writing to its arrays.
            body.own_buffers()
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
            self._enter(entry)
        except BaseException:
            body.release()
            raise
        self._session.post(submit, frames_of(entry))
        return entry.reply

    def _enter(self, entry: Pending) -> None:
        """Among what is under way; unless the connection has ended since we looked, and nobody would settle it."""
        self._pending.add(entry)
        try:
            self._require_open()
        except errors.TensoryardError:
            self._pending.settle(entry.submit.request_id)
            raise

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
        if os.getpid() != self._pid:
            raise errors.NotConnected("this client was made before a fork, and its thread is not here: connect() anew")
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
        entry = self._pending.get(str(request_id))
        if entry is not None:
            entry.cancelled = True
            self._session.post(wire.Cancel(request_id=str(request_id)))

    def shutdown(self) -> None:
        """Ask for the end of the whole cluster."""
        self._require_open()
        self._session.post(wire.Shutdown())

    def ask(self, make: Any, type_: Any, timeout_s: float) -> Any:
        """Send a question made by `make(query=number)` and wait for the body of its REPORT."""
        number = next(self._query_numbers)
        query = self._queries[number] = _Query(make(query=number), queue.SimpleQueue())
        try:
            self._require_open()
            self._session.post(query.message)
            body = query.answer.get(timeout=timeout_s)
        except queue.Empty:
            text = f"the coordinator at {self.address} did not answer within {timeout_s} s"
            raise errors.ReplyTimeout(text) from None
        finally:
            del self._queries[number]
        if body is None:
            self._require_open()
            raise errors.NotConnected("the connection ended before the answer came")
        return msgspec.msgpack.decode(body, type=type_)

    def _end_queries(self) -> None:
        """Nobody will answer."""
        for query in list(self._queries.values()):
            query.answer.put(None)

    # -- the session's callbacks --------------------------------------------------------------------------------------

    def on_welcome(self, welcome: wire.Welcome) -> None:
        """Known to a coordinator; if not for the first time, it may not know what is under way or was cancelled."""
        again = self._welcome is not None
        self._welcome, self._refusal = welcome, None
        self._changed.set()
        if not again:
            return
        for entry in self._pending.all():
            if entry.cancelled:
                self._fail(entry, errors.RequestCancelled("cancelled by its client"))
            else:
                entry.restarting = False
                self._session.post(entry.message(), frames_of(entry))
        for query in list(self._queries.values()):
            self._session.post(query.message)

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
        self._end_queries()

    def on_message(self, message: Any, body: Frames) -> None:
        """Answers."""
        match message:
            case wire.Partial() | wire.Final():
                self._on_output(message, body)
            case wire.Error():
                self._on_error(message)
            case wire.Report():
                query = self._queries.get(message.query)
                if query is not None and body:
                    query.answer.put(bytes(body[0]))
            case wire.Disconnect():
                self._pending.fail_all(errors.CoordinatorLost, "the cluster has shut down; it is safe to send again")

    def _on_output(self, message: wire.Partial | wire.Final, body: Frames) -> None:
        """One output. One that nobody waits for is decoded too: that takes its lease, which ends with it."""
        entry = self._pending.get(message.request_id)
        if entry is not None and message.seq == 0:
            entry.restarting = False
        wanted = entry is not None and not entry.restarting
        try:
            output = decode_body(body, entry.output_type if entry else Any, resolve=self._reader.claim)
        except Exception as error:
            if entry is not None and wanted:
                self._on_unreadable(entry, message, error)
            return
        if entry is None or not wanted:
            return
        if message.seq == entry.received:
            self._deliver(entry, message, output, body)
        elif message.seq > entry.received:
            gap = f"part {message.seq} came where part {entry.received} was due"
            self._resend(entry, errors.ProtocolError(gap))

    def _on_unreadable(self, entry: Pending, message: wire.Partial | wire.Final, error: Exception) -> None:
        """Its memory is lost, and to run it again may help; or it is not what it should be, and this request fails."""
        if isinstance(error, _LOST_MEMORY):
            self._resend(entry, error)
            return
        if not isinstance(error, errors.TensoryardError):
            log.error("an output of request %s cannot be read", message.request_id, exc_info=error)
        if isinstance(message, wire.Partial):  # it still runs
            self._session.post(wire.Cancel(request_id=message.request_id))
        self._fail(entry, errors.DecodeError(errors.to_wire(error)[1]))

    def _deliver(self, entry: Pending, message: wire.Partial | wire.Final, output: Any, body: Frames) -> None:
        entry.received += 1
        entry.received_bytes += len(wire.encode(message)) + sum(memoryview(frame).nbytes for frame in body)
        done = isinstance(message, wire.Final)
        if done:
            self._pending.settle(message.request_id)
        entry.reply.add_output(output, entry.ledger(message.ledger), done=done)

    def _fail(self, entry: Pending, error: errors.TensoryardError) -> None:
        """End a request with an error."""
        error.request_id = entry.submit.request_id
        self._pending.settle(entry.submit.request_id)
        entry.reply.fail(error)

    def _resend(self, entry: Pending, error: errors.TensoryardError) -> None:
        """A result was lost: its memory went away with its worker before it was read.

        The request runs again; parts of the stream that have arrived are not taken twice.
        """
        entry.resends += 1
        entry.restarting = True
        key = entry.submit.request_id
        if entry.cancelled:
            self._session.post(wire.Cancel(request_id=key))
            self._fail(entry, errors.RequestCancelled("cancelled by its client"))
            return
        if entry.resends > _MAX_RESENDS:
            self._session.post(wire.Cancel(request_id=key))
            self._fail(entry, errors.WorkerLost(f"its result was lost {entry.resends} times: {error}"))
            return
        # If this was a PARTIAL the request still runs: end that run first, or SUBMIT would change nothing.
        self._session.post(wire.Cancel(request_id=key))
        self._session.post(entry.message(), frames_of(entry))

    def _on_error(self, message: wire.Error) -> None:
        entry = self._pending.get(message.request_id)
        if entry is None:
            return
        if entry.restarting and not entry.cancelled and message.code == errors.RequestCancelled.code:
            return  # the answer to our own CANCEL in `_resend`
        story, retry_after_s = tuple(message.story), message.retry_after_s
        self._fail(entry, errors.from_wire(message.code, message.text, story=story, retry_after_s=retry_after_s))


def _task_of(request: Any) -> Any:
    try:
        return task_of(request)
    except ValueError as error:
        raise errors.InvalidRequest(str(error)) from None


def _checked(deadline_s: Any, priority: Any) -> tuple[float | None, int]:
    """Both as the wire has them: of Python's own types, and no bools."""
    if deadline_s is not None and not (_is_number(deadline_s, numbers.Real) and 0 <= deadline_s < 1e9):
        raise errors.InvalidRequest(f"`deadline_s` is a number of seconds from now, not {deadline_s!r:.60}")
    if not (_is_number(priority, numbers.Integral) and -1000 <= priority <= 1000):
        raise errors.InvalidRequest(f"`priority` is a whole number from -1000 to 1000, not {priority!r:.60}")
    return None if deadline_s is None else float(deadline_s), int(priority)


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _submit_message(
    request: Any,
    task: Any,
    shared_bytes: int,
    deadline_s: float | None,
    priority: int,
) -> wire.Submit:
    return wire.Submit(
        request_id=str(request.request_id),
        task=task.value,
        model=request.model,
        priority=priority,
        deadline_s=deadline_s,
        host=host_name() if shared_bytes else "",
        shared_bytes=shared_bytes,
    )
