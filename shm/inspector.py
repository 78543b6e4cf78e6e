"""Asking every pool of this user on this host what it holds: all at once, and none for longer than a moment.

The other side is `server.py`, what it tells is in `ledger.py`. Looks only: nothing is freed, swept or held up by it; a
pool that is dead, stopped or of another version is reported as such.
"""

from __future__ import annotations

import os
import selectors
import socket
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ..errors import ForgedHandle
from . import messages
from .ledger import MAX_PAGE_BYTES, LiveBlock, PoolStatistics, decode_page
from .runtime_dir import runtime_dir

#: Blocks taken over from one pool if not said otherwise: the oldest.
MAX_BLOCKS = 1024
#: How long a pool may take to answer, in seconds.
TIMEOUT_S = 1.0
_PEER_CREDENTIALS = struct.Struct("3i")
_CLOSED = "it has closed the connection: it has ended, or has too many readers"


@dataclass(frozen=True, kw_only=True)
class PoolReport:
    """What one pool told, or why it told nothing (`trouble`; "" when it answered).

    `pid` is the process that serves it, as the kernel names it (0: unknown, or not visible in our PID namespace);
    `owner` what that process calls itself. `blocks` are the oldest live ones; `unlisted` more were not asked for.
    """

    pool: str
    pid: int = 0
    owner: str = ""
    trouble: str = ""
    statistics: PoolStatistics | None = None
    blocks: tuple[LiveBlock, ...] = ()
    unlisted: int = 0


class Inspector:
    """Looks at pools, again and again; keeps its connections between looks. Not thread-safe."""

    def __init__(self) -> None:
        self._asked: dict[Path, _Asked] = {}

    def look(self, *, timeout_s: float = TIMEOUT_S, max_blocks: int = MAX_BLOCKS) -> list[PoolReport]:
        """What each pool says now, by name; returns after `timeout_s` seconds at the latest."""
        give_up = time.monotonic() + timeout_s
        self._connect(max_blocks)
        with selectors.DefaultSelector() as selector:
            for asked in self._asked.values():
                if asked.sock is not None and asked.waiting:
                    selector.register(asked.sock, selectors.EVENT_READ, asked)
            while selector.get_map() and (left := give_up - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    key.data.receive()
                    if not key.data.waiting:
                        selector.unregister(key.fileobj)
        return [asked.report(timeout_s) for asked in self._asked.values()]

    def _connect(self, max_blocks: int) -> None:
        """Begin with every pool that is there; anew with those whose connection has ended since."""
        paths = sorted(runtime_dir().glob("pool-*.sock"))
        for path, asked in list(self._asked.items()):
            asked.begin(max_blocks)
            if path not in paths or asked.trouble:
                self._asked.pop(path).close()
        for path in paths:
            if path not in self._asked:
                self._asked[path] = _Asked(path)
                self._asked[path].begin(max_blocks)

    def close(self) -> None:
        """Let go of every connection; again is harmless."""
        while self._asked:
            self._asked.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Asked:
    """One pool: our connection to it and what it has told in this look.

    At most one question is open at a time, also over several looks: a stopped owner finds one when it comes to itself.
    """

    def __init__(self, path: Path) -> None:
        self._name = path.stem.removeprefix("pool-")
        self.sock: socket.socket | None = None
        self.trouble = ""
        #: Whether this look is not over.
        self.waiting = False
        self._pid = 0
        self._welcomed = False
        self._open_question = False
        self._reset(0)
        try:
            self._connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            self._fail("its process has ended; the socket that is left will be swept by the next pool that starts")
        except BlockingIOError:  # more connections than may wait to be accepted
            self._fail("it takes no connections: stopped, or very busy")
        except OSError as error:
            self._fail(f"it cannot be asked ({error.strerror})")

    def _connect(self, path: Path) -> None:
        kind = socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self.sock = socket.socket(socket.AF_UNIX, kind)
        self.sock.connect(os.fspath(path))
        raw = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
        self._pid = _PEER_CREDENTIALS.unpack(raw)[0]

    def _reset(self, max_blocks: int) -> None:
        self._max_blocks = max_blocks
        self._owner = ""
        self._statistics: PoolStatistics | None = None
        self._blocks: list[LiveBlock] = []

    def begin(self, max_blocks: int) -> None:
        """A new look; what failed before has still failed."""
        self._reset(max_blocks)
        self.waiting = self.sock is not None
        if self._welcomed and not self._open_question:
            self._ask()

    def _ask(self) -> None:
        """For the blocks behind those that we have."""
        assert self.sock is not None, "only a connected pool is asked"
        try:
            self.sock.send(messages.pack(messages.TELL, self._after), socket.MSG_NOSIGNAL)
            self._open_question = True
        except OSError:
            self._fail(_CLOSED)

    @property
    def _after(self) -> int:
        return self._blocks[-1].generation if self._blocks else 0

    def receive(self) -> None:
        """Something has come."""
        assert self.sock is not None, "only a connected pool is listened to"
        try:
            packet, fds = messages.receive(self.sock, 1 + MAX_PAGE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            packet, fds = b"", []
        for fd in fds:  # the lease table that a reader would use
            os.close(fd)
        if not packet:
            self._fail(_CLOSED)
        elif not self._welcomed:
            self._take_welcome(packet)
        elif packet[:1] == messages.PAGE:
            self._take_page(packet[1:])

    def _take_welcome(self, packet: bytes) -> None:
        if packet == messages.WELCOME:
            self._welcomed = True
            self._ask()
        else:
            self._fail(f"it speaks another version ({packet[:16]!r}, and we {messages.WELCOME!r})")

    def _take_page(self, data: bytes) -> None:
        self._open_question = False
        try:
            page = decode_page(data)
        except ForgedHandle as error:
            self._fail(error.text)
            return
        if page.after != self._after:  # of a look that was given up
            self._ask()
            return
        self._owner = page.owner
        self._statistics = self._statistics or page.statistics
        self._blocks += page.blocks
        if page.more and page.blocks and len(self._blocks) < self._max_blocks:
            self._ask()
        else:
            self.waiting = False

    def _fail(self, why: str) -> None:
        self.trouble = why
        self.waiting = False
        self.close()

    def report(self, timeout_s: float) -> PoolReport:
        """What has come of this look."""
        silent = f"it has not answered within {timeout_s:g} s: stopped, or very busy" if self.waiting else ""
        used = self._statistics.used_blocks if self._statistics else 0
        blocks = tuple(self._blocks[: self._max_blocks])
        return PoolReport(
            pool=self._name,
            pid=self._pid,
            owner=self._owner,
            trouble=self.trouble or silent,
            statistics=self._statistics,
            blocks=blocks,
            unlisted=max(used - len(blocks), 0),
        )

    def close(self) -> None:
        """Let go of the connection."""
        if self.sock is not None:
            self.sock.close()
        self.sock = None
