"""`tensoryard shm ls` and `shm top`: which shared memory is in use on this host, for which request, and who keeps it.

Asks the pools themselves (`shm/inspector.py`) and changes nothing. Of what has been in use for long, the coordinators
of this host are asked whether its request still lives: a block that outlives its request is a suspect.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from ..client import Client, connect
from ..coordinator.connection import connections
from ..errors import TensoryardError
from ..shm import Inspector, LiveBlock, PoolReport
from .text import duration, say, several, size, table
from .vitals import command_of, state_of

#: A block that has been in use for longer, though its request has ended, is a suspect.
SUSPECT_S = 60.0
#: Requests asked about, and how long a coordinator may take to answer.
MAX_ASKED = 256
ASK_S = 1.0
#: Words with which the story of a request ends (`coordinator/router.py`).
ENDS = {"finished", "failed", "cancelled", "expired", "worker_lost", "poison_request"}
#: Clears a terminal.
_CLEAR = "\x1b[H\x1b[2J"
#: Lines of a screen that are not rows of a table of blocks, besides the pools.
_OTHER_LINES = 8


@dataclass(frozen=True, kw_only=True)
class Query:
    """What is to be shown. `owner`: a part of a name, a process id or the beginning of a pool's name."""

    older_than_s: float = 0.0
    owner: str = ""
    request: str = ""
    sort: str = "age"
    limit: int = 100
    as_json: bool = False
    timeout_s: float = ASK_S


class BlockRow(msgspec.Struct, frozen=True, kw_only=True):
    """One live block. `request`: live, ended, or "" when no coordinator here knows it, or none was asked."""

    pool: str
    owner: str
    pid: int
    generation: int
    size_bytes: int
    state: str
    sent_s: float | None
    holds: int
    readers: int
    reader_pids: tuple[int, ...]
    request_id: str
    request: str
    age_s: float


class PoolRow(msgspec.Struct, frozen=True, kw_only=True):
    """One pool. `trouble`: why it told nothing, or not all; `unlisted`: how many of its blocks were not asked for."""

    pool: str
    owner: str
    pid: int
    trouble: str
    budget_bytes: int = 0
    reserved_bytes: int = 0
    used_bytes: int = 0
    used_blocks: int = 0
    segments: int = 0
    readers: int = 0
    unlisted: int = 0


class Ledger(msgspec.Struct, frozen=True, kw_only=True):
    """All of it, as chosen by a query. `suspects`: blocks long in use whose request has ended."""

    pools: list[PoolRow]
    blocks: list[BlockRow]
    suspects: int = 0


def ls(query: Query) -> int:
    """Print the ledger once."""
    with Inspector() as inspector:
        ledger = marked(chosen(inspector.look(timeout_s=query.timeout_s), query))
    if query.as_json:
        say(msgspec.json.format(msgspec.json.encode(ledger), indent=2).decode())
    else:
        say(describe(ledger, limit=query.limit))
    return 0


def top(query: Query, *, interval_s: float, count: int | None = None) -> int:
    """Print the ledger again and again, `count` times or until Ctrl-C; in a pipe without touching the screen."""
    screen = sys.stdout.isatty() and not query.as_json
    try:
        with Inspector() as inspector:
            while True:
                ledger = chosen(inspector.look(timeout_s=query.timeout_s), query)
                _show(ledger, query, screen=screen)
                count = None if count is None else count - 1
                if count == 0:
                    return 0
                time.sleep(interval_s)
    except KeyboardInterrupt:  # its usual end
        return 0


def _show(ledger: Ledger, query: Query, *, screen: bool) -> None:
    if query.as_json:
        say(msgspec.json.encode(ledger).decode())
        return
    limit = query.limit
    if screen:
        limit = min(limit, max(shutil.get_terminal_size().lines - len(ledger.pools) - _OTHER_LINES, 1))
    say(f"{_CLEAR if screen else ''}{describe(ledger, limit=limit)}{'' if screen else chr(10)}")


# -- choosing ---------------------------------------------------------------------------------------------------------


def chosen(reports: Iterable[PoolReport], query: Query) -> Ledger:
    """The pools and blocks that a query asks for, sorted."""
    pools, blocks = [], []
    for report in reports:
        row = _pool_row(report)
        if not _is_owner(row, query.owner):
            continue
        pools.append(row)
        blocks += [_block_row(row, block) for block in report.blocks if _is_wanted(block, query)]
    pools.sort(key=lambda row: (-row.used_bytes, row.owner, row.pool))
    blocks.sort(key=_ORDERS[query.sort])
    return Ledger(pools=pools, blocks=blocks)


_ORDERS = {
    "age": lambda row: -row.age_s,
    "bytes": lambda row: (-row.size_bytes, -row.age_s),
    "owner": lambda row: (row.owner, row.pid, -row.age_s),
}


def _is_owner(row: PoolRow, text: str) -> bool:
    return text in row.owner or text == str(row.pid) or row.pool.startswith(text)


def _is_wanted(block: LiveBlock, query: Query) -> bool:
    return block.age_s >= query.older_than_s and query.request in block.request_id


def _pool_row(report: PoolReport) -> PoolRow:
    figures = report.statistics
    stopped = state_of(report.pid) == "T" if report.trouble and report.pid else False
    row = PoolRow(
        pool=report.pool,
        owner=report.owner or (command_of(report.pid) if report.pid else ""),
        pid=report.pid,
        trouble="its process is stopped (SIGSTOP)" if stopped else report.trouble,
        unlisted=report.unlisted,
    )
    if figures is None:
        return row
    known = {name: getattr(figures, name) for name in row.__struct_fields__ if hasattr(figures, name)}
    return msgspec.structs.replace(row, **known)


def _block_row(pool: PoolRow, block: LiveBlock) -> BlockRow:
    return BlockRow(
        pool=pool.pool,
        owner=pool.owner,
        pid=pool.pid,
        generation=block.generation,
        size_bytes=block.size_bytes,
        state=block.state,
        sent_s=block.sent_s,
        holds=block.holds,
        readers=block.readers,
        reader_pids=block.reader_pids,
        request_id=block.request_id,
        request="",
        age_s=block.age_s,
    )


# -- suspects ---------------------------------------------------------------------------------------------------------


def marked(ledger: Ledger, *, older_than_s: float = SUSPECT_S) -> Ledger:
    """The ledger with what coordinators know of the requests of old blocks."""
    old = [row.request_id for row in ledger.blocks if row.age_s > older_than_s and row.request_id]
    known = _requests(list(dict.fromkeys(old))[:MAX_ASKED])
    blocks = [
        msgspec.structs.replace(row, request=known.get(row.request_id, "")) if row.age_s > older_than_s else row
        for row in ledger.blocks
    ]
    return Ledger(pools=ledger.pools, blocks=blocks, suspects=sum(row.request == "ended" for row in blocks))


def _requests(ids: Sequence[str]) -> dict[str, str]:
    """Which requests are live and which have ended, as far as a coordinator of this host remembers them."""
    known: dict[str, str] = {}
    for connection in connections() if ids else ():
        try:
            with connect(connection.address, timeout_s=ASK_S) as client:
                known |= {found: _is_live(client, found) for found in ids if not known.get(found)}
        except TensoryardError:  # it is stopped, or ends: the others may know
            continue
    return known


def _is_live(client: Client, request_id: str) -> str:
    try:
        story = client.story(request_id, timeout_s=ASK_S)
    except ValueError:  # no RequestID of ours
        return ""
    if not story:
        return ""
    return "ended" if story[-1].partition(" ")[2] in ENDS else "live"


# -- showing ----------------------------------------------------------------------------------------------------------

_POOL_HEAD = ("POOL", "OWNER", ">PID", ">USED", ">RESERVED", ">BUDGET", ">BLOCKS", ">SEGMENTS", ">READERS")
_BLOCK_HEAD = ("POOL", "OWNER", ">GENERATION", ">SIZE", ">AGE", "STATE", "READ BY", "REQUEST")


def describe(ledger: Ledger, *, limit: int) -> str:
    """The ledger as text: a table of pools, one of at most `limit` blocks, and what is missing from them."""
    if not ledger.pools:
        return "no tensor pool of this user on this host, or none that was asked for"
    silent = [pool for pool in ledger.pools if pool.trouble]
    answered = [pool for pool in ledger.pools if not pool.trouble or pool.budget_bytes]
    parts = [table(_POOL_HEAD, [*map(_pool_cells, answered), _total_cells(answered)])] if answered else []
    parts += [f"pool {pool.pool[:8]} ({_whose(pool)}): {pool.trouble}" for pool in silent]
    parts.append("")
    if ledger.blocks:
        parts.append(table(_BLOCK_HEAD, [_block_cells(row) for row in ledger.blocks[:limit]]))
    parts.append(_rest(ledger, limit))
    return "\n".join(parts)


def _whose(pool: PoolRow) -> str:
    return f"{pool.owner}, process {pool.pid}" if pool.pid else "nobody's"


def _pool_cells(pool: PoolRow) -> Sequence[object]:
    sizes = (size(pool.used_bytes), size(pool.reserved_bytes), size(pool.budget_bytes))
    return (pool.pool[:8], pool.owner, pool.pid, *sizes, pool.used_blocks, pool.segments, pool.readers)


def _total_cells(pools: Sequence[PoolRow]) -> Sequence[object]:
    total = {
        name: sum(getattr(pool, name) for pool in pools)
        for name in ("used_bytes", "reserved_bytes", "budget_bytes", "used_blocks", "segments", "readers")
    }
    sizes = [size(total[name]) for name in ("used_bytes", "reserved_bytes", "budget_bytes")]
    return ("all", several(len(pools), "pool"), "", *sizes, total["used_blocks"], total["segments"], total["readers"])


def _block_cells(row: BlockRow) -> Sequence[object]:
    state = row.state if row.sent_s is None else f"{row.state} {duration(row.sent_s)} ago"
    pids = " ".join(str(pid) if pid else "?" for pid in row.reader_pids)
    request = f"{row.request_id} ({row.request})" if row.request else row.request_id
    age = duration(row.age_s)
    return (row.pool[:8], row.owner, row.generation, size(row.size_bytes), age, state, pids, request)


def _rest(ledger: Ledger, limit: int) -> str:
    lines = []
    hidden = max(len(ledger.blocks) - limit, 0)
    unlisted = sum(pool.unlisted for pool in ledger.pools)
    if hidden:
        lines.append(f"and {several(hidden, 'block')} more (--limit)")
    if unlisted:
        lines.append(f"pools hold {several(unlisted, 'block')} more, younger than those they were asked for")
    if not ledger.blocks:
        lines.append("no block in use, or none that was asked for")
    if ledger.suspects:
        what = several(ledger.suspects, "suspect")
        lines.append(f"{what}: in use for over {SUSPECT_S:.0f} s, and the request has ended")
    if any(row.reader_pids for row in ledger.blocks):
        lines.append("READ BY: processes as they connected, for people; nothing relies on it")
    return "\n".join(lines)
