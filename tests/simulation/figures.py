"""What many schedules came to: how many, which faults struck, how requests ended."""

from __future__ import annotations

import gc
from collections import Counter
from dataclasses import dataclass, field

from .run import run_seed


@dataclass
class Figures:
    """Sums over schedules."""

    schedules: int = 0
    events: int = 0
    #: Simulated seconds.
    seconds: float = 0.0
    faults: Counter = field(default_factory=Counter)
    outcomes: Counter = field(default_factory=Counter)
    #: Messages that were lost, and what else happened to them.
    messages: Counter = field(default_factory=Counter)
    #: The first seed that failed; None while none has.
    failed: int | None = None

    def enter(self, result):
        """One schedule more."""
        self.schedules += 1
        self.events += result.events
        self.seconds += result.seconds
        self.faults.update(result.faults)
        self.outcomes.update(result.outcomes)
        self.messages.update(result.messages)
        if result.violation is not None and self.failed is None:
            self.failed = result.seed

    def add(self, other):
        """Those of others, which came after these."""
        for name in ("schedules", "events", "seconds", "faults", "outcomes", "messages"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.failed = other.failed if self.failed is None else self.failed

    def lines(self, took_s):
        """For people."""
        rate = self.schedules / took_s * 60
        yield (
            f"{self.schedules} schedules in {took_s:.0f} s ({rate:.0f} a minute), {self.events} events, "
            f"{self.seconds / 3600:.0f} simulated hours, {int(self.failed is not None)} violations"
        )
        for name, counter in (("faults", self.faults), ("messages", self.messages), ("outcomes", self.outcomes)):
            counted = ", ".join(f"{what} {count}" for what, count in counter.most_common())
            yield f"{name} ({sum(counter.values())}): {counted}"


def run_seeds(seeds, *, hostile=False):
    """The figures of some seeds, up to the first that fails."""
    figures = Figures()
    for seed in seeds:
        result = run_seed(seed, hostile=hostile)
        figures.enter(result)
        if result.violation is not None:
            break
    del result
    gc.collect()  # worlds are full of cycles, and their pools have descriptors
    return figures
