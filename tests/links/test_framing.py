"""How messages lie in packets: what is announced is what comes, and what is announced wrongly costs nothing."""

from __future__ import annotations

import itertools
import struct
import tracemalloc
from collections import deque
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensoryard.links import framing
from tensoryard.links.buffers import Buffers
from tensoryard.links.framing import (
    MAX_FRAMES,
    PACKET_BYTES,
    Assembly,
    FramingError,
    Limits,
    greeting,
    header_of,
    kept,
    open_packet,
    packets,
    read_greeting,
    sizes_of,
    take_together,
)

LIMITS = Limits(1 << 20, 4 << 20)
#: Of nothing.
MOST = Limits(float("inf"), float("inf"))
BUFFERS = Buffers()


def packed(frames):
    """A message's packets, as bytes."""
    return [b"".join(packet) for packet in packets(header_of(sizes_of(frames)), frames)]


def only(opened):
    """The one message of a packet, or its beginning."""
    if isinstance(opened, Assembly):
        return opened
    (message,) = opened
    return message


def unpacked(data, limits=LIMITS):
    """The message in packets; also says how many of them it took."""
    first, *rest = data
    message = only(open_packet(memoryview(first), limits, BUFFERS))
    for packet in rest:
        assert isinstance(message, Assembly), "it was complete before its last packet"
        message.rest[: len(packet)] = packet
        message = message.add(len(packet)) or message
    assert not isinstance(message, Assembly), "it is not complete"
    return [bytes(frame) for frame in message]


def test_w_40_a_greeting_is_a_name():
    """The first packet of a connection is 8 fixed bytes and an identity of 16."""
    identity = bytes(range(16))
    assert greeting(identity) == b"tyard\x00\x00\x02" + identity
    assert read_greeting(memoryview(greeting(identity))) == identity


@pytest.mark.parametrize(
    "packet",
    [b"", b"x", b"tyard\x00\x00\x01" + bytes(16), b"tyard\x00\x00\x02" + bytes(15), b"tyard\x00\x00\x02" + bytes(17)],
    ids=["nothing", "other", "another version", "too short", "too long"],
)
def test_w_40_anything_else_is_no_greeting(packet):
    """Another framing, another version of it, or another length, is refused."""
    with pytest.raises(FramingError, match="its greeting is not"):
        read_greeting(memoryview(packet))


def test_w_41_a_message_is_its_sizes_and_its_bytes():
    """The number of frames, the size of each, then their bytes, little-endian, as docs/spec/wire.md shows them."""
    (packet,) = packed([b"ab", b"", b"c"])
    lines = [f"    {packet[start : start + 16].hex(' ')}" for start in (0, 16)]
    assert "\n".join(lines) in (Path(__file__).parents[2] / "docs" / "spec" / "wire.md").read_text()
    assert [packet] == [bytes.fromhex("03000000 0200000000000000 0000000000000000 0100000000000000") + b"abc"]


@given(st.lists(st.binary(max_size=100), min_size=1, max_size=20))
def test_w_41_small_messages_are_one_packet(frames):
    """Whatever small frames a message has, one packet takes them there and they come out as they were."""
    (packet,) = packed(frames)
    assert unpacked([packet]) == frames


@given(st.lists(st.integers(0, 300_000), min_size=1, max_size=12).filter(lambda sizes: sum(sizes) < 4 << 20))
def test_w_41_large_messages_are_cut_where_packets_are_full(sizes):
    """A large message is full packets and a last one; none is empty, none too large, and all of it comes out."""
    frames = [bytes([number]) * size for number, size in enumerate(sizes)]
    parts = packed(frames)
    assert all(len(part) == PACKET_BYTES for part in parts[:-1])
    assert 0 < len(parts[-1]) <= PACKET_BYTES
    assert unpacked(parts) == frames


@pytest.mark.parametrize("count", [1, 8, 9, 999, 1000, 1001, 2500, MAX_FRAMES])
@pytest.mark.parametrize("size", [0, 1, 100])
def test_w_41_any_number_of_frames(count, size):
    """However many frames there are, no packet is empty, none has more buffers than a system call takes."""
    frames = [b"x" * size] * count
    cut = list(packets(header_of(sizes_of(frames)), frames))
    assert max(map(len, cut)) <= 1000
    assert all(sum(map(len, packet)) for packet in cut)
    assert unpacked(packed(frames)) == frames


def test_no_byte_is_copied_to_send():
    """The packets of a large message are views of its frames."""
    frame = bytearray(3 * PACKET_BYTES)
    cut = list(packets(header_of([len(frame)]), [frame]))
    frame[:] = b"x" * len(frame)
    assert b"".join(view for packet in cut for view in packet)[12:] == frame


def test_what_waits_is_the_links_own():
    """Small buffers that their owner may change are copied to wait, bytes and large ones are not."""
    small, large, fixed = bytearray(b"small"), bytearray(64 << 10), b"bytes"
    waiting = kept([small, large, fixed])
    small[:] = b"other"
    header, frames, total = waiting
    assert header == header_of(sizes_of(frames))
    assert total == sum(sizes_of(frames))
    assert frames == [b"small", large, b"bytes"]
    assert frames[1] is large
    assert frames[2] is fixed


@pytest.mark.parametrize("count", [0, MAX_FRAMES + 1])
def test_w_42_a_message_that_no_link_takes_is_not_sent(count):
    """No frames, or too many, are a bug of the sender and said to be."""
    with pytest.raises(ValueError, match=f"a message has 1 to {MAX_FRAMES} frames, not {count}"):
        header_of([1] * count)


def announced(*sizes, count=None, more=b""):
    return memoryview(struct.pack(f"<I{len(sizes)}Q", len(sizes) if count is None else count, *sizes) + more)


WRONG = {
    "nothing": memoryview(b""),
    "3 bytes": memoryview(b"\x01\x00\x00"),
    "no frames": announced(),
    "too many frames": announced(*[0] * (MAX_FRAMES + 1)),
    "more sizes than there are": announced(1, 2, count=3),
    "4 billion frames": announced(1, count=0xFFFFFFFF),
    "a frame over the limit": announced((1 << 20) + 1),
    "a message over the limit": announced(*[1 << 20] * 5),
    "sizes whose sum would overflow": announced(*[(1 << 64) - 1] * 3),
    "more bytes than announced": announced(2, more=b"abc"),
    "bytes of no frame": announced(0, more=b"a"),
    "text": memoryview(b"GET / HTTP/1.1\r\n\r\n"),
}


@pytest.mark.parametrize("packet", WRONG.values(), ids=WRONG.keys())
def test_w_42_what_cannot_be_costs_no_memory(packet):
    """What breaks the framing, or goes over a limit, is refused before memory is taken for it."""
    tracemalloc.start()
    try:
        with pytest.raises(FramingError):
            open_packet(packet, LIMITS, BUFFERS)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_w_42_the_limits_themselves_are_allowed():
    """Frames and messages of exactly the limit are taken."""
    frames = [bytes(1 << 20)] * 4
    assert unpacked(packed(frames)) == frames


def test_more_than_there_is_memory_for_is_refused():
    """Where nothing limits a message, one that no machine can hold is refused like any other."""
    with pytest.raises(FramingError, match="there is no memory"):
        open_packet(announced(1 << 62), Limits(float("inf"), float("inf")), BUFFERS)


@given(st.binary(max_size=200))
def test_w_42_any_bytes_are_a_message_or_refused(data):
    """Whatever a packet holds, it is messages within the limits, the beginning of one, or an error of the framing."""
    try:
        messages = open_packet(memoryview(data), LIMITS, BUFFERS)
    except FramingError:
        return
    if not isinstance(messages, Assembly):
        assert [packet for message in messages for packet in packed(message)] == split(data, messages)


def split(data, messages):
    """Where one message of a packet ends and the next begins."""
    ends = list(itertools.accumulate(len(packed(message)[0]) for message in messages))
    return [data[start:end] for start, end in zip([0, *ends], [*ends[:-1], len(data)], strict=True)][: len(messages)]


messages_of_any_size = st.lists(
    st.lists(st.integers(0, 300) | st.integers(0, 200_000), min_size=1, max_size=70).map(
        lambda n: [bytes(i) for i in n]
    ),
    min_size=1,
    max_size=12,
)


@settings(deadline=None, max_examples=60)
@given(messages_of_any_size)
def test_w_41_small_messages_share_a_packet(messages):
    """Whatever waits in a queue leaves in order, the small ones together, and is read as it was."""
    queue, found, several = deque(map(kept, messages)), [], 0
    while queue:
        taken, packet = take_together(queue)
        several += len(taken) > 1
        assert len(packet) <= PACKET_BYTES
        assert bool(packet) == (len(taken) > 1)
        found += open_packet(memoryview(packet), MOST, BUFFERS) if packet else [unpacked(packed(taken[0][1]), MOST)]
    assert found == messages
    small = [len(frames) <= 64 and sum(map(len, frames)) < 1000 for frames in messages]
    assert several or not any(one and other for one, other in itertools.pairwise(small))


def test_w_41_a_message_that_needs_more_packets_is_alone_in_its_first():
    """Behind others it would begin where it cannot end."""
    small, large = packed([b"small"])[0], packed([bytes(PACKET_BYTES)])[0]
    with pytest.raises(FramingError, match="behind others"):
        open_packet(memoryview(small + large[:1000]), LIMITS, BUFFERS)


def test_w_42_each_message_of_a_packet_is_checked():
    """The limits hold for the last as for the first."""
    small = packed([b"small"])[0]
    with pytest.raises(FramingError, match="over the limits"):
        open_packet(memoryview(small + announced((4 << 20) + 1)), LIMITS, BUFFERS)


def test_received_frames_are_the_receivers_own():
    """Small frames are bytes, large ones read-only views; none changes when the packet's memory is used again."""
    scratch = bytearray(announced(3, more=b"abc"))
    (small,) = only(open_packet(memoryview(scratch), LIMITS, BUFFERS))
    scratch[-3:] = b"xyz"
    assert small == b"abc"
    first, *rest = packed([b"s", bytes(200_000)])
    message = open_packet(memoryview(first), LIMITS, BUFFERS)
    message.rest[: len(rest[0])] = rest[0]
    small, large = message.add(len(rest[0]))
    assert type(small) is bytes
    assert large.readonly


def test_a_packet_is_no_larger_than_what_everybody_takes():
    """The header of the longest message fits a packet."""
    assert len(header_of([0] * MAX_FRAMES)) < PACKET_BYTES
    assert framing.IDENTITY_BYTES == 16
