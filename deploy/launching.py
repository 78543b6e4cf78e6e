"""`tensoryard up --ray-address`: a cluster on a running Ray, which outlives whoever started it.

`launch.py` comes here from the head node of a Ray cluster; `ray_cluster.py` makes, finds and changes the actors;
`running.py` keeps clusters of one machine instead. Launching again with a changed file applies the difference.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..client import connect
from ..errors import Failed, NotConnected, ReplyTimeout, TensoryardError
from ..links.address import public
from ..proto.deployment import Deployment
from ..settings import from_environment
from ..workers.ray_runtime import NETWORK
from . import ray_cluster
from .local import check_models, wait_settled
from .ray_cluster import RayCluster
from .running import terminations_as_interrupts, wanted
from .text import duration, say

#: How long `down` waits for a coordinator's welcome before it ends the actors without one.
_ANSWER_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Where and how to launch. `ray_address`: as `ray.init` takes it; "auto" for the Ray of this machine."""

    name: str
    ray_address: str
    ready_timeout_s: float
    #: Addresses that the coordinator binds besides its socket, "tcp://HOST:PORT", for other hosts.
    listen: tuple[str, ...] = (NETWORK,)
    #: Where the coordinator's address is written.
    address_file: str | None = None
    #: Replace all workers, though their deployments are the same.
    restart: bool = False
    #: Ask Ray's autoscaler for nodes that hold all workers.
    asks_for_nodes: bool = True
    #: Stay until the cluster is shut down, and end it when told to stop.
    stay: bool = False


def up(deployments: Sequence[Deployment], plan: Plan) -> int:
    """Start the cluster of that name, or change it; return when it is as the deployments say."""
    check_models(deployments)
    settings = from_environment()
    with terminations_as_interrupts():
        ray_cluster.connect_ray(plan.ray_address)
        cluster, was_there = ray_cluster.launch(
            plan.name,
            deployments,
            settings,
            listen=plan.listen,
            restart=plan.restart,
            asks_for_nodes=plan.asks_for_nodes,
        )
        say(f"{'changing' if was_there else 'starting'} cluster {plan.name!r} on Ray: {wanted(deployments)}")
        with terminations_as_interrupts():  # again: Ray has set a handler of its own
            _wait_ready(cluster, plan.ready_timeout_s)
            say(f"ready at {' '.join(map(public, cluster.addresses))}")
            if plan.address_file is not None:
                write_address(plan.address_file, cluster.addresses)
            return _stay(cluster, plan) if plan.stay else 0


def _wait_ready(cluster: RayCluster, timeout_s: float) -> None:
    try:
        wait_settled(cluster.expectations, time.monotonic() + timeout_s)
    except TimeoutError as error:
        raise Failed(f"{error} (--ready-timeout waits longer; the cluster goes on trying)") from error


def write_address(path: str, addresses: Sequence[str]) -> None:
    """The addresses, one a line, whole or not at all: what `connect("file://PATH")` reads.

    Who can read it is let in: nobody but this user, until somebody decides otherwise.
    """
    fresh = Path(f"{path}.{os.getpid()}.new")
    fresh.touch(mode=0o600)
    fresh.write_text("".join(f"{address}\n" for address in addresses), encoding="utf-8")
    fresh.replace(path)


def _stay(cluster: RayCluster, plan: Plan) -> int:
    say("staying until the cluster is shut down")
    try:
        cluster.wait_ended()
    except KeyboardInterrupt:
        say("shutting the cluster down")
        return _shut_down(cluster, plan.name, from_environment().drain_s + _ANSWER_S)
    say("shut down by a client")
    return 0


def down(name: str, ray_address: str, *, timeout_s: float) -> int:
    """Shut the cluster of that name down; return when none of its actors is left."""
    ray_cluster.connect_ray(ray_address)
    cluster = ray_cluster.find(name, from_environment())
    if cluster is None:
        say(f"no cluster named {name!r} runs on this Ray", error=True)
        return 0
    return _shut_down(cluster, name, timeout_s)


def _shut_down(cluster: RayCluster, name: str, timeout_s: float) -> int:
    give_up = (started := time.monotonic()) + timeout_s
    try:
        with connect(cluster.address, timeout_s=min(_ANSWER_S, timeout_s)) as client:
            client.shutdown()
    except TensoryardError as error:
        say(f"the coordinator does not answer ({error.text}): ending its actors", error=True)
        cluster.kill()
    if not ray_cluster.wait_gone(name, give_up):
        cluster.kill()
        if not ray_cluster.wait_gone(name, time.monotonic() + _ANSWER_S):
            raise ReplyTimeout(f"actors of cluster {name!r} are still there after {timeout_s:g} s")
        say("workers that did not finish in time were ended", error=True)
    say(f"cluster {name!r} has ended ({duration(time.monotonic() - started)})")
    return 0


def address(name: str, ray_address: str) -> str:
    """Where this process reaches the coordinator of that name, by asking Ray. NotConnected when there is none."""
    ray_cluster.connect_ray(ray_address)
    cluster = ray_cluster.find(name, from_environment())
    if cluster is None:
        raise NotConnected(f"no cluster named {name!r} runs on the Ray at {ray_address!r}")
    if cluster.address.startswith("unix://") and not Path(cluster.address.removeprefix("unix://")).exists():
        raise NotConnected(
            f"the coordinator of cluster {name!r} listens on its own host alone, at {cluster.address} (--local-only): "
            "connect there, or launch it without that flag, after `down`",
        )
    return cluster.address
