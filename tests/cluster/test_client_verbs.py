"""The client's verbs against a real cluster, synchronous and asynchronous."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from pathlib import Path

import numpy as np
import pytest

import tensoryard as ty
from tensoryard import errors

pytestmark = pytest.mark.process


def _texts(count: int) -> list[ty.EmbeddingsRequest]:
    return [ty.EmbeddingsRequest(model="moody", input="x" * (n % 7 + 1)) for n in range(count)]


def test_map_keeps_order_and_is_lazy(client: ty.Client) -> None:
    """Results come in the order of the requests, which are taken only as far as they may be under way."""
    taken = 0

    def requests():
        nonlocal taken
        for request in _texts(50):
            taken += 1
            yield request

    results = client.map(requests(), max_in_flight=4)
    assert next(results).embeddings[0, 0] == 1
    assert taken <= 5
    assert [int(result.embeddings[0, 0]) for result in results] == [n % 7 + 1 for n in range(1, 50)]


def test_map_shows_a_bar(client: ty.Client, capsys: pytest.CaptureFixture[str]) -> None:
    """With progress=True a bar counts to the end."""
    assert len(list(client.map(_texts(5), progress=True))) == 5
    assert "5/5" in capsys.readouterr().err


def test_the_first_error_of_a_map_cancels_the_rest(client: ty.Client, tmp_path: Path) -> None:
    """A failing request ends the map, and what was under way does not run on for nobody."""
    never = ty.EmbeddingsRequest(model="moody", input=f"until:{tmp_path / 'never'}")
    bad = ty.EmbeddingsRequest(model="moody", input="fail")
    with pytest.raises(errors.PipelineError):
        list(client.map([bad, never], max_in_flight=2))
    assert (client.embed("four", model="moody") == 4).all()


def test_embed_one_and_many(client: ty.Client) -> None:
    """One input gives the pipeline's array as it is, a list the arrays joined along axis 0."""
    assert client.embed("abc", model="moody").shape == (1, 4)
    many = client.embed(["a", "bb", "ccc"], model="moody")
    assert many[:, 0].tolist() == [1, 2, 3]


def test_pixels_from_an_image_and_from_a_list(client: ty.Client) -> None:
    """generate_pixels takes an image or a list of images."""
    image = np.zeros((4, 4, 3), np.uint8)
    for source in (image, [image]):
        assert (client.generate_pixels(source, model="plus-one").images[0] == 1).all()


def test_a_reply_may_be_waited_for_again(client: ty.Client, tmp_path: Path) -> None:
    """ReplyTimeout ends a wait, not the request."""
    gate = tmp_path / "gate"
    reply = client.submit(ty.EmbeddingsRequest(model="moody", input=f"until:{gate}"))
    with pytest.raises(errors.ReplyTimeout, match="still runs"):
        reply.result(0.05)
    gate.touch()
    assert reply.result(60).embeddings.shape == (1, 4)
    assert [output.embeddings.shape for output in reply] == [(1, 4)]


@pytest.mark.case(21)
def test_one_id_lives_once(client: ty.Client, shared_yard: ty.Yard, tmp_path: Path) -> None:
    """A live RequestID is refused, to the same client at once and to another by the coordinator; then it is free."""
    gate = tmp_path / "gate"
    request = ty.EmbeddingsRequest(model="moody", input=f"until:{gate}")
    reply = client.submit(request)
    with pytest.raises(errors.DuplicateRequest):
        client.submit(request)
    with shared_yard.connect() as other, pytest.raises(errors.DuplicateRequest, match="from another client"):
        other.submit(request).result(60)
    gate.touch()
    reply.result(60)
    client.submit(request).result(60)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"deadline_s": -1}, "deadline_s"),
        ({"deadline_s": float("nan")}, "deadline_s"),
        ({"priority": 5000}, "priority"),
    ],
)
def test_bad_wishes_are_refused(client: ty.Client, how: dict[str, float], told: str) -> None:
    """A deadline or priority out of range is an error that names it."""
    with pytest.raises(errors.InvalidRequest, match=told):
        client.submit(_texts(1)[0], **how)


def test_many_threads_share_a_client(client: ty.Client) -> None:
    """Eight threads, 1,600 requests, one client: each gets its own answers."""

    def work(number: int) -> bool:
        image = np.full((200, 200), number, np.float32)
        replies = [client.submit(ty.PixelGenerationRequest(model="plus-one", images=[image])) for _ in range(200)]
        return all((reply.result(100).images[0] == number + 1).all() for reply in replies)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_closing_ends_what_is_under_way(shared_yard: ty.Yard, tmp_path: Path) -> None:
    """A client that closes fails its replies, submits nothing more, and may be closed again."""
    client = shared_yard.connect()
    reply = client.submit(ty.EmbeddingsRequest(model="moody", input=f"until:{tmp_path / 'never'}"))
    client.close()
    client.close()
    with pytest.raises(errors.RequestCancelled):
        reply.result(60)
    with pytest.raises(errors.NotConnected, match="closed"):
        client.submit(_texts(1)[0])


def test_nobody_there(runtime_folder: Path) -> None:
    """Without a coordinator the error says so and what to do, at once for the local one."""
    with pytest.raises(errors.NotConnected, match="tensoryard up"):
        ty.connect()
    with pytest.raises(errors.NotConnected, match=r"no coordinator answered at ipc://.*within 0\.2 s"):
        ty.connect(f"ipc://{runtime_folder}/nobody.hub", timeout_s=0.2)
    with pytest.raises(errors.TensoryardError, match="no address"):
        ty.connect("nonsense")


def test_a_cluster_that_shuts_down_tells_its_clients(tmp_path: Path) -> None:
    """`shutdown` ends the cluster; what was under way fails at once with an error that may be retried."""
    from .conftest import small_deployments

    with ty.local(small_deployments(replicas=1), runtime="process", settings=ty.Settings(drain_s=1.0)) as yard:
        yard.wait_ready()
        with yard.connect() as client, yard.connect() as other:
            reply = client.submit(ty.EmbeddingsRequest(model="moody", input=f"until:{tmp_path / 'never'}"))
            client.status()
            other.shutdown()
            with pytest.raises((errors.CoordinatorLost, errors.WorkerLost)) as caught:
                reply.result(60)
            assert caught.value.retryable
            yard.wait_ended()


def test_the_asynchronous_client(shared_yard: ty.Yard, tmp_path: Path) -> None:
    """The same verbs, awaited: results, streams, maps, timeouts, cancellation, errors, status."""

    async def main() -> None:
        async with await ty.connect_async(shared_yard.address) as client:
            assert (await client.embed("four", model="moody") == 4).all()
            assert (await client.embed(["a", "bb"], model="moody"))[:, 0].tolist() == [1, 2]
            found = [int(out.embeddings[0, 0]) async for out in client.map(_texts(30), max_in_flight=5)]
            assert found == [n % 7 + 1 for n in range(30)]
            image = await client.empty((300, 300), np.float32)
            image[:] = 1
            assert ((await client.generate_pixels(image, model="plus-one")).images[0] == 2).all()
            replies = [await client.submit(request) for request in _texts(100)]
            outputs = await asyncio.gather(*(reply.result(60) for reply in replies))
            assert len(outputs) == 100
            assert [output.is_done async for output in replies[0]] == [True]
            assert replies[0].ledger.worker.startswith("moody-")
            with pytest.raises(errors.UnknownModel):
                await client.embed("x", model="nobody")
            gate = tmp_path / "gate"
            reply = await client.submit(ty.EmbeddingsRequest(model="moody", input=f"until:{gate}"))
            with pytest.raises(errors.ReplyTimeout):
                await reply.result(0.05)
            waiting = asyncio.ensure_future(reply.result())
            await asyncio.sleep(0)
            waiting.cancel()
            gate.touch()
            assert (await reply.result(60)).embeddings.shape == (1, 4)
            assert reply.done
            cancelled = await client.submit(ty.EmbeddingsRequest(model="moody", input=f"until:{tmp_path / 'never'}"))
            cancelled.cancel()
            with pytest.raises(errors.RequestCancelled):
                await cancelled.result(60)
            with pytest.raises(errors.RequestCancelled):
                async for _ in cancelled:
                    pass
            status = await client.status()
            assert {model.model for model in status.models} == {"moody", "plus-one"}
            assert (await client.story(reply.request_id))[-1].endswith("finished")

    asyncio.run(main())


def test_a_stream_can_be_read_while_it_comes(shared_yard: ty.Yard) -> None:
    """Speech arrives in chunks that together are the whole; both clients see the same."""
    pytest.importorskip("espeakng_loader")
    speech = ty.Deployment(model="espeak", task=ty.PipelineTask.AUDIO_GENERATION, pipeline="espeak")
    text = "One sentence. Another one. And a third."
    with ty.local([speech], runtime="process") as yard, yard.connect() as client:
        chunks = list(client.submit(ty.AudioGenerationRequest(model="espeak", input=text)))
        assert [chunk.is_done for chunk in chunks] == [False, False, True]
        whole = client.generate_audio(text, model="espeak")
        assert np.array_equal(np.concatenate([chunk.audio_data for chunk in chunks]), whole.audio_data)
        assert whole.metadata.duration == pytest.approx(len(whole.audio_data) / whole.metadata.sample_rate)

        async def listen() -> list[int]:
            async with await ty.connect_async(yard.address) as listener:
                reply = await listener.submit(ty.AudioGenerationRequest(model="espeak", input=text))
                joined = await listener.generate_audio(text, model="espeak")
                assert np.array_equal(joined.audio_data, whole.audio_data)
                return [len(chunk.audio_data) async for chunk in reply]

        assert asyncio.run(listen()) == [len(chunk.audio_data) for chunk in chunks]


def test_a_listener_that_raises_harms_nobody(client: ty.Client) -> None:
    """A callback's exception does not end the session it is called from."""
    called = threading.Event()

    def listener() -> None:
        called.set()
        raise RuntimeError("a listener's own trouble")

    client.submit(_texts(1)[0]).add_listener(listener)
    assert called.wait(60)
    assert (client.embed("four", model="moody") == 4).all()
