"""The client processes of `tensoryard chaos`: started, told what to do, killed, and listened to.

What runs in each is `chaos_client.py`; what they tell goes into the books (`chaos_books.py`), by one thread for each,
under one lock.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import IO, Any

import msgspec

from ..workers.launchers import child_environment
from .chaos_books import Books
from .chaos_client import Again, Command, Ended, Event, Left, Order, Ready, Sent

CLIENT_MODULE = "tensoryard.deploy.chaos_client"
#: How often it is looked whether one that is waited for has ended.
_POLL_S = 0.1
#: Characters of a client's complaints that are shown.
_TAIL_CHARS = 600


class Clerk:
    """The books, for many threads."""

    def __init__(self) -> None:
        self._books = Books()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def books(self) -> Iterator[Books]:
        """The books, for as long as the block lasts nobody else's."""
        with self._lock:
            yield self._books


class ClientProcess:
    """One client process, and the thread that hears it."""

    def __init__(self, name: str, order: Order, clerk: Clerk) -> None:
        self.name = name
        self.prefix = order.prefix
        self._clerk = clerk
        self.ready = threading.Event()
        self._left = False
        #: We have ended it: its end is no surprise, and what it had under way is owed to nobody.
        self._killed = False
        self._complaints: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the thread
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", CLIENT_MODULE, msgspec.json.encode(order).decode()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            start_new_session=True,  # Ctrl-C is for us; they end with their input
            env=child_environment(),
        )
        self._thread = threading.Thread(target=self._hear, name=f"chaos-{name}", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it may still be told something."""
        return self._process.poll() is None and not self._killed

    def tell(self, what: str, seconds: float = 0.0) -> None:
        """A command; lost when it has ended."""
        assert self._process.stdin is not None, "it was started with a pipe"
        with contextlib.suppress(OSError):
            self._process.stdin.write(msgspec.json.encode(Command(what, seconds)) + b"\n")
            self._process.stdin.flush()

    def signal(self, number: int) -> None:
        """Freeze or thaw it; it is our child and not buried before its thread has ended, so nobody else is hit."""
        if self.is_alive:
            self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait until its books are closed."""
        if self._process.poll() is None:
            self._killed = True
            self._process.kill()
        self._thread.join()

    def wait_ready(self, give_up: float) -> bool:
        """Wait until it is connected; False when it is not by then (monotonic seconds), or has ended."""
        while not self.ready.wait(_POLL_S):
            if time.monotonic() > give_up or not self.is_alive:
                return False
        return True

    def wait_left(self, give_up: float) -> bool:
        """Wait until it has ended; False when it has not by then (monotonic seconds)."""
        self._thread.join(max(give_up - time.monotonic(), 0))
        return not self._thread.is_alive()

    def _hear(self) -> None:
        assert self._process.stdout is not None, "it was started with a pipe"
        decoder = msgspec.json.Decoder(Event)
        for line in self._process.stdout:
            with contextlib.suppress(msgspec.DecodeError):  # a line that its kill cut off
                self._take(decoder.decode(line))
        code = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._close_books(code)
        self._complaints.close()

    def _take(self, event: Event) -> None:
        with self._clerk.books() as books:
            match event:
                case Sent(number=number, kind=kind, manner=manner):
                    books.send(self.name, number, kind=kind, manner=manner)
                case Ended(number=number, outcome=outcome, detail=detail, took_s=took_s):
                    books.end(self.name, number, outcome, detail=detail, took_s=took_s)
                case Again(number=number, detail=detail):
                    books.answer_again(self.name, number, detail=detail)
                case Ready():
                    self.ready.set()
                case Left():
                    self._left = True

    def _close_books(self, code: int) -> None:
        with self._clerk.books() as books:
            if self._left:
                books.client_left(self.name)
                return
            if not self._killed:
                books.violated(f"{self.name} ended by itself (code {code}): {self._complained()}")
            books.client_killed(self.name)

    def _complained(self) -> str:
        self._complaints.seek(0)
        return self._complaints.read().decode(errors="replace").strip()[-_TAIL_CHARS:] or "it said nothing"


class Clients:
    """The client processes of one run. `order` has what is common to all; each gets a name and a seed of its own."""

    def __init__(self, order: Order, clerk: Clerk, *, count: int) -> None:
        self._order = order
        self._clerk = clerk
        self._count = count
        self._started = 0
        self.present: list[ClientProcess] = []

    def start(self) -> None:
        """As many as there should be."""
        self.present = [client for client in self.present if client.is_alive]
        while len(self.present) < self._count:
            self.present.append(self._start())

    def wait_ready(self, give_up: float) -> bool:
        """Wait until all are connected; False when one is not by then (monotonic seconds), or has ended."""
        return all(client.wait_ready(give_up) for client in self.present)

    def _start(self) -> ClientProcess:
        self._started += 1
        name = f"client-{self._started}"
        own: dict[str, Any] = {
            "prefix": f"{self._order.prefix}{self._started}-",
            "seed": f"{self._order.seed}/{name}",
        }
        return ClientProcess(name, msgspec.structs.replace(self._order, **own), self._clerk)

    def live_ids(self) -> list[str]:
        """Requests that are under way now, by RequestID."""
        with self._clerk.books() as books:
            return [
                f"{client.prefix}{number}" for client in self.present for number in books.numbers_under_way(client.name)
            ]

    def stop(self) -> None:
        """Let all finish what they have under way, and leave; one that does not is a violation, and killed."""
        for client in self.present:
            client.tell("stop")
        give_up = time.monotonic() + self._order.patience_s * 1.5
        for client in self.present:
            if not client.wait_left(give_up):
                with self._clerk.books() as books:
                    books.violated(f"{client.name} (pid {client.pid}) did not end when it was told to")
                client.kill()
        self.present = []

    def close(self) -> None:
        """Kill what is left; again is harmless."""
        for client in self.present:
            client.signal(signal.SIGCONT)
            client.kill()
        self.present = []
