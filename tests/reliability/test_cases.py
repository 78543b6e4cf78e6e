"""Each of the failure cases has its tests, and the page that people read is their table."""

from __future__ import annotations

import ast

import pytest

from . import sources
from .cases import CASES, page

FOLDERS = ("", "shm", "proto", "links", "coordinator", "workers", "client", "deploy")
#: The age of a file, and a date for people.
WALL_CLOCK = {"shm/runtime_dir.py", "proto/open_responses_output.py"}


def test_they_are_numbered() -> None:
    """In order, each with its words."""
    assert [case.number for case in CASES] == list(range(1, len(CASES) + 1))
    assert all(case.what and case.outcome for case in CASES)


def test_every_case_has_a_test() -> None:
    """At least one, that pytest collects; and no test is of a case that there is not."""
    found = sources.cases()
    assert sorted(found) == [case.number for case in CASES]
    known = sources.tests()
    assert [test for tests in found.values() for test in tests if test not in known] == []


def test_the_page_is_current() -> None:
    """docs/reliability.md is what `python scripts/generate_reliability.py` writes."""
    found = (sources.ROOT / "docs" / "reliability.md").read_text()
    assert found == page(sources.cases()), "run scripts/generate_reliability.py"


@pytest.mark.case(29)
def test_nothing_is_decided_by_the_clock_on_the_wall() -> None:
    """No module of ours asks what time it is, but for the age of a file and for a date that is shown."""
    users = set()
    for folder in FOLDERS:
        for path in (sources.ROOT / folder).glob("*.py"):
            names = {ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if _is_name(node)}
            if names & {"time.time", "time.time_ns", "datetime.now", "datetime.datetime.now", "time.gmtime"}:
                users.add(str(path.relative_to(sources.ROOT)))
    assert users == WALL_CLOCK


def _is_name(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute)
