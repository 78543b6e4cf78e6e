"""Fault points: named places at which a test has a process die, freeze or end. Off unless a variable names a folder.

Every layer passes points, as `if faults.ARMED: faults.reach("shm.allocated")`, which costs one attribute look-up in
production; this module imports nothing of ours. Orders are files of that folder, so that a test can give one to
processes that run, and the first process that passes the point takes it, alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from pathlib import Path
from typing import Literal

Action = Literal["kill", "stop", "exit"]

_FOLDER = os.environ.get("TENSORYARD_FAULT_POINTS", "")
#: Whether this process looks for orders at all. Never changes.
ARMED = bool(_FOLDER)


def reach(point: str) -> None:
    """This process is at a point: obey the order for it, if there is one. Only to be called when ARMED."""
    order = Path(_FOLDER, f"{point}.order")
    try:
        taken = order.rename(f"{order}.{os.getpid()}.{threading.get_ident()}")
    except FileNotFoundError:
        return
    action, passing = taken.read_text().split()
    if int(passing) > 1:
        taken.write_text(f"{action} {int(passing) - 1}")
        taken.rename(order)
        return
    taken.write_text(str(os.getpid()))
    taken.rename(order.with_suffix(".reached"))
    _obey(action)


def _obey(action: str) -> None:
    if action == "exit":
        os._exit(1)
    # To this very thread: another one would let it run on for a moment.
    signal.pthread_kill(threading.get_ident(), signal.SIGKILL if action == "kill" else signal.SIGSTOP)


class Orders:
    """The other side, for tests: orders to the processes that were started with a folder in their environment."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def environment(self) -> dict[str, str]:
        """What processes that are to obey are started with."""
        return {"TENSORYARD_FAULT_POINTS": str(self._folder)}

    def give(self, point: str, action: Action, *, passing: int = 1) -> None:
        """Have the process that is the `passing`-th to pass the point from now on do this; an older order is void."""
        self.withdraw(point)
        whole = self._folder / f"{point}.new"
        whole.write_text(f"{action} {passing}")
        whole.rename(self._folder / f"{point}.order")

    def reached(self, point: str) -> int | None:
        """The process that has obeyed, or is about to; None while none has."""
        with contextlib.suppress(FileNotFoundError):
            return int((self._folder / f"{point}.reached").read_text())
        return None

    def withdraw(self, point: str) -> None:
        """Nobody is to do anything there; what was reached is forgotten."""
        for state in ("order", "reached"):
            (self._folder / f"{point}.{state}").unlink(missing_ok=True)
