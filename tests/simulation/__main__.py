"""The command line of the simulation: `make simulate SEEDS=0:100000`.

Runs the schedules of a range of seeds, says how it goes, and tells the story of the first that fails.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import sys
import time

from .figures import Figures, run_seeds
from .plan import make_plan
from .planted import PLANTED, THREE, planted
from .run import run_plan
from .shrink import smaller
from .story import tell

#: Seeds that are run before anything is told.
_CHUNK = 50
_TELL_EVERY_S = 10.0


def main(arguments=None):
    """Returns the exit code: 0 when everything held, 1 otherwise."""
    options = _options(arguments)
    if options.planted:
        return _find_planted(options)
    if len(options.seeds) == 1:
        return _tell(options.seeds[0], options)
    return _run(options)


def _options(arguments):
    parser = argparse.ArgumentParser(prog="make simulate", description=__doc__.splitlines()[0])
    parser.add_argument("seeds", type=_seeds, help="FIRST:LAST+1, or how many from 0 on; of a single one, the story")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--hostile", action="store_true", help="a network that loses, doubles and reorders messages")
    parser.add_argument("--smaller", action="store_true", help="of a single seed: leave out what does not matter")
    parser.add_argument("--planted", action="store_true", help="find each of the planted bugs, in so many seeds")
    return parser.parse_args(arguments)


def _seeds(text):
    first, _, end = text.rpartition(":")
    return range(int(first or 0), int(end))


# -- many seeds -------------------------------------------------------------------------------------------------------


def _run(options):
    began = told = time.monotonic()
    total = Figures()
    for figures in _figures(options):
        total.add(figures)
        if total.failed is not None or time.monotonic() - told > _TELL_EVERY_S:
            told = time.monotonic()
            _progress(total, len(options.seeds), told - began)
        if total.failed is not None:
            break
    seconds = time.monotonic() - began
    print("\n".join(total.lines(seconds)))
    if total.failed is None:
        return 0
    print(f"\nSeed {total.failed} fails. Again: {_command(total.failed, options)}\n")
    return _tell(total.failed, options)


def _figures(options):
    """Of each chunk, in order."""
    chunks = [options.seeds[start : start + _CHUNK] for start in range(0, len(options.seeds), _CHUNK)]
    run = functools.partial(run_seeds, hostile=options.hostile)
    if options.jobs == 1:
        yield from map(run, chunks)
        return
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        yield from pool.imap(run, chunks)


def _progress(total, wanted, seconds):
    rate = total.schedules / seconds
    left_s = (wanted - total.schedules) / rate
    print(
        f"{total.schedules} of {wanted} schedules, {rate:.0f}/s, {left_s / 60:.1f} min to go, "
        f"{total.events} events, {sum(total.faults.values())} faults",
        file=sys.stderr,
        flush=True,
    )


def _command(seed, options):
    return f"make simulate SEEDS={seed}:{seed + 1}" + (" HOSTILE=1" if options.hostile else "")


# -- one seed ---------------------------------------------------------------------------------------------------------


def _tell(seed, options):
    plan = make_plan(seed, hostile=options.hostile)
    result = run_plan(plan)
    if options.smaller and result.violation is not None:
        result = run_plan(smaller(plan))
    print("\n".join(tell(result)))
    return int(result.violation is not None)


# -- planted bugs -----------------------------------------------------------------------------------------------------


def _find_planted(options):
    """At which seed each is seen first."""
    missed = 0
    for name in PLANTED:
        found = find(name, options.seeds)
        promised = " (promised)" if name in THREE else ""
        print(f"{name}{promised}: " + ("not found" if found is None else f"seed {found.seed}, {found.violation}"[:200]))
        missed += found is None
    return int(missed > 0)


def find(name, seeds):
    """The first schedule in which a planted bug shows; None when there is none."""
    with planted(name):
        return next((result for seed in seeds if (result := run_plan(make_plan(seed))).violation), None)


if __name__ == "__main__":
    sys.exit(main())
