"""The copy ledger of a reply: how often its bytes were copied, and what crossed a socket, counted and true."""

from __future__ import annotations

import numpy as np
import pytest

from tensoryard.client import CopyLedger, connect
from tensoryard.proto import EmbeddingsGenerationOutput, EmbeddingsRequest, wire
from tensoryard.proto.codec import decode_body, encode_body
from tensoryard.shm import Pool, Reader

from ..scripted import CALM, DEADLINE_S, Serving, Worker

LARGE = 1 << 20


class Scripted:
    """A worker that doubles arrays into its own pool, with a ledger as the real engine writes it."""

    def __init__(self, address, *, in_place):
        self.pool, self.reader, self.in_place = Pool(budget_bytes=64 << 20), Reader(), in_place
        self.worker = Worker(address, self.answer)

    def answer(self, peer, dispatch, body):
        value = decode_body(body, EmbeddingsRequest, resolve=self.reader.open).input
        out = self.pool.empty(value.shape, np.float32) if self.in_place else np.empty(value.shape, np.float32)
        np.multiply(value, 2, out=out)
        encoded = encode_body(EmbeddingsGenerationOutput(embeddings=out), place=self.pool.publish)
        ledger = wire.Ledger(
            request_socket_bytes=len(wire.encode(dispatch)) + sum(memoryview(frame).nbytes for frame in body),
            output_socket_bytes=encoded.socket_bytes,
            output_shared_bytes=encoded.shared_bytes,
            output_copies=encoded.copies,
            wait_s=0.25,
            execute_s=0.5,
            worker="scripted",
        )
        for loan in encoded.loans:
            self.pool.send(loan)
        peer.answer(dispatch, *encoded.frames, ledger=ledger)

    def close(self):
        self.worker.close()
        self.reader.close()
        self.pool.close()


@pytest.fixture
def client():
    with Serving() as serving, connect(serving.address, settings=CALM) as client:
        yield client


@pytest.fixture
def start(client):
    workers = []

    def start(*, in_place=True):
        workers.append(Scripted(client.address, in_place=in_place))

    yield start
    for worker in workers:
        worker.close()


def run(client, value):
    reply = client.submit(EmbeddingsRequest(model="m", input=value))
    assert np.array_equal(reply.result(DEADLINE_S).embeddings, value * np.float32(2))
    return reply.ledger


def test_an_array_of_the_pool_is_never_copied(client, start):
    """`client.empty` in, written in place out: no copy of either array, and only a few bytes on any socket."""
    start(in_place=True)
    value = client.empty((LARGE // 4,), np.float32)
    value[:] = 3
    ledger = run(client, value)
    assert (ledger.copies_in, ledger.copies_out) == (0, 0)
    assert (ledger.shared_bytes_in, ledger.shared_bytes_out) == (LARGE, LARGE)
    assert 0 < ledger.socket_bytes < 5000


def test_a_plain_array_is_copied_once(client, start):
    """An array of the caller's own is copied once into the pool; an output not written in place, once too."""
    start(in_place=False)
    ledger = run(client, np.full(LARGE // 4, 3, np.float32))
    assert (ledger.copies_in, ledger.copies_out) == (1, 1)
    assert (ledger.shared_bytes_in, ledger.shared_bytes_out) == (LARGE, LARGE)


def test_an_array_that_is_not_contiguous_is_copied_once(client, start):
    """Every second element, a transpose, or a view of the pool's memory with gaps: one copy, no more."""
    start()
    base = np.arange(LARGE // 2, dtype=np.float32)
    assert run(client, base[::2]).copies_in == 1
    assert run(client, base.reshape(512, -1).T).copies_in == 1
    lent = client.empty((LARGE // 2,), np.float32)
    lent[:] = base
    assert run(client, lent[::2]).copies_in == 1
    assert run(client, lent[: LARGE // 4]).copies_in == 0


def test_the_same_array_twice_is_copied_once(client):
    """Two mentions of one array in a request are one block."""
    body = encode_body(
        EmbeddingsRequest(model="m", input=[np.zeros(LARGE, np.uint8)] * 2),
        place=lambda array: client._connection._place(array, "r"),
    )
    assert (body.copies, body.shared_bytes) == (1, LARGE)
    body.release()


def test_a_small_array_travels_inside(client, start):
    """Below the threshold nothing is shared and no copy is counted; the bytes cross four sockets."""
    start()
    ledger = run(client, np.full(1000, 3, np.float32))
    assert (ledger.copies_in, ledger.copies_out, ledger.shared_bytes_in, ledger.shared_bytes_out) == (0, 0, 0, 0)
    assert ledger.socket_bytes > 4 * 4000


def test_the_threshold_is_where_it_is_said_to_be(client, start):
    """64 KiB go by handle, one byte less does not."""
    start()
    shared = {size: run(client, np.zeros(size, np.uint8)).shared_bytes_in for size in (65536, 65535)}
    assert shared == {65536: 65536, 65535: 0}


def test_times_and_worker_are_told(client, start):
    """The worker's name and its times are in the ledger; the round trip is ours to measure."""
    start()
    ledger = run(client, np.ones(3, np.float32))
    assert (ledger.worker, ledger.wait_s, ledger.execute_s) == ("scripted", 0.25, 0.5)
    assert ledger.round_trip_s > 0


def test_a_ledger_is_a_value():
    """Ledgers begin empty, compare by value and cannot be changed."""
    assert CopyLedger() == CopyLedger(worker="", copies_in=0, socket_bytes=0)
    with pytest.raises(AttributeError):
        CopyLedger().copies_in = 1
