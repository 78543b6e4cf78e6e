"""A process of this host is seen to die; anything else is left alone."""

from __future__ import annotations

import os
import resource
import select
import subprocess

import pytest

from tensoryard.coordinator.actions import Watch
from tensoryard.coordinator.liveness import ProcessWatch, open_pidfd
from tensoryard.links import pid_namespace

OURS = {"host": "h", "namespace": pid_namespace(), "own_host": "h"}


@pytest.mark.process
def test_death_makes_the_descriptor_readable():
    """The descriptor of a living process is not readable; once it is killed, it is."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        fd = open_pidfd(process.pid, **OURS)
        try:
            assert select.select([fd], [], [], 0)[0] == []
            process.kill()
            assert select.select([fd], [], [], 30)[0] == [fd]
        finally:
            os.close(fd)


@pytest.mark.process
def test_a_process_that_has_ended_is_said_to_have():
    """ProcessLookupError for a pid that nobody has any more."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    with pytest.raises(ProcessLookupError):
        open_pidfd(process.pid, **OURS)


@pytest.mark.parametrize(
    "who",
    [
        {"host": "other"},
        {"namespace": "pid:[1]"},
        {"namespace": ""},
        {"pid": 0},
        {"pid": -1},
    ],
    ids=["another host", "another namespace", "an unknown namespace", "no pid", "a negative pid"],
)
def test_strangers_are_not_watched(who):
    """A pid that means nothing here is not looked up, even where a process of ours has the number."""
    who = {"pid": os.getpid(), **OURS, **who}
    assert open_pidfd(who.pop("pid"), **who) is None


def test_the_descriptor_is_not_inherited():
    """A program started meanwhile does not keep the descriptor."""
    fd = open_pidfd(os.getpid(), **OURS)
    try:
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


def test_without_descriptors_nobody_is_watched():
    """With no descriptor left the answer is None, so that one client more cannot end the coordinator."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = []
    try:
        used.append(os.dup(0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used[0] + 1, hard))  # the lowest free number is over the limit now
        while True:
            try:
                used.append(os.dup(0))
            except OSError:
                break
        assert open_pidfd(os.getpid(), **OURS) is None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in used:
            os.close(fd)


@pytest.fixture
def watch():
    watch = ProcessWatch("h")
    yield watch
    watch.close()


def wish(peer, pid):
    return Watch(peer, pid=pid, host="h", pid_namespace=pid_namespace())


@pytest.mark.process
def test_one_descriptor_wakes_for_the_peer_that_died(watch):
    """Of two peers the one whose process ended is named."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        watch.watch(wish(b"child", process.pid))
        watch.watch(wish(b"ourselves", os.getpid()))
        assert watch.ended() == []
        process.kill()
        assert select.select([watch], [], [], 30.0)[0] == [watch]
    assert watch.ended() == [b"child"]
    assert watch.ended() == [b"child"], "until it is forgotten"
    watch.forget(b"child")
    assert watch.ended() == []
    assert len(watch) == 1


@pytest.mark.process
def test_whom_nobody_can_see_is_not_watched(watch):
    """A process that has ended, lives elsewhere or is unknown leaves nothing to wait on; forgetting it is harmless."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    watch.watch(wish(b"ended", process.pid))
    watch.watch(wish(b"no pid", 0))
    watch.watch(Watch(b"elsewhere", pid=os.getpid(), host="other", pid_namespace=pid_namespace()))
    assert len(watch) == 0
    watch.forget(b"ended")
    watch.forget(b"a stranger")
