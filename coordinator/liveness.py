"""Knowing at once that a process on this host has died: a descriptor per process, readable when it ends.

`process.py` waits on all of them as one, beside its link; processes elsewhere are known by their heartbeats alone.
"""

from __future__ import annotations

import os
import select

from ..links import pid_namespace
from .actions import Watch

#: Ends told at once; the others a moment later.
_MOST = 64


class ProcessWatch:
    """The processes of those peers that can be seen from here; readable when one has ended, however many there are."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._epoll = select.epoll()
        self._by_peer: dict[bytes, int] = {}
        self._by_pidfd: dict[int, bytes] = {}

    def watch(self, wish: Watch) -> None:
        """Watch a peer's process, if it is one of ours to see; one that has ended already is left to its silence."""
        try:
            pidfd = open_pidfd(wish.pid, host=wish.host, namespace=wish.pid_namespace, own_host=self._host)
        except ProcessLookupError:
            return
        if pidfd is not None:
            self._by_peer[wish.peer] = pidfd
            self._by_pidfd[pidfd] = wish.peer
            self._epoll.register(pidfd, select.EPOLLIN)

    def forget(self, peer: bytes) -> None:
        """Watch it no longer; harmless when it was not watched."""
        pidfd = self._by_peer.pop(peer, None)
        if pidfd is not None:
            del self._by_pidfd[pidfd]
            self._epoll.unregister(pidfd)
            os.close(pidfd)

    def fileno(self) -> int:
        """The one descriptor to wait on."""
        return self._epoll.fileno()

    def ended(self) -> list[bytes]:
        """Peers whose process has ended and that have not been forgotten since, some at a time."""
        return [self._by_pidfd[fd] for fd, _ in self._epoll.poll(0, _MOST)]

    def close(self) -> None:
        """Watch nobody any more. Again is harmless."""
        for peer in list(self._by_peer):
            self.forget(peer)
        self._epoll.close()

    def __len__(self) -> int:
        return len(self._by_peer)


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
