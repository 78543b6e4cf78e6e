"""The near end of a host: a process that runs contenders, started, asked, stopped between turns and ended from here.

`host.py` is the far end. Everything it starts carries marks in its environment: the run's, by which `sweep` finds what
is left, and the house's own, by which `freeze` stops all of it (SIGSTOP). Some contenders use half a core while they
wait for work; that would be taken from whoever is measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MARK, HOUSE_MARK = "TYBENCH_MARK", "TYBENCH_HOUSE"
#: What was stopped has timers that are overdue: it gets so long to see to them before it is measured.
SETTLE_S = 0.1
START_TIMEOUT_S = 150.0
STOP_TIMEOUT_S = 30.0
#: A measurement may take so long beyond its budget: the samples that are taken whatever they cost.
PATIENCE_S = 90.0


class HouseLostError(Exception):
    """The process does not answer, or has ended."""


class House:
    """One host and the contenders in it."""

    def __init__(self, module: str, names: list[str], mark: str, *, quiet: bool = True) -> None:
        self.names = names
        theirs_read, self._write = os.pipe()
        self._read, theirs_write = os.pipe()
        command = [sys.executable, "-m", f"{__package__}.host", module, str(theirs_read), str(theirs_write)]
        told = subprocess.DEVNULL if quiet else None
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=told,
            stderr=told,
            pass_fds=[theirs_read, theirs_write],
            start_new_session=True,
            env={**os.environ, "PYTHONSAFEPATH": "1", MARK: mark, HOUSE_MARK: f"{mark}-{module}"},
        )
        self._mark = f"{mark}-{module}"
        #: What is stopped.
        self._frozen: list[int] = []
        os.close(theirs_read)
        os.close(theirs_write)
        self._buffer = b""

    def start(self) -> dict[str, Any]:
        """Start the contenders: by name, what each cannot do or why it is not here."""
        return self._ask({"do": "start", "names": self.names}, START_TIMEOUT_S)

    def freeze(self) -> None:
        """Stop the host and everything that it started."""
        self._frozen = marked(self._mark, HOUSE_MARK)
        _signal(self._frozen, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        if self._frozen:
            _signal(self._frozen, signal.SIGCONT)
            self._frozen = []
            time.sleep(SETTLE_S)

    def measure(self, contender: str, work: str, *, samples: int, budget_s: float, seed: int) -> dict[str, Any]:
        """Samples of one contender at one work."""
        message = {"do": "measure", "contender": contender, "work": work, "samples": samples}
        return self._ask({**message, "budget_s": budget_s, "seed": seed}, budget_s + PATIENCE_S)

    def notes(self, contender: str) -> dict[str, Any]:
        """What a contender knows of its last answer."""
        return self._ask({"do": "notes", "contender": contender}, PATIENCE_S)

    def _ask(self, message: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        try:
            os.write(self._write, json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise HouseLostError(self._end()) from error
        answer: dict[str, Any] = json.loads(self._line(timeout_s))
        return answer

    def _line(self, timeout_s: float) -> bytes:
        give_up = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            left = give_up - time.monotonic()
            if left <= 0 or not select.select([self._read], [], [], left)[0]:
                raise HouseLostError(f"no answer within {timeout_s:.0f} s")
            got = os.read(self._read, 1 << 16)
            if not got:
                raise HouseLostError(self._end())
            self._buffer += got
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _end(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        return f"its process ended with code {self._process.returncode}"

    def close(self) -> None:
        """Let it stop its contenders; what does not end in time is for `sweep`."""
        self.thaw()
        if self._write >= 0:
            os.close(self._write)
            self._write = -1
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_TIMEOUT_S)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if self._read >= 0:
            os.close(self._read)
            self._read = -1


def marked(mark: str, name: str = MARK) -> list[int]:
    """The live processes that carry a mark, but this one."""
    wanted, found = f"{name}={mark}".encode(), []
    for pid in (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()):
        with contextlib.suppress(OSError):
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state != "Z" and pid != os.getpid() and wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.append(pid)
    return found


def sweep(mark: str, *, patience_s: float = 10.0) -> int:
    """Wait for what carries the mark to end, then kill what did not; how many that were."""
    give_up = time.monotonic() + patience_s
    while marked(mark) and time.monotonic() < give_up:
        time.sleep(0.1)
    killed: set[int] = set()
    while left := marked(mark):
        _signal(left, signal.SIGKILL)
        killed.update(left)
        time.sleep(0.02)
    return len(killed)


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    """To those that are still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


class Guardian:
    """A process that outlives this one only to sweep after it: killed, it could not end what it had stopped."""

    def __init__(self, mark: str) -> None:
        command = [sys.executable, "-m", f"{__package__}.guardian", mark]
        environment = {**os.environ, "PYTHONSAFEPATH": "1"}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, start_new_session=True)

    def close(self) -> None:
        """It finds nothing to do, and ends."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
