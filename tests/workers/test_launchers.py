"""Launching plain processes: each worker's end is told once, and no process outlives what it belongs to."""

from __future__ import annotations

import ast
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tensoryard.errors import ShuttingDown
from tensoryard.proto import wire
from tensoryard.workers.launchers import ProcessLauncher, child_environment

from ..baseline import Baseline
from ..scripted import Hub
from .support import CALM, DEADLINE_S, body_of, deployment_of, dispatch, embed_request, until, write_pipeline

pytestmark = pytest.mark.process


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A coordinator that does as it is told."""
    with Hub() as hub:
        yield hub


class Ends:
    """What was told of workers' ends."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def __call__(self, name: str, text: str) -> None:
        self.told.append((name, text))

    def wait(self, count: int) -> list[tuple[str, str]]:
        until(lambda: len(self.told) >= count, f"{count} workers end")
        return self.told


@pytest.fixture
def ends() -> Ends:
    """Hears of workers' ends."""
    return Ends()


@pytest.fixture
def launcher() -> Iterator[ProcessLauncher]:
    """A launcher, closed at the end; none of its threads is left."""
    launcher = ProcessLauncher(CALM)
    yield launcher
    launcher.close()
    assert launcher.pids() == {}
    assert not [watcher for watcher in launcher._watchers if watcher.is_alive()]


def is_gone(pid: int) -> bool:
    """Whether a process has ended, or is only waiting to be noticed."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def gone(pid: int) -> Callable[[], bool]:
    return lambda: is_gone(pid)


def test_a_worker_runs_in_a_session_of_its_own(hub, launcher, ends, tmp_path):
    """So Ctrl-C in a terminal is the starter's to act on; the worker joins under the name it was given."""
    launcher.launch("m-1", deployment_of(write_pipeline(tmp_path)), hub.address, ends)
    [hello] = hub.wait(wire.Hello)
    assert hello.name == "m-1"
    assert launcher.pids() == {"m-1": hello.pid}
    assert os.getsid(hello.pid) == hello.pid != os.getsid(0)
    assert os.getpgid(hello.pid) == hello.pid
    assert ends.told == []


def test_the_end_of_a_worker_is_told_once(hub, launcher, ends, tmp_path):
    """With its exit code, or the signal that killed it."""
    deployment = deployment_of(write_pipeline(tmp_path))
    launcher.launch("drained", deployment, hub.address, ends)
    hub.wait(wire.Ready)
    hub.send(wire.Drain())
    assert ends.wait(1) == [("drained", "its process ended with code 0")]
    launcher.launch("killed", deployment, hub.address, ends)
    launcher.kill("killed")
    launcher.kill("stranger")
    assert ends.wait(2)[1:] == [("killed", "its process was killed by signal 9")]
    launcher.kill("killed")
    assert launcher.pids() == {}
    launcher.close()
    assert len(ends.told) == 2


def test_options_and_settings_arrive_as_they_are(hub, launcher, ends, tmp_path):
    """Infinity, bytes, keys that are numbers, and more than an argument of a command may hold."""
    out = tmp_path / "options"
    pipeline = write_pipeline(tmp_path, start=f"open({str(out)!r}, 'w').write(repr(options))")
    options = {"most": float("inf"), "raw": b"\x00\xff", "ids": {1: "one"}, "word": "ünïcode", "long": "x" * 300_000}
    launcher.launch("m-1", deployment_of(pipeline, options=options), hub.address, ends)
    hub.wait(wire.Ready)
    text = out.read_text().replace("inf", "1e999")
    assert ast.literal_eval(text) == options


def test_what_cannot_be_started_raises_and_is_never_told(launcher, ends, tmp_path, monkeypatch):
    """Options that no message can carry, no program to run: the caller hears at once, from the exception alone."""
    bad = deployment_of(write_pipeline(tmp_path), options={"what": object()})
    with pytest.raises(TypeError, match="object"):
        launcher.launch("m-1", bad, "ipc:///nowhere", ends)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    before = Baseline()
    with pytest.raises(FileNotFoundError):
        launcher.launch("m-1", deployment_of("mod:create"), "ipc:///nowhere", ends)
    before.assert_nothing_new()
    assert launcher.pids() == {}
    launcher.close()
    assert ends.told == []


def test_closing_ends_all_and_waits(hub, launcher, ends, tmp_path):
    """Each worker's end is told once; again is harmless; then nothing can be started, and nothing is left open."""
    before = Baseline()
    for number in range(3):
        launcher.launch(f"m-{number}", deployment_of(write_pipeline(tmp_path)), hub.address, ends)
    pids = list(launcher.pids().values())
    launcher.close()
    assert all(map(is_gone, pids))
    assert sorted(ends.told) == [(f"m-{number}", "its process was killed by signal 9") for number in range(3)]
    launcher.close()
    launcher.kill("m-0")
    with pytest.raises(ShuttingDown):
        launcher.launch("late", deployment_of(write_pipeline(tmp_path)), hub.address, ends)
    assert len(ends.told) == 3
    before.assert_nothing_new()


def test_launching_and_closing_at_once_leaves_nothing(hub, ends, tmp_path):
    """Whichever comes first, every worker that was started has ended and was told of."""
    deployment = deployment_of(write_pipeline(tmp_path))
    for _ in range(3):
        launcher, launched = ProcessLauncher(CALM), list[str]()
        ready = threading.Barrier(2)

        def launch() -> None:
            ready.wait()
            for number in range(20):
                try:
                    launcher.launch(f"m-{number}", deployment, hub.address, ends)
                except ShuttingDown:
                    return
                launched.append(f"m-{number}")

        thread = threading.Thread(target=launch)
        thread.start()
        ready.wait()
        launcher.close()
        thread.join(DEADLINE_S)
        assert launcher.pids() == {}
        assert sorted(name for name, _ in ends.told) == sorted(launched)
        ends.told.clear()


CHILD = "child = subprocess.Popen(['sleep', '1000']); open({file!r}, 'w').write(str(child.pid))"


@pytest.mark.parametrize("end", ["killed", "crashed"])
def test_what_a_worker_started_ends_with_it(hub, launcher, ends, tmp_path, end):
    """A worker that is killed, or crashes, leaves none of its own children behind."""
    file = tmp_path / "pid"
    pipeline = write_pipeline(tmp_path, "os.abort()", start=CHILD.format(file=str(file)))
    launcher.launch("m-1", deployment_of(pipeline), hub.address, ends)
    hub.wait(wire.Ready)
    child = int(file.read_text())
    assert not is_gone(child)
    if end == "killed":
        launcher.kill("m-1")
    else:
        request = embed_request("a")
        hub.send(dispatch(request), *body_of(request))
    [(_, text)] = ends.wait(1)
    assert text.endswith(f"signal {9 if end == 'killed' else signal.SIGABRT}")
    until(gone(child), "its child is gone")


_PARENT = """
import os, signal, sys, time
from tensoryard.settings import Settings
from tensoryard.workers.launchers import ProcessLauncher
from tensoryard.proto.deployment import Deployment
from tensoryard.proto.pipeline import PipelineTask

address, pipeline, how = sys.argv[1:]
if how == "ignores SIGCHLD":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
launcher = ProcessLauncher(Settings())
deployment = Deployment(model="m", task=PipelineTask.EMBEDDINGS_GENERATION, pipeline=pipeline)
launcher.launch("m-1", deployment, address, lambda name, text: print(text, flush=True))
child = 0
if how == "forks":
    child = os.fork()
    if not child:
        launcher.close()
        time.sleep(1000)
        os._exit(0)
print(child, *launcher.pids().values(), flush=True)
sys.stdin.read()
launcher.close()
"""


@pytest.fixture
def parent(hub, tmp_path) -> Iterator[Callable[[str], tuple[subprocess.Popen[bytes], int, int]]]:
    """Starts a program with a worker of its own; gives it, the pid of its forked child, and its worker's."""
    started: list[Any] = []

    def start(how: str) -> tuple[subprocess.Popen[bytes], int, int]:
        command = [sys.executable, "-P", "-c", _PARENT, hub.address, write_pipeline(tmp_path), how]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(process)
        child, worker = map(int, line_of(process).split())
        started.extend([child] if child else [])
        hub.wait(wire.Ready)
        return process, child, worker

    yield start
    for entry in started:
        if isinstance(entry, int):
            os.kill(entry, signal.SIGKILL)
        else:
            entry.kill()
            entry.wait(DEADLINE_S)
            entry.stdin.close()
            entry.stdout.close()


def line_of(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], DEADLINE_S)
    assert ready, "the program says nothing"
    return process.stdout.readline().decode()


def test_workers_end_with_a_starter_that_is_killed(parent):
    """`kill -9` of the program: its worker is gone."""
    process, _, worker = parent("")
    process.kill()
    until(gone(worker), "the worker is gone")


@pytest.mark.case(24)
def test_a_forked_child_neither_ends_workers_nor_keeps_them(parent):
    """It may close what it inherited: nothing happens. When its parent is killed the workers go, though it lives."""
    process, child, worker = parent("forks")
    assert not is_gone(worker)
    process.kill()
    until(gone(worker), "the worker is gone")
    assert not is_gone(child)


def test_a_program_that_ignores_its_children_hears_of_their_end(parent):
    """With SIGCHLD ignored nobody can ask for exit codes; the end is told all the same, and closing works."""
    process, _, worker = parent("ignores SIGCHLD")
    os.kill(worker, signal.SIGKILL)
    assert line_of(process).startswith("its process ")
    process.stdin.close()
    assert process.wait(DEADLINE_S) == 0


def test_children_see_no_gpu_that_is_not_theirs(monkeypatch):
    """A worker without a GPU of its own is shown none; nobody finds modules in the working folder."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert child_environment(deployment_of("mod:create"))["CUDA_VISIBLE_DEVICES"] == ""
    assert child_environment(deployment_of("mod:create", num_gpus=0.5))["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert child_environment()["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert child_environment()["PYTHONSAFEPATH"] == "1"
