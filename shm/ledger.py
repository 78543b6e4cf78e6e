"""The leak ledger: what a pool tells of itself, for people who ask where memory is.

`pool.py` makes these figures, `server.py` answers with them page by page, `inspector.py` asks every pool of a host and
puts the pages together. JSON, so that a page can be read with anything; bounded, so that asking costs an owner little.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import ForgedHandle

#: Blocks of one page, and its size as one packet: milliseconds of an owner's time, however much it holds.
PAGE_BLOCKS = 256
MAX_PAGE_BYTES = 48 << 10
#: Of one block: characters of the RequestID, and processes that read it.
MAX_TAG_CHARS = 128
MAX_PIDS = 16


@dataclass(frozen=True, kw_only=True)
class PoolStatistics:
    """A moment's figures; bytes count whole blocks and segments."""

    budget_bytes: int
    reserved_bytes: int
    used_bytes: int
    used_blocks: int
    published_blocks: int
    segments: int
    readers: int
    #: Blocks taken since the start, and how many of them needed a new segment.
    taken_total: int
    segments_created_total: int


@dataclass(frozen=True, kw_only=True)
class LiveBlock:
    """One block in use, for people: how large, for which request, how old (s), and who keeps it.

    `holds` counts its owner's holders, `readers` the connections that have claimed it; `reader_pids` are the processes
    behind the first of those, as the kernel named them when they connected (0: not visible from the owner's PID
    namespace). `sent_s`: seconds since its handle left for a reader that has not come for it yet; None: nobody is due.
    """

    generation: int
    size_bytes: int
    request_id: str
    age_s: float
    holds: int
    readers: int
    reader_pids: tuple[int, ...] = ()
    sent_s: float | None = None

    @property
    def published(self) -> bool:
        """Whether it waits for a reader."""
        return self.sent_s is not None

    @property
    def state(self) -> str:
        """Who keeps it, in words: `held` by its owner, `sent` to a reader, `read` by readers, or several of these."""
        words = [("held", self.holds > 0), ("sent", self.published), ("read", self.readers > 0)]
        return "+".join(word for word, applies in words if applies) or "free"


@dataclass(frozen=True, kw_only=True)
class Page:
    """A part of a pool's live blocks, oldest first: those behind generation `after`; `more` follow the last of them.

    `owner` is what the pool's process calls itself, "" when it does not. The first page (`after` 0) has the statistics.
    """

    after: int
    owner: str
    statistics: PoolStatistics | None
    blocks: tuple[LiveBlock, ...]
    more: bool


def encode_page(page: Page) -> bytes:
    """A page as JSON of at most MAX_PAGE_BYTES; blocks that find no room are left to the next one."""
    blocks: list[str] = []
    room = MAX_PAGE_BYTES - 1024
    for block in page.blocks:
        text = json.dumps(_row(block))
        room -= len(text) + 1
        if room < 0:
            break
        blocks.append(text)
    head = {
        "after": page.after,
        "owner": page.owner[:MAX_TAG_CHARS],
        "statistics": asdict(page.statistics) if page.statistics else None,
        "more": page.more or len(blocks) < len(page.blocks),
    }
    return f'{json.dumps(head)[:-1]}, "blocks": [{",".join(blocks)}]}}'.encode()


def _row(block: LiveBlock) -> list[Any]:
    return [
        block.generation,
        block.size_bytes,
        block.request_id[:MAX_TAG_CHARS],
        round(block.age_s, 3),
        block.holds,
        block.readers,
        block.reader_pids[:MAX_PIDS],
        None if block.sent_s is None else round(block.sent_s, 3),
    ]


def decode_page(data: bytes) -> Page:
    """A page that a pool has sent; ForgedHandle for anything else."""
    try:
        found = json.loads(data)
        statistics = found["statistics"]
        return Page(
            after=_count(found["after"]),
            owner=_text(found["owner"]),
            statistics=PoolStatistics(**{key: _count(value) for key, value in statistics.items()})
            if statistics
            else None,
            blocks=tuple(_block(row) for row in found["blocks"]),
            more=bool(found["more"]),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ForgedHandle(f"what came is no page of a pool's ledger: {error!r:.200}") from error


def _block(row: Sequence[Any]) -> LiveBlock:
    generation, size_bytes, request_id, age_s, holds, readers, pids, sent_s = row
    return LiveBlock(
        generation=_count(generation),
        size_bytes=_count(size_bytes),
        request_id=_text(request_id),
        age_s=float(age_s),
        holds=_count(holds),
        readers=_count(readers),
        reader_pids=tuple(_count(pid) for pid in pids),
        sent_s=None if sent_s is None else float(sent_s),
    )


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r:.40} is no count")
    return value


def _text(value: object) -> str:
    """A text for a terminal: without controls, and without halves of characters."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    return "".join(char if char.isprintable() else "?" for char in value[:MAX_TAG_CHARS])
