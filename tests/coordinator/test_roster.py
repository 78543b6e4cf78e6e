"""The roster: who is connected under which name, who went quiet, and who talks nonsense."""

from __future__ import annotations

import os
import subprocess

import pytest

from tensoryard.coordinator import roster as roster_module
from tensoryard.coordinator.roster import Peer, Roster
from tensoryard.links import pid_namespace
from tensoryard.proto import wire

HERE = "this-host"


def hello(role="client", name="c", **fields):
    return wire.Hello(version=1, role=role, name=name, **{"host": "elsewhere", **fields})


def identity(number):
    return number.to_bytes(16, "big")


@pytest.fixture
def roster():
    roster = Roster(HERE)
    yield roster
    for peer in roster.all():
        if peer.pidfd is not None:
            os.close(peer.pidfd)


def join(roster, number, role="client", name="c", at=0.0, **fields):
    return roster.join(identity(number), hello(role, name, **fields), at)[0]


def test_peers_are_found_by_identity_name_and_role(roster):
    """Each peer is found by its identity, by role and name, and among its role; strangers are not."""
    worker, fleet = join(roster, 1, "worker", "w"), join(roster, 2, "fleet", "f")
    assert roster.get(identity(1)) is worker
    assert roster.named("worker", "w") is worker
    assert roster.named("fleet", "w") is None
    assert roster.get(identity(3)) is None
    assert roster.all() == [worker, fleet]
    assert roster.all("fleet") == [fleet]
    assert [roster.count(role) for role in ("worker", "fleet", "client")] == [1, 1, 0]


def test_a_clients_name_is_its_identity(roster):
    """Clients that call themselves the same are still two; workers are who they say they are."""
    clients = [join(roster, number, name="same") for number in (1, 2)]
    assert [peer.name for peer in clients] == [identity(1).hex(), identity(2).hex()]
    assert join(roster, 3, "worker", "w").name == "w"


def test_a_newcomer_replaces_whom_it_was_and_whose_name_it_bears(roster):
    """`replaced_by` names the peer of the same identity and that of the same role and name, each once."""
    first, second = join(roster, 1, "worker", "a"), join(roster, 2, "worker", "b")
    assert roster.replaced_by(identity(1), hello("worker", "a")) == [first]
    assert roster.replaced_by(identity(1), hello("worker", "b")) == [first, second]
    assert roster.replaced_by(identity(3), hello("worker", "b")) == [second]
    assert roster.replaced_by(identity(3), hello("fleet", "b")) == []


def test_whoever_leaves_is_forgotten_once(roster):
    """`leave` is True the first time only, and never for a peer that another has replaced."""
    peer = join(roster, 1, "worker", "w")
    assert roster.leave(peer) is True
    assert roster.leave(peer) is False
    assert roster.get(identity(1)) is None
    assert roster.named("worker", "w") is None
    successor = join(roster, 1, "worker", "w")
    assert roster.leave(peer) is False
    assert roster.all() == [successor]


def test_silence_is_found(roster):
    """Only peers whose last message is older than asked for are silent."""
    old, fresh = join(roster, 1, at=1.0), join(roster, 2, at=5.0)
    assert roster.silent_since(1.0) == []
    assert roster.silent_since(2.0) == [old]
    old.seen = 9.0
    assert roster.silent_since(6.0) == [fresh]


def test_time_without_listening_is_excused(roster):
    """`excuse` moves everybody's last message on, and never beyond now."""
    old, fresh = join(roster, 1, at=1.0), join(roster, 2, at=9.0)
    roster.excuse(5.0, 10.0)
    assert (old.seen, fresh.seen) == (6.0, 10.0)


def test_complaints_are_counted_per_peer(roster):
    """Each identity has its own count, which ends when the peer leaves."""
    peer = join(roster, 1)
    assert [roster.complain(identity(1)) for _ in range(3)] == [1, 2, 3]
    assert roster.complain(identity(2)) == 1
    roster.leave(peer)
    assert roster.complain(identity(1)) == 1


def test_complaints_are_bounded(roster):
    """However many strangers talk nonsense, no more than a bound are remembered."""
    for number in range(3 * roster_module._MAX_COMPLAINTS):
        roster.complain(identity(number))
        assert len(roster._complaints) <= roster_module._MAX_COMPLAINTS


@pytest.mark.process
def test_an_ended_process_is_told_by_its_descriptor(roster):
    """`ended` gives the peer whose pidfd is ready, and takes no notice of other descriptors."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        peer = join(roster, 1, host=HERE, pid=process.pid, pid_namespace=pid_namespace())
        assert isinstance(peer.pidfd, int)
        assert roster.ended({}) == []
        assert roster.ended({object(): 1, -5: 1, peer.pidfd: 1}) == [peer]
        process.kill()
    roster.leave(peer)
    assert roster.ended({peer.pidfd: 1}) == []
    os.close(peer.pidfd)


@pytest.mark.process
def test_a_process_that_has_ended_joins_without_a_descriptor(roster):
    """A peer whose process is gone when it joins has no pidfd; its silence will tell."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    peer, pidfd = roster.join(identity(1), hello(host=HERE, pid=process.pid, pid_namespace=pid_namespace()), 0.0)
    assert pidfd is None
    assert peer == roster.get(identity(1))
    assert isinstance(peer, Peer)
