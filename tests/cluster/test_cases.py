"""Failure cases on real processes that no other test here is about; `docs/reliability.md` lists all."""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import tensoryard as ty
from tensoryard import errors
from tensoryard.shm import Inspector

from .conftest import PIPELINES, small_deployments
from .watch import MARK, kill_all, marked

pytestmark = pytest.mark.process

MIB = 1 << 20
QUICK = ty.Settings(heartbeat_s=0.2, liveness_s=2.0)


def moody(text: str) -> ty.EmbeddingsRequest:
    return ty.EmbeddingsRequest(model="moody", input=text)


def workers(client: ty.Client, model: str = "moody") -> list:
    return list(next(found for found in client.status().models if found.model == model).workers)


@pytest.mark.case(1)
def test_an_idle_worker_is_killed(eventually: Callable[..., None]) -> None:
    """It is not sent anything any more, another takes its place, and every request meanwhile is answered."""
    with ty.local(small_deployments(), runtime="process", settings=QUICK) as yard, yard.connect() as client:
        yard.wait_ready()
        idle = workers(client)[0]
        os.kill(idle.pid, signal.SIGKILL)
        eventually(lambda: idle.name not in [worker.name for worker in workers(client)], "it is forgotten")
        replies = [client.submit(moody("four")) for _ in range(50)]
        assert all((reply.result(60).embeddings == 4).all() for reply in replies)
        assert all(len(client.story(reply.request_id)) == 3 for reply in replies), "one was sent more than once"
        eventually(lambda: len([w for w in workers(client) if w.state == "ready"]) == 2, "it is replaced")


@pytest.mark.case(9)
def test_the_pool_of_a_worker_is_full() -> None:
    """Results beyond its budget go through the socket, whole and right, while a client keeps all of them."""
    deployment = ty.Deployment(
        model="drip",
        task=ty.PipelineTask.AUDIO_GENERATION,
        pipeline=f"{PIPELINES}:drip",
        options={"samples": MIB // 4},
        pool_budget_bytes=4 * MIB,
    )
    settings = ty.Settings(allocate_timeout_s=0.05)
    with ty.local([deployment], runtime="process", settings=settings) as yard, yard.connect() as client:
        kept = []
        for _ in range(10):
            reply = client.submit(ty.AudioGenerationRequest(model="drip", input="drip:1"))
            kept.append((reply.result(60).audio_data, reply.ledger.shared_bytes_out))
        assert all(samples.size == MIB // 4 and not samples.any() for samples, _ in kept)
        shared = sum(size for _, size in kept)
        assert 0 < shared <= 4 * MIB


@pytest.mark.case(9)
def test_the_pool_of_a_client_is_full(shared_yard: ty.Yard) -> None:
    """Its caller is told after the wait, with what to do; nothing else suffers, and room makes all well."""
    settings = ty.Settings(pool_budget_bytes=4 * MIB, allocate_timeout_s=0.05)
    with ty.connect(shared_yard.address, settings=settings) as client:
        kept = [client.empty(2 * MIB, np.uint8)]
        with pytest.raises(errors.PoolExhausted, match=r"4194304 bytes.*pool_budget_bytes"):
            kept.extend(client.empty(MIB, np.uint8) for _ in range(4))
        image = np.full((1024, 1024), 7, np.uint8)
        with pytest.raises(errors.PoolExhausted):
            client.submit(ty.PixelGenerationRequest(model="plus-one", images=[image]))
        assert (client.embed("four", model="moody") == 4).all()
        kept.clear()
        assert (client.generate_pixels(image, model="plus-one").images[0] == 8).all()


LIMITED = """
import resource, sys
import numpy as np, tensoryard as ty
from tensoryard import errors
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
with ty.connect(sys.argv[1]) as client:
    try:
        client.embed(np.zeros((2048, 2048), np.float32), model="moody")
    except errors.PoolExhausted as error:
        print(error)
    print(client.embed("four", model="moody").shape)
"""


@pytest.mark.case(10)
def test_the_system_gives_no_memory(shared_yard: ty.Yard) -> None:
    """Its refusal, here of a limit of the process, is an error of one line before anything is written; no SIGBUS."""
    found = subprocess.run(
        [sys.executable, "-c", LIMITED, shared_yard.address], capture_output=True, text=True, timeout=60, check=True
    )
    told, shape = found.stdout.splitlines()
    assert "no room for 16777216 bytes" in told
    assert shape == "(1, 4)"


@pytest.fixture
def control_group() -> Iterator[Path]:
    """A group of processes that get 200 MB together, and are killed by the kernel when they take more."""
    for root, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(root, f"tensoryard-{secrets.token_hex(4)}")
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text("200000000")
        except OSError:
            group.rmdir()
            continue
        yield group
        group.rmdir()
        return
    pytest.skip("no control group of one's own can be made here")


@pytest.mark.case(11)
def test_the_kernel_kills_a_worker_for_want_of_memory(
    control_group: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, eventually: Callable[..., None]
) -> None:
    """Its request runs again elsewhere; the log says what kind of death it was."""
    with ty.local(small_deployments(), runtime="process", settings=QUICK) as yard, yard.connect() as client:
        yard.wait_ready()
        reply = client.submit(moody(f"oom:{control_group}:{tmp_path / 'flag'}"))
        assert reply.result(60).embeddings.shape == (1, 4)
        assert "attempt 2" in " ".join(client.story(reply.request_id))
        eventually(lambda: "because memory ran out" in caplog.text, "the launcher says so")
        eventually(lambda: len(workers(client)) == 2, "it is replaced")


IN_A_SMALL_CONTAINER = """
import numpy as np, tensoryard as ty, sys, os
sys.path.insert(0, sys.argv[1])
from conftest import small_deployments
assert os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize == 64 << 20
with ty.local(small_deployments(1), runtime="process") as yard, yard.connect() as client:
    images = [np.full((4096, 4096), n, np.uint16) for n in range(4)]
    replies = [client.submit(ty.PixelGenerationRequest(model="plus-one", images=[image])) for image in images]
    results = [reply.result(100).images[0] for reply in replies]
    assert all((result == n + 1).all() for n, result in enumerate(results))
    print(sum(reply.ledger.shared_bytes_in for reply in replies) >> 20, os.listdir("/dev/shm"))
"""


@pytest.mark.case(12)
def test_dev_shm_is_small() -> None:
    """With 64 MB there, as docker gives by default, 128 MiB are under way by handle at once; nothing lies there."""
    mount = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"', "sh"]
    if subprocess.run([*mount, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount")
    command = [*mount, sys.executable, "-c", IN_A_SMALL_CONTAINER, str(Path(__file__).parent)]
    found = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=110, check=True)
    assert found.stdout == "128 []\n"


CLUSTER = """
import sys, tensoryard as ty
sys.path.insert(0, sys.argv[1])
from conftest import small_deployments
with ty.local(small_deployments(1), runtime="process", name=sys.argv[2]) as yard:
    yard.wait_ready()
    print(yard.address, flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def another_cluster(name: str) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """A cluster that is another process's: that process, its mark, and where it listens."""
    mark = uuid.uuid4().hex
    command = [sys.executable, "-c", CLUSTER, str(Path(__file__).parent), name]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(command, env={**os.environ, MARK: mark}, text=True, **pipes)
    try:
        assert select.select([process.stdout], [], [], 100)[0], "the cluster does not come up"
        yield process, mark, process.stdout.readline().strip()
    finally:
        kill_all(mark)
        process.communicate()


@pytest.mark.case(14)
def test_two_clusters_on_one_host(shared_yard: ty.Yard, client: ty.Client, runtime_folder: Path) -> None:
    """The same models in the same folder: each answers its own, and the end of one, good or bad, is not the other's."""
    with another_cluster("neighbour") as (process, mark, address):
        with ty.connect(address) as other:
            assert {w.pid for w in workers(other)}.isdisjoint(w.pid for w in workers(client))
            assert (other.embed("three", model="moody") == 5).all()
        kill_all(mark)
        process.wait(60)
        assert (client.embed("four", model="moody") == 4).all()
    with another_cluster("neighbour") as (process, _, address):  # its start sweeps what the dead one left
        image = np.full((512, 512), 3, np.uint8)
        with ty.connect(address) as other:
            assert (other.generate_pixels(image, model="plus-one").images[0] == 4).all()
        assert (client.generate_pixels(image, model="plus-one").images[0] == 4).all()
        process.stdin.close()
        assert process.wait(60) == 0
        process.stdin = None
    assert (client.generate_pixels(image, model="plus-one").images[0] == 4).all()
    assert not list(runtime_folder.glob("neighbour*.json"))


@pytest.mark.case(16)
def test_a_coordinator_does_nothing(eventually: Callable[..., None]) -> None:
    """Alive, and stuck: nobody hangs. What is under way ends as lost, retryable; what is new is refused; it goes on."""
    settings = ty.Settings(heartbeat_s=0.2, liveness_s=2.0, reconnect_s=1.0)
    with ty.local(small_deployments(replicas=1), runtime="process", settings=settings) as yard:
        yard.wait_ready()
        with yard.connect() as client:
            coordinator = yard._runtime.coordinator_pid
            os.kill(coordinator, signal.SIGSTOP)
            try:
                with pytest.raises(errors.CoordinatorLost) as lost:
                    client.submit(moody("four")).result(60)
                assert lost.value.retryable
                with pytest.raises(errors.NotConnected, match="has not been heard for"):
                    client.submit(moody("four"))
            finally:
                os.kill(coordinator, signal.SIGCONT)
            eventually(lambda: answers(client), "the client goes on by itself")


def answers(client: ty.Client) -> bool:
    with contextlib.suppress(errors.NotConnected, errors.CoordinatorLost):
        return bool((client.embed("four", model="moody") == 4).all())
    return False


@pytest.mark.case(24)
def test_a_pipeline_forks(tmp_path: Path, eventually: Callable[..., None]) -> None:
    """A child that outlives its worker keeps neither its place nor its memory: both are free when the worker dies."""
    gate = tmp_path / "gate"
    with ty.local(small_deployments(), runtime="process", settings=QUICK) as yard, yard.connect() as client:
        yard.wait_ready()
        try:
            forked = client.submit(moody(f"fork:{gate}"))
            child = int(forked.result(60).embeddings[0, 0])
            parent = next(w for w in workers(client) if w.name == forked.ledger.worker)
            images = [np.full((600, 600), n, np.uint8) for n in range(8)]
            pixels = [client.submit(ty.PixelGenerationRequest(model="plus-one", images=[image])) for image in images]
            os.kill(parent.pid, signal.SIGKILL)
            eventually(lambda: parent.name not in [w.name for w in workers(client)], "its death is seen")
            assert all((reply.result(60).images[0] == n + 1).all() for n, reply in enumerate(pixels))
            assert (client.embed("four", model="moody") == 4).all()
            eventually(lambda: len(workers(client)) == 2, "it is replaced")
            del pixels
            assert client._connection.pool.statistics().used_blocks == 0
            with Inspector() as inspector:
                assert parent.pid not in [report.pid for report in inspector.look() if not report.trouble]
            os.kill(child, 0)  # it lives
        finally:
            gate.touch()


TIDY = """
import sys
import numpy as np, tensoryard as ty
sys.path.insert(0, sys.argv[1])
from conftest import small_deployments
with ty.local(small_deployments(), runtime="process") as yard, yard.connect() as client:
    result = client.generate_pixels(np.zeros((1024, 1024)), model="plus-one").images[0]
    print("serving", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.case(25)
def test_nothing_of_ours_is_tracked() -> None:
    """No process of a cluster is multiprocessing's resource tracker, and none says a word when all of them end."""
    mark = uuid.uuid4().hex
    command = [sys.executable, "-W", "error", "-c", TIDY, str(Path(__file__).parent)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, env={**os.environ, MARK: mark}, text=True, **pipes)
    try:
        assert process.stdout.readline() == "serving\n"
        commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in marked(mark)]
        assert len(commands) == 6
        assert not [words for words in commands if b"resource_tracker" in words]
        _, said = process.communicate("\n", timeout=60)
        assert (process.returncode, said) == (0, "")
    finally:
        kill_all(mark)
        process.communicate()
