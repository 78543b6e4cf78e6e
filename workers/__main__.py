"""Run one worker as a plain process: `python -m tensoryard.workers --connect ADDRESS --order-fd N`.

Started by `launchers.py`; people use `tensoryard worker`.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import logging
import os
import signal
import threading

import msgspec

from .launchers import Order
from .main import run_worker

#: What the pipeline's libraries may take to end their threads and exit handlers, in seconds.
_EXIT_GRACE_S = 5.0


def main() -> int:
    """Work until drained; see `run_worker` for the exit codes."""
    parser = argparse.ArgumentParser(prog="python -m tensoryard.workers")
    parser.add_argument("--connect", required=True)
    parser.add_argument("--order-fd", type=int, required=True, help="where to read an Order as msgpack")
    parser.add_argument("--name")
    parser.add_argument("--life-fd", type=int)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with os.fdopen(args.order_fd, "rb") as file:
        order = msgspec.msgpack.decode(file.read(), type=Order)
    if args.life_fd is not None:
        end_with(args.life_fd)
    code = run_worker(args.connect, order.deployment, name=args.name, life_fd=args.life_fd, settings=order.settings)
    last_resort = threading.Timer(_EXIT_GRACE_S, os._exit, [code])
    last_resort.daemon = True
    last_resort.start()
    return code


def end_with(life_fd: int) -> None:
    """Have the kernel kill us and what we start when the pipe's other end closes, even if we are stopped or stuck.

    A pipe shared with others has one owner for its signals, so it is opened anew. Without /proc, the worker's link,
    which watches the pipe too, is all there is.
    """
    with contextlib.suppress(OSError):
        own_fd = os.open(f"/proc/self/fd/{life_fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.fcntl(own_fd, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(own_fd, fcntl.F_SETOWN, -os.getpgrp() if os.getpgrp() == os.getpid() else os.getpid())
        fcntl.fcntl(own_fd, fcntl.F_SETFL, os.O_RDONLY | os.O_NONBLOCK | os.O_ASYNC)


if __name__ == "__main__":
    raise SystemExit(main())
