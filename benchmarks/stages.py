"""What the pure machines cost, without sockets, threads or waiting: the part of a request's price that is our Python.

`python -m tensoryard.benchmarks.stages`: processor time of worker, coordinator and client for a token of many streams,
and for a small request. `hops.py` measures the same with everything around it.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import tensoryard as ty
from tensoryard.client.conversation import Conversation
from tensoryard.client.pending import Pending
from tensoryard.client.reading import Reading
from tensoryard.client.reply import Reply
from tensoryard.coordinator.actions import Send
from tensoryard.coordinator.broker import Broker
from tensoryard.proto import GenerationStatus, TextContext, TokenBuffer, wire
from tensoryard.proto.codec import decode_body, encode_body
from tensoryard.workers.batcher import Batcher, Work
from tensoryard.workers.conversation import Conversation as WorkerConversation
from tensoryard.workers.engine import Engine, Executed
from tensoryard.workers.inbox import Inbox

STREAMS, TOKENS, REQUESTS = 256, 40, 64
TEXT = ty.PipelineTask.TEXT_GENERATION
SETTINGS = ty.Settings()
WELCOME = wire.Welcome(
    version=wire.WIRE_VERSION,
    epoch="e",
    host="h",
    heartbeat_s=1.0,
    liveness_s=10.0,
    max_frame_bytes=1 << 28,
    max_message_bytes=1 << 30,
    max_in_flight=1 << 20,
    features=wire.FEATURES,
)

#: Messages as a link carries them.
Messages = list[list[Any]]


def timed(work: Callable[[], Any], events: int) -> float:
    """Microseconds of processor time per event."""
    began = time.process_time()
    work()
    return (time.process_time() - began) / events * 1e6


class Coordinator:
    """A broker with one client and one worker."""

    def __init__(self) -> None:
        self.broker = Broker(name="b", address="unix://b", epoch="e", host="h", settings=SETTINGS, at=0.0)
        for role, name in (("worker", "w"), ("client", "c")):
            hello = wire.Hello(version=wire.WIRE_VERSION, role=role, name=name, features=wire.FEATURES)
            self.take(role.encode(), [[wire.encode(hello)]])
        ready = wire.Ready(model="m", task=TEXT.value, deployment="d", credits=STREAMS, features=wire.FEATURES)
        self.take(b"worker", [[wire.encode(ready)]])

    def take(self, sender: bytes, messages: Messages) -> Messages:
        """Serve these, and give what is to be sent."""
        out: Messages = []
        for frames in messages:
            self.broker.message(sender, frames, 1.0)
            out += [action.frames for action in self.broker.take_actions() if isinstance(action, Send)]
        return out


def submit_of(request_id: str, number: int) -> wire.Submit:
    """An envelope as clients send it."""
    return wire.Submit(
        request_id=request_id, task=TEXT.value, model="m", window_parts=256, window_bytes=1 << 26, submission=number
    )


def reply_to(request_id: ty.RequestID) -> Reply:
    """A reply whose stream nobody holds back."""
    return Reply(request_id, lambda _: None, reading=Reading(parts=1 << 20))


def tokens() -> dict[str, float]:
    """Per token of many streams: a step of all of them is one message."""
    ids = [ty.RequestID() for _ in range(STREAMS)]
    submits = [submit_of(request_id.value, number) for number, request_id in enumerate(ids, 1)]
    coordinator, client = (
        Coordinator(),
        Conversation(address="unix://b", reconnect_s=10.0, post=lambda *_: None, decode=decode_body),
    )
    client.welcomed(WELCOME, 0.0)
    replies = [reply_to(request_id) for request_id in ids]
    for reply, submit in zip(replies, submits, strict=True):
        body, output = encode_body("prompt"), ty.TextGenerationOutput
        client.submit(Pending(reply, submit, body, output, sent_at=0.0, deadline=None), 0.0)
    coordinator.take(b"client", [[wire.encode(submit), b"body"] for submit in submits])
    steps, posted = _steps(ids), Messages()
    events = STREAMS * TOKENS
    worker = timed(lambda: _work(ids, steps, posted), events)
    passed: Messages = []
    middle = timed(lambda: passed.extend(coordinator.take(b"worker", posted)), events)
    received = timed(lambda: _receive(client, passed), events)
    readers = [itertools.islice(reply, TOKENS) for reply in replies]
    outputs: list[list[Any]] = []
    read = timed(lambda: outputs.extend(list(reader) for reader in readers), events)
    assert sum(map(len, outputs)) == events, "every token arrives"
    return {"worker": worker, "coordinator": middle, "client": received, "reading": read}


def _steps(ids: list[ty.RequestID]) -> list[dict[ty.RequestID, Any]]:
    status = GenerationStatus.ACTIVE
    return [
        {i: ty.TextGenerationOutput(request_id=i, tokens=[step], final_status=status) for i in ids}
        for step in range(TOKENS)
    ]


def _work(ids: list[ty.RequestID], steps: list[dict[ty.RequestID, Any]], posted: Messages) -> None:
    """What a worker does with the results of its pipeline."""
    link: Any = WorkerConversation(
        name="w",
        settings=SETTINGS,
        post=lambda message, body=(): posted.append([wire.encode(message), *body]),
        requests=None,  # type: ignore[arg-type] - none come
        memory=None,  # type: ignore[arg-type] - nothing is lent
        leave=lambda: None,
        begin_anew=lambda: None,
    )
    engine = Engine(
        pipeline=None,  # type: ignore[arg-type] - the steps are made
        task=TEXT,
        inbox=Inbox(Batcher(max_batch_size=STREAMS, max_wait_s=0.0)),
        pool=None,  # type: ignore[arg-type] - the same
        send=link.send,
        limits=link,
        settings=SETTINGS,
        threshold_bytes=1 << 16,
        worker="w",
    )
    prompt = TokenBuffer(np.ones(1, np.int64))
    batch = [
        Work(i.value, n, TextContext(request_id=i, model_name="m", tokens=prompt, max_length=1 << 20), 0.0)
        for n, i in enumerate(ids, 1)
    ]
    for results in steps:
        engine.answer(Executed(batch, results))


def _receive(client: Conversation, messages: Messages) -> None:
    for frames in messages:
        client.message(wire.decode(wire.TO_CLIENT, frames[0]), frames[1:], 2.0)


def requests() -> dict[str, float]:
    """Per small request, at the coordinator: accepting and handing out; the answer, with what follows from it."""
    coordinator = Coordinator()
    submit, answer = [], []
    for turn in range(TOKENS):
        names = [f"{turn:016x}{number:016x}" for number in range(REQUESTS)]
        asked = [[wire.encode(submit_of(name, turn * REQUESTS + n + 1)), b"b" * 100] for n, name in enumerate(names)]
        sent: Messages = []
        submit.append(timed(lambda: sent.extend(coordinator.take(b"client", asked)), REQUESTS))  # noqa: B023
        dispatched = [wire.decode(wire.TO_WORKER, frames[0]) for frames in sent]
        ledger = wire.Ledger(request_socket_bytes=1, output_socket_bytes=2, execute_s=0.1, worker="w")
        outputs = [
            wire.Output(request_id=d.request_id, attempt=d.attempt, seq=0, done=True, frames=1, ledger=ledger)
            for d in dispatched
        ]
        told = [[wire.encode(wire.Outputs(outputs=outputs)), *[b"a" * 60] * len(outputs)]]
        answer.append(timed(lambda: coordinator.take(b"worker", told), REQUESTS))  # noqa: B023
    return {"coordinator, submit": statistics.median(submit), "coordinator, answer": statistics.median(answer)}


def _uncollected(measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    gc.disable()
    try:
        return measure()
    finally:
        gc.enable()


def main() -> None:
    """Measure several times, without the garbage collector, and print the least."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    for title, measure in ((f"token of {STREAMS} streams", tokens), ("small request", requests)):
        found = [_uncollected(measure) for _ in range(rounds)]
        least = {name: min(one[name] for one in found) for name in found[0]}
        print(f"{title}, µs of processor time: " + ", ".join(f"{name} {cost:.2f}" for name, cost in least.items()))


if __name__ == "__main__":
    main()
