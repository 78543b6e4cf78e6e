"""Writes docs/bounds.md and docs/reliability.md from the tables beside the tests that show them.

`python scripts/generate_reliability.py`, after a change in `tests/reliability` or of a test's `case` mark; a test fails
while a page is not current.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

sys.path.append(str(ROOT / "tests" / "reliability"))
import bounds  # noqa: E402 - these lie beside the tests, which are no package
import cases  # noqa: E402
import sources  # noqa: E402

if __name__ == "__main__":
    (ROOT / "docs" / "bounds.md").write_text(bounds.page())
    (ROOT / "docs" / "reliability.md").write_text(cases.page(sources.cases()))
