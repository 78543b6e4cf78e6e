"""The fleet's decisions, pure: keep every deployment at its number of workers, and know when to give one up.

`squad.py` has the rules for one deployment; `fleet_runner.py` feeds this machine and acts on what it says;
`launchers.py` start and kill the workers.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..proto.deployment import Deployment
from .squad import (
    MAX_START_FAILURES,
    QUICK_DEATH_S,
    Drain,
    Kill,
    Launch,
    Member,
    MemberState,
    Squad,
    dismiss,
)

__all__ = [
    "MAX_START_FAILURES",
    "QUICK_DEATH_S",
    "Announce",
    "Drain",
    "Effect",
    "Expectation",
    "Finished",
    "Fleet",
    "Kill",
    "Launch",
    "Member",
    "MemberState",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """One deployment, as the coordinator is told of it."""

    deployment: Deployment
    #: Workers wanted at present.
    replicas: int
    #: Why it is given up; "" while it is not.
    unhealthy: str = ""
    #: What keeps it from being as it should be, beside workers that are loading; "" for nothing.
    pending: str = ""
    #: Workers that serve with what is wanted now; the coordinator counts for itself.
    ready: int = 0

    @property
    def is_settled(self) -> bool:
        """Every worker wanted serves, and none of an earlier kind is left."""
        return self.ready >= self.replicas and not self.pending


@dataclass(frozen=True, slots=True, kw_only=True)
class Announce:
    """Tell the coordinator what is expected."""

    expected: tuple[Expectation, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """Every worker has ended after `stop`."""


Effect = Launch | Drain | Kill | Announce | Finished


class Fleet:
    """What should run, what does, and what follows. All times are monotonic seconds."""

    def __init__(self, *, start_limit_s: float = 300.0, drain_s: float = 30.0, life: int = 0) -> None:
        """`life`: how many fleets there were before; their workers may still be there, and have other names."""
        self._squads: dict[str, Squad] = {}
        #: Squads of deployments that are no longer wanted, until their workers have ended.
        self._retired: list[Squad] = []
        self._start_limit_s = start_limit_s
        self._drain_s = drain_s
        #: No name is used twice, whatever becomes of its deployment.
        self._numbers: dict[str, Iterator[str]] = {}
        self._life = life
        #: What was announced last of each deployment's number and of what is pending.
        self._told: list[tuple[int, str]] = []
        self._stopping = False
        self._finished = False

    # -- events -------------------------------------------------------------------------------------------------------

    def deploy(self, deployments: Sequence[Deployment], at: float, *, revision: str = "") -> list[Effect]:
        """The complete list of what should run. A changed deployment's workers are replaced one after the other.

        So are all workers when `revision` changes: it names what they run in beside their deployment.
        A deployment that was given up gets another chance: what it lacked may be there now. Nothing runs after `stop`.
        """
        if self._stopping:
            return []
        wanted = {deployment.name: deployment for deployment in deployments}
        for name, squad in list(self._squads.items()):
            # Workers of another task cannot stand in for each other: no request is served by both.
            if name not in wanted or wanted[name].task is not squad.deployment.task:
                self._retired.append(self._squads.pop(name))
        for name, deployment in wanted.items():
            if name in self._squads:
                self._squads[name].change(deployment, revision, at)
            else:
                self._squads[name] = Squad(deployment, revision, self._numbers.setdefault(name, _numbers(self._life)))
        return [self.expected(), *self.tick(at)]

    def worker_ready(self, name: str, at: float) -> list[Effect]:
        """The coordinator says that a worker serves: one that is to leave has not been told so by this coordinator."""
        squad, member = self._find(name)
        if member is not None and member.state is MemberState.DRAINING:
            return [Drain(name=name)]
        if squad is None or member is None or member.state is not MemberState.STARTING:
            return []
        was_unhealthy = bool(squad.unhealthy)
        member.state, member.since, member.unplaced = MemberState.READY, at, ""
        squad.failures, squad.trouble, squad.unhealthy = 0, "", ""
        return [*([self.expected()] if was_unhealthy else []), *self.tick(at)]

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

    def unplaced(self, why: Mapping[str, str], at: float) -> list[Effect]:
        """Which workers have been launched and have no place to run yet, and what is missing; all others have one."""
        for member in self.members:
            if member.state is MemberState.STARTING:
                if member.unplaced and member.name not in why:
                    member.since = at
                member.unplaced = why.get(member.name, "")
        return self.tick(at)

    def doomed(self, names: Collection[str], at: float) -> list[Effect]:
        """Which workers are on nodes that are about to go: others are started, and take their places."""
        for member in self.members:
            member.doomed = member.name in names
        return self.tick(at)

    def loads(self, loads: Mapping[str, tuple[int, int]], at: float) -> list[Effect]:
        """How many requests each deployment has now, and had at most since the last report."""
        for name, (ongoing, peak) in loads.items():
            squad = self._squads.get(name)
            if squad is not None and squad.scaler is not None:
                squad.scaler.observe(ongoing=ongoing, peak=peak, at=at)
        return self.tick(at)

    def coordinator_silent(self) -> list[Effect]:
        """No coordinator is heard: that a worker ends before it could be announced says nothing of its pipeline.

        Nor does what a new one says of the load, before all clients are back, continue what was known of it.
        """
        for squad in self._squads.values():
            if squad.scaler is not None:
                squad.scaler.forget()
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
            if squad.count_failure(member.trouble or squad.trouble or text, at):
                effects = [self.expected()]
        elif member.state is MemberState.DRAINING:
            squad.left_its_place(at)
        else:
            squad.count_death(at - member.since, at)
        return [*effects, *self.tick(at)]

    def stop(self, at: float) -> list[Effect]:
        """End everything: drain, then, when that takes too long, kill. Again is harmless."""
        self._stopping = True
        self._retired.extend(self._squads.values())
        self._squads.clear()
        self._told = []
        return self.tick(at)

    def tick(self, at: float) -> list[Effect]:
        """Bring numbers to what they should be."""
        effects: list[Effect] = []
        for squad in self._squads.values():
            effects += squad.reconcile(at)
        for squad in self._retired:
            effects += [dismiss(member, at) for member in squad.present]
        effects += self._overdue(at)
        if self._told != self._telling():
            effects.append(self.expected())
        self._retired = [squad for squad in self._retired if squad.members]
        if self._stopping and not self._retired and not self._finished:
            self._finished = True
            effects.append(Finished())
        return effects

    def _overdue(self, at: float) -> list[Effect]:
        limits_s = {MemberState.STARTING: self._start_limit_s, MemberState.DRAINING: self._drain_s}
        effects: list[Effect] = []
        for member in self.members:
            limit_s = None if member.unplaced else limits_s.get(member.state)
            if limit_s is not None and at - member.since > limit_s:
                member.trouble = f"it was {member.state.value} for {at - member.since:.0f} s"
                member.since = at
                effects.append(Kill(name=member.name))
        return effects

    # -- looking ------------------------------------------------------------------------------------------------------

    def expected(self) -> Announce:
        """What to tell a coordinator that may not know."""
        self._told = self._telling()
        return Announce(
            expected=tuple(
                Expectation(
                    deployment=squad.deployment,
                    replicas=squad.wanted,
                    unhealthy=squad.unhealthy,
                    pending=squad.pending,
                    ready=squad.ready,
                )
                for squad in self._squads.values()
            ),
        )

    def _telling(self) -> list[tuple[int, str]]:
        return [(squad.wanted, squad.pending) for squad in self._squads.values()]

    def _find(self, name: str) -> tuple[Squad | None, Member | None]:
        for squad in self._all_squads():
            if name in squad.members:
                return squad, squad.members[name]
        return None, None

    def _all_squads(self) -> list[Squad]:
        return [*self._squads.values(), *self._retired]

    @property
    def members(self) -> list[Member]:
        """Every worker launched and not ended."""
        return [member for squad in self._all_squads() for member in squad.members.values()]

    def check_invariants(self) -> None:
        """Raise AssertionError when more workers are present than wanted, or one is counted twice."""
        names = [member.name for member in self.members]
        assert len(names) == len(set(names)), "a worker is in two squads"
        for squad in self._squads.values():
            squad.check_invariants()


def _numbers(life: int) -> Iterator[str]:
    return (f"{life}.{number}" if life else f"{number}" for number in itertools.count(1))
