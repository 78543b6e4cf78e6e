"""What every link promises: each implementation of `links/base.py` passes all of this."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import threading
import time

import pytest

from ..baseline import Baseline
from ..scripted import DEADLINE_S, closing, has_input
from .implementations import IMPLEMENTATIONS, LIMIT, Memory, Seqpacket, ZeroMQ, content


@pytest.fixture(params=IMPLEMENTATIONS, ids=lambda link: link.__name__)
def link(request):
    return request.param()


@pytest.fixture
def real(link):
    """A link between processes."""
    if not link.has_socket:
        pytest.skip("no link between processes")
    return link


@pytest.fixture
def telling(link):
    """A link that tells ends."""
    if not link.tells_ends:
        pytest.skip("this link cannot know")
    return link


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


# -- messages ---------------------------------------------------------------------------------------------------------

MESSAGES = {
    "one frame": [b"a"],
    "an empty frame": [b""],
    "empty frames within": [b"envelope", b"", b"body", b""],
    "nothing but empty frames": [b""] * 4000,
    "every byte": [bytes(range(256)) * 16],
    "one packet of a UNIX socket, and a little": [b"x" * (128 << 10)],
    "large": [b"envelope", bytes(LIMIT // 2), secrets.token_bytes(LIMIT // 2)],
    "several megabytes": [b"envelope", *(secrets.token_bytes(LIMIT) for _ in range(5)), b"end"],
    "many frames": [b"%d" % number for number in range(4000)],
    "many frames and large": [b"%d" % number * 200 for number in range(4000)],
    "other buffers": [bytearray(b"abc"), memoryview(b"abcdef")[1:3], memoryview(bytearray(200_000))],
    "a view of numbers": [memoryview(bytearray(80_000)).cast("d"), memoryview(bytearray(8)).cast("d")],
}


@pytest.mark.parametrize("frames", MESSAGES.values(), ids=MESSAGES.keys())
def test_frames_arrive_as_they_were_sent(link, hub, make_peer, frames):
    """Both ways, a message is the same list of the same bytes, whatever buffers it was sent from."""
    peer = make_peer()
    peer.send(frames)
    identity, there = _received_while(link, hub, peer)
    assert content(there) == content(frames)
    assert hub.send(identity, frames) is True
    assert content(_received_while(link, peer, hub)) == content(frames)


def _received_while(link, end, other):
    """The next message at an end, while the other, in the same thread, goes on sending it."""
    give_up = time.monotonic() + DEADLINE_S
    while (message := link.taken(end)) is None:
        assert time.monotonic() < give_up
        assert link.taken(other) is None
        link.step(end, 1)
    return message


def test_what_was_received_can_be_sent_on(link, hub, make_peer):
    """Frames go on, twice, as they came: the coordinator neither copies a body nor loses it by sending it."""
    sender, reader = make_peer(), make_peer()
    identity = link.met(hub, reader)
    body = secrets.token_bytes(LIMIT)
    sender.send([b"envelope", body])
    _, frames = _received_while(link, hub, sender)
    for _ in range(2):
        assert hub.send(identity, [b"another envelope", *frames[1:]])
        assert content(_received_while(link, reader, hub)) == [b"another envelope", body]


def test_what_was_received_is_the_receivers(link, hub, make_peer):
    """A message stays as it came when others follow, and cannot be written to by who sent it."""
    peer = make_peer()
    source = bytearray(b"a" * 1000)
    peer.send([b"first", source, b"x" * 200_000])
    for number in range(50):
        peer.send([b"%d" % number * 1000])
    _, first = _received_while(link, hub, peer)
    source[:] = b"b" * 1000
    for _ in range(50):
        _received_while(link, hub, peer)
    assert content(first) == [b"first", b"a" * 1000, b"x" * 200_000]


SIZES = [5, 0, 3000, 200_000, 7, 90_000, 60_000, 1]


@pytest.mark.parametrize("last_is_kept_back", [False, True], ids=["then one more", "then flushed"])
@pytest.mark.parametrize("to_hub", [True, False], ids=["to the hub", "to a peer"])
def test_what_is_kept_back_leaves_in_order(link, hub, make_peer, to_hub, last_is_kept_back):
    """With `more`, messages may leave together, and no later than the next one without it, or `flush`."""
    peer = make_peer()
    identity = link.met(hub, peer)
    messages = [[b"%d" % number, bytes(size)] for number, size in enumerate(SIZES * 20)]
    for number, message in enumerate(messages):
        more = last_is_kept_back or number < len(messages) - 1
        if to_hub:
            peer.send(message, more=more)
        else:
            assert hub.send(identity, message, more=more) is True
    sender, receiver = (peer, hub) if to_hub else (hub, peer)
    if last_is_kept_back:
        sender.flush()
    for message in messages:
        received = _received_while(link, receiver, sender)
        assert content(received[1] if to_hub else received) == message


def test_messages_keep_their_order(link, hub, make_peer):
    """5,000 messages of one peer, small and large, arrive once each and in order; so they do from the hub."""
    peer = make_peer()
    identity = link.met(hub, peer)
    messages = [[b"%d" % number, bytes(number % 7 * 50_000 * (number % 50 == 0))] for number in range(5000)]
    for message in messages:
        peer.send(message)
    assert [content(_received_while(link, hub, peer)[1]) for _ in messages] == messages
    for number, message in enumerate(messages[:900]):
        assert hub.send(identity, message), number
    assert [content(_received_while(link, peer, hub)) for _ in messages[:900]] == messages[:900]


def test_receive_does_not_wait(link, hub, make_peer):
    """With nothing there, both ends say None at once."""
    peer = make_peer()
    link.met(hub, peer)
    assert link.taken(hub) is None
    assert link.taken(peer) is None


@pytest.mark.parametrize("side", ["hub", "peer"])
def test_pollables_tell_of_input(real, hub, make_peer, side):
    """A poller wakes when there is something to receive, and not when there is nothing."""
    peer = make_peer()
    identity = real.met(hub, peer)
    end = {"hub": hub, "peer": peer}[side]
    assert end.receive() is None
    assert not has_input(end, 0)
    if side == "hub":
        peer.send([b"x"])
    else:
        hub.send(identity, [b"x"])
    assert has_input(end, DEADLINE_S * 1000)
    real.received(end)
    assert not has_input(end, 0)


def test_sending_from_any_thread(link, hub, make_peer):
    """Where a link lets any thread send, 8 threads with 500 messages each lose none and keep each thread's order."""
    peer = make_peer()
    if not peer.any_thread:
        pytest.skip("this link sends in one thread")
    link.met(hub, peer)
    threads = [
        threading.Thread(target=lambda t=t: [peer.send([b"%d" % t, b"%d" % n, bytes(n % 9 * 300)]) for n in range(500)])
        for t in range(8)
    ]
    for thread in threads:
        thread.start()
    seen = {b"%d" % number: [] for number in range(8)}
    for _ in range(4000):
        _, (thread, number, _) = _received_while(link, hub, peer)
        seen[thread].append(number)
    for thread in threads:
        thread.join(DEADLINE_S)
    assert all(numbers == [b"%d" % n for n in range(500)] for numbers in seen.values())


# -- who is who -------------------------------------------------------------------------------------------------------


def test_peers_are_told_apart(link, hub, make_peer):
    """Each peer has 16 bytes of its own as identity, the same for all its messages, and gets only what is for it."""
    peers = [make_peer() for _ in range(5)]
    identities = [link.met(hub, peer) for peer in peers]
    assert {len(identity) for identity in identities} == {16}
    assert len(set(identities)) == 5
    for number, identity in enumerate(identities):
        hub.send(identity, [b"%d" % number])
    assert [content(link.received(peer)) for peer in peers] == [[b"%d" % number] for number in range(5)]
    assert [link.met(hub, peer) for peer in peers] == identities
    assert all(link.taken(peer) is None for peer in peers)


def test_many_peers(link, hub, make_peer):
    """300 peers at once: each is heard and answered, however loud one of them is."""
    loud, *others = [make_peer() for _ in range(300)]
    for _ in range(900):
        loud.send([b"noise", bytes(1000)])
    for number, peer in enumerate(others):
        peer.send([b"%d" % number])
    heard, noise = {}, 0
    while len(heard) < len(others):
        identity, frames = link.received(hub)
        if frames[0] == b"noise":
            noise += 1
        else:
            heard[bytes(frames[0])] = identity
    for number, identity in heard.items():
        assert hub.send(identity, [b"to", number])
    for number, peer in enumerate(others):
        assert content(link.received(peer)) == [b"to", b"%d" % number]
    for _ in range(900 - noise):
        assert _received_while(link, hub, loud)[1][0] == b"noise"


def test_a_stranger_cannot_be_reached(hub):
    """Sending to an identity that never was says False."""
    assert hub.send(b"\x01" + bytes(15), [b"x"]) is False


# -- peers that go ----------------------------------------------------------------------------------------------------


def test_a_peer_that_left_cannot_be_reached(link, hub, make_peer):
    """Once a peer has closed, sending to it says False."""
    peer = make_peer()
    identity = link.met(hub, peer)
    peer.close()
    link.until(
        lambda: link.taken(hub) in (None, (identity, None)) and not hub.send(identity, [b"x"]),
        hub,
        what="the peer is known to be gone",
    )


def test_w_46_a_peers_end_is_told(telling, hub, make_peer):
    """After all that it sent comes the news that a peer has ended, once; others are not concerned."""
    leaving, staying = make_peer(), make_peer()
    gone, here = telling.met(hub, leaving), telling.met(hub, staying)
    for number in range(100):
        leaving.send([b"%d" % number])
    leaving.close()
    for number in range(100):
        identity, frames = telling.received(hub)
        assert (identity, content(frames)) == (gone, [b"%d" % number])
    assert telling.received(hub) == (gone, None)
    assert telling.taken(hub) is None
    assert not hub.send(gone, [b"x"])
    assert hub.send(here, [b"x"])
    assert telling.met(hub, staying) == here


@pytest.mark.process
@pytest.mark.parametrize("link", [Seqpacket], ids=["Seqpacket"], indirect=True)
def test_a_killed_peers_end_is_told(link, hub):
    """SIGKILL of a peer's process is told after its last message, with no help from it."""
    code = """
import sys, tensoryard.links
peer = tensoryard.links.make_peer(sys.argv[1])
peer.send([b"last words"])
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-P", "-c", code, hub.addresses[0]], stdin=subprocess.PIPE) as process:
        identity, frames = link.received(hub)
        assert content(frames) == [b"last words"]
        process.kill()
        assert link.received(hub) == (identity, None)


# -- hubs that go -----------------------------------------------------------------------------------------------------


def test_a_peer_may_come_first(link, make_peer):
    """A peer made, and sending, before its hub is there loses nothing."""
    address = link.address()
    peer = make_peer(address)
    for number in range(10_000):  # never waits
        peer.send([b"%d" % number])
    with closing(link.hub(address)) as (hub,):
        assert [content(_received_while(link, hub, peer)[1])[0] for _ in range(10_000)] == [
            b"%d" % number for number in range(10_000)
        ]


def test_a_hub_may_be_replaced(link, make_peer):
    """At the same address a second hub hears the peers of the first, under the same identities, and reaches them."""
    address = link.address()
    with closing(link.hub(address)) as (first,):
        peer = make_peer(address)
        identity = link.met(first, peer)
    with closing(link.hub(address)) as (second,):
        peer.send([b"hello again"])
        again, frames = _received_while(link, second, peer)
        assert (again, content(frames)) == (identity, [b"hello again"])
        assert second.send(identity, [b"welcome back"])
        assert content(link.received(peer)) == [b"welcome back"]


def test_a_hubs_end_is_told(telling, make_peer):
    """A peer gets what its hub sent before it went, then knows that there is none, and when there is one again."""
    address = telling.address()
    with closing(telling.hub(address)) as (first,):
        peer = make_peer(address)
        identity = telling.met(first, peer)
        peer.send([b"read by nobody"])
        first.send(identity, [b"goodbye"])
        assert peer.connected
    assert content(telling.received(peer)) == [b"goodbye"]
    telling.until(lambda: telling.taken(peer) is None and not peer.connected, peer, what="the end of the hub")
    with closing(telling.hub(address)):
        telling.until(lambda: telling.taken(peer) is None and peer.connected, peer, what="the next hub")


def test_each_conversation_begins_with_its_opening(link, make_peer):
    """What `opening` makes comes first at every hub that takes another's place; what waited for the last is dropped."""
    address = link.address()
    count = iter(range(100))
    peer = make_peer(address, opening=lambda: [b"hello", b"%d" % next(count)])
    peer.send([b"queued before there was a hub"])
    with closing(link.hub(address)) as (first,):
        assert content(_received_while(link, first, peer)[1]) == [b"hello", b"0"]
        assert content(_received_while(link, first, peer)[1]) == [b"queued before there was a hub"]
        link.met(first, peer)
    link.until(lambda: link.taken(peer) is None and not peer.connected, peer, what="the end of the hub")
    peer.send([b"queued for the first hub"])
    with closing(link.hub(address)) as (second,):
        assert content(_received_while(link, second, peer)[1]) == [b"hello", b"1"]
        peer.send([b"to the second"])
        assert content(_received_while(link, second, peer)[1]) == [b"to the second"]


def test_a_hubs_end_is_complete(link):
    """A successor may bind the moment `close` has returned, ten times at one address."""
    address = link.address()
    for _ in range(10):
        with closing(link.hub(address), link.peer(address)) as (hub, peer):
            assert link.met(hub, peer)


# -- peers that do not read -------------------------------------------------------------------------------------------


def test_a_peer_that_does_not_read_is_not_waited_for(link, make_peer):
    """Beyond its backlog a peer is refused whole messages, at once; what it reads later are whole messages in order.

    Others go on, and it can be reached again, on links that cut it off once it has come back.
    """
    address = link.address()
    with closing(link.hub(address, backlog=10)) as (hub,):
        lazy, busy = make_peer(address), make_peer(address)
        identity, other = link.met(hub, lazy), link.met(hub, busy)
        sent = 0
        while hub.send(identity, [b"%d" % sent, bytes(20_000), b"end"]):
            sent += 1
            assert sent < 100_000, "nobody reads and the hub takes all"
        assert sent >= 10
        assert hub.send(other, [b"x"])
        assert content(link.received(busy)) == [b"x"]
        read = []
        link.until(lambda: _is_back(link, hub, lazy, identity, read), hub, lazy, what="it is reached again")
        while [b"again"] not in read:
            read.append(content(link.received(lazy)))
        read.remove([b"again"])
        assert read == [[b"%d" % number, bytes(20_000), b"end"] for number in range(len(read))]
        assert len(read) == sent or link.tells_ends


def _is_back(link, hub, peer, identity, read):
    """Whether a peer that reads, and speaks up, can be sent to."""
    while (frames := link.taken(peer)) is not None:
        read.append(content(frames))
    peer.send([b"I am back"])
    while (received := link.taken(hub)) is not None:
        assert received[0] == identity
    return hub.send(identity, [b"again"])


def test_a_backlog_counts_bytes(telling, make_peer):
    """What waits for a peer is bounded in bytes too; one message of any size may always wait."""
    address = telling.address()
    with closing(telling.hub(address, backlog=10**6, message_bytes=LIMIT)) as (hub,):
        lazy = make_peer(address)
        identity = telling.met(hub, lazy)
        sent = 0
        while hub.send(identity, [bytes(100_000)]):
            sent += 1
            assert sent < 1000, "nobody reads and the hub takes all"
        assert 10 <= sent <= 30
        assert telling.received(hub) == (identity, None)


def test_a_message_over_the_backlog_in_bytes_may_wait_alone(telling, make_peer):
    """However large a message is, it may be sent to a peer for which nothing waits."""
    address = telling.address()
    with closing(telling.hub(address, message_bytes=1000)) as (hub,):
        peer = make_peer(address)
        identity = telling.met(hub, peer)
        large = secrets.token_bytes(2 * LIMIT)
        assert hub.send(identity, [large])
        assert content(_received_while(telling, peer, hub)) == [large]


# -- limits -----------------------------------------------------------------------------------------------------------


def test_a_frame_over_the_limit_is_its_senders_trouble(link, hub, make_peer):
    """It never arrives and others do not notice; its sender is cut off, comes back and is heard again."""
    liar, other = make_peer(), make_peer()
    identity, bystander = link.met(hub, liar), link.met(hub, other)
    liar.send([b"envelope", bytes(LIMIT + 1)])
    other.send([b"from another"])
    heard = []
    give_up = time.monotonic() + DEADLINE_S
    while (identity, [b"small"]) not in heard:
        assert time.monotonic() < give_up, "the sender was not heard again"
        liar.send([b"small"])
        link.taken(liar)
        link.step(hub, 20)
        while (received := link.taken(hub)) is not None:
            heard.append((received[0], received[1] and content(received[1])))
    assert heard.count((bystander, [b"from another"])) == 1
    assert {sender for sender, _ in heard} == {identity, bystander}
    if link.tells_ends:
        assert heard.index((identity, None)) < heard.index((identity, [b"small"]))


def test_a_frame_of_exactly_the_limit_arrives(link, hub, make_peer):
    """The limit itself is allowed."""
    peer = make_peer()
    peer.send([bytes(LIMIT)])
    assert len(_received_while(link, hub, peer)[1][0]) == LIMIT


def test_a_message_over_the_limit_is_its_senders_trouble(telling, hub, make_peer):
    """A message whose frames are each within the limit, and together are not, cuts its sender off."""
    liar = make_peer()
    identity = telling.met(hub, liar)
    liar.send([bytes(LIMIT)] * 9)
    assert telling.received(hub) == (identity, None)


# -- leaving ----------------------------------------------------------------------------------------------------------

_SENDER = """
import sys, tensoryard.links
peer = getattr(tensoryard.links, sys.argv[1])(sys.argv[2])
for number in range(int(sys.argv[3])):
    peer.send([b"%d" % number, bytes(60_000)])
peer.close()
"""


@pytest.mark.process
def test_close_delivers(real, hub):
    """A process that ends right after `close` leaves nothing of what it sent behind: 900 messages of 60 kB."""
    command = [sys.executable, "-P", "-c", _SENDER, real.peer_class, hub.addresses[0], "900"]
    with subprocess.Popen(command) as process:
        numbers = [int(bytes(real.received(hub)[1][0])) for _ in range(900)]
        assert process.wait(DEADLINE_S) == 0
    assert numbers == list(range(900))


def test_a_closing_hub_delivers(real, make_peer):
    """What a hub has taken for its peers is sent before it goes, when they read."""
    address = real.address()
    with closing(real.hub(address)) as (hub,):
        peer = make_peer(address)
        identity = real.met(hub, peer)
        for number in range(100):
            assert hub.send(identity, [b"%d" % number, bytes(20_000)])
        closer = threading.Thread(target=hub.close)
        closer.start()
        read = [content(real.received(peer))[0] for _ in range(100)]
        closer.join(DEADLINE_S)
    assert read == [b"%d" % number for number in range(100)]


def test_close_gives_up_on_nobody(link, make_peer):
    """With no hub there, `close` gives up after a moment, again is harmless, and sending later is too."""
    peer = make_peer(link.address())
    peer.send([b"for nobody"])
    peer.close()
    peer.close()
    peer.send([b"late"])


def test_a_hub_may_be_closed_twice(link):
    """Closing a hub again is harmless."""
    hub = link.hub(link.address())
    hub.close()
    hub.close()


def test_nothing_is_left_open(link):
    """100 peers and 20 hubs, opened and closed, leave no descriptor open that was not open before."""
    address = link.address()
    before = Baseline()
    for _ in range(20):
        with closing(link.hub(address), *(link.peer(address) for _ in range(5))) as (hub, *peers):
            for peer in peers:
                link.met(hub, peer)
    before.assert_nothing_new()


def test_descriptors_stay_in_their_process(real, hub, make_peer):
    """Nothing a link opens is inherited by a program that is started meanwhile."""
    real.met(hub, make_peer())
    inheritable = [int(fd) for fd in os.listdir("/proc/self/fd") if _is_inheritable(int(fd))]
    assert all(fd <= 2 or not os.readlink(f"/proc/self/fd/{fd}").startswith("socket:") for fd in inheritable)


def _is_inheritable(fd):
    try:
        return os.get_inheritable(fd)
    except OSError:  # the listing's own
        return False


def test_the_suite_runs_on_all():
    """No implementation is forgotten."""
    assert set(IMPLEMENTATIONS) == {ZeroMQ, Seqpacket, Memory}
