"""Finding every process of a cluster, also after its parents are gone: by a mark in their environment."""

from __future__ import annotations

import os
import signal
from pathlib import Path

MARK = "TYTEST_MARK"


def marked(mark: str) -> list[int]:
    """The live processes that carry a mark, zombies left out."""
    return [pid for pid in (int(p) for p in os.listdir("/proc") if p.isdigit()) if _carries(pid, mark)]


def _carries(pid: int, mark: str) -> bool:
    try:
        if f"{MARK}={mark}".encode() not in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return False
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return pid != os.getpid() and state != "Z"


def kill_all(mark: str) -> None:
    """SIGKILL for every marked process, until there is none."""
    while pids := marked(mark):
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
