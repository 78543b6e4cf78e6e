"""The roster: who is connected under which name, who went quiet, and who talks nonsense."""

from __future__ import annotations

import pytest

from tensoryard.coordinator import roster as roster_module
from tensoryard.coordinator.roster import Roster
from tensoryard.proto import wire


def hello(role="client", name="c", **fields):
    return wire.Hello(version=1, role=role, name=name, **fields)


def identity(number):
    return number.to_bytes(16, "big")


@pytest.fixture
def roster():
    return Roster()


def join(roster, number, role="client", name="c", at=0.0, **fields):
    return roster.join(identity(number), hello(role, name, **fields), at)


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
