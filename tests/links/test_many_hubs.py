"""Several hubs as one: peers of each are heard and reached, and none is heard at the others' cost."""

from __future__ import annotations

import pytest

from tensoryard.links import make_hub, make_peer

from ..baseline import Baseline
from ..scripted import closing, fresh_address, has_input
from .implementations import Seqpacket, content

LIMITS = {"max_frame_bytes": 1 << 20, "max_message_bytes": 1 << 22, "peer_backlog": 100_000}


@pytest.fixture
def link():
    return Seqpacket()


@pytest.fixture
def hub():
    with closing(make_hub([fresh_address("unix"), fresh_address("ipc"), "tcp://127.0.0.1:0"], **LIMITS)) as (hub,):
        yield hub


@pytest.fixture
def peers(hub):
    with closing(*map(make_peer, hub.addresses)) as peers:
        yield peers


def test_everybody_is_heard_and_reached(link, hub, peers):
    """Peers at all addresses have their own names, and get what is for them."""
    identities = [link.met(hub, peer) for peer in peers]
    assert len(set(identities)) == 3
    for number, identity in enumerate(identities):
        assert hub.send(identity, [b"%d" % number])
    assert [content(link.received(peer)) for peer in peers] == [[b"0"], [b"1"], [b"2"]]


def test_strangers_are_strangers_to_all(hub):
    """An identity that none of them knows cannot be reached."""
    assert hub.send(bytes(16), [b"x"]) is False


def test_pollables_are_those_of_all(link, hub, peers):
    """A poller wakes whichever of them has input, and only then."""
    for peer in peers:
        link.met(hub, peer)
    assert not has_input(hub, 0)
    for peer in peers:
        peer.send([b"x"])
        assert has_input(hub, 30_000)
        link.received(hub)


def test_none_is_heard_at_the_others_cost(link, hub, peers):
    """While messages of all kinds of peers wait, they are taken in turn."""
    identities = {link.met(hub, peer): number for number, peer in enumerate(peers)}
    for peer in peers:
        for _ in range(200):
            peer.send([b"x"])
    order = [identities[link.received(hub)[0]] for _ in range(600)]
    assert sorted(order) == [0] * 200 + [1] * 200 + [2] * 200
    near = [place for place, number in enumerate(order) if number == 0]
    assert max(near) <= 2 * len(near) + 100, "messages of the others came first"


def test_an_end_is_told_where_it_can_be_known(link, hub, peers):
    """The end of a peer on this host is told through the whole."""
    identity = link.met(hub, peers[0])
    peers[0].close()
    assert link.received(hub) == (identity, None)
    assert hub.send(identity, [b"x"]) is False


def test_close_closes_all(hub):
    """After `close`, again harmless, no descriptor is left."""
    hub.close()
    hub.close()
    before = Baseline()
    with closing(make_hub([fresh_address("unix"), fresh_address("ipc")], **LIMITS)):
        pass
    before.assert_nothing_new()
