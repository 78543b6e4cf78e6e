"""Whether one more request fits: bounds by count and by bytes, of a client, of a model, of the whole coordinator.

Asked by `router.py` before anything else is done for a request, answered from its books (`records.py`). A refusal says
when to come back: when there is likely room for this one, after those that were refused before it.
"""

from __future__ import annotations

from ..errors import Overloaded
from . import events as ev
from .records import Client, Limits, Model


def overload(
    event: ev.RequestArrived, *, model: Model, client: Client, kept_bytes: int, limits: Limits
) -> Overloaded | None:
    """The refusal of a request that does not fit; None when it does.

    Where a bound counts bytes, a request of any size fits when it would be the only one: else it never could.
    """
    weight = event.shared_bytes + event.body_bytes
    over = (
        _over_client(client, weight, limits)
        or _over_coordinator(kept_bytes, event.body_bytes, limits)
        or _over_model(model, weight)
    )
    if over is None:
        return None
    retry_after_s = model.next_room_s(event.at, weight)
    return Overloaded(f"{over}; try again in {retry_after_s:.2f} s", retry_after_s=retry_after_s)


def _over_client(client: Client, weight: int, limits: Limits) -> str | None:
    if len(client.live) >= limits.max_in_flight_per_client:
        return f"this client has {len(client.live)} requests in flight, the most one client may have (max_in_flight)"
    if client.live and client.weight_bytes + weight > limits.max_bytes_per_client:
        return (
            f"this client has {client.weight_bytes} bytes in flight and would have {weight} more; one client may have "
            f"{limits.max_bytes_per_client} (max_in_flight_bytes)"
        )
    return None


def _over_coordinator(kept_bytes: int, body_bytes: int, limits: Limits) -> str | None:
    if kept_bytes and kept_bytes + body_bytes > limits.max_kept_bytes:
        return (
            f"the coordinator keeps {kept_bytes} bytes of messages for live requests, near the most it may "
            f"({limits.max_kept_bytes}, max_kept_bytes); arrays in shared memory do not count"
        )
    return None


def _over_model(model: Model, weight: int) -> str | None:
    if model.waiting >= model.max_queued:
        return f"{model.waiting} requests wait for model {model.name!r}, the most that may (max_queued)"
    if model.waiting and model.queued_bytes + weight > model.max_queued_bytes:
        return f"{model.queued_bytes} bytes wait for model {model.name!r}, near the most that may (max_queued_bytes)"
    return None
