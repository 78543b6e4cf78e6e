"""`tensoryard shm ls` and `top`: choosing, showing, and the ledger of a real cluster."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

import tensoryard as ty
from tensoryard.deploy import cli, shm_report
from tensoryard.deploy.shm_report import BlockRow, Ledger, Query, chosen, describe, marked
from tensoryard.shm import LiveBlock, Pool, PoolReport, PoolStatistics, Reader

from .conftest import CommandLine, ended, read_until

PIPELINES = Path(__file__).parents[1] / "cluster" / "small_pipelines.py"


def block(number: int, **fields) -> LiveBlock:
    """A block; `fields` replace what it has."""
    usual = {"request_id": f"r{number}", "size_bytes": 1024 * number, "age_s": 100.0 - number, "holds": 1, "readers": 0}
    return LiveBlock(generation=number, **{**usual, **fields})


def report(name: str, *blocks: LiveBlock, **fields) -> PoolReport:
    """A pool that answered, unless `fields` say otherwise."""
    figures = PoolStatistics(
        budget_bytes=1 << 20,
        reserved_bytes=1 << 16,
        used_bytes=sum(b.size_bytes for b in blocks),
        used_blocks=len(blocks),
        published_blocks=0,
        segments=1,
        readers=2,
        taken_total=9,
        segments_created_total=1,
    )
    return PoolReport(**{"pool": name, "pid": 0, "owner": "", "statistics": figures, "blocks": blocks, **fields})


REPORTS = [
    report("a" * 16, block(1), block(2), owner="worker m-1", pid=2**22 + 1),
    report("b" * 16, block(3, sent_s=1.0, holds=0), block(4, readers=1, reader_pids=(7, 0)), owner="client"),
]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (Query(), [1, 2, 3, 4]),
        (Query(older_than_s=97.5), [1, 2]),
        (Query(owner="worker"), [1, 2]),
        (Query(owner=str(2**22 + 1)), [1, 2]),
        (Query(owner="bbb"), [3, 4]),
        (Query(owner="nobody"), []),
        (Query(request="r3"), [3]),
        (Query(sort="bytes"), [4, 3, 2, 1]),
        (Query(sort="owner"), [3, 4, 1, 2]),
    ],
)
def test_blocks_are_chosen_and_sorted(query, expected):
    """By age, owner (its name, process or pool) and RequestID; oldest first if not said otherwise."""
    assert [row.generation for row in chosen(REPORTS, query).blocks] == expected


def test_pools_are_added_up():
    """One row for each pool that answered, the fullest first, and one for all of them."""
    lines = describe(chosen(REPORTS, Query()), limit=100).splitlines()
    assert lines[2].split()[:6] == ["bbbbbbbb", "client", "0", "7.0", "KiB", "64.0"]
    assert lines[3].split()[:3] == ["aaaaaaaa", "worker", "m-1"]
    assert lines[4].split() == "all 2 pools 10.0 KiB 128.0 KiB 2.0 MiB 4 2 4".split()


def test_who_keeps_a_block_is_shown():
    """The state with its age, and the readers' processes; a foot note says what those are good for."""
    text = describe(chosen(REPORTS, Query()), limit=100)
    assert "sent 1.0 s ago" in text
    assert ["held+read", "7", "?", "r4"] in [line.split()[-4:] for line in text.splitlines()]
    assert "for people; nothing relies on it" in text


def test_what_is_not_shown_is_counted():
    """Blocks over the limit, and those that pools were not asked for."""
    many = [report("a" * 16, *(block(n) for n in range(1, 8)), unlisted=5)]
    text = describe(chosen(many, Query()), limit=3)
    assert "and 4 blocks more (--limit)" in text
    assert "hold 5 blocks more" in text


def test_a_pool_in_trouble_is_named():
    """What it did not tell is no row of zeros, but a line that says why."""
    silent = report("c" * 16, statistics=None, trouble="it has not answered within 1 s", pid=os.getpid())
    text = describe(chosen([*REPORTS, silent], Query()), limit=100)
    assert f"process {os.getpid()}): it has not answered within 1 s" in text
    assert "all       2 pools" in text
    dead = report("d" * 16, statistics=None, trouble="its process has ended")
    assert "pool dddddddd (nobody's): its process has ended" in describe(chosen([dead], Query()), limit=1)


def test_no_pool_is_said():
    """An empty host is no empty table."""
    assert describe(Ledger(pools=[], blocks=[]), limit=1).startswith("no tensor pool")


def test_suspects_are_counted():
    """Only blocks whose requests have ended are suspects."""
    rows = chosen(REPORTS, Query()).blocks
    told = [msgspec.structs.replace(row, request=word) for row, word in zip(rows, ["ended", "live", "", "ended"])]
    text = describe(Ledger(pools=chosen(REPORTS, Query()).pools, blocks=told, suspects=2), limit=100)
    assert "r1 (ended)" in text
    assert "r2 (live)" in text
    assert "2 suspects" in text


# -- real processes ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def yard() -> Iterator[ty.Yard]:
    """Two workers that add one to images."""
    deployment = ty.Deployment(
        model="plus-one",
        task=ty.PipelineTask.PIXEL_GENERATION,
        pipeline=f"{PIPELINES}:plus_one",
        replicas=2,
    )
    with ty.local([deployment], runtime="process") as yard:
        yard.wait_ready()
        yield yard


def printed(capsys, *arguments: str, timeout_s: float = 30) -> Ledger:
    """What `shm ls --json` prints."""
    assert cli.main(["shm", "ls", "--json", "--timeout", str(timeout_s), *arguments]) == 0
    return msgspec.json.decode(capsys.readouterr().out, type=Ledger)


@pytest.mark.process
def test_the_results_of_a_request_are_seen_by_its_id(yard, capsys, eventually):
    """A result in the caller's hands: in its worker's pool, under the RequestID, read by the caller; then gone."""
    with yard.connect() as client:
        reply = client.submit(ty.PixelGenerationRequest(model="plus-one", images=[np.zeros((256, 256), np.float32)]))
        image = reply.result(60).images[0]
        (row,) = printed(capsys, "--request", str(reply.request_id), "--owner", "worker").blocks
        assert (row.owner, row.state, row.reader_pids) == (f"worker {reply.ledger.worker}", "read", (os.getpid(),))
        assert row.size_bytes >= image.nbytes
        del reply, image
        eventually(lambda: printed(capsys, "--owner", "worker").blocks == [], "the block is free")


@pytest.mark.process
def test_a_block_that_outlives_its_request_is_a_suspect(yard, monkeypatch):
    """What is in use for long, and whose request a coordinator knows to have ended; a live or unknown one is not."""
    with yard.connect() as client, Pool(budget_bytes=8 << 20) as pool:
        reply = client.submit(ty.PixelGenerationRequest(model="plus-one", images=[np.zeros((4, 4), np.float32)]))
        reply.result(60)
        kept = [pool.empty(50, tag=tag) for tag in (str(reply.request_id), "unknown", "", "no id \x00" * 30)]
        with shm_report.Inspector() as inspector:
            ledger = chosen(inspector.look(timeout_s=30), Query(owner=pool.name))
        assert [row.request for row in marked(ledger, older_than_s=0.0).blocks] == ["ended", "", "", ""]
        assert marked(ledger, older_than_s=0.0).suspects == 1
        assert marked(ledger, older_than_s=3600.0).suspects == 0
        del kept


@pytest.mark.process
def test_a_live_request_is_no_suspect(tmp_path: Path) -> None:
    """Long work holds its memory rightly."""
    deployment = ty.Deployment(model="moody", task=ty.PipelineTask.EMBEDDINGS_GENERATION, pipeline=f"{PIPELINES}:moody")
    with ty.local([deployment], runtime="process") as yard, yard.connect() as client:
        reply = client.submit(ty.EmbeddingsRequest(model="moody", input=f"until:{tmp_path / 'gate'}"))
        with Pool(budget_bytes=8 << 20) as pool:
            kept = pool.empty(50, tag=str(reply.request_id))
            with shm_report.Inspector() as inspector:
                ledger = chosen(inspector.look(timeout_s=30), Query(owner=pool.name))
            assert [row.request for row in marked(ledger, older_than_s=0.0).blocks] == ["live"]
            del kept
        (tmp_path / "gate").touch()
        reply.result(60)


@pytest.mark.process
def test_a_stopped_worker_is_named(yard, capsys, eventually):
    """SIGSTOP: its pool alone is not told of, and the reason is."""
    with yard.connect() as client:
        worker, other = client.status().models[0].workers
        os.kill(worker.pid, signal.SIGSTOP)
        try:
            eventually(lambda: shm_report.state_of(worker.pid) == "T", "it has stopped")
            ledger = printed(capsys, timeout_s=3)
            assert cli.main(["shm", "ls", "--timeout", "3"]) == 0
        finally:
            os.kill(worker.pid, signal.SIGCONT)
    assert f"process {worker.pid}): its process is stopped (SIGSTOP)" in capsys.readouterr().out
    # Of the pools of this host those of the yard: what ran before in this process may have left some.
    trouble = {row.pid: row.trouble for row in ledger.pools if row.pid in (worker.pid, other.pid)}
    assert trouble == {worker.pid: "its process is stopped (SIGSTOP)", other.pid: ""}


@pytest.mark.process
def test_ls_without_pools(command_line: CommandLine) -> None:
    """On a host where nothing runs: a sentence, exit code 0; and JSON that can be read."""
    code, out = command_line.run("shm", "ls")
    assert (code, out.splitlines()[0]) == (0, "no tensor pool of this user on this host, or none that was asked for")
    code, out = command_line.run("shm", "top", "--json", "--count", "2", "--interval", "0.01")
    assert code == 0
    assert [json.loads(line)["pools"] for line in out.splitlines()] == [[], []]


@pytest.mark.process
def test_top_in_a_pipe_is_plain_and_ends_with_ctrl_c(command_line: CommandLine) -> None:
    """Snapshot after snapshot without controls of a terminal; Ctrl-C is its usual end: code 0, nothing more said."""
    process = command_line.start("shm", "top", "--interval", "0.05")
    seen = read_until(process, "no tensor pool") + read_until(process, "no tensor pool")
    process.send_signal(signal.SIGINT)
    code, rest = ended(process)
    assert code == 0
    assert "\x1b" not in seen + rest
    assert "Traceback" not in rest
    assert "interrupted" not in rest


@pytest.mark.process
def test_top_on_a_terminal_clears_it(command_line: CommandLine, monkeypatch) -> None:
    """Each look begins at the top of an empty screen, and has no more rows than that."""
    import pty

    master, slave = pty.openpty()
    try:
        with contextlib.closing(os.fdopen(os.dup(slave), "w")) as terminal:
            monkeypatch.setattr("sys.stdout", terminal)
            assert shm_report.top(Query(), interval_s=0.01, count=2) == 0
        seen = b""
        while seen.count(b"\x1b[H\x1b[2J") < 2:
            seen += os.read(master, 4096)
    finally:
        os.close(master)
        os.close(slave)


@pytest.mark.process
def test_top_whose_reader_has_gone_ends(command_line: CommandLine) -> None:
    """`shm top | head`: an end without a traceback."""
    process = command_line.start("shm", "top", "--interval", "0.01")
    read_until(process, "no tensor pool")
    process.stdout.close()
    assert process.wait(60) == 1


def test_rows_are_json():
    """What `--json` prints can be read back as it was."""
    ledger = chosen(REPORTS, Query())
    assert msgspec.json.decode(msgspec.json.encode(ledger), type=Ledger) == ledger
    assert isinstance(ledger.blocks[0], BlockRow)


def test_a_reader_of_this_process_is_seen(eventually: Callable[..., None]) -> None:
    """Our own pools and readers are in the ledger as everybody's."""
    with Pool(budget_bytes=8 << 20, owner="me") as pool, shm_report.Inspector() as inspector:
        loan, _ = pool.publish(np.ones(50), tag="r")
        handle = loan.handle
        pool.send(loan)
        reader = Reader()
        view = reader.claim(handle)
        (row,) = chosen(inspector.look(timeout_s=30), Query(owner=pool.name)).blocks
        assert (row.owner, row.state, row.reader_pids) == ("me", "read", (os.getpid(),))
        del view
        reader.close()
