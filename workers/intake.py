"""Where requests become work: reads their bodies, attaches their tensors and builds the contexts for `inbox.py`.

`link.py` hands on what arrives, in the session's thread, which may wait for nothing or the worker falls silent. But
memory not seen before is asked for at the client that owns it, and a client that is stopped (Ctrl-Z, a debugger) does
not answer for many seconds. So such requests are read in a thread of their client's own. And what a pipeline says is
slow to read (a grammar to be compiled) is read in one thread for all of those.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
import numpy.typing as npt

from .. import errors, faults
from ..links import Frames
from ..proto import wire
from ..proto.codec import decode_body
from ..proto.one_shot import OneShotContext, new_context
from ..proto.outputs import task_types
from ..proto.pipeline import Pipeline, PipelineTask
from ..proto.text_context import TextContext
from ..proto.text_request import TextGenerationRequest
from ..settings import Settings
from ..shm import Pool, Reader, SharedMemoryArray
from .batcher import Work
from .conversation import Held, Key
from .inbox import Inbox
from .window import Window

#: Passes on why a request is answered without being run. From any thread.
Reject = Callable[[Key, Exception], None]
#: Segments remembered as attached; beyond, all are asked for again.
_MAX_ATTACHED = 4096


#: The queue of requests whose reading takes its pipeline long; no pool has this name.
_SLOW = ""


class _NotHereError(Exception):
    """The request is not to be read in the session's thread: it may wait for an owner of memory, or take long."""

    def __init__(self, queue: str) -> None:
        super().__init__(queue)
        self.queue = queue


class Memory(Protocol):
    """The clients' memory: `Reader`'s side of it that is needed here."""

    def open(self, handle: SharedMemoryArray) -> npt.NDArray[Any]:
        """A view of an array; may wait for its owner, the first time that its segment is named."""

    def housekeep(self) -> None:
        """Let go of what is not used."""

    def close(self) -> None:
        """Let go of everything."""


def _in_a_thread(run: Callable[[], None]) -> None:
    threading.Thread(target=run, name="tensoryard-intake", daemon=True).start()


class Intake:
    """Takes requests in; `begin` comes first. All but `begin` and `close` run in the session's thread.

    `spawn` runs what may wait for other processes, beside that thread.
    """

    def __init__(
        self,
        *,
        inbox: Inbox,
        pool: Pool,
        settings: Settings,
        reject: Reject,
        reader: Memory | None = None,
        clock: Callable[[], float] = time.monotonic,
        spawn: Callable[[Callable[[], None]], None] = _in_a_thread,
    ) -> None:
        self._inbox = inbox
        self._pool = pool
        self._settings = settings
        self._reject = reject
        self._reader: Memory = reader or Reader()
        self._clock = clock
        self._spawn = spawn
        self._pipeline: Pipeline[Any, Any] | None = None
        self._task = PipelineTask.UNDEFINED
        self._option_names: frozenset[str] = frozenset()
        #: Names of segments that have been read from, which takes no question to their owner any more.
        self._attached: set[str] = set()
        self._lock = threading.Lock()
        #: Requests to be read in a thread of their own, by the pool they lie in, or `_SLOW`; each queue has its thread.
        self._queues: dict[str, deque[tuple[wire.Dispatch, Frames, float]]] = {}
        #: Those in the queues and in their threads' hands; `consumed` in them follows what is read meanwhile.
        self._arriving: dict[Key, wire.Dispatch] = {}
        self._draining = False

    def begin(self, pipeline: Pipeline[Any, Any], task: PipelineTask) -> None:
        """The pipeline that the requests are for; ConfigError for an `options_type` that is no msgspec.Struct."""
        kind = pipeline.options_type
        if kind is not None:
            if not isinstance(kind, type) or not issubclass(kind, msgspec.Struct):
                raise errors.ConfigError(f"the pipeline's options_type must be a msgspec.Struct type, not {kind!r:.60}")
            self._option_names = frozenset(field.encode_name for field in msgspec.structs.fields(kind))
        if task is PipelineTask.TEXT_GENERATION and pipeline.new_context is None:
            raise errors.ConfigError(f"a pipeline of task {task.value!r} makes contexts by its method `new_context`")
        self._pipeline = pipeline
        self._task = task

    def take(self, message: wire.Dispatch, body: Frames) -> None:
        """A request has come; one that cannot be read is rejected alone."""
        now = self._clock()
        try:
            work = self._read(message, body, now, self._open_attached, may_be_slow=False)
        except _NotHereError as error:
            self._queue(error.queue, message, body, now)
        except Exception as error:
            self._reject((message.request_id, message.attempt), error)
        else:
            self._put(work)

    def cancel(self, key: Key) -> None:
        """Nobody wants this attempt any more: answer at once if it has not begun."""
        with self._lock:
            was_arriving = self._arriving.pop(key, None) is not None
        if was_arriving:
            self._settle()
        if was_arriving or self._inbox.cancel(*key) is not None:
            self._reject(key, errors.RequestCancelled("cancelled before it ran"))

    def consume(self, key: Key, parts: int) -> None:
        """So many outputs of an attempt's stream have been read."""
        with self._lock:
            arriving = self._arriving.get(key)
            if arriving is not None:
                if parts > arriving.consumed:
                    self._arriving[key] = msgspec.structs.replace(arriving, consumed=parts)
                return
        self._inbox.consume(*key, parts)

    def drain(self) -> None:
        """Nothing new comes: the inbox is to end once it has everything."""
        self._draining = True
        self._settle()

    def held(self) -> dict[Key, Held]:
        """Every request taken in and not finished."""
        with self._lock:
            arriving = {key: Held(message.submission) for key, message in self._arriving.items()}
        # In this order, so that one which gets from there to here meanwhile is not missed.
        return arriving | {
            (work.request_id, work.attempt): Held(work.submission, work.seq, work.context.cancelled)
            for work in self._inbox.held()
        }

    def housekeep(self) -> None:
        """See `Reader.housekeep`."""
        self._reader.housekeep()

    def close(self) -> None:
        """Let go of the clients' memory."""
        self._reader.close()

    # -- reading ------------------------------------------------------------------------------------------------------

    def _read(
        self,
        message: wire.Dispatch,
        body: Frames,
        arrived: float,
        resolve: Callable[[SharedMemoryArray], npt.NDArray[Any]],
        *,
        may_be_slow: bool = True,
    ) -> Work:
        assert self._pipeline is not None, "requests come after READY"
        try:
            request = decode_body(body, task_types(self._task).request, resolve=resolve)
        except errors.DecodeError as error:
            raise errors.InvalidRequest(error.text) from error
        if request.request_id.value != message.request_id:
            raise errors.InvalidRequest("the body carries another RequestID than its envelope")
        self._check_adapter(message.adapter)
        if not may_be_slow and self._pipeline.is_slow_to_read is not None and self._pipeline.is_slow_to_read(request):
            raise _NotHereError(_SLOW)
        window = Window(parts=message.window_parts, size_bytes=message.window_bytes, consumed=message.consumed)
        context = self._context(request)
        work = Work(message.request_id, message.attempt, context, arrived, message.submission, window=window)
        work.request_socket_bytes = len(wire.encode(message)) + wire.size_of(body)
        return work

    def _check_adapter(self, name: str) -> None:
        """The coordinator sends what asks for an adapter to those that have it; none is answered without."""
        lora = self._pipeline.lora if self._pipeline is not None else None
        if name and (lora is None or name not in lora.loaded):
            raise errors.InvalidRequest(f"this worker does not have the adapter {name!r}; load it anew")

    def _context(self, request: Any) -> OneShotContext | TextContext:
        if isinstance(request, TextGenerationRequest):
            return self._text_context(request)
        allocate = functools.partial(
            self._pool.empty,
            timeout_s=self._settings.allocate_timeout_s,
            tag=request.request_id.value,
        )
        tokenize = self._pipeline.tokenize if self._pipeline is not None else None
        return new_context(request, options=self._options(request.options), allocate=allocate, tokenize=tokenize)

    def _text_context(self, request: TextGenerationRequest) -> TextContext:
        assert self._pipeline is not None, "requests come after READY"
        assert self._pipeline.new_context is not None, "which `begin` has seen to"
        context = self._pipeline.new_context(request)
        if not isinstance(context, TextContext):
            raise errors.PipelineError(f"`new_context` made a {type(context).__name__}, not a TextContext")
        return context

    def _options(self, options: dict[str, Any]) -> Any:
        """The request's options in the pipeline's own type, where it has one; a wrong key or value is named."""
        kind = self._pipeline.options_type if self._pipeline is not None else None
        if kind is None:
            return options
        unknown = sorted(options.keys() - self._option_names)
        if unknown:
            known = sorted(self._option_names)
            raise errors.InvalidRequest(f"`options`: {unknown[0]!r:.60} is unknown; known are {known}")
        try:
            return msgspec.convert(options, kind)
        except (msgspec.ValidationError, TypeError) as error:
            raise errors.InvalidRequest(f"`options`: {error}") from error

    def _open_attached(self, handle: SharedMemoryArray) -> npt.NDArray[Any]:
        if handle.name not in self._attached:
            raise _NotHereError(handle.pool_name)
        return self._reader.open(handle)

    def _attach(self, handle: SharedMemoryArray) -> npt.NDArray[Any]:
        array = self._reader.open(handle)
        if len(self._attached) >= _MAX_ATTACHED:
            self._attached.clear()
        self._attached.add(handle.name)
        return array

    def _put(self, work: Work) -> None:
        if faults.ARMED:
            faults.reach("worker.request_read")
        replaced = self._inbox.put(work)
        if replaced is not None:
            key = (replaced.request_id, replaced.attempt)
            self._reject(key, errors.RequestCancelled("a newer attempt came before it ran"))

    # -- read elsewhere: memory not seen before, grammars --------------------------------------------------------------

    def _queue(self, name: str, message: wire.Dispatch, body: Frames, arrived: float) -> None:
        """Leave a request to the thread of its queue, which may have to be started."""
        with self._lock:
            self._arriving[message.request_id, message.attempt] = message
            queue = self._queues.get(name)
            if queue is not None:
                queue.append((message, body, arrived))
                return
            self._queues[name] = deque([(message, body, arrived)])
        self._spawn(functools.partial(self._work_off, name))

    def _work_off(self, name: str) -> None:
        while True:
            with self._lock:
                if not self._queues[name]:
                    del self._queues[name]
                    return
                message, body, arrived = self._queues[name].popleft()
            if (message.request_id, message.attempt) in self._arriving:
                self._read_slowly(message, body, arrived)

    def _read_slowly(self, message: wire.Dispatch, body: Frames, arrived: float) -> None:
        key = (message.request_id, message.attempt)
        outcome: Work | Exception
        try:
            outcome = self._read(message, body, arrived, self._attach)
        except Exception as error:
            outcome = error
        with self._lock:
            if key not in self._arriving:  # cancelled, and answered, meanwhile
                return
            if isinstance(outcome, Work):
                outcome.window.consume(self._arriving[key].consumed)
                self._put(outcome)
            del self._arriving[key]
        if isinstance(outcome, Exception):
            self._reject(key, outcome)
        self._settle()

    def _settle(self) -> None:
        with self._lock:
            done = self._draining and not self._arriving
        if done:
            self._inbox.drain()
