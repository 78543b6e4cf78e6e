"""The command line that the smaller benchmarks share: how much to measure, and where to write the figures.

`__main__.py` runs them by it, each in a process of its own: `detection.py`, `hops.py`, `idle.py`, `allocations.py`,
`router_scale.py`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Found = dict[str, Any]


def parser(doc: str | None, quick: str | None = None) -> argparse.ArgumentParser:
    """With `--quick` and `--json`; what the module's documentation begins with says what it is."""
    made = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    made.add_argument("--quick", action="store_true", help=quick or "a look: less of it")
    made.add_argument("--json", type=Path, help="write the figures to this file too")
    return made


def tell(found: Found, as_text: Callable[[Found], str], file: Path | None) -> None:
    """Print what was found, and write it with its text where that was asked for."""
    print(as_text(found))
    if file:
        file.write_text(json.dumps({**found, "text": as_text(found)}))


def main(
    doc: str | None, measure: Callable[[Any], Found], as_text: Callable[[Found], str], **amount: tuple[float, float]
) -> None:
    """Read the command line, measure, tell. `amount`: the option's name, its usual number and that of `--quick`."""
    ((name, (usual, quick)),) = amount.items()
    reader = parser(doc)
    reader.add_argument(f"--{name}", type=type(usual), help=f"default {usual:g}, and {quick:g} with --quick")
    asked = reader.parse_args()
    tell(measure(getattr(asked, name) or (quick if asked.quick else usual)), as_text, asked.json)
