"""A hub's door: the listening socket of one `unix://` address, and its file.

`seqpacket_hub.py` has one per address, and all who are let in.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from pathlib import Path

from ..errors import ConfigError
from .unix_socket import is_same_user, listen, path_of, prepared

log = logging.getLogger(__name__)

#: Peers let in before those that are in have their turn again.
_ACCEPTS_PER_TURN = 64
#: Peers that were turned away are logged up to this many.
_LOGGED = 100


class Door:
    """Listens at an address; ConfigError when it cannot."""

    def __init__(self, address: str) -> None:
        self._path = path_of(address)
        try:
            self._listener = listen(self._path)
        except OSError as error:
            raise ConfigError(f"cannot listen on {address}: {error}") from error
        self._file = _identity(self._path)
        #: Given up for a moment when there is no other descriptor with which to accept, and refuse, a peer.
        self._spare_fd = _spare_fd()
        self._turned_away = 0

    def fileno(self) -> int:
        """Readable when somebody waits outside."""
        return self._listener.fileno()

    def let_in(self) -> list[socket.socket]:
        """Connections to some of those that wait; one who is another user, or one too many, is turned away."""
        let_in = []
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                sock, _ = self._listener.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    self._refuse_one()
                break
            if is_same_user(sock):
                let_in.append(prepared(sock))
            else:
                sock.close()
                self._complain("it belongs to another user")
        return let_in

    def _refuse_one(self) -> None:
        """Without a descriptor for it, a peer would wait outside for ever; refused, it tries again later."""
        with contextlib.suppress(OSError):
            os.close(self._spare_fd)
            self._listener.accept()[0].close()
        self._spare_fd = _spare_fd()
        self._complain("this process may open no more files (ulimit -n)")

    def _complain(self, why: str) -> None:
        self._turned_away += 1
        if self._turned_away <= _LOGGED:
            log.warning("a peer was turned away: %s", why)

    def close(self) -> None:
        """Stop listening, and take the file away, unless it is a successor's."""
        if self._file is not None and _identity(self._path) == self._file:
            self._path.unlink(missing_ok=True)
        self.abandon()

    def abandon(self) -> None:
        """Let go of the socket and leave its file alone."""
        self._listener.close()
        fd, self._spare_fd = self._spare_fd, -1
        if fd >= 0:
            os.close(fd)


def _spare_fd() -> int:
    """A descriptor for nothing; -1 when even that cannot be had."""
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from another at the same path later."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
