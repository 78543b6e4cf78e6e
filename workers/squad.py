"""One deployment's workers, pure: how many there should be, with what, and in which order they come and go.

`fleet.py` keeps one squad for each deployment and passes on what it hears. A squad whose deployment has changed is
rolled over: new workers start beside the old ones, and an old one is let go when a new one serves in its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from ..proto.autoscale import Autoscale
from ..proto.deployment import Deployment
from .autoscale import Scaler

#: Starts that may fail in a row before a deployment is given up as unhealthy.
MAX_START_FAILURES = 3
#: A worker that dies sooner than this after it was ready is replaced with growing delay.
QUICK_DEATH_S = 10.0
#: A new worker that finds no place for so long gets that of an old one, which is let go before it.
CRAMPED_S = 10.0
_FIRST_DELAY_S = 0.5
_MAX_DELAY_S = 15.0
#: What the coordinator alone goes by: a change of it leaves the workers as they are.
_NOT_THE_WORKERS = {"replicas", "max_queued", "max_queued_bytes"}


class MemberState(Enum):
    """Where a worker of the fleet is."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


@dataclass(slots=True, eq=False)
class Member:
    """One worker that the fleet has launched and that has not ended."""

    name: str
    #: What it was launched with.
    deployment: Deployment
    revision: str
    state: MemberState
    #: When it entered its state; while STARTING, when it was launched or got its place.
    since: float
    #: What it told about a failed start.
    trouble: str = ""
    #: While it started, no coordinator was heard: it may have had nobody to work for.
    excused: bool = False
    #: Why it has no place to run yet; "" once it has.
    unplaced: str = ""
    #: Its node is about to go: another is to take its place before.
    doomed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Start a worker."""

    name: str
    deployment: Deployment


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Let a worker finish and leave."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """End a worker now."""

    name: str


@dataclass(slots=True, eq=False)
class Squad:
    """One deployment and its workers."""

    deployment: Deployment
    #: What its workers run in: code and environment that came with the order to run them.
    revision: str
    #: Ends of the names of its workers.
    numbers: Iterator[str]
    #: In order of launch.
    members: dict[str, Member] = field(default_factory=dict)
    failures: int = 0
    quick_deaths: int = 0
    #: No launch before this.
    retry_at: float = 0.0
    unhealthy: str = ""
    #: What a worker told last about a failed start.
    trouble: str = ""
    #: Where the number follows the load.
    scaler: Scaler | None = None

    def __post_init__(self) -> None:
        self._follow_load(0)

    @property
    def wanted(self) -> int:
        """How many workers there should be."""
        return self.scaler.target if self.scaler is not None else self.deployment.least_replicas

    @property
    def surge(self) -> int:
        """How many more there may be while new ones take the places of old ones."""
        return max(1, self.wanted // 4)

    @property
    def present(self) -> list[Member]:
        """Those that are not leaving."""
        return [member for member in self.members.values() if member.state is not MemberState.DRAINING]

    @property
    def outdated(self) -> list[Member]:
        """Those present that are to be replaced: launched with something else than is wanted now, or doomed."""
        return [member for member in self.present if not self._is_current(member)]

    @property
    def ready(self) -> int:
        """How many serve with what is wanted now."""
        return sum(member.state is MemberState.READY for member in self._current())

    @property
    def pending(self) -> str:
        """Which workers have no place to run, and why, and how many are of an earlier kind; "" for none."""
        waiting = [member for member in self.present if member.unplaced]
        parts = [f"{len(waiting)} of {self.wanted} workers wait for a place: {waiting[0].unplaced}"] if waiting else []
        parts += [f"workers yet to be replaced: {len(self.outdated)}"] if self.outdated else []
        return "; ".join(parts)

    # -- what happens -------------------------------------------------------------------------------------------------

    def change(self, deployment: Deployment, revision: str, at: float) -> None:
        """What is wanted now. Whatever it lacked before may be there now: it gets another chance."""
        if self.unhealthy or revision != self.revision or not same_workers(deployment, self.deployment):
            self.unhealthy, self.failures, self.quick_deaths, self.retry_at = "", 0, 0, at
        before, self.deployment, self.revision = self.wanted, deployment, revision
        self._follow_load(before)

    def _follow_load(self, before: int) -> None:
        """From the number that there was, within the new bounds, if there is no scaler by these rules yet."""
        policy = self.deployment.replicas
        if not isinstance(policy, Autoscale):
            self.scaler = None
        elif self.scaler is None or self.scaler.policy != policy:
            self.scaler = Scaler(policy, before)

    def count_failure(self, text: str, at: float) -> bool:
        """A worker did not start; True when the deployment is given up by that."""
        self.failures += 1
        self.retry_at = at + _delay(self.failures)
        if self.failures < MAX_START_FAILURES or self.unhealthy:
            return False
        self.unhealthy = f"{self.failures} workers in a row failed to start; the last: {text}"
        return True

    def count_death(self, lived_s: float, at: float) -> None:
        """Replace the dead at once, unless they keep dying young."""
        self.quick_deaths = self.quick_deaths + 1 if lived_s < QUICK_DEATH_S else 0
        if self.quick_deaths > 1:
            self.retry_at = max(self.retry_at, at + _delay(self.quick_deaths - 1))

    def left_its_place(self, at: float) -> None:
        """One has left: those that wait for a place are given time to take it."""
        for member in self.members.values():
            if member.unplaced:
                member.since = at

    # -- what follows -------------------------------------------------------------------------------------------------

    def reconcile(self, at: float) -> list[Launch | Drain | Kill]:
        """Bring workers to what they should be, in number and in kind."""
        leaving = [*self._idle_outdated(), *self._surplus()]
        effects: list[Launch | Drain | Kill] = [dismiss(member, at) for member in leaving]
        effects += [dismiss(member, at) for member in self._replaced(at)]
        if not self.unhealthy and at >= self.retry_at:
            effects += [self._launch(at) for _ in range(self._missing())]
        return effects

    def _idle_outdated(self) -> list[Member]:
        """They would load only to leave again."""
        return [member for member in self.outdated if member.state is MemberState.STARTING]

    def _surplus(self) -> list[Member]:
        """More than wanted, of the right kind: those that do not serve yet go first, then the newest."""
        current = self._current()
        expendable = sorted(current, key=lambda member: (member.state is MemberState.READY, -member.since))
        return expendable[: max(len(current) - self.wanted, 0)]

    def _replaced(self, at: float) -> list[Member]:
        """Old ones that can go, the oldest first: as many as leave enough that serve."""
        outdated = self.outdated
        serving = sum(member.state is MemberState.READY for member in self.present)
        spare = serving - self.wanted
        if spare <= 0 and self._is_cramped(at):  # of a node that is about to go nobody could have the place
            outdated, spare = [member for member in outdated if not member.doomed], 1
        return outdated[: max(spare, 0)]

    def _is_cramped(self, at: float) -> bool:
        """A new worker waits for a place, no old one is about to leave its own, and no other new one is on its way."""
        moving = any(
            member.state is MemberState.DRAINING or (member.state is MemberState.STARTING and not member.unplaced)
            for member in self.members.values()
        )
        return not moving and any(member.unplaced and at - member.since > CRAMPED_S for member in self._current())

    def _missing(self) -> int:
        current = self._current()
        missing = self.wanted - len(current)
        if not self.outdated:
            return missing
        room = 0 if any(member.unplaced for member in current) else self.wanted + self.surge - len(self.present)
        return min(missing, room)

    def _current(self) -> list[Member]:
        return [member for member in self.present if self._is_current(member)]

    def _is_current(self, member: Member) -> bool:
        wanted = member.revision == self.revision and same_workers(member.deployment, self.deployment)
        return wanted and not member.doomed

    def _launch(self, at: float) -> Launch:
        name = f"{self.deployment.name}-{next(self.numbers)}"
        self.members[name] = Member(name, self.deployment, self.revision, MemberState.STARTING, at)
        return Launch(name=name, deployment=self.deployment)

    def check_invariants(self) -> None:
        """Raise AssertionError when there are more workers than may be."""
        most = self.wanted + (self.surge if self.outdated else 0)
        assert len(self.present) <= most, f"too many workers for {self.deployment.name}: {len(self.present)} of {most}"


def dismiss(member: Member, at: float) -> Drain | Kill:
    """One that serves may finish; one that never did has nothing to finish."""
    starting = member.state is MemberState.STARTING
    member.state, member.since, member.unplaced = MemberState.DRAINING, at, ""
    return Kill(name=member.name) if starting else Drain(name=member.name)


def same_workers(one: Deployment, other: Deployment) -> bool:
    """Whether workers of one deployment may stay for the other: only what does not concern them differs."""
    names = [name for name in one.__struct_fields__ if name not in _NOT_THE_WORKERS]
    return all(getattr(one, name) == getattr(other, name) for name in names)


def _delay(times: int) -> float:
    return min(_FIRST_DELAY_S * 2.0 ** max(times - 1, 0), _MAX_DELAY_S)
