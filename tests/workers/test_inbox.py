"""The inbox: what is put in from some threads comes out in another, once, and every order to end is heard."""

from __future__ import annotations

import threading

import pytest

from tensoryard.workers.batcher import Batcher, Work
from tensoryard.workers.inbox import Inbox
from tensoryard.workers.window import Window

from .support import in_thread, plain_work, until

#: A wait that no test sits out: whoever returns was woken.
_FOR_EVER_S = 1e5


def inbox_of(*, max_batch_size: int = 4, max_wait_s: float = 0.0) -> Inbox:
    return Inbox(Batcher(max_batch_size=max_batch_size, max_wait_s=max_wait_s))


def is_waited_on(inbox: Inbox) -> bool:
    return bool(inbox._changed._waiters)  # type: ignore[attr-defined]


def test_work_from_several_threads_comes_out_once():
    """Four threads put, one takes and finishes: nothing is lost, nothing comes twice."""
    inbox = inbox_of()
    began = threading.Barrier(5)

    def put(prefix: str) -> None:
        began.wait()
        for number in range(250):
            inbox.put(plain_work(f"{prefix}{number}"))

    threads = [threading.Thread(target=put, args=(prefix,)) for prefix in "abcd"]
    for thread in threads:
        thread.start()

    def end_when_all_are_in() -> None:
        for thread in threads:
            thread.join()
        inbox.drain()

    with in_thread(end_when_all_are_in):
        began.wait()
        taken: list[str] = []
        while (batch := inbox.next_batch()) is not None:
            assert 1 <= len(batch) <= 4
            for work in batch:
                taken.append(work.request_id)
                inbox.finish(work)
    assert sorted(taken) == sorted(f"{prefix}{number}" for prefix in "abcd" for number in range(250))
    assert inbox.held() == []


def outcome_of_waiting(inbox: Inbox, wake: object) -> list[Work] | None:
    """What `next_batch` returns to a thread that waits when `wake` is called."""
    got: list[list[Work] | None] = []
    with in_thread(lambda: got.append(inbox.next_batch())):
        until(lambda: is_waited_on(inbox), "the thread waits")
        wake()  # type: ignore[operator]
    return got[0]


def test_a_waiting_thread_is_woken_by_work():
    """`put` ends the wait for anything at all."""
    inbox = inbox_of()
    work = plain_work("r")
    assert outcome_of_waiting(inbox, lambda: inbox.put(work)) == [work]


def test_a_thread_that_waits_for_a_fuller_batch_is_woken_when_it_is_full():
    """The last that fits ends the wait."""
    inbox = inbox_of(max_batch_size=2, max_wait_s=_FOR_EVER_S)
    first, second = plain_work("a", arrived=1e9), plain_work("b", arrived=1e9)
    inbox.put(first)
    assert outcome_of_waiting(inbox, lambda: inbox.put(second)) == [first, second]


def test_a_short_wait_for_more_ends_by_itself():
    """Nobody else comes: what there is goes after `max_wait_s`."""
    inbox = inbox_of(max_wait_s=0.01)
    work = plain_work("r")
    inbox.put(work)
    assert inbox.next_batch() == [work]


def test_draining_wakes_a_thread_that_has_nothing_to_do():
    """It is told that the end has come."""
    inbox = inbox_of()
    assert outcome_of_waiting(inbox, inbox.drain) is None


def test_draining_wakes_a_thread_that_waits_for_more():
    """What there is goes at once; then comes the end."""
    inbox = inbox_of(max_wait_s=_FOR_EVER_S)
    work = plain_work("r", arrived=1e9)
    inbox.put(work)
    assert outcome_of_waiting(inbox, inbox.drain) == [work]
    inbox.finish(work)
    assert inbox.next_batch() is None


@pytest.mark.parametrize("how", ["read", "cancelled"])
def test_a_thread_whose_streams_all_pause_is_woken(how):
    """When one was read, and when one is cancelled."""
    inbox = inbox_of()
    work = plain_work("r")
    work.window = Window(parts=1, size_bytes=1)
    inbox.put(work)
    assert inbox.next_batch() == [work]
    work.window.send(1)
    acts = {"read": lambda: inbox.consume("r", 1, 1), "cancelled": lambda: inbox.cancel("r", 1)}
    assert outcome_of_waiting(inbox, acts[how]) == [work]
    assert not inbox.is_stalled


def test_draining_goes_on_with_streams_until_they_end():
    """An active request is given out again and again; the end comes after its last part."""
    inbox = inbox_of()
    work = plain_work("r")
    inbox.put(work)
    inbox.drain()
    assert [inbox.next_batch() for _ in range(3)] == [[work]] * 3
    inbox.finish(work)
    assert inbox.next_batch() is None


def test_abandoning_ends_everything_at_once():
    """Neither what waits nor what is active comes out any more, and who waits is woken."""
    inbox = inbox_of(max_wait_s=_FOR_EVER_S)
    inbox.put(plain_work("r", arrived=1e9))
    assert outcome_of_waiting(inbox, inbox.abandon) is None
    inbox.drain()
    assert inbox.next_batch() is None
    assert len(inbox.held()) == 1


def test_cancelling_the_last_of_a_draining_inbox_ends_it():
    """What was cancelled while it waited is not waited for."""
    inbox = inbox_of(max_batch_size=1)
    active, waiting = plain_work("a"), plain_work("b")
    inbox.put(active)
    inbox.put(waiting)
    assert inbox.next_batch() == [active]
    inbox.drain()
    assert inbox.cancel("b", 1) is waiting
    inbox.finish(active)
    assert inbox.next_batch() is None


def test_without_waiting_it_says_how_long_to_wait():
    """`poll` gives the batch that is due by the given clock, or how long to wait for it, or that all is over."""
    now = [10.0]
    inbox = Inbox(Batcher(max_batch_size=2, max_wait_s=3.0), clock=lambda: now[0])
    assert inbox.poll() == ([], None)
    work = plain_work("a", arrived=10.0)
    inbox.put(work)
    now[0] = 11.0
    assert inbox.poll() == ([], 2.0)
    now[0] = 13.0
    assert inbox.poll() == ([work], None)
    inbox.drain()
    assert inbox.poll() == ([work], None)
    inbox.finish(work)
    assert inbox.poll() == (None, None)


def test_an_abandoned_inbox_has_nothing_to_give():
    """`poll` after `abandon` says that all is over, whatever waits."""
    inbox = Inbox(Batcher(max_batch_size=1, max_wait_s=0.0))
    inbox.put(plain_work("a"))
    inbox.abandon()
    assert inbox.poll() == (None, None)
