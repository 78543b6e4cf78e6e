"""Who is let in by a hub with keys, and who learns why not; and what happens to connections that break."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time

import pytest

from tensoryard.errors import ConfigError
from tensoryard.links import ZmqHub, ZmqPeer, make_hub, make_peer
from tensoryard.links.address import HubKeys, new_keys, public, with_key

from ..baseline import Baseline
from ..scripted import DEADLINE_S, closing, has_input
from .implementations import content

LIMITS = {"max_frame_bytes": 1 << 20, "peer_backlog": 1000}
OPEN = "tcp://127.0.0.1:0"


@pytest.fixture
def keys():
    return new_keys()


@pytest.fixture
def hub(keys):
    with closing(ZmqHub([OPEN], keys=keys, **LIMITS)) as (hub,):
        yield hub


def heard(hub, *peers):
    """The next message that a hub hears, while these peers are served too."""
    give_up = time.monotonic() + DEADLINE_S
    while time.monotonic() < give_up:
        for peer in peers:
            peer.receive()
        if (message := hub.receive()) is not None:
            return content(message[1])
        has_input(hub, 10)
    raise AssertionError("the hub hears nothing")


def until(condition, *ends):
    give_up = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < give_up
        for end in ends:
            end.receive()
        time.sleep(0.005)


def test_w_56_the_holder_of_an_address_is_let_in(hub, keys):
    """Both ways, whatever its size; and the address that is told holds no secret."""
    (told,) = hub.addresses
    assert told == public(told)
    with closing(ZmqPeer(keys.invitation(told), opening=lambda: [b"hello"])) as (peer,):
        assert heard(hub, peer) == [b"hello"]
        peer.send([b"large", bytes(1 << 20)])
        assert heard(hub, peer) == [b"large", bytes(1 << 20)]
        assert peer.trouble == ""


def addresses_of_strangers(told, keys):
    other = new_keys()
    bare = told.partition("?")[0]
    return {
        "no secret": (told, "does not let us in"),
        "another's secret": (HubKeys(keys.secret, other.client_secret).invitation(told), "does not let us in"),
        "the hub's own public key": (HubKeys(keys.secret, keys.key).invitation(told), "does not let us in"),
        "another hub's key": (other.invitation(with_key(bare, other.key)), "guarded by other keys"),
        "no key": (bare, "guarded by other keys"),
    }


@pytest.mark.case(33)
@pytest.mark.parametrize("who", addresses_of_strangers(f"tcp://x:1?key={'A' * 43}", new_keys()))
def test_w_56_nobody_else_is(hub, keys, who):
    """No word of a stranger reaches the hub; it is told why, and those who are in stay in."""
    (told,) = hub.addresses
    address, why = addresses_of_strangers(told, keys)[who]
    with closing(ZmqPeer(keys.invitation(told)), ZmqPeer(address, opening=lambda: [b"let me in"])) as (
        friend,
        stranger,
    ):
        until(lambda: why in stranger.trouble, stranger, friend)
        stranger.send([b"again"])
        for _ in range(3):
            stranger.receive()
            friend.send([b"still here"])
            assert heard(hub, stranger, friend) == [b"still here"]
        assert not stranger.connected


def test_w_57_between_hosts_nothing_is_open_unsaid():
    """An address that may lead to, or be reached from, other hosts has keys or says `?plain`; else it is refused."""
    before = Baseline()
    with pytest.raises(ConfigError, match="leads to another host and names no key"):
        ZmqPeer("tcp://10.0.0.5:7077")
    with pytest.raises(ConfigError, match="no keys to guard it"):
        ZmqHub(["tcp://0.0.0.0:0"], **LIMITS)
    before.assert_nothing_new()
    with closing(ZmqHub(["tcp://0.0.0.0:0?plain"], **LIMITS)) as (hub,):
        (told,) = hub.addresses
        assert told.endswith("?plain")
        with closing(ZmqPeer(told.replace("0.0.0.0", "127.0.0.1"), opening=lambda: [b"hello"])) as (peer,):
            assert heard(hub, peer) == [b"hello"]


def test_a_coordinator_may_have_all_kinds(keys):
    """With keys every `tcp://` address is guarded but one that says `?plain`; UNIX sockets and paths never are."""
    addresses = [f"{OPEN}?plain", OPEN]
    with closing(make_hub(addresses, max_message_bytes=1 << 22, keys=keys, **LIMITS)) as (hub,):
        plain, guarded = hub.addresses
        for address in (plain, keys.invitation(guarded)):
            with closing(make_peer(address, opening=lambda: [b"hello"])) as (peer,):
                assert heard(hub, peer) == [b"hello"]


class Wire:
    """A stretch of cable between peers and a hub: it can be cut, and can swallow what is sent."""

    def __init__(self, port):
        self._port = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.connections = 0
        self.dead = False
        self._pairs = {}
        self._closing = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        while not self._closing:
            ready, _, _ = select.select([self._server, *self._pairs], [], [], 0.02)
            for end in ready:
                if end is self._server:
                    near = self._server.accept()[0]
                    far = socket.create_connection(("127.0.0.1", self._port))
                    self._pairs |= {near: far, far: near}
                    self.connections += 1
                elif end in self._pairs:
                    self._pass_on(end)

    def _pass_on(self, end):
        with contextlib.suppress(OSError):
            data = end.recv(1 << 16)
            if not data:
                self._end(end)
            elif not self.dead:
                self._pairs[end].sendall(data)

    def _end(self, end):
        for one in (end, self._pairs.pop(end)):
            self._pairs.pop(one, None)
            one.close()

    def cut(self):
        for end in list(self._pairs):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self):
        self._closing = True
        self._thread.join(DEADLINE_S)
        for end in [self._server, *self._pairs]:
            end.close()


@pytest.fixture
def cable(hub):
    port = int(hub.addresses[0].partition("?")[0].rpartition(":")[2])
    with contextlib.closing(Wire(port)) as cable:
        yield cable


def through(cable, keys, **how):
    count = iter(range(100))
    address = keys.invitation(with_key(f"tcp://127.0.0.1:{cable.port}", keys.key))
    return ZmqPeer(address, opening=lambda: [b"hello", b"%d" % next(count)], **how)


def test_w_58_a_connection_that_broke_begins_anew(hub, keys, cable):
    """While both ends live: the peer says its first word again, before anything else, and under the same identity."""
    with closing(through(cable, keys)) as (peer,):
        assert heard(hub, peer) == [b"hello", b"0"]
        cable.cut()
        until(lambda: not peer.connected, peer)
        peer.send([b"for the connection that broke"])
        assert heard(hub, peer) == [b"hello", b"1"]
        peer.send([b"after it"])
        assert heard(hub, peer) == [b"after it"]


def test_w_58_a_silent_connection_has_ended(hub, keys, cable):
    """A cable that swallows everything and tells nobody: after `silence_s` the peer tries another, and is heard."""
    with closing(through(cable, keys, silence_s=0.5)) as (peer,):
        assert heard(hub, peer) == [b"hello", b"0"]
        until(lambda: cable.connections == 1, peer)
        cable.dead = True
        until(lambda: not peer.connected, peer)
        cable.dead = False
        until(lambda: peer.connected, peer)
        while (word := heard(hub, peer)) != [b"hello", b"1"]:
            assert word == [b"hello", b"0"]
        assert cable.connections > 1


def test_a_connection_on_which_nothing_is_said_stays(hub, keys, cable):
    """ZeroMQ asks by itself whether the other side is there: an owner that says nothing loses nothing."""
    with closing(through(cable, keys, silence_s=0.2)) as (peer,):
        assert heard(hub, peer) == [b"hello", b"0"]
        began = time.monotonic()
        until(lambda: time.monotonic() - began > 1.0, peer)
        assert (peer.connected, cable.connections) == (True, 1)
