"""What a pool tells of itself: pages that are whole, bounded, and read with suspicion."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensoryard.errors import ForgedHandle
from tensoryard.shm.ledger import (
    MAX_PAGE_BYTES,
    MAX_PIDS,
    MAX_TAG_CHARS,
    PAGE_BLOCKS,
    LiveBlock,
    Page,
    PoolStatistics,
    decode_page,
    encode_page,
)

FIGURES = PoolStatistics(
    budget_bytes=9,
    reserved_bytes=8,
    used_bytes=7,
    used_blocks=6,
    published_blocks=5,
    segments=4,
    readers=3,
    taken_total=2,
    segments_created_total=1,
)


def block(number=1, **fields):
    """A block; `fields` replace what it has."""
    usual = {
        "generation": number,
        "size_bytes": 64,
        "request_id": f"r{number}",
        "age_s": 1.5,
        "holds": 1,
        "readers": 0,
        "reader_pids": (),
        "sent_s": None,
    }
    return LiveBlock(**{**usual, **fields})


def page(*blocks, **fields):
    """A first page."""
    return Page(**{"after": 0, "owner": "worker w", "statistics": FIGURES, "blocks": blocks, "more": False, **fields})


def test_a_page_arrives_as_it_left():
    """Figures, owner and each field of each block; later pages have no figures."""
    blocks = (block(1, sent_s=2.25, readers=2, reader_pids=(7, 0)), block(2, request_id='a "quoted" ü 😀'))
    for sent in (page(*blocks), page(*blocks, after=77, statistics=None, more=True), page(owner="")):
        assert decode_page(encode_page(sent)) == sent


def test_what_finds_no_room_is_left_to_the_next_page():
    """However long RequestIDs and readers are, a page stays within its bound, is not empty, and says that more come."""
    blocks = [block(n, request_id="😀" * 500, reader_pids=(2**22,) * 100, readers=100) for n in range(1, 257)]
    data = encode_page(page(*blocks))
    assert len(data) <= MAX_PAGE_BYTES
    found = decode_page(data)
    assert 10 < len(found.blocks) < len(blocks)
    assert found.more
    assert len(found.blocks[0].request_id) == MAX_TAG_CHARS
    assert len(found.blocks[0].reader_pids) == MAX_PIDS
    assert [b.generation for b in found.blocks] == list(range(1, len(found.blocks) + 1))


def test_the_largest_block_alone_fits():
    """A page always brings at least one block, or who asks would ask for ever."""
    worst = block(2**62, request_id="\U0001f600" * 128, reader_pids=(2**31,) * 16, size_bytes=2**60, age_s=1e9)
    assert len(decode_page(encode_page(page(worst, owner="😀" * 1000))).blocks) == 1


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({"holds": 1}, "held"),
        ({"holds": 0, "sent_s": 0.0}, "sent"),
        ({"holds": 0, "readers": 2}, "read"),
        ({"holds": 2, "readers": 1, "sent_s": 1.0}, "held+sent+read"),
        ({"holds": 0}, "free"),
    ],
)
def test_the_state_names_everybody_who_keeps_a_block(fields, state):
    """Owner, handle on its way, readers: one word each."""
    assert block(**fields).state == state


def test_texts_are_safe_to_print():
    """Controls of a terminal and halves of characters do not come through."""
    found = decode_page(encode_page(page(block(request_id="\x1b[2Jr\ud800\n"), owner="w\x07")))
    assert found.owner == "w?"
    assert found.blocks[0].request_id == "?[2Jr??"
    found.blocks[0].request_id.encode()


def spoilt(**changes):
    """A page's JSON with something changed."""
    return json.dumps({**json.loads(encode_page(page(block()))), **changes}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        spoilt(after=-1),
        spoilt(after=True),
        spoilt(owner=5),
        spoilt(blocks=None),
        spoilt(blocks=[[1, 2]]),
        spoilt(blocks=[[1, 2, "r", "old", 1, 0, [], None]]),
        spoilt(blocks=[[1, 2, "r", 1.0, 1, 0, ["7"], None]]),
        spoilt(statistics={"budget_bytes": 1}),
        spoilt(statistics={**dataclasses.asdict(FIGURES), "readers": "many"}),
        spoilt(statistics={**dataclasses.asdict(FIGURES), "colour": 1}),
    ],
)
def test_what_is_no_page_is_refused(data):
    """One error for whatever a stranger may send."""
    with pytest.raises(ForgedHandle, match="no page"):
        decode_page(data)


@given(st.binary(max_size=200))
def test_any_bytes_end_with_a_page_or_that_error(data):
    """Nothing else comes out."""
    try:
        decode_page(data)
    except ForgedHandle:
        return


# -- of a real pool ---------------------------------------------------------------------------------------------------


def test_pages_bring_every_block_once_and_in_order(make_pool):
    """Page after page until no more: all live blocks, oldest first; the figures come with the first."""
    pool = make_pool(owner="worker w-1")
    kept = [pool.empty(50, "u1", tag=f"r{n}") for n in range(PAGE_BLOCKS + 20)]
    first = pool.page(0)
    assert (first.owner, first.statistics, first.more) == ("worker w-1", pool.statistics(), True)
    rest = pool.page(first.blocks[-1].generation)
    assert (rest.statistics, rest.more) == (None, False)
    found = [*first.blocks, *rest.blocks]
    assert [b.request_id for b in found] == [f"r{n}" for n in range(len(kept))]
    ages = [b.age_s for b in first.blocks]
    assert ages == sorted(ages, reverse=True)
    assert pool.page(found[-1].generation).blocks == ()


def test_a_page_knows_what_has_been_released(pool):
    """Releases that the pool has not looked at yet are applied first."""
    kept, gone = pool.empty(50, tag="kept"), pool.empty(50, tag="gone")
    del gone
    assert [b.request_id for b in pool.page(0).blocks] == ["kept"]
    del kept


def test_since_when_a_handle_is_on_its_way(make_pool, reader):
    """`sent_s` counts from `send`, and ends with the claim."""
    pool = make_pool(claim_timeout_s=100)
    loan, _ = pool.publish(np.arange(9), tag="r")
    handle = loan.handle
    pool.send(loan)
    first, second = pool.page(0).blocks[0], pool.page(0).blocks[0]
    assert 0 <= first.sent_s <= second.sent_s <= second.age_s
    view = reader.claim(handle)
    assert pool.page(0).blocks[0].state == "read"
    del view


def test_an_array_lent_to_a_request_is_known_by_it(pool):
    """`lend` with a RequestID names the block; without one it keeps its name."""
    array = pool.empty(50)
    loans = [pool.lend(array, tag="r1")]
    assert pool.page(0).blocks[0].request_id == "r1"
    loans.append(pool.lend(array))
    assert pool.page(0).blocks[0].request_id == "r1"
    loans.append(pool.publish(array, tag="r2")[0])
    assert pool.page(0).blocks[0].request_id == "r2"
    del array, loans
