"""What `import tensoryard.proto` costs: fresh processes in turn, medians, less a bare Python's and less numpy's.

`python benchmarks/import_time.py`; the goal is under 120 ms over a bare Python. Beside the wall clock's time stands the
processor time that the process used: on a busy machine the first also counts waiting for a turn. Bytecode is kept in a
folder of this run, as an installed package's is.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time

GOAL_MS = 120
BARE = "pass"
NUMPY = "import numpy"
IMPORTS = (BARE, NUMPY, "import tensoryard", "import tensoryard.shm", "import tensoryard.proto")


def once(code: str, environment: dict[str, str]) -> tuple[float, float]:
    """Milliseconds that a fresh Python takes for some code: by the wall clock, and of the processor."""
    started = time.perf_counter()
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", code], environment)
    _, status, used = os.wait4(pid, 0)
    wall_s = time.perf_counter() - started
    assert status == 0, code
    return wall_s * 1e3, (used.ru_utime + used.ru_stime) * 1e3


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description="What the import of the contracts costs.")
    parser.add_argument("--rounds", type=int, default=15)
    asked = parser.parse_args()
    times: dict[str, list[tuple[float, float]]] = {code: [] for code in IMPORTS}
    with tempfile.TemporaryDirectory() as folder:
        # Nor may the current folder be looked into first: this repository's has a `proto` of its own.
        environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPYCACHEPREFIX": folder}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for _ in range(asked.rounds + 1):
            for code in IMPORTS:
                times[code].append(once(code, environment))
    # The first round only fills the caches.
    medians = {
        code: [statistics.median(column) for column in zip(*rows[1:], strict=True)] for code, rows in times.items()
    }
    print(f"medians of {asked.rounds} processes each, milliseconds; goal: proto under {GOAL_MS} over a bare Python")
    print(f"{'':26}{'wall':>8}{'cpu':>8}  over bare: {'wall':>6}{'cpu':>8}  over numpy: {'wall':>6}{'cpu':>8}")
    for code, (wall, cpu) in medians.items():
        over = [f"{own - medians[base][i]:8.1f}" for base in (BARE, NUMPY) for i, own in enumerate((wall, cpu))]
        print(f"{code:26}{wall:8.1f}{cpu:8.1f}         {over[0]}{over[1]}          {over[2]}{over[3]}")


if __name__ == "__main__":
    main()
