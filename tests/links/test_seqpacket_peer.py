"""What a peer of the UNIX link alone promises; the rest is `test_conformance.py`."""

from __future__ import annotations

import gc
import logging
import os
import socket
import struct
import threading
import time
from pathlib import Path

import pytest

from tensoryard.errors import ConfigError
from tensoryard.links.seqpacket_peer import SeqpacketPeer

from ..baseline import Baseline
from ..scripted import DEADLINE_S, closing, fresh_address, has_input
from .implementations import Seqpacket, content


@pytest.fixture
def link():
    return Seqpacket()


@pytest.fixture
def address(link):
    return link.address()


@pytest.fixture
def make_peer(link, address):
    peers = []

    def make(**how):
        peers.append(link.peer(address, **how))
        return peers[-1]

    yield make
    for peer in peers:
        peer.close()


@pytest.fixture
def service(address):
    """A listening socket at the address that is no hub."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address.removeprefix("unix://"))
        listener.listen()
        listener.settimeout(DEADLINE_S)
        yield listener


@pytest.mark.parametrize("address", ["unix://", "unix://relative", "unix:///" + "x" * 200, "garbage", 7])
def test_what_is_no_address_is_refused(address):
    """A peer says at once, quoting it, that something is no address, and leaves nothing open."""
    before = Baseline()
    with pytest.raises(ConfigError, match="is no address"):
        SeqpacketPeer(address)
    before.assert_nothing_new()


def test_a_connected_peer_needs_no_clock(link, address, make_peer):
    """With a hub there is nothing to try; without one, the next try is due soon, later each time."""
    peer = make_peer()
    assert not peer.connected
    for least in (0.02, 0.04, 0.08, 0.16, 0.25, 0.25):
        link.until(lambda: time.monotonic() >= peer.next_try(), peer, what="the next try")
        before = time.monotonic()
        assert peer.receive() is None
        assert peer.next_try() - before >= least
    assert peer._pause_s == 0.25
    with closing(link.hub(address)) as (hub,):
        link.met(hub, peer)
        assert peer.connected
        assert peer.next_try() == float("inf")


NONSENSE = [b"\x00" * 4, b"SSH-2.0-OpenSSH_9.2\r\n", struct.pack("<IQ", 1, 1 << 62), bytes(200_000)]


@pytest.mark.parametrize("banner", NONSENSE, ids=["no frames", "text", "too much", "too large"])
def test_something_else_at_the_address_is_never_waited_for(service, make_peer, caplog, banner):
    """Where another service answers, nonsense to us, the peer leaves it, says so once, and tries again later."""
    peer = make_peer()
    for _ in range(3):
        give_up = time.monotonic() + DEADLINE_S
        service.setblocking(False)
        while True:
            try:
                connection, _ = service.accept()
                break
            except BlockingIOError:
                assert time.monotonic() < give_up
                peer.receive()
                has_input(peer, 5)
        connection.send(banner)
        for _ in range(10):
            peer.send([b"anybody?"])
        while peer.connected:
            assert time.monotonic() < give_up
            assert peer.receive() is None
        connection.close()
    assert [record.levelno for record in caplog.records if "was left" in record.message] == [logging.WARNING]


def test_a_peer_may_have_a_limit(link, address, make_peer):
    """A frame over a peer's own limit never arrives; the peer comes back under its name and is heard again."""
    with closing(link.hub(address)) as (hub,):
        peer = make_peer(max_frame_bytes=1000)
        identity = link.met(hub, peer)
        hub.send(identity, [bytes(1001)])
        link.until(lambda: peer.receive() is None and not peer.connected, peer, what="it has left")
        assert link.received(hub) == (identity, None)
        assert link.met(hub, peer) == identity
        hub.send(identity, [bytes(1000)])
        assert content(link.received(peer)) == [bytes(1000)]


def test_a_torn_message_is_not_sent_again(link, address, make_peer):
    """A large message that was cut short by the end of a connection is lost with it; the next one is not."""
    with closing(link.hub(address)) as (first,):
        peer = make_peer()
        link.met(first, peer)
        peer.send([bytes(1 << 20)])
        peer.send([b"next"])
    with closing(link.hub(address)) as (second,):
        link.until(lambda: peer.receive() is None and has_input(second, 0), peer, what="it is back")
        assert content(link.received(second)[1]) == [b"next"]


class Dying:
    """Sends a message when it is collected, wherever that may be."""

    def __init__(self, peer):
        self.peer = peer
        self.me = self

    def __del__(self):
        self.peer.send([b"from a finalizer"])


def test_a_finalizer_may_send_amid_sending(link, address, make_peer):
    """Garbage that is collected while a message is being sent, and sends too, neither waits nor is lost."""
    with closing(link.hub(address)) as (hub,):
        peer = make_peer()
        link.met(hub, peer)
        flush = peer._flush

        def collecting():
            Dying(peer)
            gc.collect()
            flush()

        peer._flush = collecting
        peer.send([b"first"])
        peer._flush = flush
        assert content(link.received(hub)[1]) == [b"first"]
        assert content(link.received(hub)[1]) == [b"from a finalizer"]


def test_sending_wakes_nobody(link, address, make_peer):
    """A message leaves from the thread that sends it, while the link's own thread does nothing."""
    with closing(link.hub(address)) as (hub,):
        peer = make_peer()
        identity = link.met(hub, peer)
        thread = threading.Thread(target=peer.send, args=([b"from aside"],))
        thread.start()
        thread.join(DEADLINE_S)
        sender, frames = link.received(hub)
        assert (sender, content(frames)) == (identity, [b"from aside"])


def test_what_does_not_fit_is_sent_by_the_links_own_thread(link, address, make_peer):
    """Messages of other threads that found the socket full leave when the own thread sees that there is room."""
    with closing(link.hub(address)) as (hub,):
        peer = make_peer()
        link.met(hub, peer)
        thread = threading.Thread(target=lambda: [peer.send([b"%d" % number, bytes(20_000)]) for number in range(200)])
        thread.start()
        thread.join(DEADLINE_S)
        assert peer._queue
        assert not has_input(peer, 0)
        numbers = []
        while len(numbers) < 200:
            if (received := hub.receive()) is not None:
                numbers.append(int(bytes(received[1][0])))
            elif has_input(peer, 5):
                assert peer.receive() is None
        assert numbers == list(range(200))


def test_many_peers_of_one_process_close_quickly(link, address):
    """With no hub there, 50 peers are closed without waiting for each."""
    peers = [link.peer(address) for _ in range(50)]
    for peer in peers:
        peer.send([b"for nobody"])
        peer.close()
    assert not [peer for peer in peers if peer.connected]


def test_it_is_known_in_its_folder(address, make_peer):
    """The address is a path, in a folder that only this user may look into."""
    make_peer()
    assert os.stat(Path(address.removeprefix("unix://")).parent).st_mode & 0o077 == 0
    assert fresh_address() != address


def test_all_that_has_come_is_given_out(link, address, make_peer):
    """None means that nothing is left, not that a packet is: who makes batches of what has come makes them whole."""
    peer = make_peer()
    with closing(link.hub(address)) as (hub,):
        identity = link.met(hub, peer)
        messages = [[b"%d" % number] for number in range(5)]
        for message in messages:
            assert hub.send(identity, message)
        assert [peer.receive() for _ in messages] == messages
        assert peer.receive() is None
