"""The results of one run as plain data: made from what was found, kept as JSON, never mixed with another run's.

`report.py`, `goals.py` and `plot.py` read nothing else.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from . import figures
from .rounds import Found
from .works import WORKS

FORMAT = 1


class NotComparableError(Exception):
    """Figures of different runs were to be compared."""


def results_of(found: Found, *, run: str, machine: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """A cell for every contender at every work, reasons where there is none."""
    return {
        "format": FORMAT,
        "run": run,
        "machine": machine,
        "options": options,
        "rounds": found.rounds,
        "works": {name: WORKS[name].title for name in WORKS if name in found.samples},
        "cells": {
            work: {name: told for name, rounds in by_name.items() if (told := _told(rounds))}
            for work, by_name in found.samples.items()
        },
        "absent": found.absent,
        "cannot": found.cannot,
        "notes": {work: _said(by_name) for work, by_name in found.notes.items() if _said(by_name)},
        "parts": {},
    }


def _told(rounds: list[list[float]]) -> dict[str, Any] | None:
    cell = figures.cell(rounds)
    if cell is None:
        return None
    medians = [None if median is None else _short(median) for median in cell.rounds]
    return {"median": _short(cell.median), "p99": _short(cell.p99), "rounds": medians, "samples": cell.samples}


def _said(by_name: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    return {name: notes for name, notes in by_name.items() if notes}


def _short(value: float) -> float:
    """Four digits are more than are known."""
    return float(f"{value:.4g}")


def ratio(results: dict[str, Any], work: str, ours: str, theirs: str) -> figures.Spread | None:
    """Ours over theirs, round by round; None where one of them is missing."""
    cells = results["cells"].get(work, {})
    if ours not in cells or theirs not in cells:
        return None
    found = figures.ratios(cells[ours]["rounds"], cells[theirs]["rounds"])
    return figures.spread(found) if found else None


def write(results: dict[str, Any], path: Path) -> None:
    """As JSON, a line per contender and work."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")


def read(path: Path) -> dict[str, Any]:
    """Raises ValueError for a file that is no result of ours, or of another format."""
    results: dict[str, Any] = json.loads(path.read_text())
    if not isinstance(results, dict) or results.get("format") != FORMAT:
        raise ValueError(f"{path.name} holds no results of format {FORMAT}")
    return results


def require_one_run(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Raises NotComparableError, with the reason, unless both are of one run."""
    if first["run"] == second["run"]:
        return
    other = "" if first["machine"] == second["machine"] else " Even the machines or the versions differ."
    raise NotComparableError(
        "these are figures of two runs, and are not comparable: what else the machine did, its clock and its caches "
        "differed, and a median moves by more than what one would look for. Only ratios within one run hold: have "
        f"both contenders take part in one (for two versions of one, run each against the same floors).{other}",
    )
