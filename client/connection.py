"""A client's connection: its session with the coordinator, its tensor pool, and the threads that meet here.

`client.py` and `aio.py` are the interfaces that people use; this is what both stand on. What is under way, and what
becomes of it, `conversation.py` knows.
"""

from __future__ import annotations

import contextlib
import numbers
import os
import queue
import random
import secrets
import threading
from typing import Any

import msgspec

from .. import errors, faults
from ..coordinator.connection import read_address_file, read_connection
from ..links import Frames, Session
from ..links.address import public
from ..links.calibration import thresholds_of
from ..proto import wire
from ..proto.codec import Encoded, as_buffers, decode_body, encode_body
from ..proto.outputs import model_of, task_of, task_types
from ..proto.request import RequestID
from ..settings import Settings
from ..shm import Courier, Loan, Pool, Reader, SharedMemoryArray
from .abroad import Abroad
from .alarm import Alarm
from .conversation import Conversation
from .fetching import Fetching
from .pending import Pending
from .ray_address import RAY_SCHEME, address_from_ray, unreached
from .reading import Reading
from .reply import Reply, monotonic
from .retry import Retry
from .wish import Wish

#: Of the number of a client's first request: enough that no two clients count over the same ones.
_SUBMISSION_BITS = 52

#: This process, by another object after each fork: the system would have to be asked for its number each time.
_process = object()


def _forked() -> None:
    global _process  # noqa: PLW0603 - there is one process
    _process = object()


os.register_at_fork(after_in_child=_forked)


def resolve_address(address: str | None) -> str:
    """The address to connect to: the given one, else $TENSORYARD_ADDRESS, else the local connection file's.

    "file://PATH" is the address in that file (`tensoryard up --address-file`), "ray://HOST:PORT" what Ray says there,
    asked by its client (`?name=NAME` for another cluster than "default"). Raises NotConnected when there is none.
    """
    address = address or os.environ.get("TENSORYARD_ADDRESS") or read_connection().address
    if isinstance(address, str) and address.startswith("file://"):
        return read_address_file(address.removeprefix("file://"))
    if isinstance(address, str) and address.startswith(RAY_SCHEME):
        return address_from_ray(address)
    return address


class Connection:
    """Submits requests and settles their replies. All `on_…` methods run in whichever thread serves the session."""

    def __init__(self, address: str | None, settings: Settings, retry: Retry | None = None) -> None:
        self.settings = settings
        self.retry = retry
        self._thresholds = thresholds_of(settings)
        self.address = resolve_address(address)
        self._asked_for = address or os.environ.get("TENSORYARD_ADDRESS")
        self._courier = Courier()
        #: This host has a porter, as last seen: who asks the system for it each time pays more than for the request.
        self._has_porter = False
        self._reader = Reader(courier=self._courier)
        self._fetching = Fetching(lambda body, type_: decode_body(body, type_, resolve=self._reader.claim))
        self._pool: Pool | None = None
        self._pool_lock = threading.Lock()
        self._changed = threading.Event()
        #: Set while this client closes: ends the waits of those who would send something.
        self._leaving = threading.Event()
        self._closed = False
        #: Changes in a child process, where the session's thread is not.
        self._process = _process
        self._alarm = Alarm()
        self._session = Session(
            address=self.address,
            role="client",
            name=f"client-{os.getpid()}",
            decoder=wire.TO_CLIENT,
            callbacks=self,
            settings=settings,
            watch={self._alarm.fd: self._on_alarm, self._fetching.fd: self._on_fetched},
        )
        self._conversation = Conversation(
            address=public(self.address),
            reconnect_s=settings.reconnect_s,
            post=self._session.post,
            decode=self._decode,
            wake=self._alarm.set,
            chance=random.random,
            first_submission=1 + secrets.randbits(_SUBMISSION_BITS),
            fetch=self._fetching.fetch,
            as_buffers=self._as_buffers,
        )

    def open(self, timeout_s: float) -> None:
        """Say hello and wait for the answer.

        Raises NotConnected after `timeout_s` seconds of silence, VersionMismatch when the other side is another
        version, ConfigError for an address that is none.
        """
        self._session.start()
        self._changed.wait(timeout_s)
        if self._conversation.welcome is None:
            self.close()
            why = self._session.trouble or (
                unreached(self._asked_for, self.address)
                or "is it running (`tensoryard status`), and is the address right?"
            )
            raise self._conversation.refusal or errors.NotConnected(
                f"no coordinator answered at {public(self.address)} within {timeout_s} s; {why}",
            )

    def close(self) -> None:
        """Leave: what is under way is cancelled and its replies fail; arrays in the caller's hands stay good."""
        if self._closed:
            return
        with self._pool_lock:
            self._closed = True
        self._leaving.set()
        self._conversation.close()
        self._session.close()
        self._conversation.ended()
        self._alarm.close()
        self._fetching.close()
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

    def submit(
        self, request: Any, *, deadline_s: float | None, priority: int, retry: Retry | bool | None = None
    ) -> Reply:
        """Encode a request, send it, and return its reply. See `Client.submit`."""
        wish = self.wish(request, deadline_s=deadline_s, priority=priority, retry=retry)
        while (wait_s := self.wait_s(wish)) > 0:
            self._session.flush()
            self._leaving.wait(wait_s)
        return self.send(wish)

    def together(self) -> contextlib.AbstractContextManager[None]:
        """Requests that are sent inside leave together, as far as nothing makes one of them wait: see `Session`."""
        return self._session.together()

    def wish(self, request: Any, *, deadline_s: float | None, priority: int, retry: Retry | bool | None = None) -> Wish:
        """What a caller wants, checked, and nothing done for it yet. Raises InvalidRequest or NotConnected."""
        self.require_open()
        if deadline_s is not None or priority or type(priority) is not int:
            deadline_s, priority = _checked(deadline_s, priority)
        policy = self.retry if retry is None else Retry() if retry is True else retry or None
        return Wish(
            request=request,
            task=_task_of(request),
            deadline_s=deadline_s,
            priority=priority,
            retry=policy,
            began=monotonic(),
        )

    def wait_s(self, wish: Wish) -> float:
        """How long to wait before `send`. Raises NotConnected where there is nothing to wait for."""
        wait_s = wish.wait_s(self._conversation, monotonic())
        if wait_s > 0:
            self.require_open()
        return wait_s

    def send(self, wish: Wish) -> Reply:
        """Encode and send what is wanted, now; a wish that has been refused gives a reply that says so."""
        welcome = self.require_open()
        if wish.refusal is not None:
            return self._refused(wish.request.request_id, wish.refusal)
        key = wish.request.request_id.value
        by_handle = self._by_handle(welcome, wish)
        body = encode_body(
            wish.request,
            place=(lambda array: self._place(array, key)) if by_handle else None,
            out_of_band=not by_handle,
            threshold_bytes=self._thresholds.handle_bytes if by_handle else self._thresholds.out_of_band_bytes,
        )
        try:
            self._check_size(body.frames, body.socket_bytes, welcome, key)
            if body.borrowed:
                # They wait for a socket, perhaps more than once, and the caller may go on writing to its arrays.
                body.own_buffers()
            entry = self._entry(wish, body)
            self._conversation.submit(entry, self._session.silent_s)
        except BaseException:
            body.release()
            raise
        return entry.reply

    def _by_handle(self, welcome: wire.Welcome, wish: Wish) -> bool:
        """Whether workers are likely to reach our memory: those on this host, or all where there are porters."""
        if not self._has_porter and welcome.host != self._reader.host:
            return False
        return not self._conversation.unreached.knows(model_of(wish.request), monotonic())

    def _as_buffers(self, body: Encoded) -> Encoded:
        """A body with its arrays along, read from our memory. Raises MessageTooLarge, and what the pool raises."""
        carried = as_buffers(body, self.pool.view)
        self._check_size(carried.frames, carried.socket_bytes, self.require_open(), None)
        return carried

    def _entry(self, wish: Wish, body: Encoded) -> Pending:
        submit = self._submit_message(wish, body)
        window = Reading(parts=submit.window_parts, size_bytes=submit.window_bytes)
        now = monotonic()
        return Pending(
            reply=Reply(
                wish.request.request_id,
                self.cancel,
                consumed=self._consumed,
                reading=window,
                wait=self._session.wait,
            ),
            submit=submit,
            body=body,
            output_type=task_types(wish.task).output,
            sent_at=now,
            deadline=now + submit.deadline_s if submit.deadline_s is not None else None,
            hellos=self._session.hellos,
            retry=wish.retry,
        )

    def _refused(self, request_id: RequestID, error: errors.TensoryardError) -> Reply:
        """The reply to a request that was not even made."""
        reply = Reply(request_id, self.cancel)
        error.request_id = str(request_id)
        reply.fail(error)
        return reply

    def _place(self, array: Any, tag: str) -> tuple[Loan, bool]:
        """Where the array already lies, else copied into the pool; waits for room, then PoolExhausted."""
        loan = self._pool.lend(array) if self._pool is not None else None
        if loan is not None:
            return loan, False
        self._session.flush()  # room may have to be waited for, and what was gathered may make it
        return self.pool.place(array, timeout_s=self.settings.allocate_timeout_s, tag=tag), True

    def _submit_message(self, wish: Wish, body: Encoded) -> wire.Submit:
        uses: list[wire.Use] = []
        if body.loans and self._has_porter:
            uses = [wire.Use(generation=loan.generation, number=loan.use) for loan in body.loans]
        return wire.Submit(
            request_id=wish.request.request_id.value,
            task=wish.task.value,
            model=model_of(wish.request),
            priority=wish.priority,
            deadline_s=wish.left_s(),
            host=self._reader.host if body.shared_bytes else "",
            shared_bytes=body.shared_bytes,
            window_parts=self.settings.stream_window_parts,
            window_bytes=self.settings.stream_window_bytes,
            porter=self._has_porter,
            uses=uses,
        )

    def _check_size(self, frames: Frames, size: int, welcome: wire.Welcome, key: str | None) -> None:
        if len(frames) == 1 and size <= welcome.max_frame_bytes and size <= welcome.max_message_bytes:
            return
        largest = max(memoryview(frame).nbytes for frame in frames)
        if largest > welcome.max_frame_bytes or size > welcome.max_message_bytes or len(frames) >= wire.MAX_FRAMES:
            raise errors.MessageTooLarge(
                f"the request takes {size} bytes in {len(frames)} frames, the largest {largest} bytes; the coordinator "
                f"takes {welcome.max_message_bytes} (max_message_bytes), {wire.MAX_FRAMES} frames, and "
                f"{welcome.max_frame_bytes} per frame (max_frame_bytes). Send large data as arrays: those go by handle",
                request_id=key,
            )

    def require_open(self) -> wire.Welcome:
        """The coordinator's greeting; raises NotConnected, or why it refuses us."""
        if _process is not self._process and not self._closed:
            raise errors.NotConnected("this client was made before a fork, and its thread is not here: connect() anew")
        return self._conversation.require_open(self._session.silent_s)

    def cancel(self, request_id: RequestID) -> None:
        """Tell the coordinator that an answer is not wanted."""
        self._conversation.cancel(str(request_id))

    def _consumed(self, request_id: RequestID, parts: int) -> None:
        self._conversation.consumed(str(request_id), parts)

    def shutdown(self) -> None:
        """Ask for the end of the whole cluster."""
        self.require_open()
        self._session.post(wire.Shutdown())

    def speaks(self, feature: str) -> bool:
        """See `Conversation.speaks`."""
        return self._conversation.speaks(feature)

    def ask(self, make: Any, type_: Any, timeout_s: float) -> Any:
        """Send a question made by `make(query=number)` and wait for the body of its REPORT."""
        self.require_open()
        answers: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        number = self._conversation.ask(make, answers.put, self._session.silent_s)
        try:
            body = answers.get(timeout=timeout_s)
        except queue.Empty:
            text = f"the coordinator at {public(self.address)} did not answer within {timeout_s} s"
            raise errors.ReplyTimeout(text) from None
        finally:
            self._conversation.forget(number)
        if body is None:
            self.require_open()
            raise errors.NotConnected("the connection ended before the answer came")
        return msgspec.msgpack.decode(body, type=type_)

    # -- the session's callbacks --------------------------------------------------------------------------------------

    def on_welcome(self, welcome: wire.Welcome) -> None:
        """Known to a coordinator."""
        self._courier.serve(welcome.cluster)
        self._has_porter = self._courier.is_there
        self._conversation.welcomed(welcome, monotonic(), self._session.hellos)
        self._changed.set()

    def on_refused(self, error: errors.TensoryardError) -> None:
        """Not admitted, or one message was not understood."""
        self._conversation.refused(error)
        if self._conversation.refusal is not None:
            self._changed.set()

    def on_beat(self, silent_s: float) -> wire.Heartbeat:
        """Once a heartbeat: unmap what is gone, give up on a coordinator that does not come back."""
        self._reader.housekeep()
        self._has_porter = self._courier.is_there
        self._conversation.beat(silent_s, monotonic())
        return wire.Heartbeat()

    def _on_alarm(self) -> None:
        """Requests that slept are to be tried again."""
        self._alarm.clear()
        self._conversation.due(monotonic(), self._session.silent_s)

    def _on_fetched(self) -> None:
        """Outputs have been read aside."""
        for request_id, output in self._fetching.take():
            self._conversation.fetched(request_id, output, monotonic())

    def on_failure(self, error: Exception) -> None:
        """Our own thread ended."""
        self._conversation.failed(error)
        self._changed.set()

    def on_message(self, message: Any, body: Frames) -> None:
        """Answers."""
        if faults.ARMED:
            for word in wire.words_of(message):
                faults.reach(f"client.on_{word}")
        self._conversation.message(message, body, monotonic())

    def _decode(self, body: Frames, type_: Any) -> Any:
        return decode_body(body, type_, resolve=self._claim)

    def _claim(self, handle: SharedMemoryArray) -> Any:
        """What lies on this host is read at once; what one output names lies on one host."""
        if handle.host != self._reader.host and self._has_porter:
            raise Abroad
        return self._reader.claim(handle)


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
