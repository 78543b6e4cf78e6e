"""The worker's link: what it tells a coordinator and when, what becomes of what it sends, and how it knows the end."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tensoryard import errors
from tensoryard.proto import wire
from tensoryard.settings import Settings
from tensoryard.shm import Pool, Reader
from tensoryard.workers import conversation as module
from tensoryard.workers.answers import Answer
from tensoryard.workers.batcher import Batcher, Work
from tensoryard.workers.conversation import EXIT_DRAINED, EXIT_ORPHANED, EXIT_REFUSED
from tensoryard.workers.inbox import Inbox
from tensoryard.workers.link import WorkerLink

from ..baseline import Baseline
from ..scripted import Hub
from .support import CALM, DEADLINE_S, EMBED, Told, body_of, dispatch, embed_request, until

READY = wire.Ready(model="m", task=EMBED.value, deployment="m", credits=4)


class Desk:
    """A worker's link in this process, its inbox and its pool; the engine is the test."""

    def __init__(self, address: str, settings: Settings = CALM) -> None:
        self.pool = Pool(budget_bytes=16 << 20)
        self.inbox = Inbox(Batcher(max_batch_size=8, max_wait_s=0.0))
        self.link = WorkerLink(address=address, name="w-1", inbox=self.inbox, pool=self.pool, settings=settings)
        self.link.begin(Told(lambda _: {}), EMBED)
        self.progress = 0

    def ready(self) -> None:
        self.link.ready(READY, lambda: self.progress)

    def batch(self) -> list[Work]:
        batch = self.inbox.next_batch()
        assert batch is not None
        return batch

    def close(self) -> None:
        self.link.close()
        self.pool.check_invariants()
        self.pool.close()


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A coordinator that does as it is told."""
    with Hub() as hub:
        yield hub


@pytest.fixture
def make_desk(hub) -> Iterator[Callable[..., Desk]]:
    """Makes links, started, and closes them; none leaves a thread or a timer."""
    desks: list[Desk] = []

    def make(*, start: bool = True, **how: Any) -> Desk:
        desks.append(Desk(how.pop("address", hub.address), **how))
        if start:
            desks[-1].link.start()
        return desks[-1]

    yield make
    for desk in desks:
        desk.close()
        desk.link.close()
    ours = [thread for thread in threading.enumerate() if thread.name.startswith("tensoryard-worker")]
    timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    for thread in [*ours, *timers]:
        thread.join(DEADLINE_S)
        assert not thread.is_alive(), f"{thread} has not ended"


@pytest.fixture
def desk(make_desk, hub) -> Desk:
    """A worker that has said READY."""
    desk = make_desk()
    desk.ready()
    hub.wait(wire.Ready)
    return desk


def send_work(hub: Hub, desk: Desk, *names: str, attempt: int = 1) -> None:
    """Dispatch requests and wait until the link has taken them in."""
    wanted = len(desk.inbox.held()) + len(names)
    for name in names:
        request = embed_request(name)
        hub.send(dispatch(request, attempt), *body_of(request))
    until(lambda: len(desk.inbox.held()) == wanted, "the requests are taken in")


def outputs(hub: Hub, count: int) -> list[wire.Output]:
    """All outputs sent so far, once there are so many."""

    def all_of() -> list[wire.Output]:
        return [output for message in hub.of(wire.Outputs) for output in message.outputs]

    until(lambda: len(all_of()) >= count, f"{count} outputs come")
    return all_of()


def answer(name: str, *frames: bytes, loans: Any = (), code: str = "", text: str = "") -> Answer:
    output = wire.Output(request_id=name, attempt=1, seq=0, done=not code, frames=len(frames), code=code, text=text)
    return output, list(frames), list(loans)


# -- joining ----------------------------------------------------------------------------------------------------------


def test_ready_comes_once_the_worker_is_known_and_loaded(make_desk, hub):
    """Loaded after the welcome: HELLO as a worker at once, READY when the pipeline is there."""
    desk = make_desk()
    [hello] = hub.wait(wire.Hello)
    assert (hello.role, hello.name, hello.version) == ("worker", "w-1", wire.WIRE_VERSION)
    until(lambda: desk.link._conversation.is_welcome, "the worker is welcomed")
    hub.wait_beats(2)
    assert hub.of(wire.Ready) == []
    desk.ready()
    assert hub.wait(wire.Ready) == [READY]


def test_ready_waits_for_the_welcome(make_desk, hub):
    """Loaded before the welcome: READY follows it, once."""
    hub.silent = True
    desk = make_desk()
    desk.ready()
    hub.wait(wire.Hello)
    hub.wait_beats(2)
    assert hub.of(wire.Ready) == []
    hub.silent = False
    hub.send(hub.welcome())
    assert hub.wait(wire.Ready) == [READY]
    hub.wait_beats(2)
    assert len(hub.of(wire.Ready)) == 1


def test_a_worker_that_is_asked_to_join_again_tells_what_it_holds(desk, hub):
    """REJOIN: HELLO again, then READY with what waits and what runs, by attempt."""
    send_work(hub, desk, "a", attempt=3)
    desk.batch()
    send_work(hub, desk, "b", attempt=7)
    hub.send(wire.Rejoin())
    hub.wait(wire.Hello, 2)
    [_, ready] = hub.wait(wire.Ready, 2)
    assert {(entry.request_id, entry.attempt) for entry in ready.running} == {("a", 3), ("b", 7)}
    assert ready.credits == READY.credits


def test_w_48_no_output_leaves_while_ready_counts_them(desk, hub, monkeypatch):
    """READY says how many have left: one that leaves meanwhile comes after it, or a new coordinator would miss it."""
    send_work(hub, desk, "a")
    held, threads = desk.link._intake.held, []

    def held_meanwhile() -> Any:
        counted = held()
        threads.append(threading.Thread(target=desk.link.send, args=([answer("a")],)))
        threads[-1].start()
        threads[-1].join(0.5)  # time enough to leave, if it could
        return counted

    monkeypatch.setattr(desk.link._intake, "held", held_meanwhile)
    hub.send(wire.Rejoin())
    outputs(hub, 1)
    threads[0].join(DEADLINE_S)
    said = [type(message) for _, message, _ in hub.seen if isinstance(message, wire.Ready | wire.Outputs)]
    assert said == [wire.Ready, wire.Ready, wire.Outputs]


def test_heartbeats_tell_progress_and_whether_there_is_work(desk, hub):
    """What the coordinator needs to tell a hung worker from an idle one."""
    beats: list[wire.Heartbeat] = []
    hub.script = lambda _hub, _peer, message, _body: isinstance(message, wire.Heartbeat) and beats.append(message)
    desk.progress = 5
    until(lambda: any((beat.progress, beat.busy) == (5, False) for beat in beats), "an idle beat")
    send_work(hub, desk, "a")
    desk.progress = 6
    until(lambda: any((beat.progress, beat.busy) == (6, True) for beat in beats), "a busy beat")


def test_pausing_for_readers_is_not_hanging(desk, hub):
    """While all work pauses, `progress` moves from beat to beat; a pipeline that is at work gets no such help."""
    beats: list[wire.Heartbeat] = []
    hub.script = lambda _hub, _peer, message, _body: isinstance(message, wire.Heartbeat) and beats.append(message)
    request = embed_request("a")
    hub.send(wire.Dispatch(request_id="a", attempt=1, window_parts=1, window_bytes=1), *body_of(request))
    [work] = desk.batch()
    work.window.send(1)
    hub.wait_beats(3)
    assert {beat.progress for beat in beats} == {0}, "the step may not be over"
    assert desk.inbox.poll() == ([], None)
    until(lambda: len({beat.progress for beat in beats}) > 3, "beats move")
    hub.send(wire.Consumed(request_id="a", attempt=1, parts=1))
    until(lambda: work.window.is_open, "it was read")
    assert desk.batch() == [work]
    hub.wait_beats(1)
    seen = beats[-1].progress
    hub.wait_beats(3)
    assert beats[-1].progress == seen


def test_a_failed_start_is_told_whatever_its_text(make_desk, hub):
    """The end of a long traceback, and bytes that are no text, reach the coordinator."""
    make_desk().link.start_failed("m", "x" * 99_999 + " caf\udce9")
    [failed] = hub.wait(wire.StartFailed)
    assert (failed.deployment, len(failed.text)) == ("m", 60_000)
    assert failed.text.endswith("x caf?")


def test_saying_goodbye_comes_last(desk, hub):
    """What was sent before `close` arrives, then DISCONNECT; closing again is harmless."""
    for number in range(50):
        desk.link.send([answer(f"r{number}", b"body")])
    desk.link.close()
    desk.link.close()
    hub.wait(wire.Disconnect)
    kinds = [type(message) for _, message, _ in hub.seen]
    assert kinds[-51:] == [wire.Outputs] * 50 + [wire.Disconnect]


# -- requests ---------------------------------------------------------------------------------------------------------


def test_a_bad_request_is_answered_and_the_next_one_served(desk, hub):
    """Garbage for one request is that request's error; nothing else suffers."""
    hub.send(dispatch(embed_request("bad"), 4), b"\xc1 garbage")
    send_work(hub, desk, "good")
    [output] = outputs(hub, 1)
    assert (output.request_id, output.attempt, output.code, output.done) == ("bad", 4, "invalid_request", False)
    assert output.text
    assert [work.request_id for work in desk.batch()] == ["good"]


def test_what_is_no_message_is_dropped(desk, hub):
    """Frames that are not of the wire leave the worker as it is."""
    for frames in ([b"\xc1"], [b""], [b"\x91\xa5HELLO"], [b"x" * 5_000_000]):
        hub.send_frames(*frames)
    send_work(hub, desk, "good")
    assert [work.request_id for work in desk.batch()] == ["good"]


def test_cancelled_while_waiting_and_while_running(desk, hub):
    """The one that waits is answered by the link, the one that runs is told by its context."""
    send_work(hub, desk, "running")
    [work] = desk.batch()
    send_work(hub, desk, "waiting")
    for name in ("running", "waiting"):
        hub.send(wire.CancelWork(request_id=name, attempt=1))
    [output] = outputs(hub, 1)
    assert (output.request_id, output.code) == ("waiting", "cancelled")
    assert work.context.cancelled
    assert desk.inbox.held() == [work]


def test_drain_ends_the_inbox_after_what_it_holds(desk, hub):
    """DRAIN: what has come is served, then the engine is told to end."""
    send_work(hub, desk, "a")
    hub.send(wire.Drain())
    [work] = desk.batch()
    desk.inbox.finish(work)
    assert desk.inbox.next_batch() is None
    assert desk.link.exit_code == EXIT_DRAINED


# -- answers ----------------------------------------------------------------------------------------------------------


def test_the_answers_of_a_step_are_one_message(desk, hub):
    """Outputs and their frames, in order."""
    desk.link.send([answer("a", b"1", b"2"), answer("b", code="failed", text="x"), answer("c", b"3")])
    [message] = hub.wait(wire.Outputs)
    assert [(output.request_id, output.frames, output.code) for output in message.outputs] == [
        ("a", 2, ""),
        ("b", 0, "failed"),
        ("c", 1, ""),
    ]
    assert hub.bodies(wire.Outputs) == [[b"1", b"2", b"3"]]


def test_what_an_output_lends_waits_for_its_reader(desk, hub):
    """Once sent, the block lives until somebody has claimed it and let go of it again."""
    loan = desk.pool.place(np.full(50_000, 3, np.float32))
    desk.link.send([answer("a", b"", loans=[loan])])
    hub.wait(wire.Outputs)
    assert desk.pool.statistics().published_blocks == 1
    reader = Reader()
    view = reader.claim(loan.handle)
    assert (view == 3).all()
    assert desk.pool.statistics().published_blocks == 0
    assert desk.pool.statistics().used_blocks == 1
    del view
    until(lambda: not desk.pool.statistics().used_blocks, "the block comes back")
    reader.close()


def test_a_discarded_output_gives_its_memory_back(desk, hub):
    """DISCARD frees the blocks of that output alone; again, or for a stranger, it changes nothing."""
    loans = {name: desk.pool.place(np.zeros(50_000, np.float32)) for name in "ab"}
    desk.link.send([answer(name, b"", loans=[loan]) for name, loan in loans.items()])
    for discard in [("a", 1, 0), ("a", 1, 0), ("b", 2, 0), ("b", 1, 1), ("stranger", 1, 0)]:
        hub.send(wire.Discard(request_id=discard[0], attempt=discard[1], seq=discard[2]))
    send_work(hub, desk, "marker")
    assert [block.generation for block in desk.pool.live_blocks()] == [loans["b"].generation]


def test_outputs_that_are_remembered_are_bounded(desk, hub, monkeypatch):
    """Beyond the bound the oldest can be discarded no more; the pool's claim timeout frees them."""
    monkeypatch.setattr(module, "_MAX_REMEMBERED", 3)
    loans = [desk.pool.place(np.zeros(10, np.float32)) for _ in range(5)]
    desk.link.send([answer(f"r{number}", b"", loans=[loan]) for number, loan in enumerate(loans)])
    for number in range(5):
        hub.send(wire.Discard(request_id=f"r{number}", attempt=1, seq=0))
    send_work(hub, desk, "marker")
    assert [block.generation for block in desk.pool.live_blocks()] == [loan.generation for loan in loans[:2]]


def test_many_long_errors_fit_their_messages(desk, hub):
    """A large batch that failed with a long text is told in several messages, each below the limit of an envelope."""
    desk.link.send([answer(f"r{number}", code="pipeline_error", text="\U0001f40d" * 8000) for number in range(250)])
    assert [output.request_id for output in outputs(hub, 250)] == [f"r{number}" for number in range(250)]
    sizes = [len(wire.encode(message)) for message in hub.of(wire.Outputs)]
    assert max(sizes) <= wire.MAX_ENVELOPE_BYTES
    assert len(sizes) == 3


@pytest.mark.parametrize(
    ("frames", "body", "expected"),
    [(1, 300 << 10, [3, 3, 2]), (1500, 1, [2, 2, 2, 2]), (4095, 1, [1] * 8)],
    ids=["bytes", "frames", "most frames"],
)
def test_answers_are_split_by_what_the_coordinator_takes(make_desk, hub, frames, body, expected):
    """A step's outputs leave in as few messages as its limits of bytes and frames allow, in order."""
    hub._limits["max_message_bytes"] = 1 << 20
    desk = make_desk()
    desk.ready()
    hub.wait(wire.Ready)
    desk.link.send([answer(f"r{number}", *([b"x" * body] * frames)) for number in range(8)])
    assert [output.request_id for output in outputs(hub, 8)] == [f"r{number}" for number in range(8)]
    assert [len(message.outputs) for message in hub.of(wire.Outputs)] == expected
    assert max(len(frames) + 1 for frames in hub.bodies(wire.Outputs)) <= wire.MAX_FRAMES


def test_limits_are_the_lower_of_ours_and_the_coordinators(make_desk, hub):
    """A worker never sends what its coordinator said it does not take, nor more than its own settings allow."""
    hub._limits.update(max_frame_bytes=1000, max_message_bytes=1 << 40)
    desk = make_desk()
    desk.ready()
    hub.wait(wire.Ready)
    assert (desk.link.max_frame_bytes, desk.link.max_message_bytes) == (1000, CALM.max_message_bytes)


# -- the end ----------------------------------------------------------------------------------------------------------


def refuse(error: type[errors.TensoryardError], text: str) -> wire.Refused:
    return wire.Refused(code=error.code, text=text)


def test_a_worker_that_is_not_admitted_leaves(make_desk, hub):
    """REFUSED before the welcome: the engine ends, the reason is kept, the exit code says so."""
    hub.silent = True
    desk = make_desk()
    hub.wait(wire.Hello)
    hub.send(refuse(errors.VersionMismatch, "speaks wire version 1"))
    assert desk.inbox.next_batch() is None
    assert isinstance(desk.link.refusal, errors.VersionMismatch)
    assert desk.link.exit_code == EXIT_REFUSED


def test_a_refused_message_is_no_end(desk, hub):
    """Later, REFUSED is about one message: the worker goes on."""
    hub.send(refuse(errors.ProtocolError, "what?"))
    send_work(hub, desk, "a")
    assert desk.link.refusal is None
    assert desk.link.exit_code == EXIT_DRAINED


@pytest.mark.case(28)
def test_a_new_coordinator_of_another_version_ends_the_worker(desk, hub):
    """Also after years of peace."""
    hub.send(refuse(errors.VersionMismatch, "speaks wire version 1"))
    assert desk.inbox.next_batch() is None
    assert desk.link.exit_code == EXIT_REFUSED


def test_a_worker_without_a_coordinator_ends(make_desk, hub):
    """Nobody was heard for `orphan_s`: the engine ends, and the exit code says why."""
    settings = Settings(heartbeat_s=0.05, liveness_s=0.1, orphan_s=0.3)
    desk = make_desk(settings=settings)
    hub.wait(wire.Hello)
    hub.close()
    assert desk.inbox.next_batch() is None
    assert desk.link._conversation.orphaned
    assert desk.link.exit_code == EXIT_ORPHANED


def test_a_coordinator_that_says_goodbye_may_come_back(desk, hub):
    """DISCONNECT from the coordinator is no order to end: its successor is waited for."""
    hub.send(wire.Disconnect())
    send_work(hub, desk, "from the successor")
    assert [work.request_id for work in desk.batch()] == ["from the successor"]
    assert desk.link.exit_code == EXIT_DRAINED


def test_an_address_that_is_none_ends_the_worker(make_desk):
    """A link that cannot even begin leaves nobody waiting."""
    desk = make_desk(address="nowhere at all")
    assert desk.inbox.next_batch() is None
    assert desk.link.exit_code == EXIT_ORPHANED


def test_a_worker_that_wants_to_leave_serves_what_is_on_its_way(desk, hub):
    """It asks the coordinator first, and ends only when that says DRAIN: requests sent until then are served."""
    desk.link.drain_soon()
    desk.link.drain_soon()
    [message] = hub.wait(wire.DrainWorker)
    assert message.worker == "w-1"
    send_work(hub, desk, "on its way")
    hub.send(wire.Drain())
    [work] = desk.batch()
    desk.inbox.finish(work)
    assert desk.inbox.next_batch() is None
    assert len(hub.of(wire.DrainWorker)) == 1
    assert desk.link.exit_code == EXIT_DRAINED


def test_a_worker_that_wants_to_leave_does_not_wait_for_ever(desk, hub):
    """A coordinator that does not answer is not waited for longer than some heartbeats."""
    desk.link.drain_soon()
    assert desk.inbox.next_batch() is None


def test_a_worker_that_wants_to_leave_takes_no_for_an_answer(make_desk, hub):
    """A coordinator that does not understand that it asks: it leaves all the same, at once."""
    desk = make_desk(settings=Settings(heartbeat_s=1000.0, liveness_s=2000.0, orphan_s=1e6))
    hub.wait(wire.Hello)
    until(lambda: desk.link._conversation.is_welcome, "the worker is welcomed")
    desk.link.drain_soon()
    hub.wait(wire.DrainWorker)
    hub.send(refuse(errors.ProtocolError, "a worker does not send DrainWorker"))
    assert desk.inbox.next_batch() is None
    assert desk.link.exit_code == EXIT_DRAINED


def test_a_closed_link_can_be_told_anything(desk):
    """Signals may come late, and callbacks too: nothing raises, no descriptor is touched."""
    desk.link.close()
    desk.link.drain_soon()
    desk.link.send([answer("a", b"late")])


def test_a_link_leaves_no_descriptor(hub):
    """Start and close as often as you like."""
    baselines: list[Baseline] = []
    for number in range(4):
        desk = Desk(hub.address)
        desk.link.start()
        hub.wait(wire.Hello, number + 1)
        desk.close()
        hub.wait(wire.Disconnect, number + 1)
        del desk
        gc.collect()
        baselines.append(Baseline())
        baselines[0].assert_nothing_new()
