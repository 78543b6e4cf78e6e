"""Which PID namespace this process lives in: a pid means something only within it.

`session.py` tells it in HELLO, the coordinator compares before it watches a process.
"""

from __future__ import annotations

from pathlib import Path


def pid_namespace() -> str:
    """A text that two processes share when they see each other's pids; "" where /proc does not tell."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""
