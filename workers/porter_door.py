"""A porter's door: processes of this host come in by a UNIX socket and ask for arrays of others.

`shm/courier.py` is the other side. Each connection has a thread of its own, which waits for the array as its reader
does; both are bounded.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ..errors import TensoryardError
from ..logs import logger
from ..shm import SharedMemoryArray, messages
from ..shm.courier import MAX_PACKET_BYTES, answer_of, is_same_user, question_of
from ..shm.runtime_dir import is_dead, listen
from .porter import told

log = logger(__name__)

#: Processes of this host at once, each with a few connections; more are refused, and their arrays go in messages.
MAX_CONNECTIONS = 1024
_TICK_S = 1.0
#: A pause after trouble that may not pass by itself, such as too many open files.
_TROUBLE_S = 0.1


class PorterDoor:
    """Answers FETCH. `fetch` brings an array, `withdraw` takes one back whose asker is gone."""

    def __init__(
        self,
        path: Path,
        fetch: Callable[[SharedMemoryArray, int, str], SharedMemoryArray],
        withdraw: Callable[[SharedMemoryArray], None],
        on_tick: Callable[[], None],
    ) -> None:
        self._path = path
        self._fetch = fetch
        self._withdraw = withdraw
        self._on_tick = on_tick
        self._listener = listen(path)
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="tensoryard-porter", daemon=True)

    def start(self) -> None:
        """Let them in."""
        self._thread.start()

    def _run(self) -> None:
        while not self._closing:
            try:
                self._turn()
            except Exception:
                log.exception("a porter could not look after its things")
                time.sleep(_TROUBLE_S)

    def _turn(self) -> None:
        """Let in who comes, for a second; then look after things."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            if selector.select(_TICK_S):
                if not self._closing:
                    self._admit(self._listener.accept()[0])
                return
        self._on_tick()
        if not self._closing and is_dead(self._path):  # another porter of this host had the name, and has ended
            self._listener.close()
            self._listener = listen(self._path)

    def _admit(self, sock: socket.socket) -> None:
        with self._lock:
            admitted = is_same_user(sock) and len(self._open) < MAX_CONNECTIONS and not self._closing
            if admitted:
                self._open.add(sock)
        if not admitted:
            log.warning("a porter refused a process (%d are connected)", len(self._open))
            sock.close()
            return
        threading.Thread(target=self._serve, args=(sock,), name="tensoryard-fetch", daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            while (packet := sock.recv(MAX_PACKET_BYTES))[:1] == messages.FETCH:
                self._answer(sock, packet[1:])
        except OSError:
            pass
        finally:
            with self._lock:
                self._open.discard(sock)
            sock.close()

    def _answer(self, sock: socket.socket, question: bytes) -> None:
        result: SharedMemoryArray | TensoryardError
        try:
            result = self._fetch(*question_of(question))
        except Exception as error:
            result = told(error)
        try:
            sock.sendall(answer_of(result))
        except OSError:
            if isinstance(result, SharedMemoryArray):
                self._withdraw(result)
            raise

    def close(self) -> None:
        """Let nobody in any more, and everybody go. Again is harmless."""
        self._closing = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # which the thread sees
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(5 * _TICK_S)
        self._path.unlink(missing_ok=True)
        self._listener.close()
        with self._lock:
            connections = list(self._open)
        for sock in connections:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
