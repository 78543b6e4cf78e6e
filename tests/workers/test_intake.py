"""The intake: each request is read alone, and a client that does not answer holds up nobody but itself."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import msgspec
import numpy as np
import pytest

import tensoryard as ty
from tensoryard import errors
from tensoryard.proto import wire
from tensoryard.proto.codec import encode_body
from tensoryard.settings import Settings
from tensoryard.shm import Loan, Pool, SharedMemoryArray
from tensoryard.workers.answers import describe
from tensoryard.workers.batcher import Batcher, Work
from tensoryard.workers.conversation import Held, Key
from tensoryard.workers.inbox import Inbox
from tensoryard.workers.intake import Intake

from .support import (
    DEADLINE_S,
    EMBED,
    Told,
    body_of,
    dispatch,
    embed_request,
    in_thread,
    text_context,
    text_request,
    until,
)

LARGE = np.arange(50_000, dtype=np.float32)
TEXT = ty.PipelineTask.TEXT_GENERATION


class Desk:
    """An intake with its inbox, and what it rejected."""

    def __init__(self, pool: Pool, options_type: Any = None) -> None:
        self.inbox = Inbox(Batcher(max_batch_size=8, max_wait_s=0.0))
        self.rejected: dict[Key, tuple[str, str]] = {}
        settings = Settings(allocate_timeout_s=0.01)
        self.intake = Intake(inbox=self.inbox, pool=pool, settings=settings, reject=self._reject)
        self.pipeline = Told(lambda _: {})
        self.pipeline.options_type = options_type

    def _reject(self, key: Key, error: Exception) -> None:
        assert key not in self.rejected, "answered twice"
        self.rejected[key] = describe(error)

    def begin(self) -> None:
        self.intake.begin(self.pipeline, EMBED)

    def take(self, request: Any, body: list[Any] | None = None, attempt: int = 1, **fields: Any) -> None:
        self.intake.take(dispatch(request, attempt, **fields), body_of(request) if body is None else body)

    def batch(self) -> dict[Key, Work]:
        batch = self.inbox.next_batch()
        assert batch is not None
        return {(work.request_id, work.attempt): work for work in batch}


@pytest.fixture
def pool() -> Iterator[Pool]:
    """The worker's own memory."""
    with Pool(budget_bytes=4 << 20) as pool:
        yield pool


@pytest.fixture
def client_pool() -> Iterator[Pool]:
    """A client's memory, served by a thread of this process."""
    with Pool(budget_bytes=16 << 20) as pool:
        yield pool


@pytest.fixture
def make_desk(pool) -> Iterator[Callable[..., Desk]]:
    """Makes intakes and closes them."""
    desks: list[Desk] = []

    def make(options_type: Any = None) -> Desk:
        desks.append(Desk(pool, options_type))
        desks[-1].begin()
        return desks[-1]

    yield make
    for desk in desks:
        desk.intake.close()
        assert not desk.intake._arriving
        until(lambda desk=desk: not desk.intake._queues, "the intake's threads end")


@pytest.fixture
def desk(make_desk) -> Desk:
    """An intake for a pipeline without an options type."""
    return make_desk()


# -- what a request becomes -------------------------------------------------------------------------------------------


def test_a_request_becomes_work(desk, pool):
    """Its context has what the request said, and allocates from the worker's pool under the request's name."""
    request = embed_request("a", ["x", "y"], options={"k": 1})
    desk.take(request, attempt=3)
    [(key, work)] = desk.batch().items()
    assert key == ("a", 3)
    assert (work.context.texts, work.context.options, work.context.model_name) == (("x", "y"), {"k": 1}, "m")
    frames = body_of(request)
    assert work.request_socket_bytes > sum(map(len, frames))
    mine = work.context.allocate((256, 256))
    assert [block.request_id for block in pool.live_blocks()] == ["a"]
    assert mine.flags.writeable
    with pytest.raises(errors.PoolExhausted):
        work.context.allocate(8 << 20, np.uint8)


def test_the_pipelines_tokenizer_makes_tokens(desk):
    """A pipeline that tokenizes gives contexts their tokens; without one they have none."""
    desk.take(embed_request("a", ["x"]))
    desk.pipeline.tokenize = lambda text: [ord(letter) for letter in text]
    desk.take(embed_request("b", ["xy"]))
    contexts = {work.request_id: work.context for work in desk.batch().values()}
    assert contexts["b"].tokens.all.tolist() == [120, 121]
    assert not hasattr(contexts["a"], "tokens")


def test_a_text_pipeline_makes_its_contexts(desk):
    """Of each request as it comes; what it raises is that request's answer, and so is anything but a context."""
    with pytest.raises(errors.ConfigError, match="new_context"):
        desk.intake.begin(desk.pipeline, TEXT)

    def new_context(request: ty.TextGenerationRequest) -> Any:
        if str(request.request_id) == "bad":
            raise errors.InvalidRequest("no room")
        return text_context(request) if str(request.request_id) == "good" else "nothing"

    desk.pipeline.new_context = new_context
    desk.intake.begin(desk.pipeline, TEXT)
    for request_id in ("bad", "worse", "good"):
        desk.take(text_request(request_id))
    [work] = desk.batch().values()
    assert work.context.tokens.all.tolist() == [1, 2]
    assert desk.rejected["bad", 1][1] == "no room"
    assert desk.rejected["worse", 1][0] == errors.PipelineError.code


def test_what_is_slow_to_read_holds_up_nobody_else(desk):
    """It is read beside the others, one after the other; what it raises is its answer, and cancelled it never comes."""
    go = threading.Event()

    def new_context(request: ty.TextGenerationRequest) -> Any:
        if str(request.request_id) != "quick":
            assert go.wait(DEADLINE_S)
        if str(request.request_id) == "bad":
            raise errors.InvalidRequest("no such grammar")
        return text_context(request)

    desk.pipeline.new_context = new_context
    desk.pipeline.is_slow_to_read = lambda request: str(request.request_id) != "quick"
    desk.intake.begin(desk.pipeline, TEXT)
    for request_id in ("slow", "bad", "unwanted", "quick"):
        desk.take(text_request(request_id))
    assert list(desk.batch()) == [("quick", 1)]
    desk.intake.cancel(("unwanted", 1))
    assert desk.rejected["unwanted", 1][0] == errors.RequestCancelled.code
    assert set(desk.intake.held()) == {("slow", 1), ("bad", 1), ("quick", 1)}
    go.set()
    until(lambda: ("bad", 1) in desk.rejected, "the wrong one is answered")
    assert desk.rejected["bad", 1][1] == "no such grammar"
    assert ("slow", 1) in desk.batch()


def test_w_62_a_request_for_an_adapter_is_not_answered_without(desk):
    """One that this worker has not, or a pipeline without any, is a refusal that names it."""

    class Adapters:
        loaded = {"tone": "/tone"}

    for number, lora in enumerate((None, Adapters())):
        desk.pipeline.lora = lora
        for name in ("tone", "other"):
            desk.take(embed_request(f"{name} {number}"), adapter=name)
    assert set(desk.rejected) == {("tone 0", 1), ("other 0", 1), ("other 1", 1)}
    assert desk.rejected["other 1", 1] == (
        "invalid_request",
        "this worker does not have the adapter 'other'; load it anew",
    )
    assert set(desk.batch()) == {("tone 1", 1)}


def test_arrays_are_views_of_the_clients_memory(desk, client_pool):
    """A handle becomes a read-only view without a copy: what the client writes later is seen."""
    shared = client_pool.empty(LARGE.shape)
    shared[:] = LARGE
    request = embed_request("a", shared)
    desk.take(request, body_of(request, client_pool))
    [work] = desk.batch().values()
    [array] = work.context.arrays
    assert not array.flags.writeable
    assert (array == LARGE).all()
    shared[7] = -1
    assert array[7] == -1


def test_memory_seen_before_is_read_in_the_callers_thread(desk, client_pool):
    """Only the first look at a segment takes a thread of its own; after it nothing is asked of the client."""
    names: list[str] = []
    opened = desk.intake._reader.open

    def spy(handle: SharedMemoryArray) -> Any:
        names.append(threading.current_thread().name)
        return opened(handle)

    desk.intake._reader.open = spy  # type: ignore[method-assign]
    for number in range(3):
        request = embed_request(f"r{number}", LARGE)
        desk.take(request, body_of(request, client_pool))
        until(lambda number=number: len(desk.inbox.held()) == number + 1, "the request is read")
    assert names == ["tensoryard-intake", threading.current_thread().name, threading.current_thread().name]


class Options(msgspec.Struct):
    """What a pipeline may be asked."""

    size: int = 1
    mode: str = msgspec.field(name="kind", default="fast")
    mask: Any = None


def test_options_come_in_the_pipelines_own_type(make_desk):
    """Defaults are filled in, names are those of the wire, arrays stay arrays."""
    desk = make_desk(Options)
    desk.take(embed_request("a", options={"size": 3, "kind": "slow", "mask": np.arange(3)}))
    desk.take(embed_request("b"))
    first, second = desk.batch().values()
    assert (first.context.options.size, first.context.options.mode) == (3, "slow")
    assert first.context.options.mask.tolist() == [0, 1, 2]
    assert second.context.options == Options()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"sise": 3}, "`options`: 'sise' is unknown; known are ['kind', 'mask', 'size']"),
        ({"mode": "slow"}, "`options`: 'mode' is unknown; known are ['kind', 'mask', 'size']"),
        ({"size": "3"}, "`options`: Expected `int`, got `str` - at `$.size`"),
    ],
)
def test_a_wrong_option_is_named(make_desk, options, text):
    """An unknown key, also where the type itself would take it, or a wrong value: that request's error alone."""
    desk = make_desk(Options)
    desk.take(embed_request("a", options=options))
    desk.take(embed_request("b", options={"size": 3}))
    assert desk.rejected == {("a", 1): ("invalid_request", text)}
    assert list(desk.batch()) == [("b", 1)]


@pytest.mark.parametrize("kind", [dict, Options()])
def test_an_options_type_that_is_none_is_refused_at_the_start(pool, kind):
    """A pipeline whose requests could never be read does not start."""
    desk = Desk(pool, kind)
    with pytest.raises(errors.ConfigError, match="options_type must be a msgspec\\.Struct type"):
        desk.begin()
    desk.intake.close()


# -- what cannot be read ----------------------------------------------------------------------------------------------


def pixel_request(request_id: str) -> ty.PixelGenerationRequest:
    return ty.PixelGenerationRequest(request_id=ty.RequestID(request_id), model="m", prompt="a cat")


def _forged(handle: SharedMemoryArray, **changed: Any) -> SharedMemoryArray:
    fields = {name: getattr(handle, name) for name in ("name", "shape", "dtype", "offset", "generation", "host")}
    return SharedMemoryArray(**{**fields, **changed})


class _Lent:
    """As good as a loan to whoever encodes."""

    def __init__(self, handle: SharedMemoryArray, loan: Any = None) -> None:
        self.handle, self.loan = handle, loan

    def release(self) -> None:
        pass


def _with_handle(pool: Pool, **changed: Any) -> list[Any]:
    """A body whose array is a handle that lies."""

    def place(array: Any) -> tuple[Loan, bool]:
        loan = pool.place(array)
        assert loan.handle is not None
        return cast("Loan", _Lent(_forged(loan.handle, **changed), loan)), True

    return encode_body(embed_request("a", LARGE), place=place, threshold_bytes=1).frames


BODIES: dict[str, tuple[Callable[[Pool], list[Any]], str, str]] = {
    "no body": (lambda _: [], "invalid_request", "without a body"),
    "garbage": (lambda _: [b"\xc1\xff\x00 garbage"], "invalid_request", ""),
    "no map": (lambda _: [msgspec.msgpack.encode([1, 2])], "invalid_request", "Expected `object`, got `array`"),
    "cut short": (lambda _: [body_of(embed_request("a"))[0][:-3]], "invalid_request", "truncated"),
    "another task": (lambda _: body_of(pixel_request("a")), "invalid_request", "the `input` of an EmbeddingsRequest"),
    "another id": (lambda _: body_of(embed_request("b")), "invalid_request", "another RequestID than its envelope"),
    "a missing buffer": (
        lambda _: encode_body(embed_request("a", LARGE), out_of_band=True).frames[:1],
        "invalid_request",
        "names buffer 1 and carries 0",
    ),
    "an unknown pool": (lambda p: _with_handle(p, name="0" * 16 + ".1"), "segment_gone", "is gone, or out of reach"),
    "an unknown segment": (lambda p: _with_handle(p, name=f"{p.name}.99"), "stale_handle", "was given back"),
    "another host": (lambda p: _with_handle(p, host="far-away"), "out_of_reach", "shared memory of host far-away"),
    "an old generation": (lambda p: _with_handle(p, generation=999), "stale_handle", "has been reused"),
    "out of bounds": (lambda p: _with_handle(p, offset=1 << 40), "invalid_request", "are no block of"),
}


@pytest.mark.parametrize("kind", BODIES)
def test_a_request_that_cannot_be_read_fails_alone(desk, client_pool, kind):
    """Whatever is wrong with a body: a code and a text for that request, and the next one is served."""
    make, code, text = BODIES[kind]
    desk.take(embed_request("a"), make(client_pool))
    desk.take(embed_request("good"))
    until(lambda: desk.rejected, "the request is rejected")
    [(key, (got_code, got_text))] = desk.rejected.items()
    assert (key, got_code) == (("a", 1), code)
    assert text in got_text
    assert got_text
    assert list(desk.batch()) == [("good", 1)]
    assert list(desk.intake.held()) == [("good", 1)]


def test_a_request_before_the_pipeline_fails_alone(pool):
    """A coordinator that sends work before READY is told so; nothing breaks."""
    desk = Desk(pool)
    desk.take(embed_request("a"))
    assert desk.rejected == {("a", 1): ("pipeline_error", desk.rejected["a", 1][1])}
    assert "requests come after READY" in desk.rejected["a", 1][1]
    desk.intake.close()


# -- cancelling, repeating, draining ----------------------------------------------------------------------------------


def test_cancelling_what_waits_answers_it(desk):
    """It is answered at once, and runs no more."""
    desk.take(embed_request("a"))
    desk.take(embed_request("b"))
    desk.intake.cancel(("a", 1))
    assert desk.rejected == {("a", 1): ("cancelled", "cancelled before it ran")}
    assert list(desk.batch()) == [("b", 1)]


def test_cancelling_what_runs_only_tells_it(desk):
    """The engine answers it; the intake does not."""
    desk.take(embed_request("a"))
    [work] = desk.batch().values()
    desk.intake.cancel(("a", 1))
    desk.intake.cancel(("stranger", 1))
    assert work.context.cancelled
    assert desk.rejected == {}


def test_a_replaced_attempt_is_answered(desk):
    """The coordinator counts an attempt until it has its answer."""
    desk.take(embed_request("a"), attempt=1)
    desk.take(embed_request("a"), attempt=2)
    desk.take(embed_request("a"), attempt=2)
    assert desk.rejected == {("a", 1): ("cancelled", "a newer attempt came before it ran")}
    assert list(desk.batch()) == [("a", 2)]


class SlowReader:
    """Opens a handle only when the test lets it."""

    def __init__(self, reader: Any) -> None:
        self.reader = reader
        self.asked: list[str] = []
        self.go = threading.Event()

    def open(self, handle: SharedMemoryArray, use: int = 0) -> Any:
        self.asked.append(handle.name)
        assert self.go.wait(DEADLINE_S)
        return self.reader.open(handle)

    def housekeep(self) -> None:
        self.reader.housekeep()

    def close(self) -> None:
        self.go.set()
        self.reader.close()


@pytest.fixture
def slow(desk) -> SlowReader:
    """The desk's reader, which does not get an answer until `go` is set."""
    desk.intake._reader = SlowReader(desk.intake._reader)  # type: ignore[assignment]
    return desk.intake._reader  # type: ignore[return-value]


def take_large(desk: Desk, name: str, pool: Pool, attempt: int = 1, **fields: Any) -> None:
    request = embed_request(name, LARGE)
    desk.take(request, body_of(request, pool), attempt, **fields)


def test_what_is_being_attached_is_held(desk, slow, client_pool):
    """A coordinator that asks what we hold hears of requests on their way in, once, with submission and outputs."""
    take_large(desk, "a", client_pool, submission=7)
    desk.take(embed_request("b"), submission=8)
    assert desk.intake.held() == {("a", 1): Held(7), ("b", 1): Held(8)}
    slow.go.set()
    until(lambda: len(desk.inbox.held()) == 2, "both are in")
    desk.inbox.held()[0].seq = 3
    assert sorted(desk.intake.held().values()) == [Held(7), Held(8, sent=3)]


def test_what_was_cancelled_is_held_as_that(desk):
    """It may still be at work on it, though only to end as cancelled."""
    desk.take(embed_request("a"))
    desk.take(embed_request("b"))
    desk.inbox.next_batch()
    desk.intake.cancel(("a", 1))
    assert desk.intake.held() == {("a", 1): Held(cancelled=True), ("b", 1): Held()}


def test_cancelling_what_is_being_attached_answers_it_once(desk, slow, client_pool):
    """At once, though its client does not answer; when it does, nothing runs and nothing is answered again."""
    take_large(desk, "a", client_pool)
    take_large(desk, "b", client_pool)
    until(lambda: slow.asked, "the first is being attached")
    for name in "ab":
        desk.intake.cancel((name, 1))
    assert desk.rejected == {(name, 1): ("cancelled", "cancelled before it ran") for name in "ab"}
    assert desk.intake.held() == {}
    slow.go.set()
    until(lambda: not desk.intake._queues, "the thread has ended")
    assert desk.inbox.held() == []
    assert len(slow.asked) == 1


def test_what_is_read_of_a_request_on_its_way_in_is_not_forgotten(desk, slow, client_pool):
    """It runs again, and its reader reads on meanwhile: the window has moved when it begins."""
    request = embed_request("a", LARGE)
    message = wire.Dispatch(request_id="a", attempt=1, window_parts=2, window_bytes=100, consumed=3)
    desk.intake.take(message, body_of(request, client_pool))
    desk.intake.consume(("a", 1), 5)
    desk.intake.consume(("a", 1), 4)
    slow.go.set()
    until(desk.inbox.held, "it is in")
    [work] = desk.inbox.held()
    assert work.window.consumed == 5
    desk.intake.consume(("a", 1), 6)
    assert work.window.consumed == 6


def test_draining_waits_for_what_is_being_attached(desk, slow, client_pool):
    """It came before the order to drain, so it is served; then the inbox ends."""
    take_large(desk, "a", client_pool)
    desk.intake.drain()
    got: list[Any] = []
    with in_thread(lambda: got.append(desk.inbox.next_batch())):
        until(lambda: desk.inbox._changed._waiters, "the engine waits")
        slow.go.set()
    [[work]] = got
    assert work.request_id == "a"
    desk.inbox.finish(work)
    assert desk.inbox.next_batch() is None


@pytest.mark.parametrize("how", ["cancelled", "unreadable"])
def test_draining_does_not_wait_for_what_will_never_come(desk, slow, client_pool, how):
    """What is cancelled, or turns out to be unreadable, while it is attached ends the wait too."""
    request = embed_request("a", LARGE)
    body = body_of(request, client_pool) if how == "cancelled" else _with_handle(client_pool, generation=999)
    desk.take(request, body)
    desk.intake.drain()
    got: list[Any] = []
    with in_thread(lambda: got.append(desk.inbox.next_batch())):
        until(lambda: desk.inbox._changed._waiters, "the engine waits")
        desk.intake.cancel(("a", 1)) if how == "cancelled" else slow.go.set()
    assert got == [None]
    slow.go.set()


def test_a_repeated_request_that_is_being_attached_runs_once(desk, slow, client_pool):
    """The same attempt twice is one request, also on the slow way in."""
    take_large(desk, "a", client_pool)
    take_large(desk, "a", client_pool)
    slow.go.set()
    until(lambda: not desk.intake._queues, "the thread has ended")
    assert list(desk.intake.held()) == [("a", 1)]
    assert desk.rejected == {}


_FROZEN = """
import json, sys
import numpy as np
from tensoryard.shm import Pool
pool = Pool(budget_bytes=4 << 20)
loan = pool.place(np.arange(50_000, dtype=np.float32))
print(json.dumps(loan.handle.to_wire()), flush=True)
sys.stdin.read()
"""


@pytest.mark.process
def test_a_stopped_client_holds_up_nobody_else(desk, client_pool):
    """While one client is stopped (Ctrl-Z), others are read without waiting; when it goes on, so does its request."""
    client = subprocess.Popen([sys.executable, "-P", "-c", _FROZEN], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert client.stdin is not None
    assert client.stdout is not None
    try:
        ready, _, _ = select.select([client.stdout], [], [], DEADLINE_S)
        assert ready, "the client made no array"
        handle = SharedMemoryArray(*json.loads(client.stdout.readline()))
        os.kill(client.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, client.pid, os.WSTOPPED)

        request, lent = embed_request("frozen", LARGE), cast("Loan", _Lent(handle))
        body = encode_body(request, place=lambda _: (lent, False), threshold_bytes=1).frames
        desk.take(request, body)
        take_large(desk, "other", client_pool)
        until(desk.inbox.held, "the other client's request is in")
        assert [work.request_id for work in desk.inbox.held()] == ["other"]
        assert ("frozen", 1) in desk.intake.held()
        os.kill(client.pid, signal.SIGCONT)
        until(lambda: len(desk.inbox.held()) == 2, "the stopped client's request is in")
        frozen = next(work for work in desk.inbox.held() if work.request_id == "frozen")
        assert (frozen.context.arrays[0] == LARGE).all()  # type: ignore[attr-defined]
    finally:
        client.kill()
        client.communicate()


def test_names_of_attached_segments_are_bounded(desk, client_pool, monkeypatch):
    """Clients come and go; what is remembered of them does not grow without end."""
    monkeypatch.setattr("tensoryard.workers.intake._MAX_ATTACHED", 2)
    for number in range(5):
        with Pool(budget_bytes=4 << 20) as pool:
            take_large(desk, f"r{number}", pool)
            until(lambda number=number: len(desk.inbox.held()) == number + 1, "the request is read")
    assert len(desk.intake._attached) <= 2
    desk.intake.housekeep()
    assert desk.intake._reader.mapped_segments == 0


# -- other hosts ------------------------------------------------------------------------------------------------------


class FarReader(SlowReader):
    """Brings arrays of other hosts when the test lets it, and remembers which use was asked for."""

    def __init__(self, reader: Any) -> None:
        super().__init__(reader)
        self.uses: list[int] = []

    def open(self, handle: SharedMemoryArray, use: int = 0) -> Any:
        self.uses.append(use)
        self.asked.append(handle.name)
        assert self.go.wait(DEADLINE_S)
        return LARGE


def test_arrays_of_another_host_are_brought_aside(desk, client_pool):
    """They are fetched, several of one client at once, with the use that was told; others are served meanwhile."""
    far = FarReader(desk.intake._reader)
    desk.intake._reader = far
    for number in range(6):
        request = embed_request(f"r{number}", LARGE)
        body, uses = far_body(request, client_pool)
        desk.take(request, body, reader_host="far-away", porter=True, uses=uses[: number % 2])
    desk.take(embed_request("near"))
    assert list(desk.batch()) == [("near", 1)]
    until(lambda: len(far.asked) == 4, "as many as there are lanes")
    far.go.set()
    until(lambda: len(desk.inbox.held()) == 7, "all of them are there")
    assert sorted(far.uses) == [0, 0, 0, 1, 1, 1]


def far_body(request: Any, pool: Pool) -> tuple[list[Any], list[wire.Use]]:
    """A body whose array lies on another host, and what its owner tells of it."""
    pool.host = "far-away"
    encoded = encode_body(request, place=pool.publish, threshold_bytes=1)
    return encoded.frames, [wire.Use(generation=loan.generation, number=loan.use) for loan in encoded.loans]


@pytest.mark.parametrize(
    ("fields", "here", "by_handle"),
    [
        ({}, False, True),
        ({"reader_host": "far"}, True, False),
        ({"reader_host": "far", "porter": True}, False, False),
        ({"reader_host": "far", "porter": True}, True, True),
    ],
    ids=["same host", "no porter there", "no porter here", "porters on both"],
)
def test_w_52_answers_go_by_handle_where_their_reader_reaches_them(desk, fields, here, by_handle):
    """To a reader on another host arrays go in messages, unless both hosts have a porter."""
    desk.intake._reaches = lambda: here
    desk.take(embed_request("a"), **fields)
    assert desk.batch()["a", 1].by_handle is by_handle
