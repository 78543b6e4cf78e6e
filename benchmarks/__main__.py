"""The one command: `python -m tensoryard.benchmarks` measures, prints, and writes JSON and a picture.

`… compare A B` refuses figures of two runs; `… publish RESULTS` keeps a run in docs/benchmarks and puts its tables into
README.md and docs/performance.md. See the package for the parts.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from . import goals, machine, plot, report, results
from .contenders import FLOORS, HOUSES, OURS, PEERS
from .house import MARK, Guardian, sweep
from .rounds import Found, Rounds
from .works import WORKS

ROOT = Path(__file__).parents[1]
#: Benchmarks with a command of their own, run after the rounds, when the contenders have left.
PARTS = ("router", "hops", "idle", "detection", "allocations")
_MODULES = {name: name for name in PARTS} | {"router": "router_scale"}
ROUNDS, QUICK_ROUNDS = 9, 2
QUICK_EFFORT = 0.2
PART_TIMEOUT_S = 1200


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; the exit code."""
    _require_safe_path()
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["compare"]:
        return _compare(_files("compare", given[1:], 2))
    if given[:1] == ["publish"]:
        return _publish(_files("publish", given[1:], 1)[0])
    return _run(_parse(given))


def _require_safe_path() -> None:
    """Start anew where the working folder is on the path: our `proto` in it would be taken for a library Ray needs."""
    if not sys.flags.safe_path:
        os.environ["PYTHONSAFEPATH"] = "1"
        os.execv(sys.executable, [sys.executable, "-m", str(__package__), *sys.argv[1:]])  # noqa: S606 - ourselves


def _files(command: str, given: Sequence[str], count: int) -> list[Path]:
    parser = argparse.ArgumentParser(prog=f"benchmarks {command}")
    parser.add_argument("results", type=Path, nargs=count, help="what a run has written")
    found: list[Path] = parser.parse_args(given).results
    return found


def _parse(given: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, help=f"default {ROUNDS}")
    parser.add_argument("--quick", action="store_true", help="a look: few rounds, few samples, small parts")
    parser.add_argument("--only", help=f"some of: {', '.join([*WORKS, *PARTS])}")
    parser.add_argument("--peers", help=f"some of: {', '.join(PEERS)}; or none")
    parser.add_argument("--seed", type=int, default=1, help="of orders and contents")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmark-results"), help="folder of results.json and plot.svg"
    )
    parser.add_argument("--loud", action="store_true", help="show what contenders print")
    asked = parser.parse_args(given)
    if asked.rounds is None:
        asked.rounds = QUICK_ROUNDS if asked.quick else ROUNDS
    if asked.rounds < 1:
        parser.error("--rounds is at least 1")
    asked.only = _chosen(parser, "--only", asked.only, [*WORKS, *PARTS])
    asked.peers = [] if asked.peers == "none" else _chosen(parser, "--peers", asked.peers, PEERS)
    return asked


def _chosen(parser: argparse.ArgumentParser, option: str, text: str | None, allowed: Sequence[str]) -> list[str]:
    chosen = list(allowed) if text is None else [name.strip() for name in text.split(",")]
    unknown = [name for name in chosen if name not in allowed]
    if unknown:
        parser.error(f"{option}: {', '.join(unknown)} is not among {', '.join(allowed)}")
    return chosen


def _run(asked: argparse.Namespace) -> int:
    """Measure and report. Whatever happens, Ctrl-C included, nothing that was started is left."""
    run = uuid.uuid4().hex
    signal.signal(signal.SIGTERM, _interrupt)
    guardian = Guardian(run)
    try:
        found = _measure(asked, run)
        found["left_behind"] = sweep(run)
    except KeyboardInterrupt:
        _tell("interrupted; ending what was started")
        return 130
    finally:
        sweep(run)
        guardian.close()
    asked.out.mkdir(parents=True, exist_ok=True)
    results.write(found, asked.out / "results.json")
    (asked.out / "plot.svg").write_text(plot.svg(found))
    print(report.as_text(found))
    print(_parts_text(found["parts"]))
    print(goals.as_text(goals.goals(found)))
    print(f"\nwritten to {asked.out}/results.json and plot.svg")
    return 0


def _interrupt(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _measure(asked: argparse.Namespace, run: str) -> dict[str, Any]:
    works = [WORKS[name] for name in asked.only if name in WORKS]
    contenders = [name for names in HOUSES.values() for name in names if name in (*OURS, *FLOORS, *asked.peers)]
    effort = QUICK_EFFORT if asked.quick else 1.0
    load_before = machine.load()
    found = Found(asked.rounds)
    if works:
        with Rounds(contenders, run, tell=_tell, quiet=not asked.loud) as rounds:
            found = rounds.run(works, asked.rounds, seed=asked.seed, effort=effort)
    options = {"quick": asked.quick, "seed": asked.seed, "peers": asked.peers, "at": f"{datetime.now(UTC):%Y-%m-%d}"}
    options["load"] = [load_before, machine.load()]
    told = results.results_of(found, run=run, machine=machine.describe(), options=options)
    for part in (name for name in PARTS if name in asked.only):
        _tell(f"{part} …")
        told["parts"][part] = _part(part, run, quick=asked.quick)
    return told


def _part(part: str, run: str, *, quick: bool) -> dict[str, Any]:
    """Run one of the other benchmarks in a process of its own."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, "-m", f"{__package__}.{_MODULES[part]}", "--json", file.name]
        environment = {**os.environ, MARK: run}
        process = subprocess.Popen(command + ["--quick"] * quick, env=environment, stdout=subprocess.DEVNULL)
        try:
            code = process.wait(PART_TIMEOUT_S)
        finally:
            process.kill()
            process.wait()
        if code:
            raise RuntimeError(f"the benchmark {part} ended with code {code}; run it alone: {' '.join(command[1:3])}")
        found: dict[str, Any] = json.loads(Path(file.name).read_text())
        return found


def _parts_text(parts: dict[str, Any]) -> str:
    return "\n".join(f"{name}\n{part['text']}\n" for name, part in parts.items())


def _compare(paths: Sequence[Path]) -> int:
    """Two files: refused unless they are of one run, and then there is nothing to compare but one with itself."""
    first, second = (results.read(path) for path in paths)
    try:
        results.require_one_run(first, second)
    except results.NotComparableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("both files are of the same run")
    return 0


def _publish(path: Path) -> int:
    """Keep these results with the documents, which get their tables and picture."""
    found = results.read(path)
    results.write(found, ROOT / "docs/benchmarks/results.json")
    (ROOT / "docs/benchmarks/plot.svg").write_text(plot.svg(found))
    for document, tables in report.published(found, goals.as_markdown(goals.goals(found))).items():
        for name, table in tables.items():
            report.insert_into(ROOT / document, table, name)
    return 0


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
