"""The fleet's decisions, pure: keep every deployment at its number of workers, and know when to give one up.

`fleet_runner.py` feeds it and acts on what it says; `launchers.py` start and kill the workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from ..proto.deployment import Deployment

#: Starts that may fail in a row before a deployment is given up as unhealthy.
MAX_START_FAILURES = 3
#: A worker that dies sooner than this after it was ready is replaced with growing delay.
QUICK_DEATH_S = 10.0
_FIRST_DELAY_S = 0.5
_MAX_DELAY_S = 15.0


class MemberState(Enum):
    """Where a worker of the fleet is."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


@dataclass(slots=True, eq=False)
class Member:
    """One worker that the fleet has launched and that has not ended."""

    name: str
    state: MemberState
    #: When it entered its state.
    since: float
    #: What it told about a failed start.
    trouble: str = ""
    #: While it started, no coordinator was heard: it may have had nobody to work for.
    excused: bool = False


@dataclass(slots=True, eq=False)
class _Squad:
    """One deployment and its workers."""

    deployment: Deployment
    members: dict[str, Member] = field(default_factory=dict)
    failures: int = 0
    quick_deaths: int = 0
    #: No launch before this.
    retry_at: float = 0.0
    unhealthy: str = ""
    #: What a worker told last about a failed start.
    trouble: str = ""

    @property
    def present(self) -> list[Member]:
        return [member for member in self.members.values() if member.state is not MemberState.DRAINING]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Announce:
    """Tell the coordinator what is expected: each deployment, and why it is given up ("" while it is not)."""

    expected: tuple[tuple[Deployment, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """Every worker has ended after `stop`."""


Effect = Launch | Drain | Kill | Announce | Finished


class Fleet:
    """What should run, what does, and what follows. All times are monotonic seconds."""

    def __init__(self, *, start_limit_s: float = 300.0, drain_s: float = 30.0) -> None:
        self._squads: dict[str, _Squad] = {}
        #: Squads of deployments that are no longer wanted, until their workers have ended.
        self._retired: list[_Squad] = []
        self._start_limit_s = start_limit_s
        self._drain_s = drain_s
        self._numbers: dict[str, int] = {}
        self._stopping = False
        self._finished = False

    # -- events -------------------------------------------------------------------------------------------------------

    def deploy(self, deployments: Sequence[Deployment], at: float) -> list[Effect]:
        """The complete list of what should run. A changed deployment's workers are replaced.

        A deployment that was given up gets another chance: what it lacked may be there now. Nothing runs after `stop`.
        """
        if self._stopping:
            return []
        wanted = {deployment.name: deployment for deployment in deployments}
        for name, squad in list(self._squads.items()):
            if wanted.get(name) != squad.deployment:
                if not _same_workers(wanted.get(name), squad.deployment):
                    self._retired.append(self._squads.pop(name))
                else:
                    squad.deployment = wanted[name]
        for name, deployment in wanted.items():
            squad = self._squads.setdefault(name, _Squad(deployment))
            if squad.unhealthy:
                squad.unhealthy, squad.failures, squad.retry_at = "", 0, at
        return [self._announce(), *self.tick(at)]

    def worker_ready(self, name: str, at: float) -> list[Effect]:
        """The coordinator says that a worker serves."""
        squad, member = self._find(name)
        if squad is not None and member is not None and member.state is MemberState.STARTING:
            member.state, member.since = MemberState.READY, at
            squad.failures, squad.trouble = 0, ""
            if squad.unhealthy:
                squad.unhealthy = ""
                return [self._announce()]
        return []

    def start_failed(self, name: str, text: str) -> list[Effect]:
        """The coordinator says that a worker's pipeline could not be made; the worker ends by itself."""
        squad, member = self._find(name)
        if member is not None:
            member.trouble = text
        # The news that the process has ended may be faster than this: then it is good for the next one's trouble.
        squad = squad or self._squads.get(name.rpartition("-")[0])
        if squad is not None:
            squad.trouble = text
        return []

    def coordinator_silent(self) -> list[Effect]:
        """No coordinator is heard: that a worker ends before it could be announced says nothing of its pipeline."""
        for member in self.members:
            member.excused = member.excused or member.state is MemberState.STARTING
        return []

    def worker_lost(self, name: str, text: str) -> list[Effect]:
        """The coordinator has lost a worker (hung, silent): whatever is left of it must go."""
        _, member = self._find(name)
        if member is None or member.state is MemberState.DRAINING:
            return []
        member.trouble = member.trouble or text
        return [Kill(name=name)]

    def worker_ended(self, name: str, text: str, at: float) -> list[Effect]:
        """A worker's process has ended."""
        squad, member = self._find(name)
        if squad is None or member is None:
            return []
        del squad.members[name]
        effects: list[Effect] = []
        if member.state is MemberState.STARTING and (member.trouble or not member.excused):
            effects = self._count_failure(squad, member.trouble or squad.trouble or text, at)
        elif member.state is not MemberState.DRAINING:
            self._count_death(squad, at - member.since, at)
        return [*effects, *self.tick(at)]

    def stop(self, at: float) -> list[Effect]:
        """End everything: drain, then, when that takes too long, kill. Again is harmless."""
        self._stopping = True
        self._retired.extend(self._squads.values())
        self._squads.clear()
        return self.tick(at)

    def tick(self, at: float) -> list[Effect]:
        """Bring numbers to what they should be."""
        effects: list[Effect] = []
        for squad in self._squads.values():
            effects += self._reconcile(squad, at)
        for squad in self._retired:
            effects += [effect for member in squad.present for effect in self._dismiss(member, at)]
        effects += self._overdue(at)
        self._retired = [squad for squad in self._retired if squad.members]
        if self._stopping and not self._retired and not self._finished:
            self._finished = True
            effects.append(Finished())
        return effects

    # -- rules --------------------------------------------------------------------------------------------------------

    def _reconcile(self, squad: _Squad, at: float) -> list[Effect]:
        missing = squad.deployment.replicas - len(squad.present)
        if missing > 0 and not squad.unhealthy and at >= squad.retry_at:
            return [self._launch(squad, at) for _ in range(missing)]
        # Those that do not serve yet go first, then the newest.
        expendable = sorted(squad.present, key=lambda member: (member.state is MemberState.READY, -member.since))
        surplus = expendable[: max(-missing, 0)]
        return [effect for member in surplus for effect in self._dismiss(member, at)]

    def _launch(self, squad: _Squad, at: float) -> Launch:
        number = self._numbers[squad.deployment.name] = self._numbers.get(squad.deployment.name, 0) + 1
        name = f"{squad.deployment.name}-{number}"
        squad.members[name] = Member(name, MemberState.STARTING, at)
        return Launch(name=name, deployment=squad.deployment)

    def _dismiss(self, member: Member, at: float) -> list[Effect]:
        """One that serves may finish; one that never did has nothing to finish."""
        starting = member.state is MemberState.STARTING
        member.state, member.since = MemberState.DRAINING, at
        return [Kill(name=member.name) if starting else Drain(name=member.name)]

    def _count_failure(self, squad: _Squad, text: str, at: float) -> list[Effect]:
        squad.failures += 1
        squad.retry_at = at + _delay(squad.failures)
        if squad.failures < MAX_START_FAILURES or squad.unhealthy:
            return []
        squad.unhealthy = f"{squad.failures} workers in a row failed to start; the last: {text}"
        return [self._announce()]

    def _count_death(self, squad: _Squad, lived_s: float, at: float) -> None:
        """Replace the dead at once, unless they keep dying young."""
        squad.quick_deaths = squad.quick_deaths + 1 if lived_s < QUICK_DEATH_S else 0
        if squad.quick_deaths > 1:
            squad.retry_at = max(squad.retry_at, at + _delay(squad.quick_deaths - 1))

    def _overdue(self, at: float) -> list[Effect]:
        effects: list[Effect] = []
        for squad in [*self._squads.values(), *self._retired]:
            for member in squad.members.values():
                limit_s = {
                    MemberState.STARTING: self._start_limit_s,
                    MemberState.DRAINING: self._drain_s,
                }.get(member.state)
                if limit_s is not None and at - member.since > limit_s:
                    member.trouble = f"it was {member.state.value} for {at - member.since:.0f} s"
                    member.since = at
                    effects.append(Kill(name=member.name))
        return effects

    def _announce(self) -> Announce:
        return Announce(expected=tuple((squad.deployment, squad.unhealthy) for squad in self._squads.values()))

    def expected(self) -> Announce:
        """What to tell a coordinator that may not know."""
        return self._announce()

    def _find(self, name: str) -> tuple[_Squad | None, Member | None]:
        for squad in [*self._squads.values(), *self._retired]:
            if name in squad.members:
                return squad, squad.members[name]
        return None, None

    @property
    def members(self) -> list[Member]:
        """Every worker launched and not ended."""
        return [member for squad in [*self._squads.values(), *self._retired] for member in squad.members.values()]

    def check_invariants(self) -> None:
        """Raise AssertionError when more workers are present than wanted, or one is counted twice."""
        names = [member.name for member in self.members]
        assert len(names) == len(set(names)), "a worker is in two squads"
        for squad in self._squads.values():
            assert len(squad.present) <= squad.deployment.replicas, f"too many workers for {squad.deployment.name}"


def _delay(times: int) -> float:
    return min(_FIRST_DELAY_S * 2.0 ** max(times - 1, 0), _MAX_DELAY_S)


def _same_workers(new: Deployment | None, old: Deployment) -> bool:
    """Whether only the number of workers differs, so that those that run may stay."""
    if new is None:
        return False
    names = [name for name in new.__struct_fields__ if name != "replicas"]
    return all(getattr(new, name) == getattr(old, name) for name in names)
