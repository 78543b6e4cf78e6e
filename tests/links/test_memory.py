"""The link in memory: whoever drives it decides what arrives, when, how often and in which order."""

from __future__ import annotations

import pytest

from tensoryard.links import MemoryNetwork


@pytest.fixture
def network():
    return MemoryNetwork()


@pytest.fixture
def hub(network):
    return network.hub(["h"])


@pytest.fixture
def peer(network, hub):
    """A peer that the hub has met."""
    peer = network.peer("h")
    peer.send([b"hello"])
    network.deliver_all()
    assert hub.receive() == (peer.identity, [b"hello"])
    return peer


def drain(end):
    """All that there is."""
    there = []
    while (received := end.receive()) is not None:
        there.append(received)
    return there


def test_nothing_arrives_by_itself(network, hub, peer):
    """What was sent waits until it is delivered."""
    peer.send([b"up"])
    hub.send(peer.identity, [b"down"])
    assert hub.receive() is None
    assert peer.receive() is None
    up, down = network.parcels
    assert (up.to_hub, up.frames, up.size_bytes) == (True, [b"up"], 2)
    network.deliver(down)
    assert peer.receive() == [b"down"]
    assert hub.receive() is None
    network.deliver(up)
    assert hub.receive() == (peer.identity, [b"up"])
    assert network.parcels == []


def test_parcels_may_be_dropped_repeated_and_reordered(network, hub, peer):
    """The driver makes the network as bad as it likes."""
    for number in range(3):
        peer.send([b"%d" % number])
    zero, one, two = network.parcels
    network.drop(zero)
    again = network.repeat(one)
    for parcel in (two, again, one):
        network.deliver(parcel)
    assert [frames for _, frames in drain(hub)] == [[b"2"], [b"1"], [b"1"]]


def test_two_runs_are_the_same():
    """Identities, and the order of parcels, are those of the calls that were made: nothing is left to chance."""

    def run():
        network = MemoryNetwork()
        hub = network.hub(["h"])
        peers = [network.peer("h") for _ in range(3)]
        for peer in peers:
            peer.send([b"x"])
        return [(parcel.connection.peer.identity, parcel.frames) for parcel in network.parcels], hub.addresses

    assert run() == run()


def test_a_partition_is_parcels_that_are_not_delivered(network, hub, peer):
    """Both sides go on, and hear each other again once parcels are delivered."""
    for number in range(5):
        peer.send([b"%d" % number])
        assert hub.send(peer.identity, [b"%d" % number])
    assert drain(hub) == drain(peer) == []
    network.deliver_all()
    assert [frames for _, frames in drain(hub)] == drain(peer) == [[b"%d" % number] for number in range(5)]


def test_a_death_may_be_news_or_not(network, hub, peer):
    """The end of a peer is a parcel like any other: dropped, it stays unknown, as behind a broken cable."""
    other = network.peer("h")
    other.send([b"hello"])
    network.deliver_all()
    drain(hub)
    peer.close()
    other.close()
    quiet, told = network.parcels
    network.drop(quiet)
    network.deliver(told)
    assert drain(hub) == [(other.identity, None)]
    assert hub.send(peer.identity, [b"into the void"])
    assert not hub.send(other.identity, [b"x"])


def test_what_belongs_to_a_connection_that_is_over_vanishes(network, hub, peer):
    """Parcels of an earlier connection, late or repeated, reach neither the hub nor the peer of the next one."""
    peer.send([b"early"])
    hub.send(peer.identity, [b"early too"])
    up, down = network.parcels
    late_up, late_down = network.repeat(up), network.repeat(down)
    hub.close()
    second = network.hub(["h"])
    network.deliver(network.parcels[-1])  # the news of the end
    assert peer.receive() is None
    peer.send([b"hello again"])
    for parcel in (up, down, late_up, late_down, *network.parcels[4:]):
        network.deliver(parcel)
    assert drain(peer) == []
    assert drain(second) == [(peer.identity, [b"hello again"])]


def test_late_words_of_an_earlier_connection_do_not_end_the_next(network, hub, peer):
    """A message that was overtaken by its peer's next connection is dropped."""
    peer.send([b"late"])
    (late,) = network.parcels
    hub.send(peer.identity, [bytes(10)])
    connection = peer._connection
    connection.cut = True
    peer._connection = None
    peer._connect()
    peer.send([b"new"])
    network.deliver(network.parcels[-1])
    network.deliver(late)
    assert drain(hub) == [(peer.identity, None), (peer.identity, [b"new"])]


def test_a_backlog_counts_what_is_on_its_way(network):
    """Undelivered, and delivered but not received, both count; dropped ones and received ones do not."""
    hub = network.hub(["h"], peer_backlog=3)
    peer = network.peer("h")
    peer.send([b"hello"])
    network.deliver_all()
    drain(hub)
    assert [hub.send(peer.identity, [b"x"]) for _ in range(3)] == [True] * 3
    network.drop(network.parcels[0])
    network.deliver(network.parcels[0])
    assert hub.send(peer.identity, [b"x"])
    assert peer.receive() == [b"x"]
    assert hub.send(peer.identity, [b"x"])
    assert not hub.send(peer.identity, [b"x"])
    network.deliver_all()
    assert hub.receive() == (peer.identity, None)


def test_an_address_has_one_hub(network, hub):
    """A second hub at an address is a mistake of the test."""
    with pytest.raises(AssertionError, match="h has a hub"):
        network.hub(["h"])
    hub.close()
    network.hub(["h"])
