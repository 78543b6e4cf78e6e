"""Who is measured when: every round asks everybody for every work, in an order of its own.

Contenders at one work come one after the other, so that a ratio compares what ran within seconds; which comes first is
chance, and so is which work does. `house.py` has the processes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from .contenders import HOUSES
from .house import House, HouseLostError
from .works import Work

#: Seconds that one contender has for one work in one round.
BUDGET_S = 0.8


def order(works: Sequence[str], contenders: Sequence[str], chance: random.Random) -> Iterator[tuple[str, str]]:
    """One round: works in any order, and at each the contenders in any order."""
    for work in chance.sample(works, len(works)):
        for contender in chance.sample(contenders, len(contenders)):
            yield work, contender


@dataclass
class Found:
    """What came out: by work and contender the samples of each round, and why some have none."""

    rounds: int
    samples: dict[str, dict[str, list[list[float]]]] = field(default_factory=dict)
    #: Contenders that are not here, with the reason.
    absent: dict[str, str] = field(default_factory=dict)
    #: By work: contenders that do not do it, or failed at it, with the reason.
    cannot: dict[str, dict[str, str]] = field(default_factory=dict)
    #: By work and contender: what else ours knows of its last answer.
    notes: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)

    def enter(self, work: str, contender: str, number: int, samples: list[float]) -> None:
        """The samples of one round."""
        mine = self.samples.setdefault(work, {}).setdefault(contender, [[] for _ in range(self.rounds)])
        mine[number] = samples

    def fail(self, work: str, contender: str, reason: str) -> None:
        """It is not asked for this work again."""
        self.cannot.setdefault(work, {})[contender] = reason

    def may(self, work: str, contender: str) -> bool:
        """Whether it can be asked."""
        return contender not in self.absent and contender not in self.cannot.get(work, {})


class Rounds:
    """Runs them. Use as a context manager: whatever happens, the houses are closed."""

    def __init__(
        self, contenders: Sequence[str], mark: str, *, tell: Callable[[str], None], quiet: bool = True
    ) -> None:
        self._contenders = contenders
        self._mark = mark
        self._tell = tell
        self._quiet = quiet
        #: By contender.
        self._houses: dict[str, House] = {}
        #: The one house that is not stopped.
        self._awake: House | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for house in {id(house): house for house in self._houses.values()}.values():
            house.close()

    def run(self, works: Sequence[Work], rounds: int, *, seed: int, effort: float = 1.0) -> Found:
        """Start everybody, then measure. `effort` scales samples and time."""
        found = Found(rounds)
        self._start(found)
        chance = random.Random(seed)  # noqa: S311 - the same order for the same seed
        by_name = {work.name: work for work in works}
        for number in range(rounds):
            self._tell(f"round {number + 1} of {rounds}")
            for work, contender in order(list(by_name), self._contenders, chance):
                if found.may(work, contender):
                    self._measure(found, by_name[work], contender, number, chance.randrange(1 << 30), effort)
        return found

    def _start(self, found: Found) -> None:
        for module, names in HOUSES.items():
            wanted = [name for name in names if name in self._contenders]
            if wanted:
                self._open(module, wanted, found)

    def _open(self, module: str, wanted: list[str], found: Found) -> None:
        house = House(module, wanted, self._mark, quiet=self._quiet)
        self._houses.update(dict.fromkeys(wanted, house))
        try:
            told = house.start()
        except HouseLostError as error:
            told = {name: {"absent": f"it did not start: {error}"} for name in wanted}
        for name, state in told.items():
            if "absent" in state:
                found.absent[name] = state["absent"]
            for work, reason in state.get("cannot", {}).items():
                found.fail(work, name, reason)
            self._tell(f"{name}: {state.get('absent', 'ready')}")
        house.freeze()

    def _wake(self, contender: str) -> House:
        """Its house goes on, all others stand still."""
        house = self._houses[contender]
        if house is not self._awake:
            if self._awake is not None:
                self._awake.freeze()
            house.thaw()
            self._awake = house
        return house

    def _measure(self, found: Found, work: Work, contender: str, number: int, seed: int, effort: float) -> None:
        samples = max(2, round(work.samples * effort))
        house = self._wake(contender)
        try:
            answer: dict[str, Any] = house.measure(
                contender, work.name, samples=samples, budget_s=BUDGET_S * effort, seed=seed
            )
            if "samples" in answer:
                found.enter(work.name, contender, number, answer["samples"])
                found.notes.setdefault(work.name, {})[contender] = house.notes(contender)
                return
            reason = answer["failed"]
        except HouseLostError as error:
            house.close()
            self._awake = None
            reason = f"lost: {error}"
            found.absent.update(dict.fromkeys(house.names, reason))
        found.fail(work.name, contender, reason)
        self._tell(f"{contender} failed at {work.name}: {reason}")
