"""One client process of `tensoryard chaos`: keeps requests under way, checks each answer, and tells of both.

Started by `chaos_clients.py` as `python -m tensoryard.deploy.chaos_client ORDER`. Each line it writes is one event (the
structs below, as JSON), written at once and whole: what it has told survives its `kill -9`. Each line it reads is a
command; the end of its input is the end of whoever started it, and its own.
"""

from __future__ import annotations

import contextlib
import os
import queue
import random
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy.typing as npt

from ..client import Client, Reply
from ..client.connection import Connection
from ..errors import PoolExhausted, ReplyTimeout, TensoryardError
from ..links import Frames
from ..proto import wire
from ..proto.request import RequestID
from ..settings import Settings
from .answers import array_of
from .chaos_books import FINISHED, LOST, WRONG
from .chaos_jobs import DEADLY, Job, OwnJobs, TheirJobs, deadly, read_examples

#: How a request is sent, and of a hundred how many: most plainly; some are cancelled, some have little time.
MANNERS = {"plain": 90, "cancel": 6, "deadline": 4}
#: Deadlines, in seconds: some cannot be kept, some can.
DEADLINES_S = (0.001, 0.05, 5.0)
#: A pause after a request that could not even be sent.
REFUSED_PAUSE_S = 0.1
#: How often it is looked for requests that have taken too long.
TICK_S = 0.5
#: Answers remembered, to know a second one.
MAX_REMEMBERED = 20_000
#: Results kept at most when told to hold them, in number and in bytes.
MAX_HELD, MAX_HELD_BYTES = 512, 256 << 20
#: Pieces in which a pool is filled.
FILL_BYTES = 1 << 20
#: Longest detail of an event: a line stays below what a pipe takes whole (4,096 bytes).
MAX_DETAIL_CHARS = 600


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What a client is to do. `examples`: a file of them; "" for the built-in models."""

    address: str
    prefix: str
    seed: str
    settings: Settings
    examples: str = ""
    in_flight: int = 6
    patience_s: float = 120.0


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """It is connected and begins."""


class Sent(msgspec.Struct, tag="sent", frozen=True):
    """It is about to send its next request."""

    number: int
    kind: str
    manner: str


class Ended(msgspec.Struct, tag="ended", frozen=True):
    """A request has ended."""

    number: int
    outcome: str
    detail: str = ""
    took_s: float = 0.0


class Again(msgspec.Struct, tag="again", frozen=True):
    """A request that had ended was answered once more."""

    number: int
    detail: str


class Left(msgspec.Struct, tag="left", frozen=True):
    """All it sent has ended, and it ends."""


Event = Ready | Sent | Ended | Again | Left


class Command(msgspec.Struct, frozen=True):
    """What it is told: `hold` results, `fill` its pool (both for `seconds`), send a `poison` or a `hang`, or `stop`."""

    what: str
    seconds: float = 0.0


def main(arguments: list[str]) -> int:
    """Run one client until it is told to stop; 0 then."""
    order = msgspec.json.decode(arguments[0], type=Order)
    load = Load(order, tell=_tell)
    threading.Thread(target=_listen, args=(load,), daemon=True).start()
    load.run()
    return 0


def _tell(event: Event) -> None:
    """One line in one write, past all buffers."""
    os.write(sys.stdout.fileno(), msgspec.json.encode(event) + b"\n")


def _listen(load: Load) -> None:
    decoder = msgspec.json.Decoder(Command)
    for line in sys.stdin.buffer:
        load.command(decoder.decode(line))
    os._exit(0)  # nobody is there any more


class TappedConnection(Connection):
    """A connection that sees when a request whose answer the caller has is answered once more."""

    def __init__(self, address: str, settings: Settings, on_again: Callable[[str, str], None]) -> None:
        super().__init__(address, settings)
        self._on_again = on_again
        #: Requests whose terminal answer came, and reached the caller.
        self._answered: OrderedDict[str, None] = OrderedDict()

    def on_message(self, message: Any, body: Frames) -> None:
        """As every connection does; and note what ends requests.

        One whose answer's memory was lost is still under way after it, and will be answered again.
        """
        parts = message.outputs if isinstance(message, wire.Answers) else [message]
        ends = [part for part in parts if isinstance(part, wire.Final | wire.Error)]
        for end in ends:
            if end.request_id in self._answered:
                what = end.code if isinstance(end, wire.Error) else f"part {end.seq}"
                self._on_again(end.request_id, f"the second was {what}")
        under_way = [end.request_id for end in ends if self._is_under_way(end.request_id)]
        super().on_message(message, body)
        for request_id in under_way:
            if not self._is_under_way(request_id):
                self._remember(request_id)

    def _is_under_way(self, request_id: str) -> bool:
        return self._conversation.pending.get(request_id) is not None

    def _remember(self, request_id: str) -> None:
        self._answered[request_id] = None
        if len(self._answered) > MAX_REMEMBERED:
            self._answered.popitem(last=False)


class Load:
    """The requests of one client, `in_flight` of them under way at a time."""

    def __init__(self, order: Order, tell: Callable[[Event], None]) -> None:
        self._order = order
        self._tell = tell
        self._rng = random.Random(order.seed)  # noqa: S311 - to be the same again for the same seed
        self._connection = TappedConnection(order.address, order.settings, self._on_again)
        self._client = Client(self._connection)
        #: Requests without an answer by number, the oldest first: what was asked, its reply, and when (monotonic).
        self._under_way: dict[int, tuple[Job, Reply, float]] = {}
        #: Numbers of those that have ended meanwhile; one may come twice.
        self._done: queue.SimpleQueue[int] = queue.SimpleQueue()
        #: Second answers, to be told of with their stories, which only this thread may ask for.
        self._again: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self._sent = 0
        self._stopping = threading.Event()
        #: Kinds of deadly requests that are to be sent.
        self._deadly: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._hold_until = 0.0
        #: Arrays of results that we do not let go of yet.
        self._held: list[npt.NDArray[Any]] = []

    def command(self, command: Command) -> None:
        """Do as told. In any thread."""
        match command.what:
            case "stop":
                self._stopping.set()
            case kind if kind in DEADLY:
                self._deadly.put(kind)
            case "hold":
                self._hold_until = time.monotonic() + command.seconds
            case "fill":
                threading.Thread(target=self._fill, args=(command.seconds,), daemon=True).start()

    def run(self) -> None:
        """Send, wait and check until told to stop; then wait for what is under way, and leave."""
        self._connection.open(self._order.patience_s)
        jobs = self._jobs()
        self._tell(Ready())
        while not self._stopping.is_set():
            self._send(jobs)
            while len(self._under_way) >= self._order.in_flight:
                self._settle_some()
        while self._under_way:
            self._settle_some()
        self._tell_again()
        self._held.clear()
        self._client.close()
        self._tell(Left())

    def _jobs(self) -> OwnJobs | TheirJobs:
        if self._order.examples:
            return TheirJobs(read_examples(Path(self._order.examples)), self._rng)
        return OwnJobs(self._client, self._rng)

    def _send(self, jobs: OwnJobs | TheirJobs) -> None:
        number, self._sent = self._sent, self._sent + 1
        request_id = RequestID(f"{self._order.prefix}{number}")
        job = jobs.make(request_id) if self._deadly.empty() else deadly(self._deadly.get(), request_id)
        manner = job.manner if job.manner != "plain" else self._manner()
        self._tell(Sent(number, job.kind, manner))
        deadline_s = self._rng.choice(DEADLINES_S) if manner == "deadline" else None
        try:
            reply = self._client.submit(job.request, deadline_s=deadline_s, priority=self._rng.randint(-1, 1))
        except TensoryardError as error:
            self._tell(Ended(number, error.code, _short(error.text)))
            time.sleep(REFUSED_PAUSE_S)
            return
        self._under_way[number] = (job, reply, time.monotonic())
        reply.add_listener(lambda: self._done.put(number) if reply.done else None)
        if manner == "cancel":
            reply.cancel()

    def _manner(self) -> str:
        return self._rng.choices(list(MANNERS), list(MANNERS.values()))[0]

    def _settle_some(self) -> None:
        """Wait for an answer, whichever comes first, and say what it is worth; also of one that has taken too long."""
        with contextlib.suppress(queue.Empty):
            self._settle(self._done.get(timeout=TICK_S))
        for number, (_, _, sent_at) in list(self._under_way.items()):
            if time.monotonic() - sent_at < self._order.patience_s:
                break
            self._settle(number)
        self._tell_again()
        if time.monotonic() > self._hold_until:
            self._held.clear()

    def _settle(self, number: int) -> None:
        job, reply, _ = self._under_way.pop(number, (None, None, 0.0))
        if job is not None and reply is not None:
            self._tell(self._ended(number, job, reply))

    def _ended(self, number: int, job: Job, reply: Reply) -> Ended:
        request_id = str(reply.request_id)
        try:
            output = reply.result(0)
            problem = job.problem(output)
        except ReplyTimeout:
            reply.cancel()
            return Ended(number, LOST, _short(f"none after {self._order.patience_s:g} s; {self._story(request_id)}"))
        except TensoryardError as error:
            return Ended(number, error.code, _short(f"{job.kind}: {error.text}"))
        if time.monotonic() < self._hold_until:
            self._hold(array_of(output))
        if problem:
            detail = f"{job.kind} by {reply.ledger.worker}: {problem}; {self._story(request_id)}"
            return Ended(number, WRONG, _short(detail))
        return Ended(number, FINISHED, took_s=reply.ledger.round_trip_s)

    def _hold(self, array: npt.NDArray[Any]) -> None:
        if len(self._held) < MAX_HELD and sum(held.nbytes for held in self._held) < MAX_HELD_BYTES:
            self._held.append(array)

    def _story(self, request_id: str) -> str:
        try:
            return " | ".join(self._client.story(request_id))
        except TensoryardError as error:
            return f"no story: {error.text}"

    def _fill(self, seconds: float) -> None:
        """Take all that is left of our own pool, for a while: what is sent meanwhile finds no room."""
        taken = []
        give_up = time.monotonic() + seconds
        try:
            while time.monotonic() < give_up:
                taken.append(self._client.empty(FILL_BYTES, "u1"))
        except PoolExhausted:
            time.sleep(max(give_up - time.monotonic(), 0))
        except TensoryardError:  # the client is closed
            return

    def _on_again(self, request_id: str, what: str) -> None:
        self._again.put((request_id, what))

    def _tell_again(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                request_id, what = self._again.get_nowait()
                number = int(request_id.removeprefix(self._order.prefix))
                self._tell(Again(number, _short(f"{what}; {self._story(request_id)}")))


def _short(text: str) -> str:
    return text if len(text) <= MAX_DETAIL_CHARS else f"{text[: MAX_DETAIL_CHARS - 3]}..."


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
