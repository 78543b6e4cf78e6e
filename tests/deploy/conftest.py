"""The command line as a user has it: started as a process, in a runtime folder by which its processes are known."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PATIENCE_S = 60.0


@pytest.fixture(scope="package", autouse=True)
def _one_thread_each() -> Iterator[None]:
    """One thread for each worker's mathematics: with more, workers on a small machine wait for one another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("OPENBLAS_NUM_THREADS", "1")
        yield


class CommandLine:
    """Starts `tensoryard` commands in a runtime folder of their own, and knows which processes came of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "TENSORYARD_RUNTIME_DIR": str(folder), "PYTHONUNBUFFERED": "1"}

    def start(self, *arguments: str, cwd: Path | None = None) -> subprocess.Popen[str]:
        """A command that goes on; its stdout and stderr are one pipe."""
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "tensoryard.deploy.cli", *arguments],
            env=self.environment,
            cwd=cwd or "/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, cwd: Path | None = None) -> tuple[int, str]:
        """Exit code and output of a command that ends."""
        return ended(self.start(*arguments, cwd=cwd))

    def processes(self) -> dict[int, str]:
        """Every living process whose environment names this runtime folder."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and entry.name != str(os.getpid()):
                try:
                    if f"TENSORYARD_RUNTIME_DIR={self.folder}\0".encode() in (entry / "environ").read_bytes():
                        found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
                except OSError:
                    continue
        return found


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and (remaining) output of a process; it is killed when it does not end."""
    try:
        output, _ = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"{process.args} did not end within {PATIENCE_S} s; it said: {output}")
    return process.returncode, output


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """Read output up to the line that contains `text`."""
    seen = ""
    assert process.stdout is not None
    for line in process.stdout:
        seen += line
        if text in line:
            return seen
    pytest.fail(f"it ended (code {process.wait()}) without saying {text!r}: {seen}")


@pytest.fixture
def command_line(eventually: Callable[[Callable[[], object], str], None]) -> Iterator[CommandLine]:
    """Commands in a runtime folder of their own; at the end no process of theirs is left."""
    folder = Path(tempfile.mkdtemp(prefix="ty-cli-"))
    commands = CommandLine(folder)
    try:
        yield commands
        eventually(lambda: not commands.processes(), "every process has ended")
    finally:
        for pid in commands.processes():
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder)
