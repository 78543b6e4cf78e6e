"""What a contender can do. Each module beside this one has one or more, as `make()`.

`host.py` calls them, times them and checks their answers; they know nothing of rounds, clocks or other contenders.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from ..works import Array, Work, touched


class NotHereError(Exception):
    """This contender cannot run on this machine; the text says why."""


class Contender:
    """One way to get work to another process and its answer back. What is not overridden it cannot do."""

    name = ""
    #: By kind of work, or name: why not. Kinds whose method is not overridden need no entry.
    cannot: dict[str, str] = {}  # noqa: RUF012 - replaced, never changed
    #: Arrays beyond are measured for ourselves and the floor alone.
    largest_bytes = 64 << 20

    def start(self) -> None:
        """Start the processes; returns when they serve. Raises NotHereError, or anything else, when they cannot."""

    def stop(self) -> None:
        """End them. Again, or without a start, is harmless."""

    def refuses(self, work: Work) -> str:
        """Why this work cannot be asked of it; "" when it can."""
        told = self.cannot.get(work.name) or self.cannot.get(work.kind)
        if work.nbytes > self.largest_bytes:
            return "peers are measured up to 64 MiB"
        method = _METHODS[work.kind]
        return told or ("" if getattr(type(self), method) is not getattr(Contender, method) else "nothing it does")

    def borrow(self, nbytes: int) -> Array:
        """Memory for the caller's array, every page of it touched: ordinary memory, unless it offers its own."""
        return touched(nbytes)

    def echo(self, message: bytes) -> bytes:
        """Bytes there and back."""
        raise NotImplementedError

    def flight(self, messages: Sequence[bytes], in_flight: int) -> Sequence[bytes]:
        """Many small messages there and back, at most so many under way at once; the answers in order."""
        raise NotImplementedError

    def read(self, array: Array) -> int | Array:
        """An array there; back its page sum; a floor may return what it copied."""
        raise NotImplementedError

    def make(self, nbytes: int, seed: int) -> Array:
        """An array back, as the other side's `fill` wrote it. It is the caller's until the next call."""
        raise NotImplementedError

    def shape(self, array: Array) -> int:
        """An array there, which nobody reads; back its size in bytes."""
        raise NotImplementedError

    def stream(self, streams: int, tokens: int) -> list[list[int]]:
        """So many streams at once of so many tokens each, as they came."""
        raise NotImplementedError

    def notes(self) -> dict[str, float]:
        """What else it knows of the last answer: copies made, bytes through sockets."""
        return {}


_METHODS = {kind: kind for kind in ("echo", "flight", "read", "make", "shape", "stream")}


def free_port() -> int:
    """A port of this machine's that nobody has at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def run_server(module: str, *arguments: str, pass_fds: Sequence[int] = ()) -> subprocess.Popen[bytes]:
    """A server of this folder in a process of its own; what it prints is not ours to show."""
    return run_script(sys.executable, "-m", f"{__package__}.{module}", *arguments, pass_fds=pass_fds)


def run_script(python: str, *arguments: str, pass_fds: Sequence[int] = ()) -> subprocess.Popen[bytes]:
    """The same with any Python; it and what it starts are a group, to be ended together."""
    return subprocess.Popen(
        [python, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=pass_fds,
        start_new_session=True,
    )


def wait_for(ready: Callable[[], bool], process: subprocess.Popen[bytes] | None = None, timeout_s: float = 60) -> None:
    """Poll until something is ready; NotHereError when it takes too long, or its process has ended."""
    give_up = time.monotonic() + timeout_s
    while not ready():
        if process is not None and process.poll() is not None:
            raise NotHereError(f"its server ended with code {process.returncode} before it served")
        if time.monotonic() > give_up:
            raise NotHereError(f"its server did not serve within {timeout_s:.0f} s")
        time.sleep(0.05)


def end(process: subprocess.Popen[bytes] | None, *, by_itself_s: float = 0, timeout_s: float = 10) -> None:
    """SIGTERM for one that does not end by itself; SIGKILL for one that does not listen, and for what it left."""
    if process is None:
        return
    for urge, patience_s in ((None, by_itself_s), (process.terminate, timeout_s), (process.kill, None)):
        if urge is not None:
            urge()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
