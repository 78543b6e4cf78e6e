"""What the hub of the UNIX link alone promises; the rest is `test_conformance.py`."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tensoryard.links.framing import MAX_FRAMES, PACKET_BYTES, greeting
from tensoryard.links.seqpacket_hub import SeqpacketHub

from ..baseline import Baseline
from ..scripted import DEADLINE_S, closing, fresh_address, has_input
from .implementations import LIMIT, Seqpacket, content


@pytest.fixture
def link():
    return Seqpacket()


def path_of(hub):
    return Path(hub.addresses[0].removeprefix("unix://"))


@pytest.fixture
def stranger(hub):
    """A bare socket that is connected to the hub."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(str(path_of(hub)))
        sock.settimeout(DEADLINE_S)
        yield sock


def is_cut_off(sock):
    """Whether its end of file has come."""
    try:
        return sock.recv(100) == b""
    except ConnectionResetError:  # with something of ours unread
        return True


NAME = bytes(range(16))
GARBAGE = {
    "no greeting": [b"GET / HTTP/1.1\r\n\r\n"],
    "an empty packet": [b""],
    "another version": [b"tyard\x00\x00\x01" + NAME],
    "random": [os.urandom(1000)],
    "a greeting too large": [bytes(PACKET_BYTES + 1)],
    "text after the greeting": [greeting(NAME), b"GET / HTTP/1.1\r\n\r\n"],
    "no frames": [greeting(NAME), b"\x00\x00\x00\x00"],
    "too many frames": [greeting(NAME), struct.pack(f"<I{MAX_FRAMES + 1}Q", MAX_FRAMES + 1, *[0] * (MAX_FRAMES + 1))],
    "a frame of 2^63": [greeting(NAME), struct.pack("<IQ", 1, 1 << 63)],
    "a frame over the limit": [greeting(NAME), struct.pack("<IQ", 1, LIMIT + 1)],
    "a message over the limit": [greeting(NAME), struct.pack("<I9Q", 9, *[LIMIT] * 9)],
    "more than announced": [greeting(NAME), struct.pack("<IQ", 1, 2) + b"123"],
    "more in the next packet": [greeting(NAME), struct.pack("<IQ", 1, 4) + b"123", b"45"],
    "an empty packet amid a message": [greeting(NAME), struct.pack("<IQ", 1, 4) + b"123", b""],
    "a packet too large": [greeting(NAME), bytes(PACKET_BYTES + 1)],
}


@pytest.mark.parametrize("packets", GARBAGE.values(), ids=GARBAGE.keys())
def test_w_42_garbage_costs_only_its_sender(link, hub, make_peer, stranger, packets):
    """Who breaks the framing, or announces too much, is cut off, and told to be gone; nobody else notices."""
    peer = make_peer()
    identity = link.met(hub, peer)
    for packet in packets:
        stranger.send(packet)
    peer.send([b"from another"])
    events = []
    while (identity, [b"from another"]) not in events:
        sender, frames = link.received(hub)
        events.append((sender, frames and content(frames)))
    while has_input(hub, 0):
        sender, frames = hub.receive() or (identity, None)
        events.append((sender, frames and content(frames)))
    assert is_cut_off(stranger)
    assert [frames for sender, frames in events if sender == NAME] == [None] * (packets[0] == greeting(NAME))
    assert hub.send(identity, [b"x"])
    assert content(link.received(peer)) == [b"x"]
    assert not hub.send(NAME, [b"x"])


def test_w_42_a_frame_over_the_limit_is_not_waited_for(link, hub, stranger):
    """It is enough to announce it: nothing of it is received."""
    stranger.send(greeting(NAME))
    stranger.send(struct.pack("<IQ", 1, 1 << 40))
    assert link.received(hub) == (NAME, None)
    assert hub.cut_off == 1


def test_garbage_does_not_fill_the_log(link, hub, caplog):
    """Those that are cut off are counted for ever and logged a hundred times."""
    for _ in range(150):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.connect(str(path_of(hub)))
            sock.send(b"garbage")
            seen = hub.cut_off
            link.until(lambda n=seen: hub.receive() is None and hub.cut_off > n, hub, what="it is cut off")
    assert hub.cut_off == 150
    assert len([record for record in caplog.records if "is cut off" in record.message]) == 100


def test_one_descriptor_for_all(hub, make_peer):
    """However many peers there are, a poller has one thing to look at."""
    for _ in range(20):
        make_peer()
    assert len(hub.pollables) == 1


def test_w_44_who_connects_anew_ends_first(link, hub, make_peer):
    """One that connects again under its name: all that it said before comes first, then its end, then what is new."""
    peer = make_peer()
    identity = link.met(hub, peer)
    for number in range(50):
        peer.send([b"before %d" % number])
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as again:
        again.connect(str(path_of(hub)))
        again.send(greeting(identity))
        again.send(struct.pack("<IQ", 1, 5) + b"after")
        heard = []
        while (identity, [b"after"]) not in heard:
            sender, frames = link.received(hub)
            heard.append((sender, frames and content(frames)))
        assert heard == [
            *((identity, [b"before %d" % number]) for number in range(50)),
            (identity, None),
            (identity, [b"after"]),
        ]
        again.settimeout(DEADLINE_S)
        assert hub.send(identity, [b"to the later"])
        assert again.recv(100).endswith(b"to the later")
    assert link.received(hub) == (identity, None)


def test_of_many_that_connect_anew_the_last_stays(link, hub, make_peer):
    """Connections of one name in a row end in their order, each once at most, and the last one serves."""
    identity = link.met(hub, make_peer())
    socks = []
    for number in range(5):
        socks.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        socks[-1].connect(str(path_of(hub)))
        socks[-1].send(greeting(identity))
        socks[-1].send(struct.pack("<IQ", 1, 1) + b"%d" % number)
    heard = []
    while (identity, [b"4"]) not in heard:
        sender, frames = link.received(hub)
        heard.append((sender, frames and content(frames)))
    assert heard[-2] == (identity, None)
    assert all(before != after for before, after in itertools.pairwise(heard))
    assert hub.send(identity, [b"x"])
    socks[-1].settimeout(DEADLINE_S)
    assert socks[-1].recv(100).endswith(b"x")
    for sock in socks:
        sock.close()


def test_a_loud_peer_starves_nobody(link, hub, make_peer):
    """While one peer has more to say than is ever read, another is heard after at most two of its messages."""
    loud, quiet = make_peer(), make_peer()
    noisy, other = link.met(hub, loud), link.met(hub, quiet)
    over = threading.Event()

    def shout():
        while not over.is_set():
            loud.send([b"noise"])
            if len(loud._queue) > 1000:
                over.wait(0.01)

    thread = threading.Thread(target=shout)
    thread.start()
    try:
        link.until(lambda: len(loud._queue) > 100, quiet, what="more noise than the socket holds")
        for _ in range(50):
            quiet.send([b"help"])
            before = 0
            while link.received(hub)[0] != other:
                before += 1
            assert before <= 2
    finally:
        over.set()
        thread.join(DEADLINE_S)
    assert noisy != other


def test_a_large_message_does_not_hold_up_the_owner(link, make_peer):
    """`receive` returns to its owner now and then, however much of large messages there is to take."""
    address = link.address()
    with closing(SeqpacketHub([address], max_frame_bytes=1 << 30, max_message_bytes=1 << 30, peer_backlog=10)) as (
        hub,
    ):
        peer = make_peer(address)
        thread = threading.Thread(target=lambda: [peer.send([bytes(64 << 20)]), _pump(peer, over)])
        over = threading.Event()
        thread.start()
        returns = 0
        while (received := hub.receive()) is None:
            returns += has_input(hub, 20)
        over.set()
        thread.join(DEADLINE_S)
    assert len(received[1][0]) == 64 << 20
    assert returns >= 2


def _pump(peer, over):
    while not over.is_set():
        peer.receive()
        has_input(peer, 5)


def test_w_45_a_peer_that_does_not_read_is_cut_off(link, make_peer, caplog):
    """Beyond its backlog it is cut off: its memory is free at once, its last words are heard, and it may come back."""
    address = link.address()
    with closing(link.hub(address, backlog=10)) as (hub,):
        lazy = make_peer(address)
        identity = link.met(hub, lazy)
        lazy.send([b"last words"])
        sent = 0
        while hub.send(identity, [bytes(20_000)]):
            sent += 1
        lazy.send([b"on a connection that is over"])
        assert content(link.received(hub)[1]) == [b"last words"]
        assert link.received(hub) == (identity, None)
        assert "10 messages, 200000 bytes, wait for it" in caplog.text
        read = 0
        while (frames := lazy.receive()) is not None:
            read += 1
            assert content(frames) == [bytes(20_000)]
        assert 0 < read < sent
        link.until(lambda: lazy.receive() is None and has_input(hub, 0), lazy, what="it is back")
        sender, frames = link.received(hub)
        assert (sender, content(frames)) == (identity, [b"on a connection that is over"])
        assert link.met(hub, lazy) == identity


@pytest.mark.process
def test_a_frozen_peer_is_not_gone(link, hub):
    """A process that is stopped has no end of file: it is for heartbeats to find out."""
    code = "import sys, tensoryard.links as l; p = l.make_peer(sys.argv[1]); p.send([b'x']); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-P", "-c", code, hub.addresses[0]], stdin=subprocess.PIPE) as process:
        identity, _ = link.received(hub)
        process.send_signal(signal.SIGSTOP)
        assert hub.send(identity, [b"still reachable"])
        assert hub.receive() is None
        process.kill()
        assert link.received(hub) == (identity, None)


_FORKING = """
import os, sys, time
from tensoryard.links import make_hub, make_peer
hub = make_hub([sys.argv[1]], max_frame_bytes=1000, max_message_bytes=1000, peer_backlog=10)
peer = make_peer(sys.argv[1])
peer.send([b"x"])
while (received := hub.receive()) is None:
    pass
child = os.fork()
if child == 0:
    peer.send([b"not in the parent's name"])
    peer.close()
    hub.close()
    sys.stdin.read()
    os._exit(0)
peer.send([b"y"])
while (received := hub.receive()) is None:
    pass
print(bytes(received[1][0]).decode(), flush=True)
peer.close()
while (received := hub.receive()) is None:
    pass
print(received[1], flush=True)
print(os.path.exists(sys.argv[1].removeprefix("unix://")), flush=True)
hub.close()
"""


@pytest.mark.process
def test_a_forked_child_keeps_nothing(link):
    """A child made by fork neither speaks for its parent nor keeps its connections alive, nor closes its hub."""
    command = [sys.executable, "-P", "-c", _FORKING, link.address()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert [process.stdout.readline() for _ in range(3)] == [b"y\n", b"None\n", b"True\n"]
        process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0


def test_a_hub_that_cannot_be_leaves_nothing(link):
    """When the second of two addresses cannot be had, the first is free again and nothing stays open."""
    address = link.address()
    before = Baseline()
    with pytest.raises(Exception, match="is no address"):
        link.hub(address, "unix://relative")
    before.assert_nothing_new()
    with closing(link.hub(address)) as (hub,):
        assert list(hub.addresses) == [address]


def test_a_hub_has_many_addresses(link, make_peer):
    """One hub serves peers at all its addresses."""
    with closing(link.hub(link.address(), link.address())) as (hub,):
        for address in hub.addresses:
            peer = make_peer(address)
            identity = link.met(hub, peer)
            hub.send(identity, [b"found"])
            assert content(link.received(peer)) == [b"found"]


def test_what_nobody_takes_is_not_waited_for_long(link):
    """A hub that closes with messages for peers that do not read ends all the same."""
    address = fresh_address()
    with closing(link.peer(address)) as (peer,):
        hub = link.hub(address)
        identity = link.met(hub, peer)
        for _ in range(100):
            hub.send(identity, [bytes(20_000)])
        began = time.monotonic()
        hub.close()
        assert time.monotonic() - began >= 0.4, "it was given a chance"
        assert content(peer.receive()) == [bytes(20_000)]


def together(peer, messages):
    """Sent as one packet, as far as they fit."""
    for message in messages:
        peer.send(message, more=True)
    peer.flush()


def test_all_that_came_is_given_before_none(link, hub, make_peer):
    """Messages of one packet come one by one, and `receive` says None only when nothing is left."""
    peer, other = make_peer(), make_peer()
    link.met(hub, other)
    identity = link.met(hub, peer)
    together(peer, [[b"%d" % number] for number in range(300)])
    found = [link.received(hub)]
    while (received := hub.receive()) is not None:
        found.append(received)
    assert found == [(identity, [b"%d" % number]) for number in range(300)]


def test_a_packet_of_many_messages_is_not_read_to_its_end_before_others_are_heard(link, hub, make_peer):
    """Two peers that send whole packets at a time are heard in turns."""
    names = {link.met(hub, peer): peer for peer in (make_peer(), make_peer())}
    for peer in names.values():
        together(peer, [[b"%d" % number] for number in range(300)])
    senders = [link.received(hub)[0] for _ in range(600)]
    assert set(senders[:100]) == set(senders[-300:-200]) | set(names)


def test_a_peer_that_ends_with_messages_unread_is_heard_first(link, hub, make_peer):
    """Its end comes behind all messages of its last packet."""
    peer = make_peer()
    identity = link.met(hub, peer)
    together(peer, [[b"%d" % number] for number in range(50)])
    peer.close()
    found = [link.received(hub) for _ in range(51)]
    assert found == [*((identity, [b"%d" % number]) for number in range(50)), (identity, None)]


def test_what_is_kept_back_has_a_bound(link, hub, make_peer):
    """A packet full leaves by itself, flushed or not."""
    peer = make_peer()
    identity = link.met(hub, peer)
    for number in range(1000):
        assert hub.send(identity, [b"%d" % number], more=True)
    assert content(link.received(peer)) == [b"0"]


def test_what_is_kept_back_for_one_that_goes_is_dropped(link, hub, make_peer):
    """Its end is told, and `flush` finds nothing to do."""
    peer = make_peer()
    identity = link.met(hub, peer)
    assert hub.send(identity, [b"never read"], more=True)
    peer.close()
    assert link.received(hub) == (identity, None)
    hub.flush()
    assert hub.send(identity, [b"late"]) is False
