"""The helm of a session: one thread at a time, callers before the session's own thread, and never nobody for long."""

from __future__ import annotations

import threading

import pytest

from tensoryard.links.helm import Helm

from ..scripted import DEADLINE_S


def _in_thread(work):
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_a_caller_steers_a_free_helm():
    """What it wants done is done in its thread, which has the helm meanwhile and not after."""
    helm, seen = Helm(lambda: None), []
    assert helm.steer(lambda: seen.append((threading.get_ident(), helm.mine)))
    assert seen == [(threading.get_ident(), True)]
    assert not helm.mine


def test_who_steers_does_not_steer_within():
    """A second time, from within the first, nothing is done, and the first goes on at the helm."""
    helm, inner, after = Helm(lambda: None), [], []

    def work():
        inner.append(helm.steer(lambda: inner.append("never")))
        after.append(helm.mine)

    assert helm.steer(work)
    assert (inner, after) == ([False], [True])


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_the_helm_free(error):
    """Also one that a signal's handler brings."""
    helm = Helm(lambda: None)

    def fail():
        raise error

    with pytest.raises(error):
        helm.steer(fail)
    assert helm.steer(lambda: None)


def test_the_thread_hands_over_to_a_caller_and_takes_over_again():
    """A caller ends the wait of the session's thread, is served, and the thread goes on once it is gone."""
    called, waits, turns = threading.Event(), threading.Event(), []
    helm, over = Helm(called.set), threading.Event()

    def turn():
        waits.set()
        called.wait(DEADLINE_S)
        called.clear()
        turns.append(threading.get_ident())

    def keep():
        while not over.is_set():
            helm.keep(turn)

    thread = _in_thread(keep)
    assert waits.wait(DEADLINE_S)
    steered = []
    while not steered:  # a busy machine may let the handover time out
        helm.steer(lambda: steered.append(threading.get_ident()))
    assert steered == [threading.get_ident()]
    waits.clear()
    assert waits.wait(DEADLINE_S), "the thread did not take the helm back"
    over.set()
    called.set()
    thread.join(DEADLINE_S)
    assert set(turns) == {thread.ident}


def test_a_follower_is_never_left_without_a_helmsman():
    """While somebody follows, callers leave the helm to the thread, which is woken when the last one lets go."""
    helm, began, release, kept = Helm(lambda: None), threading.Event(), threading.Event(), threading.Event()
    leader = _in_thread(lambda: helm.steer(lambda: (began.set(), release.wait(DEADLINE_S))))
    assert began.wait(DEADLINE_S)
    assert not helm.steer(lambda: None)
    with helm.following():
        thread = _in_thread(lambda: helm.keep(kept.set))
        assert not kept.is_set()
        release.set()
        assert kept.wait(DEADLINE_S)
        assert not helm.steer(lambda: None)
    for each in (leader, thread):
        each.join(DEADLINE_S)
    assert helm.steer(lambda: None)
