"""The batcher: who is in the next batch, how long to wait for more, and what becomes of replaced and cancelled work."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tensoryard.workers.batcher import Batcher, Work
from tensoryard.workers.window import Window

from .support import plain_work


def names(works: list[Work]) -> list[str]:
    return [work.request_id for work in works]


def filled(count: int, *, max_batch_size: int = 8, max_wait_s: float = 2.0) -> Batcher:
    batcher = Batcher(max_batch_size=max_batch_size, max_wait_s=max_wait_s)
    for number in range(count):
        assert batcher.add(plain_work(f"r{number}", arrived=float(number))) is None
    return batcher


def test_nothing_to_do_is_waited_for_without_end():
    """An empty batcher gives no batch and no time to wait."""
    assert filled(0).next_batch(5.0) == ([], None)


def test_an_incomplete_batch_waits_for_more_until_its_oldest_has_waited_enough():
    """The wait counts from the first arrival, and the batch goes at its end."""
    batcher = filled(3, max_wait_s=10.0)
    assert batcher.next_batch(2.5) == ([], 7.5)
    batch, wait_s = batcher.next_batch(10.0)
    assert (names(batch), wait_s) == (["r0", "r1", "r2"], None)
    assert [work.wait_s for work in batch] == [10.0, 9.0, 8.0]


def test_a_full_batch_goes_at_once():
    """With as many waiting as fit, there is nothing to wait for; the rest stays."""
    batcher = filled(5, max_batch_size=4, max_wait_s=1000.0)
    batch, _ = batcher.next_batch(5.0)
    assert names(batch) == ["r0", "r1", "r2", "r3"]
    assert len(batcher) == 5
    for work in batch:
        batcher.finish(work)
    assert batcher.next_batch(5.0) == ([], 999.0)


def test_newcomers_join_requests_under_way_without_waiting():
    """While streams run, the next step takes in whoever has come, as long as there is room."""
    batcher = filled(2, max_batch_size=3, max_wait_s=0.0)
    assert names(batcher.next_batch(2.0)[0]) == ["r0", "r1"]
    batcher.max_wait_s = 1000.0
    for name in ("new", "late"):
        batcher.add(plain_work(name, arrived=3.0))
    assert names(batcher.next_batch(3.0)[0]) == ["r0", "r1", "new"]
    batcher.finish(batcher.held()[0])
    assert names(batcher.next_batch(3.0)[0]) == ["r1", "new", "late"]


def test_draining_waits_for_nobody():
    """Once nothing more comes, an incomplete batch goes at once."""
    batcher = filled(1, max_wait_s=1000.0)
    batcher.draining = True
    assert names(batcher.next_batch(0.0)[0]) == ["r0"]


def test_cancelling_what_waits_takes_it_out():
    """It is returned to be answered, and is in no batch."""
    batcher = filled(2, max_wait_s=0.0)
    cancelled = batcher.cancel("r0", 1)
    assert cancelled is not None
    assert (cancelled.request_id, cancelled.started) == ("r0", False)
    assert names(batcher.next_batch(9.0)[0]) == ["r1"]


def test_cancelling_what_is_at_work_only_tells_it():
    """Its context says so; it stays in the batch until it is finished."""
    batcher = filled(1, max_wait_s=0.0)
    [work] = batcher.next_batch(9.0)[0]
    assert batcher.cancel("r0", 1) is None
    assert work.context.cancelled
    assert batcher.held() == [work]


def test_cancelling_another_attempt_or_a_stranger_changes_nothing():
    """Only the attempt that is named is meant."""
    batcher = filled(2, max_batch_size=1, max_wait_s=0.0)
    [active] = batcher.next_batch(9.0)[0]
    for request_id, attempt in [("r0", 2), ("r1", 2), ("stranger", 1)]:
        assert batcher.cancel(request_id, attempt) is None
    assert not active.context.cancelled
    assert len(batcher) == 2


def test_a_newer_attempt_replaces_one_that_waits():
    """The older comes back to be answered; the newer takes its place at the end of the line."""
    batcher = filled(2, max_wait_s=0.0)
    replaced = batcher.add(plain_work("r0", attempt=7, arrived=5.0))
    assert replaced is not None
    assert replaced.attempt == 1
    assert [(work.request_id, work.attempt) for work in batcher.next_batch(9.0)[0]] == [("r1", 1), ("r0", 7)]


def test_a_newer_attempt_waits_for_the_older_one_at_work():
    """Never two attempts of a request in one batch: the older is told to stop, and goes first."""
    batcher = filled(1, max_wait_s=0.0)
    [older] = batcher.next_batch(9.0)[0]
    newer, other = plain_work("r0", attempt=2, arrived=9.0), plain_work("other", arrived=9.0)
    assert batcher.add(newer) is None
    batcher.add(other)
    assert older.context.cancelled
    assert batcher.next_batch(9.0)[0] == [older, other]
    assert set(batcher.held()) == {older, newer, other}
    batcher.finish(older)
    assert batcher.next_batch(9.0)[0] == [other, newer]
    assert not newer.context.cancelled


def test_the_same_attempt_a_second_time_changes_nothing():
    """Whether the first waits or is at work, a repeated message is not a second request."""
    batcher = filled(1, max_wait_s=0.0)
    assert batcher.add(plain_work("r0")) is None
    [work] = batcher.next_batch(9.0)[0]
    assert batcher.add(plain_work("r0")) is None
    assert batcher.held() == [work]
    assert not work.context.cancelled


def test_finishing_an_older_attempt_leaves_a_newer_one_alone():
    """`finish` takes out the very work it is given."""
    batcher = filled(1, max_wait_s=0.0)
    [work] = batcher.next_batch(9.0)[0]
    batcher.finish(plain_work("r0"))
    assert batcher.held() == [work]
    batcher.finish(work)
    assert batcher.held() == []


# -- streams whose readers do not keep up ------------------------------------------------------------------------------


def stream(request_id: str, parts: int = 1, **fields: Any) -> Work:
    work = plain_work(request_id, **fields)
    work.window = Window(parts=parts, size_bytes=1 << 20)
    return work


def step(batcher: Batcher, at: float = 9.0) -> list[str]:
    """One batch, an output for each of it; returns their names."""
    batch, _ = batcher.next_batch(at)
    for work in batch:
        work.window.send(10)
        work.seq += 1
    return names(batch)


def test_a_stream_that_is_not_read_leaves_the_batch_and_others_go_on():
    """It takes part again once it is read, before those that came later."""
    batcher = filled(0, max_batch_size=2, max_wait_s=0.0)
    for work in (stream("slow"), stream("fast", parts=100), stream("late", parts=100)):
        batcher.add(work)
    assert step(batcher) == ["slow", "fast"]
    assert step(batcher) == ["fast", "late"]
    assert len(batcher) == 3
    batcher.consume("slow", 1, 1)
    assert step(batcher) == ["slow", "fast"]
    assert step(batcher) == ["fast", "late"]


def test_only_pausing_streams_are_waited_for_without_end():
    """Nothing to do is no reason to hurry, and no trouble of the pipeline's: that is told apart by `is_stalled`."""
    batcher = filled(0, max_wait_s=0.0)
    assert not batcher.is_stalled
    batcher.add(stream("a"))
    assert not batcher.is_stalled
    assert step(batcher) == ["a"]
    assert not batcher.is_stalled, "the step may not be over"
    assert batcher.next_batch(9.0) == ([], None)
    assert batcher.is_stalled
    batcher.add(plain_work("b"))
    assert not batcher.is_stalled
    batcher.next_batch(9.0)
    batcher.consume("a", 1, 1)
    assert not batcher.is_stalled


def test_a_pausing_stream_can_be_cancelled():
    """It comes once more, to be answered, also beside a batch that is full."""
    batcher = filled(0, max_batch_size=1, max_wait_s=0.0)
    batcher.add(stream("a"))
    step(batcher)
    batcher.add(stream("b", parts=100))
    assert step(batcher) == ["b"]
    assert batcher.cancel("a", 1) is None
    assert step(batcher) == ["a", "b"]


def test_what_was_read_counts_for_its_attempt_only():
    """Word for another attempt, or for a stranger, moves nothing."""
    batcher = filled(0, max_wait_s=0.0)
    batcher.add(stream("a"))
    step(batcher)
    for request_id, attempt in [("a", 2), ("b", 1)]:
        batcher.consume(request_id, attempt, 1)
    assert step(batcher) == []


def test_what_is_read_of_a_waiting_attempt_counts():
    """A request that runs again, and whose reader reads on before it begins, does not wait for him."""
    batcher = filled(0, max_wait_s=0.0)
    batcher.add(stream("a", parts=2))
    batcher.consume("a", 1, 3)
    assert [step(batcher) for _ in range(6)] == [["a"]] * 5 + [[]]


def test_a_stream_that_nobody_reads_ends():
    """After `unread_s` of pausing it is cancelled, with the reason; whoever reads in time has as long again."""
    batcher = Batcher(max_batch_size=2, max_wait_s=0.0, unread_s=30.0)
    work, other = stream("a"), stream("b")
    batcher.add(work)
    batcher.add(other)
    step(batcher, at=0.0)
    assert batcher.next_batch(1.0) == ([], 30.0)
    batcher.consume("b", 1, 1)
    assert step(batcher, at=20.0) == ["b"]
    assert batcher.next_batch(25.0) == ([], 6.0)
    assert batcher.next_batch(31.0) == ([work], None)
    assert work.context.cancelled
    assert "nothing of its stream was read for 30 s (unread_s), after 1 outputs" in str(work.failure)
    batcher.finish(work)
    assert batcher.next_batch(54.0) == ([], 1.0)
    assert batcher.next_batch(55.0) == ([other], None)


class Naive:
    """The same rules over plain lists, with no regard to cost."""

    def __init__(self, max_batch_size: int, max_wait_s: float) -> None:
        self.size, self.max_wait_s = max_batch_size, max_wait_s
        self.waiting: list[Work] = []
        self.active: list[Work] = []
        self.draining = False

    def add(self, work: Work) -> Work | None:
        same = [w for w in self.waiting + self.active if w.request_id == work.request_id]
        if any(w.attempt == work.attempt for w in same):
            return None
        replaced = [w for w in same if w in self.waiting]
        self.waiting = [w for w in self.waiting if w not in replaced] + [work]
        return replaced[0] if replaced else None

    def next_batch(self, at: float) -> tuple[list[Work], float | None]:
        if not self.active and not self.waiting:
            return [], None
        if not self.active and len(self.waiting) < self.size and not self.draining:
            left = self.waiting[0].arrived + self.max_wait_s - at
            if left > 0:
                return [], left
        for work in list(self.waiting):
            wanted = [w for w in self.active if not w.context.cancelled]
            if len(wanted) < self.size and work.request_id not in {w.request_id for w in self.active}:
                self.waiting.remove(work)
                self.active.append(work)
        return list(self.active), None

    def cancel(self, request_id: str, attempt: int) -> Work | None:
        for work in self.waiting:
            if (work.request_id, work.attempt) == (request_id, attempt):
                self.waiting.remove(work)
                return work
        return None

    def finish(self, work: Work) -> None:
        if work in self.active:
            self.active.remove(work)


ids = st.sampled_from(["a", "b", "c", "d", "e", "f"])
attempts = st.integers(1, 3)
steps = st.one_of(
    st.tuples(st.just("add"), ids, attempts),
    st.tuples(st.just("cancel"), ids, attempts),
    st.tuples(st.just("batch"), st.integers(0, 4)),
    st.tuples(st.just("finish"), st.integers(0, 5)),
    st.just(("drain",)),
)


@settings(deadline=None)
@given(st.integers(1, 4), st.sampled_from([0.0, 2.0, 50.0]), st.lists(steps, max_size=60))
def test_any_history_goes_as_in_the_naive_model(size: int, max_wait_s: float, history: list[tuple[Any, ...]]):
    """Whatever happens in whatever order, batches, waits and replaced work are the naive model's."""
    batcher, model = Batcher(max_batch_size=size, max_wait_s=max_wait_s), Naive(size, max_wait_s)
    at = 0.0
    for step in history:
        match step:
            case ("add", request_id, attempt):
                work = plain_work(request_id, attempt, at)
                assert batcher.add(work) is model.add(work)
            case ("cancel", request_id, attempt):
                assert batcher.cancel(request_id, attempt) is model.cancel(request_id, attempt)
            case ("batch", passed):
                at += passed
                batch, wait_s = batcher.next_batch(at)
                assert (batch, wait_s) == model.next_batch(at)
                assert len([work for work in batch if not work.context.cancelled]) <= size
                assert len({work.request_id for work in batch}) == len(batch)
            case ("finish", number) if model.active:
                work = model.active[number % len(model.active)]
                batcher.finish(work)
                model.finish(work)
            case ("drain",):
                batcher.draining = model.draining = True
        assert batcher.held() == model.active + model.waiting
        assert len(batcher) == len(model.active) + len(model.waiting)
