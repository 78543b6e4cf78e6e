"""Three hosts with one cluster on them: clients on each, and what happens when links, nodes and processes are lost.

Two clients ask without a pause, on the head node over its socket and on another host over the network, while one fault
follows the other; their books are looked at in the end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from . import hosts
from .conftest import PIPELINES
from .hosts import Host
from .ray_hosts import CLIENT_PORT, HAS_RAY_CLIENT, RayHosts, ray_hosts

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

#: How long the link of a host is cut, in seconds. HOSTS_CUT_S=30 makes the partition of half a minute.
CUT_S = float(os.environ.get("HOSTS_CUT_S", "6"))
#: Noticed in seconds; a busy machine is not to be taken for a dead one.
SETTINGS = {"TENSORYARD_HEARTBEAT_S": "0.5", "TENSORYARD_LIVENESS_S": "4", "TENSORYARD_ORPHAN_S": "8"}
CLIENT = Path(__file__).with_name("hosts_client.py")
#: Each worker takes most of a host: one that is lost finds no place but on its own, when that is back.
YARD = """
[[deployment]]
model = "moody"
task = "embeddings_generation"
pipeline = "{pipelines}:moody"
replicas = 3
num_cpus = 3
"""


class Client:
    """A client process on one of the hosts."""

    def __init__(self, host: Host, address: str) -> None:
        self.process = host.start(sys.executable, str(CLIENT), address)
        self.told()

    def told(self) -> dict[str, Any]:
        """What it has got so far."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        told: dict[str, Any] = json.loads(self.process.stdout.readline())
        return told

    def end(self) -> dict[str, Any]:
        """Stop it; what its books say."""
        out, _ = self.process.communicate(timeout=100)
        books: dict[str, Any] = json.loads(out.splitlines()[-1])
        return books


class Scene:
    """The cluster, its clients, and where its workers are."""

    def __init__(self, ray: RayHosts, eventually: Callable[..., None]) -> None:
        self.ray = ray
        self.eventually = eventually
        yard = ray.head.write("/run/yard.toml", YARD.format(pipelines=PIPELINES))
        ray.launch(yard, "--address-file", "/run/address")
        self.near, self.far = ray.head.read("/run/address").split()
        self.clients = [Client(ray.head, "file:///run/address"), Client(ray.network["c"], self.far)]
        ask = "import tensoryard.shm as shm; print(shm.host_name())"
        #: The names of hosts, by what they are known by to a coordinator.
        self.names = {host.run(sys.executable, "-c", ask).strip(): name for name, host in ray.network.hosts.items()}

    @property
    def epoch(self) -> str:
        """The coordinator's life."""
        return str(self.clients[0].told()["epoch"])

    def workers(self) -> dict[str, str]:
        """The workers that the coordinator knows, and the hosts that they are on."""
        return {worker: self.names[host] for worker, host in self.clients[0].told()["workers"].items()}

    def answering(self) -> set[str]:
        """Hosts of which a worker that is there now has answered something."""
        workers = self.workers()
        return {workers[worker] for client in self.clients for worker in client.told()["by"] if worker in workers}

    def all_serve(self, what: str) -> None:
        """Wait until each host has a worker that answers."""
        wanted = set(self.ray.network.hosts)
        self.eventually(lambda: self.answering() == wanted, f"a worker on each host answers {what}", 100)

    def answers_go_on(self, what: str) -> None:
        """Both clients get some more."""
        before = [client.told()["answered"] for client in self.clients]
        for client, answered in zip(self.clients, before, strict=True):
            self.eventually(lambda c=client, n=answered: c.told()["answered"] > n + 20, f"answers go on {what}", 100)

    def rejoin(self, name: str) -> None:
        """What keeps nodes running would do: start Ray anew where it has ended."""
        host = self.ray.network[name]
        self.eventually(lambda: not host.processes(["raylet/raylet", "ray::"]), f"Ray has ended on {name}", 100)
        host.kill("log_monitor.py")  # alone of Ray it stays
        self.ray.join(host)


@pytest.fixture(scope="module")
def ray() -> Iterator[RayHosts]:
    """Ray on three hosts."""
    if reason := hosts.missing():
        pytest.skip(reason)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        with ray_hosts("a", "b", "c") as made:
            yield made


@pytest.mark.case(31, 32, 15)
def test_three_hosts_lose_links_nodes_and_processes(ray: RayHosts, eventually: Callable[..., None]) -> None:
    """Under one load without a pause: every request is answered once and right; the worker that is cut off stops; what
    was lost is back when its host is; the coordinator is found again where it was."""
    scene = Scene(ray, eventually)
    b, c = ray.network["b"], ray.network["c"]
    scene.all_serve("at first")

    # -- the link of B is cut in mid-load -----------------------------------------------------------------------------
    epoch = scene.epoch
    [on_b] = [worker for worker, host in scene.workers().items() if host == "b"]
    stuck = stuck_on_b(scene)
    ray.network.cut("b")
    mended_at = time.monotonic() + CUT_S
    eventually(lambda: on_b not in scene.workers(), "the coordinator has given B's worker up", 100)
    scene.answers_go_on("without B")
    eventually((b.root / "run/stopped").exists, "B's worker stopped what it did", 100)
    stuck.communicate(timeout=100)
    assert stuck.returncode == 0, "what ran on B was answered by another"
    eventually(lambda: alive_nodes(ray) == 2, "Ray has given B up", 100)
    eventually(lambda: time.monotonic() > mended_at, "the cut has lasted", 200)
    ray.network.mend("b")
    scene.rejoin("b")
    scene.all_serve("when B is back")
    assert scene.epoch == epoch

    # -- kill -9 of B's raylet; and the link of C, where a client is, is cut until its worker counts as lost -----------
    assert b.kill("raylet/raylet")
    scene.answers_go_on("without B's raylet")
    [on_c] = [worker for worker, host in scene.workers().items() if host == "c"]
    ray.network.cut("c")
    eventually(lambda: on_c not in scene.workers(), "the coordinator has given C's worker up", 100)
    ray.network.mend("c")
    scene.answers_go_on("for the client on C")
    c.kill("raylet/raylet")  # if Ray has not ended it: that was about as long as it takes to find a node dead
    scene.rejoin("b")
    scene.rejoin("c")
    scene.all_serve("when all are back")

    # -- kill -9 of the fleet, and of the coordinator -----------------------------------------------------------------
    before = set(scene.workers())
    assert ray.head.kill("ray::FleetActor")
    eventually(lambda: before.isdisjoint(scene.workers()) and len(scene.workers()) == 3, "a new fleet's workers", 100)
    scene.all_serve("for the new fleet")

    assert ray.head.kill("ray::CoordinatorActor")
    eventually(lambda: scene.epoch not in ("", epoch), "a new coordinator is heard", 100)
    scene.answers_go_on("by the new coordinator")
    scene.all_serve("for the new coordinator")
    assert ray.launch("address").strip() == scene.near

    # -- the books ----------------------------------------------------------------------------------------------------
    for client in scene.clients:
        books = client.end()
        assert books["violations"] == []
        assert books["outcomes"] == {"finished": books["sent"]}
    assert "has ended" in ray.launch("down")
    words = ["CoordinatorActor", "FleetActor", "WorkerActor"]
    for host in ray.network.hosts.values():
        eventually(lambda h=host: not h.processes(words), f"nothing of ours is left on {host.name}", 100)


def stuck_on_b(scene: Scene) -> subprocess.Popen[bytes]:
    """A client whose request waits for a file that is on A and C, while it runs on B: asked until it does."""
    for name in ("a", "c"):
        scene.ray.network[name].write("/run/go", "")
    script = """
import sys, tensoryard as ty
with ty.connect(sys.argv[1]) as client:
    while True:
        asked = [ty.EmbeddingsRequest(model="moody", input="stopped:/run/go:/run/stopped") for _ in range(3)]
        replies = [client.submit(request) for request in asked]
        try:
            [reply.result(1) for reply in replies]
        except ty.errors.ReplyTimeout:
            break
    print("stuck", flush=True)
    [reply.result(100) for reply in replies]
"""
    process = scene.ray.head.start(sys.executable, "-c", script, scene.near)
    assert process.stdout is not None
    assert process.stdout.readline() == b"stuck\n"
    return process


def alive_nodes(ray: RayHosts) -> int:
    """As Ray sees them."""
    return len([node for node in ray.ask("ray.nodes()") if node["Alive"]])


@pytest.mark.skipif(not HAS_RAY_CLIENT, reason="this install of Ray has no client server (ray[default] has)")
def test_a_client_finds_the_cluster_by_rays_client(ray: RayHosts) -> None:
    """From another host, with nothing but Ray's client address; where the coordinator is not reached, what to do."""
    yard = ray.head.write("/run/yard.toml", YARD.format(pipelines=PIPELINES).replace("replicas = 3", "replicas = 1"))
    ray.launch(yard)
    look = "import sys, tensoryard as ty; print(ty.connect(sys.argv[1], timeout_s=5).embed('four', model='moody'))"
    there = ray.network["c"]
    address = f"ray://{ray.head.address}:{CLIENT_PORT}"
    try:
        assert there.run(sys.executable, "-c", look, address).strip().endswith("[[4. 4. 4. 4.]]")
    finally:
        ray.launch("down")
    for flags, why in (
        (("--listen", "tcp://127.0.0.1:7078"), "`ssh -N -L 7078:127.0.0.1:7078 HEAD`"),
        (("--local-only",), "listens on its own host alone"),
    ):
        ray.launch(yard, *flags)
        try:
            code, told = there.run_code(sys.executable, "-c", look, address)
            assert (code, why in told) == (1, True), told
        finally:
            ray.launch("down")
