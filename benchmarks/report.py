"""Tables of a run's results: for a terminal, and as Markdown for README.md and docs/performance.md.

A cell is the median of the rounds' medians; a ratio is ours over theirs of the same round, with quartiles over rounds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .contenders import FLOORS, OURS, PEERS, TITLES
from .machine import sentence
from .results import ratio
from .works import WORKS

#: The columns of the README's table.
COLUMNS = ("small", "flight", "read-64KiB", "read-1MiB", "read-16MiB", "read-64MiB", "make-64MiB")
ORDER = (*OURS, *FLOORS, *PEERS)


def quantity(value: float, unit: str) -> str:
    """Three digits and a unit."""
    if unit == "ms" and value < 0.1:
        return f"{value * 1000:.1f} µs" if value < 0.01 else f"{value * 1000:.0f} µs"
    if unit == "ms":
        return f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms" if value >= 10 else f"{value:.2f} ms"
    return f"{value / 1000:.0f}k/s" if value >= 10_000 else f"{value / 1000:.1f}k/s"


def as_text(results: dict[str, Any]) -> str:
    """Everything, a block per work."""
    lines = [sentence(results["machine"]), f"{results['rounds']} rounds; ratios: tensoryard over the other", ""]
    for work in WORKS:
        cells = results["cells"].get(work, {})
        if cells:
            lines.append(f"{WORKS[work].title:42}{'median':>12}{'p99':>12}{'samples':>9}   ratio (quartiles)")
            lines += [_line(results, work, name) for name in ORDER if name in cells]
            lines += [f"  {name}: {told}" for name, told in results["cannot"].get(work, {}).items() if _failed(told)]
            lines.append("")
    lines += [f"not here: {name}: {reason}" for name, reason in results["absent"].items()]
    return "\n".join(lines)


def _failed(told: str) -> bool:
    """Whether it is a failure, rather than what was known beforehand."""
    return ":" in told


def _line(results: dict[str, Any], work: str, name: str) -> str:
    cell, unit = results["cells"][work][name], WORKS[work].unit
    found = ratio(results, work, OURS[0], name) if name != OURS[0] else None
    figures = f"{quantity(cell['median'], unit):>12}{quantity(cell['p99'], unit):>12}{cell['samples']:>9}"
    return f"  {name:40}{figures}   {found or ''}"


def as_markdown(results: dict[str, Any]) -> str:
    """The README's table: medians, and in brackets how many times ours it is. Bold is whoever is ahead of us."""
    works = [work for work in COLUMNS if work in results["cells"]]
    lines = [
        "| | " + " | ".join(WORKS[work].title for work in works) + " |",
        "|---|" + "---|" * len(works),
    ]
    for name in ORDER:
        cells = [_cell(results, work, name) for work in works]
        if any(cells):
            lines.append(f"| {TITLES[name]} | " + " | ".join(cells) + " |")
    lines += ["", *_below(results)]
    return "\n".join(lines) + "\n"


def _cell(results: dict[str, Any], work: str, name: str) -> str:
    cell = results["cells"][work].get(name)
    if cell is None:
        return ""
    text = quantity(cell["median"], WORKS[work].unit)
    found = ratio(results, work, name, OURS[0])
    if name in OURS or found is None:
        return text
    return f"{text} ({times(found.median)} x)"


def times(ratio_: float) -> str:
    """Two digits."""
    return f"{ratio_:.0f}" if ratio_ >= 10 else f"{ratio_:.2g}"


def _below(results: dict[str, Any]) -> list[str]:
    """What the figures are."""
    told = (
        f"{sentence(results['machine'])}. Medians of {results['rounds']} interleaved rounds of one run; in brackets "
        "the median of the rounds' ratios to our first row. Figures of different runs are not comparable."
    )
    load = results["options"].get("load")
    if load:
        told += f" {load[0]:.0f} processes wanted to run when it began, none of them ours."
    absent = [f"{name} ({reason})" for name, reason in results["absent"].items()]
    return [told] + ([f"Not here: {'; '.join(absent)}."] if absent else [])


def published(results: dict[str, Any], goals: str) -> dict[str, dict[str, str]]:
    """By document and marker: what of these results stands there."""
    parts = "".join(
        f"### {name.capitalize()}\n\n```text\n{part['text']}\n```\n\n" for name, part in results["parts"].items()
    )
    return {
        "README.md": {"benchmark": as_markdown(results)},
        "docs/performance.md": {
            "goals": goals,
            "ratios": ratios_as_markdown(results),
            "parts": parts.rstrip("\n") + "\n",
        },
    }


def ratios_as_markdown(results: dict[str, Any]) -> str:
    """Our figure over each other's: median of the rounds' ratios, with quartiles. Less is better, but for rates."""
    works = [work for work in COLUMNS if work in results["cells"]]
    lines = ["| | " + " | ".join(WORKS[work].title for work in works) + " |", "|---|" + "---|" * len(works)]
    for name in ORDER:
        cells = [str(ratio(results, work, OURS[0], name) or "") for work in works]
        if name != OURS[0] and any(cells):
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def insert(text: str, table: str, name: str) -> str:
    """`text` with the table between its markers. Raises ValueError where there are none."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    head, found, rest = text.partition(begin)
    old, found_end, tail = rest.partition(end)
    if not found or not found_end:
        raise ValueError(f"there is no place for {name}: the markers {begin.strip()} and {end} are missing")
    del old
    return f"{head}{begin}{table}{end}{tail}"


def insert_into(path: Path, table: str, name: str) -> None:
    """The same in a file."""
    path.write_text(insert(path.read_text(), table, name))
