"""Fixtures of the shared-memory tests: pools and readers that end, other processes."""

from __future__ import annotations

import gc
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tensoryard.shm import Pool, Reader, SharedMemoryArray

_DEADLINE_S = 30.0


def _eventually(condition: Callable[[], object], what: str) -> None:
    give_up = time.monotonic() + _DEADLINE_S
    while not condition():
        assert time.monotonic() < give_up, f"not within {_DEADLINE_S:.0f} s: {what}"
        time.sleep(0.002)


@pytest.fixture
def make_pool() -> Iterator[Callable[..., Pool]]:
    """Makes pools (64 MiB of budget if not said), checks their books and closes them."""
    pools: list[Pool] = []

    def make(**options: Any) -> Pool:
        pools.append(Pool(**{"budget_bytes": 64 << 20, **options}))
        return pools[-1]

    yield make
    for pool in pools:
        pool.check_invariants()
        pool.close()
        pool.check_invariants()
        assert not pool._server._thread.is_alive(), "the server's thread has not ended"


@pytest.fixture
def pool(make_pool: Callable[..., Pool]) -> Pool:
    """A pool of 64 MiB."""
    return make_pool()


@pytest.fixture
def make_reader() -> Iterator[Callable[[], Reader]]:
    """Makes readers and closes them."""
    readers: list[Reader] = []

    def make() -> Reader:
        readers.append(Reader())
        return readers[-1]

    yield make
    for reader in readers:
        reader.close()


@pytest.fixture
def reader(make_reader: Callable[[], Reader]) -> Reader:
    """A reader."""
    return make_reader()


@pytest.fixture
def mapped() -> Callable[[], int]:
    """Bytes of segments that this process has mapped since the test began: what others left may go at any time."""
    there = _segments()
    return lambda: _total(_segments() - there)


def _segments() -> set[tuple[str, str, str]]:
    """Where each mapped segment begins and ends, and its inode; lease tables do not count."""
    gc.collect()
    maps = Path("/proc/self/maps").read_text()
    return set(re.findall(r"^(\w+)-(\w+) \S+ \S+ \S+ (\d+) +/memfd:tensoryard \(deleted\)$", maps, re.MULTILINE))


def _total(segments: set[tuple[str, str, str]]) -> int:
    return sum(int(end, 16) - int(start, 16) for start, end, _ in segments)


@pytest.fixture
def in_thread() -> Iterator[Callable[..., _Started]]:
    """Runs a function in a thread; `result()` gives what it returned or raises what it raised."""
    started: list[_Started] = []

    def run(function: Callable[..., Any], *args: Any, **kwargs: Any) -> _Started:
        started.append(_Started(function, args, kwargs))
        return started[-1]

    yield run
    for thread in started:
        thread.join(_DEADLINE_S)
        assert not thread.is_alive(), "a test's thread did not end"


class _Started(threading.Thread):
    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self._call = (function, args, kwargs)
        self._outcome: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        function, args, kwargs = self._call
        del self._call
        try:
            self._outcome = function(*args, **kwargs)
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        self.join(_DEADLINE_S)
        assert not self.is_alive(), "a test's thread did not end"
        if self._error is not None:
            raise self._error
        return self._outcome


_REMOTE = """
import ctypes, fcntl, gc, json, mmap, os, resource, signal, socket, sys, threading, time
import numpy as np
from tensoryard.shm import Pool, Reader, SharedMemoryArray

def H(fields):
    return SharedMemoryArray(fields[0], tuple(fields[1]), *fields[2:])

scope = dict(globals())
for line in sys.stdin:
    job = json.loads(line)
    scope.update(job["values"])
    try:
        exec(job["do"], scope)
        answer = {"value": eval(job["get"], scope)}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
        del error
    print(json.dumps(answer), flush=True)
"""


class RemoteError(Exception):
    """What another process raised: its type's name and its text."""


class Remote:
    """Another Python process, with a Pool or Reader of its own, which runs what the test tells it."""

    def __init__(self, errors: Path) -> None:
        self.errors = errors
        with errors.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-W", "error", "-c", _REMOTE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                bufsize=0,
            )
        self.pid = self.process.pid

    def tell(self, do: str = "", get: str = "None", **values: Any) -> None:
        """Have code run there, without waiting for it. Handles among the values travel as their fields."""
        wire = {
            key: value.to_wire() if isinstance(value, SharedMemoryArray) else value for key, value in values.items()
        }
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, "get": get, "values": wire}).encode() + b"\n")

    def answer(self) -> Any:
        """The value of what was told last, or RemoteError."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], _DEADLINE_S)
        assert ready, f"no answer within {_DEADLINE_S:.0f} s: {self.errors.read_text()}"
        line = self.process.stdout.readline()
        assert line, f"the process has ended: {self.errors.read_text()}"
        answer = json.loads(line)
        if "error" in answer:
            raise RemoteError(answer["error"])
        return answer["value"]

    def do(self, do: str = "", get: str = "None", **values: Any) -> Any:
        """Run code there and give the value of an expression."""
        self.tell(do, get, **values)
        return self.answer()

    def get(self, expression: str, **values: Any) -> Any:
        """The value of an expression there."""
        return self.do("", expression, **values)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.kill()
        self.process.wait(_DEADLINE_S)

    def stop(self) -> None:
        """SIGSTOP, and wait until it has stopped."""
        os.kill(self.pid, signal.SIGSTOP)
        state = Path(f"/proc/{self.pid}/stat")
        _eventually(lambda: state.read_text().rsplit(")", 1)[1].split()[0] == "T", "the process stops")

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def finish(self) -> None:
        """Let it end by itself; it must do so silently."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(_DEADLINE_S) == 0
        assert self.errors.read_text() == ""


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Callable[[], Remote]]:
    """Starts other processes; none outlives the test, and none may have complained."""
    remotes: list[Remote] = []

    def start() -> Remote:
        remotes.append(Remote(tmp_path / f"stderr-{len(remotes)}"))
        return remotes[-1]

    yield start
    for remote in remotes:
        remote.kill()
        for pipe in (remote.process.stdin, remote.process.stdout):
            if pipe is not None:
                pipe.close()
    for remote in remotes:
        assert remote.errors.read_text() == ""


@pytest.fixture
def handle_of() -> Callable[[list[Any]], SharedMemoryArray]:
    """A handle from the fields that another process sent."""
    return lambda fields: SharedMemoryArray(fields[0], tuple(fields[1]), *fields[2:])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The fixture sets the marker."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here) and "spawn" in getattr(item, "fixturenames", ()):
            item.add_marker("process")
