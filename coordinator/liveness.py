"""Knowing at once that a process on this host has died: a descriptor per process, readable when it ends.

`process.py` waits on these beside its link; processes elsewhere are known by their heartbeats alone.
"""

from __future__ import annotations

import os

from ..links import pid_namespace


def open_pidfd(pid: int, *, host: str, namespace: str, own_host: str) -> int | None:
    """A descriptor that becomes readable when the process ends; None when it is not one of ours to see.

    None too when there is no descriptor left to see it with: its silence will tell.

    Raises ProcessLookupError when it has ended already.
    """
    if pid <= 0 or host != own_host or not namespace or namespace != pid_namespace():
        return None
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise
    except OSError:
        return None
