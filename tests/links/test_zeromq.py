"""What is ZeroMQ's own: its addresses, other hosts, and others' services. The rest is `test_conformance.py`."""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path

import pytest

from tensoryard.errors import ConfigError

from ..baseline import Baseline
from ..scripted import DEADLINE_S, closing, has_input
from .implementations import ZeroMQ, content


@pytest.fixture
def link():
    return ZeroMQ()


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


def test_a_peer_may_have_a_limit_too(link, hub, make_peer):
    """A frame over a peer's own limit never arrives; the peer does not wait, comes back and is heard again."""
    peer = make_peer(max_frame_bytes=1000)
    identity = link.met(hub, peer)
    hub.send(identity, [bytes(1001)])
    give_up = time.monotonic() + DEADLINE_S
    while True:  # cut off, it comes back under its name
        assert time.monotonic() < give_up, "the peer did not come back"
        assert peer.receive() is None
        peer.send([b"small"])
        has_input(hub, 20)
        if (heard := hub.receive()) is not None:
            break
    assert heard[0] == identity
    assert peer.receive() is None


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


@pytest.mark.case(23)
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
            identity = link.met(hub, peer)
            hub.send(identity, [b"found"])
            assert content(link.received(peer)) == [b"found"]


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
        assert link.met(hub, make_peer(address))


def test_a_hubs_end_is_complete(link):
    """A successor may bind the moment `close` has returned, ten times at one path and one port."""
    with closing(link.hub("tcp://127.0.0.1:0")) as (first,):
        addresses = [link.address(), *first.addresses]
    for _ in range(10):
        with closing(link.hub(*addresses), *map(link.peer, addresses)) as (hub, *peers):
            assert all(link.met(hub, peer) for peer in peers)
