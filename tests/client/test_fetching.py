"""Outputs are read aside by a few threads, which end when they have nothing to do."""

from __future__ import annotations

import select
import threading
import time

import pytest

from tensoryard.client import fetching
from tensoryard.client.fetching import MAX_THREADS, Fetching

DEADLINE_S = 60.0


def results(one, count):
    """So many, waited for as a session does."""
    found = []
    while len(found) < count:
        assert select.select([one.fd], [], [], DEADLINE_S)[0], "nothing comes"
        found += one.take()
    return found


@pytest.fixture
def make():
    made = []

    def fetching_with(decode):
        made.append(Fetching(decode))
        return made[-1]

    yield fetching_with
    for one in made:
        one.close()


def test_outputs_are_read_aside(make):
    """Each output comes back with its request; one that cannot be read as its exception."""
    one = make(lambda body, type_: type_(body[0]))
    one.fetch("a", [b"12"], int)
    one.fetch("b", [b"x"], int)
    found = dict(results(one, 2))
    assert found["a"] == 12
    assert isinstance(found["b"], ValueError)
    assert one.take() == []


def test_a_few_are_read_at_once(make):
    """As many at once as there are threads, and all of them in the end."""
    gate, at_once = threading.Semaphore(0), []

    def decode(body, _type):
        at_once.append(threading.current_thread())
        assert gate.acquire(timeout=DEADLINE_S)
        return body

    one = make(decode)
    for number in range(3 * MAX_THREADS):
        one.fetch(str(number), [], None)
    give_up = time.monotonic() + DEADLINE_S
    while len(at_once) < MAX_THREADS:
        assert time.monotonic() < give_up
        time.sleep(0.005)
    gate.release(3 * MAX_THREADS)
    assert len(results(one, 3 * MAX_THREADS)) == 3 * MAX_THREADS
    assert len(set(at_once)) == MAX_THREADS


def test_threads_without_work_end_and_come_again(make, monkeypatch):
    """A client that fetches nothing has no thread for it."""
    monkeypatch.setattr(fetching, "_IDLE_S", 0.01)
    threads = []
    one = make(lambda body, _type: threads.append(threading.current_thread()) or body)
    for key in "ab":
        one.fetch(key, [], None)
        assert results(one, 1) == [(key, [])]
        threads[-1].join(DEADLINE_S)
        assert not threads[-1].is_alive()
    assert threads[0] is not threads[1]


def test_what_is_read_after_the_end_is_dropped(make):
    """A client that closes does not wait for what is on its way; its threads end with it."""
    gate, threads = threading.Event(), []

    def decode(body, _type):
        threads.append(threading.current_thread())
        assert gate.wait(DEADLINE_S)
        return body

    one = make(decode)
    one.fetch("a", [], None)
    give_up = time.monotonic() + DEADLINE_S
    while not threads:
        assert time.monotonic() < give_up
        time.sleep(0.005)
    one.close()
    gate.set()
    threads[0].join(DEADLINE_S)
    assert not threads[0].is_alive()
    assert not one._results
