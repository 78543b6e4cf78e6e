"""Real processes, really killed: every request keeps its one answer, and nothing is left behind."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import tensoryard as ty
from tensoryard import errors
from tensoryard.coordinator import connections

from .conftest import PIPELINES, real_deployments, small_deployments
from .mixed_load import Case, mixed_cases
from .watch import MARK, kill_all, marked

pytestmark = pytest.mark.process

for needed in ("tokenizers", "safetensors", "scipy", "espeakng_loader", "sklearn"):
    pytest.importorskip(needed)


def run_mixed(client: ty.Client, count: int, at_half: Callable[[], None]) -> tuple[list[Case], int]:
    """Send `count` mixed requests, 48 under way at once; `at_half` is called in the middle. Returns wrong answers."""
    under_way: list[tuple[Case, ty.Reply]] = []
    wrong, answered = [], 0
    for number, case in enumerate(mixed_cases(count)):
        under_way.append((case, client.submit(case.request())))
        if number == count // 2:
            at_half()
        if len(under_way) >= 48:
            oldest, reply = under_way.pop(0)
            wrong += [] if oldest.is_right(reply.result(100)) else [oldest]
            answered += 1
    for case, reply in under_way:
        wrong += [] if case.is_right(reply.result(100)) else [case]
        answered += 1
    return wrong, answered


def kill_one_worker_of_each_model(client: ty.Client) -> Counter[str]:
    """SIGKILL for the busiest worker of each model."""
    killed: Counter[str] = Counter()
    for model in client.status().models:
        busiest = max(model.workers, key=lambda worker: worker.in_flight)
        os.kill(busiest.pid, signal.SIGKILL)
        killed[model.model] = busiest.in_flight
    return killed


@pytest.mark.case(2)
def test_1000_mixed_requests_survive_a_kill(eventually: Callable[..., None]) -> None:
    """1,000 mixed requests, a worker of each model killed in the middle: 1,000 right answers, each request once."""
    with ty.local(real_deployments(), runtime="process") as yard:
        yard.wait_ready()
        with yard.connect() as client:
            killed: Counter[str] = Counter()
            wrong, answered = run_mixed(client, 1000, lambda: killed.update(kill_one_worker_of_each_model(client)))
            assert not wrong
            assert answered == 1000
            assert sum(killed.values()) > 0, "no killed worker had anything to lose"
            assert client.status().outcomes == {"finished": 1000}
            eventually(lambda: all(model.is_ready for model in client.status().models), "the killed are replaced")


@pytest.mark.case(2, 17)
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_a_lost_workers_request_runs_again(tmp_path: Path, signal_number: int, eventually: Callable[..., None]) -> None:
    """A request on a worker that dies or freezes is answered by another, and its story says so."""
    settings = ty.Settings(heartbeat_s=0.2, liveness_s=1.5)
    with ty.local(small_deployments(), runtime="process", settings=settings) as yard, yard.connect() as client:
        yard.wait_ready()
        gate = tmp_path / "gate"
        reply = client.submit(ty.EmbeddingsRequest(model="moody", input=f"until:{gate}"))
        busy = [w for m in client.status().models for w in m.workers if w.in_flight]
        os.kill(busy[0].pid, signal_number)
        eventually(lambda: "attempt 2" in " ".join(client.story(reply.request_id)), "it runs again elsewhere")
        gate.touch()
        assert reply.result(60).embeddings.shape == (1, 4)
        eventually(lambda: all(model.is_ready for model in client.status().models), "the lost worker is replaced")


@pytest.mark.case(18)
def test_a_poisonous_request_harms_no_other() -> None:
    """A request that kills its workers fails as PoisonRequest after three; its batch neighbours are answered."""
    with ty.local(small_deployments(replicas=2), runtime="process") as yard, yard.connect() as client:
        yard.wait_ready()
        good = [client.submit(ty.EmbeddingsRequest(model="moody", input="good")) for _ in range(5)]
        poison = client.submit(ty.EmbeddingsRequest(model="moody", input="die"))
        good += [client.submit(ty.EmbeddingsRequest(model="moody", input="good")) for _ in range(20)]
        with pytest.raises(errors.PoisonRequest, match="3 workers of deployment 'moody'"):
            poison.result(100)
        assert all((reply.result(100).embeddings == 4).all() for reply in good)


def test_cancel_while_it_runs_and_while_it_waits(tmp_path: Path, eventually: Callable[..., None]) -> None:
    """A cancelled request ends at once wherever it is, its worker goes on, and its memory comes back."""
    with ty.local(small_deployments(replicas=1), runtime="process") as yard, yard.connect() as client:
        yard.wait_ready()
        request = lambda: ty.EmbeddingsRequest(model="moody", input=f"until:{tmp_path / 'never'}")
        replies = [client.submit(request()) for _ in range(40)]
        for reply in replies:
            reply.cancel()
        for reply in replies:
            with pytest.raises(errors.RequestCancelled):
                reply.result(60)
        assert (client.embed("four", model="moody") == 4).all()
        eventually(lambda: all(w.in_flight == 0 for m in client.status().models for w in m.workers), "slots are free")


def test_a_deadline_ends_a_request_that_runs(tmp_path: Path) -> None:
    """A request whose deadline passes is ended with DeadlineExpired, and its worker is told to stop."""
    with ty.local(small_deployments(replicas=1), runtime="process") as yard, yard.connect() as client:
        yard.wait_ready()
        request = ty.EmbeddingsRequest(model="moody", input=f"until:{tmp_path / 'never'}")
        with pytest.raises(errors.DeadlineExpired, match="running on moody-1"):
            client.submit(request, deadline_s=0.3).result(60)
        assert (client.embed("four", model="moody") == 4).all()


@pytest.mark.case(15)
def test_a_killed_coordinator_is_replaced_and_every_request_answered(eventually: Callable[..., None]) -> None:
    """kill -9 of the coordinator under load: a new one takes its place, and each request is answered right, once."""
    settings = ty.Settings(heartbeat_s=0.2, liveness_s=2.0)
    with ty.local(small_deployments(), runtime="process", settings=settings) as yard, yard.connect() as client:
        yard.wait_ready()
        replies = []
        for number in range(400):
            image = np.full((200, 200), number % 200, np.float32)
            request = ty.PixelGenerationRequest(model="plus-one", images=[image])
            replies.append((number % 200 + 1, client.submit(request)))
            if number == 200:
                os.kill(yard._runtime.coordinator_pid, signal.SIGKILL)
        assert all((reply.result(60).images[0] == wanted).all() for wanted, reply in replies)


DRIVER = """
import sys, threading, numpy as np, tensoryard as ty
sys.path.insert(0, sys.argv[1])
from conftest import small_deployments
with ty.local(small_deployments(), runtime=sys.argv[2]) as yard, yard.connect() as client:
    yard.wait_ready()
    print("serving", flush=True)
    image = client.empty((1024, 1024), np.float32)
    image[:] = 1
    while True:
        replies = [client.submit(ty.PixelGenerationRequest(model="plus-one", images=[image])) for _ in range(8)]
        for reply in replies:
            assert reply.result(60).images[0][0, 0] == 2
        print("round", flush=True)
"""


@pytest.fixture
def driver() -> Iterator[Callable[[str], tuple[subprocess.Popen[bytes], str]]]:
    """Starts a process with a cluster of its own under load; everything that carries its mark ends with the test."""
    marks, processes = [], []

    def start(runtime: str) -> tuple[subprocess.Popen[bytes], str]:
        mark = uuid.uuid4().hex
        marks.append(mark)
        command = [sys.executable, "-c", DRIVER, str(Path(__file__).parent), runtime]
        # By default Ray's processes take a minute to believe that their driver is gone.
        environment = {**os.environ, MARK: mark, "RAY_gcs_rpc_server_reconnect_timeout_s": "5"}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        processes.append(process)
        return process, mark

    yield start
    for mark in marks:
        kill_all(mark)
    for process in processes:
        process.wait(30)
        process.stdout.close()


def read_line(process: subprocess.Popen[bytes]) -> str:
    """The next line a process prints."""
    assert select.select([process.stdout], [], [], 100)[0], "the process printed nothing"
    return process.stdout.readline().decode().strip()


RUNTIMES = ["process", pytest.param("ray", marks=pytest.mark.ray)]


@pytest.mark.case(25)
@pytest.mark.timeout(300)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_when_its_starter_is_killed_all_of_a_cluster_ends(
    driver: Callable[[str], tuple[subprocess.Popen[bytes], str]],
    runtime: str,
    eventually: Callable[..., None],
) -> None:
    """kill -9 of the process that started a cluster ends coordinator and workers too; nothing is in /dev/shm."""
    process, mark = driver(runtime)
    assert read_line(process) == "serving"
    assert read_line(process) == "round"
    assert len(marked(mark)) >= 6
    process.kill()
    eventually(lambda: not marked(mark), f"every process of the cluster has ended (of {len(marked(mark))})", 150)
    assert not [name for name in os.listdir("/dev/shm") if not name.startswith("sem.")]


@pytest.mark.case(13)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_after_kill_9_of_everything_it_runs_again_at_once(
    driver: Callable[[str], tuple[subprocess.Popen[bytes], str]],
    runtime: str,
    runtime_folder: Path,
) -> None:
    """kill -9 of every process at several moments: nothing is in /dev/shm, and the next start serves and sweeps."""
    moments = ["at start", "serving", "round"] if runtime == "process" else ["round"]
    for moment in moments:
        process, mark = driver(runtime)
        while moment != "at start" and read_line(process) != moment:
            pass
        if moment == "at start":
            while len(marked(mark)) < 3:
                pass
        kill_all(mark)
        assert not marked(mark)
        assert not [name for name in os.listdir("/dev/shm") if not name.startswith("sem.")]
    with ty.local(small_deployments(), runtime="process") as yard, yard.connect() as client:
        assert (client.embed("four", model="moody") == 4).all()
        left = {path.stem for path in runtime_folder.glob("*.json")}
        assert left == {connection.name for connection in connections()}, "files of dead clusters were not swept"


@pytest.mark.case(17)
def test_a_hung_worker_is_replaced(tmp_path: Path, eventually: Callable[..., None]) -> None:
    """A worker that computes and computes is killed at its limit; its request runs again, the next one is served."""
    deployment = ty.Deployment(
        model="moody",
        task=ty.PipelineTask.EMBEDDINGS_GENERATION,
        pipeline=f"{PIPELINES}:moody",
        hang_limit_s=0.5,
    )
    settings = ty.Settings(heartbeat_s=0.2, liveness_s=2.0)
    with ty.local([deployment], runtime="process", settings=settings) as yard, yard.connect() as client:
        yard.wait_ready()
        (first,) = client.status().models[0].workers
        gate = tmp_path / "gate"
        reply = client.submit(ty.EmbeddingsRequest(model="moody", input=f"until:{gate}"))
        eventually(lambda: "attempt 2" in " ".join(client.story(reply.request_id)), "it runs again")
        gate.touch()
        assert reply.result(60).embeddings.shape == (1, 4)
        assert "made no progress" in " ".join(client.story(reply.request_id))
        assert first.pid not in [worker.pid for worker in client.status().models[0].workers]


def test_a_worker_told_to_leave_finishes_first(tmp_path: Path, eventually: Callable[..., None]) -> None:
    """SIGTERM to a busy worker: it gets nothing new, answers what it holds, leaves, and is replaced."""
    with ty.local(small_deployments(replicas=1), runtime="process") as yard, yard.connect() as client:
        yard.wait_ready()
        gate = tmp_path / "gate"
        held = client.submit(ty.EmbeddingsRequest(model="moody", input=f"until:{gate}"))
        moody = lambda: next(model for model in client.status().models if model.model == "moody")
        (worker,) = moody().workers
        os.kill(worker.pid, signal.SIGTERM)
        eventually(lambda: [w.state for w in moody().workers if w.pid == worker.pid] == ["draining"], "it drains")
        later = client.submit(ty.EmbeddingsRequest(model="moody", input="four"))
        gate.touch()
        assert held.result(60).embeddings.shape == (1, 4)
        assert (later.result(60).embeddings == 4).all()
        assert held.ledger.worker != later.ledger.worker
        assert len(client.story(held.request_id)) == len(client.story(later.request_id))
