"""What is to be shown, and whether a run showed it: a row each, from its results alone. Pure.

A goal that could not be measured, since a contender or a part was left out, says so, and is neither reached nor missed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from . import figures
from .contenders import PEERS, TITLES
from .results import ratio
from .works import WORKS, Work

Verdict = Literal["reached", "missed", "not measured"]
OURS, LENT = "tensoryard", "tensoryard-lent"
#: Works in which we are to be ahead of every peer.
COMPARED = ("small", "flight", "read-64KiB", "read-1MiB", "read-16MiB", "read-64MiB", "make-64MiB")


@dataclass(frozen=True)
class Goal:
    """One line of what is to be shown."""

    text: str
    figure: str
    verdict: Verdict
    note: str = ""


def _missing(text: str, why: str = "") -> Goal:
    return Goal(text, "", "not measured", why)


def _judged(text: str, figure: str, reached: bool, note: str = "") -> Goal:
    return Goal(text, figure, "reached" if reached else "missed", note)


def goals(results: dict[str, Any]) -> list[Goal]:
    """All of them, in order."""
    return [goal for make in _GOALS for goal in make(results)]


# -- arrays -----------------------------------------------------------------------------------------------------------


def _one_memcpy(results: dict[str, Any]) -> Iterator[Goal]:
    text = "64 MiB in, small answer: at most 1.15 x one memcpy"
    found = ratio(results, "read-64MiB", OURS, "memcpy")
    yield _judged(text, f"{found} x", found.median <= 1.15) if found else _missing(text)


def _independent_of_size(results: dict[str, Any]) -> Iterator[Goal]:
    text = "from client.empty(), answered by its shape: 256 MiB at most 1.2 x 64 KiB"
    cells = [results["cells"].get(work, {}).get(LENT) for work in ("shape-256MiB", "shape-64KiB")]
    if None in cells:
        yield _missing(text)
        return
    found = figures.spread(figures.ratios(*(cell["rounds"] for cell in cells)))
    yield _judged(text, f"{found} x", found.median <= 1.2)


def _no_copy_out(results: dict[str, Any]) -> Iterator[Goal]:
    text = "64 MiB out: no copy beyond the pipeline's own write"
    notes = results["notes"].get("make-64MiB", {}).get(OURS)
    if not notes:
        yield _missing(text)
        return
    copies, through_sockets = notes["copies"], notes["socket bytes"]
    found = ratio(results, "make-64MiB", OURS, "memcpy")
    note = f"{found} x the write alone" if found else ""
    figure = f"{copies:.0f} copies, {through_sockets:.0f} bytes through sockets"
    yield _judged(text, figure, copies == 0 and through_sockets < 1 << 16, note)


# -- against others ---------------------------------------------------------------------------------------------------


def _ahead(results: dict[str, Any]) -> Iterator[Goal]:
    for name in COMPARED:
        work = WORKS[name]
        text = f"ahead of every peer: {work.title}"
        found = {peer: spread for peer in PEERS if (spread := ratio(results, name, OURS, peer))}
        if not found:
            yield _missing(text)
            continue
        worst = (max if work.less_is_better else min)(found, key=lambda peer: found[peer].median)
        ahead = [peer for peer in found if _is_ahead(work, found[peer])]
        figure = f"{found[worst]} x {worst}"
        yield _judged(text, figure, len(ahead) == len(found), f"ahead of {len(ahead)} of {len(found)}")


def _is_ahead(work: Work, spread: figures.Spread) -> bool:
    return spread.median < 1 if work.less_is_better else spread.median > 1


def _against(work: str, peer: str, text: str, least: float, *, most: bool = False) -> Callable[..., Iterator[Goal]]:
    """Our figure over a peer's: at least, or at most, so much."""

    def goal(results: dict[str, Any]) -> Iterator[Goal]:
        found = ratio(results, work, OURS, peer)
        if found is None:
            yield _missing(text, results["absent"].get(peer, ""))
            return
        yield _judged(text, f"{found} x", found.median <= least if most else found.median >= least)

    return goal


# -- streams, router, idle, deaths ------------------------------------------------------------------------------------


def _streams(results: dict[str, Any]) -> Iterator[Goal]:
    text = "256 token streams through the coordinator: at least 200,000 tokens/s"
    cell = results["cells"].get("streams", {}).get(OURS)
    yield _judged(text, f"{cell['median']:,.0f} tokens/s", cell["median"] >= 200_000) if cell else _missing(text)


def _router(results: dict[str, Any]) -> Iterator[Goal]:
    sides = {"queued": "from 10 to 1,000,000 waiting requests", "workers": "from 2 to 1,000 workers"}
    for side, words in sides.items():
        text = f"router: cost per event grows less than 2 x {words}"
        part = results["parts"].get("router")
        if part is None or not part["complete"]:
            yield _missing(text)
            continue
        growth = {kind: figures.spread(found) for kind, found in part[f"growth_{side}"].items()}
        worst = max(growth, key=lambda kind: growth[kind].median)
        yield _judged(text, f"{growth[worst]} x ({worst})", growth[worst].median < 2)


def _idle(results: dict[str, Any]) -> Iterator[Goal]:
    text = "idle cluster: coordinator and each worker under 1 % of a core"
    part = results["parts"].get("idle")
    if part is None:
        yield _missing(text)
        return
    figure = ", ".join(f"{name} {share:.2f} %" for name, share in part["percent"].items())
    yield _judged(text, figure, max(part["percent"].values()) < 1, f"over {part['seconds']:.0f} s")


def _detection(results: dict[str, Any]) -> Iterator[Goal]:
    text = "a killed worker's request runs again elsewhere within 100 ms (median)"
    part = results["parts"].get("detection")
    if part is None:
        yield _missing(text)
        return
    note = f"{len(part['ms'])} kills; 90th percentile {figures.percentile(part['ms'], 0.9):.1f} ms"
    found = figures.spread(part["ms"])
    yield _judged(text, f"{found} ms", found.median < 100, note)


def _clean_end(results: dict[str, Any]) -> Iterator[Goal]:
    left = results.get("left_behind")
    text = "clean end: no process is left"
    if left is None:
        yield _missing(text)
        return
    yield _judged(text, f"{left} left", left == 0, "" if not left else "they were killed")


_GOALS: list[Callable[[dict[str, Any]], Iterator[Goal]]] = [
    _one_memcpy,
    _independent_of_size,
    _no_copy_out,
    _ahead,
    _against("small", "ray-graph", "small request: not slower than Ray's compiled graph", 1.0, most=True),
    _against("flight", "ray-actor", "throughput: at least 10 x Ray actor calls", 10.0),
    _against("flight", "zeromq-broker", "throughput: at least 3 x ZeroMQ through a Python broker", 3.0),
    _against("flight", "zeromq-direct", "throughput, beyond that: more than ZeroMQ with no broker at all", 1.0),
    _streams,
    _router,
    _idle,
    _detection,
    _clean_end,
]


def as_text(found: list[Goal]) -> str:
    """For a terminal."""
    signs = {"reached": "PASS", "missed": "FAIL", "not measured": "  - "}
    lines = []
    for goal in found:
        note = f"   [{goal.note}]" if goal.note else ""
        lines.append(f"{signs[goal.verdict]}  {goal.text:80} {goal.figure or 'not measured'}{note}")
    return "\n".join(lines)


def as_markdown(found: list[Goal]) -> str:
    """For docs/performance.md."""
    lines = ["| goal | measured | |", "|---|---|---|"]
    for goal in found:
        note = f" ({goal.note})" if goal.note else ""
        lines.append(f"| {goal.text} | {goal.figure or '–'}{note} | {goal.verdict} |")  # noqa: RUF001 - a dash is meant
    return "\n".join(lines) + "\n"


def title(contender: str) -> str:
    """A contender, for people."""
    return TITLES[contender]
