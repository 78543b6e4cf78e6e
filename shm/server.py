"""The pool's door: one thread that hands segments to readers and notices when a reader is gone.

Owned by `pool.py`; `reader.py` is the other side. A reader's open connection is its liveness: the kernel closes it when
the process dies, in whatever PID namespace, and its leases end with it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import selectors
import socket
import struct
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..logs import logger
from . import messages
from .leases import TABLE_BYTES, GrantedLeases, fence
from .ledger import encode_page
from .os_memory import create_table
from .runtime_dir import listen, runtime_dir, sweep

if TYPE_CHECKING:
    from .blocks import BlockTable
    from .pool import Pool

log = logger(__name__)

#: How often idle segments and unclaimed results are looked at.
_TICK_S = 1.0
#: A pause after trouble that may not pass by itself, such as too many open files.
_TROUBLE_S = 0.1
#: Readers at once; more are refused. Each costs a descriptor, and a table of 32 KiB.
MAX_READERS = 4096
_PEER_CREDENTIALS = struct.Struct("3i")


class _ReaderConnection:
    """One reader: its socket and the owner's view of its lease table."""

    def __init__(self, key: int, sock: socket.socket, pid: int) -> None:
        self.key = key
        self.sock = sock
        #: As the kernel named it; for people only, since another process may have the number by now.
        self.pid = pid
        #: It has asked for the ledger: no reader, and not counted as one.
        self.only_looks = False
        self._table_fd, mapping = create_table(TABLE_BYTES)
        self.leases = GrantedLeases(mapping)

    def welcome(self) -> None:
        """Hand the table over; from here on the reader may claim, so the owner reads the table already."""
        try:
            with contextlib.suppress(ConnectionError):  # gone again: its end of file comes next
                socket.send_fds(self.sock, [messages.WELCOME], [self._table_fd], socket.MSG_NOSIGNAL)
        finally:
            os.close(self._table_fd)


class PoolServer:
    """Accepts readers of the same user, answers ATTACH and TELL, reads lease tables. Holds the pool weakly."""

    def __init__(self, pool: Pool) -> None:
        folder = runtime_dir()
        sweep(folder)
        self._path: Path = folder / f"pool-{pool.name}.sock"
        self._listener = listen(self._path)
        self._listener.setblocking(False)
        self._pool = weakref.ref(pool)
        self._keys = itertools.count(1)
        #: Changed by the server's thread only, under the pool's lock.
        self._readers: dict[int, _ReaderConnection] = {}
        #: Whether a thread waits for memory, as each reader's table says.
        self._waiting = False
        self._lock = pool._lock  # noqa: SLF001 - one lock for the pool's books, wherever they lie
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._finalizer = weakref.finalize(pool, _end, self._stop, self._path)
        self._thread = threading.Thread(target=self._run, name=f"tensoryard-pool-{pool.name[:6]}", daemon=True)

    def start(self) -> None:
        """Begin to serve; the pool is complete."""
        self._thread.start()

    # -- for the pool, called under its lock --------------------------------------------------------------------------

    @property
    def reader_count(self) -> int:
        """Readers connected now; who only looks at the ledger is none."""
        return sum(not reader.only_looks for reader in self._readers.values())

    def pid_of(self, reader: int) -> int:
        """The process behind a reader's key; 0 when it is gone, or cannot be seen from here."""
        found = self._readers.get(reader)
        return found.pid if found is not None else 0

    def read_leases(self, blocks: BlockTable) -> None:
        """Enter what readers claimed and released since the last look."""
        for reader in list(self._readers.values()):
            reader.leases.enter_changes(blocks, reader.key)

    def set_waiting(self, waiting: bool) -> None:
        """Ask readers for a WAKE at their next release."""
        self._waiting = waiting
        for reader in self._readers.values():
            reader.leases.set_waiting(waiting)
        fence()

    def close(self) -> None:
        """Stop the thread and remove the socket. Not under the pool's lock."""
        self._finalizer()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=5)

    def abandon(self) -> None:
        """In a forked child: let go of every socket without touching what the parent serves."""
        self._finalizer.detach()
        for sock in [self._listener, *(reader.sock for reader in self._readers.values())]:
            sock.close()
        self._readers = {}

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._stop, selectors.EVENT_READ)
            while True:
                ready = [key.fileobj for key, _ in selector.select(_TICK_S)]
                if self._stop in ready:  # always told, also when the pool is collected: see `_end`
                    break
                if pool := self._pool():
                    for fileobj in ready:
                        with _survived(pool):
                            self._serve(pool, selector, fileobj)
                    with _survived(pool):
                        pool.housekeep()
                del pool
        self._close_sockets()

    def _serve(self, pool: Pool, selector: selectors.BaseSelector, fileobj: object) -> None:
        if fileobj is self._listener:
            self._accept(selector)
        else:
            self._answer(pool, selector, fileobj)

    def _accept(self, selector: selectors.BaseSelector) -> None:
        sock, _ = self._listener.accept()
        sock.setblocking(False)
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
        pid, uid, _gid = _PEER_CREDENTIALS.unpack(raw)
        if uid != os.geteuid() or len(self._readers) >= MAX_READERS:
            log.warning("refused a reader of user %d (%d readers are connected)", uid, len(self._readers))
            sock.close()
            return
        try:
            reader = _ReaderConnection(next(self._keys), sock, pid)
        except BaseException:
            sock.close()
            raise
        with self._lock:
            reader.leases.set_waiting(self._waiting)
            self._readers[reader.key] = reader
        selector.register(sock, selectors.EVENT_READ, reader)
        reader.welcome()

    def _answer(self, pool: Pool, selector: selectors.BaseSelector, fileobj: object) -> None:
        reader: _ReaderConnection = selector.get_key(fileobj).data  # type: ignore[arg-type]
        try:
            packet, fds = messages.receive(reader.sock)
        except ConnectionError:
            packet, fds = b"", []
        for fd in fds:  # readers have none to give
            os.close(fd)
        kind, number = messages.unpack(packet)
        if kind == messages.ATTACH:
            self._hand_over(pool, reader, number)
        elif kind == messages.COPIED:
            pool.reader_copied(number)
        elif kind == messages.WAKE:
            pool.wake()
        elif kind == messages.TELL:
            reader.only_looks = True
            messages.send_quietly(reader.sock, messages.PAGE + encode_page(pool.page(number)))
        elif not packet:  # end of file. What we do not understand is no reason to end the leases of live views.
            selector.unregister(reader.sock)
            self._drop(pool, reader)

    def _hand_over(self, pool: Pool, reader: _ReaderConnection, number: int) -> None:
        """Answer an ATTACH. A reader asks once at a time, so the answer has room, or the reader breaks the rules."""
        fd = pool.segment_fd(number)
        if fd is None:
            messages.send_quietly(reader.sock, messages.pack(messages.NO_SEGMENT, number))
            return
        try:
            with contextlib.suppress(OSError):  # gone: its end of file comes next; or it does not read
                socket.send_fds(reader.sock, [messages.pack(messages.SEGMENT, number)], [fd], socket.MSG_NOSIGNAL)
        finally:
            os.close(fd)

    def _drop(self, pool: Pool, reader: _ReaderConnection) -> None:
        with self._lock:  # at once: a reader that is not counted claims nothing
            self._readers.pop(reader.key, None)
            pool.reader_gone(reader.key, reader.leases)
        reader.sock.close()
        pool.wake()

    def _close_sockets(self) -> None:
        self._listener.close()
        with self._lock:
            readers, self._readers = self._readers, {}
        for reader in readers.values():
            reader.sock.close()
        os.close(self._stop)


@contextlib.contextmanager
def _survived(pool: Pool) -> Iterator[None]:
    """One reader's trouble must not end the service of the others."""
    try:
        yield
    except Exception:
        log.exception("pool %s could not serve a reader, or give memory back", pool.name)
        time.sleep(_TROUBLE_S)


def _end(stop_fd: int, path: Path) -> None:
    """Tell the thread to stop and take the socket's name away; at `close`, collection, or the process's end."""
    path.unlink(missing_ok=True)
    os.eventfd_write(stop_fd, 1)
