"""One step's tokens, laid out for `decoder.py`: rows of all requests in one matrix, and who attends to what.

The engine gives a `Span` per request, of one token (decoding) or of many (a prompt, a chunk of one, drafts to verify);
all are computed in the same products. Only attention looks at requests apart, in groups of spans that are equally wide
and similarly far along.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ....proto.text_context import TextContext

Ints = npt.NDArray[np.int64]

#: Blocks of padding that a group of spans may have, all together: about what the calls of one more group cost.
WASTE_BLOCKS = 96


class Span(NamedTuple):
    """Adjacent tokens of one request: `tokens` (int64 `(n,)`) lie at positions `start`, `start + 1` and so on.

    `table`: the numbers of the request's blocks, int64, at least as far as its last token here. `logits`: of so many of
    the last tokens logits are wanted; none of a prompt's chunk that is not its last. `context`: whose they are, for
    models that look at more than tokens.
    """

    tokens: Ints
    start: int
    table: Ints
    logits: int = 1
    #: The adapter that its tokens are computed with; None for the model as it is.
    adapter: Any = None
    context: TextContext | None = None


class Group(NamedTuple):
    """Spans of one width, in adjacent rows."""

    #: Index of the first row, spans, and rows of each.
    row: int
    spans: int
    width: int
    #: Block numbers, `(spans, blocks)`; behind a span's own end any number that is valid.
    tables: Ints
    #: Position of each span's first token, `(spans,)`.
    starts: Ints

    @property
    def rows(self) -> slice:
        """The rows of the group's tokens."""
        return slice(self.row, self.row + self.spans * self.width)


class Step(NamedTuple):
    """The layout: `ids`, `positions` and `slots` (where keys and values go) are `(rows,)`."""

    ids: Ints
    positions: Ints
    slots: Ints
    groups: list[Group]
    #: The rows whose logits are wanted, in the order of the spans given.
    wanted: Ints
    #: The rows of each adapter that is in the step, ascending.
    adapters: Sequence[tuple[Any, Ints]] = ()


def lay_out(spans: Sequence[Span], block_size: int) -> Step:
    """The layout of spans, of which there is at least one and none is empty."""
    widths = [len(span.tokens) for span in spans]
    if widths.count(1) == len(widths):
        step = _decoding(spans, block_size)
        if step is not None:
            return step
    reach = [(span.start + width - 1) // block_size + 1 for span, width in zip(spans, widths, strict=True)]
    # By width, then by reach: two sorts by a list's own look-up cost a third of one by a function.
    order = sorted(range(len(spans)), key=reach.__getitem__)
    order.sort(key=widths.__getitem__)
    first_rows = np.zeros(len(spans), np.int64)
    groups, row = [], 0
    for part in _parts(order, widths, reach):
        group = _group([spans[i] for i in part], row, widths[part[0]], reach[part[-1]])
        first_rows[part] = np.arange(group.spans) * group.width + row
        row += group.spans * group.width
        groups.append(group)
    ids = np.concatenate([spans[i].tokens for i in order])
    places = [_positions(group) for group in groups]
    slots = [_slots(group, at, block_size).reshape(-1) for group, at in zip(groups, places, strict=True)]
    positions = np.concatenate([at.reshape(-1) for at in places])
    wanted = _wanted(spans, widths, first_rows)
    return Step(ids, positions, np.concatenate(slots), groups, wanted, adapter_rows(spans, first_rows))


def _decoding(spans: Sequence[Span], block_size: int) -> Step | None:
    """The layout of what most steps are, one token each in one group, in the order given; None where that wastes."""
    starts = np.array([span.start for span in spans])
    numbers, places = np.divmod(starts, block_size)
    blocks = int(numbers.max()) + 1
    if blocks * len(spans) - int(numbers.sum()) - len(spans) > WASTE_BLOCKS:
        return None
    group = _group(spans, 0, 1, blocks, starts)
    rows = np.arange(len(spans))
    slots = group.tables[rows, numbers] * block_size + places
    wanted = rows[[span.logits > 0 for span in spans]]
    ids = np.concatenate([span.tokens for span in spans])
    return Step(ids, starts, slots, [group], wanted, adapter_rows(spans, rows))


class Decoding:
    """A batch that only decodes, kept from step to step: the same requests, each one token further every time.

    `tables`: each request's block numbers; `starts`: the position of its newest token. Laying the batch out costs a few
    calls, however many requests there are.
    """

    def __init__(self, tables: Sequence[Ints], starts: Sequence[int], block_size: int) -> None:
        self._tables = np.zeros((len(tables), max(map(len, tables))), np.int64)
        for row, table in enumerate(tables):
            self._tables[row, : len(table)] = table
        self._rows = np.arange(len(tables))
        self._block_size = block_size
        self._begin(np.array(starts, np.int64))

    def _begin(self, starts: Ints) -> None:
        self._starts = starts
        self._numbers, self._places = np.divmod(starts, self._block_size)

    def entering(self) -> list[tuple[int, int]]:
        """The rows whose token is the first of a block, and the block's number in its request: `enter` it."""
        rows = np.flatnonzero(self._places == 0)
        return list(zip(rows.tolist(), self._numbers[rows].tolist(), strict=True))

    def enter(self, row: int, number: int, block: int) -> None:
        """Where the next tokens of a request go."""
        self._tables[row, number] = block

    def step(self, ids: Ints) -> Step | None:
        """The layout for these tokens, and on to the next; None where one group of all wastes too much."""
        starts, numbers, count = self._starts, self._numbers, len(self._rows)
        blocks = int(numbers.max()) + 1
        if blocks * count - int(numbers.sum()) - count > WASTE_BLOCKS:
            return None
        slots = self._tables[self._rows, numbers] * self._block_size + self._places
        self._begin(starts + 1)
        return Step(ids, starts, slots, [Group(0, count, 1, self._tables[:, :blocks], starts)], self._rows)


def _parts(order: list[int], widths: list[int], reach: list[int]) -> Iterator[list[int]]:
    """Runs of spans of one width, cut where padding them to the longest would cost more than another group."""
    part: list[int] = []
    blocks = 0
    for i in order:
        waste = (reach[i] * (len(part) + 1) - blocks - reach[i]) * widths[i]
        if part and (widths[i] != widths[part[0]] or waste > WASTE_BLOCKS):
            yield part
            part, blocks = [], 0
        part.append(i)
        blocks += reach[i]
    yield part


def _group(spans: Sequence[Span], row: int, width: int, blocks: int, starts: Ints | None = None) -> Group:
    if all(len(span.table) >= blocks for span in spans):
        tables = np.array([span.table[:blocks] for span in spans])
    else:
        tables = np.array([np.resize(span.table, blocks) for span in spans])
    if starts is None:
        starts = np.array([span.start for span in spans])
    return Group(row, len(spans), width, tables, starts)


def _positions(group: Group) -> Ints:
    return group.starts[:, None] + np.arange(group.width)


def _slots(group: Group, positions: Ints, block_size: int) -> Ints:
    numbers, places = np.divmod(positions, block_size)
    blocks: Ints = group.tables[np.arange(group.spans)[:, None], numbers]
    return blocks * block_size + places


def _wanted(spans: Sequence[Span], widths: list[int], first_rows: Ints) -> Ints:
    counts = np.array([span.logits for span in spans], np.int64)
    ends = first_rows + widths
    if (counts == 1).all():
        return ends - 1
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    wanted: Ints = np.repeat(ends - counts, counts) + within
    return wanted


def adapter_rows(spans: Sequence[Span], first_rows: Ints) -> Sequence[tuple[Any, Ints]]:
    """The rows of each adapter, in the order in which the adapters come first; `first_rows`: of each span."""
    if all(span.adapter is None for span in spans):
        return ()
    rows: dict[Any, list[Ints]] = {}
    for span, first in zip(spans, first_rows.tolist(), strict=True):
        if span.adapter is not None:
            rows.setdefault(span.adapter, []).append(np.arange(first, first + len(span.tokens)))
    return [(adapter, np.sort(np.concatenate(parts))) for adapter, parts in rows.items()]


def bias(group: Group, length: int, window: int | None, xp: Any) -> Any:
    """What is added to a group's scores, float32 `(spans, width, 1, length)`: minus infinity for what is not seen."""
    positions = xp.asarray(group.starts)[:, None, None] + xp.arange(group.width)[:, None]
    behind = positions - xp.arange(length)
    seen = behind >= 0 if window is None else (behind >= 0) & (behind < window)
    return xp.where(seen, xp.float32(0), xp.float32(-np.inf))[:, :, None, :]
