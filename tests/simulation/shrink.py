"""Makes a failing plan smaller: what it fails without is left out, faults first, then requests.

A plan without a part goes on with the same chance from another place, so a smaller one fails for the same reason by
luck; what is kept fails for sure.
"""

from __future__ import annotations

from .run import run_plan


def smaller(plan, tries=400):
    """The smallest plan found that still fails; runs at most so many."""
    plan, left = _without(plan, "faults", len(plan.faults), tries)
    plan, _ = _without(plan, "asks", len(plan.asks), left)
    return plan


def _without(plan, what, count, tries):
    """Leave out as many as possible, halves at first."""
    gone, step = set(), max(count // 2, 1)
    while step:
        for start in range(0, count, step):
            more = gone | set(range(start, min(start + step, count)))
            if more == gone or tries <= 0:
                continue
            tries -= 1
            if run_plan(plan.without(**{what: more})).violation is not None:
                gone = more
        step //= 2
    return plan.without(**{what: gone}), tries
