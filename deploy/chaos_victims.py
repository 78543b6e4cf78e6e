"""Which processes `tensoryard chaos` may hurt: those of the named cluster, beyond doubt, and no other.

A process id is only a number: another process may have it by now, or it may count in another PID namespace. So each
victim is held by a pidfd from before the proof, and the proof is the kernel's word on who serves the socket that only
this worker's pool, or this coordinator, has. `chaos_faults.py` sends the signals.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import struct
from collections.abc import Callable
from typing import Self

from ..client import Client
from ..coordinator.connection import connections
from ..errors import TensoryardError
from ..proto.status import ClusterStatus
from ..shm import Inspector, host_name
from .vitals import started_ticks, user_of

#: How long a coordinator may take to tell its status, and pools to answer.
ASK_S = 2.0
_PEER_CREDENTIALS = struct.Struct("3i")


class Victim:
    """One process of the cluster, held by a pidfd: signals reach it or nobody. Close it when done."""

    def __init__(self, role: str, name: str, pid: int) -> None:
        """Raises ProcessLookupError when there is no such process, or it is not ours to signal."""
        self.role = role
        self.name = name
        self.pid = pid
        self._fd = os.pidfd_open(pid)
        self.started = started_ticks(pid)
        if user_of(pid) != os.geteuid():
            self.close()
            raise ProcessLookupError(errno.ESRCH, "a process of another user")

    def signal(self, number: int) -> bool:
        """Send it a signal; False when it has ended."""
        if self._fd < 0:
            return False
        try:
            signal.pidfd_send_signal(self._fd, number)
        except ProcessLookupError:
            return False
        return True

    def close(self) -> None:
        """Let go of it; again is harmless."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


def find_workers(client: Client, *, models: set[str] | None = None) -> list[Victim]:
    """The workers of the cluster that serve on this host now, of these models or of all. Close what you get.

    Empty while the coordinator does not answer.
    """
    status = _status(client)
    found = [
        (worker.name, worker.pid)
        for model in (status.models if status is not None else ())
        for worker in model.workers
        if worker.state == "ready" and worker.host == host_name() and (models is None or model.model in models)
    ]
    victims = [victim for name, pid in sorted(found) if (victim := _held("worker", name, pid)) is not None]
    with Inspector() as inspector:
        serving = {(report.owner, report.pid) for report in inspector.look(timeout_s=ASK_S)}
    return _proven(victims, lambda victim: (f"worker {victim.name}", victim.pid) in serving)


def find_coordinator(client: Client) -> Victim | None:
    """The coordinator, where it runs on this host and it is certain which process it is. Close what you get."""
    status = _status(client)
    told = [found for found in connections() if status is not None and found.address == status.address]
    held = [victim for found in told if (victim := _held("coordinator", "coordinator", found.pid)) is not None]
    proven = _proven(held, lambda victim: listener_pid(told[0].address) == victim.pid)
    return proven[0] if proven else None


def _status(client: Client) -> ClusterStatus | None:
    try:
        return client.status(timeout_s=ASK_S)
    except TensoryardError:
        return None


def _held(role: str, name: str, pid: int) -> Victim | None:
    try:
        return Victim(role, name, pid) if pid > 0 else None
    except OSError:
        return None


def _proven(victims: list[Victim], is_meant: Callable[[Victim], bool]) -> list[Victim]:
    """Those that the proof, made after their pidfds were opened, speaks for; the others are let go of."""
    meant = [victim for victim in victims if is_meant(victim)]
    for victim in victims:
        if victim not in meant:
            victim.close()
    return meant


def listener_pid(address: str) -> int:
    """The process that listens at a socket's file, as the kernel names it; 0 when there is none, or no telling."""
    scheme, _, path = address.partition("://")
    if scheme not in ("ipc", "unix"):
        return 0
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(ASK_S)
            sock.connect(path)
            raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
            return int(_PEER_CREDENTIALS.unpack(raw)[0])
    return 0
