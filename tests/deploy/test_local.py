"""The supervisor of an embedded cluster's coordinator: whatever ends it but a goodbye, there is another."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import tensoryard as ty
from tensoryard.coordinator import read_connection
from tensoryard.deploy.local import CoordinatorProcess
from tensoryard.errors import NotConnected

pytestmark = pytest.mark.process

NAME = "supervised"
#: A coordinator that, until the file in its first argument is there, does what the second says.
TROUBLED = """
import os, signal, sys
flag, trouble, *command = sys.argv[1:]
ready = int(command[command.index("--ready-fd") + 1])
if not os.path.exists(flag):
    open(flag, "w").close()
    exec(trouble)
os.execv(command[0], command)
"""


def give_trouble(process: CoordinatorProcess, flag: Path, trouble: str) -> None:
    """To the coordinator that is started next."""
    process._command = [sys.executable, "-c", TROUBLED, str(flag), trouble, *process._command]


@pytest.fixture
def supervised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., CoordinatorProcess]]:
    """Coordinators under supervision; with `trouble`, the first that is started after the first has it."""
    started: list[CoordinatorProcess] = []

    def start(trouble: str = "") -> CoordinatorProcess:
        process = CoordinatorProcess(NAME, ty.Settings())
        started.append(process)
        if trouble:
            give_trouble(process, tmp_path / f"flag-{len(started)}", trouble)
        return process

    yield start
    for process in started:
        process.close()


def serves(other_than: int) -> bool:
    """Whether another process than that is the coordinator."""
    try:
        return read_connection(NAME).pid != other_than
    except NotConnected:
        return False


@pytest.mark.case(15)
@pytest.mark.parametrize(
    "trouble",
    [
        "",
        "sys.exit('no memory')",
        "os.kill(os.getpid(), signal.SIGKILL)",
        "os.write(ready, b'error the name is taken\\n'); sys.exit(2)",
        "os.write(ready, b'address ipc:///nowhere\\n'); sys.exit(7)",
    ],
    ids=["none", "fails", "killed", "refused", "fails later"],
)
def test_a_killed_coordinator_is_replaced_whatever_happens_at_its_start(supervised, eventually, trouble):
    """kill -9, and then trouble with the next one: in the end one serves, at the same address."""
    process = supervised(trouble)
    first, address = process.pid, process.address
    os.kill(first, signal.SIGKILL)
    eventually(lambda: serves(other_than=first), "another coordinator serves")
    assert not process.ended.is_set()
    with ty.connect(address) as client:
        assert client.status().name == NAME
    assert process.pid == read_connection(NAME).pid


def test_one_that_was_shut_down_is_not_replaced(supervised, eventually):
    """A coordinator that leaves by itself has ended, and with it the cluster."""
    process = supervised()
    with ty.connect(process.address) as client:
        client.shutdown()
    eventually(process.ended.is_set, "it has ended")
    with pytest.raises(NotConnected):
        read_connection(NAME)


def test_closing_while_a_new_one_starts_leaves_none(tmp_path, eventually):
    """Whatever is under way when the cluster is closed, no coordinator is left."""
    process = CoordinatorProcess(NAME, ty.Settings())
    give_trouble(process, tmp_path / "flag", "import time; time.sleep(0.3)")
    os.kill(process.pid, signal.SIGKILL)
    eventually((tmp_path / "flag").exists, "another one starts")
    process.close()
    assert process.ended.is_set()
    assert not serves(other_than=0)
