"""The engine: each request gets one answer whatever a pipeline does, and arrays travel with as few copies as can be."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tensoryard as ty
from tensoryard import errors
from tensoryard.proto.codec import decode_body
from tensoryard.settings import Settings
from tensoryard.shm import Pool, Reader
from tensoryard.workers.answers import MAX_TEXT_CHARS, describe
from tensoryard.workers.window import Window

from .support import AUDIO, Bench, audio, audio_request, embed_request, embedding, in_thread, text_request, until

MIB = 1 << 20
ACTIVE, DONE = ty.GenerationStatus.ACTIVE, ty.GenerationStatus.END_OF_SEQUENCE


@pytest.fixture
def pool() -> Iterator[Pool]:
    """A pool of 8 MiB."""
    with Pool(budget_bytes=8 * MIB) as pool:
        yield pool
        pool.check_invariants()


def each(make: Any) -> Any:
    """What a pipeline does that answers each request alone."""
    return lambda batch: {request_id: make(context) for request_id, context in batch.items()}


def value_of(frames: list[Any], type_: Any = ty.EmbeddingsGenerationOutput) -> Any:
    reader = Reader()
    try:
        return decode_body(frames, type_, resolve=reader.open)
    finally:
        reader.close()


# -- answers and errors -----------------------------------------------------------------------------------------------


def test_a_batch_is_answered_in_one_step(pool):
    """Requests that come together run together; each gets its own output, done, number 0, of its own attempt."""
    bench = Bench(each(lambda context: embedding([float(len(context.texts[0]))])), pool)
    answers = bench.answer(embed_request("a", "x"), embed_request("b", "xyz"))
    assert bench.pipeline.batches == [["a", "b"]]
    for request_id, length in [("a", 1), ("b", 3)]:
        output, frames, loans = answers[request_id]
        assert (output.attempt, output.seq, output.done, output.code, output.frames) == (1, 0, True, "", 1)
        assert value_of(frames).embeddings.tolist() == [length]
        assert loans == []
    assert bench.pipeline.released == ["a", "b"]
    assert bench.inbox.held() == []


def test_a_text_request_may_get_nothing_in_a_step(pool):
    """One whose prompt is still read in has no answer, and is in the next batch again; nothing is sent for nobody."""
    steps = iter([["a"], [], ["a", "b"], ["b"]])

    def act(batch: dict[Any, Any]) -> dict[Any, Any]:
        told = {}
        for request_id in batch.keys() & set(map(ty.RequestID, next(steps))):
            batch[request_id].update(len(told))
            last = request_id == ty.RequestID("a") and len(batch[request_id].tokens.generated) == 2
            batch[request_id].status = DONE if last or len(bench.pipeline.batches) == 4 else ACTIVE
            told[request_id] = batch[request_id].to_generation_output()
        return told

    bench = Bench(act, pool, task=ty.PipelineTask.TEXT_GENERATION)
    sent: list[list[str]] = []
    bench.on_send = lambda answers: sent.append(sorted(output.request_id for output, _, _ in answers))
    bench.put(text_request("a"), text_request("b"))
    bench.run()
    assert bench.pipeline.batches == [["a", "b"], ["a", "b"], ["a", "b"], ["b"]]
    assert sent == [["a"], ["a", "b"], ["b"]]
    assert [output.seq for output, _, _ in bench.answers if output.request_id == "a"] == [0, 1]
    assert bench.pipeline.released == ["a", "b"]


def test_a_step_may_bring_several_parts(pool):
    """A list of outputs leaves as one message, each a part with its number; behind the last nothing counts."""

    def act(batch: dict[Any, Any]) -> dict[Any, Any]:
        [(request_id, context)] = batch.items()
        parts = []
        for token, status in ((5, ACTIVE), (6, ACTIVE), (7, DONE)):
            context.update(token)
            context.status = status
            parts.append(context.to_generation_output())
        return {request_id: [*parts, parts[0]]}

    bench = Bench(act, pool, task=ty.PipelineTask.TEXT_GENERATION)
    sent: list[list[tuple[int, bool]]] = []
    bench.on_send = lambda answers: sent.append([(output.seq, output.done) for output, _, _ in answers])
    bench.put(text_request("a"))
    bench.run()
    assert sent == [[(0, False), (1, False), (2, True)]]
    assert bench.pipeline.released == ["a"]


def test_a_cancelled_text_request_is_answered_though_it_got_nothing(pool):
    """A waiting one too: its place is free with the next step."""
    bench = Bench(lambda _: {}, pool, task=ty.PipelineTask.TEXT_GENERATION)
    [work] = bench.put(text_request("a"))
    bench.engine.answer(bench.engine.execute(bench.inbox.poll()[0]))
    assert bench.answers == []
    bench.inbox.cancel("a", work.attempt)
    bench.run()
    assert bench.errors()["a"][0] == errors.RequestCancelled.code
    assert bench.pipeline.released == ["a"]


@pytest.mark.parametrize("problem", [ValueError("bad one"), asyncio.CancelledError("bad one")])
def test_an_exception_for_one_request_fails_that_one_alone(pool, problem):
    """An exception as a value, also one that is no `Exception`, is that request's error."""
    bench = Bench(lambda batch: dict(zip(batch, [problem, embedding([1.0])], strict=True)), pool)
    answers = bench.answer(embed_request("a"), embed_request("b"))
    assert bench.errors() == {"a": ("pipeline_error", f"{type(problem).__name__}: bad one")}
    assert answers["b"][0].done
    assert bench.pipeline.released == ["a", "b"]


@pytest.mark.parametrize(
    "problem", [RuntimeError("all bad"), asyncio.CancelledError("all bad"), MemoryError("all bad")]
)
def test_an_exception_in_execute_fails_the_whole_batch(pool, problem):
    """Each request gets the text and the place; the worker goes on with the next batch."""

    def act(batch: Any) -> Any:
        if len(bench.pipeline.batches) == 1:
            raise problem
        return {request_id: embedding([1.0]) for request_id in batch}

    bench = Bench(act, pool, max_batch_size=2)
    answers = bench.answer(*(embed_request(name) for name in "abc"))
    for name in "ab":
        code, text = bench.errors()[name]
        assert code == "pipeline_error"
        assert text.startswith(f"{type(problem).__name__}: all bad (at {__file__}:")
    assert answers["c"][0].done
    assert bench.pipeline.released == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (None, "the pipeline returned a NoneType, not a dict by RequestID"),
        ([1], "the pipeline returned a list, not a dict by RequestID"),
        ({}, "the pipeline's answer has no entry for this request"),
        ({"a": embedding([1.0])}, "the pipeline's answer has no entry for this request"),
        ({ty.RequestID("a"): None}, "the pipeline's answer has no entry for this request"),
        (
            {ty.RequestID("a"): np.ones(3)},
            "the pipeline answered a ndarray; task embeddings_generation answers EmbeddingsGenerationOutput",
        ),
        (
            {ty.RequestID("a"): ty.GenerationOutput(request_id=ty.RequestID("a"), final_status=DONE, output=[])},
            "the pipeline answered a GenerationOutput; task embeddings_generation answers EmbeddingsGenerationOutput",
        ),
        (
            {ty.RequestID("a"): ValueError},
            "the pipeline answered a type; task embeddings_generation answers EmbeddingsGenerationOutput",
        ),
    ],
)
def test_a_wrong_answer_is_named(pool, answer, text):
    """No dict, no entry, another type: an error that says what came instead."""
    bench = Bench(lambda _: answer, pool)
    bench.answer(embed_request("a"))
    assert bench.errors() == {"a": ("pipeline_error", text)}


def test_an_answer_for_a_stranger_is_ignored(pool):
    """An entry for a request that is not in the batch goes nowhere."""
    bench = Bench(lambda _: {ty.RequestID(name): embedding([1.0]) for name in ("a", "stranger")}, pool)
    assert list(bench.answer(embed_request("a"))) == ["a"]
    assert bench.errors() == {}


class _OwnError(errors.TensoryardError):
    code = "a_code_nobody_knows"


class _WordlessError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even a text")


@pytest.mark.parametrize(
    ("problem", "code", "text"),
    [
        (errors.InvalidRequest("no such voice"), "invalid_request", "no such voice"),
        (errors.PoolExhausted("full"), "pool_exhausted", "full"),
        (errors.InvalidRequest(7), "invalid_request", "7"),  # type: ignore[arg-type]
        (_OwnError("mine"), "pipeline_error", "mine"),
        (_WordlessError(), "pipeline_error", "_WordlessError: (its text cannot be made)"),
        (FileNotFoundError("caf\udce9.txt"), "pipeline_error", "FileNotFoundError: caf?.txt"),
        (errors.Failed("caf\udce9"), "failed", "caf?"),
    ],
)
def test_every_error_becomes_a_code_and_a_text_that_can_travel(problem, code, text):
    """Ours keep their code if others know it; texts that no message can carry are mended."""
    assert describe(problem) == (code, text)
    assert errors.BY_CODE[code]


def test_a_long_error_is_cut():
    """An error's text is bounded."""
    assert describe(ValueError("x" * 99_999))[1] == f"ValueError: {'x' * 99_999}"[:MAX_TEXT_CHARS]
    assert len(describe(errors.Failed("é" * 99_999))[1]) == MAX_TEXT_CHARS


@pytest.mark.parametrize("order", [SystemExit(7), KeyboardInterrupt()])
def test_a_pipeline_may_end_its_worker(pool, order):
    """SystemExit passes through, and nothing is answered: the requests run again elsewhere."""

    def act(_: Any) -> Any:
        raise order

    bench = Bench(act, pool)
    bench.put(embed_request("a"))
    with pytest.raises(type(order)):
        bench.run()
    assert bench.answers == []
    assert len(bench.inbox.held()) == 1


def test_trouble_in_release_is_nobody_elses(pool):
    """What `release` raises is logged; requests are answered all the same."""
    bench = Bench(each(lambda _: embedding([1.0])), pool)
    bench.pipeline.release = lambda _: 1 / 0  # type: ignore[assignment,return-value]
    assert len(bench.answer(embed_request("a"), embed_request("b"))) == 2
    assert bench.errors() == {}


# -- streams and cancelling -------------------------------------------------------------------------------------------


def test_a_stream_is_numbered_and_released_once(pool):
    """Parts are 0, 1, 2 with the last one done; the context counts them; `release` comes once, after the last."""
    counts: list[int] = []

    def act(batch: Any) -> Any:
        [(request_id, context)] = batch.items()
        counts.append(context.chunks_sent)
        assert bench.pipeline.released == []
        return {request_id: audio(ACTIVE if context.chunks_sent < 2 else DONE)}

    bench = Bench(act, pool, task=AUDIO)
    bench.put(audio_request("a"))
    bench.run()
    assert [(output.seq, output.done) for output, _, _ in bench.answers] == [(0, False), (1, False), (2, True)]
    assert counts == [0, 1, 2]
    assert bench.pipeline.released == ["a"]


def test_an_error_ends_a_stream(pool):
    """Its number is the next one, and there is no further step for it."""
    steps = iter([audio(ACTIVE), ValueError("broken")])
    bench = Bench(lambda batch: dict.fromkeys(batch, next(steps)), pool, task=AUDIO)
    bench.put(audio_request("a"))
    bench.run()
    assert [(output.seq, output.code) for output, _, _ in bench.answers] == [(0, ""), (1, "pipeline_error")]
    assert bench.pipeline.released == ["a"]


def test_w_34_a_stream_goes_no_further_than_its_window(pool):
    """Two outputs, in number or in bytes with their arrays, and no third until one was read; the others are served."""
    bench = Bench(
        lambda batch: {r: audio(ACTIVE if c.chunks_sent < 4 else DONE, 20_000) for r, c in batch.items()},
        pool,
        task=AUDIO,
    )
    by_parts, by_bytes, free = bench.put(*(audio_request(name) for name in ("parts", "bytes", "free")))
    by_parts.window = Window(parts=2, size_bytes=1 << 30)
    by_bytes.window = Window(parts=1000, size_bytes=90_000)

    def sent() -> dict[str, int]:
        return dict(Counter(output.request_id for output, _, _ in bench.answers))

    bench.run_until_idle()
    assert sent() == {"parts": 2, "bytes": 2, "free": 5}
    assert bench.pipeline.released == ["free"]
    bench.inbox.consume("bytes", 1, 1)
    bench.inbox.consume("parts", 1, 9)
    bench.run_until_idle()
    assert sent() == {"parts": 5, "bytes": 3, "free": 5}
    assert free.window.sent == 5


def test_a_stream_that_nobody_reads_ends_as_expired(pool):
    """Its worker tells why, and the pipeline lets go of it."""
    bench = Bench(lambda batch: {r: audio(ACTIVE) for r in batch}, pool, task=AUDIO, unread_s=1e-9)
    [work] = bench.put(audio_request("a"))
    work.window = Window(parts=1, size_bytes=1)
    bench.run()
    assert bench.errors()["a"][0] == "expired"
    assert "nothing of its stream was read" in bench.errors()["a"][1]
    assert bench.pipeline.released == ["a"]


def test_newcomers_join_a_stream(pool):
    """A request that comes while another streams is in the next step's batch."""
    bench = Bench(
        lambda batch: {r: audio(ACTIVE if c.chunks_sent < 2 else DONE) for r, c in batch.items()}, pool, task=AUDIO
    )
    bench.on_send = lambda _: bench.put(audio_request("b")) and None if len(bench.answers) == 1 else None
    bench.put(audio_request("a"))
    bench.run()
    assert bench.pipeline.batches == [["a"], ["a", "b"], ["a", "b"], ["b"]]
    assert sorted(bench.pipeline.released) == ["a", "b"]


def test_a_request_cancelled_while_it_runs_is_answered_so(pool):
    """Its output is dropped, the others' are not; `release` comes once."""

    def act(batch: Any) -> Any:
        bench.inbox.cancel("a", 1)
        return {request_id: embedding([1.0]) for request_id in batch}

    bench = Bench(act, pool)
    answers = bench.answer(embed_request("a"), embed_request("b"))
    assert bench.errors() == {"a": ("cancelled", "cancelled while it ran")}
    assert answers["b"][0].done
    assert bench.pipeline.released == ["a", "b"]


def test_a_stream_cancelled_between_steps_runs_no_further(pool):
    """The pipeline does not see it again, but for `release`; the others go on."""
    bench = Bench(
        lambda batch: {r: audio(ACTIVE if c.chunks_sent < 2 else DONE) for r, c in batch.items()}, pool, task=AUDIO
    )
    bench.on_send = lambda _: bench.inbox.cancel("a", 1) and None  # type: ignore[func-returns-value]
    bench.put(audio_request("a"), audio_request("b"))
    bench.run()
    assert bench.pipeline.batches == [["a", "b"], ["b"], ["b"]]
    assert bench.errors() == {"a": ("cancelled", "cancelled while it ran")}
    assert sorted(bench.pipeline.released) == ["a", "b"]


def test_a_request_cancelled_before_its_first_step_is_not_released(pool):
    """Cancelled after it was taken into a batch, before the pipeline saw it: answered, and nothing to release."""
    bench = Bench(each(lambda _: embedding([1.0])), pool)
    [work] = bench.put(embed_request("a"))
    work.context.status = ty.GenerationStatus.CANCELLED
    bench.run()
    assert bench.errors() == {"a": ("cancelled", "cancelled before it ran")}
    assert (bench.pipeline.batches, bench.pipeline.released) == ([], [])


def test_an_abandoned_stream_is_released(pool):
    """Nobody wants anything any more: what was begun is released, what was not is not, and nothing is answered."""
    bench = Bench(each(lambda _: audio(ACTIVE)), pool, task=AUDIO, max_batch_size=1)
    bench.on_send = lambda _: bench.inbox.abandon()
    bench.put(audio_request("a"), audio_request("b"))
    bench.run()
    assert len(bench.answers) == 1
    assert bench.pipeline.released == ["a"]


#: At which step, and which request.
moments = st.lists(st.tuples(st.integers(0, 12), st.sampled_from("abcdefg")), max_size=6)


@settings(deadline=None)
@given(
    names=st.sampled_from(["a", "ab", "abcd", "abcdefg"]),
    size=st.integers(1, 4),
    kinds=st.lists(st.sampled_from(["more", "more", "done", "bad", "none"]), max_size=50),
    during=moments,
    between=moments,
)
def test_any_course_gives_one_end_per_request_and_one_release_per_start(names, size, kinds, during, between):
    """Streams of any length, errors and cancels at any step: parts in order, one end each, each start released once."""
    course = iter(kinds)

    def act(batch: Any) -> Any:
        cancel(during)
        made = {"more": audio(ACTIVE), "done": audio(DONE), "bad": ValueError(), "none": None}
        return {request_id: made[next(course, "done")] for request_id in batch}

    def cancel(when: list[tuple[int, str]]) -> None:
        for step, name in when:
            if step == len(bench.pipeline.batches):
                bench.inbox.cancel(name, 1)

    with Pool(budget_bytes=4 * MIB) as pool:
        bench = Bench(act, pool, task=AUDIO, max_batch_size=size)
        bench.on_send = lambda _: cancel(between)
        bench.put(*(audio_request(name) for name in names))
        bench.run()
    cancelled_waiting = set(names) - {output.request_id for output, _, _ in bench.answers}
    started = {name for batch in bench.pipeline.batches for name in batch}
    assert not started & cancelled_waiting
    assert cancelled_waiting <= {name for _, name in [*during, *between]}
    assert sorted(bench.pipeline.released) == sorted(started)
    for name in set(names) - cancelled_waiting:
        outputs = [output for output, _, _ in bench.answers if output.request_id == name]
        assert [output.seq for output in outputs] == list(range(len(outputs)))
        assert [bool(output.done or output.code) for output in outputs] == [False] * (len(outputs) - 1) + [True]


def test_progress_moves_with_every_step(pool):
    """Before and after each step, so that a slow step and a slow send are told apart from being stuck."""
    seen: list[int] = []
    bench = Bench(each(lambda _: seen.append(bench.engine.progress) or embedding([1.0])), pool, max_batch_size=1)
    bench.answer(embed_request("a"), embed_request("b"))
    assert seen == [1, 3]
    assert bench.engine.progress == 4


# -- memory -----------------------------------------------------------------------------------------------------------


def test_an_array_of_the_pool_travels_uncopied(pool):
    """What `allocate` gave and the pipeline filled is named by a handle to that very block."""
    blocks: list[int] = []

    def make(context: Any) -> Any:
        out = context.allocate((512, 256))
        out[:] = 3
        blocks.extend(block.generation for block in pool.live_blocks())
        return embedding(out)

    bench = Bench(each(make), pool)
    output, frames, loans = bench.answer(embed_request("a"))["a"]
    assert [loan.generation for loan in loans] == blocks
    assert (output.ledger.output_copies, output.ledger.output_shared_bytes) == (0, 512 * 256 * 4)
    assert len(frames) == 1
    assert (value_of(frames).embeddings == 3).all()
    assert pool.live_blocks()[0].request_id == "a"


def test_an_array_from_elsewhere_is_copied_once(pool):
    """One copy into the pool, which the ledger tells; the pipeline may use its array again at once."""
    mine = np.full((512, 256), 3, np.float32)

    def on_send(_: Any) -> None:
        mine[:] = 9

    bench = Bench(each(lambda _: embedding(mine)), pool)
    bench.on_send = on_send
    output, frames, loans = bench.answer(embed_request("a"))["a"]
    assert (output.ledger.output_copies, output.ledger.output_shared_bytes) == (1, mine.nbytes)
    assert pool.live_blocks()[0].request_id == "a"
    assert (value_of(frames).embeddings == 3).all()
    for loan in loans:
        loan.release()
    assert pool.statistics().used_blocks == 0


def test_one_array_for_two_requests_is_lent_twice(pool):
    """A result that is shared by a batch stays until both readers have had it."""

    def act(batch: Any) -> Any:
        out = pool.empty((512, 256))
        out[:] = 4
        return {request_id: embedding(out) for request_id in batch}

    bench = Bench(act, pool)
    answers = bench.answer(embed_request("a"), embed_request("b"))
    [first], [second] = answers["a"][2], answers["b"][2]
    assert first.generation == second.generation
    first.release()
    assert (value_of(answers["b"][1]).embeddings == 4).all()
    second.release()
    assert pool.statistics().used_blocks == 0


def test_the_ledger_adds_up(pool):
    """Sockets, shared bytes, copies, waiting and computing, over all parts of a stream."""
    bench = Bench(
        lambda batch: {r: audio(ACTIVE if c.chunks_sent < 1 else DONE, 20_000) for r, c in batch.items()},
        pool,
        task=AUDIO,
    )
    [work] = bench.put(audio_request("a"))
    work.request_socket_bytes = 123
    bench.run()
    first, last = (output.ledger for output, _, _ in bench.answers)
    sizes = [sum(memoryview(frame).nbytes for frame in frames) for _, frames, _ in bench.answers]
    assert (first.output_socket_bytes, last.output_socket_bytes) == (sizes[0], sum(sizes))
    assert (first.output_shared_bytes, last.output_shared_bytes) == (80_000, 160_000)
    assert (first.output_copies, last.output_copies) == (1, 2)
    assert (last.request_socket_bytes, last.worker) == (123, "w-1")
    assert last.execute_s >= first.execute_s >= 0
    assert last.wait_s == first.wait_s > 0


def test_between_first_and_last_a_ledger_is_news_only_of_shared_memory(pool):
    """A token says nothing that the first one did not say; what lies in memory, readers and windows count."""
    sizes = iter([1, 1, 20_000, 1, 1])
    bench = Bench(
        lambda batch: {r: audio(ACTIVE if c.chunks_sent < 4 else DONE, next(sizes)) for r, c in batch.items()},
        pool,
        task=AUDIO,
    )
    bench.put(audio_request("a"))
    bench.run()
    ledgers = [output.ledger for output, _, _ in bench.answers]
    assert [ledger is not None for ledger in ledgers] == [True, False, True, False, True]
    bodies = [sum(memoryview(frame).nbytes for frame in frames) for _, frames, _ in bench.answers]
    assert (ledgers[-1].output_socket_bytes, ledgers[-1].output_shared_bytes) == (sum(bodies), 80_000)


IMPATIENT = Settings(allocate_timeout_s=0.02)


@pytest.mark.case(9)
def test_with_a_full_pool_arrays_go_through_the_socket(pool):
    """Slower, not broken: out-of-band, in a copy of its own that the pipeline cannot spoil, and the ledger says so."""
    mine = np.full((MIB,), 3, np.uint8).view(np.float32)
    hold = pool.empty(7 * MIB, np.uint8)

    def on_send(_: Any) -> None:
        mine[:] = 9

    bench = Bench(each(lambda _: embedding(mine)), pool, settings=IMPATIENT)
    bench.on_send = on_send
    output, frames, loans = bench.answer(embed_request("a"))["a"]
    assert (output.frames, len(frames), loans) == (2, 2, [])
    assert (value_of(frames).embeddings.view(np.uint8) == 3).all()
    assert (output.ledger.output_copies, output.ledger.output_shared_bytes) == (1, 0)
    assert output.ledger.output_socket_bytes == len(frames[0]) + MIB
    assert hold.nbytes


def test_for_a_reader_out_of_reach_arrays_go_through_the_socket(pool):
    """Its arrays are in the message, whatever room the pool has; those of others in the batch are in the pool."""
    bench = Bench(each(lambda _: embedding(np.full((MIB // 4,), 3, np.float32))), pool)
    far, _ = bench.put(embed_request("far"), embed_request("near"))
    far.by_handle = False
    bench.run()
    answers = {answer[0].request_id: answer for answer in bench.answers}
    output, frames, loans = answers["far"]
    assert (output.frames, len(frames), loans, output.ledger.output_shared_bytes) == (2, 2, [], 0)
    assert (value_of(frames).embeddings == 3).all()
    assert len(answers["near"][2]) == 1


class _Timed(Pool):
    """Remembers how long each publish was ready to wait."""

    def publish(self, array: Any, *, timeout_s: float = 0.0, tag: str = "") -> Any:
        self.waits = [*getattr(self, "waits", []), timeout_s]
        return super().publish(array, timeout_s=timeout_s, tag=tag)


def test_a_full_pool_is_waited_for_once_per_step():
    """The outputs of a batch share one wait, or a large batch would look hung."""
    with _Timed(budget_bytes=8 * MIB) as pool:
        hold = pool.empty(7 * MIB, np.uint8)
        settings = Settings(allocate_timeout_s=0.5)
        bench = Bench(each(lambda _: embedding(np.zeros(MIB, np.float32))), pool, settings=settings)
        assert len(bench.answer(*(embed_request(name) for name in "abcd"))) == 4
        assert 0 < pool.waits[0] <= 0.5
        assert pool.waits[1:] == [0.0, 0.0, 0.0]
        assert hold.nbytes


@pytest.mark.parametrize(
    "limits",
    [{"max_frame_bytes": 2 * MIB - 1}, {"max_message_bytes": 2 * MIB}],
    ids=["frame", "message"],
)
def test_an_output_that_no_message_can_carry_fails_alone(pool, limits):
    """With a full pool an array over a limit is refused with the limits; others are sent, and nothing stays held."""
    hold = pool.empty(7 * MIB, np.uint8)
    settings = Settings(allocate_timeout_s=0.02, **limits)
    sizes = {"a": 2 * MIB, "b": 100}
    bench = Bench(
        each(lambda c: embedding(np.zeros(sizes[str(c.request_id)] // 4, np.float32))), pool, settings=settings
    )
    answers = bench.answer(embed_request("a"), embed_request("b"))
    code, text = bench.errors()["a"]
    assert code == "message_too_large"
    for part in ("max_frame_bytes", "max_message_bytes", "pool_budget_bytes", str(2 * MIB)):
        assert part in text
    assert answers["a"][1:] == ([], [])
    assert answers["b"][0].done
    del hold
    assert pool.statistics().used_blocks == 0


def test_an_output_that_cannot_travel_fails_alone(pool):
    """Object arrays and foreign types are the pipeline's error, not the caller's."""
    bad = {"a": np.array([object()]), "b": "no array", "c": np.ones(2, np.float32)}
    bench = Bench(each(lambda c: ty.EmbeddingsGenerationOutput(embeddings=bad[str(c.request_id)])), pool)
    bench.answer(embed_request("a"), embed_request("c"))
    [(name, (code, text))] = bench.errors().items()
    assert (name, code) == ("a", "pipeline_error")
    assert "the pipeline's output cannot be sent: `embeddings`: arrays of dtype object cannot travel" in text


@pytest.fixture
def _counted_only(monkeypatch) -> Iterator[None]:
    """Memory comes back by reference counts alone: no collector runs; nothing is logged, since pytest keeps that."""
    monkeypatch.setattr(logging.getLogger("tensoryard.workers.engine"), "disabled", True)
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_counted_only")
def test_memory_of_an_output_that_failed_comes_back_at_once(pool):
    """An output that turns out to be none keeps no block of the pool until the garbage collector comes."""

    def make(context: Any) -> Any:
        return ty.AudioGenerationOutput(final_status="done", steps_executed=1, audio_data=context.allocate(100_000))  # type: ignore[arg-type]

    bench = Bench(each(make), pool, task=AUDIO)
    assert bench.answer(audio_request("a"))["a"][0].code == "pipeline_error"
    assert pool.statistics().used_blocks == 0


def _raise(context: Any) -> Any:
    out = context.allocate(100_000)
    raise ValueError(f"no use for {out.shape}")


def _catch(batch: Any) -> Any:
    results: dict[Any, Any] = {}
    for request_id, context in batch.items():
        try:
            results[request_id] = _raise(context)
        except ValueError as error:
            results[request_id] = error
    return results


@pytest.mark.usefixtures("_counted_only")
@pytest.mark.parametrize("act", [each(_raise), _catch], ids=["the batch", "the request"])
def test_memory_of_a_request_that_failed_comes_back_at_once(pool, act):
    """No cycle through an error's traceback keeps contexts and arrays."""
    bench = Bench(act, pool)
    refs = [weakref.ref(work.context) for work in bench.put(embed_request("a"), embed_request("b"))]
    bench.run()
    assert {code for code, _ in bench.errors().values()} == {"pipeline_error"}
    assert "no use for (100000,) (at " in bench.errors()["b"][1]
    assert pool.statistics().used_blocks == 0
    assert [ref() for ref in refs] == [None, None]


@pytest.mark.usefixtures("_counted_only")
def test_memory_of_a_failed_request_that_was_cancelled_comes_back_at_once(pool):
    """An error that nobody is told keeps no arrays either, nor those of its neighbours."""
    bench = Bench(_catch, pool)
    works = bench.put(embed_request("a"), embed_request("b"))
    executed = bench.engine.execute(works)
    for work in works:
        work.context.status = ty.GenerationStatus.CANCELLED
    bench.engine.answer(executed)
    del executed, works, work
    assert {code for code, _ in bench.errors().values()} == {"cancelled"}
    assert pool.statistics().used_blocks == 0


@pytest.mark.usefixtures("_counted_only")
def test_an_idle_worker_keeps_nothing_of_its_last_batch(pool):
    """While it waits for work, the contexts, and with them the callers' arrays, are gone."""
    refs: list[Any] = []

    def make(context: Any) -> Any:
        refs.append(weakref.ref(context))
        return embedding([1.0])

    bench = Bench(each(make), pool)
    with in_thread(bench.engine.run):
        bench.put(embed_request("a"))
        until(lambda: bench.engine.progress == 2 and bench.inbox._changed._waiters, "the step ends")
        assert [ref() for ref in refs] == [None]
        bench.inbox.drain()
