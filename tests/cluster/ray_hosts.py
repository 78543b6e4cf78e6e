"""Ray on several hosts (`hosts.py`), as an administrator would start it, and our cluster launched on it.

The first host is the head node. Dead nodes are noticed in seconds rather than in a minute; nothing else is tuned.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .hosts import Host, Network, network

LAUNCH = Path(__file__).parents[2] / "deploy" / "launch.py"
RAY = str(Path(sys.executable).with_name("ray"))
PORT, CLIENT_PORT = 6379, 10001
#: Ray's client server needs a part that only some installs have.
HAS_RAY_CLIENT = importlib.util.find_spec("grpc") is not None
#: The head's environment alone decides when a node counts as dead: after about 4 s of silence here, else a minute.
HEALTH = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "6",
}
_NODE = ("--num-cpus=4", "--object-store-memory=150000000", "--disable-usage-stats")


class RayHosts:
    """Ray on the hosts of a network, the first of them its head."""

    def __init__(self, hosts: Network, head_options: Sequence[str]) -> None:
        self.network = hosts
        self.head, *self.others = hosts.hosts.values()
        self.address = f"{self.head.address}:{PORT}"
        for host in hosts.hosts.values():
            host.environment |= {
                "RAY_AUTH_MODE": "disabled",
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_ADDRESS": self.address,
            }
        client = [f"--ray-client-server-port={CLIENT_PORT}"] if HAS_RAY_CLIENT else []
        self.head.run(
            RAY, "start", "--head", f"--port={PORT}", f"--node-ip-address={self.head.address}",
            "--include-dashboard=false", *client, *_NODE, *head_options, environment={**HEALTH, "RAY_ADDRESS": ""},
        )  # fmt: skip
        with ThreadPoolExecutor() as pool:
            list(pool.map(self.join, self.others))

    def join(self, host: Host, *options: str) -> None:
        """One more node, or one that comes back."""
        host.run(
            RAY, "start", f"--address={self.address}", f"--node-ip-address={host.address}", *_NODE, *options,
            environment={"RAY_ADDRESS": ""},
        )  # fmt: skip

    def launch(self, *arguments: str) -> str:
        """What `launch.py` prints on the head node."""
        return self.head.run(sys.executable, str(LAUNCH), *arguments)

    def ask(self, expression: str, *, name: str = "default") -> object:
        """The value, as JSON, of an expression over `ray`, `fleet` and `coordinator`, on the head node."""
        script = (
            "import json, ray; ray.init(log_to_driver=False); "
            f"fleet, coordinator = (ray.get_actor(role, namespace='tensoryard-{name}') "
            "for role in ('fleet', 'coordinator')); "
            f"print('value', json.dumps({expression}))"
        )
        return json.loads(self.head.run(sys.executable, "-c", script).partition("value ")[2].splitlines()[0])

    def places(self, name: str = "default") -> dict[str, str]:
        """The host of each worker of a cluster, by their names."""
        nodes = "{n['NodeID']: n['NodeManagerAddress'] for n in ray.nodes()}"
        found = self.ask(f"[ray.get(fleet.places.remote()), {nodes}]", name=name)
        assert isinstance(found, list)
        workers, addresses = found
        names = {host.address: host.name for host in self.network.hosts.values()}
        return {worker: names[addresses[node]] for worker, node in workers.items()}


@contextlib.contextmanager
def ray_hosts(*names: str, head_options: Sequence[str] = ()) -> Iterator[RayHosts]:
    """Ray on hosts of these names."""
    with network(*names) as hosts:
        yield RayHosts(hosts, head_options)
