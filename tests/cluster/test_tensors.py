"""Tensors stay, requests move: what crosses sockets, what is copied, and what a caller may do with an answer."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest

import tensoryard as ty

pytestmark = pytest.mark.process

MIB = 1 << 20
PIPELINES = Path(__file__).with_name("small_pipelines.py")


def _plus_one(client: ty.Client, image: np.ndarray) -> tuple[np.ndarray, ty.CopyLedger]:
    reply = client.submit(ty.PixelGenerationRequest(model="plus-one", images=[image]))
    return reply.result(60).images[0], reply.ledger


@pytest.mark.parametrize("lent", [True, False], ids=["from empty()", "from a plain array"])
def test_64_mib_travel_by_handle(client: ty.Client, lent: bool) -> None:
    """64 MiB go there and back with under 2 KiB through sockets: uncopied from empty(), copied once otherwise.

    The pipeline itself fails the request when it could write to its input.
    """
    image = client.empty((4096, 4096), np.float32) if lent else np.empty((4096, 4096), np.float32)
    image[:] = np.arange(4096, dtype=np.float32)
    answer, ledger = _plus_one(client, image)
    assert np.array_equal(answer, image + 1), "the cluster's answer is not what a local call gives"
    assert not answer.flags.writeable
    assert ledger.shared_bytes_in == ledger.shared_bytes_out == 64 * MIB
    assert ledger.copies_in == (0 if lent else 1)
    assert ledger.copies_out == 0
    assert ledger.socket_bytes < 2048


def test_a_slice_of_empty_travels_uncopied(client: ty.Client) -> None:
    """A contiguous part of a lent array goes by handle too, and only that part."""
    whole = client.empty((8, 512, 512), np.float32)
    whole[:] = np.arange(8, dtype=np.float32)[:, None, None]
    answer, ledger = _plus_one(client, whole[3])
    assert np.array_equal(answer, whole[3] + 1)
    assert (ledger.copies_in, ledger.shared_bytes_in) == (0, MIB)


@pytest.mark.case(6)
def test_answers_live_as_long_as_their_views(client: ty.Client) -> None:
    """An answer stays what it was while any view of it lives, whatever is computed after it."""
    kept = [_plus_one(client, np.full((256, 256, 3), n, np.uint8))[0][10:20] for n in range(40)]
    gc.collect()
    for n in range(60):
        _plus_one(client, np.full((256, 256, 3), 200 - n, np.uint8))
    assert all((view == n + 1).all() for n, view in enumerate(kept))


@pytest.mark.case(6)
def test_an_answer_outlives_its_client(shared_yard: ty.Yard) -> None:
    """A view is readable after the client that received it was closed."""
    with shared_yard.connect() as client:
        answer, _ = _plus_one(client, np.full((512, 512), 7, np.uint8))
    assert (answer == 8).all()


def test_input_memory_comes_back(client: ty.Client) -> None:
    """When the answers have come, no block of the client's pool is in use."""
    for _ in range(20):
        _plus_one(client, np.zeros((512, 512), np.float32))
    assert client._connection.pool.statistics().used_blocks == 0


@pytest.mark.case(9)
def test_output_memory_comes_back() -> None:
    """A worker with a small pool serves many times its size, because answers that were dropped are reused."""
    deployment = ty.Deployment(
        model="tight",
        task=ty.PipelineTask.PIXEL_GENERATION,
        pipeline=f"{PIPELINES}:plus_one",
        pool_budget_bytes=24 * MIB,
    )
    with ty.local([deployment], runtime="process") as yard, yard.connect() as client:
        for n in range(30):
            reply = client.submit(ty.PixelGenerationRequest(model="tight", images=[np.full((2048, 2048), n, np.uint8)]))
            assert (reply.result(60).images[0] == n + 1).all()
            assert (reply.ledger.shared_bytes_out, reply.ledger.copies_out) == (4 * MIB, 0)
            del reply


@pytest.mark.case(30)
@pytest.mark.parametrize("dtype", ["u1", "<i2", ">f4", "<f8", "<c8", "?", "<u8"])
def test_dtypes_come_back_as_they_went(client: ty.Client, dtype: str) -> None:
    """Numeric arrays keep dtype and byte order, by handle and inline."""
    for side in (8, 400):
        image = np.ones((side, side), dtype)
        answer, _ = _plus_one(client, image)
        assert answer.dtype == image.dtype
        assert np.array_equal(answer, (image + 1).astype(dtype))


@pytest.mark.case(30)
def test_non_contiguous_arrays_are_copied_once(client: ty.Client) -> None:
    """A strided view travels as what it shows."""
    image = np.arange(1024 * 1024, dtype=np.float32).reshape(1024, 1024)[::2, ::2]
    answer, ledger = _plus_one(client, image)
    assert np.array_equal(answer, image + 1)
    assert ledger.copies_in == 1
