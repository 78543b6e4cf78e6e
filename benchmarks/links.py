"""What one hop costs: a client, a Python broker and an echoing worker, three processes, over each link of ours.

`python benchmarks/links.py`: one message at a time, 64 under way, and large messages, both links in turn in each round.
Prints medians over the rounds and, round by round, how much faster the UNIX link was than ZeroMQ.
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

import zmq

from tensoryard.links import HubLink, PeerLink, make_hub, make_peer

SCHEMES = ("ipc", "unix")
LIMITS = {"max_frame_bytes": 1 << 30, "max_message_bytes": 1 << 30, "peer_backlog": 100_000}
ENVELOPE = bytes(60)


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


@contextlib.contextmanager
def client(scheme: str, folder: str) -> Iterator[Waiter]:
    """A client whose broker and worker run."""
    address = f"{scheme}://{folder}/{scheme}.hub"
    roles = [
        subprocess.Popen([sys.executable, "-P", __file__, "--role", role, address]) for role in ("broker", "worker")
    ]
    peer = make_peer(address)
    waiter = Waiter(peer)
    try:
        waiter.settle()
        yield waiter
    finally:
        peer.close()
        for process in roles:
            process.kill()
            process.wait()


def latency_ms(waiter: Waiter, frames: list, count: int) -> float:
    """The median of `count` messages, one at a time."""
    times = []
    for _ in range(count):
        begin = time.perf_counter()
        waiter.end.send(frames)
        waiter.next()
        times.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(times)


def pace_us(waiter: Waiter, frames: list, count: int, under_way: int = 64) -> float:
    """Microseconds per message with so many under way."""
    begin = time.perf_counter()
    for number in range(count + under_way):
        if number < count:
            waiter.end.send(frames)
        if number >= under_way:
            waiter.next()
    return (time.perf_counter() - begin) / count * 1e6


WORK: dict[str, tuple[str, Callable[[Waiter], float]]] = {
    "60 B, one at a time": ("ms", lambda waiter: latency_ms(waiter, [ENVELOPE, b"x" * 64], 1000)),
    "60 B, 64 under way": ("us", lambda waiter: pace_us(waiter, [ENVELOPE, b"x" * 64], 20_000)),
    "64 KiB, one at a time": ("ms", lambda waiter: latency_ms(waiter, [ENVELOPE, bytes(64 << 10)], 200)),
    "1 MiB, one at a time": ("ms", lambda waiter: latency_ms(waiter, [ENVELOPE, bytes(1 << 20)], 50)),
    "16 MiB, one at a time": ("ms", lambda waiter: latency_ms(waiter, [ENVELOPE, bytes(16 << 20)], 8)),
}


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
        waiters = {scheme: stack.enter_context(client(scheme, folder)) for scheme in SCHEMES}
        for name, (unit, measure) in WORK.items():
            figures = {scheme: [] for scheme in SCHEMES}
            for _ in range(args.rounds):
                for scheme in SCHEMES:
                    figures[scheme].append(measure(waiters[scheme]))
            ratios = sorted(slow / fast for slow, fast in zip(*(figures[scheme] for scheme in SCHEMES), strict=True))
            medians = "   ".join(f"{scheme} {statistics.median(figures[scheme]):9.3f} {unit}" for scheme in SCHEMES)
            print(f"{name:24} {medians}   ipc/unix {statistics.median(ratios):5.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
