"""Every link keeps these promises; each implementation of `links/base.py` is one entry of IMPLEMENTATIONS."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zmq

from tensoryard.errors import ConfigError
from tensoryard.links import ZmqHub, ZmqPeer

from ..baseline import Baseline
from ..scripted import DEADLINE_S, closing, fresh_address

LIMIT = 1 << 20


class ZeroMQ:
    """How the suite makes the two ends of one implementation."""

    hub = staticmethod(lambda *addresses, backlog=1000: ZmqHub(addresses, max_frame_bytes=LIMIT, peer_backlog=backlog))
    peer = ZmqPeer
    address = staticmethod(fresh_address)
    #: What another process runs to send ARGV[2] messages and end right after `close`.
    sender = """
import sys
from tensoryard.links import ZmqPeer
peer = ZmqPeer(sys.argv[1])
for number in range(int(sys.argv[2])):
    peer.send([b"%d" % number, bytes(60_000)])
peer.close()
"""


IMPLEMENTATIONS = [ZeroMQ]


@pytest.fixture(params=IMPLEMENTATIONS, ids=lambda link: link.__name__)
def link(request):
    return request.param


@pytest.fixture
def hub(link):
    hub = link.hub(link.address())
    yield hub
    hub.close()


@pytest.fixture
def make_peer(link, hub):
    peers = []

    def make(address=None, **how):
        peers.append(link.peer(address or hub.addresses[0], **how))
        return peers[-1]

    yield make
    for peer in peers:
        peer.close()


def received(end, seconds=DEADLINE_S):
    """The next message; fails when none comes."""
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        message = end.receive()
        if message is not None:
            return message
        poller = zmq.Poller()
        poller.register(end.pollable, zmq.POLLIN)
        poller.poll(50)
    raise AssertionError(f"no message within {seconds:.0f} s")


def content(frames):
    return [bytes(frame) for frame in frames]


def met(hub, peer):
    """The identity of a peer, once the hub has heard from it."""
    peer.send([b"here I am"])
    identity, _ = received(hub)
    return identity


MESSAGES = {
    "one frame": [b"a"],
    "an empty frame": [b""],
    "empty frames within": [b"envelope", b"", b"body", b""],
    "every byte": [bytes(range(256)) * 16],
    "large": [b"envelope", bytes(LIMIT // 2), secrets.token_bytes(LIMIT // 2)],
    "many frames": [b"%d" % number for number in range(4000)],
    "other buffers": [bytearray(b"abc"), memoryview(b"abcdef")[1:3], memoryview(bytearray(200_000))],
}


@pytest.mark.parametrize("frames", MESSAGES.values(), ids=MESSAGES.keys())
def test_frames_arrive_as_they_were_sent(hub, make_peer, frames):
    """Both ways, a message is the same list of the same bytes, whatever buffers it was sent from."""
    peer = make_peer()
    peer.send(frames)
    identity, there = received(hub)
    assert content(there) == content(frames)
    assert hub.send(identity, frames) is True
    assert content(received(peer)) == content(frames)


def test_what_was_received_can_be_sent_on(hub, make_peer):
    """Frames go on, twice, as they came: the coordinator neither copies a body nor loses it by sending it."""
    sender, reader = make_peer(), make_peer()
    identity = met(hub, reader)
    body = secrets.token_bytes(LIMIT)
    sender.send([b"envelope", body])
    _, frames = received(hub)
    for _ in range(2):
        assert hub.send(identity, [b"another envelope", *frames[1:]])
        assert content(received(reader)) == [b"another envelope", body]


def test_messages_keep_their_order(hub, make_peer):
    """5,000 messages of one peer arrive once each and in order."""
    peer = make_peer()
    for number in range(5000):
        peer.send([b"%d" % number])
    assert [content(received(hub)[1])[0] for _ in range(5000)] == [b"%d" % number for number in range(5000)]


def test_receive_does_not_wait(hub, make_peer):
    """With nothing there, both ends say None at once."""
    peer = make_peer()
    met(hub, peer)
    assert hub.receive() is None
    assert peer.receive() is None


@pytest.mark.parametrize("side", ["hub", "peer"])
def test_pollable_tells_of_input(hub, make_peer, side):
    """A poller wakes when there is something to receive, and not when there is nothing."""
    peer = make_peer()
    identity = met(hub, peer)
    end = {"hub": hub, "peer": peer}[side]
    poller = zmq.Poller()
    poller.register(end.pollable, zmq.POLLIN)
    assert poller.poll(0) == []
    if side == "hub":
        peer.send([b"x"])
    else:
        hub.send(identity, [b"x"])
    assert poller.poll(DEADLINE_S * 1000)
    received(end)
    assert poller.poll(0) == []


def test_peers_are_told_apart(hub, make_peer):
    """Each peer has 16 bytes of its own as identity, the same for all its messages, and gets only what is for it."""
    peers = [make_peer() for _ in range(5)]
    identities = [met(hub, peer) for peer in peers]
    assert {len(identity) for identity in identities} == {16}
    assert len(set(identities)) == 5
    for number, identity in enumerate(identities):
        hub.send(identity, [b"%d" % number])
    assert [content(received(peer)) for peer in peers] == [[b"%d" % number] for number in range(5)]
    assert [met(hub, peer) for peer in peers] == identities
    assert all(peer.receive() is None for peer in peers)


def test_a_stranger_cannot_be_reached(hub):
    """Sending to an identity that never was says False."""
    assert hub.send(b"\x01" + bytes(15), [b"x"]) is False


def test_a_peer_that_left_cannot_be_reached(hub, make_peer, eventually):
    """Once a peer has closed, sending to it says False."""
    peer = make_peer()
    identity = met(hub, peer)
    peer.close()
    eventually(lambda: hub.send(identity, [b"x"]) is False, "the peer is known to be gone")


def test_a_peer_may_come_first(link, make_peer):
    """A peer made, and sending, before its hub is there loses nothing."""
    address = link.address()
    peer = make_peer(address)
    for number in range(10_000):  # never waits
        peer.send([b"%d" % number])
    with closing(link.hub(address)) as (hub,):
        assert [content(received(hub)[1])[0] for _ in range(10_000)] == [b"%d" % number for number in range(10_000)]


def test_a_hub_may_be_replaced(link, make_peer):
    """At the same address a second hub hears the peers of the first, under the same identities, and reaches them."""
    address = link.address()
    with closing(link.hub(address)) as (first,):
        peer = make_peer(address)
        identity = met(first, peer)
    with closing(link.hub(address)) as (second,):
        assert met(second, peer) == identity
        assert second.send(identity, [b"welcome back"])
        assert content(received(peer)) == [b"welcome back"]


def test_a_hubs_end_is_complete(link):
    """A successor may bind the moment `close` has returned, ten times at one path and one port."""
    with closing(link.hub("tcp://127.0.0.1:0")) as (first,):
        addresses = [link.address(), *first.addresses]
    for _ in range(10):
        with closing(link.hub(*addresses), *map(link.peer, addresses)) as (hub, *peers):
            assert all(met(hub, peer) for peer in peers)


def test_a_peer_that_does_not_read_is_not_waited_for(link, make_peer):
    """Beyond its backlog a peer is refused whole messages, at once; others go on; what it reads later is complete."""
    address = link.address()
    with closing(link.hub(address, backlog=10)) as (hub,):
        lazy, busy = make_peer(address), make_peer(address)
        identity, other = met(hub, lazy), met(hub, busy)
        frames = [b"envelope", bytes(20_000), b"end"]
        sent = 0
        while hub.send(identity, frames):
            sent += 1
            assert sent < 100_000, "nobody reads and the hub takes all"
        assert hub.send(other, [b"x"])
        assert content(received(busy)) == [b"x"]
        assert {tuple(content(received(lazy))) for _ in range(sent)} == {tuple(frames)}
        assert lazy.receive() is None
        give_up = time.monotonic() + DEADLINE_S
        while not hub.send(identity, [b"again"]):  # room is made known by and by
            assert time.monotonic() < give_up, "the peer has read everything and is still refused"
            hub.pollable.poll(1)
        assert content(received(lazy)) == [b"again"]


def test_a_frame_over_the_limit_is_its_senders_trouble(hub, make_peer):
    """It never arrives and others do not notice; its sender is cut off, comes back and is heard again."""
    liar, other = make_peer(), make_peer()
    met(hub, liar)
    liar.send([b"envelope", bytes(LIMIT + 1)])
    other.send([b"from another"])
    assert content(received(hub)[1]) == [b"from another"]
    give_up = time.monotonic() + DEADLINE_S
    heard = None
    while heard is None:
        assert time.monotonic() < give_up, "the sender was not heard again"
        liar.send([b"small"])
        hub.pollable.poll(20)
        heard = hub.receive()
    assert content(heard[1]) == [b"small"]


def test_a_frame_of_exactly_the_limit_arrives(hub, make_peer):
    """The limit itself is allowed."""
    make_peer().send([bytes(LIMIT)])
    assert len(received(hub)[1][0]) == LIMIT


def test_a_peer_may_have_a_limit_too(hub, make_peer):
    """A frame over a peer's own limit never arrives; the peer does not wait, comes back and is heard again."""
    peer = make_peer(max_frame_bytes=1000)
    identity = met(hub, peer)
    hub.send(identity, [bytes(1001)])
    give_up = time.monotonic() + DEADLINE_S
    while True:  # cut off, it comes back under its name
        assert time.monotonic() < give_up, "the peer did not come back"
        peer.send([b"small"])
        hub.pollable.poll(20)
        if (heard := hub.receive()) is not None:
            break
    assert heard[0] == identity
    assert peer.receive() is None


@pytest.mark.process
def test_close_delivers(link, hub):
    """A process that ends right after `close` leaves nothing of what it sent behind: 900 messages of 60 kB."""
    command = [sys.executable, "-P", "-c", link.sender, hub.addresses[0], "900"]
    with subprocess.Popen(command) as process:
        numbers = [int(bytes(received(hub)[1][0])) for _ in range(900)]
        assert process.wait(DEADLINE_S) == 0
    assert numbers == list(range(900))


def test_close_gives_up_on_nobody(link, make_peer):
    """With no hub there, `close` gives up after a moment, and again is harmless."""
    peer = make_peer(link.address())
    peer.send([b"for nobody"])
    peer.close()
    peer.close()


def test_a_hub_may_be_closed_twice(link):
    """Closing a hub again is harmless."""
    hub = link.hub(link.address())
    hub.close()
    hub.close()


def test_nothing_is_left_open(link):
    """100 peers and 20 hubs, opened and closed, leave as many descriptors as before."""
    address = link.address()
    before = Baseline()
    for _ in range(20):
        with closing(link.hub(address), *(link.peer(address) for _ in range(5))) as (hub, *peers):
            for peer in peers:
                met(hub, peer)
    before.assert_nothing_new()


@pytest.mark.parametrize(
    "address",
    ["", "garbage", "tcp://nohost", "ipc://", "ipc://" + "x" * 200, "udp://127.0.0.1:5", "ipc://\ud800", 7, None],
)
def test_what_is_no_address_is_refused(link, address):
    """A peer says at once, quoting it, that something is no address, and leaves nothing open."""
    before = Baseline()
    with pytest.raises(ConfigError, match="is no address"):
        link.peer(address)
    before.assert_nothing_new()


@pytest.mark.parametrize("address", ["tcp://0.0.0.0:0", "tcp://*:0", "tcp://[::]:0", "tcp://eth0:0", "tipc://{5,0,0}"])
def test_other_hosts_are_kept_out(link, address):
    """A hub listens nowhere that another host may reach, and lets go of the addresses it had already."""
    before = Baseline()
    with pytest.raises(ConfigError, match="reachable from other hosts"):
        link.hub(link.address(), address)
    before.assert_nothing_new()


def test_a_taken_port_is_named(link):
    """A hub that cannot listen says where and why, and leaves nothing open."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        before = Baseline()
        with pytest.raises(ConfigError, match=f"cannot listen on {address}.*in use"):
            link.hub(address)
        before.assert_nothing_new()


def test_a_hub_has_many_addresses(link, make_peer):
    """One hub serves peers at all its addresses, and fills in a port that was left open."""
    with closing(link.hub(link.address(), "tcp://127.0.0.1:0")) as (hub,):
        near, far = hub.addresses
        assert near.startswith("ipc://")
        assert int(far.rsplit(":", 1)[1]) > 0
        for address in (near, far):
            peer = make_peer(address)
            identity = met(hub, peer)
            hub.send(identity, [b"found"])
            assert content(received(peer)) == [b"found"]


@pytest.mark.parametrize("banner", [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\xff" * 64])
def test_something_else_at_the_address_is_never_waited_for(link, make_peer, banner):
    """Where another service answers, nonsense to us, sending goes on without waiting, and so does closing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        peer = make_peer(f"tcp://127.0.0.1:{server.getsockname()[1]}")
        for _ in range(3):
            server.settimeout(0.3)
            with contextlib.suppress(TimeoutError):
                connection, _ = server.accept()
                connection.sendall(banner)
                connection.settimeout(0.3)
                with contextlib.suppress(OSError):
                    while connection.recv(1000):
                        pass
                connection.close()
            for _ in range(10):
                peer.send([b"anybody?"])
        assert peer.receive() is None
        peer.close()


def test_a_socket_left_behind_is_no_hindrance(link, make_peer):
    """The socket file of a hub that was killed does not keep its successor from listening."""
    address = link.address()
    path = Path(address.removeprefix("ipc://"))
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.exists()
    with closing(link.hub(address)) as (hub,):
        assert met(hub, make_peer(address))


def test_descriptors_stay_in_their_process(link, hub, make_peer):
    """Nothing a link opens is inherited by a program that is started meanwhile."""
    met(hub, make_peer())
    inheritable = [fd for fd in os.listdir("/proc/self/fd") if _is_inheritable(int(fd))]
    assert all(int(fd) <= 2 or not _is_socket(int(fd)) for fd in inheritable)


def _is_inheritable(fd):
    try:
        return os.get_inheritable(fd)
    except OSError:  # the listing's own
        return False


def _is_socket(fd):
    return os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
