"""The links that the conformance suite runs on, and how it waits for messages on each."""

from __future__ import annotations

import itertools
import time

from tensoryard.links import MemoryNetwork, SeqpacketHub, SeqpacketPeer, ZmqHub, ZmqPeer

from ..scripted import DEADLINE_S, fresh_address, has_input

#: The largest frame that hubs of the suite take; a message may have eight of them.
LIMIT = 1 << 20


class Link:
    """How the suite makes the two ends of one implementation; an instance per test."""

    #: Whether a hub is told of a peer's end, and a peer of its hub's.
    tells_ends = True
    #: Whether it has a limit for whole messages, and for what waits for a peer in bytes.
    limits_messages = True
    #: Whether it has a socket that a process may write anything to.
    has_socket = True

    def hub(self, *addresses, backlog=1000, message_bytes=8 * LIMIT):
        raise NotImplementedError

    def peer(self, address, **how):
        raise NotImplementedError

    def address(self):
        raise NotImplementedError

    def step(self, end, wait_ms):
        """Let time pass until there may be input at an end."""
        has_input(end, wait_ms)

    def taken(self, end):
        """The next message or event, or None."""
        return end.receive()

    def received(self, end, seconds=DEADLINE_S):
        """The next message or event; fails when none comes."""
        give_up = time.monotonic() + seconds
        while time.monotonic() < give_up:
            message = self.taken(end)
            if message is not None:
                return message
            self.step(end, 20)
        raise AssertionError(f"no message within {seconds:.0f} s")

    def met(self, hub, peer):
        """The identity of a peer, once the hub has heard from it. Ends of others are passed over."""
        peer.send([b"here I am"])
        give_up = time.monotonic() + DEADLINE_S
        while True:
            assert time.monotonic() < give_up, "the peer was not heard"
            if not peer.connected:
                assert self.taken(peer) is None
            identity, frames = self.taken(hub) or (None, None)
            if frames is not None:
                assert content(frames) == [b"here I am"]
                return identity
            self.step(hub, 5)

    def until(self, condition, *ends, what):
        """Let time pass at these ends until a condition holds."""
        give_up = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < give_up, f"not within {DEADLINE_S:.0f} s: {what}"
            for end in ends:
                self.step(end, 5)


class ZeroMQ(Link):
    """Over an `ipc://` address; `tcp://` is the same code and has tests of its own."""

    tells_ends = limits_messages = False
    #: What another process runs to send ARGV[2] messages and end right after `close`.
    peer_class = "ZmqPeer"

    def hub(self, *addresses, backlog=1000, message_bytes=0):
        return ZmqHub(addresses, max_frame_bytes=LIMIT, peer_backlog=backlog)

    def peer(self, address, **how):
        return ZmqPeer(address, **how)

    def address(self):
        return fresh_address("ipc")


class Seqpacket(Link):
    """Over a `unix://` address."""

    peer_class = "SeqpacketPeer"

    def hub(self, *addresses, backlog=1000, message_bytes=8 * LIMIT):
        return SeqpacketHub(addresses, max_frame_bytes=LIMIT, max_message_bytes=message_bytes, peer_backlog=backlog)

    def peer(self, address, **how):
        return SeqpacketPeer(address, **how)

    def address(self):
        return fresh_address("unix")


class Memory(Link):
    """Without any transport; everything is delivered whenever the test waits."""

    has_socket = False

    def __init__(self):
        self.network = MemoryNetwork()
        self._numbers = itertools.count()

    def hub(self, *addresses, backlog=1000, message_bytes=8 * LIMIT):
        return self.network.hub(addresses, max_frame_bytes=LIMIT, max_message_bytes=message_bytes, peer_backlog=backlog)

    def peer(self, address, **how):
        return self.network.peer(address, **how)

    def address(self):
        return f"memory://{next(self._numbers)}"

    def step(self, end, wait_ms):
        self.network.deliver_all()

    def taken(self, end):
        self.network.deliver_all()
        return end.receive()


IMPLEMENTATIONS = [ZeroMQ, Seqpacket, Memory]


def content(frames):
    """Frames as bytes."""
    return [bytes(frame) for frame in frames]
