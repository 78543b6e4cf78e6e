"""The asynchronous client: the same verbs, awaited; nothing that happens to an await happens to the request."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading

import numpy as np
import pytest

from tensoryard import errors
from tensoryard.client import AsyncClient, Client, connect_async
from tensoryard.client.aio import AsyncReply
from tensoryard.proto import (
    AudioGenerationOutput,
    AudioGenerationRequest,
    EmbeddingsGenerationOutput,
    EmbeddingsRequest,
    GenerationOutput,
    GenerationStatus,
    PixelGenerationRequest,
    RequestID,
    wire,
)
from tensoryard.proto.codec import decode_body
from tensoryard.shm import Reader

from ..scripted import CALM, DEADLINE_S, Hub, Worker, frames_of, fresh_address


@pytest.fixture
def serve(serving):
    """Starts a worker that answers each request with what `function(request)` returns, None being silence."""
    reader, workers = Reader(), []

    def start(function, kind=EmbeddingsRequest, **ready):
        def answer(peer, dispatch, body):
            outputs = function(decode_body(body, kind, resolve=reader.open))
            for seq, output in enumerate(outputs if isinstance(outputs, list) else [outputs]):
                if output is not None:
                    peer.answer(dispatch, *frames_of(output), seq=seq, done=output.is_done)

        workers.append(Worker(serving.address, answer, **{"credits": 1000, **ready}))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()
    reader.close()


@pytest.fixture
def run(serving):
    """Runs `scenario(client)` in an event loop, with a deadline; the client is closed."""

    def run(scenario):
        async def main():
            async with await connect_async(serving.address, settings=CALM) as client, asyncio.timeout(DEADLINE_S):
                return await scenario(client)

        return asyncio.run(main())

    return run


def by_length(request):
    value = request.input
    size = value.sum() if isinstance(value, np.ndarray) else len(value)
    return EmbeddingsGenerationOutput(embeddings=np.full((1, 2), size, np.float32))


def text(size, **fields):
    return EmbeddingsRequest(model="m", input="x" * size, **fields)


def value(output):
    return float(output.embeddings[0, 0])


async def soon(condition, what):
    """Poll until a condition, to be awaited, holds."""
    for _ in range(int(DEADLINE_S / 0.005)):
        if await condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"not within {DEADLINE_S:.0f} s: {what}")


# -- the verbs --------------------------------------------------------------------------------------------------------


def test_every_verb_is_there():
    """AsyncClient has every public name of Client, and each of its verbs takes the same arguments."""
    public = [name for name in vars(Client) if not name.startswith("_")]
    assert [name for name in public if not hasattr(AsyncClient, name)] == []
    for name in public:
        sync, awaited = getattr(Client, name), getattr(AsyncClient, name)
        if callable(sync) and name != "map":
            assert list(inspect.signature(sync).parameters) == list(inspect.signature(awaited).parameters), name


def test_submit_and_await(run, serve):
    """A submitted request's reply is awaited; id, done and ledger are those of the request."""
    serve(by_length)

    async def scenario(client):
        reply = await client.submit(text(3, request_id=RequestID("r")), deadline_s=1000, priority=1)
        assert reply.request_id == RequestID("r")
        assert value(await reply.result()) == 3
        assert value(await reply.result(timeout_s=0)) == 3
        assert reply.done
        assert reply.ledger.socket_bytes > 0

    run(scenario)


def test_the_small_verbs(run, serve, serving):
    """embed, empty, status, story and address do what those of the synchronous client do."""
    serve(by_length)

    async def scenario(client):
        assert client.address == serving.address
        assert (await client.embed("four", model="m")).tolist() == [[4, 4]]
        assert (await client.embed([5, 6], model="m")).tolist() == [[2, 2]]
        assert (await client.embed(["a", "bb"], model="m", pool="mean")).tolist() == [[1, 1], [2, 2]]
        array = await client.empty((100_000,), np.uint8)
        array[:] = 1
        reply = await client.submit(EmbeddingsRequest(model="m", input=array, request_id=RequestID("big")))
        assert value(await reply.result()) == 100_000
        assert reply.ledger.copies_in == 0
        assert (await client.story("big"))[-1].endswith("finished")
        assert (await client.status()).outcomes == {"finished": 5}
        with pytest.raises(errors.InvalidRequest):
            await client.embed([], model="m")

    run(scenario)


def test_pixels(run, serve):
    """generate_pixels takes a prompt or images."""
    serve(
        lambda r: GenerationOutput.of_images(r.request_id, [*r.images, np.zeros((2, 2), np.uint8)]),
        PixelGenerationRequest,
        task="pixel_generation",
    )

    async def scenario(client):
        assert len((await client.generate_pixels("a cat", model="m")).images) == 1
        assert len((await client.generate_pixels(np.zeros((3, 3)), model="m", height=3)).images) == 2

    run(scenario)


def parts_of_speech(count):
    def speech(_request):
        return [
            AudioGenerationOutput(
                final_status=GenerationStatus.ACTIVE if n < count - 1 else GenerationStatus.END_OF_SEQUENCE,
                steps_executed=1,
                audio_data=np.full(2, n, np.float32),
            )
            for n in range(count)
        ]

    return speech


def test_audio_comes_whole_or_in_parts(run, serve):
    """generate_audio joins the stream; `async for` gives its parts."""
    serve(parts_of_speech(3), AudioGenerationRequest, task="audio_generation")

    async def scenario(client):
        assert (await client.generate_audio("hello", model="m")).audio_data.tolist() == [0, 0, 1, 1, 2, 2]
        reply = await client.submit(AudioGenerationRequest(model="m", input="hello"))
        assert [part.audio_data[0] async for part in reply] == [0, 1, 2]
        assert [part.audio_data[0] async for part in reply] == [0, 1, 2]

    run(scenario)


def test_shutdown(serving):
    """shutdown ends the cluster."""

    async def main():
        async with await connect_async(serving.address, settings=CALM) as client:
            await client.shutdown()
            await asyncio.to_thread(serving.join)

    asyncio.run(main())


def test_nobody_there():
    """connect_async raises NotConnected as connect does, and does not block the loop meanwhile."""

    async def main():
        turns = 0

        async def count():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        with pytest.raises(errors.NotConnected):
            await connect_async(fresh_address(), timeout_s=0.1, settings=CALM)
        counting.cancel()
        return turns

    assert asyncio.run(main()) > 10


def test_a_closed_client_says_so(serving):
    """After close, verbs raise NotConnected; closing again is harmless."""

    async def main():
        client = await connect_async(serving.address, settings=CALM)
        await client.close()
        await client.close()
        with pytest.raises(errors.NotConnected):
            await client.submit(text(1))

    asyncio.run(main())


# -- many at once -----------------------------------------------------------------------------------------------------


def test_a_hundred_at_once(run, serve):
    """100 requests awaited together get each its own answer."""
    serve(by_length)

    async def one(client, size):
        return value(await (await client.submit(text(size))).result())

    async def scenario(client):
        return await asyncio.gather(*(one(client, size) for size in range(1, 101)))

    assert run(scenario) == list(range(1, 101))


def test_map_keeps_order_and_bound(run, serve):
    """map gives results in order, takes requests lazily, and has no more than `max_in_flight` under way."""
    serve(by_length)
    taken = []

    def source():
        for size in range(1, 31):
            taken.append(size)
            yield text(size)

    async def scenario(client):
        number = 0
        async for output in client.map(source(), max_in_flight=4, priority=1):
            number += 1
            assert value(output) == number
            assert len(taken) <= number + 3
        assert number == 30
        with pytest.raises(errors.InvalidRequest, match="max_in_flight"):
            async for _ in client.map([], max_in_flight=0):
                pass

    run(scenario)


def test_a_map_that_is_given_up_cancels_what_is_under_way(run, serve):
    """Closing the iterator cancels what was sent ahead."""
    serve(lambda request: by_length(request) if len(request.input) == 1 else None)

    async def scenario(client):
        results = client.map((text(size) for size in range(1, 100)), max_in_flight=5)
        assert value(await anext(results)) == 1
        await results.aclose()
        await soon(lambda: _idle(client), "what was sent ahead is cancelled")
        assert (await client.status()).outcomes == {"finished": 1, "cancelled": 4}

    run(scenario)


async def _idle(client):
    return (await client.status()).live_requests == 0


def test_a_cancelled_map_cancels_all(run, serve):
    """Cancelling the task that maps cancels also the request it waits for."""
    worker = serve(lambda _request: None)

    async def scenario(client):
        async def pull():
            async for _ in client.map((text(size) for size in range(1, 100)), max_in_flight=3):
                pass

        task = asyncio.create_task(pull())
        await soon(lambda: _has(worker, 3), "three are under way")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await soon(lambda: _idle(client), "all are cancelled")
        assert (await client.status()).outcomes == {"cancelled": 3}

    run(scenario)


async def _has(worker, count):
    return len(worker.dispatched) == count


# -- awaits and requests ----------------------------------------------------------------------------------------------


def test_cancelling_an_await_does_not_cancel_the_request(run, serve):
    """A cancelled `result()` leaves the request running; it can be awaited again and gives its answer."""
    go = threading.Event()
    serve(lambda request: by_length(request) if go.wait(DEADLINE_S) else None)

    async def scenario(client):
        reply = await client.submit(text(5))
        waiting = asyncio.create_task(reply.result())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not reply.done
        go.set()
        assert value(await reply.result()) == 5

    run(scenario)


def test_a_wait_that_is_too_long_is_a_reply_timeout(run, serve):
    """ReplyTimeout leaves the request running; the deadline of the request itself is DeadlineExpired."""
    go = threading.Event()
    serve(lambda request: by_length(request) if len(request.input) > 1 and go.wait(DEADLINE_S) else None)

    async def scenario(client):
        reply = await client.submit(text(5))
        for timeout_s in (0, 0.01):
            with pytest.raises(errors.ReplyTimeout, match="no answer within"):
                await reply.result(timeout_s=timeout_s)
        go.set()
        assert value(await reply.result()) == 5
        late = await client.submit(text(1), deadline_s=0.05)
        with pytest.raises(errors.DeadlineExpired):
            await late.result(timeout_s=DEADLINE_S)

    run(scenario)


def test_a_cancelled_request_ends_its_awaits(run, serve):
    """`cancel` ends every await of the reply as RequestCancelled."""
    serve(lambda _request: None)

    async def scenario(client):
        reply = await client.submit(text(1))
        waiting = [asyncio.create_task(reply.result()) for _ in range(3)]
        await asyncio.sleep(0)
        reply.cancel()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [errors.RequestCancelled] * 3
        with pytest.raises(errors.RequestCancelled):
            async for _ in reply:
                pass

    run(scenario)


def test_an_outer_timeout_stays_what_it_is(run, serve):
    """`asyncio.timeout` around an await raises TimeoutError of its own, not ReplyTimeout."""
    serve(lambda _request: None)

    async def scenario(client):
        reply = await client.submit(text(1))
        with pytest.raises(TimeoutError) as raised:
            async with asyncio.timeout(0.01):
                await reply.result()
        assert not isinstance(raised.value, errors.ReplyTimeout)

    run(scenario)


def test_many_may_follow_one_stream(run, serve):
    """Five readers of one stream, slow and fast, and an await of the whole, all get every part."""
    steps = [threading.Event() for _ in range(6)]
    outputs = parts_of_speech(6)(None)

    def answer(peer, dispatch, _body):
        for seq, output in enumerate(outputs):
            assert steps[seq].wait(DEADLINE_S)
            peer.answer(dispatch, *frames_of(output), seq=seq, done=output.is_done)

    async def follow(reply, pause):
        seen = []
        async for part in reply:
            seen.append(int(part.audio_data[0]))
            if len(seen) < 6:
                steps[len(seen)].set()
            for _ in range(pause):
                await asyncio.sleep(0.002)
        return seen

    async def scenario(client):
        with Worker(client.address, answer, task="audio_generation"):
            reply = await client.submit(AudioGenerationRequest(model="m", input="hello"))
            following = [asyncio.create_task(follow(reply, pause)) for pause in (0, 0, 1, 3, 7)]
            whole = asyncio.create_task(reply.result())
            steps[0].set()
            assert await asyncio.gather(*following) == [list(range(6))] * 5
            assert (await whole).audio_data.tolist() == [n for n in range(6) for _ in range(2)]

    run(scenario)


def test_no_wakeup_is_lost_between_two_readers(run):
    """A reader that is busy with a part while another clears the signal still sees the end."""
    from tensoryard.client.ledger import CopyLedger
    from tensoryard.client.reply import Reply

    async def scenario(_client):
        plain = Reply(RequestID("r"), lambda _id: None)
        reply = AsyncReply(plain)
        plain.add_output("first", CopyLedger(), done=False)
        slow = aiter(reply)
        assert await anext(slow) == "first"  # and is busy with it, while:
        plain.add_output("last", CopyLedger(), done=True)
        await asyncio.sleep(0)  # the signal is given,
        other = aiter(reply)
        assert await anext(other) == "first"  # cleared by another,
        assert await anext(slow) == "last"  # and not missed
        with pytest.raises(StopAsyncIteration):
            await anext(slow)
        await other.aclose()

    run(scenario)


def test_refused_requests_are_tried_again_by_themselves():
    """With a policy, also while nothing may be sent at all: the loop goes on meanwhile, and nobody waits for ever."""
    refused = []

    def script(hub, peer, message, _body):
        if not isinstance(message, wire.Submit):
            return False
        if message.request_id not in refused:
            refused.append(message.request_id)
            hub.send(
                wire.Error(request_id=message.request_id, code="overloaded", text="x", retry_after_s=0.05), to=peer
            )
        else:
            output = EmbeddingsGenerationOutput(embeddings=np.ones((1, 3), np.float32))
            hub.send(wire.Final(request_id=message.request_id, seq=0), *frames_of(output), to=peer)
        return True

    async def scenario():
        with Hub(script=script) as hub:
            async with await connect_async(hub.address, settings=CALM, retry=True) as client:
                replies = await asyncio.gather(*(client.submit(text(2)) for _ in range(5)))
                assert [value(await reply.result(DEADLINE_S)) for reply in replies] == [1.0] * 5
                assert replies[0].outcome == "finished"
                assert [value(output) async for output in client.map([text(1), text(2)], max_in_flight=1)] == [1.0] * 2
                reply = await client.submit(text(3), retry=False)
                with pytest.raises(errors.Overloaded):
                    await reply.result(DEADLINE_S)

    asyncio.run(scenario())


def test_a_loop_that_is_closed_early_harms_nobody(serving, serve, eventually, caplog):
    """An answer that comes after its event loop has been closed is dropped; the client goes on in another."""
    go = threading.Event()
    serve(lambda request: by_length(request) if len(request.input) > 1 or go.wait(DEADLINE_S) else None)

    async def begin():
        client = await connect_async(serving.address, settings=CALM)
        return client, await client.submit(text(1))

    client, reply = asyncio.run(begin())
    go.set()
    eventually(lambda: reply.done, "the answer has come")

    async def finish():
        assert value(await reply.result()) == 1
        other = await client.submit(text(2))
        assert value(await other.result()) == 2
        await client.close()

    asyncio.run(finish())
    assert caplog.records == []


def test_replies_nobody_awaits_are_collected(run, serve):
    """Replies that are dropped leave nothing under way and no memory held."""
    serve(by_length)

    async def scenario(client):
        for size in range(1, 50):
            await client.submit(EmbeddingsRequest(model="m", input=np.ones(70_000 + size, np.uint8)))
        await soon(lambda: _idle(client), "all are answered")
        gc.collect()
        inner = client._client._connection
        await soon(lambda: asyncio.sleep(0, not len(inner._conversation.pending)), "nothing is under way")
        assert inner.pool.statistics().used_blocks == 0

    run(scenario)
