"""Ray's part: the actors in which coordinator and fleet run.

`deploy/ray_cluster.py` makes them, for as long as a process lives or detached from it; the fleet's workers are actors
too (`ray_launcher.py`). A detached cluster outlives whoever started it and ends by a client's word alone.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from ..coordinator import Coordinator
from ..errors import ConfigError
from ..links.address import HubKeys
from ..logs import logger
from ..proto.deployment import Deployment
from ..settings import Settings
from .fleet import Expectation
from .fleet_runner import FleetRunner
from .ray_launcher import RayLauncher
from .ray_porter import PorterKeeper, namespace_of

log = logger(__name__)

_READY_TIMEOUT_S = 30.0
COORDINATOR, FLEET = "coordinator", "fleet"
#: Where a coordinator listens that is to serve other hosts: at its node's address, at the first port that is free of
#: these. They are not among those that systems, or Ray, give to others.
NETWORK = "tcp://node"
_PORTS = range(7077, 7177)
#: One that is made anew waits for the port of the one before for so long.
_REBIND_S = 20.0
#: Where fleets' orders, and coordinators' addresses, are kept in Ray's own store.
_KV_NAMESPACE = b"tensoryard"


@dataclass(frozen=True, kw_only=True)
class CoordinatorOrder:
    """What a coordinator's actor is made with. `listen`: addresses beside the one of its name, or NETWORK."""

    name: str
    settings: Settings
    listen: tuple[str, ...] = ()
    #: Guard those that other hosts reach; the same in all its lives.
    keys: HubKeys | None = None
    #: It outlives who made it, and takes itself away when the cluster has been shut down.
    detached: bool = False


class CoordinatorActor:
    """A coordinator in a Ray actor: serves from the moment it is made; Ray makes it anew when it dies."""

    def __init__(self, order: CoordinatorOrder) -> None:
        self._coordinator: Coordinator | None = None
        self._keys = order.keys
        self._error: BaseException | None = None
        self._bound = threading.Event()
        self._ended = threading.Event()
        threading.Thread(target=self._run, args=(order,), daemon=True).start()
        if not self._bound.wait(_READY_TIMEOUT_S) or self._error is not None:
            raise self._error or TimeoutError("the coordinator did not begin to listen")

    def _run(self, order: CoordinatorOrder) -> None:
        """Make the sockets in the thread that uses them, and serve."""
        try:
            self._coordinator = _make_coordinator(order)
        except BaseException as error:
            self._error = error
            return
        finally:
            self._bound.set()
        try:
            self._coordinator.run()
        except BaseException:
            log.exception("the coordinator failed")
            os._exit(1)  # crash-only: Ray starts a fresh one
        self._ended.set()
        if order.detached:
            _end_for_good(order.name, COORDINATOR)

    def addresses(self) -> list[str]:
        """Where it listens: on its own host first; with all that lets a peer in."""
        import ray

        assert self._coordinator is not None, "a made actor listens"
        node: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        told = [_as_reached(address, node) for address in self._coordinator.addresses]
        return [self._keys.invitation(address) for address in told] if self._keys is not None else told

    def pid(self) -> int:
        """Its process, for people and tests."""
        return os.getpid()

    def stop(self, timeout_s: float) -> bool:
        """End it; True when it has ended in time."""
        assert self._coordinator is not None, "a made actor listens"
        if not self._ended.is_set():
            self._coordinator.stop()
        return self._ended.wait(timeout_s)

    def wait_ended(self, timeout_s: float) -> bool:
        """Wait until a shutdown that a client asked for is complete."""
        return self._ended.wait(timeout_s)


def _make_coordinator(order: CoordinatorOrder) -> Coordinator:
    """One that listens where the one before it did, if there was one: peers look for it there."""
    import ray

    again = ray.get_runtime_context().was_current_actor_reconstructed
    addresses = _kept_addresses(order.name) if again else [_chosen(address) for address in order.listen]
    give_up = time.monotonic() + (_REBIND_S if again else 0.0)
    while True:
        try:
            made = Coordinator(
                name=order.name, addresses=addresses, settings=order.settings, expects_fleet=True, keys=order.keys
            )
        except ConfigError:  # what the kernel has not cleared away yet
            if time.monotonic() >= give_up:
                raise
            time.sleep(0.2)
        else:
            _keep_addresses(order.name, addresses)
            return made


def _chosen(address: str) -> str:
    """NETWORK as an address of this node."""
    import ray

    if address != NETWORK:
        return address
    node = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    for port in _PORTS:
        with contextlib.suppress(OSError), socket.create_server((node, port)):
            return f"tcp://{node}:{port}"
    raise ConfigError(f"no port of {_PORTS.start} to {_PORTS.stop - 1} is free at {node}: name one (--listen)")


def _as_reached(address: str, node: str) -> str:
    """An address that is bound on every network, as others reach it."""
    for every in ("tcp://0.0.0.0:", "tcp://[::]:"):
        address = address.replace(every, f"tcp://{node}:", 1)
    return address


def _kept_addresses(name: str) -> list[str]:
    from ray.experimental import internal_kv

    found = internal_kv._internal_kv_get(f"coordinator/{name}".encode(), namespace=_KV_NAMESPACE)  # noqa: SLF001
    return msgspec.msgpack.decode(found or b"\x90", type=list[str])


def _keep_addresses(name: str, addresses: Sequence[str]) -> None:
    from ray.experimental import internal_kv

    internal_kv._internal_kv_put(  # noqa: SLF001
        f"coordinator/{name}".encode(), msgspec.msgpack.encode(list(addresses)), namespace=_KV_NAMESPACE
    )


@dataclass(frozen=True, kw_only=True)
class FleetOrder:
    """What a fleet is to run, and in what. Kept where a fleet that Ray makes anew finds the last one."""

    name: str
    addresses: tuple[str, ...]
    deployments: tuple[Deployment, ...]
    settings: Settings
    #: Ray's runtime environment of the workers: where a job's files are, for example.
    environment: Mapping[str, Any] = field(default_factory=dict)
    #: Raised when all workers are to be replaced though their deployments are the same.
    restarts: int = 0
    #: Fleets of this cluster that died.
    lives: int = 0
    detached: bool = False
    #: Tell Ray's autoscaler what is wanted, so that it adds nodes.
    asks_for_nodes: bool = False

    @property
    def revision(self) -> str:
        """Changes when workers have to be replaced though their deployments are the same."""
        return msgspec.json.encode([self.environment, self.restarts], order="sorted").decode()


class FleetActor:
    """The fleet in a Ray actor; its workers are actors too, and end with it."""

    def __init__(self, order: FleetOrder) -> None:
        import ray

        if ray.get_runtime_context().was_current_actor_reconstructed:
            order = _last_order(order)
            order = replace(order, lives=order.lives + 1)
        self._order = order
        _keep(order)
        self._launcher = RayLauncher(order.addresses, order.settings)
        self._launcher.environment = order.environment
        self._launcher.asks_for_nodes = order.asks_for_nodes
        self._runner = FleetRunner(
            address=order.addresses[0],
            deployments=order.deployments,
            launcher=self._launcher,
            settings=order.settings,
            revision=order.revision,
            life=order.lives,
        )
        self._runner.start()
        self._porters = PorterKeeper(order.name, order.settings, detached=order.detached, workers=self._launcher.places)
        self._porters.start()
        if order.detached:
            threading.Thread(target=self._leave, daemon=True).start()

    def deploy(
        self, deployments: Sequence[Deployment], environment: Mapping[str, Any] | None = None, *, restart: bool = False
    ) -> None:
        """Change what should run, in which environment (None: the same), or replace all workers by fresh ones."""
        order = self._order
        self._order = replace(
            order,
            deployments=tuple(deployments),
            environment=order.environment if environment is None else environment,
            restarts=order.restarts + restart,
        )
        _keep(self._order)
        self._launcher.environment = self._order.environment
        self._runner.deploy(deployments, revision=self._order.revision)

    def expectations(self) -> Sequence[Expectation]:
        """How far each deployment is."""
        return self._runner.expectations()

    def places(self) -> dict[str, str]:
        """The node of each worker."""
        return self._launcher.places()

    def porters(self, timeout_s: float = 10.0) -> list[dict[str, Any]]:
        """What each node's porter has done and holds."""
        return self._porters.reports(timeout_s)

    def pid(self) -> int:
        """Its process, for people and tests."""
        return os.getpid()

    def close(self, timeout_s: float) -> None:
        """Drain every worker, then end."""
        self._runner.close(timeout_s)
        self._porters.close()
        _forget(self._order)

    def _leave(self) -> None:
        """A client has shut the cluster down: when the last worker has ended, nothing of the fleet is to stay."""
        self._runner.finished.wait()
        self._launcher.plan([])
        self._porters.close()
        _forget(self._order)
        _end_for_good(self._order.name, FLEET)


def _end_for_good(name: str, role: str) -> None:
    """End this very actor, in a way that Ray does not answer by making it anew."""
    import ray

    ray.kill(ray.get_actor(role, namespace=namespace_of(name)), no_restart=True)


# -- what a fleet remembers beyond its own death ----------------------------------------------------------------------


class _Kept(msgspec.Struct, frozen=True):
    """The part of an order that changes."""

    deployments: list[Deployment]
    environment: dict[str, Any]
    restarts: int
    lives: int


def _key(order: FleetOrder) -> bytes:
    return f"fleet/{order.name}".encode()


def _keep(order: FleetOrder) -> None:
    from ray.experimental import internal_kv

    kept = _Kept(list(order.deployments), dict(order.environment), order.restarts, order.lives)
    internal_kv._internal_kv_put(_key(order), msgspec.msgpack.encode(kept), namespace=_KV_NAMESPACE)  # noqa: SLF001


def _last_order(order: FleetOrder) -> FleetOrder:
    """The last order that this cluster's fleet was given; the first, where none is kept."""
    from ray.experimental import internal_kv

    found = internal_kv._internal_kv_get(_key(order), namespace=_KV_NAMESPACE)  # noqa: SLF001
    if found is None:
        return order
    kept = msgspec.msgpack.decode(found, type=_Kept)
    return replace(
        order,
        deployments=tuple(kept.deployments),
        environment=kept.environment,
        restarts=kept.restarts,
        lives=kept.lives,
    )


def _forget(order: FleetOrder) -> None:
    from ray.experimental import internal_kv

    internal_kv._internal_kv_del(_key(order), namespace=_KV_NAMESPACE)  # noqa: SLF001
