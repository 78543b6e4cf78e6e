"""What a hop costs: a client, a Python broker and an echoing worker, three processes, over each link of ours.

`python benchmarks/links.py`: one message at a time, 64 under way, and large messages, both links in turn in each round.
Prints medians over the rounds, and from round to round how much more ZeroMQ took than the UNIX link: in time, in
processor time of all three processes, and in how often one of their threads was put to sleep. The latter two hold on a
busy machine as well.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from os import getpid
from pathlib import Path
from typing import NamedTuple

import zmq

from tensoryard.links import HubLink, PeerLink, make_hub, make_peer

SCHEMES = ("ipc", "unix")
LIMITS = {"max_frame_bytes": 1 << 30, "max_message_bytes": 1 << 30, "peer_backlog": 100_000}
ENVELOPE = bytes(60)
#: /proc counts processor time in these.
TICK_S = 0.01


class Waiter:
    """Waits for input at an end, as sessions and the coordinator do."""

    def __init__(self, end: HubLink | PeerLink) -> None:
        self.end = end
        self._poller = zmq.Poller()
        for pollable in end.pollables:
            self._poller.register(pollable, zmq.POLLIN)

    def next(self, wait_ms: float | None = None) -> list | None:
        """The next message, waited for; None when none came in time."""
        while (message := self.end.receive()) is None:
            if not self._poller.poll(wait_ms) and wait_ms is not None:
                return None
        return message

    def settle(self) -> None:
        """Wait until broker and worker are there: what comes before is answered by nobody."""
        for number in itertools.count():
            probe = b"probe %d" % number
            self.end.send([probe])
            while (answer := self.next(200)) is not None:
                if bytes(answer[0]) == probe:
                    return


def broker(address: str) -> None:
    """Pass what clients send to the worker, and its answers back; for ever."""
    hub = make_hub([address], **LIMITS)
    waiter = Waiter(hub)
    worker = None
    while True:
        peer, frames = waiter.next()
        if frames is None:
            continue
        if frames[0] == b"worker":
            worker = peer
        elif peer == worker:
            hub.send(bytes(frames[0]), frames[1:])
        elif worker is not None:
            hub.send(worker, [peer, *frames])


def worker(address: str) -> None:
    """Send everything back; for ever."""
    peer = make_peer(address)
    waiter = Waiter(peer)
    peer.send([b"worker"])
    while True:
        if (message := waiter.next(100)) is not None:
            peer.send(message)


class Setting(NamedTuple):
    """A client, and the processes that take part."""

    waiter: Waiter
    pids: list[int]

    def used(self) -> tuple[float, int]:
        """Processor time in seconds, and how often a thread was put to sleep, since the processes began."""
        seconds, sleeps = 0.0, 0
        for pid in self.pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            seconds += (int(fields[11]) + int(fields[12])) * TICK_S
            for status in Path(f"/proc/{pid}/task").glob("*/status"):
                sleeps += int(status.read_text().split("voluntary_ctxt_switches:")[1].split()[0])
        return seconds, sleeps


@contextlib.contextmanager
def running(scheme: str, folder: str) -> Iterator[Setting]:
    """A client whose broker and worker run."""
    address = f"{scheme}://{folder}/{scheme}.hub"
    command = [sys.executable, "-P", __file__, address, "--role"]
    roles = [subprocess.Popen([*command, role]) for role in ("broker", "worker")]
    peer = make_peer(address)
    waiter = Waiter(peer)
    try:
        waiter.settle()
        yield Setting(waiter, [getpid(), *(process.pid for process in roles)])
    finally:
        peer.close()
        for process in roles:
            process.kill()
            process.wait()


def one_at_a_time(waiter: Waiter, frames: list, count: int) -> float:
    """Microseconds from a message to its answer: the median of `count`."""
    times = []
    for _ in range(count):
        begin = time.perf_counter()
        waiter.end.send(frames)
        waiter.next()
        times.append(time.perf_counter() - begin)
    return statistics.median(times) * 1e6


def many(waiter: Waiter, frames: list, count: int, under_way: int = 64) -> float:
    """Microseconds per message with so many under way."""
    begin = time.perf_counter()
    for number in range(count + under_way):
        if number < count:
            waiter.end.send(frames)
        if number >= under_way:
            waiter.next()
    return (time.perf_counter() - begin) / count * 1e6


#: What is measured: how, size of the body in bytes, messages.
WORK: dict[str, tuple[Callable[[Waiter, list, int], float], int, int]] = {
    "64 B, one at a time": (one_at_a_time, 64, 2000),
    "64 B, 64 under way": (many, 64, 20_000),
    "64 KiB, one at a time": (one_at_a_time, 64 << 10, 500),
    "1 MiB, one at a time": (one_at_a_time, 1 << 20, 100),
    "16 MiB, one at a time": (one_at_a_time, 16 << 20, 10),
}


def measure(setting: Setting, name: str) -> tuple[float, float, float]:
    """Time, processor time (both in microseconds) and sleeps, per message."""
    how, size, count = WORK[name]
    seconds, sleeps = setting.used()
    elapsed_us = how(setting.waiter, [ENVELOPE, bytes(size)], count)
    seconds_after, sleeps_after = setting.used()
    return elapsed_us, (seconds_after - seconds) / count * 1e6, (sleeps_after - sleeps) / count


def ratio(slow: list[float], fast: list[float]) -> str:
    """How many times more the first took, round by round: median, lowest and highest."""
    ratios = sorted(a / max(b, 1e-9) for a, b in zip(slow, fast, strict=True))
    return f"{statistics.median(ratios):5.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--role", choices=["broker", "worker"])
    parser.add_argument("address", nargs="?", default="")
    args = parser.parse_args()
    if args.role:
        {"broker": broker, "worker": worker}[args.role](args.address)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        settings = {scheme: stack.enter_context(running(scheme, folder)) for scheme in SCHEMES}
        for name in WORK:
            rows = {scheme: [] for scheme in SCHEMES}
            for _ in range(args.rounds):
                for scheme in SCHEMES:
                    rows[scheme].append(measure(settings[scheme], name))
            print(name)
            for index, what in enumerate(("time, us", "processor time, us", "sleeps")):
                slow, fast = ([row[index] for row in rows[scheme]] for scheme in SCHEMES)
                medians = f"ipc {statistics.median(slow):10.2f}   unix {statistics.median(fast):10.2f}"
                print(f"    {what:20} {medians}   ipc/unix {ratio(slow, fast)}")


if __name__ == "__main__":
    main()
