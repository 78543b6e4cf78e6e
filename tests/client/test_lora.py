"""Adapters from the client's side: what is asked, what counts as an answer, and what is refused before it is asked."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import msgspec
import pytest

from tensoryard import errors
from tensoryard.client import connect, connect_async
from tensoryard.client.lora import load_request
from tensoryard.proto import LoRAStatus, wire

from ..scripted import CALM, Serving, Worker


@pytest.fixture
def serving():
    with Serving() as serving:
        yield serving


@pytest.fixture
def client(serving):
    with connect(serving.address, settings=CALM) as client:
        yield client


def test_a_path_is_the_callers(monkeypatch, tmp_path):
    """Relative ones, and those of a home, are made whole where they are written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert load_request("x", "adapters/x").lora_path == str(tmp_path / "adapters" / "x")
    assert load_request("x", Path("~/x")).lora_path == "/home/somebody/x"
    assert load_request("x", "/y").lora_path == "/y"


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"lora_name": ""}, "lora_name"),
        ({"lora_name": "x" * 257}, "256 characters"),
        ({"lora_path": ""}, "lora_path"),
        ({"lora_path": None}, "lora_path"),
        ({"lora_path": "x" * 5000}, "4096"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": float("nan")}, "timeout_s"),
        ({"timeout_s": True}, "timeout_s"),
    ],
)
def test_what_cannot_be_asked_is_refused_here(client, wrong, named):
    """By the name of the argument."""
    fields = {"lora_name": "x", "lora_path": "/x", "model": "m"} | wrong
    with pytest.raises(errors.InvalidRequest, match=named):
        client.load_lora(**fields)


def test_no_answer_in_time_is_unspecified(client, serving):
    """A worker that never answers: the coordinator says so, with its name."""
    worker = Worker(serving.address, lambda *_: [], model="m", features=["lora"])
    try:
        answer = client.load_lora("x", "/x", model="m", timeout_s=0.2)
        assert answer.status is LoRAStatus.UNSPECIFIED_ERROR
        assert "could not be loaded in time: no answer yet from" in answer.message
    finally:
        worker.close()


def test_w_59_an_older_coordinator_is_not_asked(client):
    """It would refuse the message, and nobody would ever answer."""
    conversation = client._connection._conversation
    conversation.welcome = msgspec.structs.replace(conversation.welcome, features=["windows"])
    answer = client.load_lora("x", "/x", model="m")
    assert answer.status is LoRAStatus.UNSPECIFIED_ERROR
    assert "earlier version" in answer.message
    assert not conversation.queries
    assert "lora" in wire.FEATURES


def test_a_client_that_is_closed_says_so(serving):
    """Nothing was asked."""
    client = connect(serving.address, settings=CALM)
    client.close()
    with pytest.raises(errors.NotConnected):
        client.unload_lora("x")


def test_a_connection_that_ends_meanwhile_is_unspecified(client, serving, eventually):
    """Whether it was done nobody can say."""
    worker = Worker(serving.address, lambda *_: [], model="m", features=["lora"])
    conversation = client._connection._conversation

    answers = []
    thread = threading.Thread(target=lambda: answers.append(client.load_lora("x", "/x", model="m")))
    try:
        thread.start()
        eventually(lambda: conversation.queries, "it has asked")
        client.close()
        thread.join(60)
        (answer,) = answers
        assert answer.status is LoRAStatus.UNSPECIFIED_ERROR
        assert "whether it was done" in answer.message
    finally:
        worker.close()


def test_the_same_to_await(serving):
    """An asynchronous client asks the same."""

    async def ask():
        async with await connect_async(serving.address, settings=CALM) as client:
            loaded = await client.load_lora("x", "/x", model="nobody's")
            return loaded.status, (await client.unload_lora("x")).status

    assert asyncio.run(ask()) == (LoRAStatus.LOAD_ERROR, LoRAStatus.UNLOAD_NAME_NONEXISTENT)
