"""Who may be hurt: workers and coordinator of the named cluster by the kernel's word, and nobody else."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

import tensoryard as ty
from tensoryard.deploy import chaos_pipelines, chaos_victims
from tensoryard.deploy.chaos_victims import Victim, find_coordinator, find_workers, listener_pid
from tensoryard.errors import NotConnected
from tensoryard.proto.status import ClusterStatus
from tensoryard.shm import host_name

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def yard() -> Iterator[ty.Yard]:
    """Six workers."""
    deployments = chaos_pipelines.deployments(replicas=2, pool_budget_bytes=16 << 20)
    with ty.local(deployments, runtime="process") as yard:
        yard.wait_ready()
        yield yard


@pytest.fixture
def client(yard: ty.Yard) -> Iterator[ty.Client]:
    """A client."""
    with yard.connect() as client:
        yield client


class Says:
    """A coordinator's word, changed on its way."""

    def __init__(self, client: ty.Client, change: Callable[[ClusterStatus], ClusterStatus]) -> None:
        self._client, self._change = client, change

    def status(self, timeout_s: float) -> ClusterStatus:
        """What it says."""
        return self._change(self._client.status(timeout_s=timeout_s))


def with_workers(**fields) -> Callable[[ClusterStatus], ClusterStatus]:
    """A status in which each worker has these fields."""
    replace = msgspec.structs.replace
    return lambda status: replace(
        status,
        models=[replace(m, workers=[replace(w, **fields) for w in m.workers]) for m in status.models],
    )


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has nothing to do with it."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait(30)


def closed(victims: list[Victim]) -> list[Victim]:
    """The same, let go of."""
    for victim in victims:
        victim.close()
    return victims


def test_the_workers_and_the_coordinator_are_found(yard, client):
    """All six by name and process, those of one model, and the coordinator."""
    pids = yard._runtime.worker_pids()
    found = closed(find_workers(client))
    assert {victim.name: victim.pid for victim in found} == pids
    some = closed(find_workers(client, models={chaos_pipelines.SOUND}))
    assert {victim.name for victim in some} == {name for name in pids if name.startswith(chaos_pipelines.SOUND)}
    with find_coordinator(client) as coordinator:
        assert coordinator.pid == yard._runtime.coordinator_pid


@pytest.mark.parametrize("fields", [{"state": "starting"}, {"host": "elsewhere"}, {"pid": 0}, {"name": "w"}])
def test_workers_that_are_not_there_are_none(client, fields):
    """Not ready, on another host, without a process, or of a name that no pool of that process has."""
    assert find_workers(Says(client, with_workers(**fields))) == []


def test_a_pid_that_means_another_process_hurts_nobody(client, bystander):
    """A worker's pid of another PID namespace, or one that was given away meanwhile: the pools tell the truth."""
    before = len(os.listdir("/proc/self/fd"))
    assert find_workers(Says(client, with_workers(pid=bystander.pid))) == []
    assert find_workers(Says(client, with_workers(pid=os.getpid()))) == []
    assert len(os.listdir("/proc/self/fd")) <= before, "pidfds are closed again"


def test_workers_whose_pids_were_swapped_are_none(client):
    """A worker of the cluster too, but not the one that is named."""

    def swapped(status):
        pids = [worker.pid for model in status.models for worker in model.workers]
        turned = iter(pids[1:] + pids[:1])
        replace = msgspec.structs.replace
        models = [replace(m, workers=[replace(w, pid=next(turned)) for w in m.workers]) for m in status.models]
        return replace(status, models=models)

    assert find_workers(Says(client, swapped)) == []


def test_a_coordinator_of_another_pid_is_none(client, bystander, monkeypatch):
    """The connection file's word alone is not enough."""
    real = chaos_victims.connections
    lying = lambda: [msgspec.structs.replace(found, pid=bystander.pid) for found in real()]
    monkeypatch.setattr(chaos_victims, "connections", lying)
    assert find_coordinator(client) is None
    assert bystander.poll() is None


def test_nothing_is_found_while_the_coordinator_is_silent():
    """No answer, no victim."""

    class Silent:
        def status(self, timeout_s):
            raise NotConnected("it does not answer")

    assert find_workers(Silent()) == []
    assert find_coordinator(Silent()) is None


def test_a_signal_reaches_its_process_or_nobody(bystander, eventually):
    """Through the pidfd: the process that was meant, and none that has its number later."""
    with Victim("worker", "w", bystander.pid) as victim:
        assert victim.signal(signal.SIGSTOP)
        eventually(lambda: chaos_victims.started_ticks(bystander.pid) == victim.started, "it is the same")
        assert victim.signal(signal.SIGKILL)
        bystander.wait(30)
        assert not victim.signal(signal.SIGKILL)
    assert not victim.signal(signal.SIGKILL), "closed"
    with pytest.raises(ProcessLookupError):
        Victim("worker", "w", bystander.pid)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can have processes of somebody else")
def test_a_process_of_another_user_is_no_victim():
    """Root may signal everybody, and does not."""
    process = subprocess.Popen(["sleep", "600"], user=65534)
    try:
        with pytest.raises(ProcessLookupError, match="another user"):
            Victim("worker", "w", process.pid)
    finally:
        process.kill()
        process.wait(30)


def test_who_listens_is_the_kernels_word(tmp_path: Path):
    """The process behind a socket's file, of either kind; 0 where nobody is, or there is no file."""
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        path = tmp_path / f"s{int(kind)}"
        with socket.socket(socket.AF_UNIX, kind) as listener:
            listener.bind(str(path))
            listener.listen()
            assert listener_pid(f"ipc://{path}") == listener_pid(f"unix://{path}") == os.getpid()
        assert listener_pid(f"ipc://{path}") == 0
    assert listener_pid("ipc:///nowhere") == 0
    assert listener_pid("tcp://127.0.0.1:1") == 0
    assert host_name()
