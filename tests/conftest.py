"""Fixtures of the whole suite: a runtime folder of this run alone, and a way to wait that fails loudly."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

DEADLINE_S = 60.0

# By default an example that takes longer than 200 ms fails its test, which a busy machine brings about.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(scope="session", autouse=True)
def runtime_folder() -> Iterator[Path]:
    """A runtime folder of this session alone, short enough for socket paths; nothing of ours is left in /dev/shm."""
    folder = Path(tempfile.mkdtemp(prefix="ty-"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENSORYARD_RUNTIME_DIR", str(folder))
        for name in ("TENSORYARD_HOST", "TENSORYARD_ADDRESS", "RAY_ADDRESS"):
            patch.delenv(name, raising=False)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        yield folder
    assert not [name for name in os.listdir("/dev/shm") if "tensoryard" in name], "something of ours is in /dev/shm"
    shutil.rmtree(folder)


def wait_until(condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Poll until a condition holds."""
    give_up = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < give_up, f"not within {deadline_s:.0f} s: {what}"
        time.sleep(0.01)


@pytest.fixture
def eventually() -> Callable[[Callable[[], object], str], None]:
    """Polls until a condition holds; fails loudly, saying what was waited for."""
    return wait_until


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Reports of parallel runs travel as UTF-8; what tests log on purpose may not be any."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "replace").decode()) for name, text in report.sections]
    return report
