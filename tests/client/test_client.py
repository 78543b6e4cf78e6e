"""The client's verbs, against a real coordinator and a worker that does what the test says."""

from __future__ import annotations

import builtins
import gc
import sys
import threading

import numpy as np
import pytest

from tensoryard import errors
from tensoryard.client import Reply, connect
from tensoryard.client.pending import Pending
from tensoryard.proto import (
    AudioGenerationOutput,
    AudioGenerationRequest,
    EmbeddingsGenerationOutput,
    EmbeddingsRequest,
    GenerationOutput,
    GenerationStatus,
    PixelGenerationRequest,
    RequestID,
)
from tensoryard.proto.codec import decode_body
from tensoryard.settings import Settings
from tensoryard.shm import Reader

from ..scripted import CALM, DEADLINE_S, Serving, Worker, frames_of


@pytest.fixture
def client(serving):
    with connect(serving.address, settings=CALM) as client:
        yield client
        assert len(client._connection._conversation.pending) == 0


@pytest.fixture
def reader():
    reader = Reader()
    yield reader
    reader.close()


@pytest.fixture
def serve(serving, reader):
    """Starts a worker that answers each request with what `function(request)` returns or raises."""
    workers = []

    def start(function, kind=EmbeddingsRequest, **ready):
        def answer(peer, dispatch, body):
            request = decode_body(body, kind, resolve=reader.open)
            try:
                outputs = function(request)
            except errors.TensoryardError as error:
                peer.answer(dispatch, done=False, code=error.code, text=error.text)
                return
            for seq, output in enumerate(outputs if isinstance(outputs, list) else [outputs]):
                if output is not None:
                    peer.answer(dispatch, *frames_of(output), seq=seq, done=output.is_done)

        workers.append(Worker(serving.address, answer, **{"credits": 1000, **ready}))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()


def embedding(*values):
    return EmbeddingsGenerationOutput(embeddings=np.array([values], np.float32))


def by_length(request):
    """The input's length, for texts and token ids; its sum, for arrays."""
    value = request.input
    return embedding(value.sum() if isinstance(value, np.ndarray) else len(value))


def requests(count):
    return [EmbeddingsRequest(model="m", input="x" * (n + 1)) for n in range(count)]


def values(outputs):
    return [float(output.embeddings[0, 0]) for output in outputs]


# -- map --------------------------------------------------------------------------------------------------------------


def test_map_keeps_the_order(client):
    """Results come in the order of the requests, although each four are answered in the opposite order."""
    waiting = []

    def answer(peer, dispatch, body):
        waiting.append((dispatch, decode_body(body, EmbeddingsRequest)))
        if len(waiting) == 4:
            for one, request in reversed(waiting):
                peer.answer(one, *frames_of(by_length(request)))
            waiting.clear()

    with Worker(client.address, answer, credits=100):
        assert values(client.map(requests(20), max_in_flight=4)) == list(range(1, 21))


def test_map_takes_requests_lazily(client, serve):
    """Nothing is taken before the first result is asked for, and never more than `max_in_flight` ahead."""
    serve(by_length)
    taken = []

    def source():
        for request in requests(50):
            taken.append(request)
            yield request

    results = client.map(source(), max_in_flight=5)
    assert taken == []
    for number, output in enumerate(results):
        assert values([output]) == [number + 1]
        assert len(taken) <= number + 5
    assert len(taken) == 50


def test_map_has_so_many_under_way_and_no_more(client, serve):
    """With nobody answering, exactly `max_in_flight` requests are sent."""
    arrived = threading.Semaphore(0)
    worker = serve(lambda _request: arrived.release())
    results = client.map(requests(100), max_in_flight=7)
    ended = []

    def pull():
        with pytest.raises(errors.RequestCancelled):
            next(results)
        ended.append(True)

    thread = threading.Thread(target=pull, daemon=True)
    thread.start()
    for _ in range(7):
        assert arrived.acquire(timeout=DEADLINE_S)
    assert client.status().live_requests == 7
    assert len(worker.dispatched) == 7
    client.close()
    thread.join(DEADLINE_S)
    assert ended


def test_the_first_error_ends_map_and_cancels_the_rest(client, serve, eventually):
    """The error of a request is raised in its place; what came before is given, what is under way is cancelled."""

    def moody(request):
        number = len(request.input)
        if number == 4:
            raise errors.PipelineError("the fourth")
        return by_length(request) if number < 4 else None

    worker = serve(moody)
    results = client.map(requests(100), max_in_flight=10)
    assert values(next(results) for _ in range(3)) == [1, 2, 3]
    with pytest.raises(errors.PipelineError, match="the fourth"):
        next(results)
    with pytest.raises(StopIteration):
        next(results)
    eventually(lambda: client.status().live_requests == 0, "the rest is cancelled")
    assert len(worker.dispatched) <= 14


def test_a_map_that_is_given_up_cancels_what_is_under_way(client, serve, eventually):
    """Closing the iterator, or leaving its loop, cancels everything that was sent ahead."""
    serve(lambda request: by_length(request) if len(request.input) == 1 else None)
    for output in client.map(requests(100), max_in_flight=10):
        assert values([output]) == [1]
        break
    eventually(lambda: client.status().live_requests == 0, "what was sent ahead is cancelled")
    results = client.map(requests(100), max_in_flight=10)
    next(results)
    results.close()
    eventually(lambda: client.status().live_requests == 0, "what was sent ahead is cancelled")
    assert client.status().outcomes["cancelled"] == 18


def test_a_wait_that_is_broken_off_cancels_too(client, serve, eventually, monkeypatch):
    """Ctrl-C while `map` waits for a result cancels that one with the others."""
    serve(lambda _request: None)
    results = client.map(requests(5), max_in_flight=3)

    def interrupted(_reply, _timeout_s=None):
        raise KeyboardInterrupt

    monkeypatch.setattr("tensoryard.client.reply.Reply.result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(results)
    monkeypatch.undo()
    eventually(lambda: client.status().live_requests == 0, "all are cancelled")
    assert client.status().outcomes == {"cancelled": 3}


def test_an_error_of_the_source_ends_map(client, serve, eventually):
    """When the iterable of requests raises, so does `map`, and nothing is left under way."""
    serve(lambda _request: None)

    def source():
        yield from requests(3)
        raise ZeroDivisionError("the source")

    with pytest.raises(ZeroDivisionError):
        list(client.map(source(), max_in_flight=10))
    eventually(lambda: client.status().live_requests == 0, "all are cancelled")


@pytest.mark.parametrize("max_in_flight", [0, -1])
def test_map_needs_room_for_one(client, max_in_flight):
    """`max_in_flight` below 1 is refused at the call, not at the first result."""
    with pytest.raises(errors.InvalidRequest, match="`max_in_flight` is at least 1"):
        client.map([], max_in_flight=max_in_flight)


def test_map_of_nothing_is_nothing(client):
    """No requests, no results; fewer requests than may be under way are no trouble."""
    assert list(client.map([])) == []


def test_map_passes_deadline_and_priority_on(client, serve):
    """Each request gets the deadline and the priority."""
    worker = serve(by_length)
    list(client.map(requests(3), deadline_s=1000, priority=5))
    assert all(0 < dispatch.deadline_s < 1001 for dispatch in worker.dispatched)
    with pytest.raises(errors.InvalidRequest, match="`priority`"):
        list(client.map(requests(3), priority=5000))


def test_map_shows_a_bar(client, serve, capsys):
    """With `progress`, a bar on stderr counts the results; the results are the same."""
    pytest.importorskip("tqdm")
    serve(by_length)
    assert values(client.map(requests(4), progress=True)) == [1, 2, 3, 4]
    assert "4/4" in capsys.readouterr().err
    assert values(client.map(iter(requests(4)), progress=True)) == [1, 2, 3, 4]
    assert "4request" in capsys.readouterr().err


def test_a_bar_needs_tqdm(client, monkeypatch):
    """Without tqdm, `progress` is an ImportError that says what to install."""
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "tqdm":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "tqdm", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'tensoryard\[progress\]'"):
        client.map(requests(1), progress=True)


# -- embed ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [("four", 4), ([5, 6, 7], 3), (np.ones((2, 3)), 6)],
    ids=["a text", "token ids", "an array"],
)
def test_one_input_gives_the_output_as_it_is(client, serve, inputs, expected):
    """A text, a list of token ids or an array is one request, and its output's array is the result."""
    worker = serve(by_length)
    assert client.embed(inputs, model="m").tolist() == [[expected]]
    assert len(worker.dispatched) == 1


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (["a", "bb", "ccc"], [1, 2, 3]),
        (["alone"], [5]),
        ([[1], [2, 3]], [1, 2]),
        ([np.ones(3), np.ones((2, 2))], [3, 4]),
        (("a", "bb"), [1, 2]),
    ],
    ids=["texts", "one text", "lists of token ids", "arrays", "a tuple"],
)
def test_a_list_is_one_request_each(client, serve, inputs, expected):
    """A list of inputs becomes one request each; outputs of rank 2 are joined along axis 0."""
    worker = serve(by_length)
    assert client.embed(inputs, model="m").tolist() == [[value] for value in expected]
    assert len(worker.dispatched) == len(expected)


def test_outputs_of_rank_1_are_stacked(client, serve):
    """Where the pipeline answers vectors, one input gives a vector and a list a matrix."""
    serve(lambda request: EmbeddingsGenerationOutput(embeddings=np.full(3, len(request.input), np.float32)))
    assert client.embed("ab", model="m").tolist() == [2, 2, 2]
    assert client.embed(["a", "bb"], model="m").tolist() == [[1, 1, 1], [2, 2, 2]]
    assert client.embed(["a"], model="m").shape == (1, 3)


def test_outputs_of_several_rows_are_joined(client, serve):
    """An output of n rows stays n rows."""
    serve(lambda request: EmbeddingsGenerationOutput(embeddings=np.ones((len(request.input), 2), np.float32)))
    assert client.embed(["a", "bbb"], model="m").shape == (4, 2)


def test_options_of_embed_are_the_pipelines(client, serve):
    """Keywords travel as the request's options."""
    seen = []
    serve(lambda request: (seen.append(request.options), by_length(request))[1])
    client.embed("x", model="m", normalise=True)
    client.embed(["x", "y"], model="m", pool="mean")
    assert seen == [{"normalise": True}, {"pool": "mean"}, {"pool": "mean"}]


@pytest.mark.parametrize("inputs", [[], None, 7, ["a", 1], [[]], {"a": 1}])
def test_what_cannot_be_embedded_is_refused(client, inputs):
    """No input, or a mixed list, is an InvalidRequest at once."""
    with pytest.raises(errors.InvalidRequest):
        client.embed(inputs, model="m")


# -- the other verbs --------------------------------------------------------------------------------------------------


def picture(request):
    assert isinstance(request, PixelGenerationRequest)
    prompt = np.full((2, 2), len(request.prompt), np.uint8)
    return GenerationOutput.of_images(request.request_id, [*request.images, prompt])


@pytest.mark.parametrize(
    ("source", "images", "prompt"),
    [("a cat", 0, 5), (np.zeros((4, 4, 3), np.uint8), 1, 0), ([np.zeros((4, 4), np.uint8)] * 2, 2, 0)],
    ids=["a prompt", "an image", "images"],
)
def test_pixels_come_from_a_prompt_or_images(client, serve, source, images, prompt):
    """`generate_pixels` takes a prompt, an image or a list of images."""
    serve(picture, PixelGenerationRequest, task="pixel_generation")
    output = client.generate_pixels(source, model="m")
    assert len(output.images) == images + 1
    assert output.images[-1][0, 0] == prompt


def test_fields_of_pixels_are_the_requests(client, serve):
    """Keywords are fields of PixelGenerationRequest; one it does not have is a TypeError."""
    seen = []
    serve(lambda r: (seen.append((r.height, r.seed)), picture(r))[1], PixelGenerationRequest, task="pixel_generation")
    client.generate_pixels("a cat", model="m", height=64, seed=7)
    assert seen == [(64, 7)]
    with pytest.raises(TypeError, match="colour"):
        client.generate_pixels("a cat", model="m", colour="red")


def speech(request):
    assert isinstance(request, AudioGenerationRequest)
    parts = [GenerationStatus.ACTIVE, GenerationStatus.END_OF_SEQUENCE]
    return [
        AudioGenerationOutput(final_status=status, steps_executed=1, audio_data=np.full(3, number, np.float32))
        for number, status in enumerate(parts if request.streaming else parts[1:])
    ]


def test_speech_comes_whole_or_in_parts(client, serve):
    """`generate_audio` joins the stream; a submitted request can be iterated."""
    serve(speech, AudioGenerationRequest, task="audio_generation")
    assert client.generate_audio("hello", model="m").audio_data.tolist() == [0, 0, 0, 1, 1, 1]
    assert client.generate_audio("hello", model="m", streaming=False).audio_data.tolist() == [0, 0, 0]
    reply = client.submit(AudioGenerationRequest(model="m", input="hello"))
    assert [part.audio_data[0] for part in reply] == [0, 1]


def test_errors_of_the_cluster_come_out_of_the_reply(client, serve):
    """An unknown model, a wrong task and a pipeline's error are raised by `result`, named."""
    serve(lambda _request: (_ for _ in ()).throw(errors.PipelineError("too dark")))
    for request, kind in (
        (EmbeddingsRequest(model="nobody's", input="x"), errors.UnknownModel),
        (PixelGenerationRequest(model="m", prompt="x"), errors.WrongTask),
        (EmbeddingsRequest(model="m", input="x"), errors.PipelineError),
    ):
        reply = client.submit(request)
        with pytest.raises(kind) as raised:
            reply.result(DEADLINE_S)
        assert raised.value.request_id == str(request.request_id)


def test_a_cancelled_request_ends_as_cancelled(client, serve, eventually):
    """`cancel` ends the reply as RequestCancelled, and the worker hears of it."""
    worker = serve(lambda _request: None)
    reply = client.submit(EmbeddingsRequest(model="m", input="x"))
    eventually(lambda: worker.dispatched, "the request runs")
    reply.cancel()
    with pytest.raises(errors.RequestCancelled):
        reply.result(DEADLINE_S)
    eventually(lambda: worker.cancelled, "the worker was told")
    reply.cancel()


def test_a_deadline_ends_a_request(client, serve):
    """A deadline that passes while it runs is DeadlineExpired, also a TimeoutError, and not ReplyTimeout."""
    serve(lambda _request: None)
    reply = client.submit(EmbeddingsRequest(model="m", input="x"), deadline_s=0.05)
    with pytest.raises(errors.DeadlineExpired) as raised:
        reply.result(DEADLINE_S)
    assert isinstance(raised.value, TimeoutError)


def test_too_many_requests_are_overloaded():
    """Over `max_in_flight` of the coordinator a request is Overloaded, with when to try again."""
    settings = Settings(heartbeat_s=0.1, liveness_s=60.0, max_in_flight=3)
    with (
        Serving(settings) as small,
        Worker(small.address, lambda *_: None),
        connect(small.address, settings=CALM) as client,
    ):
        replies = [client.submit(request) for request in requests(4)]
        with pytest.raises(errors.Overloaded) as raised:
            replies[3].result(DEADLINE_S)
        assert raised.value.retry_after_s > 0
        assert [reply.done for reply in replies] == [False, False, False, True]


def test_a_story_can_be_asked_for(client, serve):
    """`story` tells of a request by its RequestID or its text, and is empty for a stranger."""
    serve(by_length)
    reply = client.submit(EmbeddingsRequest(model="m", input="x", request_id=RequestID("r")))
    reply.result(DEADLINE_S)
    assert client.story(RequestID("r")) == client.story("r")
    assert client.story("r")[-1].endswith("finished")
    assert client.story("never") == ()


def test_the_status_tells_of_models(client, serve):
    """`status` is a ClusterStatus with the models and their workers."""
    serve(by_length)
    (model,) = client.status().models
    assert (model.model, model.is_ready) == ("m", True)


@pytest.mark.parametrize("shape", [5, (5,), (2, 3), [2, 3], ()])
def test_empty_is_an_array_to_fill(client, shape):
    """`empty` takes a number or a shape, and gives a writable array of the dtype."""
    array = client.empty(shape, np.int16)
    assert array.shape == ((shape,) if isinstance(shape, int) else tuple(shape))
    assert array.dtype == np.int16
    array[...] = 7
    assert (array == 7).all()
    assert client.empty(3).dtype == np.float32


def test_empty_waits_for_room_and_then_says_so(serving):
    """With the pool full, PoolExhausted after `allocate_timeout_s`; with room again, an array."""
    settings = Settings(heartbeat_s=0.1, liveness_s=60.0, pool_budget_bytes=4 << 20, allocate_timeout_s=0.05)
    with connect(serving.address, settings=settings) as client:
        first = client.empty(3 << 20, np.uint8)
        with pytest.raises(errors.PoolExhausted):
            client.empty(3 << 20, np.uint8)
        del first
        assert client.empty(3 << 20, np.uint8).nbytes == 3 << 20


def test_shutdown_ends_the_cluster(serving):
    """`shutdown` ends the coordinator."""
    with connect(serving.address, settings=CALM) as client:
        client.shutdown()
        serving.join()


def test_a_client_is_a_context_manager(serving):
    """Leaving the block closes it, also after an exception, which goes on."""
    with pytest.raises(ZeroDivisionError), connect(serving.address, settings=CALM) as client:
        raise ZeroDivisionError
    with pytest.raises(errors.NotConnected):
        client.status()


def test_nothing_grows_with_use(serving, client, serve, eventually):
    """After 500 requests, finished, failed and cancelled, nothing of them is left here or in the coordinator."""
    serve(lambda request: by_length(request) if len(request.input) % 3 else None)

    def left():
        gc.collect()
        # Not isinstance, which asks things that warn when they are asked anything.
        return sum(issubclass(type(thing), Reply | Pending) for thing in gc.get_objects())

    before = left()  # of tests that failed, or whose threads are about to end
    replies = [client.submit(request) for request in requests(500)]
    for number, reply in enumerate(replies):
        if (number + 1) % 3 == 0:
            reply.cancel()
    for number, reply in enumerate(replies):
        if (number + 1) % 3:
            reply.result(DEADLINE_S)
        else:
            with pytest.raises(errors.RequestCancelled):
                reply.result(DEADLINE_S)
    client.status()
    del replies, reply
    eventually(lambda: left() <= before, "no reply and no entry is left")
    assert client._connection._conversation.queries == {}
    broker = serving.coordinator.broker
    assert (broker.bodies, broker.router.requests, broker.router.clients) == ({}, {}, {})
    assert (len(broker._dispatcher._pending), len(client._connection._session._outbox)) == (0, 0)


def test_eight_threads_share_a_client(client, serve):
    """8 threads with 200 requests each, texts and shared arrays, through one client: each gets its own answers."""
    serve(by_length)
    failures, done = [], []

    def work(thread):
        try:
            under_way = []
            for number in range(200):
                size = thread * 200 + number
                value = np.full(70_000, number % 7, np.uint8) if number % 10 == 0 else "x" * (size + 1)
                expected = 70_000.0 * (number % 7) if number % 10 == 0 else size + 1.0
                under_way.append((client.submit(EmbeddingsRequest(model="m", input=value)), expected))
                if len(under_way) >= 16:
                    reply, right = under_way.pop(0)
                    assert values([reply.result(DEADLINE_S)]) == [right]
            for reply, right in under_way:
                assert values([reply.result(DEADLINE_S)]) == [right]
            done.append(thread)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(thread,), daemon=True) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * DEADLINE_S)
    assert failures == []
    assert sorted(done) == list(range(8))
    assert client.status().outcomes == {"finished": 1600}
    assert client._connection.pool.statistics().used_blocks == 0
