"""Whatever can grow stands in a table with its bound, and the page that people read is that table."""

from __future__ import annotations

import dataclasses

from tensoryard.settings import Settings

from . import bounds, sources

ROWS = [row for rows in bounds.PARTS.values() for row in rows]


def test_every_container_has_its_bound():
    """No table, list or queue of coordinator, workers and client is missing, and none is listed that is not there."""
    listed = {name for row in ROWS for name in row.holds} | bounds.FIXED
    there = sources.containers()
    assert there - listed == set(), "new, and without a bound"
    assert listed - there == set(), "listed, and not there"


def test_every_row_is_shown_by_tests_that_exist():
    """Each bound names at least one test, by file and name."""
    known = sources.tests()
    assert [row.what for row in ROWS if not row.tests] == []
    assert [test for row in ROWS for test in row.tests if test not in known] == []


def test_every_setting_that_bounds_something_is_named():
    """Settings in bytes, and those that count, are bounds of something."""
    page = bounds.page()
    counted = ("_bytes", "max_in_flight", "max_clients", "peer_backlog", "_parts")
    names = [field.name for field in dataclasses.fields(Settings) if field.name.endswith(counted)]
    not_bounds = {"threshold_bytes", "out_of_band_bytes"}
    assert [name for name in names if f"`{name}`" not in page and name not in not_bounds] == []


def test_the_page_is_current():
    """docs/bounds.md is what `python scripts/generate_reliability.py` writes."""
    page = (sources.ROOT / "docs" / "bounds.md").read_text()
    assert page == bounds.page(), "run scripts/generate_reliability.py"
