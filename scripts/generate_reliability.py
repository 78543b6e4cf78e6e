"""Writes docs/bounds.md from the table beside the tests that show it.

`python scripts/generate_reliability.py`, after a change in `tests/reliability`; a test fails while the page is not
current.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

sys.path.append(str(ROOT / "tests" / "reliability"))
import bounds  # noqa: E402 - it lies beside the tests, which are no package

if __name__ == "__main__":
    (ROOT / "docs" / "bounds.md").write_text(bounds.page())
