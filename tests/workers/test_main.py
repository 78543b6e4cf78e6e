"""One worker, whole: it serves, leaves when told, ends with the right code, and ends whatever it is stuck in."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensoryard as ty
from tensoryard.errors import VersionMismatch
from tensoryard.proto import wire
from tensoryard.proto.codec import decode_body
from tensoryard.settings import Settings
from tensoryard.shm import Reader
from tensoryard.workers.main import run_worker

from ..scripted import Hub
from .support import (
    CALM,
    DEADLINE_S,
    EMBED,
    WorkerProcess,
    body_of,
    deployment_of,
    dispatch,
    embed_request,
    in_thread,
    until,
    write_pipeline,
)

FORSAKEN = Settings(heartbeat_s=0.05, liveness_s=0.1, orphan_s=0.3)


def obliging(hub: Hub, peer: bytes, message: Any, _body: Any) -> bool:
    """A coordinator's part in a drain: a worker that asks to leave is told to."""
    if isinstance(message, wire.DrainWorker):
        hub._hub.send(peer, [wire.encode(wire.Drain())])
    return False


def ready_then_drained(hub: Hub, peer: bytes, message: Any, _body: Any) -> bool:
    """A worker that is ready may leave."""
    if isinstance(message, wire.Ready):
        hub._hub.send(peer, [wire.encode(wire.Drain())])
    return False


def refuse(hub: Hub, peer: bytes, message: Any, _body: Any) -> bool:
    """A coordinator of another version."""
    if isinstance(message, wire.Hello):
        refused = wire.Refused(code=VersionMismatch.code, text="worker speaks wire version 1")
        hub._hub.send(peer, [wire.encode(refused)])
    return True


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A coordinator that does as it is told, and lets workers leave."""
    with Hub(script=obliging) as hub:
        yield hub


@pytest.fixture
def start(hub, tmp_path) -> Iterator[Callable[..., WorkerProcess]]:
    """Starts worker processes at the hub; none outlives the test."""
    workers: list[WorkerProcess] = []

    def start(execute: str = "return {r: output() for r in batch}", factory: str = "pass", **how: Any) -> WorkerProcess:
        pipeline = write_pipeline(tmp_path, execute, factory)
        workers.append(WorkerProcess(how.pop("address", hub.address), deployment_of(pipeline), **how))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()


def run(address: str, deployment: ty.Deployment, settings: Settings = CALM) -> int:
    """`run_worker` in a thread of this process; what it returns."""
    codes: list[int] = []
    with in_thread(lambda: codes.append(run_worker(address, deployment, settings=settings))):
        pass
    [code] = codes
    return code


# -- in this process --------------------------------------------------------------------------------------------------


def test_ready_says_what_the_deployment_says(hub, tmp_path):
    """Model, limits and, where the deployment says nothing else, two batches of credits; names differ by themselves."""
    hub.script = ready_then_drained
    pipeline = write_pipeline(tmp_path)
    limits = {"hang_limit_s": 7.0, "max_queued": 5, "max_queued_bytes": 1000}
    assert run(hub.address, deployment_of(pipeline, **limits)) == 0
    assert run(hub.address, deployment_of(pipeline, max_batch_size=1)) == 0
    assert run(hub.address, deployment_of(pipeline, max_ongoing_requests=9, max_batch_size=100)) == 0
    first, second, third = hub.of(wire.Ready)
    assert (first.model, first.deployment, first.task) == ("m", "m", EMBED.value)
    assert (first.hang_limit_s, first.max_queued, first.max_queued_bytes) == (7.0, 5, 1000)
    assert [ready.credits for ready in (first, second, third)] == [4, 2, 9]
    names = [hello.name for hello in hub.of(wire.Hello)]
    assert len(set(names)) == 3
    assert all(re.fullmatch("m-[0-9a-f]{8}", name) for name in names)


def test_more_credits_than_ready_can_say_are_cut(hub, tmp_path):
    """A deployment may ask for more than the wire knows; the coordinator still understands READY."""
    hub.script = ready_then_drained
    assert run(hub.address, deployment_of(write_pipeline(tmp_path), max_ongoing_requests=10**6)) == 0
    assert [ready.credits for ready in hub.of(wire.Ready)] == [65536]


@pytest.mark.parametrize(
    ("factory", "text"),
    [
        ("raise ValueError('no weights')", "ValueError: no weights"),
        ("sys.exit('no licence')", "SystemExit: no licence"),
        ("Ours.max_batch_size = 0", "max_batch_size must be at least 1, not 0"),
        ("Ours.max_batch_size = '8'", "TypeError"),
        ("Ours.options_type = dict", "options_type must be a msgspec.Struct type"),
        ("return 7", "made a int, not a tensoryard.Pipeline"),
    ],
)
def test_a_pipeline_that_cannot_start_is_told_with_its_traceback(hub, tmp_path, factory, text):
    """Whatever is wrong with it: exit code 3, and the coordinator hears why, and then goodbye."""
    assert run(hub.address, deployment_of(write_pipeline(tmp_path, start=factory))) == 3
    hub.wait(wire.Disconnect)
    [failed] = hub.of(wire.StartFailed)
    assert failed.deployment == "m"
    assert "Traceback (most recent call last):" in failed.text
    assert text in failed.text
    assert hub.of(wire.Ready) == []


def test_the_handlers_of_signals_are_put_back(hub, tmp_path):
    """A program that runs a worker for a while has its own handlers again afterwards."""
    hub.script = ready_then_drained
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    assert run_worker(hub.address, deployment_of(write_pipeline(tmp_path)), settings=CALM) == 0
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_worker_that_has_ended_ends_nothing_else(tmp_path):
    """The last resort of a worker that lost its coordinator is called off when it ends by itself."""
    codes: list[int] = []
    deployment = deployment_of(write_pipeline(tmp_path))
    with Hub() as hub, in_thread(lambda: codes.append(run_worker(hub.address, deployment, settings=FORSAKEN))):
        hub.wait(wire.Ready)
        hub.close()
    assert codes == [4]
    for timer in [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]:
        assert timer.finished.is_set(), "something will still happen"
        timer.join(DEADLINE_S)


# -- real processes ---------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_a_worker_serves_and_leaves(hub, start):
    """READY, answers of both kinds of size, DRAIN, goodbye, exit code 0; nothing is complained of."""
    worker = start("return {r: output(100_000 if str(r) == 'large' else 4) for r in batch}")
    hub.wait(wire.Ready)
    reader = Reader()
    for name, size in [("small", 4), ("large", 100_000)]:
        request = embed_request(name)
        hub.send(dispatch(request), *body_of(request))
        until(lambda name=name: name in {m.outputs[0].request_id for m in hub.of(wire.Outputs)}, "the answer comes")
        value = decode_body(hub.bodies(wire.Outputs)[-1], ty.EmbeddingsGenerationOutput, resolve=reader.claim)
        assert (value.embeddings == np.full(size, 7, np.float32)).all()
        assert value.embeddings.shape == (size,)
    hub.send(wire.Drain())
    assert worker.wait() == 0
    hub.wait(wire.Disconnect)
    ledger = hub.of(wire.Outputs)[-1].outputs[0].ledger
    assert (ledger.worker, ledger.output_shared_bytes) == ("w-1", 400_000)
    worker.close()
    assert worker.complaints == b""
    reader.close()


@pytest.mark.process
def test_a_failed_start_ends_the_process_with_code_3(hub, start):
    """The traceback arrives although the process ends at once."""
    worker = start(factory="raise ValueError('no weights')")
    assert worker.wait() == 3
    [failed] = hub.wait(wire.StartFailed)
    assert "in create\n" in failed.text
    assert failed.text.endswith("ValueError: no weights\n")


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_the_worker(hub, start, tmp_path, number):
    """What runs when SIGTERM comes is finished and sent; then goodbye and exit code 0."""
    go = tmp_path / "go"
    worker = start(
        f"while not os.path.exists({str(go)!r}):\n    time.sleep(0.01)\nreturn {{r: output() for r in batch}}"
    )
    hub.wait(wire.Ready)
    request = embed_request("a")
    hub.send(dispatch(request), *body_of(request))
    hub.wait_beats(2)
    os.kill(worker.pid, number)
    hub.wait(wire.DrainWorker)
    go.touch()
    assert worker.wait() == 0
    hub.wait(wire.Disconnect)
    [message] = hub.of(wire.Outputs)
    assert (message.outputs[0].request_id, message.outputs[0].done) == ("a", True)


@pytest.mark.process
def test_a_second_signal_ends_the_worker_at_once(hub, start):
    """Whoever asks twice does not want to wait for a pipeline that is stuck."""
    worker = start("time.sleep(1000)")
    hub.wait(wire.Ready)
    request = embed_request("a")
    hub.send(dispatch(request), *body_of(request))
    os.kill(worker.pid, signal.SIGTERM)
    hub.wait(wire.DrainWorker)
    os.kill(worker.pid, signal.SIGINT)
    assert worker.wait() == -signal.SIGINT


@pytest.mark.process
def test_a_signal_during_the_start_is_not_forgotten(hub, start, tmp_path):
    """A worker that is told to leave while its pipeline loads leaves when it has loaded."""
    loading, go = tmp_path / "loading", tmp_path / "go"
    factory = f"open({str(loading)!r}, 'w').close()\n    while not os.path.exists({str(go)!r}): time.sleep(0.01)"
    worker = start(factory=factory)
    until(loading.exists, "the pipeline loads")
    os.kill(worker.pid, signal.SIGTERM)
    hub.wait(wire.DrainWorker)
    go.touch()
    assert worker.wait() == 0


@pytest.mark.process
def test_a_drained_worker_waits_until_its_results_are_claimed(hub, start):
    """The last result lies in its memory: it is there, and beats, until the reader has come for it."""
    worker = start("return {r: output(100_000) for r in batch}")
    hub.wait(wire.Ready)
    request = embed_request("a")
    hub.send(dispatch(request), *body_of(request))
    hub.send(wire.Drain())
    hub.wait(wire.Outputs)
    hub.wait_beats(3)
    reader = Reader()
    [frames] = hub.bodies(wire.Outputs)
    value = decode_body(frames, ty.EmbeddingsGenerationOutput, resolve=reader.claim)
    assert worker.wait() == 0
    assert (value.embeddings == 7).all()
    reader.close()


@pytest.mark.process
def test_system_exit_in_a_pipeline_ends_its_worker(hub, start):
    """No answer, a goodbye: the coordinator runs the request elsewhere."""
    worker = start("sys.exit(42)")
    hub.wait(wire.Ready)
    request = embed_request("a")
    hub.send(dispatch(request), *body_of(request))
    assert worker.wait() == 42
    hub.wait(wire.Disconnect)
    assert hub.of(wire.Outputs) == []


def children_of(pid: int) -> list[int]:
    """Processes of a process's session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == pid and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


STUCK = {
    "idle": "",
    "computing": "while True: pass",
    "holding the interpreter": "ctypes.PyDLL(None).sleep(1000)",
    "stopped": "os.kill(os.getpid(), signal.SIGSTOP)",
    "with a child": "subprocess.run(['sleep', '1000'])",
}


@pytest.mark.process
@pytest.mark.parametrize("state", STUCK)
def test_a_worker_ends_with_whoever_started_it(hub, start, tmp_path, state):
    """The pipe's other end closes: the process is gone, whatever it does at that moment, and what it started too."""
    reached = tmp_path / "reached"
    worker = start(f"open({str(reached)!r}, 'w').close()\n{STUCK[state]}")
    hub.wait(wire.Ready)
    if STUCK[state]:
        request = embed_request("a")
        hub.send(dispatch(request), *body_of(request))
        until(reached.exists, "the pipeline is there")
    if state == "stopped":
        os.waitid(os.P_PID, worker.pid, os.WSTOPPED)
    if state == "with a child":
        until(lambda: len(children_of(worker.pid)) == 2, "the child runs")
    worker.end_life()
    assert worker.wait() in (-signal.SIGKILL, 4)
    until(lambda: children_of(worker.pid) == [], "nothing of its session is left")


@pytest.mark.process
def test_a_worker_that_is_stuck_ends_all_the_same(start):
    """Without a coordinator: code 4. Refused: code 5. At its exit, in a thread of the pipeline's: its own code."""
    with Hub() as lost, Hub(script=refuse) as refusing, Hub(script=obliging) as leaving:
        stuck = "time.sleep(1000)"
        orphan = start(stuck, address=lost.address, settings=FORSAKEN)
        refused = start(factory=stuck, address=refusing.address)
        thread = "threading.Thread(target=time.sleep, args=(1000,)).start()"
        drained = start(factory=thread, address=leaving.address)
        lost.wait(wire.Ready)
        request = embed_request("a")
        lost.send(dispatch(request), *body_of(request))
        leaving.wait(wire.Ready)
        leaving.send(wire.Drain())
        lost.wait_beats(2)
        lost.close()
        assert (orphan.wait(), refused.wait(), drained.wait()) == (4, 5, 0)


@pytest.mark.process
def test_a_worker_that_is_not_stuck_is_refused_with_code_5(start):
    """The reason is in its log."""
    with Hub(script=refuse) as refusing:
        worker = start(address=refusing.address)
        assert worker.wait() == 5
        worker.close()
        assert b"worker w-1 was refused: worker speaks wire version 1" in worker.complaints
