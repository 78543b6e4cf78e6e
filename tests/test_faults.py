"""Fault points: off they do nothing, on the first process that passes a point obeys the order for it, alone."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tensoryard import faults
from tensoryard.faults import Orders

ROOT = Path(__file__).parents[1]

PASSER = """
import sys
from tensoryard import faults
print("ready", flush=True)
for line in sys.stdin:
    if faults.ARMED: faults.reach(line.strip())
    print("passed", flush=True)
"""


@pytest.fixture
def orders(tmp_path: Path) -> Orders:
    return Orders(tmp_path)


@pytest.fixture
def start() -> Iterator[Callable[[dict[str, str]], subprocess.Popen[str]]]:
    """Starts processes that pass the points which they are told."""
    processes = []

    def start(environment: dict[str, str]) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PASSER]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = subprocess.Popen(command, env={**os.environ, **environment}, text=True, **pipes)
        processes.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def passes(process: subprocess.Popen[str], point: str) -> bool:
    print(point, file=process.stdin, flush=True)
    return process.stdout.readline() == "passed\n"


def test_they_are_off() -> None:
    """Without the variable nothing is looked for; and no order is obeyed here, in the tests' own process."""
    assert not faults.ARMED


def test_each_point_is_passed_only_when_armed() -> None:
    """Every call in the code stands under `if faults.ARMED`, so that production pays one attribute look-up."""
    calls, guarded = [], []
    for folder in ("", "shm", "proto", "links", "coordinator", "workers", "client", "deploy"):
        for path in ROOT.glob(f"{folder}/*.py" if folder else "*.py"):
            tree = ast.parse(path.read_text())
            calls += [node for node in ast.walk(tree) if _is_reach(node)]
            guarded += [
                node
                for test in ast.walk(tree)
                if isinstance(test, ast.If) and ast.unparse(test.test) == "faults.ARMED"
                for node in ast.walk(test)
                if _is_reach(node)
            ]
    assert len(calls) == len(guarded) > 10


def _is_reach(node: ast.AST) -> bool:
    """A call of `faults.reach`, or of the coordinator's `_reach`, which makes the point's name."""
    return isinstance(node, ast.Call) and ast.unparse(node.func) in {"faults.reach", "_reach"} and _named(node)


def _named(node: ast.Call) -> bool:
    return "when" not in ast.unparse(node.args[0])  # what `_reach` itself passes on


@pytest.mark.process
@pytest.mark.parametrize(("action", "code"), [("kill", -signal.SIGKILL), ("exit", 1)])
def test_a_process_ends_at_its_point(orders: Orders, start: Callable, action: str, code: int) -> None:
    """At the passing that was ordered, not before, and at no other point; who obeyed is told."""
    process = start(orders.environment)
    orders.give("here", action, passing=3)
    assert all(passes(process, point) for point in ("there", "here", "here", "there"))
    assert orders.reached("here") is None
    assert not passes(process, "here")
    assert orders.reached("here") == process.pid
    assert process.wait(30) == code


@pytest.mark.process
def test_a_process_freezes_at_its_point(orders: Orders, start: Callable, eventually: Callable) -> None:
    """It goes on from there when it is let."""
    process = start(orders.environment)
    orders.give("here", "stop")
    print("here", file=process.stdin, flush=True)
    stat = Path(f"/proc/{process.pid}/stat")
    eventually(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "it is frozen")
    assert orders.reached("here") == process.pid
    process.send_signal(signal.SIGCONT)
    assert process.stdout.readline() == "passed\n"
    assert passes(process, "here"), "an order is obeyed once"


@pytest.mark.process
def test_one_process_obeys(orders: Orders, start: Callable) -> None:
    """Of several that pass it, and count together; those started without the folder know of nothing."""
    first, second, free = start(orders.environment), start(orders.environment), start({})
    orders.give("here", "exit", passing=3)
    assert passes(first, "here")
    assert passes(free, "here")
    assert passes(second, "here")
    assert not passes(first, "here")
    assert passes(second, "here")
    assert orders.reached("here") == first.pid


@pytest.mark.process
def test_an_order_can_be_taken_back(orders: Orders, start: Callable) -> None:
    """Then nothing happens, and nothing was reached."""
    process = start(orders.environment)
    orders.give("here", "kill")
    orders.withdraw("here")
    assert passes(process, "here")
    assert orders.reached("here") is None
