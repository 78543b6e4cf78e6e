"""A picture of a run's results, as an SVG written by hand: a panel per work, a bar per contender, on a log scale.

A plotting library would be a larger dependency than all else here.
"""

from __future__ import annotations

import math
from html import escape
from typing import Any

from .contenders import FLOORS, OURS, PEERS
from .machine import sentence
from .report import COLUMNS, quantity
from .works import WORKS

_WIDTH, _BAR, _GAP, _LABEL, _HEAD = 760, 16, 4, 150, 30
_COLOURS = {"ours": "#0b6e4f", "floor": "#9aa0a6", "peer": "#c0504d"}


def svg(results: dict[str, Any]) -> str:
    """The picture."""
    body, y = [], 34
    for work in COLUMNS:
        cells = results["cells"].get(work, {})
        if cells:
            panel, height = _panel(work, cells)
            body.append(f'<g transform="translate(10,{y})">{panel}</g>')
            y += height
    title = escape(f"{sentence(results['machine'])}; {results['rounds']} interleaved rounds")
    style = "text{font:12px sans-serif;fill:#222}.h{font-weight:bold}.s{fill:#555}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y + 10}" width="{_WIDTH}">'
        f'<style>{style}</style><rect width="100%" height="100%" fill="#fff"/>'
        f'<text x="10" y="20" class="s">{title}</text>{"".join(body)}</svg>\n'
    )


def _panel(work: str, cells: dict[str, Any]) -> tuple[str, int]:
    """One work: bars as long as the logarithm of the median, from a power of ten below the least."""
    unit = WORKS[work].unit
    names = [name for name in (*OURS, *FLOORS, *PEERS) if name in cells]
    least, most = (f(cells[name]["median"] for name in names) for f in (min, max))
    low = math.floor(math.log10(least) - 0.3)
    scale = (_WIDTH - _LABEL - 130) / max(math.log10(most) - low, 1e-9)
    better = "less is better" if WORKS[work].less_is_better else "more is better"
    parts = [
        f'<text y="14" class="h">{escape(WORKS[work].title)}</text><text x="{_LABEL}" y="14" class="s">{better}</text>'
    ]
    for row, name in enumerate(names):
        top = _HEAD - 8 + row * (_BAR + _GAP)
        length = (math.log10(cells[name]["median"]) - low) * scale
        label = quantity(cells[name]["median"], unit)
        parts.append(
            f'<text x="{_LABEL - 6}" y="{top + 12}" text-anchor="end">{escape(name)}</text>'
            f'<rect x="{_LABEL}" y="{top}" width="{length:.1f}" height="{_BAR}" fill="{_COLOURS[_kind(name)]}"/>'
            f'<text x="{_LABEL + length + 5:.1f}" y="{top + 12}" class="s">{label}</text>'
        )
    return "".join(parts), _HEAD + len(names) * (_BAR + _GAP) + 12


def _kind(name: str) -> str:
    return "ours" if name in OURS else "floor" if name in FLOORS else "peer"
