"""Outputs that are fetched from other hosts keep their order, and models out of reach are remembered, not for ever."""

from __future__ import annotations

import pytest

from tensoryard import errors
from tensoryard.client import abroad
from tensoryard.client.abroad import UNREACHED_S, Abroad, Parked, Unreached
from tensoryard.proto import wire
from tensoryard.proto.codec import Encoded

from .scene import Scene


def test_a_model_is_out_of_reach_for_a_while():
    """What one worker said holds for its model, for `UNREACHED_S`; then it is tried again."""
    found = Unreached()
    assert not found.knows("m", 0.0)
    found.note("m", 0.0)
    assert found.knows("m", UNREACHED_S - 1)
    assert not found.knows("other", 1.0)
    assert not found.knows("m", UNREACHED_S)


def test_models_out_of_reach_are_bounded(monkeypatch):
    """Beyond the bound those whose time has passed are forgotten, else the newest is not remembered."""
    monkeypatch.setattr(abroad, "_MAX_MODELS", 2)
    found = Unreached()
    for name in "abc":
        found.note(name, 0.0)
    assert [found.knows(name, 1.0) for name in "abc"] == [True, True, False]
    found.note("c", UNREACHED_S)
    assert found.knows("c", UNREACHED_S)
    assert len(found._until) == 1


def test_what_is_parked_comes_in_order():
    """The output that is fetched is first, and what came behind it follows; then nothing waits."""
    parked = Parked()
    one, two = (wire.Partial(request_id="r", seq=seq) for seq in (0, 1))
    assert not parked.waits("r", (one, []))
    parked.park("r", (one, []))
    assert parked.waits("r", (two, []))
    assert not parked.waits("other", (two, []))
    assert [message.seq for message, _ in parked.fetched("r")] == [0, 1]
    assert not parked.fetched("r")
    assert len(parked) == 0


@pytest.fixture
def scene():
    """A conversation whose fetches are collected."""
    fetches = []
    scene = Scene(
        fetch=lambda key, body, _type: fetches.append((key, body[0])),
        as_buffers=lambda body: Encoded(frames=[b"carried", *body.frames]),
    )
    scene.fetches = fetches
    return scene


def test_an_output_from_abroad_holds_up_its_own_request_alone(scene):
    """Parts and the end of one stream wait in order for the first, which is fetched; others are answered meanwhile."""
    reply, other = scene.submit("r"), scene.submit("other")
    scene.faults[b"far"] = Abroad()
    scene.partial(0, b"far")
    scene.partial(1, b"near")
    scene.final(2, b"last")
    scene.final(0, b"quick", "other")
    assert other.result(0) == b"quick"
    assert scene.fetches == [("r", b"far")]
    assert not reply._done
    scene.conversation.fetched("r", b"fetched", scene.at)
    assert list(_parts(reply)) == [b"fetched", b"near", b"last"]
    assert len(scene.conversation.parked) == 0


def test_each_output_from_abroad_is_fetched_in_turn(scene):
    """Of one request one output at a time; an error that came behind ends it after them."""
    reply = scene.submit("r")
    scene.faults |= {b"far0": Abroad(), b"far1": Abroad()}
    scene.partial(0, b"far0")
    scene.partial(1, b"far1")
    scene.error("pipeline_error")
    scene.conversation.fetched("r", b"one", scene.at)
    assert scene.fetches == [("r", b"far0"), ("r", b"far1")]
    assert not reply._done
    scene.conversation.fetched("r", b"two", scene.at)
    assert list(_parts(reply)) == [b"one", b"two", "pipeline_error"]


def _parts(reply):
    try:
        yield from reply
    except errors.TensoryardError as error:
        yield error.code


def test_what_cannot_be_fetched_runs_again_and_comes_in_the_message(scene):
    """OutOfReach: the request is sent again, and says that no porter brings its answer."""
    reply = scene.submit("r")
    scene.take()
    scene.faults[b"far"] = Abroad()
    scene.final(0, b"far")
    scene.conversation.fetched("r", errors.OutOfReach("no porter"), scene.at)
    again = [message for message, _ in scene.posted if isinstance(message, wire.Submit)]
    assert [message.porter for message in again] == [False]
    scene.final(0, b"near")
    assert reply.result(0) == b"near"


def test_what_was_cancelled_meanwhile_is_dropped(scene):
    """An output that comes from abroad for a request that has ended changes nothing, nor one of a closed client."""
    reply = scene.submit("r")
    scene.faults[b"far"] = Abroad()
    scene.final(0, b"far")
    scene.conversation.pending.settle("r")
    scene.conversation.fetched("r", b"late", scene.at)
    assert not reply._done
    scene.submit("s")
    scene.final(0, b"far", "s")
    scene.conversation.close()
    scene.conversation.ended()
    scene.conversation.fetched("s", b"late", scene.at)
    assert len(scene.conversation.parked) == 0


def test_w_51_an_input_out_of_reach_is_sent_along(scene):
    """A worker that cannot reach the memory says so: the same request goes again with its arrays, which frees them."""
    reply = scene.submit("r")
    pending = scene.conversation.pending
    (loan,) = (entry := pending.get("r")).body.loans
    pending.change_body(entry, Encoded(frames=entry.body.frames, loans=[loan], shared_bytes=100))
    before = pending.size_bytes
    scene.take()
    scene.error("out_of_reach")
    [(message, body)] = scene.posted
    assert isinstance(message, wire.Submit)
    assert (message.host, message.shared_bytes, message.uses) == ("", 0, [])
    assert body[0] == b"carried"
    assert loan.released == 2
    assert pending.size_bytes == before - 100 + len(b"carried")
    assert scene.conversation.unreached.knows("m", scene.at)
    scene.final(0, b"last")
    assert reply.result(0) == b"last"
    assert pending.size_bytes == 0


def test_out_of_reach_without_memory_is_an_error_like_any(scene):
    """A request that names no memory cannot be helped by sending it along."""
    reply = scene.submit("r")
    scene.error("out_of_reach")
    with pytest.raises(errors.OutOfReach):
        reply.result(0)
