"""One connection: messages go whole or wait, and come whole or end it."""

from __future__ import annotations

import socket

import pytest

from tensoryard.links.buffers import Buffers
from tensoryard.links.channel import Channel
from tensoryard.links.framing import PACKET_BYTES, FramingError, Limits
from tensoryard.links.unix_socket import prepared

LIMITS = Limits(64 << 20, 64 << 20)
LARGE = [b"envelope", bytes(range(256)) * (40 << 10), b"end"]  # 10 MiB


@pytest.fixture
def ends():
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    yield [Channel(prepared(sock), LIMITS, Buffers()) for sock in pair]
    for sock in pair:
        sock.close()


@pytest.fixture
def scratch():
    return memoryview(bytearray(PACKET_BYTES))


def content(frames):
    return [bytes(frame) for frame in frames]


def test_a_small_message_is_one_packet(ends, scratch):
    """It leaves in one system call, and comes in one."""
    left, right = ends
    assert left.send([b"a", b"", b"bc"])
    assert right.receive_packet(scratch)[-3:] == b"abc"
    assert right.receive_packet(scratch) is None
    assert left.send([b"a", b"", b"bc"])
    assert content(right.receive(scratch)) == [b"a", b"", b"bc"]
    assert right.receive(scratch) is None


def test_a_large_message_waits_for_room(ends, scratch):
    """What does not fit the socket stays, until `resume` has sent the rest; neither side ever waits."""
    left, right = ends
    assert not left.send(LARGE)
    assert left.sending
    turns = 0
    while (frames := right.receive(scratch)) is None:
        left.resume()
        turns += 1
        assert turns < 10_000
    assert content(frames) == LARGE
    assert not left.sending
    assert left.resume()
    assert left.send([b"next"])
    assert content(right.receive(scratch)) == [b"next"]


def test_a_small_message_may_have_to_wait(ends, scratch):
    """A full socket takes no part of a small message; it leaves whole once there is room."""
    left, right = ends
    sent = 0
    while left.send([b"%d" % sent]):
        sent += 1
        assert sent < 100_000
    assert left.sending
    assert not left.torn
    for number in range(sent):
        assert content(right.receive(scratch)) == [b"%d" % number]
    assert left.resume()
    assert content(right.receive(scratch)) == [b"%d" % sent]


def test_a_message_in_parts_is_torn(ends):
    """It is known whether a part of a message has left; given up, the next begins afresh."""
    left, _ = ends
    left.send(LARGE)
    assert left.torn
    left.drop()
    assert not left.torn
    assert not left.sending


def test_what_was_sent_before_an_end_still_comes(ends, scratch):
    """Though the other end went with our message unread, its own messages come first, then its end of file."""
    left, right = ends
    left.send([b"unread"])
    for number in range(10):
        right.send([b"%d" % number])
    right.sock.close()
    for number in range(10):
        assert content(left.receive(scratch)) == [b"%d" % number]
    with pytest.raises(EOFError):
        left.receive(scratch)
    with pytest.raises(BrokenPipeError):
        left.send([b"x"])


def test_an_end_amid_a_message_is_an_end(ends, scratch):
    """The beginning of a message whose rest never comes is no message."""
    left, right = ends
    left.send(LARGE)
    left.sock.close()
    with pytest.raises(EOFError):
        any(right.receive(scratch) for _ in range(1000))


def test_an_empty_packet_is_an_end(ends, scratch):
    """Nobody sends one; to us it is the same as an end of file."""
    left, right = ends
    left.sock.send(b"")
    with pytest.raises(EOFError):
        right.receive(scratch)


def test_w_41_a_packet_that_is_too_large_breaks_the_framing(ends, scratch):
    """A packet larger than the largest, first of a message or not, is an error, not a message cut short."""
    left, right = ends
    left.sock.send(bytes(PACKET_BYTES + 1))
    with pytest.raises(FramingError, match=f"a packet of {PACKET_BYTES + 1} bytes came where at most {PACKET_BYTES}"):
        right.receive(scratch)


def test_w_41_a_packet_beyond_its_message_breaks_the_framing(ends, scratch):
    """More bytes than a message has left is an error, not the beginning of the next."""
    left, right = ends
    left.sock.send(b"\x01\x00\x00\x00" + (10).to_bytes(8, "little") + b"12345")
    assert right.receive(scratch) is None
    left.sock.send(b"678901")
    with pytest.raises(FramingError, match="a packet of 6 bytes came where at most 5 were due"):
        right.receive(scratch)
