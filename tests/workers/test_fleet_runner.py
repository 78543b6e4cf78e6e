"""The fleet at work: with real processes and a scripted coordinator, and with a launcher that only pretends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import tensoryard as ty
from tensoryard.proto import wire
from tensoryard.settings import Settings
from tensoryard.workers.fleet_runner import FleetRunner
from tensoryard.workers.launchers import OnEnd, ProcessLauncher

from ..scripted import Hub
from .support import CALM, DEADLINE_S, deployment_of, until, write_pipeline
from .test_launchers import is_gone


class Coordinating:
    """A script for a hub: it passes on between fleet and workers what a coordinator passes on."""

    def __init__(self) -> None:
        self.fleet = b""
        self.workers: dict[str, bytes] = {}
        #: Workers that do not hear DRAIN.
        self.deaf: set[str] = set()

    def __call__(self, hub: Hub, peer: bytes, message: Any, _body: Any) -> bool:
        match message:
            case wire.Hello(role="fleet"):
                self.fleet = peer
            case wire.Hello(role="worker", name=name):
                self.workers[name] = peer
            case wire.Ready(deployment=deployment):
                self.notify(hub, peer, deployment, "ready")
            case wire.StartFailed(deployment=deployment, text=text):
                self.notify(hub, peer, deployment, "start_failed", text)
            case wire.DrainWorker(worker=name):
                if name in self.workers and name not in self.deaf:
                    hub._hub.send(self.workers[name], [wire.encode(wire.Drain())])
        return False

    def notify(self, hub: Hub, peer: bytes, deployment: str, what: str, text: str = "") -> None:
        [name] = [name for name, known in self.workers.items() if known == peer]
        notice = wire.WorkerNotice(worker=name, deployment=deployment, what=what, text=text)
        hub._hub.send(self.fleet, [wire.encode(notice)])


@pytest.fixture
def coordinating() -> Coordinating:
    """What the hub does."""
    return Coordinating()


@pytest.fixture
def hub(coordinating) -> Iterator[Hub]:
    """A coordinator as far as a fleet and its workers can tell."""
    with Hub(script=coordinating) as hub:
        yield hub


@pytest.fixture
def make_fleet(hub) -> Iterator[Callable[..., FleetRunner]]:
    """Makes fleets of real processes, started, and closes them; nothing of theirs is left."""
    made: list[tuple[FleetRunner, ProcessLauncher]] = []

    def make(*deployments: ty.Deployment, settings: Settings = CALM) -> FleetRunner:
        launcher = ProcessLauncher(settings)
        fleet = FleetRunner(address=hub.address, deployments=deployments, launcher=launcher, settings=settings)
        made.append((fleet, launcher))
        fleet.start()
        return fleet

    yield make
    for fleet, launcher in made:
        fleet.close()
        assert launcher.pids() == {}
        assert not fleet._thread.is_alive()
        assert not fleet._session._thread.is_alive()


def ready_names(hub: Hub, count: int) -> list[str]:
    """Names of the workers that have said READY, once there are so many."""
    hub.wait(wire.Ready, count)
    with hub._changed:
        ready = {peer for peer, message, _ in hub.seen if isinstance(message, wire.Ready)}
        return [m.name for peer, m, _ in hub.seen if isinstance(m, wire.Hello) and m.role == "worker" and peer in ready]


def pids(fleet: FleetRunner) -> dict[str, int]:
    return fleet._launcher.pids()  # type: ignore[attr-defined]


def states(fleet: FleetRunner) -> dict[str, str]:
    return {member.name: member.state.value for member in fleet._fleet.members}


# -- with real processes ----------------------------------------------------------------------------------------------


@pytest.mark.process
def test_a_fleet_brings_up_its_workers_replaces_them_and_ends_them(hub, make_fleet, tmp_path):
    """Two start; one is killed and replaced; closing drains all, says goodbye, and leaves nothing running."""
    fleet = make_fleet(deployment_of(write_pipeline(tmp_path), replicas=2))
    [told] = hub.wait(wire.Deployments)
    [expected] = told.deployments
    assert (expected.model, expected.replicas, expected.unhealthy) == ("m", 2, "")
    first, second = ready_names(hub, 2)
    fleet._launcher.kill(first)
    [new] = set(ready_names(hub, 3)) - {first, second}
    until(lambda: states(fleet) == {second: "ready", new: "ready"}, "the killed worker's place is taken")
    before = list(pids(fleet).values())
    fleet.close()
    assert {message.worker for message in hub.of(wire.DrainWorker)} == {second, new}
    assert all(map(is_gone, before))
    fleet.close()
    hub.wait(wire.Disconnect, 3)


@pytest.mark.process
def test_a_pipeline_that_never_starts_is_given_up_and_tried_again_when_deployed(hub, make_fleet, tmp_path):
    """Three tries, then the coordinator is told the traceback; what is mended starts when it is deployed again."""
    mended = tmp_path / "mended"
    pipeline = write_pipeline(tmp_path, start=f"if not os.path.exists({str(mended)!r}): raise ValueError('no weights')")
    fleet = make_fleet(deployment_of(pipeline))
    until(
        lambda: hub.of(wire.Deployments)[-1:] and hub.of(wire.Deployments)[-1].deployments[0].unhealthy,
        "it is given up",
    )
    unhealthy = hub.of(wire.Deployments)[-1].deployments[0].unhealthy
    assert unhealthy.startswith("3 workers in a row failed to start; the last: Traceback")
    assert "ValueError: no weights" in unhealthy
    assert len([hello for hello in hub.of(wire.Hello) if hello.role == "worker"]) == 3
    mended.touch()
    fleet.deploy([deployment_of(pipeline)])
    hub.wait(wire.Ready)
    assert hub.of(wire.Deployments)[-1].deployments[0].unhealthy == ""


@pytest.mark.process
def test_a_changed_list_changes_what_runs(hub, make_fleet, tmp_path):
    """Other options replace the worker, another model joins, and the list may be changed by its owner afterwards."""
    pipeline = write_pipeline(tmp_path)
    fleet = make_fleet(deployment_of(pipeline))
    ready_names(hub, 1)
    many = [deployment_of(pipeline, options={"a": 1}), deployment_of(pipeline, model="other")]
    fleet.deploy(many)
    many.clear()
    until(lambda: states(fleet) == {"m-2": "ready", "other-1": "ready"}, "the new workers run alone")
    assert set(pids(fleet)) == {"m-2", "other-1"}


@pytest.mark.process
def test_a_hung_worker_is_killed_and_replaced(hub, make_fleet, coordinating, tmp_path):
    """The coordinator gives notice that it lost a worker: the process goes, another comes."""
    fleet = make_fleet(deployment_of(write_pipeline(tmp_path)))
    ready_names(hub, 1)
    pid = pids(fleet)["m-1"]
    hub.send(wire.WorkerNotice(worker="m-1", deployment="m", what="hung", text="no progress"), to=coordinating.fleet)
    until(lambda: is_gone(pid), "the hung worker is gone")
    assert ready_names(hub, 2) == ["m-1", "m-2"]


@pytest.mark.process
def test_a_worker_that_does_not_drain_is_killed_at_the_end(hub, make_fleet, coordinating, tmp_path):
    """Closing waits `drain_s` and no longer than it must."""
    coordinating.deaf.add("m-1")
    settings = Settings(heartbeat_s=0.1, liveness_s=60.0, drain_s=0.2, pool_budget_bytes=32 << 20)
    fleet = make_fleet(deployment_of(write_pipeline(tmp_path)), settings=settings)
    ready_names(hub, 1)
    pid = pids(fleet)["m-1"]
    fleet.close()
    assert is_gone(pid)
    assert fleet.finished.is_set()


@pytest.mark.process
def test_a_shutdown_ends_the_fleet_by_itself(hub, make_fleet, coordinating, tmp_path):
    """SHUTDOWN from the coordinator: workers are drained, then the fleet says goodbye, last."""
    fleet = make_fleet(deployment_of(write_pipeline(tmp_path), replicas=2))
    ready_names(hub, 2)
    hub.send(wire.Shutdown(), to=coordinating.fleet)
    assert fleet.finished.wait(DEADLINE_S)
    hub.wait(wire.Disconnect, 3)
    last = [peer for peer, message, _ in hub.seen if isinstance(message, wire.Disconnect)][-1]
    assert last == coordinating.fleet
    assert pids(fleet) == {}
    fleet.deploy([deployment_of(write_pipeline(tmp_path))])
    fleet.stop()


# -- with a launcher that pretends ------------------------------------------------------------------------------------


class Pretending:
    """A launcher without processes: the test says when a worker ends."""

    def __init__(self) -> None:
        self.running: dict[str, OnEnd] = {}
        self.launched: list[str] = []
        self.refuse: Exception | None = None
        self.closed = 0
        self.homeless: dict[str, str] = {}
        self.leaving: set[str] = set()
        self.planned: list[tuple[str, int]] = []

    def launch(self, name: str, deployment: ty.Deployment, address: str, on_end: OnEnd) -> None:
        self.launched.append(name)
        if self.refuse is not None:
            raise self.refuse
        self.running[name] = on_end

    def end(self, name: str) -> None:
        if on_end := self.running.pop(name, None):
            on_end(name, "it has ended")

    def unplaced(self) -> dict[str, str]:
        return self.homeless

    def doomed(self) -> set[str]:
        return self.leaving

    def plan(self, wanted: Any) -> None:
        self.planned = [(deployment.name, count) for deployment, count in wanted]

    def kill(self, name: str) -> None:
        self.end(name)

    def close(self) -> None:
        self.closed += 1
        for name in list(self.running):
            self.end(name)


@pytest.fixture
def pretending() -> Pretending:
    """No processes."""
    return Pretending()


@pytest.fixture
def make_runner(hub, pretending) -> Iterator[Callable[..., FleetRunner]]:
    """Makes fleets without processes, and closes them."""
    runners: list[FleetRunner] = []

    def make(*deployments: ty.Deployment, start: bool = True, settings: Settings = CALM) -> FleetRunner:
        runner = FleetRunner(address=hub.address, deployments=deployments, launcher=pretending, settings=settings)
        runners.append(runner)
        if start:
            runner.start()
        return runner

    yield make
    for runner in runners:
        pretending.refuse = None
        runner.close()
        assert not runner._thread.is_alive()
        assert not runner._session._thread.is_alive()


def test_workers_without_a_place_are_told_of(hub, pretending, make_runner, caplog):
    """To the coordinator, in the log, and no longer once they have one; what is wanted is planned for."""
    pretending.homeless = {"m-1": "each needs 2 GPU; the most that a node has is 1 GPU"}
    make_runner(deployment_of("mod:create"))
    told = lambda: [entry.pending for message in hub.of(wire.Deployments) for entry in message.deployments]
    text = "1 of 1 workers wait for a place: each needs 2 GPU; the most that a node has is 1 GPU"
    until(lambda: text in told(), "it is told")
    assert "worker m-1 has no place to run: each needs 2 GPU" in caplog.text
    pretending.homeless = {}
    until(lambda: told()[-1] == "", "it is told again")
    assert pretending.planned == [("m", 1)]


def test_time_passes_however_often_the_fleet_is_asked(hub, pretending, make_runner):
    """Delays and limits are looked at while questions come without a pause."""
    pretending.refuse = OSError("no memory")
    runner = make_runner(deployment_of("mod:create"))
    until(lambda: runner.expectations()[0].unhealthy, "it is given up, after two delays")


def test_a_launch_that_raises_is_a_failed_start(hub, pretending, make_runner):
    """Three times, then the deployment is given up with the reason, and the fleet goes on."""
    pretending.refuse = OSError("no memory for caf\udce9")
    make_runner(deployment_of("mod:create"))
    until(
        lambda: hub.of(wire.Deployments)[-1:] and hub.of(wire.Deployments)[-1].deployments[0].unhealthy,
        "it is given up",
    )
    text = hub.of(wire.Deployments)[-1].deployments[0].unhealthy
    assert text == "3 workers in a row failed to start; the last: it could not be started: no memory for caf?"
    assert pretending.launched == ["m-1", "m-2", "m-3"]


def test_ends_while_no_coordinator_is_heard_give_nothing_up(hub, pretending, make_runner):
    """Silence of a heartbeat, which the session tells with each beat, reaches the fleet."""
    runner = make_runner(deployment_of("mod:create", replicas=3))
    until(lambda: len(pretending.running) == 3, "three start")
    runner.on_beat(0.0)
    runner.on_beat(CALM.heartbeat_s)
    until(lambda: all(member.excused for member in runner._fleet.members), "the fleet knows")
    for name in list(pretending.running):
        pretending.end(name)
    until(lambda: len(pretending.launched) == 6, "they are replaced")
    assert [entry.unhealthy for told in hub.of(wire.Deployments) for entry in told.deployments if entry.unhealthy] == []


def test_a_coordinator_that_comes_anew_is_told_again(hub, coordinating, pretending, make_runner):
    """REJOIN and WELCOME: the list comes again, as it is now."""
    runner = make_runner(deployment_of("mod:create", replicas=2))
    hub.wait(wire.Deployments)
    runner.deploy([deployment_of("mod:create", replicas=3)])
    until(lambda: hub.of(wire.Deployments)[-1].deployments[0].replicas == 3, "the new list is told")
    count = len(hub.of(wire.Deployments))
    hub.send(wire.Rejoin(), to=coordinating.fleet)
    assert hub.wait(wire.Deployments, count + 1)[-1].deployments[0].replicas == 3
    assert len(pretending.launched) == 3


def test_a_refused_message_is_no_end(hub, coordinating, pretending, make_runner):
    """REFUSED is about one message: the next order is carried out."""
    runner = make_runner(deployment_of("mod:create"))
    hub.wait(wire.Deployments)
    hub.send(wire.Refused(code="protocol", text="what?"), to=coordinating.fleet)
    runner.deploy([deployment_of("mod:create", replicas=2)])
    until(lambda: len(pretending.launched) == 2, "the next order is carried out")


def test_a_fleet_whose_address_is_none_still_ends(pretending):
    """Nothing can be told to anybody; closing ends the workers all the same."""
    runner = FleetRunner(
        address="nowhere at all",
        deployments=[deployment_of("mod:create")],
        launcher=pretending,
        settings=CALM,
    )
    runner.start()
    until(lambda: pretending.running, "the worker is launched")
    runner.close()
    assert pretending.running == {}
    assert not runner._thread.is_alive()


def test_trouble_with_one_worker_does_not_end_the_fleet(hub, coordinating, pretending, make_runner):
    """A launcher that raises when it is to kill: logged, and the next order is carried out."""
    runner = make_runner(deployment_of("mod:create"))
    until(lambda: pretending.running, "the worker is launched")
    pretending.kill = lambda _: 1 / 0  # type: ignore[assignment,method-assign,return-value]
    hub.wait(wire.Deployments)
    hub.send(wire.WorkerNotice(worker="m-1", deployment="m", what="hung"), to=coordinating.fleet)
    runner.deploy([deployment_of("mod:create", replicas=2)])
    until(lambda: len(pretending.launched) == 2, "the next order is carried out")
    del pretending.kill


def test_closing_a_fleet_that_was_never_started_waits_for_nothing(hub, pretending, make_runner):
    """Its launcher is closed; again is harmless."""
    runner = make_runner(deployment_of("mod:create"), start=False, settings=Settings(drain_s=1e6))
    runner.close()
    runner.close()
    assert (pretending.closed, pretending.launched) == (2, [])


def test_closing_does_not_wait_longer_than_told(hub, coordinating, pretending, make_runner):
    """Workers that do not end in time are ended by the launcher; the fleet's thread ends too."""
    runner = make_runner(deployment_of("mod:create"))
    until(lambda: pretending.running, "the worker is launched")
    hub.wait(wire.Deployments)
    hub.send(wire.WorkerNotice(worker="m-1", deployment="m", what="ready"), to=coordinating.fleet)
    until(lambda: states(runner) == {"m-1": "ready"}, "the worker is ready")
    runner.close(0.01)
    assert pretending.running == {}
    assert runner.finished.is_set()
    assert not runner._thread.is_alive()


def test_orders_from_many_threads_are_carried_out_one_by_one(hub, pretending, make_runner):
    """The last list is what runs, and nothing is launched twice."""
    runner = make_runner()
    threads = [
        threading.Thread(
            target=lambda n=n: [runner.deploy([deployment_of("mod:create", replicas=n)]) for _ in range(20)]
        )
        for n in (1, 2, 3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    runner.deploy([deployment_of("mod:create", replicas=2)])
    until(lambda: runner._inbox.empty() and len(pretending.running) == 2, "two run")
    assert len(set(pretending.launched)) == len(pretending.launched)
