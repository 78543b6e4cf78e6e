"""The data plane between hosts: three simulated ones, a worker on each, and clients on them and elsewhere.

Bytes travel once for each block and host, by Ray's object store; none through the coordinator but for strangers.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from . import hosts
from .ray_hosts import RayHosts, ray_hosts

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

HERE = Path(__file__).parent
CLIENT = HERE / "plane_client.py"
PORT = 7777
MIB = 1 << 20
#: In the client's requests: how many, of how many arrays, of which size.
REQUESTS, ARRAYS, SIZE = 48, 4, 4 * MIB


class Plane:
    """The cluster, and what its porters say."""

    def __init__(self, ray: RayHosts) -> None:
        self.ray = ray
        entry = {
            "model": "shown",
            "task": "pixel_generation",
            "pipeline": f"{HERE / 'plane_pipelines.py'}:shown",
            "replicas": 3,
            "placement": "SPREAD",
        }
        file = ray.head.write("/run/yard.yaml", json.dumps({"deployments": [entry]}))
        ray.launch(file, "--listen", f"tcp://{ray.head.address}:{PORT}", "--address-file", "/run/address")
        self.address = ray.head.read("/run/address").split()[-1]
        self.workers = ray.places()

    def client(self, host: str, *, requests: int = REQUESTS, environment: dict[str, str] | None = None) -> Any:
        """A client process there; `told` gives what it says in the end."""
        arguments = [self.address, str(requests), str(ARRAYS), str(SIZE)]
        return self.ray.network[host].start(sys.executable, str(CLIENT), *arguments, environment=environment)

    def told(self, client: subprocess.Popen[bytes]) -> dict[str, Any]:
        """What a client says in the end; its answers are right, each came once, and nothing is left of them."""
        out, _ = client.communicate()
        assert client.returncode == 0, out
        found: dict[str, Any] = json.loads(out.splitlines()[-1])
        assert found["wrong"] == 0
        # Of its arrays: each lives as long as the client has it.
        assert found["own_blocks"] == ARRAYS
        return found

    def served(self, told: dict[str, Any]) -> Counter[str]:
        """How many requests each host has served."""
        served: Counter[str] = Counter()
        for worker, count in told["served"].items():
            served[self.workers[worker]] += count
        return served

    def seen(self, told: dict[str, Any]) -> dict[str, set[int]]:
        """Which of the arrays each host has seen: a slow one may not get to all of them."""
        return {self.workers[worker]: set(numbers) for worker, numbers in told["seen"].items()}

    def porters(self) -> dict[str, dict[str, Any]]:
        """What the porter of each host says, by the host's name."""
        reports = self.ray.ask("ray.get(fleet.porters.remote())")
        assert isinstance(reports, list)
        identities = {
            host.run(sys.executable, "-c", "from tensoryard.shm import host_name; print(host_name())").strip(): name
            for name, host in self.ray.network.hosts.items()
        }
        found = {identities[report["host"]]: report for report in reports}
        for report in found.values():
            report["fetched_bytes"] = Counter({identities[h]: n for h, n in report["fetched_bytes"].items()})
        return found

    def stored_percent(self) -> float:
        """How full Ray's stores are, all nodes together.

        By bytes: an object that was on its way to a process that died stays in Ray's count, with no memory, for ever.
        """
        module = "__import__('importlib').import_module('ray._private.internal_api')"
        text = self.ray.ask(f"{module}.memory_summary(stats_only=True)")
        assert isinstance(text, str)
        (line,) = (line for line in text.splitlines() if "objects" in line and "Plasma memory usage" in line)
        print(line)
        return float(line.partition("objects, ")[2].partition("% full")[0])


@pytest.fixture(scope="module")
def plane() -> Iterator[Plane]:
    """Hosts a (the head), b and c, a worker and a porter on each."""
    if reason := hosts.missing():
        pytest.skip(reason)
    with ray_hosts("a", "b", "c") as ray:
        yield Plane(ray)


@pytest.fixture
def settled(plane: Plane, eventually: Callable[..., None]) -> Plane:
    """With a porter on each host, and nothing left of what was before."""
    eventually(lambda: sorted(plane.porters()) == ["a", "b", "c"], "each host has its porter")
    eventually(lambda: _is_clean(plane), "nothing is left of what was before")
    return plane


def _is_clean(plane: Plane) -> bool:
    """Nothing is lent, landed or leased, and Ray's stores are empty; what is left is shown when a test fails."""
    names = ("lent_now", "landed_now", "leases_now", "used_blocks")
    held = {(host, name): report[name] for host, report in plane.porters().items() for name in names if report[name]}
    print("left:", held)
    return not held and not plane.stored_percent()


def _since(before: dict[str, Any], after: dict[str, Any], host: str, name: str) -> Any:
    return after[host][name] - before[host][name]


@pytest.mark.parametrize("home", ["a", "b"])
def test_blocks_travel_once_by_rays_store_and_never_through_the_coordinator(settled: Plane, home: str) -> None:
    """48 requests with four arrays, from the coordinator's host and from another, served by all three: each array goes
    once to each other host, each answer once to its client, and what the coordinator carries are handles."""
    before = settled.porters()
    told = settled.told(settled.client(home))
    after = settled.porters()
    served = settled.served(told)
    assert sorted(served) == ["a", "b", "c"]
    assert told["finished"] == REQUESTS
    assert told["carried_bytes"] < REQUESTS * 1000
    others = sorted({"a", "b", "c"} - {home})
    seen = settled.seen(told)
    assert _since(before, after, home, "puts") == len(set.union(*(seen[host] for host in others)))
    for host in others:
        assert _since(before, after, host, "fetched_bytes") == {home: len(seen[host]) * SIZE}
        assert _since(before, after, host, "puts") == served[host]
    assert _since(before, after, home, "fetched_bytes") == {host: served[host] * SIZE for host in others}


@pytest.mark.case(34)
def test_a_strangers_arrays_go_in_messages(settled: Plane) -> None:
    """A client on a host without a porter is served by all three; its bytes go through the coordinator, and by none."""
    before = settled.porters()
    told = settled.told(settled.client("b", environment={"TENSORYARD_HOST": "a-laptop"}))
    assert sorted(settled.served(told)) == ["a", "b", "c"]
    assert told["finished"] == REQUESTS
    assert told["carried_bytes"] > 2 * REQUESTS * SIZE
    after = settled.porters()
    assert all(not _since(before, after, host, "puts") for host in after)


@pytest.mark.case(34)
@pytest.mark.parametrize("victims", [["b"], ["a"], ["a", "b", "c"]], ids=["asks", "lends", "all"])
def test_porters_killed_in_the_middle(settled: Plane, eventually: Callable[..., None], victims: list[str]) -> None:
    """kill -9 of porters under load: every request is answered right, Ray makes them anew, and nothing is left."""
    before = settled.porters()
    with settled.client("a", requests=4 * REQUESTS) as client:
        assert client.stdout.readline() == b"half\n"
        for host in victims:
            assert settled.ray.network[host].kill("PorterActor")
        told = settled.told(client)
    assert sum(told["served"].values()) == 4 * REQUESTS

    def are_back() -> bool:
        after = settled.porters()
        return len(after) == 3 and all(after[host]["pid"] != before[host]["pid"] for host in victims)

    eventually(are_back, "the porters are back")
    eventually(lambda: _is_clean(settled), "nothing is left")
    again = settled.told(settled.client("a"))
    assert again["carried_bytes"] < REQUESTS * 1000


def test_nothing_is_left_when_it_is_shut_down(settled: Plane, eventually: Callable[..., None]) -> None:
    """`down` ends the porters too, with their sockets."""
    settled.ray.launch("down")
    for host in settled.ray.network.hosts.values():
        eventually(lambda host=host: not host.processes(["PorterActor", "WorkerActor"]), "their processes have ended")
        assert not list((host.root / "run/tensoryard").glob("porter-*"))
