"""Run one worker as a plain process: `python -m tensoryard.workers --connect ADDRESS --deployment JSON`.

Started by `launchers.py`; people use `tensoryard worker`.
"""

from __future__ import annotations

import argparse
import logging

import msgspec

from ..proto.deployment import Deployment
from ..settings import Settings
from .main import run_worker


def main() -> int:
    """Work until drained; see `run_worker` for the exit codes."""
    parser = argparse.ArgumentParser(prog="python -m tensoryard.workers")
    parser.add_argument("--connect", required=True)
    parser.add_argument("--deployment", required=True, help="a Deployment as JSON")
    parser.add_argument("--name")
    parser.add_argument("--settings", help="Settings as JSON; else from the environment")
    parser.add_argument("--life-fd", type=int)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    deployment = msgspec.json.decode(args.deployment, type=Deployment)
    settings = msgspec.json.decode(args.settings, type=Settings) if args.settings else None
    return run_worker(args.connect, deployment, name=args.name, life_fd=args.life_fd, settings=settings)


if __name__ == "__main__":
    raise SystemExit(main())
