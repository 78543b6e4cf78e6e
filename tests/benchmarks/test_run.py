"""The whole command, small: real clusters and floors, real processes, and nothing left of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tensoryard.benchmarks.house import MARK, House, HouseLostError, marked, sweep
from tensoryard.benchmarks.rounds import Rounds
from tensoryard.benchmarks.works import WORKS

pytestmark = pytest.mark.process


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "tensoryard.benchmarks", *map(str, arguments)]


def test_a_small_run_against_floors(tmp_path: Path) -> None:
    """Ours, a memcpy and a socket do the same work in turns; files are written, goals printed, all processes ended."""
    only = "small,flight,read-1MiB,make-64MiB,shape-64KiB"
    asked = command("--quick", "--rounds", 2, "--only", only, "--peers", "none", "--out", tmp_path)
    done = subprocess.run(asked, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    assert not found["absent"]
    assert {"tensoryard", "seqpacket", "seqpacket-broker"} <= set(found["cells"]["small"])
    assert {"tensoryard", "tensoryard-lent", "memcpy"} == set(found["cells"]["read-1MiB"])
    assert all(len(cell["rounds"]) == 2 and None not in cell["rounds"] for cell in found["cells"]["small"].values())
    assert found["notes"]["read-1MiB"]["tensoryard"]["copies"] == 1
    assert found["notes"]["read-1MiB"]["tensoryard-lent"]["copies"] == 0
    assert found["left_behind"] == 0
    assert "PASS  64 MiB out: no copy beyond the pipeline's own write" in done.stdout
    assert (tmp_path / "plot.svg").read_text().startswith("<svg")


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    """Interrupted while it measures, it ends what it started and says so by its code; no results are written."""
    asked = command("--only", "small,flight", "--peers", "none", "--rounds", 1000, "--out", tmp_path)
    process = subprocess.Popen(asked, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if line.startswith("round"):
                break
        ours = below(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.stderr.close()
    assert len(ours) >= 4
    assert not [pid for pid in ours if Path(f"/proc/{pid}/cmdline").exists() and is_ours(pid)]
    assert not list(tmp_path.iterdir())


def below(parent: int) -> set[int]:
    """Every process that a process started, and those started; by their parents."""
    parents = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found, grown = {parent}, True
    while grown:
        more = {pid for pid, above in parents.items() if above in found} - found
        found |= more
        grown = bool(more)
    return found - {parent}


def is_ours(pid: int) -> bool:
    """Whether it still is one of this benchmark's, and not another that was given its number."""
    try:
        return b"tensoryard" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def test_what_cannot_run_says_why() -> None:
    """A module whose library is missing is absent with the reason, and the others are measured."""
    with Rounds(["memcpy"], "test-absent", tell=lambda _: None) as rounds:
        found = rounds.run([WORKS["read-64KiB"]], 1, seed=1, effort=0.1)
    assert set(found.samples["read-64KiB"]) == {"memcpy"}
    house = House("no_such_module", ["nobody"], "test-absent")
    try:
        assert "not installed" in house.start()["nobody"]["absent"]
    finally:
        house.close()


def test_a_host_that_dies_is_lost_and_not_waited_for() -> None:
    """A killed host is an error at once; what carries the mark is found and ended."""
    mark = f"test-{os.getpid()}"
    house = House("seqpacket", ["seqpacket-broker"], mark)
    try:
        assert "cannot" in house.start()["seqpacket-broker"]
        assert len(marked(mark)) == 3
        os.kill(house._process.pid, signal.SIGKILL)
        with pytest.raises(HouseLostError, match="ended with code -9"):
            house.measure("seqpacket-broker", "small", samples=2, budget_s=1, seed=1)
    finally:
        house.close()
        sweep(mark, patience_s=60)
    assert not marked(mark)


def test_the_mark_is_no_setting_of_ours() -> None:
    """Our settings refuse variables they do not know; the mark's name must not look like one."""
    assert not MARK.startswith("TENSORYARD_")


def test_who_waits_stands_still(eventually: Callable[..., None]) -> None:
    """A frozen house's processes are all stopped; thawed, it answers as before, and closing wakes it too."""
    mark = f"test-frozen-{os.getpid()}"
    house = House("seqpacket", ["seqpacket-broker"], mark)
    try:
        house.start()
        house.freeze()
        eventually(lambda: {state_of(pid) for pid in marked(mark)} == {"T"}, "all of them are stopped")
        house.thaw()
        assert "T" not in {state_of(pid) for pid in marked(mark)}
        assert len(house.measure("seqpacket-broker", "small", samples=3, budget_s=1, seed=1)["samples"]) == 3
        house.freeze()
    finally:
        house.close()
        assert sweep(mark, patience_s=60) == 0


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_killed_benchmark_is_swept_after(tmp_path: Path, eventually: Callable[..., None]) -> None:
    """SIGKILL of the benchmark itself, while others are stopped: its guardian ends all that it had started."""
    asked = command("--only", "small", "--peers", "none", "--rounds", 1000, "--out", tmp_path)
    process = subprocess.Popen(asked, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("round"):
            break
    ours = below(process.pid)
    assert len(ours) >= 6
    process.kill()
    process.wait()
    process.stderr.close()
    eventually(lambda: not [pid for pid in ours if is_ours(pid)], "everything it started has ended")
