"""The simulation sees what it says it looks for: bugs planted in production machines are found."""

from __future__ import annotations

import pytest

from tensoryard.tests.simulation.__main__ import find
from tensoryard.tests.simulation.planted import FOUND_AT, PLANTED
from tensoryard.tests.simulation.run import run_seed

#: Seeds searched here on both sides of the one that was found when all from 0 on were searched.
_BEFORE, _AFTER = 5, 200


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_found(name, record_property):
    """Within a few schedules of the known seed; and it is the bug that is seen, since without it that seed holds."""
    known = FOUND_AT[name]
    found = find(name, range(max(known - _BEFORE, 0), known + _AFTER))
    assert found is not None, f"not found from seed {known - _BEFORE} to {known + _AFTER - 1}"
    print(f"{name}: seed {found.seed}: {found.violation}")
    record_property("seed", found.seed)
    assert found.seed < 10_000
    assert run_seed(found.seed).violation is None
