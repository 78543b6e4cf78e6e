"""Plain text for people: tables, sizes, durations. Used by the commands; knows nothing of clusters."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence

#: A table's columns that hold numbers are aligned at their right: those whose heading begins with this.
RIGHT = ">"


def say(text: str = "", *, error: bool = False, end: str = "\n") -> None:
    """One line for people: to stdout, or to stderr when it is not the command's result. Shown at once, piped or not.

    With `end` "" it is a part of a line.
    """
    stream = sys.stderr if error else sys.stdout
    stream.write(f"{text}{end}")
    stream.flush()


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Aligned columns under `head`; a heading that begins with ">" makes a column of numbers."""
    cells = [[str(cell) for cell in row] for row in rows]
    names = [name.removeprefix(RIGHT) for name in head]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    lines = [names, ["-" * width for width in widths], *cells]
    return "\n".join(_row(line, head, widths) for line in lines)


def _row(cells: Sequence[str], head: Sequence[str], widths: Sequence[int]) -> str:
    places = zip(cells, head, widths, strict=True)
    aligned = (cell.rjust(width) if name.startswith(RIGHT) else cell.ljust(width) for cell, name, width in places)
    return "  ".join(aligned).rstrip()


def size(count: float) -> str:
    """Bytes for people: "820 B", "64.0 KiB", "1.5 GiB"."""
    if count < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if count < 1024:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.1f} TiB"


def duration(seconds: float) -> str:
    """A time span for people: "12.3 ms", "4.1 s", "3 min", "2 h 5 min"."""
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = int(seconds // 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def several(count: int, one: str, many: str = "") -> str:
    """A number and its noun: "1 worker", "2 workers"."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest of `values` that at least `share` (0 to 1) of them do not exceed; NaN when there are none."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)] if ordered else math.nan
