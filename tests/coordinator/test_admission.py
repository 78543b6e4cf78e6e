"""Admission: each bound is named when it is met, with its number, and the next request is told when to come back."""

from __future__ import annotations

import pytest

from tensoryard.coordinator import events as ev
from tensoryard.coordinator.admission import overload
from tensoryard.coordinator.records import Client, Limits, Model

LIMITS = Limits(max_in_flight_per_client=3, max_bytes_per_client=100, max_kept_bytes=200)


def asked(*, live=0, client_bytes=0, kept_bytes=0, waiting=0, queued_bytes=0, shared=0, body=0):
    """What a request is told whose client, model and coordinator have so much already."""
    model = Model(name="m", task="t", deployment="d", max_queued=3, max_queued_bytes=100, queued_bytes=queued_bytes)
    for number in range(waiting):
        model.queue.push(str(number), client="c", priority=0)
    event = ev.RequestArrived(
        at=1.0, client="c", request_id="r", task="t", model="m", shared_bytes=shared, body_bytes=body
    )
    client = Client(live={str(number) for number in range(live)}, weight_bytes=client_bytes)
    return overload(event, model=model, client=client, kept_bytes=kept_bytes, limits=LIMITS)


@pytest.mark.parametrize(
    ("fits", "over", "setting"),
    [
        ({"live": 2}, {"live": 3}, "max_in_flight"),
        ({"live": 1, "client_bytes": 60, "shared": 40}, {"live": 1, "client_bytes": 60, "shared": 41}, "_bytes"),
        ({"kept_bytes": 150, "body": 50}, {"kept_bytes": 150, "body": 51}, "max_kept_bytes"),
        ({"waiting": 2}, {"waiting": 3}, "max_queued"),
        ({"waiting": 1, "queued_bytes": 60, "body": 40}, {"waiting": 1, "queued_bytes": 60, "body": 41}, "_bytes"),
    ],
    ids=["client", "client's bytes", "bodies", "queue", "queue's bytes"],
)
def test_each_bound_is_named(fits, over, setting):
    """What just fits is accepted; one more is refused, by the setting's name, with a time."""
    assert asked(**fits) is None
    refusal = asked(**over)
    assert setting in refusal.text
    assert refusal.retry_after_s == 1.0
    assert refusal.text.endswith("try again in 1.00 s")


@pytest.mark.parametrize("where", [{"client_bytes": 0}, {"kept_bytes": 0}, {"queued_bytes": 0}])
def test_the_only_request_always_fits(where):
    """However large: a bound in bytes keeps requests apart, it does not forbid any."""
    assert asked(shared=10**12, **where) is None
    assert asked(body=10**12, **where) is None


def test_shared_memory_is_no_body():
    """The coordinator keeps bodies only."""
    assert asked(kept_bytes=199, shared=90) is None
