"""What a test may leave open: nothing new.

Used by every test that counts descriptors or threads. Fewer than before is fine: what earlier tests left to the
collector, or to a thread that was still ending, may go at any moment.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import threading
import time
from collections import Counter

_DEADLINE_S = 30.0


class Baseline:
    """The descriptors and threads of this process now."""

    def __init__(self) -> None:
        gc.collect()
        self._files = _open_files()
        self._threads = set(threading.enumerate())

    def assert_nothing_new(self) -> None:
        """Everything opened or started since is closed and ended, or will be within the deadline."""
        give_up = time.monotonic() + _DEADLINE_S
        while self.new():
            assert time.monotonic() < give_up, f"left open: {self.new()}"
            time.sleep(0.01)

    def new(self) -> list[str]:
        """What has been opened or started since, and still is."""
        gc.collect()
        threads = [f"thread {thread.name}" for thread in threading.enumerate() if thread not in self._threads]
        return sorted((_open_files() - self._files).elements()) + threads


def _open_files() -> Counter[str]:
    """How many descriptors there are of each file, or kind of nameless file."""
    files: Counter[str] = Counter()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that looks
            files[re.sub(r":\[\d+\]$", "", os.readlink(f"/proc/self/fd/{fd}"))] += 1
    return files
