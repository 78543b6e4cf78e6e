"""`tensoryard chaos`, whole: runs that must pass, runs with a planted bug that must not, and what it refuses to do."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

import tensoryard as ty
from tensoryard.deploy import chaos, chaos_pipelines, chaos_watch, cli
from tensoryard.deploy.chaos import Moment, Plan, Report, describe
from tensoryard.deploy.chaos_client import TappedConnection
from tensoryard.deploy.chaos_faults import FAULTS, chosen_faults
from tensoryard.deploy.chaos_strangers import Deaf, babble
from tensoryard.deploy.chaos_watch import Series
from tensoryard.errors import ConfigError
from tensoryard.links import ZmqHub
from tensoryard.proto import EmbeddingsGenerationOutput, wire
from tensoryard.proto.codec import encode_body
from tensoryard.shm import Pool

from .conftest import CommandLine, ended, read_until

LIARS = Path(__file__).with_name("chaos_liars.py")
EXAMPLES = Path(__file__).parents[2] / "examples"
MEAN = ["--model", "mean", "--task", "embeddings_generation", "--pipeline", f"{EXAMPLES}/channel_mean.py:create"]


# -- without processes ------------------------------------------------------------------------------------------------


def names(faults) -> list[str]:
    """Of faults."""
    return [fault.name for fault in faults]


def test_faults_are_chosen_by_name():
    """All, none, whole names, beginnings; each once."""
    everything = names(FAULTS)
    assert names(chosen_faults("all", own=True, restarts=True)) == everything
    assert chosen_faults("none", own=True, restarts=True) == []
    assert names(chosen_faults("worker, poison,worker-kill", own=True, restarts=True)) == [
        "worker-kill",
        "worker-freeze",
        "poison",
    ]


def test_what_is_impossible_is_left_out_or_refused():
    """Of all faults it is left out; named by itself, the error says why and what helps."""
    theirs = names(chosen_faults("all", own=False, restarts=False))
    assert not {"hang", "poison", "coordinator-kill", "coordinator-freeze"} & set(theirs)
    assert "coordinator-kill" in names(chosen_faults("all", own=False, restarts=True))
    with pytest.raises(ConfigError, match="only on an embedded cluster"):
        chosen_faults("poison", own=False, restarts=True)
    with pytest.raises(ConfigError, match="--hurt-coordinator"):
        chosen_faults("coordinator", own=True, restarts=False)
    with pytest.raises(ConfigError, match="knows no 'fire'; known are all, none, worker-kill"):
        chosen_faults("fire", own=True, restarts=True)


REPORT = Report(
    seed=5,
    cluster="a cluster",
    faults=["worker-kill"],
    took_s=61.0,
    sent=100,
    answered=98,
    orphaned=2,
    outcomes={"finished": 90, "cancelled": 8},
    kinds={"image": 100},
    wrong=0,
    lost=0,
    slowest_s=1.5,
    injected={"worker-kill": 3},
    violations=[],
    violation_count=0,
    processes=[
        Series(
            role="coordinator",
            name="coordinator",
            pid=7,
            watched_s=60.0,
            private_bytes=(1 << 20, 2 << 20),
            descriptors=(20, 21),
            mappings=(300, 301),
            slope_bytes_per_min=-1024.0,
        )
    ],
    timeline=[Moment(1.0, "worker-kill", "w-1")],
)


def test_the_report_of_a_good_run():
    """Sums, outcomes, processes with their growth, and the verdict."""
    text = describe(REPORT)
    assert "a cluster, 1 min, seed 5" in text
    assert "faults: 3 worker-kill" in text
    assert "outcomes: 90 finished, 8 cancelled; the slowest took 1.5 s" in text
    assert "coordinator    7    1 min  1.0 MiB  2.0 MiB    -1.0 KiB   20    21   300   301" in text
    assert text.endswith(
        "100 requests sent = 98 answered + 2 without a client; 0 wrong, 0 twice, 0 lost, nothing leaked"
    )


def test_the_report_of_a_bad_run():
    """Each violation, how many more there are, and the seed."""
    text = describe(msgspec.structs.replace(REPORT, violations=["one", "two"], violation_count=5))
    assert "VIOLATION: one\nVIOLATION: two\nand 3 violations more\n5 violations;" in text
    assert text.endswith("--seed 5")


def test_a_process_that_grows_all_the_time_is_found():
    """Only over a long time, and only by much."""
    (series,) = REPORT.processes
    replace = msgspec.structs.replace
    long = replace(series, watched_s=chaos.LEAK_WATCH_S + 1)
    steep = chaos.LEAK_BYTES_PER_MIN + 1.0
    assert chaos._grown([series, long, replace(series, slope_bytes_per_min=steep)]) == []
    assert chaos._grown([replace(long, slope_bytes_per_min=None)]) == []
    (problem,) = chaos._grown([replace(long, slope_bytes_per_min=steep)])
    assert problem.startswith("coordinator (pid 7) grew by 4.0 MiB a minute over 5 min")


def test_a_fault_that_cannot_be_done_ends_nothing(monkeypatch, capsys):
    """Trouble of our own, such as too few descriptors, is told and not taken for the cluster's."""

    def trouble(_arena):
        raise OSError("too many open files")

    fault = dataclasses.replace(FAULTS[0], do=trouble)
    target = chaos.Target(client=None, settings=ty.Settings(), own=True, alone=True, restarts=True, says="a cluster")
    run = chaos.Run(Plan(), target, [fault], 1)
    run._inject(fault, None)
    assert "worker-kill         could not be done: OSError('too many open files')" in capsys.readouterr().out
    assert run._injected == {}
    assert not run._has_failed()


# -- an answer that comes twice ---------------------------------------------------------------------------------------


class Hub:
    """A coordinator's end by hand."""

    def __init__(self) -> None:
        self.address = f"ipc://{tempfile.mkdtemp(prefix='ty-')}/hub"
        self._hub = ZmqHub([self.address], max_frame_bytes=1 << 20, peer_backlog=100)

    def wait(self, kind: type, eventually: Callable[..., None]):
        """The next message of that type, and who sent it."""
        found = []

        def came() -> bool:
            received = self._hub.receive()
            message = received and wire.decode(wire.TO_COORDINATOR, received[1][0])
            if isinstance(message, kind):
                found.append((received[0], message))
            return bool(found)

        eventually(came, f"{kind.__name__} comes")
        return found[0]

    def send(self, peer: bytes, message: wire.Message, *body: bytes) -> None:
        """A message."""
        assert self._hub.send(peer, [wire.encode(message), *body])

    def welcome(self, peer: bytes) -> None:
        """Let it in."""
        limits = {"max_frame_bytes": 1 << 20, "max_message_bytes": 1 << 20, "max_in_flight": 9}
        self.send(
            peer,
            wire.Welcome(version=wire.WIRE_VERSION, epoch="e", host="h", heartbeat_s=1.0, liveness_s=10.0, **limits),
        )

    def close(self) -> None:
        """Let go."""
        self._hub.close()


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub."""
    hub = Hub()
    yield hub
    hub.close()


def tapped(hub: Hub, told: list, eventually) -> tuple[TappedConnection, bytes]:
    """A connection to it that tells of second answers."""
    connection = TappedConnection(hub.address, ty.Settings(), lambda *what: told.append(what))
    opening = threading.Thread(target=connection.open, args=(30,))
    opening.start()
    peer, _ = hub.wait(wire.Hello, eventually)
    hub.welcome(peer)
    opening.join(30)
    return connection, peer


def submitted(connection: TappedConnection, number: int) -> ty.Reply:
    """A request."""
    request = ty.EmbeddingsRequest(request_id=ty.RequestID(f"r-{number}"), model="m", input="x")
    return connection.submit(request, deadline_s=None, priority=0)


FINAL = encode_body(EmbeddingsGenerationOutput(embeddings=np.ones((1, 4), np.float32))).frames


@pytest.mark.parametrize(
    "second", [wire.Final(request_id="r-0", seq=0), wire.Error(request_id="r-0", code="failed", text="")]
)
def test_a_second_answer_on_the_wire_is_seen(hub, eventually, second):
    """FINAL, and then whatever ends a request once more: told, though the caller never knows."""
    told = []
    connection, peer = tapped(hub, told, eventually)
    reply = submitted(connection, 0)
    hub.wait(wire.Submit, eventually)
    hub.send(peer, wire.Final(request_id="r-0", seq=0), *FINAL)
    reply.result(60)
    hub.send(peer, second, *(FINAL if isinstance(second, wire.Final) else []))
    eventually(lambda: told, "it is seen")
    assert told == [("r-0", "the second was part 0" if isinstance(second, wire.Final) else "the second was failed")]
    connection.close()


def test_one_answer_each_is_none_too_many(hub, eventually):
    """Many requests with one answer each, parts before the last among them: nothing is told."""
    told = []
    connection, peer = tapped(hub, told, eventually)
    for number in range(20):
        reply = submitted(connection, number)
        hub.wait(wire.Submit, eventually)
        if number % 2:
            hub.send(peer, wire.Error(request_id=f"r-{number}", code="failed", text="no"))
            with pytest.raises(ty.errors.Failed):
                reply.result(60)
        else:
            hub.send(peer, wire.Partial(request_id=f"r-{number}", seq=0), *FINAL)
            hub.send(peer, wire.Final(request_id=f"r-{number}", seq=1), *FINAL)
            reply.result(60)
    assert told == []
    connection.close()


def test_an_answer_whose_memory_was_lost_is_no_answer_yet(hub, eventually):
    """The client asks again under the same id, and gets a second FINAL, which is the first that reaches the caller."""
    told = []
    connection, peer = tapped(hub, told, eventually)
    reply = submitted(connection, 0)
    hub.wait(wire.Submit, eventually)
    with Pool(budget_bytes=8 << 20) as pool:
        lost = EmbeddingsGenerationOutput(embeddings=np.ones((100, 1000), np.float32))
        body = encode_body(lost, place=lambda array: (pool.place(array), True))
        body.release()
        pool.statistics()
        hub.send(peer, wire.Final(request_id="r-0", seq=0), *body.frames)
        hub.wait(wire.Submit, eventually)
    hub.send(peer, wire.Final(request_id="r-0", seq=0), *FINAL)
    assert reply.result(60).embeddings.shape == (1, 4)
    assert told == []
    connection.close()


# -- an embedded cluster ----------------------------------------------------------------------------------------------

#: All but what makes clients join anew.
CALM_FAULTS = "worker,client-kill,corrupt,slow-reader,full-pool,hang,poison"


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "runtime",
    [pytest.param("process", marks=pytest.mark.process), pytest.param("ray", marks=pytest.mark.ray)],
)
def test_a_short_run_passes(command_line: CommandLine, runtime: str) -> None:
    """Some seconds of faults under load: one right answer for every request, nothing leaked, all of it told."""
    options = ["--runtime", runtime, "--duration", "6", "--seed", "3", "--every", "0.7", "--freeze", "0.5"]
    process = command_line.start("chaos", *options, "--faults", CALM_FAULTS, "--json")
    out, _ = process.communicate(timeout=240)
    report = msgspec.json.decode(out[out.index("{\n") :], type=Report)
    assert report.violations == []
    assert process.returncode == 0
    assert report.sent == report.answered + report.orphaned > 20
    assert sum(report.injected.values()) >= 1
    assert report.outcomes["finished"] > report.sent / 2
    assert set(report.kinds) >= {"image", "text", "texts", "array", "sound"}
    assert report.seed == 3
    assert [moment.what for moment in report.timeline if moment.what in report.injected]
    assert {series.role.split()[0] for series in report.processes} >= {"coordinator", "worker", "chaos"}


def planted(monkeypatch: pytest.MonkeyPatch, task: ty.PipelineTask, factory: str) -> None:
    """Have the embedded cluster serve one of its models with a bug."""
    real = chaos_pipelines.deployments

    def deployments(**options):
        return [
            msgspec.structs.replace(deployment, pipeline=f"{LIARS}:{factory}")
            if deployment.task is task
            else deployment
            for deployment in real(**options)
        ]

    monkeypatch.setattr(chaos_pipelines, "deployments", deployments)
    monkeypatch.setattr(chaos_watch, "SETTLE_S", 1.5)
    monkeypatch.setattr(chaos, "WARM_UP_S", 0.5)


def calm_run(capsys, **fields) -> tuple[int, str]:
    """A run without faults: its exit code, and what it printed."""
    usual = {"embedded": True, "faults": "none", "duration_s": 2.0, "clients": 2, "replicas": 1, "seed": 1}
    return chaos.run(Plan(**{**usual, **fields})), capsys.readouterr().out


@pytest.mark.process
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("task", "factory", "words"),
    [
        (ty.PipelineTask.PIXEL_GENERATION, "wrong_pixels", "got a wrong answer: image by chaos-pixels-1: 1 of"),
        (ty.PipelineTask.AUDIO_GENERATION, "short_audio", "got a wrong answer: sound by chaos-sound-1"),
        (ty.PipelineTask.EMBEDDINGS_GENERATION, "forgetful_embeddings", "(plain) ended as pipeline_error"),
        (ty.PipelineTask.PIXEL_GENERATION, "hoarding_pixels", "still in use at worker chaos-pixels-1"),
    ],
)
def test_a_planted_bug_is_found(monkeypatch, capsys, task, factory, words):
    """A wrong value, a missing chunk, a missing answer, memory that is kept: named, and exit code 1."""
    planted(monkeypatch, task, factory)
    code, out = calm_run(capsys, **({} if "in use" in words else {"duration_s": 60.0, "fail_fast": True}))
    assert code == 1, out
    assert f"VIOLATION: {'' if 'in use' in words else 'request '}" in out
    assert words in out


@pytest.mark.process
@pytest.mark.timeout(300)
def test_silence_is_found(monkeypatch, capsys):
    """A worker that never answers: its requests are lost after the patience, and named with their stories."""
    planted(monkeypatch, ty.PipelineTask.EMBEDDINGS_GENERATION, "mute_embeddings")
    code, out = calm_run(capsys, patience_s=4.0, duration_s=60.0, fail_fast=True)
    assert code == 1
    assert "got no answer: none after 4 s; +0.000s accepted | " in out


@pytest.mark.process
@pytest.mark.timeout(300)
def test_without_faults_a_run_passes(monkeypatch, capsys):
    """The same cluster without a bug: exit code 0, so it was the bug that was found."""
    monkeypatch.setattr(chaos_watch, "SETTLE_S", 30.0)
    code, out = calm_run(capsys)
    assert code == 0, out
    assert "0 wrong, 0 twice, 0 lost, nothing leaked" in out


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_end_in_the_middle_leaves_nothing(command_line: CommandLine, number: int) -> None:
    """Ctrl-C and SIGTERM among the faults: exit code 130, and the fixture finds no process, frozen ones included."""
    process = command_line.start("chaos", "--every", "0.2", "--faults", "worker-freeze,client-freeze", "--freeze", "60")
    read_until(process, "-freeze ")
    process.send_signal(number)
    assert ended(process)[0] == 130


# -- a cluster that runs ----------------------------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.timeout(300)
def test_somebody_elses_cluster(command_line: CommandLine) -> None:
    """Told what would be done and nothing done; then, with --yes, done: right answers throughout, and it is whole."""
    assert command_line.run("up", "--detach", "--runtime", "process", *MEAN, "--replicas", "2")[0] == 0
    before = command_line.processes()
    code, out = command_line.run("chaos", "--name", "default", "--duration", "4")
    assert code == 2
    assert "chaos would do one of this to cluster 'default'" in out
    assert "- kill -9 workers\n" in out
    assert "kill their workers" not in out, "poison is for clusters of our own"
    assert "Say --yes" in out
    assert command_line.processes() == before
    process = command_line.start(
        "chaos", "--yes", "--duration", "4", "--every", "0.7", "--seed", "2", "--faults", "worker,corrupt,slow-reader",
        "--freeze", "0.5", "--json",
    )  # fmt: skip
    out, _ = process.communicate(timeout=240)
    report = msgspec.json.decode(out[out.index("{\n") :], type=Report)
    assert report.violations == []
    assert process.returncode == 0
    assert report.kinds.keys() == {"mean"}
    assert report.sent == report.answered > 20
    assert json.loads(command_line.run("status", "--json")[1])["models"][0]["replicas"] == 2
    assert command_line.run("down")[0] == 0


@pytest.mark.process
def test_a_model_that_is_not_there(command_line: CommandLine) -> None:
    """Named, with those that are; models and inputs are not for an embedded cluster."""
    code, out = command_line.run("chaos", "--embedded", "--model", "m")
    assert (code, "--model and --inputs are for a cluster that runs" in out) == (2, True)
    assert command_line.run("up", "--detach", "--runtime", "process", *MEAN)[0] == 0
    code, out = command_line.run("chaos", "--model", "m")
    assert code == 2
    assert "no model m is served; served are mean" in out
    assert command_line.run("down")[0] == 0


# -- strangers --------------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_strangers_harm_nobody(eventually: Callable[..., None]) -> None:
    """Rubbish at every door, and a client that never reads, while others are served; their ends leave nothing live."""
    deployments = chaos_pipelines.deployments(replicas=1, pool_budget_bytes=16 << 20)
    settings = ty.Settings(heartbeat_s=0.2, liveness_s=2.0)
    make = lambda number: ty.EmbeddingsRequest(model=chaos_pipelines.VECTORS, input=str(number))
    with ty.local(deployments, runtime="process", settings=settings) as yard, yard.connect() as client:
        yard.wait_ready()
        rng = random.Random(4)
        deaf = Deaf(yard.address, [make(number) for number in range(50)])
        with chaos_watch.Inspector() as inspector:
            pools = [report.pool for report in inspector.look(timeout_s=30)]
        replies = [client.submit(make(number)) for number in range(200)]
        for _ in range(6):
            ids = [str(reply.request_id) for reply in replies]
            did = babble(yard.address, rng, request=make(0), their_ids=ids, pools=pools)
            assert "24 messages to the coordinator" in did
        for number, reply in enumerate(replies):
            found = reply.result(60).embeddings
            assert np.array_equal(found, chaos_pipelines.vectors([str(number)]))
        deaf.end()
        eventually(lambda: not client.status().live_requests, "what strangers asked for has ended")
        assert {worker.pid for model in client.status().models for worker in model.workers} == set(
            yard._runtime.worker_pids().values()
        ), "no worker died of it"
        os.kill(yard._runtime.coordinator_pid, 0)


def test_wrong_use(capsys):
    """Of the command's arguments."""
    for arguments, words in [
        (["--faults", "fire", "--embedded"], "knows no 'fire'"),
        (["--duration", "soon"], "'soon' is no number"),
        (["--duration", "5x"], "'5x' is no number"),
        (["--clients", "0"], "'0' is no whole number"),
        (["--seed", "x"], "invalid int value"),
    ]:
        assert cli.main(["chaos", *arguments]) == 2
        assert words in capsys.readouterr().err
