"""A client's connection, against a coordinator that does what the test says: no reply hangs, no memory stays."""

from __future__ import annotations

import contextlib
import gc
import http.server
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from typing import Any

import msgspec
import numpy as np
import pytest

import tensoryard
from tensoryard import errors
from tensoryard.client import Retry, connect
from tensoryard.coordinator.connection import ConnectionFile
from tensoryard.links.address import new_keys
from tensoryard.proto import (
    AudioGenerationOutput,
    AudioGenerationRequest,
    EmbeddingsGenerationOutput,
    EmbeddingsRequest,
    GenerationStatus,
    RequestID,
    wire,
)
from tensoryard.proto.codec import decode_body, encode_body, publisher
from tensoryard.proto.status import ClusterStatus
from tensoryard.settings import Settings
from tensoryard.shm import Pool, host_name
from tensoryard.shm.courier import answer_of, porter_path, question_of

from ..baseline import Baseline
from ..scripted import CALM, DEADLINE_S, Hub, Peer, Serving, Worker, closing, frames_of, fresh_address

LARGE = 200_000
#: Gives up on a coordinator after a moment.
HASTY = Settings(heartbeat_s=0.05, liveness_s=0.2, reconnect_s=0.5)


@pytest.fixture
def hub():
    with Hub() as hub:
        yield hub


@pytest.fixture
def make_client():
    clients = []

    def make(address, settings=CALM, **how):
        clients.append(connect(address, settings=settings, timeout_s=DEADLINE_S, **how))
        return clients[-1]

    yield make
    for client in clients:
        client.close()
        assert len(client._connection._conversation.pending) == 0


@pytest.fixture
def client(hub, make_client):
    return make_client(hub.address)


@pytest.fixture
def pool():
    """A worker's pool."""
    with Pool(budget_bytes=64 << 20) as pool:
        yield pool


def request(value="x", **fields):
    return EmbeddingsRequest(model="m", input=value, **fields)


def large():
    return np.arange(LARGE, dtype=np.uint8)


def output(value=1.0, width=3):
    return EmbeddingsGenerationOutput(embeddings=np.full((1, width), value, np.float32))


def answer(hub, key, value=1.0, *, seq=0):
    """FINAL for a request."""
    hub.send(wire.Final(request_id=str(key), seq=seq), *frames_of(output(value)))


def chunk(number, *, done=False, samples=4):
    status = GenerationStatus.END_OF_SEQUENCE if done else GenerationStatus.ACTIVE
    return AudioGenerationOutput(final_status=status, steps_executed=1, audio_data=np.full(samples, number, np.float32))


def shared(pool, value):
    """An output's body with its arrays in a pool, on their way to their reader."""
    encoded = encode_body(value, place=publisher(pool), threshold_bytes=1)
    for loan in encoded.loans:
        pool.send(loan)
    return encoded.frames


def lost(value):
    """A body whose memory has gone with its owner."""
    with Pool(budget_bytes=8 << 20) as pool:
        return shared(pool, value)


def until(condition, what):
    give_up = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < give_up, what
        time.sleep(0.005)


def used(client):
    return client._connection.pool.statistics().used_blocks


def rejoining(hub, peer, message, body):
    """The script of a new coordinator, which knows nobody."""
    if isinstance(message, wire.Hello) or hub.of(wire.Hello):
        return False
    hub.send(wire.Rejoin(), to=peer)
    return True


# -- connecting -------------------------------------------------------------------------------------------------------


def test_nobody_at_the_address(caplog):
    """NotConnected after the timeout, naming the address and what to do; nothing stays open."""
    address = fresh_address()
    before = Baseline()
    with pytest.raises(errors.NotConnected, match="no coordinator answered at") as raised:
        connect(address, timeout_s=0.1, settings=CALM)
    assert address in str(raised.value)
    assert "tensoryard status" in str(raised.value)
    assert isinstance(raised.value, ConnectionError)
    assert raised.value.retryable
    before.assert_nothing_new()
    assert caplog.records == []


def test_nobody_on_this_host():
    """Without an address, and without a coordinator here, NotConnected says how to start one."""
    with pytest.raises(errors.NotConnected, match=r"no coordinator named 'default' runs on this host.*tensoryard up"):
        connect(settings=CALM)


@pytest.mark.parametrize("address", ["garbage", "tcp://nohost", "ipc://" + "x" * 200, "http://127.0.0.1:80", 17])
def test_what_is_no_address_is_a_config_error(address):
    """An address that cannot be one is refused at once, quoted; nothing stays open."""
    before = Baseline()
    with pytest.raises(errors.ConfigError, match="is no address"):
        connect(address, settings=CALM)
    before.assert_nothing_new()


def test_a_web_server_is_no_coordinator():
    """At the address of another service: NotConnected, as if nobody were there."""
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        serving = threading.Thread(target=server.serve_forever, daemon=True)
        serving.start()
        try:
            with pytest.raises(errors.NotConnected):
                connect(f"tcp://127.0.0.1:{server.server_port}", timeout_s=0.3, settings=CALM)
        finally:
            server.shutdown()
            serving.join(DEADLINE_S)


def test_over_tcp(make_client):
    """A loopback TCP address does as well."""
    with Serving(addresses=["tcp://127.0.0.1:0"]) as serving:
        client = make_client(serving.coordinator.addresses[1])
        assert client.status().name == serving.coordinator.name
        assert client.address == serving.coordinator.addresses[1]


def test_the_environment_names_the_address(hub, make_client, monkeypatch):
    """$TENSORYARD_ADDRESS is used where no address is given; one that is given comes first."""
    monkeypatch.setenv("TENSORYARD_ADDRESS", hub.address)
    assert make_client(None).address == hub.address
    with Hub() as other:
        assert make_client(other.address).address == other.address


def test_the_local_coordinator_is_found(hub, make_client, monkeypatch):
    """With neither, the connection file of this host's default coordinator tells; an empty variable counts as none."""
    monkeypatch.setenv("TENSORYARD_ADDRESS", "")
    file = ConnectionFile("default")
    try:
        file.publish(hub.address, "1")
        assert make_client(None).address == hub.address
    finally:
        file.close()


def test_settings_come_from_the_environment(hub, monkeypatch):
    """Without settings, the environment's are used; a wrong one is a ConfigError."""
    monkeypatch.setenv("TENSORYARD_RECONNECT_S", "77")
    with connect(hub.address) as client:
        assert client._connection.settings.reconnect_s == 77
    monkeypatch.setenv("TENSORYARD_RECONNECT_S", "soon")
    with pytest.raises(errors.ConfigError, match="TENSORYARD_RECONNECT_S"):
        connect(hub.address)


def test_another_version_is_refused(caplog):
    """REFUSED before WELCOME is raised by `connect` as what it is."""

    def refuse(hub, _peer, message, _body):
        if isinstance(message, wire.Hello):
            hub.send(wire.Refused(code="version_mismatch", text="client speaks wire version 1, this side speaks 2"))
            return True
        return False

    before = Baseline()
    with Hub(script=refuse) as hub, pytest.raises(errors.VersionMismatch, match=r"version 1.*speaks 2"):
        connect(hub.address, settings=CALM)
    before.assert_nothing_new()
    assert "version" in caplog.text


def test_it_introduces_itself_as_a_client(hub, client):
    """HELLO says role client and this process."""
    (hello,) = hub.wait(wire.Hello)
    assert (hello.role, hello.pid, hello.host) == ("client", os.getpid(), host_name())


# -- submitting -------------------------------------------------------------------------------------------------------


def test_the_envelope_says_what_a_coordinator_needs(hub, client):
    """SUBMIT carries id, task, model, priority, deadline, window, how many bytes lie in whose memory, a number."""
    client.submit(request(large(), request_id=RequestID("big")), deadline_s=12, priority=np.int64(-3))
    client.submit(request("small"))
    big, small = hub.wait(wire.Submit, 2)
    assert big == wire.Submit(
        request_id="big",
        task="embeddings_generation",
        model="m",
        priority=-3,
        deadline_s=12.0,
        host=host_name(),
        shared_bytes=LARGE,
        window_parts=CALM.stream_window_parts,
        window_bytes=CALM.stream_window_bytes,
        submission=big.submission,
    )
    assert small.submission == big.submission + 1
    assert (small.host, small.shared_bytes, small.deadline_s, small.priority) == ("", 0, None, 0)


def test_what_would_be_refused_is_not_copied(hub, client):
    """After a refusal, until the time it gave, a large array is neither copied nor sent; the reply says why."""
    client.submit(request("small", request_id=RequestID("first")))
    hub.wait(wire.Submit)
    hub.send(wire.Error(request_id="first", code="overloaded", text="full", retry_after_s=1000.0))
    until(lambda: len(client._connection._conversation.pending) == 0, "it is refused")
    reply = client.submit(request(large(), request_id=RequestID("big")))
    assert reply.done
    with pytest.raises(errors.Overloaded, match="'m' has no room") as raised:
        reply.result()
    assert raised.value.request_id == "big"
    assert 900 < raised.value.retry_after_s <= 1000
    assert client._connection.pool.statistics().taken_total == 0
    assert client.submit(EmbeddingsRequest(model="other", input="x")).done is False
    assert [message.model for message in hub.wait(wire.Submit, 2)] == ["m", "other"]


def test_a_client_keeps_to_its_bounds_by_itself(make_client):
    """More than the coordinator takes of one client is not sent to it; what is answered makes room."""
    with Hub(max_in_flight=2) as hub:
        client = make_client(hub.address)
        replies = [client.submit(request("x")) for _ in range(3)]
        with pytest.raises(errors.Overloaded, match="max_in_flight"):
            replies[2].result(0)
        first, _ = hub.wait(wire.Submit, 2)
        answer(hub, first.request_id)
        replies[0].result(DEADLINE_S)
        client.submit(request("x"))
        assert len(hub.wait(wire.Submit, 3)) == 3


def refusing(times, *, retry_after_s=0.02):
    """The script of a coordinator that sends requests away so often, and then answers."""
    left = Counter()

    def script(hub, peer, message, _body):
        if not isinstance(message, wire.Submit):
            return False
        left[message.request_id] += 1
        if left[message.request_id] <= times:
            error = {"code": "overloaded", "text": "full", "retry_after_s": retry_after_s, "outcome": "rejected"}
            hub.send(wire.Error(request_id=message.request_id, **error), to=peer)
        else:
            hub.send(wire.Final(request_id=message.request_id, seq=0), *frames_of(output(2.0)), to=peer)
        return True

    return script


def test_refused_requests_are_tried_again_by_themselves(make_client):
    """With a policy of the client's or of the request's; their memory is kept meanwhile, and given back after."""
    with Hub(script=refusing(2)) as hub:
        client = make_client(hub.address, retry=True)
        replies = [client.submit(request(large())) for _ in range(3)]
        assert [reply.result(DEADLINE_S).embeddings[0, 0] for reply in replies] == [2.0] * 3
        assert [value.embeddings[0, 0] for value in client.map(request("x") for _ in range(20))] == [2.0] * 20
        assert used(client) == 0
        with pytest.raises(errors.Overloaded):
            client.submit(request("x"), retry=False).result(DEADLINE_S)
    with Hub(script=refusing(2)) as hub:
        client = make_client(hub.address)
        patient = client.submit(request("x"), retry=Retry(first_s=0.01))
        assert patient.result(DEADLINE_S).embeddings[0, 0] == 2.0
        with pytest.raises(errors.Overloaded):
            client.submit(request("y")).result(DEADLINE_S)


def test_a_policy_ends(make_client):
    """A coordinator that is never free is given up, with the number of tries; closing ends a wait as well."""
    with Hub(script=refusing(1000, retry_after_s=0.01)) as hub:
        client = make_client(hub.address)
        reply = client.submit(request("x"), retry=Retry(first_s=0.01, total_s=0.2))
        with pytest.raises(errors.Overloaded, match=r"given up after \d+ tries"):
            reply.result(DEADLINE_S)
        hub.script = refusing(1000, retry_after_s=50.0)
        sleeping = client.submit(request("x"), retry=True)
        hub.wait(wire.Submit, 2)
        until(lambda: client._connection._conversation.pending.sleeps(str(sleeping.request_id)), "it sleeps")
        waiting = threading.Thread(target=lambda: waited.append(raised(client)), daemon=True)
        waited = []
        waiting.start()
        client.close()
        waiting.join(DEADLINE_S)
        assert waited == [errors.NotConnected]
        assert sleeping.outcome == "cancelled"


def raised(client):
    """What submitting raises."""
    try:
        client.submit(request("x"), retry=True)
    except errors.TensoryardError as error:
        return type(error)


def test_large_arrays_go_by_handle(hub, client):
    """The body of a large array is a few bytes; a worker reads it where it lies, read-only and equal."""
    client.submit(request(large()))
    hub.wait(wire.Submit)
    (frames,) = hub.bodies(wire.Submit)
    assert sum(map(len, frames)) < 1000
    there = decode_body(frames, EmbeddingsRequest, resolve=client._connection._reader.open).input
    assert np.array_equal(there, large())
    assert not there.flags.writeable


def test_a_coordinator_elsewhere_gets_arrays_as_frames(make_client):
    """Where the coordinator is on another host, arrays go out-of-band: no shared memory is used at all."""
    with Hub(host="another-host") as hub:
        client = make_client(hub.address)
        client.submit(request(large()))
        (sent,) = hub.wait(wire.Submit)
        (frames,) = hub.bodies(wire.Submit)
        assert (sent.host, sent.shared_bytes) == ("", 0)
        assert frames[1] == large().tobytes()
        assert client._connection._pool is None


@pytest.fixture
def porter_of(monkeypatch):
    """Says that this host has a porter for a cluster of that name; there is a socket, and nobody behind it."""
    with contextlib.ExitStack() as undo:

        def make(cluster):
            sock = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            sock.bind(str(porter_path(cluster, host_name())))
            sock.listen()
            undo.callback(porter_path(cluster, host_name()).unlink)
            return sock

        yield make


def test_where_there_is_a_porter_arrays_go_by_handle(make_client, porter_of):
    """A porter of this host lends them to any worker: SUBMIT says so, and which use of its memory is meant."""
    porter_of("ported")
    with Hub(host="another-host", cluster="ported") as hub:
        client = make_client(hub.address)
        mine = client.empty((LARGE,), np.uint8)
        for _ in range(2):
            client.submit(request(mine))
        sent = hub.wait(wire.Submit, 2)
        assert [(each.host, each.shared_bytes, each.porter) for each in sent] == [(host_name(), LARGE, True)] * 2
        assert sent[0].uses == sent[1].uses
        assert sent[0].uses[0].number > 0


def test_a_worker_out_of_reach_gets_the_arrays_in_a_message(hub, client):
    """out_of_reach: the same request comes again with the bytes that lay in the pool, and so do others for a while."""
    mine = client.empty((LARGE,), np.uint8)
    mine[:] = large()
    reply = client.submit(request(mine, request_id=RequestID("a")))
    (first,) = hub.wait(wire.Submit)
    hub.send(wire.Error(request_id="a", code="out_of_reach", text="far", submission=first.submission))
    again = hub.wait(wire.Submit, 2)[1]
    assert (again.submission, again.host, again.shared_bytes) == (first.submission, "", 0)
    assert hub.bodies(wire.Submit)[1][1] == large().tobytes()
    client.submit(request(mine))
    assert hub.wait(wire.Submit, 3)[2].shared_bytes == 0
    answer(hub, "a")
    assert reply.result(DEADLINE_S).embeddings.shape == (1, 3)
    assert client._connection.pool.statistics().used_blocks == 1


def test_an_answer_from_another_host_comes_by_the_porter(make_client, porter_of, pool):
    """It is fetched aside: what comes meanwhile is answered first, and the result is the porter's landing."""
    porter = porter_of("ported")
    with Hub(cluster="ported") as hub:
        client = make_client(hub.address)
        far, near = (client.submit(request(request_id=RequestID(name))) for name in ("far", "near"))
        hub.wait(wire.Submit, 2)
        landed = shared(pool, output(5.0, width=50_000))
        pool.host = "far-away"
        hub.send(wire.Final(request_id="far", seq=0), *shared(pool, output(width=50_000)))
        answer(hub, "near")
        assert near.result(DEADLINE_S).embeddings.shape == (1, 3)
        connection, _ = porter.accept()
        with connection:
            handle, use, word = question_of(connection.recv(4096)[1:])
            assert (handle.host, handle.shape, use) == ("far-away", (1, 50_000), 0)
            assert word
            assert not far.done
            handles = []
            decode_body(landed, Any, resolve=lambda here: handles.append(here) or np.zeros(1))
            connection.sendall(answer_of(handles[0]))
            assert (far.result(DEADLINE_S).embeddings == 5).all()


def test_an_answer_that_no_porter_brings_is_asked_for_again(make_client, porter_of, pool):
    """The request runs again, and says that its answer has to come in a message."""
    porter = porter_of("ported")
    with Hub(cluster="ported") as hub:
        reply = make_client(hub.address).submit(request(request_id=RequestID("a")))
        hub.wait(wire.Submit)
        pool.host = "far-away"
        hub.send(wire.Final(request_id="a", seq=0), *shared(pool, output(width=50_000)))
        connection, _ = porter.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(answer_of(errors.OutOfReach("no")))
            assert not hub.wait(wire.Submit, 2)[1].porter
            answer(hub, "a", 9.0)
            assert (reply.result(DEADLINE_S).embeddings == 9).all()


def test_the_caller_may_go_on_writing_to_its_arrays(make_client):
    """What is sent is what was there at `submit`, also where arrays go as frames that wait for a socket."""
    with Hub(host="another-host") as hub:
        array = large()
        make_client(hub.address).submit(request(array))
        array[:] = 255 - array
        hub.wait(wire.Submit)
        ((_, buffer),) = hub.bodies(wire.Submit)
        assert buffer == large().tobytes()


@pytest.mark.parametrize("thing", ["a text", 7, None, object(), {"model": "m"}, np.zeros(3), output()])
def test_what_is_no_request_is_refused(hub, client, thing):
    """Anything but a request is an InvalidRequest that lists what is; nothing is sent."""
    with pytest.raises(errors.InvalidRequest, match=r"is no request; send one of .*EmbeddingsRequest"):
        client.submit(thing)
    assert hub.of(wire.Submit) == []


@pytest.mark.parametrize("deadline_s", [-1, -0.001, 1e9, float("nan"), float("inf"), "5", True, [1], 1j])
def test_a_deadline_that_cannot_be_is_refused(client, deadline_s):
    """A deadline is a number of seconds from 0 up to some thirty years."""
    with pytest.raises(errors.InvalidRequest, match="`deadline_s` is a number of seconds"):
        client.submit(request(), deadline_s=deadline_s)


@pytest.mark.parametrize("priority", [-1001, 1001, 1.0, "1", True, None, float("nan")])
def test_a_priority_that_cannot_be_is_refused(client, priority):
    """A priority is a whole number from -1000 to 1000."""
    with pytest.raises(errors.InvalidRequest, match="`priority` is a whole number"):
        client.submit(request(), priority=priority)


@pytest.mark.parametrize(
    ("deadline_s", "priority"),
    [(0, -1000), (np.float32(1.5), 1000), (np.int64(3), np.int8(5)), (999_999_999.0, 0)],
)
def test_numbers_of_numpy_are_numbers(hub, client, deadline_s, priority):
    """What is accepted is what a coordinator can read, whatever kind of number it was."""
    client.submit(request(), deadline_s=deadline_s, priority=priority)
    (sent,) = hub.wait(wire.Submit)
    assert (sent.deadline_s, sent.priority) == (float(deadline_s), int(priority))


def test_what_cannot_travel_is_refused_at_once(hub, client):
    """An object array is an UnsupportedArray; nothing is sent, nothing is under way, nothing held."""
    with pytest.raises(errors.UnsupportedArray):
        client.submit(request([large(), np.array([object()])]))
    assert hub.of(wire.Submit) == []
    assert used(client) == 0
    assert len(client._connection._conversation.pending) == 0


LIMITS = {
    "a frame": ({"max_frame_bytes": 1000}, "x" * 2000),
    "a message": ({"max_message_bytes": 1000}, "x" * 2000),
    "a frame out of band": ({"max_frame_bytes": 100_000, "host": "another-host"}, large()),
    "a message of frames": (
        {"max_message_bytes": 150_000, "host": "another-host"},
        [large()[:80_000], large()[:90_000]],
    ),
}


@pytest.mark.parametrize(("limits", "value"), LIMITS.values(), ids=LIMITS.keys())
def test_over_a_limit_of_the_coordinator_nothing_is_sent(make_client, limits, value):
    """MessageTooLarge before anything leaves, naming the request, the sizes and the settings."""
    with Hub(**limits) as hub:
        client = make_client(hub.address)
        with pytest.raises(errors.MessageTooLarge, match="max_frame_bytes") as raised:
            client.submit(request(value, request_id=RequestID("r")))
        assert raised.value.request_id == "r"
        client.submit(request("small"))
        hub.wait(wire.Submit)
        assert len(hub.of(wire.Submit)) == 1


def test_too_many_frames_are_not_sent(make_client):
    """A request of more out-of-band arrays than a message has frames is a MessageTooLarge."""
    with Hub(host="another-host") as hub:
        client = make_client(hub.address, Settings(out_of_band_bytes=1))
        many = [np.array([n]) for n in range(wire.MAX_FRAMES)]
        with pytest.raises(errors.MessageTooLarge, match=f"{wire.MAX_FRAMES + 1} frames"):
            client.submit(request(many))
        client.submit(request(many[:-2])).cancel()  # envelope and body are frames too


def test_a_full_pool_is_said_at_once(hub, make_client):
    """PoolExhausted comes out of `submit`, after `allocate_timeout_s`; what was placed before is given back."""
    settings = Settings(pool_budget_bytes=1 << 20, allocate_timeout_s=0.01)
    client = make_client(hub.address, settings)
    with pytest.raises(errors.PoolExhausted):
        client.submit(request([np.zeros(700_000, np.uint8), np.zeros(900_000, np.uint8)]))
    assert used(client) == 0
    assert hub.of(wire.Submit) == []


def test_a_live_id_is_refused(hub, client):
    """A RequestID that is under way is a DuplicateRequest which harms the first in nothing; later it is free again."""
    first = client.submit(request(large(), request_id=RequestID("r")))
    with pytest.raises(errors.DuplicateRequest) as raised:
        client.submit(request(large(), request_id=RequestID("r")))
    assert used(client) == 1  # also while somebody holds the error, and with it the frames it came through
    assert raised.value.request_id == "r"
    hub.wait(wire.Submit)
    answer(hub, "r", 5)
    assert first.result(DEADLINE_S).embeddings.tolist() == [[5, 5, 5]]
    second = client.submit(request(request_id=RequestID("r")))
    hub.wait(wire.Submit, 2)
    answer(hub, "r", 6)
    assert second.result(DEADLINE_S).embeddings[0, 0] == 6
    assert len(hub.of(wire.Submit)) == 2


# -- answers ----------------------------------------------------------------------------------------------------------


def test_an_error_is_what_it_says(hub, client):
    """ERROR becomes the class of its code, with id, story and retry-after; an unknown code becomes Failed."""
    replies = [client.submit(request(request_id=RequestID(key))) for key in ("a", "b", "c")]
    hub.wait(wire.Submit, 3)
    hub.send(wire.Error(request_id="a", code="overloaded", text="full", retry_after_s=1.5))
    hub.send(wire.Error(request_id="b", code="pipeline_error", text="no", story=["+0.0s accepted"]))
    hub.send(wire.Error(request_id="c", code="from the future", text="?"))
    with pytest.raises(errors.Overloaded, match="request a: full") as raised:
        replies[0].result(DEADLINE_S)
    assert raised.value.retry_after_s == 1.5
    with pytest.raises(errors.PipelineError) as failed:
        replies[1].result(DEADLINE_S)
    assert failed.value.story == ("+0.0s accepted",)
    with pytest.raises(errors.Failed):
        replies[2].result(DEADLINE_S)


def test_answers_to_nobody_are_dropped(hub, client):
    """Outputs, errors and reports that nobody waits for change nothing."""
    hub.wait(wire.Hello)
    answer(hub, "never")
    hub.send(wire.Partial(request_id="never", seq=0), b"\xc1")
    hub.send(wire.Error(request_id="never", code="failed", text=""))
    hub.send(wire.Report(query=99), b"\xc0")
    hub.send(wire.Report(query=99))
    reply = client.submit(request(request_id=RequestID("r")))
    hub.wait(wire.Submit)
    answer(hub, "r")
    assert reply.result(DEADLINE_S).embeddings.shape == (1, 3)


BAD_BODIES = {
    "nothing": [],
    "no msgpack": [b"\xc1"],
    "another type": [msgspec.msgpack.encode({"x": 1})],
    "another output": frames_of(chunk(1, done=True)),
    "an array of text": [encode_body({"type": "EmbeddingsGenerationOutput", "embeddings": np.array(["a"])}).frames[0]],
    "a buffer that is not there": encode_body(output(width=50_000), out_of_band=True).frames[:1],
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES.keys())
def test_an_answer_that_cannot_be_read_fails_alone(hub, client, body):
    """Its request ends with a DecodeError that names it; the others go on."""
    bad, good = (client.submit(request(large(), request_id=RequestID(key))) for key in ("bad", "good"))
    hub.wait(wire.Submit, 2)
    hub.send(wire.Final(request_id="bad", seq=0), *body)
    answer(hub, "good")
    with pytest.raises(errors.DecodeError, match="request bad: "):
        bad.result(DEADLINE_S)
    good.result(DEADLINE_S)
    assert used(client) == 0
    assert hub.of(wire.Cancel) == []


def test_a_part_that_cannot_be_read_ends_its_stream(hub, client):
    """A PARTIAL that cannot be read fails the request, and the rest of it is cancelled."""
    reply = client.submit(AudioGenerationRequest(model="m", input="hello", request_id=RequestID("r")))
    hub.wait(wire.Submit)
    hub.send(wire.Partial(request_id="r", seq=0), b"\xc1")
    with pytest.raises(errors.DecodeError):
        reply.result(DEADLINE_S)
    assert hub.wait(wire.Cancel)[0].request_id == "r"


def test_a_bug_in_decoding_fails_one_request(hub, client, monkeypatch, caplog):
    """An error of ours while an output is read is logged and ends its request; the session goes on."""
    replies = [client.submit(request(request_id=RequestID(key))) for key in ("a", "b")]
    hub.wait(wire.Submit, 2)

    def fail(*_args, **_kwargs):
        monkeypatch.undo()
        raise ZeroDivisionError("our bug")

    monkeypatch.setattr("tensoryard.client.connection.decode_body", fail)
    answer(hub, "a")
    with pytest.raises(errors.DecodeError, match="ZeroDivisionError: our bug"):
        replies[0].result(DEADLINE_S)
    answer(hub, "b")
    replies[1].result(DEADLINE_S)
    assert "Traceback" in caplog.text


def test_a_stream_arrives_in_order(hub, client):
    """PARTIAL 0, 1, … and FINAL are given in order, repeats of what has come are not given again."""
    reply = client.submit(AudioGenerationRequest(model="m", input="hello", request_id=RequestID("r")))
    hub.wait(wire.Submit)
    for number in (0, 1, 1, 0, 2):
        hub.send(wire.Partial(request_id="r", seq=number), *frames_of(chunk(number)))
    hub.send(wire.Final(request_id="r", seq=3), *frames_of(chunk(3, done=True)))
    assert [part.audio_data[0] for part in reply] == [0, 1, 2, 3]
    assert reply.result().audio_data.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4


def test_a_listener_that_raises_ends_nothing(hub, client, caplog):
    """A bug in a caller's listener is logged; this reply and all others go on."""
    replies = [client.submit(request(request_id=RequestID(key))) for key in ("a", "b")]

    def broken():
        raise ZeroDivisionError("the caller's bug")

    replies[0].add_listener(broken)
    hub.wait(wire.Submit, 2)
    answer(hub, "a")
    answer(hub, "b")
    for reply in replies:
        reply.result(DEADLINE_S)
    assert "the caller's bug" in caplog.text


def test_a_refusal_of_one_message_is_logged(hub, client, caplog):
    """REFUSED later on is logged; nothing ends."""
    reply = client.submit(request(request_id=RequestID("r")))
    hub.wait(wire.Submit)
    hub.send(wire.Refused(code="protocol", text="what was that?"))
    answer(hub, "r")
    reply.result(DEADLINE_S)
    assert "what was that?" in caplog.text


# -- memory -----------------------------------------------------------------------------------------------------------

ENDINGS = {
    "finished": lambda hub, client, reply: answer(hub, "r"),
    "failed": lambda hub, client, reply: hub.send(wire.Error(request_id="r", code="failed", text="")),
    "unreadable": lambda hub, client, reply: hub.send(wire.Final(request_id="r", seq=0), b"\xc1"),
    "shut down": lambda hub, client, reply: hub.send(wire.Disconnect()),
    "closed": lambda hub, client, reply: client.close(),
}


@pytest.mark.case(26)
@pytest.mark.parametrize("end", ENDINGS.values(), ids=ENDINGS.keys())
def test_inputs_are_held_until_the_answer_has_come(hub, client, end):
    """The shared memory of a request is held, cancelled or not, until its end, and then free before anybody knows."""
    pool = client._connection.pool
    reply = client.submit(
        AudioGenerationRequest(
            model="m", input="x", buffer_speech_tokens=np.zeros(30_000, np.int64), request_id=RequestID("r")
        )
    )
    hub.wait(wire.Submit)
    free = []
    assert used(client) == 1
    hub.send(wire.Partial(request_id="r", seq=0), *frames_of(chunk(0)))
    assert next(iter(reply)).audio_data[0] == 0
    reply.cancel()
    hub.wait(wire.Cancel)
    assert used(client) == 1
    reply.add_listener(lambda: free.append(pool.statistics().used_blocks))
    ended = threading.Event()
    reply.add_listener(ended.set)
    end(hub, client, reply)
    assert ended.wait(DEADLINE_S)
    assert reply.done
    assert free == [0]


def test_an_array_of_the_pool_may_be_sent_again(hub, client):
    """What `empty` gave is sent without a copy, held by request and caller alike, and free when both are done."""
    array = client.empty((LARGE,), np.uint8)
    array[:] = 7
    replies = [client.submit(request(array, request_id=RequestID(key))) for key in ("a", "b")]
    hub.wait(wire.Submit, 2)
    assert used(client) == 1
    for key in ("a", "b"):
        answer(hub, key)
    for reply in replies:
        reply.result(DEADLINE_S)
        assert reply.ledger.copies_in == 0
    assert used(client) == 1
    del array
    assert used(client) == 0


@pytest.mark.case(6)
def test_a_result_lives_as_long_as_its_view(hub, client, pool):
    """A result in shared memory stays leased while any view of it lives, the client closed or not, and not longer."""
    reply = client.submit(request(request_id=RequestID("r")))
    hub.wait(wire.Submit)
    hub.send(wire.Final(request_id="r", seq=0), *shared(pool, output(7, width=50_000)))
    view = reply.result(DEADLINE_S).embeddings[0, :10]
    assert pool.statistics().used_blocks == 1
    del reply
    client.close()
    gc.collect()
    assert view.tolist() == [7.0] * 10
    assert pool.statistics().used_blocks == 1
    del view
    assert pool.statistics().used_blocks == 0


def test_a_late_answer_gives_its_lease_back(hub, client, pool):
    """An answer to a request that has ended, or never was, is claimed and let go: its memory is free at once."""
    reply = client.submit(request(request_id=RequestID("r")))
    hub.wait(wire.Submit)
    answer(hub, "r", 3)
    reply.result(DEADLINE_S)
    for key in ("r", "never"):
        hub.send(wire.Final(request_id=key, seq=0), *shared(pool, output(9, width=50_000)))
    last = client.submit(request(request_id=RequestID("last")))
    hub.wait(wire.Submit, 2)
    answer(hub, "last")
    last.result(DEADLINE_S)
    assert pool.statistics().used_blocks == 0
    assert reply.result().embeddings[0, 0] == 3


def test_closing_lets_go_of_the_workers_pools(hub, client, pool, eventually):
    """A closed client, kept or not, is no reader of anybody's memory any more."""
    reply = client.submit(request(request_id=RequestID("r")))
    hub.wait(wire.Submit)
    hub.send(wire.Final(request_id="r", seq=0), *shared(pool, output(1, width=50_000)))
    reply.result(DEADLINE_S)
    assert pool.statistics().readers == 1
    del reply
    client.close()
    eventually(lambda: gc.collect() >= 0 and pool.statistics().readers == 0, "the client has let go of the pool")


def test_a_repeated_part_gives_its_lease_back(hub, client, pool):
    """A part that has come already is claimed and let go too."""
    reply = client.submit(AudioGenerationRequest(model="m", input="hello", request_id=RequestID("r")))
    hub.wait(wire.Submit)
    for _ in range(3):
        hub.send(wire.Partial(request_id="r", seq=0), *shared(pool, chunk(0, samples=50_000)))
    hub.send(wire.Final(request_id="r", seq=1), *frames_of(chunk(1, done=True)))
    assert len(list(reply)) == 2
    assert pool.statistics().used_blocks == 1  # the reply's own
    del reply
    gc.collect()
    assert pool.statistics().used_blocks == 0


def test_a_reply_nobody_keeps_is_collected(hub, client, pool, eventually):
    """A reply that was dropped before its answer came goes when it has come, with its outputs and their leases."""
    reply = client.submit(request(request_id=RequestID("r")))
    watched = weakref.ref(reply)
    del reply
    hub.wait(wire.Submit)
    gc.collect()
    assert watched() is not None
    hub.send(wire.Final(request_id="r", seq=0), *shared(pool, output(1, width=50_000)))
    eventually(lambda: gc.collect() >= 0 and watched() is None, "the reply is collected")
    eventually(lambda: pool.statistics().used_blocks == 0, "its result's memory is free")


# -- a result whose memory is lost ------------------------------------------------------------------------------------


@pytest.mark.case(3)
def test_a_request_whose_result_is_lost_is_sent_again(hub, client):
    """When a result's memory has gone before it was read, CANCEL and the same SUBMIT follow, and its answer counts."""
    reply = client.submit(request("x" * 50, request_id=RequestID("r")), deadline_s=1000)
    hub.wait(wire.Submit)
    hub.send(wire.Final(request_id="r", seq=0), *lost(output(1)))
    first, second = hub.wait(wire.Submit, 2)
    assert hub.bodies(wire.Submit)[0] == hub.bodies(wire.Submit)[1]
    assert second.deadline_s <= first.deadline_s
    assert [type(m) for _, m, _ in hub.seen[2:]] == [wire.Cancel, wire.Submit]
    hub.send(wire.Error(request_id="r", code="cancelled", text="by our own CANCEL"))
    answer(hub, "r", 2)
    assert reply.result(DEADLINE_S).embeddings[0, 0] == 2


@pytest.mark.case(7)
def test_a_stale_result_is_asked_for_again(hub, client, pool):
    """A handle whose block was reused since, which StaleHandle tells, is treated the same."""
    frames = shared(pool, output(1))
    for block in pool.live_blocks():
        pool.discard(block.generation)
    reply = client.submit(request(request_id=RequestID("r")))
    hub.wait(wire.Submit)
    hub.send(wire.Final(request_id="r", seq=0), *frames)
    hub.wait(wire.Submit, 2)
    answer(hub, "r", 2)
    assert reply.result(DEADLINE_S).embeddings[0, 0] == 2


def test_it_is_sent_again_three_times_at_most(hub, client):
    """A result that is lost a fourth time is WorkerLost, retryable; SUBMIT went four times in all."""
    reply = client.submit(request(large(), request_id=RequestID("r")))
    for count in range(1, 5):
        hub.wait(wire.Submit, count)
        hub.send(wire.Final(request_id="r", seq=0), *lost(output(1)))
    with pytest.raises(errors.WorkerLost, match="request r: its result was lost 4 times") as raised:
        reply.result(DEADLINE_S)
    assert raised.value.retryable
    assert len(hub.of(wire.Submit)) == 4
    assert used(client) == 0


def test_the_rest_of_a_lost_stream_counts_once(hub, client):
    """All parts of one lost run together have the request sent again once, however many they are."""
    reply = client.submit(AudioGenerationRequest(model="m", input="hello", request_id=RequestID("r")))
    hub.wait(wire.Submit)
    for number in range(6):
        hub.send(wire.Partial(request_id="r", seq=number), *lost(chunk(number)))
    hub.send(wire.Final(request_id="r", seq=6), *lost(chunk(6, done=True)))
    hub.send(wire.Error(request_id="r", code="cancelled", text="by our own CANCEL"))
    hub.wait(wire.Submit, 2)
    for number in range(2):
        hub.send(wire.Partial(request_id="r", seq=number), *frames_of(chunk(number)))
    hub.send(wire.Final(request_id="r", seq=2), *frames_of(chunk(2, done=True)))
    assert [part.audio_data[0] for part in reply] == [0, 1, 2]
    assert len(hub.of(wire.Submit)) == 2


def test_parts_after_a_lost_one_make_no_hole(hub, client):
    """Part 1 lost, part 2 of the same run readable: the caller gets 0, 1, 2, 3 in order, never a hole."""
    reply = client.submit(AudioGenerationRequest(model="m", input="hello", request_id=RequestID("r")))
    hub.wait(wire.Submit)
    hub.send(wire.Partial(request_id="r", seq=0), *frames_of(chunk(0)))
    hub.send(wire.Partial(request_id="r", seq=1), *lost(chunk(1)))
    hub.send(wire.Partial(request_id="r", seq=2), *frames_of(chunk(2)))
    hub.send(wire.Final(request_id="r", seq=3), *frames_of(chunk(3, done=True)))
    hub.wait(wire.Submit, 2)
    for number in range(3):
        hub.send(wire.Partial(request_id="r", seq=number), *frames_of(chunk(number)))
    hub.send(wire.Final(request_id="r", seq=3), *frames_of(chunk(3, done=True)))
    assert [part.audio_data[0] for part in reply] == [0, 1, 2, 3]


def test_a_part_that_never_came_is_asked_for_again(hub, client):
    """A gap in a stream, as a coordinator that was replaced may leave, runs the request again."""
    reply = client.submit(AudioGenerationRequest(model="m", input="hello", request_id=RequestID("r")))
    hub.wait(wire.Submit)
    hub.send(wire.Partial(request_id="r", seq=0), *frames_of(chunk(0)))
    hub.send(wire.Partial(request_id="r", seq=2), *frames_of(chunk(2)))
    hub.wait(wire.Submit, 2)
    for number in range(2):
        hub.send(wire.Partial(request_id="r", seq=number), *frames_of(chunk(number)))
    hub.send(wire.Final(request_id="r", seq=2), *frames_of(chunk(2, done=True)))
    assert [part.audio_data[0] for part in reply] == [0, 1, 2]


def test_a_cancel_after_a_resend_ends_the_request(hub, client):
    """Once the caller cancels, ERROR `cancelled` counts again, although the request was sent again before."""
    reply = client.submit(request(request_id=RequestID("r")))
    hub.wait(wire.Submit)
    hub.send(wire.Final(request_id="r", seq=0), *lost(output(1)))
    hub.wait(wire.Submit, 2)
    reply.cancel()
    hub.wait(wire.Cancel, 2)
    hub.send(wire.Error(request_id="r", code="cancelled", text="cancelled by its client"))
    with pytest.raises(errors.RequestCancelled):
        reply.result(DEADLINE_S)


def test_a_cancelled_stream_of_a_resend_ends_too(hub, client):
    """The same when the second run has begun to answer."""
    reply = client.submit(AudioGenerationRequest(model="m", input="hello", request_id=RequestID("r")))
    hub.wait(wire.Submit)
    hub.send(wire.Partial(request_id="r", seq=0), *lost(chunk(0)))
    hub.wait(wire.Submit, 2)
    hub.send(wire.Partial(request_id="r", seq=0), *frames_of(chunk(0)))
    assert next(iter(reply)).audio_data[0] == 0
    hub.send(wire.Error(request_id="r", code="cancelled", text="by whomever"))
    with pytest.raises(errors.RequestCancelled):
        reply.result(DEADLINE_S)


def test_what_was_cancelled_is_not_sent_again(hub, client):
    """When the lost result is one the caller had cancelled, the request ends instead."""
    reply = client.submit(request(request_id=RequestID("r")))
    hub.wait(wire.Submit)
    reply.cancel()
    hub.wait(wire.Cancel)
    hub.send(wire.Final(request_id="r", seq=0), *lost(output(1)))
    with pytest.raises(errors.RequestCancelled):
        reply.result(DEADLINE_S)
    hub.wait(wire.Cancel, 2)
    assert len(hub.of(wire.Submit)) == 1


# -- a coordinator that goes ------------------------------------------------------------------------------------------


def test_a_new_coordinator_gets_what_is_under_way(make_client):
    """A coordinator in place of another gets every pending request again, unchanged; each is answered once."""
    address = fresh_address()
    with Hub(address) as first:
        client = make_client(address)
        replies = {
            f"r{n}": client.submit(request(f"text {n}", request_id=RequestID(f"r{n}")), deadline_s=1000)
            for n in range(20)
        }
        first.wait(wire.Submit, 20)
        answer(first, "r0", 0)
        replies["r0"].result(DEADLINE_S)
    with Hub(address, script=rejoining) as second:
        again = second.wait(wire.Submit, 19)
        assert [m.request_id for m in again] == [f"r{n}" for n in range(1, 20)]
        assert second.bodies(wire.Submit) == first.bodies(wire.Submit)[1:]
        for number in range(1, 20):
            answer(second, f"r{number}", number)
            answer(second, f"r{number}", 999)  # a late duplicate
        for number in range(1, 20):
            assert replies[f"r{number}"].result(DEADLINE_S).embeddings[0, 0] == number
        assert [len(list(reply)) for reply in replies.values()] == [1] * 20


def test_what_comes_before_the_welcome_is_sent_once(make_client):
    """A request made between our hello and its answer reaches the new coordinator once, those of before as ever."""
    address = fresh_address()
    with Hub(address) as first:
        client = make_client(address)
        replies = [client.submit(request("old", request_id=RequestID("old")))]
        first.wait(wire.Submit)
    with Hub(address, script=lambda _hub, _peer, message, _body: isinstance(message, wire.Hello)) as second:
        second.wait(wire.Hello)
        replies.append(client.submit(request("new", request_id=RequestID("new"))))
        second.wait(wire.Submit)
        second.send(second.welcome())
        second.wait(wire.Submit, 2)
        replies.append(client.submit(request("last", request_id=RequestID("last"))))
        assert [message.request_id for message in second.wait(wire.Submit, 3)] == ["new", "old", "last"]
        for number, name in enumerate(("old", "new", "last")):
            answer(second, name, number)
        assert [reply.result(DEADLINE_S).embeddings[0, 0] for reply in replies] == [0, 1, 2]


def test_what_was_cancelled_meanwhile_stays_cancelled(make_client):
    """A request whose CANCEL was lost with the coordinator is not sent to the next one; it ends as cancelled."""
    address = fresh_address()
    with Hub(address) as first:
        client = make_client(address)
        kept, dropped = (client.submit(request(large(), request_id=RequestID(key))) for key in ("kept", "dropped"))
        first.wait(wire.Submit, 2)
    dropped.cancel()
    with Hub(address, script=rejoining) as second:
        with pytest.raises(errors.RequestCancelled):
            dropped.result(DEADLINE_S)
        assert [m.request_id for m in second.wait(wire.Submit)] == ["kept"]
        answer(second, "kept")
        kept.result(DEADLINE_S)
    assert used(client) == 0


def test_a_question_outlives_its_coordinator(make_client):
    """What was asked of the first coordinator is asked again of the second."""
    address, answers = fresh_address(), []
    with Hub(address) as first:
        client = make_client(address)
        asking = threading.Thread(target=lambda: answers.append(client.story("r", timeout_s=DEADLINE_S)))
        asking.start()
        first.wait(wire.AskStory)
    with Hub(address, script=rejoining) as second:
        (question,) = second.wait(wire.AskStory)
        second.send(wire.Report(query=question.query), msgspec.msgpack.encode(["accepted"]))
        asking.join(DEADLINE_S)
    assert answers == [("accepted",)]


def test_a_coordinator_that_stays_away_is_lost(make_client):
    """After `reconnect_s` of silence every reply is CoordinatorLost, retryable; new requests are NotConnected."""
    address = fresh_address()
    with Hub(address) as hub:
        client = make_client(address, HASTY)
        replies = [client.submit(request(large())) for _ in range(3)]
        hub.wait(wire.Submit, 3)
    for reply in replies:
        with pytest.raises(errors.CoordinatorLost, match="safe to send again") as raised:
            reply.result(DEADLINE_S)
        assert raised.value.retryable
    assert used(client) == 0
    with pytest.raises(errors.NotConnected, match="has not been heard for"):
        client.submit(request())
    with pytest.raises(errors.NotConnected):
        client.status()
    with Hub(address, script=rejoining) as hub:  # and when it comes back, the client goes on by itself
        hub.wait(wire.Hello)
        hub.wait_beats(1)
        reply = client.submit(request(request_id=RequestID("after")))
        hub.wait(wire.Submit)
        answer(hub, "after", 4)
        assert reply.result(DEADLINE_S).embeddings[0, 0] == 4
        assert [m.request_id for m in hub.of(wire.Submit)] == ["after"]


@pytest.mark.case(16)
def test_a_coordinator_that_is_silent_is_lost_too(make_client):
    """One that is there and says nothing is no different."""
    with Hub() as hub:
        client = make_client(hub.address, HASTY)
        reply = client.submit(request())
        hub.wait(wire.Submit)
        hub.silent = True
        with pytest.raises(errors.CoordinatorLost):
            reply.result(DEADLINE_S)


def test_a_goodbye_ends_everything_at_once(hub, client):
    """DISCONNECT fails what is under way without waiting for `reconnect_s`."""
    replies = [client.submit(request(large())) for _ in range(3)]
    hub.wait(wire.Submit, 3)
    hub.send(wire.Disconnect())
    for reply in replies:
        with pytest.raises(errors.CoordinatorLost, match="the cluster has shut down"):
            reply.result(DEADLINE_S)
    assert used(client) == 0


def test_a_coordinator_of_another_version_refuses_and_a_good_one_heals(make_client):
    """After one that refuses our version, all is VersionMismatch; after one that does not, all is well again."""
    address = fresh_address()

    def refuse(hub, peer, message, _body):
        if isinstance(message, wire.Hello | wire.Heartbeat):
            hub.send(wire.Refused(code="version_mismatch", text="we speak 2"), to=peer)
        return True

    with Hub(address) as first:
        client = make_client(address)
        reply = client.submit(request())
        first.wait(wire.Submit)
    with Hub(address, script=refuse), pytest.raises(errors.VersionMismatch, match="we speak 2"):
        reply.result(DEADLINE_S)
    with pytest.raises(errors.VersionMismatch):
        client.submit(request())
    with Hub(address, script=rejoining) as third:
        third.wait(wire.Hello)
        third.wait_beats(1)
        reply = client.submit(request(request_id=RequestID("r")))
        third.wait(wire.Submit)
        answer(third, "r")
        reply.result(DEADLINE_S)


@pytest.mark.process
def test_a_killed_coordinator_costs_nobody_an_answer(make_client):
    """SIGKILL for a real coordinator with requests under way, a successor at its address: 50 answers, each once."""
    command = [sys.executable, "-P", "-m", "tensoryard.coordinator", "--name", f"k-{secrets.token_hex(4)}"]
    command += ["--expects-fleet", "--settings", msgspec.json.encode(CALM).decode()]
    go = threading.Event()
    counted = Counter()

    def slow(peer, dispatch, body):
        """Hold the first half until the coordinator is gone."""
        counted[dispatch.request_id] += 1
        if go.is_set() or int(dispatch.request_id) % 2:
            value = decode_body(body, EmbeddingsRequest).input
            peer.answer(dispatch, *frames_of(output(float(value))))

    first, address = _started(command)
    try:
        with Worker(address, slow, credits=100) as worker:
            client = make_client(address)
            _tell_what_is_served(address)
            replies = [client.submit(request(f"{n}", request_id=RequestID(f"{n}"))) for n in range(50)]
            for reply in replies[1::2]:
                reply.result(DEADLINE_S)
            first.send_signal(signal.SIGKILL)
            first.wait(DEADLINE_S)
            go.set()
            second, again = _started(command)
            try:
                assert again == address
                _tell_what_is_served(address)
                values = [reply.result(DEADLINE_S).embeddings[0, 0] for reply in replies]
                assert values == list(range(50))
                assert [len(list(reply)) for reply in replies] == [1] * 50
                assert client.status().outcomes == {"finished": 25}
            finally:
                second.terminate()
                second.wait(DEADLINE_S)
        assert worker.rejoins
        assert {counted[f"{n}"] for n in range(1, 50, 2)} == {1}
    finally:
        first.kill()
        first.wait(DEADLINE_S)


def _tell_what_is_served(address):
    """As a fleet: once the worker has joined, let requests in."""
    with closing(Peer(address), Peer(address, "fleet")) as (peer, fleet):
        give_up = time.monotonic() + DEADLINE_S
        while not peer.status().models:
            assert time.monotonic() < give_up, "the worker did not join"
            time.sleep(0.01)
        expected = wire.Expected(deployment="d", model="m", task="embeddings_generation", replicas=1)
        fleet.send(wire.Deployments(deployments=[expected]))
        fleet.hello()
        while not isinstance(fleet.take(wire.Welcome | wire.WorkerNotice)[0], wire.Welcome):
            pass


def _started(command):
    read, write = os.pipe()
    process = subprocess.Popen([*command, "--ready-fd", str(write)], pass_fds=[write])
    os.close(write)
    with os.fdopen(read) as told:
        word, address = told.readline().split()
    assert word == "address"
    return process, address


# -- closing ----------------------------------------------------------------------------------------------------------


def test_closing_cancels_what_is_under_way(hub, client):
    """`close` ends each reply as RequestCancelled and says goodbye; what was answered stays; again is harmless."""
    done, under_way = (client.submit(request(large(), request_id=RequestID(key))) for key in ("done", "open"))
    hub.wait(wire.Submit, 2)
    answer(hub, "done", 8)
    done.result(DEADLINE_S)
    client.close()
    client.close()
    with pytest.raises(errors.RequestCancelled, match="its client was closed"):
        under_way.result(0)
    assert done.result(0).embeddings[0, 0] == 8
    hub.wait(wire.Disconnect)
    assert len(hub.of(wire.Disconnect)) == 1


def test_a_closed_client_does_nothing_more(client):
    """After `close`, every verb is a NotConnected that says so, and makes no new pool."""
    client.close()
    for verb in (
        lambda: client.submit(request()),
        lambda: client.empty((3,)),
        client.status,
        lambda: client.story("r"),
        client.shutdown,
        lambda: client.embed("x", model="m"),
        lambda: next(client.map([request()])),
    ):
        with pytest.raises(errors.NotConnected, match="this client is closed"):
            verb()
    assert client._connection._pool is None


def test_a_client_may_be_closed_from_a_listener(hub, client):
    """Closing from the session's own thread ends everything and waits for nothing."""
    closed = threading.Event()
    reply, other = (client.submit(request(request_id=RequestID(key))) for key in ("a", "b"))
    reply.add_listener(lambda: (client.close(), closed.set()))
    hub.wait(wire.Submit, 2)
    answer(hub, "a")
    assert closed.wait(DEADLINE_S)
    with pytest.raises(errors.RequestCancelled):
        other.result(DEADLINE_S)
    hub.wait(wire.Disconnect)


def test_a_request_that_meets_the_close_does_not_hang(client, monkeypatch):
    """When the client is closed while `submit` is at work, `submit` raises rather than return a reply nobody ends."""
    add = client._connection._conversation.pending.add

    def close_first(entry):
        client.close()
        add(entry)

    monkeypatch.setattr(client._connection._conversation.pending, "add", close_first)
    with pytest.raises(errors.NotConnected):
        client.submit(request())
    assert len(client._connection._conversation.pending) == 0


def test_a_question_that_meets_the_close_does_not_hang(hub, client):
    """Closing wakes whoever waits for the coordinator's word."""
    outcome = []

    def ask():
        try:
            client.status(timeout_s=1000)
        except errors.TensoryardError as error:
            outcome.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    hub.wait(wire.AskStatus)
    client.close()
    asking.join(DEADLINE_S)
    assert [type(error) for error in outcome] == [errors.NotConnected]


def test_a_session_that_fails_ends_everything(hub, client, caplog):
    """When our own thread dies of a bug, replies are CoordinatorLost, questions end, and new requests say why."""
    reply = client.submit(request(large()))
    asking = []

    def ask():
        with pytest.raises(errors.NotConnected):
            client.status(timeout_s=1000)
        asking.append("ended")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    hub.wait(wire.Submit)
    hub.wait(wire.AskStatus)

    def fail(_message, _body):
        raise ZeroDivisionError("our bug")

    client._connection.on_message = fail
    hub.send(wire.Disconnect())
    with pytest.raises(errors.CoordinatorLost, match="ZeroDivisionError"):
        reply.result(DEADLINE_S)
    thread.join(DEADLINE_S)
    assert len(asking) == 1
    with pytest.raises(errors.NotConnected, match="our bug"):
        client.submit(request())
    assert used(client) == 0
    assert "Traceback" in caplog.text


def test_clients_leave_nothing_open(eventually):
    """100 clients that connect, use shared memory and close leave descriptors and threads as they were."""
    others = set(threading.enumerate())  # a cluster that several files share may be up
    with Hub() as hub:
        with connect(hub.address, settings=CALM) as client:
            client.empty((10,))
        eventually(lambda: not _threads_of_ours(others), "the first one's threads have ended")
        gc.collect()
        before = Baseline()
        for _ in range(100):
            with connect(hub.address, settings=CALM) as client:
                client.empty((10,))[:] = 1
        before.assert_nothing_new()
        eventually(lambda: not _threads_of_ours(others), "all threads have ended")


def _threads_of_ours(others):
    return [thread for thread in set(threading.enumerate()) - others if thread.name.startswith("tensoryard")]


_FORKING = """
import os, sys, tensoryard
client = tensoryard.connect(sys.argv[1])
child = os.fork()
if child == 0:
    try:
        client.submit(tensoryard.EmbeddingsRequest(model="m", input="x"))
    except tensoryard.errors.NotConnected as error:
        print(error, flush=True)
        os._exit(7)
    os._exit(1)
_, status = os.waitpid(child, 0)
client.close()
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.process
def test_a_forked_child_has_no_client(hub):
    """In a child made by fork, a client of the parent raises rather than hang; the parent's goes on."""
    command = [sys.executable, "-P", "-c", _FORKING, hub.address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 7, done.stderr
    assert "made before a fork" in done.stdout
    hub.wait(wire.Disconnect)
    assert hub.of(wire.Submit) == []


# -- asking -----------------------------------------------------------------------------------------------------------


def test_a_question_without_an_answer_times_out(client, hub):
    """ReplyTimeout, naming the address; the next question is answered by its own number."""
    with pytest.raises(errors.ReplyTimeout, match=r"did not answer within 0\.01 s"):
        client.status(timeout_s=0.01)
    (question,) = hub.wait(wire.AskStatus)
    hub.send(wire.Report(query=question.query), b"\xc1")  # late: for nobody
    status = ClusterStatus(
        name="n",
        address="a",
        epoch="e",
        version="1",
        uptime_s=1.0,
        accepting=True,
        clients=1,
        live_requests=0,
        outcomes={},
        models=[],
    )

    def report(hub, _peer, message, _body):
        if isinstance(message, wire.AskStatus):
            hub.send(wire.Report(query=message.query), msgspec.msgpack.encode(status))

    hub.script = report
    assert client.status() == status


@pytest.mark.parametrize("request_id", ["", "x" * 129, "a\nb"])
def test_a_story_is_asked_for_by_a_real_id(client, request_id):
    """What can be no RequestID is refused here, not left to time out."""
    with pytest.raises(errors.InvalidRequest):
        client.story(request_id)


def test_shutdown_is_sent(hub, client):
    """`shutdown` sends SHUTDOWN, also when the client is closed right after."""
    client.shutdown()
    client.close()
    hub.wait(wire.Shutdown)


def test_the_log_is_quiet_when_all_is_well(hub, caplog):
    """Connecting, working and closing log nothing above INFO."""
    with caplog.at_level(logging.DEBUG), connect(hub.address, settings=CALM) as client:
        reply = client.submit(request(large(), request_id=RequestID("r")))
        hub.wait(wire.Submit)
        answer(hub, "r")
        reply.result(DEADLINE_S)
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []
    assert tensoryard.Client is type(client)


def test_a_peer_of_the_suite_is_a_client_too():
    """The scripted peer and the real client speak the same language to a real coordinator."""
    with (
        Serving() as serving,
        closing(Peer(serving.address)) as (peer,),
        connect(serving.address, settings=CALM) as client,
    ):
        assert peer.status().clients == client.status().clients == 2


def test_a_guarded_coordinator_is_told_apart_from_one_that_is_down():
    """Who holds the whole address is let in; who does not is told that at once where it asks why nobody answers."""
    keys = new_keys()
    with closing(Serving(addresses=["tcp://127.0.0.1:0"], keys=keys)) as (serving,):
        told = serving.coordinator.addresses[1]
        with connect(keys.invitation(told), settings=CALM, timeout_s=DEADLINE_S) as client:
            assert client.status().accepting
        with pytest.raises(errors.NotConnected, match="does not let us in"):
            connect(told, settings=CALM, timeout_s=5.0)
    with pytest.raises(errors.NotConnected, match="no coordinator answered") as raised:
        connect(keys.invitation(told), settings=CALM, timeout_s=0.2)
    assert "secret" not in str(raised.value)
