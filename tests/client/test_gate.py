"""The gate: what the coordinator would refuse is refused here, for no longer than it said."""

from __future__ import annotations

import pytest

from tensoryard.client import gate as module
from tensoryard.client.gate import Gate
from tensoryard.proto import wire

WELCOME = wire.Welcome(
    version=1,
    epoch="e",
    host="h",
    heartbeat_s=1.0,
    liveness_s=10.0,
    max_frame_bytes=1,
    max_message_bytes=1,
    max_in_flight=3,
    max_in_flight_bytes=100,
)


def refusal(gate, model="m", *, live=0, live_bytes=0, welcome=WELCOME, at=10.0):
    return gate.refusal(model, live=live, live_bytes=live_bytes, welcome=welcome, at=at)


@pytest.mark.parametrize(
    ("fits", "over", "setting"),
    [({"live": 2}, {"live": 3}, "max_in_flight"), ({"live_bytes": 99}, {"live_bytes": 100}, "max_in_flight_bytes")],
    ids=["count", "bytes"],
)
def test_what_is_under_way_has_a_bound(fits, over, setting):
    """As the coordinator told it in WELCOME."""
    assert refusal(Gate(), **fits) is None
    error = refusal(Gate(), **over)
    assert setting in error.text
    assert 0 < error.retry_after_s < 1


def test_an_older_coordinator_told_no_bytes():
    """Then none are counted."""
    import msgspec

    assert refusal(Gate(), live_bytes=10**12, welcome=msgspec.structs.replace(WELCOME, max_in_flight_bytes=0)) is None


def test_a_full_model_is_full_until_it_was_said_to_be():
    """The time that is left is told; then requests may go again, and those for other models always may."""
    gate = Gate()
    gate.close("m", 2.0, 10.0)
    error = refusal(gate, at=11.5)
    assert error.retry_after_s == 0.5
    assert "'m' has no room; try again in 0.50 s" in error.text
    assert refusal(gate, "other", at=11.5) is None
    assert refusal(gate, at=12.0) is None


def test_models_are_not_remembered_for_ever(monkeypatch):
    """Those that have room again make way; where none has, the newest is not remembered."""
    monkeypatch.setattr(module, "_MAX_MODELS", 2)
    gate = Gate()
    for number in range(5):
        gate.close(f"m{number}", 1.0, 10.0 * number)
    assert len(gate._full) <= 2
    assert refusal(gate, "m4", at=40.5) is not None
    for number in range(5):
        gate.close(f"n{number}", 100.0, 100.0)
    assert len(gate._full) == 2
