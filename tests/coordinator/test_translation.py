"""Nothing is lost between messages and events, or between effects and messages."""

from __future__ import annotations

import pytest

from tensoryard.coordinator import events as ev
from tensoryard.coordinator import translation
from tensoryard.errors import DecodeError, Overloaded
from tensoryard.proto import wire

WINDOW = {"window_parts": 4, "window_bytes": 5, "consumed": 6}
SUBMIT = wire.Submit(
    request_id="r", task="t", model="m", priority=3, deadline_s=2.5, host="h", shared_bytes=7, **WINDOW, submission=8
)
READY = wire.Ready(
    model="m",
    task="t",
    deployment="d",
    credits=5,
    hang_limit_s=6.0,
    max_queued=7,
    max_queued_bytes=8,
    running=[wire.Running(request_id="r", attempt=9, submission=8, sent=5, cancelled=True)],
    features=["lora"],
    adapters=[wire.LoadedAdapter(lora_name="x", lora_path="/x")],
)
OUTPUT = wire.Output(request_id="r", attempt=4, seq=5, done=True, frames=1, code="c", text="x")
EXPECTED = wire.Expected(
    deployment="d", model="m", task="t", replicas=2, unhealthy="u", max_queued=3, max_queued_bytes=4, pending="p"
)


def shared_fields(one, other):
    """The fields of both, where they have the same name."""
    names = [name for name in one.__struct_fields__ if name in other.__struct_fields__]
    return [(name, getattr(one, name), getattr(other, name)) for name in names]


@pytest.mark.parametrize(
    ("message", "event", "names"),
    [
        (SUBMIT, translation.request_arrived("c", SUBMIT, [b"ab", b"c"], 1.0), 11),
        (READY, translation.worker_readied("w", READY, 1.0), 9),
        (OUTPUT, translation.output_arrived("w", OUTPUT, 1.0), 6),
        (EXPECTED, translation.deployments_changed(wire.Deployments(deployments=[EXPECTED]), 1.0).deployments[0], 8),
    ],
    ids=["SUBMIT", "READY", "an output", "an expected deployment"],
)
def test_events_say_what_the_messages_say(message, event, names):
    """Each field of a message that its event has, by name, is the message's."""
    shared = shared_fields(message, event)
    assert len(shared) == names
    for name, said, heard in shared:
        assert heard == {"running": (("r", 9),), "adapters": (("x", "/x"),)}.get(name, said)


def test_events_say_who_and_when():
    """The sender's name and the time are those given; a body is weighed, not kept."""
    request = translation.request_arrived("c", SUBMIT, [b"ab", memoryview(b"cde")], 1.0)
    assert (request.client, request.at, request.body_bytes) == ("c", 1.0, 5)
    assert translation.worker_readied("w", READY, 2.0).worker == "w"
    assert translation.worker_readied("w", READY, 2.0).submissions == (8,)
    assert translation.worker_readied("w", READY, 2.0).sent == (5,)
    assert translation.worker_readied("w", READY, 2.0).cancelled == (True,)
    assert translation.output_arrived("w", OUTPUT, 3.0).at == 3.0


def test_messages_say_what_the_effects_say():
    """Each effect becomes the message of its kind, with its fields."""
    key = {"request_id": "r", "attempt": 2}
    pairs = [
        (ev.SendConsumed(worker="w", parts=3, **key), wire.Consumed(parts=3, **key)),
        (ev.SendCancel(worker="w", **key), wire.CancelWork(**key)),
        (ev.SendDiscard(worker="w", seq=3, **key), wire.Discard(seq=3, **key)),
        (ev.SendDrain(worker="w"), wire.Drain()),
    ]
    for effect, message in pairs:
        assert translation.word_to_worker(effect) == message
    request = ev.SendRequest(worker="w", deadline_s=1.5, **key, **WINDOW)
    assert translation.request_message(request) == wire.Dispatch(deadline_s=1.5, **key, **WINDOW)
    told = {"request_id": "r", "code": "x", "text": "y", "retry_after_s": 0.5, "outcome": "failed"}
    error = ev.SendError(client="c", story=("a", "b"), **told)
    told = wire.Error(story=["a", "b"], **told)
    assert translation.error_message(error) == told
    note = {"worker": "w", "deployment": "d", "what": "gone", "text": "t"}
    assert translation.notice(ev.NotifyFleet(**note)) == wire.WorkerNotice(**note)


@pytest.mark.parametrize(("done", "kind"), [(False, wire.Partial), (True, wire.Final)])
def test_an_output_is_partial_or_final(done, kind):
    """FINAL for the last output, PARTIAL for the others, with the worker's ledger."""
    ledger = wire.Ledger(worker="w")
    effect = ev.SendOutput(client="c", request_id="r", seq=4, done=done)
    assert translation.output_message(effect, ledger) == kind(request_id="r", seq=4, ledger=ledger)


def test_what_cannot_be_passed_on_becomes_an_error():
    """Each output keeps whose it is, loses its frames and is not done; it says why."""
    (failed,) = translation.as_errors([OUTPUT], DecodeError("broken"))
    assert (failed.request_id, failed.attempt, failed.seq) == ("r", 4, 5)
    assert (failed.done, failed.frames, failed.code, failed.text) == (False, 0, DecodeError.code, "broken")


def test_an_error_tells_when_to_try_again():
    """`retry_after_s` travels where an error has one."""
    told = translation.error_of(Overloaded("full", retry_after_s=2.0), "r", 8)
    assert told == wire.Error(
        request_id="r", code="overloaded", text="full", retry_after_s=2.0, outcome="rejected", submission=8
    )
    assert translation.error_of(DecodeError("x"), "r", 0).retry_after_s == 0.0
