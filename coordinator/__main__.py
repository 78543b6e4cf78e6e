"""Run one coordinator as a plain process: `python -m tensoryard.coordinator --name NAME`.

Started by `deploy/local.py`. Writes "address …" or "error …" as one line to `--ready-fd`, and ends when `--life-fd` is
closed.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import signal
import threading

import msgspec

from ..errors import TensoryardError
from ..settings import Settings, from_environment
from .process import Coordinator


def main() -> int:
    """Serve until SIGTERM, SIGINT, or the end of the process at the other end of `--life-fd`."""
    parser = argparse.ArgumentParser(prog="python -m tensoryard.coordinator")
    parser.add_argument("--name", required=True)
    parser.add_argument("--expects-fleet", action="store_true", help="let requests wait until a fleet has joined")
    parser.add_argument("--settings", help="Settings as JSON; else from the environment")
    parser.add_argument("--ready-fd", type=int)
    parser.add_argument("--life-fd", type=int)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        settings = msgspec.json.decode(args.settings, type=Settings) if args.settings else from_environment()
        coordinator = Coordinator(name=args.name, settings=settings, expects_fleet=args.expects_fleet)
    except TensoryardError as error:
        _tell(args.ready_fd, f"error {error}")
        return 2
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: coordinator.stop())
    if args.life_fd is not None:
        threading.Thread(target=_stop_at_end_of, args=(args.life_fd, coordinator), daemon=True).start()
    _tell(args.ready_fd, f"address {coordinator.address}")
    # What is there now stays; and what requests leave is given back by counting, so that looking for cycles, at every
    # 700th new object and through all that wait, finds nothing. It still looks, for what an error may have left.
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    coordinator.run()
    for number in (signal.SIGTERM, signal.SIGINT):  # one more, while Python winds up, would spoil a good end
        signal.signal(number, signal.SIG_IGN)
    return 0


def _tell(ready_fd: int | None, line: str) -> None:
    """One line to whoever started us."""
    if ready_fd is not None:
        os.write(ready_fd, f"{line}\n".encode())
        os.close(ready_fd)


def _stop_at_end_of(fd: int, coordinator: Coordinator) -> None:
    """Nobody ever writes to this pipe: a read that returns means that the starter has ended."""
    os.read(fd, 1)
    coordinator.stop()


if __name__ == "__main__":
    raise SystemExit(main())
