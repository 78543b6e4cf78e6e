"""The coordinator's process: one peer's trouble is its own, messages go where the router says, and it ends cleanly."""

from __future__ import annotations

import gc
import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
import time

import msgspec
import pytest

from tensoryard import errors
from tensoryard.coordinator import Coordinator, connections, read_connection
from tensoryard.proto import wire
from tensoryard.settings import Settings
from tensoryard.shm import host_name, runtime_dir

from ..baseline import Baseline
from ..scripted import CALM, DEADLINE_S, READY, Peer, Serving, Worker, closing, has_input, stepped, submit

WATCHFUL = Settings(heartbeat_s=0.1, liveness_s=1.0)


@pytest.fixture
def serving():
    with Serving() as serving:
        yield serving


@pytest.fixture
def make_peer(serving):
    peers = []

    def make(role="client", address=None, **how):
        peers.append(Peer(address or serving.address, role, **how))
        return peers[-1]

    yield make
    for peer in peers:
        peer.close()


@pytest.fixture
def client(make_peer):
    return make_peer()


@pytest.fixture
def worker(make_peer):
    worker = make_peer("worker")
    worker.ready()
    return worker


def report(peer, question):
    """The answer to ASK_STORY."""
    peer.send(question)
    return msgspec.msgpack.decode(peer.take(wire.Report)[1][0])


def content(frames):
    return [bytes(frame) for frame in frames]


# -- messages that cannot be ------------------------------------------------------------------------------------------

NONSENSE = {
    "nothing": [b""],
    "random": [secrets.token_bytes(100)],
    "a number": [b"\x07"],
    "a map": [msgspec.msgpack.encode({"HELLO": 1})],
    "an unknown name": [msgspec.msgpack.encode(["EVIL", 1])],
    "a field missing": [msgspec.msgpack.encode(["SUBMIT", "r"])],
    "a field of another type": [msgspec.msgpack.encode(["SUBMIT", 1, 2, 3])],
    "a number out of range": [msgspec.msgpack.encode(["SUBMIT", "r", "t", "m", 10**6])],
    "no text": [b"\x92\xa9HEARTBEAT\xa2\xff\xfe"],
    "an id too long": [msgspec.msgpack.encode(["CANCEL", "x" * 129])],
    "a deep nest": [b"\x91" * 100_000],
    "an envelope too large": [b"\x91" * (wire.MAX_ENVELOPE_BYTES + 1)],
    "a message for another direction": [wire.encode(wire.Rejoin())],
    "cut short": [wire.encode(submit("r"))[:-3]],
    "followed by more": [wire.encode(wire.Heartbeat()) + b"\x00"],
}


@pytest.mark.parametrize("frames", NONSENSE.values(), ids=NONSENSE.keys())
@pytest.mark.parametrize("known", [True, False], ids=["a peer", "a stranger"])
def test_nonsense_is_refused_and_costs_nobody_else_anything(make_peer, client, frames, known):
    """Whatever cannot be read is answered REFUSED `protocol`; its sender and others are served on."""
    sender = make_peer(hello=known)
    sender.send_frames(*frames)
    refused, _ = sender.take(wire.Refused)
    assert refused.code == "protocol"
    assert refused.text
    assert client.status().clients == (2 if known else 1)
    if known:
        assert sender.status().clients == 2
    else:
        sender.hello()
        sender.take(wire.Welcome)


def test_after_eight_complaints_nonsense_is_only_counted(make_peer, caplog):
    """A peer that sends nonsense for ever gets, and fills the log with, eight refusals, and is served all the same."""
    peer = make_peer()
    for _ in range(100):
        peer.send_frames(b"nonsense")
    for _ in range(8):
        peer.take(wire.Refused)
    assert peer.status().clients == 1
    assert len([record for record in caplog.records if "was refused" in record.message]) == 8


@pytest.mark.parametrize("far", [False, True], ids=["on this host", "over ZeroMQ"])
def test_a_huge_frame_is_its_senders_trouble(make_peer, far):
    """A frame over the limit is never read: its sender is cut off, comes back, and others do not notice."""
    settings = Settings(heartbeat_s=0.1, liveness_s=60.0, max_frame_bytes=100_000)
    with Serving(settings, addresses=["tcp://127.0.0.1:0"]) as serving:
        address = serving.coordinator.addresses[far]
        liar, other = make_peer(address=address), make_peer(address=address)
        liar.send(submit("big"), bytes(200_000))
        assert other.status().live_requests == 0
        give_up = time.monotonic() + DEADLINE_S
        answered = False
        while not answered:  # what was sent on the broken connection may be lost with it
            assert time.monotonic() < give_up, "the sender was not heard again"
            liar.ask_status()
            has_input(liar.link, 50)
            while (frames := liar.link.receive()) is not None:
                message = wire.decode(wire.TO_CLIENT, frames[0])
                answered = answered or isinstance(message, wire.Report)
                if isinstance(message, wire.Rejoin):
                    liar.hello()
        assert other.status().live_requests == 0


def test_a_request_over_the_message_limit_fails_alone(make_peer):
    """SUBMIT over max_message_bytes, or of too many frames, ends that request with `message_too_large`."""
    with Serving(Settings(heartbeat_s=0.1, liveness_s=60.0, max_message_bytes=10_000)) as serving:
        peer = make_peer(address=serving.address)
        peer.send(submit("heavy"), bytes(6000), bytes(6000))
        heavy, _ = peer.take(wire.Error)
        peer.send(submit("long"), *[b""] * wire.MAX_FRAMES)
        long, _ = peer.take(wire.Error)
        assert [(error.request_id, error.code) for error in (heavy, long)] == [
            ("heavy", "message_too_large"),
            ("long", "message_too_large"),
        ]
        assert "max_message_bytes" in heavy.text
        peer.send(wire.Heartbeat(), bytes(20_000))
        assert peer.take(wire.Refused)[0].code == "message_too_large"
        assert peer.status().live_requests == 0
        assert serving.coordinator.broker.bodies == {}


# -- who may say what -------------------------------------------------------------------------------------------------


def test_another_version_is_named_on_both_sides(make_peer, client, caplog):
    """HELLO of another wire version: REFUSED, text and log naming both versions; the peer is not let in."""
    stranger = make_peer(hello=False)
    stranger.hello(version=99)
    refused, _ = stranger.take(wire.Refused)
    assert refused.code == "version_mismatch"
    for text in (refused.text, caplog.text):
        assert "version 99" in text
        assert f"speaks {wire.WIRE_VERSION}" in text
    assert client.status().clients == 1


def test_an_unknown_role_is_refused(make_peer, client):
    """HELLO of a role that does not exist is refused with the list of those that do."""
    stranger = make_peer(hello=False)
    stranger.hello(role="king")
    refused, _ = stranger.take(wire.Refused)
    assert refused.code == "protocol"
    assert all(role in refused.text for role in ("client", "worker", "fleet", "king"))
    assert client.status().clients == 1


OUT_OF_PLACE = [
    ("client", wire.Ready(**READY)),
    ("client", wire.StartFailed(deployment="d", text="t")),
    ("client", wire.Outputs(outputs=[wire.Output(request_id="r", attempt=1, seq=0, done=True)])),
    ("client", wire.Deployments(deployments=[])),
    ("client", wire.DrainWorker(worker="w")),
    ("worker", submit("r")),
    ("worker", wire.Cancel(request_id="r")),
    ("worker", wire.Deployments(deployments=[])),
    ("worker", wire.AskStatus()),
    ("worker", wire.Shutdown()),
    ("fleet", submit("r")),
    ("fleet", wire.Cancel(request_id="r")),
    ("fleet", wire.Ready(**READY)),
    ("fleet", wire.Outputs(outputs=[])),
    ("fleet", wire.AskStory(request_id="r")),
    ("fleet", wire.Shutdown()),
]


@pytest.mark.parametrize(
    ("role", "message"), OUT_OF_PLACE, ids=[f"{role}-{type(message).__name__}" for role, message in OUT_OF_PLACE]
)
def test_a_message_of_another_role_is_refused(make_peer, client, role, message):
    """What a role does not send is refused, by name, without any effect; the peer stays."""
    peer = make_peer(role)
    peer.send(message)
    refused, _ = peer.take(wire.Refused)
    assert refused.code == "protocol"
    assert f"a {role} does not send {type(message).__name__}" in refused.text
    status = client.status()
    assert (status.models, status.live_requests, status.outcomes, status.accepting) == ([], 0, {}, True)
    peer.settle()


@pytest.mark.case(22)
def test_whoever_has_not_said_hello_is_told_to(make_peer, worker):
    """SUBMIT before HELLO is not accepted but answered with REJOIN; after HELLO the same is taken."""
    peer = make_peer(hello=False)
    peer.send(submit("r"), b"body")
    peer.take(wire.Rejoin)
    peer.hello()
    peer.take(wire.Welcome)
    assert peer.status().live_requests == 0
    peer.send(submit("r"), b"body")
    assert worker.take(wire.Dispatch)[0].request_id == "r"


def test_a_strangers_goodbye_needs_no_answer(make_peer):
    """DISCONNECT of a peer that is not known is passed over in silence."""
    peer = make_peer(hello=False)
    peer.send(wire.Disconnect())
    peer.hello()
    peer.take(wire.Welcome)


def test_hello_twice_changes_nothing(serving, make_peer, client, worker):
    """A second HELLO is welcomed by the same epoch; requests under way go on, and the peer is counted once."""
    client.send(submit("r"), b"body")
    dispatch, _ = worker.take(wire.Dispatch)
    for peer in (client, worker):
        peer.hello()
        assert peer.take(wire.Welcome)[0].epoch == peer.welcome.epoch == serving.coordinator.epoch
    assert client.status().clients == 1
    worker.answer(dispatch, b"answer")
    final, body = client.take(wire.Final)
    assert (final.request_id, content(body)) == ("r", [b"answer"])


def test_the_welcome_states_the_limits(make_peer):
    """WELCOME carries version, host, rhythm and every limit that peers are held to."""
    settings = Settings(
        heartbeat_s=0.5,
        liveness_s=7.0,
        max_frame_bytes=1 << 20,
        max_message_bytes=1 << 21,
        max_in_flight=12,
        max_in_flight_bytes=1 << 22,
    )
    with Serving(settings) as serving:
        welcome = make_peer(address=serving.address).welcome
    assert msgspec.to_builtins(welcome)[1:] == [
        wire.WIRE_VERSION,
        serving.coordinator.epoch,
        host_name(),
        0.5,
        7.0,
        1 << 20,
        1 << 21,
        12,
        wire.FEATURES,
        1 << 22,
        serving.coordinator.name,
    ]


def test_a_worker_of_a_taken_name_takes_the_place(make_peer, client):
    """A second worker of the same name replaces the first, whose request it gets; the first is told to REJOIN."""
    fleet = make_peer("fleet")
    fleet.send(wire.Deployments(deployments=[EXPECTED]))
    fleet.settle()
    first = make_peer("worker", name="w")
    first.send(wire.Ready(**READY))
    client.send(submit("r"), b"body")
    before, _ = first.take(wire.Dispatch)
    second = make_peer("worker", name="w")
    second.send(wire.Ready(**READY))
    dispatch, body = second.take(wire.Dispatch)
    assert (dispatch.request_id, content(body)) == ("r", [b"body"])
    assert dispatch.attempt > before.attempt
    first.beat()
    first.take(wire.Rejoin)
    assert [w.name for w in client.status().models[0].workers] == ["w"]


def test_a_peer_may_change_its_role(make_peer, client):
    """HELLO under another role ends what the peer was before."""
    peer = make_peer()
    assert client.status().clients == 2
    peer.role = "fleet"
    peer.hello()
    peer.take(wire.Welcome)
    assert client.status().clients == 1


# -- requests and answers ---------------------------------------------------------------------------------------------


def test_a_request_travels_unopened(client, worker):
    """Body and answer arrive byte for byte, frame for frame, with their envelopes' facts, whatever they hold."""
    body = [b"\xc1 no msgpack", b"", secrets.token_bytes(300_000)]
    client.send(submit("r", deadline_s=1000.0), *body)
    dispatch, there = worker.take(wire.Dispatch)
    assert content(there) == body
    assert dispatch.request_id == "r"
    assert 0 < dispatch.deadline_s < 1001
    ledger = wire.Ledger(output_copies=3, worker="w")
    answer = [b"answer", secrets.token_bytes(300_000), b""]
    worker.answer(dispatch, *answer, ledger=ledger)
    final, back = client.take(wire.Final)
    assert (final.request_id, final.seq, final.ledger) == ("r", 0, ledger)
    assert content(back) == answer
    assert client.status().outcomes == {"finished": 1}


def test_a_stream_arrives_in_order(client, worker):
    """Parts reach the client as PARTIAL 0, 1, 2 … and a FINAL."""
    client.send(submit("r"), b"body")
    dispatch, _ = worker.take(wire.Dispatch)
    for seq in range(5):
        worker.answer(dispatch, b"%d" % seq, seq=seq, done=False)
    worker.answer(dispatch, b"end", seq=5)
    for seq in range(5):
        partial, body = client.take(wire.Partial)
        assert (partial.seq, content(body)) == (seq, [b"%d" % seq])
    final, body = client.take(wire.Final)
    assert (final.seq, content(body)) == (5, [b"end"])


def test_outputs_of_a_batch_are_split(make_peer, worker):
    """One OUTPUTS for three requests of three clients: each gets its own frames, one an error."""
    clients = [make_peer() for _ in range(3)]
    dispatches = []
    for number, client in enumerate(clients):
        client.send(submit(f"r{number}"), b"body")
        dispatches.append(worker.take(wire.Dispatch)[0])
    kinds = [{"frames": 2}, {"done": False, "code": "pipeline_error", "text": "too dark"}, {"frames": 1}]
    outputs = [_output(dispatch, **kind) for dispatch, kind in zip(dispatches, kinds, strict=True)]
    worker.send(wire.Outputs(outputs=outputs), b"a", b"b", b"c")
    assert content(clients[0].take(wire.Final)[1]) == [b"a", b"b"]
    error, _ = clients[1].take(wire.Error)
    assert (error.code, error.text) == ("pipeline_error", "too dark")
    assert any("sent to" in line for line in error.story)
    assert content(clients[2].take(wire.Final)[1]) == [b"c"]


def _output(dispatch, **fields):
    return wire.Output(request_id=dispatch.request_id, attempt=dispatch.attempt, seq=0, **{"done": True, **fields})


@pytest.mark.parametrize("frames", [0, 2, wire.MAX_FRAMES], ids=["too few", "too many", "over the limit"])
def test_outputs_that_cannot_be_split_end_their_requests(client, worker, frames):
    """When frames and counts of OUTPUTS disagree, or are too many, each of its requests ends; none hangs."""
    dispatches = []
    for number in range(2):
        client.send(submit(f"r{number}"), b"body")
        dispatches.append(worker.take(wire.Dispatch)[0])
    worker.send(wire.Outputs(outputs=[_output(d, frames=n) for n, d in enumerate(dispatches)]), *[b""] * frames)
    ended = [client.take(wire.Error)[0] for _ in range(2)]
    code = "message_too_large" if frames == wire.MAX_FRAMES else "protocol"
    assert [(error.request_id, error.code) for error in ended] == [("r0", code), ("r1", code)]
    assert client.status().models[0].workers[0].in_flight == 0


def test_an_output_nobody_wants_is_discarded(client, worker):
    """An answer to a request that has ended, or never was, is answered DISCARD, so that its memory can be reused."""
    client.send(submit("r"), b"body")
    dispatch, _ = worker.take(wire.Dispatch)
    worker.answer(dispatch, b"first")
    client.take(wire.Final)
    for late in (dispatch, wire.Dispatch(request_id="never", attempt=1)):
        worker.answer(late, b"late")
        discard, _ = worker.take(wire.Discard)
        assert discard == wire.Discard(request_id=late.request_id, attempt=late.attempt, seq=0)
    client.status()  # and nothing reached the client


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_a_retry_resends_the_same_body(make_peer, client, worker, large):
    """When a worker leaves in the middle, another gets the request, as a new attempt, with the very same bytes."""
    body = [b"envelope of its own", secrets.token_bytes(500_000 if large else 50), b""]
    client.send(submit("r"), *body)
    before, first = worker.take(wire.Dispatch)
    assert content(first) == body
    other = make_peer("worker")
    other.ready()
    worker.send(wire.Disconnect())
    dispatch, again = other.take(wire.Dispatch)
    assert dispatch.attempt > before.attempt
    assert content(again) == body
    other.answer(dispatch, b"done")
    client.take(wire.Final)
    told = " ".join(report(client, wire.AskStory(request_id="r")))
    assert all(f"attempt {attempt}" in told for attempt in (before.attempt, dispatch.attempt))


def test_a_body_is_kept_no_longer_than_its_request(serving, make_peer, client, worker):
    """Finished, refused, cancelled, expired, or its client gone: nothing of a request stays in the coordinator."""
    client.send(submit("finished"), b"body")
    worker.answer(worker.take(wire.Dispatch)[0], b"x")
    client.take(wire.Final)
    client.send(submit("refused", model="nobody's"), b"body")
    assert client.take(wire.Error)[0].code == "unknown_model"
    client.send(submit("cancelled"), b"body")
    worker.take(wire.Dispatch)
    client.send(wire.Cancel(request_id="cancelled"))
    assert client.take(wire.Error)[0].code == "cancelled"
    assert worker.take(wire.CancelWork)[0].request_id == "cancelled"
    client.send(submit("expired", deadline_s=0.05), b"body")
    worker.take(wire.Dispatch)
    assert client.take(wire.Error)[0].code == "expired"
    worker.take(wire.CancelWork)
    client.send(submit("left alone"), b"body")
    worker.take(wire.Dispatch)
    assert list(serving.coordinator.broker.bodies) == ["left alone"]
    client.send(wire.Disconnect())
    assert worker.take(wire.CancelWork)[0].request_id == "left alone"
    outcomes = {"finished": 1, "rejected": 1, "cancelled": 2, "expired": 1}
    assert make_peer().status().outcomes == outcomes
    assert serving.coordinator.broker.bodies == {}


def test_a_live_id_of_another_client_is_refused(make_peer, client, worker):
    """A RequestID that is live elsewhere is a DuplicateRequest; the first keeps its body and gets its answer."""
    client.send(submit("r"), b"mine")
    dispatch, body = worker.take(wire.Dispatch)
    thief = make_peer()
    thief.send(submit("r"), b"yours")
    assert thief.take(wire.Error)[0].code == "duplicate_request"
    client.send(submit("r"), b"again")  # changes nothing
    other = make_peer("worker")
    other.ready()
    worker.send(wire.Disconnect())
    dispatch, body = other.take(wire.Dispatch)
    assert content(body) == [b"mine"]
    other.answer(dispatch, b"answer")
    client.take(wire.Final)
    thief.status()


def test_a_deadline_is_kept_without_any_message(client):
    """A request waiting for a worker that never comes expires when its deadline does, by the clock alone."""
    with Serving(Settings(heartbeat_s=100.0, liveness_s=1000.0)) as serving:
        peer, fleet = Peer(serving.address), Peer(serving.address, "fleet")
        with closing(peer, fleet):
            expected = wire.Expected(deployment="d", model="m", task=READY["task"], replicas=1)
            fleet.send(wire.Deployments(deployments=[expected]))
            fleet.settle()
            peer.send(submit("r", deadline_s=0.05), b"body")
            error, _ = peer.take(wire.Error)
            assert error.code == "expired"


# -- peers that go ----------------------------------------------------------------------------------------------------


def test_a_silent_worker_is_gone(make_peer):
    """A worker that does not beat for `liveness_s` loses its request to one that does, and must rejoin."""
    with Serving(WATCHFUL) as serving:
        silent = make_peer("worker", address=serving.address)
        silent.ready()
        client = make_peer(address=serving.address)
        client.meanwhile = client.beat
        client.send(submit("r"), b"body")
        silent.take(wire.Dispatch)
        with Worker(serving.address, lambda peer, dispatch, body: peer.answer(dispatch, *body)) as lively:
            _, body = client.take(wire.Final)
        assert content(body) == [b"body"]
        assert [dispatch.request_id for dispatch in lively.dispatched] == ["r"]
        assert any("was silent" in line for line in report(client, wire.AskStory(request_id="r")))
        silent.beat()
        silent.take(wire.Rejoin)


def test_a_silent_client_is_gone(make_peer, eventually):
    """The requests of a client that falls silent are cancelled at their worker, and it must rejoin."""
    with Serving(WATCHFUL) as serving, Worker(serving.address, lambda *_: None) as worker:
        client = make_peer(address=serving.address)
        client.send(submit("r"), b"body")
        eventually(lambda: worker.cancelled, "the request is cancelled")
        assert serving.coordinator.broker.router.outcomes == {"cancelled": 1}
        client.beat()
        client.take(wire.Rejoin)


@pytest.mark.case(1)
@pytest.mark.process
def test_a_killed_process_is_seen_at_once(make_peer, client):
    """A worker whose process dies is gone by its pidfd, long before its silence would tell."""
    fleet = make_peer("fleet")
    with subprocess.Popen(["sleep", "1000"]) as process:
        worker = make_peer("worker", pid=process.pid)
        worker.send(wire.Ready(**READY))
        assert fleet.take(wire.WorkerNotice)[0].what == "ready"
        client.send(submit("r"), b"body")
        worker.take(wire.Dispatch)
        process.kill()
        notice, _ = fleet.take(wire.WorkerNotice)
    assert (notice.worker, notice.what) == (worker.name, "gone")
    assert "died" in notice.text
    worker.send(wire.Heartbeat())
    worker.take(wire.Rejoin)


def test_an_end_of_file_is_a_death_notice(make_peer, client):
    """A worker of which no process can be seen is gone when its connection ends, after its last words."""
    fleet, other = make_peer("fleet"), make_peer("worker")
    worker = make_peer("worker", pid_namespace="pid:[1]")
    worker.send(wire.Ready(**READY))
    assert fleet.take(wire.WorkerNotice)[0].what == "ready"
    for name in ("told", "lost"):
        client.send(submit(name), b"body")
    told, _ = worker.take(wire.Dispatch)
    worker.take(wire.Dispatch)
    other.ready()
    fleet.take(wire.WorkerNotice)
    worker.answer(told, b"last words")
    worker.close()
    notice, _ = fleet.take(wire.WorkerNotice)
    assert (notice.worker, notice.what) == (worker.name, "gone")
    assert "without a goodbye" in notice.text
    assert client.take(wire.Final)[0].request_id == "told"
    assert other.take(wire.Dispatch)[0].request_id == "lost"


def test_whoever_connects_anew_joins_anew(make_peer, client):
    """A worker whose connection ended is not counted on: its request runs elsewhere; back, it says HELLO and serves."""
    worker, other = make_peer("worker"), make_peer("worker")
    worker.ready()
    client.send(submit("r"), b"body")
    first, _ = worker.take(wire.Dispatch)
    other.ready()
    worker.link._let_go()
    again, _ = other.take(wire.Dispatch)
    assert (again.request_id, again.attempt) == ("r", first.attempt + 1)
    worker.beat()
    worker.take(wire.Rejoin)
    worker.hello()
    worker.take(wire.Welcome)
    worker.ready()
    worker.answer(first, b"of an earlier life")
    assert worker.take(wire.Discard)[0].attempt == first.attempt
    other.answer(again, b"done")
    assert content(client.take(wire.Final)[1]) == [b"done"]
    client.send(submit("s"), b"body")
    worker.take(wire.Dispatch)


@pytest.mark.process
def test_a_number_that_is_given_again_buries_nobody():
    """A process ends, its peer leaves, and a newcomer gets the number of its descriptor in one turn: it is not lost."""
    with stepped() as coordinator, subprocess.Popen(["sleep", "1000"]) as process:
        old, new = (Peer(coordinator.address, "worker", hello=False) for _ in range(2))
        with closing(old, new):
            old.meanwhile = new.meanwhile = coordinator._turn
            old.hello(pid=process.pid)
            old.take(wire.Welcome)
            (number,) = coordinator._processes._by_pidfd
            process.kill()
            process.wait(DEADLINE_S)
            old.send(wire.Disconnect())
            new.hello()
            new.take(wire.Welcome)
            assert [peer.name for peer in coordinator.broker.roster.all()] == [new.name]
            assert list(coordinator._processes._by_pidfd) == [number], "the number was not given again"


@pytest.mark.process
def test_last_words_count():
    """What a worker sent before it died is served, more than fits one turn, although its death is known already."""
    with stepped() as coordinator, subprocess.Popen(["sleep", "1000"]) as process:
        client, worker = Peer(coordinator.address, hello=False), Peer(coordinator.address, "worker", hello=False)
        with closing(client, worker):
            for peer, fields in ((client, {}), (worker, {"pid": process.pid})):
                peer.meanwhile = coordinator._turn
                peer.hello(**fields)
                peer.take(wire.Welcome)
            worker.ready(credits=600)
            for number in range(600):
                client.send(submit(f"r{number}"), b"body")
            for dispatch in [worker.take(wire.Dispatch)[0] for _ in range(600)]:
                worker.answer(dispatch, b"last words")
            process.kill()
            process.wait(DEADLINE_S)
            assert [client.take(wire.Final)[0].request_id for _ in range(600)] == [f"r{n}" for n in range(600)]
            assert coordinator.broker.roster.count("worker") == 0


@pytest.mark.process
def test_a_process_that_had_ended_is_left_to_its_silence(make_peer, client):
    """A peer whose process has ended before its HELLO is read is welcomed, and served for as long as it speaks."""
    with subprocess.Popen(["true"]) as process:
        process.wait(DEADLINE_S)
    peer = make_peer(pid=process.pid)
    assert peer.status().clients == 2


def test_processes_elsewhere_are_not_watched(serving, make_peer):
    """A pid of another host or PID namespace, or none, is not mistaken for one of ours."""
    peers = [make_peer(host="elsewhere"), make_peer(pid_namespace="pid:[1]"), make_peer(pid=0)]
    assert peers[0].status().clients == 3
    assert len(serving.coordinator._processes) == 0
    assert len(peers) == 3


def test_a_peer_that_does_not_read_is_dropped(make_peer):
    """A client with more than `peer_backlog` unread messages is dropped and its requests end; others are served."""
    settings = Settings(heartbeat_s=0.1, liveness_s=60.0, peer_backlog=10)
    with Serving(settings) as serving:
        lazy, busy, worker = (make_peer(role, address=serving.address) for role in ("client", "client", "worker"))
        worker.ready(credits=100)
        for number in range(50):
            lazy.send(submit(f"r{number}"), b"body")
        first, *others = [worker.take(wire.Dispatch)[0] for _ in range(50)]
        for dispatch in others:
            worker.answer(dispatch, bytes(100_000))
        assert worker.take(wire.CancelWork)[0].request_id == first.request_id
        assert busy.status().clients == 1
        assert busy.status().outcomes["cancelled"] >= 1


def test_a_worker_that_does_not_read_is_said_to_be_one(make_peer):
    """A worker that is lost since too much waits for it is told apart from one that has ended."""
    settings = Settings(heartbeat_s=0.1, liveness_s=60.0, peer_backlog=10)
    with Serving(settings) as serving:
        lazy, client, fleet = (make_peer(role, address=serving.address) for role in ("worker", "client", "fleet"))
        lazy.send(wire.Ready(**{**READY, "credits": 10_000}))
        assert fleet.take(wire.WorkerNotice)[0].what == "ready"
        for number in range(3000):
            client.send(submit(f"r{number}"), bytes(1000))
            client.link.receive()  # and so goes on sending, once its socket was full
        notice, _ = fleet.take(wire.WorkerNotice)
        assert (notice.what, notice.worker) == ("gone", lazy.name)
        assert "does not read what it is sent" in notice.text


def test_a_pause_of_ours_is_nobodys_silence():
    """When it was stopped itself for longer than `liveness_s`, it loses nobody; whoever is really silent, it does."""
    with stepped() as coordinator, closing(Peer(coordinator.address, hello=False)) as (peer,):
        peer.meanwhile = coordinator._turn
        peer.hello()
        peer.take(wire.Welcome)
        (known,) = coordinator.broker.roster.all()
        known.seen -= 1000  # as if all clocks had gone on for 1000 s without us
        coordinator.broker._next_beat = time.monotonic() - 1000
        coordinator._turn()
        assert coordinator.broker.roster.all() == [known]
        known.seen -= 1000  # now it was the peer's silence
        coordinator.broker._next_beat = time.monotonic()
        coordinator._turn()
        assert coordinator.broker.roster.all() == []


def test_a_flood_does_not_stop_the_clock():
    """While more messages wait than one turn takes, deadlines and heartbeats are looked at all the same."""
    with stepped() as coordinator, closing(Peer(coordinator.address, hello=False)) as (flood,):
        give_up = time.monotonic() + DEADLINE_S
        left = False
        while not left:
            assert time.monotonic() < give_up, "the flood did not come"
            for _ in range(600):
                flood.beat()
            has_input(coordinator._hub, 50)
            due = coordinator.broker._next_beat = time.monotonic()
            coordinator._turn()
            assert coordinator.broker._next_beat > due, "a turn did not look at the clock"
            left = has_input(coordinator._hub, 0)


def test_everybody_hears_heartbeats(make_peer):
    """Each peer, whatever its role, hears the coordinator at its rhythm."""
    with Serving(WATCHFUL) as serving:
        for role in ("client", "worker", "fleet"):
            peer = make_peer(role, address=serving.address)
            for _ in range(2):
                peer.take(wire.Heartbeat)


# -- fleet ------------------------------------------------------------------------------------------------------------

EXPECTED = wire.Expected(deployment="d", model="m", task=READY["task"], replicas=2, max_queued=1)


def test_the_fleet_says_what_is_served(make_peer, client):
    """Models of DEPLOYMENTS take requests before any worker is there, within their bounds; others are unknown."""
    fleet = make_peer("fleet")
    fleet.send(wire.Deployments(deployments=[EXPECTED]))
    fleet.settle()
    client.send(submit("waits"), b"body")
    client.send(submit("too many"), b"body")
    overloaded, _ = client.take(wire.Error)
    assert (overloaded.request_id, overloaded.code) == ("too many", "overloaded")
    assert overloaded.retry_after_s > 0
    (model,) = client.status().models
    assert (model.model, model.replicas, model.queued, model.queued_bytes, model.is_ready) == ("m", 2, 1, 4, False)


def test_the_fleet_hears_of_its_workers(make_peer):
    """READY, START_FAILED and the end of a worker reach the fleet; DRAIN_WORKER reaches the worker."""
    fleet = make_peer("fleet")
    worker, broken = make_peer("worker", name="w"), make_peer("worker", name="b")
    worker.send(wire.Ready(**READY))
    assert fleet.take(wire.WorkerNotice)[0] == wire.WorkerNotice(worker="w", deployment="d", what="ready")
    broken.send(wire.StartFailed(deployment="d", text="no weights"))
    notice, _ = fleet.take(wire.WorkerNotice)
    assert (notice.worker, notice.what, notice.text) == ("b", "start_failed", "no weights")
    fleet.send(wire.DrainWorker(worker="w"))
    worker.take(wire.Drain)
    worker.send(wire.Disconnect())
    assert fleet.take(wire.WorkerNotice)[0].what == "gone"


def test_a_worker_may_ask_to_leave(make_peer, client):
    """DRAIN_WORKER of a worker drains that one, whomever it names; what it holds is still answered."""
    leaving, staying = make_peer("worker", name="a"), make_peer("worker", name="b")
    leaving.ready()
    client.send(submit("r1"), b"body")
    dispatch, _ = leaving.take(wire.Dispatch)
    staying.ready()
    leaving.send(wire.DrainWorker(worker="b"))
    leaving.take(wire.Drain)
    client.send(submit("r2"), b"body")
    assert staying.take(wire.Dispatch)[0].request_id == "r2"
    leaving.answer(dispatch, b"finished")
    assert client.take(wire.Final)[0].request_id == "r1"


def test_a_worker_that_hangs_is_dismissed(make_peer):
    """A busy worker whose progress stands still is reported hung, loses its request, and must join anew."""
    with Serving() as serving:
        client, fleet, hung = (make_peer(role, address=serving.address) for role in ("client", "fleet", "worker"))
        hung.send(wire.Ready(**{**READY, "hang_limit_s": 0.3}))
        assert fleet.take(wire.WorkerNotice)[0].what == "ready"
        client.send(submit("r"), b"body")
        hung.take(wire.Dispatch)
        fleet.meanwhile = lambda: hung.send(wire.Heartbeat(progress=1, busy=True))
        with Worker(serving.address, lambda peer, dispatch, body: peer.answer(dispatch, *body)):
            while (notice := fleet.take(wire.WorkerNotice)[0]).what == "ready":
                pass
            assert (notice.worker, notice.what) == (hung.name, "hung")
            assert content(client.take(wire.Final)[1]) == [b"body"]
        hung.beat()
        hung.take(wire.CancelWork | wire.Rejoin)


def test_requests_wait_for_a_fleet_that_is_expected(make_peer):
    """With `expects_fleet`, requests wait for DEPLOYMENTS and are then taken in their order; a cancel does not wait."""
    with Serving(CALM, expects_fleet=True) as serving:
        client, worker, fleet = (make_peer(role, address=serving.address) for role in ("client", "worker", "fleet"))
        client.send(submit("kept"), b"body")
        client.send(submit("cancelled"), b"body")
        client.send(wire.Cancel(request_id="cancelled"))
        assert client.take(wire.Error)[0].code == "cancelled"
        client.send(submit("unknown", model="x"), b"body")
        assert client.status().live_requests == 0
        fleet.send(wire.Deployments(deployments=[msgspec.structs.replace(EXPECTED, max_queued=2)]))
        error, _ = client.take(wire.Error)
        assert (error.request_id, error.code) == ("unknown", "unknown_model")
        worker.send(wire.Ready(**READY))
        assert worker.take(wire.Dispatch)[0].request_id == "kept"


def test_a_fleet_that_does_not_come_is_not_waited_for(make_peer):
    """After `settle_s` without a fleet, what waits is answered by what is known."""
    settings = Settings(heartbeat_s=0.05, liveness_s=60.0, settle_s=0.2)
    with Serving(settings, expects_fleet=True) as serving:
        client = make_peer(address=serving.address)
        client.send(submit("r"), b"body")
        assert client.take(wire.Error)[0].code == "unknown_model"


def test_what_waits_for_a_fleet_is_bounded(make_peer):
    """More bytes than the coordinator may keep do not wait for a fleet: Overloaded, with when to try again."""
    settings = Settings(heartbeat_s=0.05, liveness_s=60.0, max_kept_bytes=1000)
    with Serving(settings, expects_fleet=True) as serving:
        client = make_peer(address=serving.address)
        client.send(submit("fits"), bytes(800))
        client.send(submit("does not"), bytes(800))
        error, _ = client.take(wire.Error)
        assert (error.request_id, error.code) == ("does not", "overloaded")
        assert error.retry_after_s > 0


# -- looking ----------------------------------------------------------------------------------------------------------


def test_the_status_is_the_cluster(serving, client, worker):
    """ASK_STATUS tells name, address, epoch, clients, requests, outcomes, models and workers, with its query."""
    client.send(submit("r"), b"body")
    worker.take(wire.Dispatch)
    status = client.status()
    coordinator = serving.coordinator
    assert (status.name, status.address, status.epoch) == (coordinator.name, coordinator.address, coordinator.epoch)
    assert (status.clients, status.live_requests, status.accepting) == (1, 1, True)
    assert status.uptime_s > 0
    (model,) = status.models
    (seen,) = model.workers
    assert (model.model, model.task, model.deployment, model.queued) == ("m", READY["task"], "d", 0)
    assert (seen.name, seen.host, seen.pid, seen.state) == (worker.name, host_name(), os.getpid(), "ready")
    assert (seen.in_flight, seen.credits) == (1, 4)
    assert seen.seen_s >= 0


def test_a_story_is_told_during_and_after(client, worker):
    """ASK_STORY tells what became of a request while it lives and later, and nothing of one that never was."""
    client.send(submit("r"), b"body")
    dispatch, _ = worker.take(wire.Dispatch)
    assert [line.split(" ", 1)[1] for line in report(client, wire.AskStory(request_id="r", query=7))] == [
        "accepted",
        f"sent to {worker.name}, attempt {dispatch.attempt}",
    ]
    worker.answer(dispatch, b"x")
    client.take(wire.Final)
    assert report(client, wire.AskStory(request_id="r"))[-1].endswith("finished")
    assert report(client, wire.AskStory(request_id="never")) == []


# -- leaving ----------------------------------------------------------------------------------------------------------


def test_a_shutdown_without_a_fleet_drains_the_workers(make_peer, client, worker):
    """SHUTDOWN: nothing new is accepted, what runs is finished, workers drain, and with the last of them it ends."""
    with Serving() as serving:
        client, worker = make_peer(address=serving.address), make_peer("worker", address=serving.address)
        worker.ready()
        client.send(submit("r"), b"body")
        dispatch, _ = worker.take(wire.Dispatch)
        client.send(wire.Shutdown())
        worker.take(wire.Drain)
        client.send(wire.Shutdown())  # again changes nothing
        client.send(submit("late"), b"body")
        assert client.take(wire.Error)[0].code == "shutting_down"
        assert client.status().accepting is False
        worker.answer(dispatch, b"finished")
        client.take(wire.Final)
        worker.send(wire.Disconnect())
        client.take(wire.Disconnect)
        serving.join()
    assert serving.error is None


def test_a_shutdown_with_a_fleet_is_the_fleets(make_peer):
    """SHUTDOWN goes to the fleet, which drains its workers; the coordinator stays until fleet and workers have left."""
    with Serving() as serving:
        client, worker, fleet = (make_peer(role, address=serving.address) for role in ("client", "worker", "fleet"))
        worker.ready()
        assert fleet.take(wire.WorkerNotice)[0].what == "ready"
        client.send(wire.Shutdown())
        fleet.take(wire.Shutdown)
        worker.settle()  # nothing was said to the worker
        fleet.send(wire.Disconnect())
        assert client.status().accepting is False
        worker.send(wire.Disconnect())
        client.take(wire.Disconnect)
        serving.join()


def test_a_shutdown_waits_for_nobody_longer_than_drain_s(make_peer):
    """A worker that does not leave is left behind after `drain_s`."""
    with Serving(Settings(heartbeat_s=0.05, liveness_s=60.0, drain_s=0.2)) as serving:
        client, worker = (make_peer(role, address=serving.address) for role in ("client", "worker"))
        worker.ready()
        client.send(wire.Shutdown())
        worker.take(wire.Drain)
        worker.take(wire.Disconnect)
        client.take(wire.Disconnect)
        serving.join()


def test_stop_says_goodbye(make_peer):
    """`stop`, from any thread and however often, ends `run`; every peer hears DISCONNECT; the name is free again."""
    serving = Serving()
    name = serving.coordinator.name
    peers = [make_peer(role, address=serving.address) for role in ("client", "worker", "fleet")]
    assert name in [found.name for found in connections()]
    for _ in range(3):
        serving.coordinator.stop()
    serving.close()
    for peer in peers:
        peer.take(wire.Disconnect)
    with pytest.raises(errors.NotConnected):
        read_connection(name)
    assert not list(runtime_dir().glob(f"{name}.*"))
    serving.coordinator.stop()  # long gone: harmless


def test_a_late_stop_touches_nobody():
    """`stop` after the end writes to no descriptor that somebody else was given meanwhile."""
    serving = Serving()
    fd = serving.coordinator._stop_fd
    serving.close()
    taken = []
    while fd not in taken:
        taken.append(os.eventfd(0, os.EFD_NONBLOCK))
        assert len(taken) < 1000, "the coordinator's descriptor was not given back"
    try:
        serving.coordinator.stop()
        for other in taken:
            with pytest.raises(BlockingIOError):
                os.eventfd_read(other)
    finally:
        for other in taken:
            os.close(other)


@pytest.mark.parametrize(
    "bug", [ZeroDivisionError("a bug"), errors.DecodeError("a bug that looks like a peer's fault")]
)
def test_it_is_crash_only(make_peer, client, bug):
    """An error of ours while a message is handled ends `run`, as SIGKILL would: no goodbye, nobody is blamed."""
    serving = Serving()
    peer, bystander = (make_peer(address=serving.address) for _ in range(2))

    def fail(_event):
        raise bug

    serving.coordinator.broker.router.handle = fail
    peer.send(submit("r"), b"body")
    serving.join()
    with pytest.raises((ZeroDivisionError, RuntimeError)) as raised:
        serving.close()
    assert bug in (raised.value, raised.value.__cause__)
    with Serving(name=serving.coordinator.name):  # its successor, at the same address
        for one in (peer, bystander):
            one.send(wire.Heartbeat())
            one.take(wire.Rejoin)  # the first word since, goodbyes and refusals included


def test_it_can_be_found_as_soon_as_it_is_made():
    """The connection file is there when the constructor returns, and peers may connect before `run`."""
    with stepped() as coordinator, closing(Peer(coordinator.address, hello=False)) as (peer,):
        assert read_connection(coordinator.name).address == coordinator.address
        peer.hello()
        assert has_input(coordinator._hub, DEADLINE_S * 1000), "the HELLO has come before anybody serves"


@pytest.mark.parametrize("address", ["tcp://0.0.0.0:0", "nonsense"])
def test_one_that_cannot_be_made_leaves_nothing(address):
    """When an address cannot be had, the name is free again and nothing stays open."""
    name = f"p{secrets.token_hex(4)}"
    before = Baseline()
    with pytest.raises(errors.ConfigError, match="cannot listen on"):
        Coordinator(name=name, addresses=[address])
    before.assert_nothing_new()
    assert not list(runtime_dir().glob(f"{name}.*"))
    with Serving(name=name):
        pass


def test_without_descriptors_it_is_not_made(monkeypatch):
    """When it fails after its sockets are bound, they are closed and the name is free again."""
    name = f"p{secrets.token_hex(4)}"
    before = Baseline()

    def exhausted(*_args):
        raise OSError("too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("tensoryard.coordinator.process.os.eventfd", exhausted)
        with pytest.raises(OSError, match="too many open files"):
            Coordinator(name=name, settings=CALM)
    before.assert_nothing_new()
    with Serving(name=name):
        pass


def test_it_listens_at_more_addresses(make_peer):
    """Besides the address of its name it serves at the others it was given."""
    with Serving(addresses=["tcp://127.0.0.1:0"]) as serving:
        near, far = serving.coordinator.addresses
        assert near == serving.address
        assert far.startswith("tcp://127.0.0.1:")
        peers = [make_peer(address=near), make_peer(address=far)]
        assert [peer.status().clients for peer in peers] == [2, 2]


def test_nothing_is_left_open(eventually):
    """20 coordinators, and 100 peers that come and go, leave as many descriptors as before."""
    gc.collect()
    before = Baseline()
    for _ in range(20):
        with Serving() as serving:
            peers = [Peer(serving.address, role) for role in ("client", "worker", "fleet", "client", "client")]
            peers[0].send(wire.Disconnect())
            with closing(*peers):
                pass
    before.assert_nothing_new()
    with Serving() as serving:
        watching = Baseline()
        for _ in range(100):
            with closing(Peer(serving.address)) as (peer,):
                peer.send(wire.Disconnect())
        eventually(lambda: not serving.coordinator.broker.roster.all(), "all have left")
        watching.assert_nothing_new()


@pytest.mark.case(16)
@pytest.mark.process
def test_one_that_was_stopped_for_long_loses_nobody():
    """SIGSTOP for longer than `liveness_s`, then SIGCONT: peers that kept beating are still known."""
    name = f"p{secrets.token_hex(4)}"
    settings = msgspec.json.encode(WATCHFUL).decode()
    command = [sys.executable, "-P", "-m", "tensoryard.coordinator", "--name", name, "--settings", settings]
    read, write = os.pipe()
    with subprocess.Popen([*command, "--ready-fd", str(write)], pass_fds=[write]) as process:
        os.close(write)
        with os.fdopen(read) as told:
            address = told.readline().split()[1]
        try:
            with Worker(address, lambda *_: None) as worker:
                for _ in range(2):
                    os.kill(process.pid, signal.SIGSTOP)
                    threading.Event().wait(1.3)  # the time that passes is the test's subject
                    os.kill(process.pid, signal.SIGCONT)
                    with closing(Peer(address)) as (peer,):
                        assert [w.name for w in peer.status().models[0].workers]
                assert worker.rejoins == 0
        finally:
            process.terminate()
            assert process.wait(DEADLINE_S) == 0


def test_the_log_names_what_happens_to_workers(make_peer, client, caplog):
    """That a worker left is logged at INFO, with its name."""
    with caplog.at_level(logging.INFO):
        worker = make_peer("worker", name="short-lived")
        worker.send(wire.Disconnect())
        client.status()
        worker.send(wire.Heartbeat())
        worker.take(wire.Rejoin)
    assert "worker short-lived left" in caplog.text
