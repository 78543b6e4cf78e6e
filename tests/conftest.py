"""Fixtures of the whole suite: a runtime folder of this run alone, and a way to wait that fails loudly."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, settings

from tensoryard import logs
from tensoryard.links.calibration import DEFAULT, FILE

DEADLINE_S = 60.0

# By default an example that takes longer than 200 ms fails its test, which a busy machine brings about.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


# Who starts this in the background of a shell without job control has Ctrl-C ignored, here and in all that we start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

#: Their tests take longest, so that they begin first where several processes share the suite.
LONGEST = ("scaling", "cluster", "deploy", "benchmarks")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of the longest folders first."""
    here = Path(__file__).parent
    items.sort(key=lambda item: item.path.relative_to(here).parts[0] not in LONGEST)


@pytest.fixture(scope="session", autouse=True)
def runtime_folder() -> Iterator[Path]:
    """A runtime folder of this session alone, short enough for socket paths; nothing of ours is left in /dev/shm."""
    folder = Path(tempfile.mkdtemp(prefix="ty-"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENSORYARD_RUNTIME_DIR", str(folder))
        for name in ("TENSORYARD_HOST", "TENSORYARD_ADDRESS", "RAY_ADDRESS"):
            patch.delenv(name, raising=False)
        # Which way an array goes is the same on every machine: 64 KiB.
        (folder / FILE).write_bytes(msgspec.json.encode(DEFAULT))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        yield folder
    assert not [name for name in os.listdir("/dev/shm") if "tensoryard" in name], "something of ours is in /dev/shm"
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def _every_line_is_logged() -> None:
    """What one test says too often is not held against the next."""
    logs.forget()


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
