"""What a client refuses by itself, before anything is encoded or copied, because its coordinator would.

Asked by `connection.py`, told by `conversation.py` what was refused. Pure; may be asked from any thread, since each
answer rests on one look at each number.
"""

from __future__ import annotations

from ..errors import Overloaded
from ..proto import wire

#: Models remembered as full; beyond, those that are not full any more are forgotten.
_MAX_MODELS = 1024
#: How long to wait for an answer that makes room here; nobody knows when one comes.
_OWN_ROOM_S = 0.05


class Gate:
    """Times, `at`, are monotonic seconds."""

    def __init__(self) -> None:
        #: By model: until when the coordinator said that there is no room.
        self._full: dict[str, float] = {}

    def close(self, model: str, retry_after_s: float, at: float) -> None:
        """The coordinator has refused a request for this model, until then."""
        if len(self._full) >= _MAX_MODELS:
            self._full = {name: until for name, until in self._full.items() if until > at}
        if len(self._full) < _MAX_MODELS:
            self._full[model] = at + retry_after_s

    def refusal(self, model: str, *, live: int, live_bytes: int, welcome: wire.Welcome, at: float) -> Overloaded | None:
        """Why one more request would be refused, with what this client has under way; None when it may go."""
        if live >= welcome.max_in_flight:
            return Overloaded(
                f"this client has {live} requests in flight, the most one client may have (max_in_flight)",
                retry_after_s=_OWN_ROOM_S,
            )
        if welcome.max_in_flight_bytes and live_bytes >= welcome.max_in_flight_bytes:
            return Overloaded(
                f"this client has {live_bytes} bytes in flight, the most one client may have (max_in_flight_bytes)",
                retry_after_s=_OWN_ROOM_S,
            )
        left_s = self._full.get(model, at) - at
        if left_s <= 0:
            return None
        return Overloaded(
            f"the coordinator said that model {model!r} has no room; try again in {left_s:.2f} s", retry_after_s=left_s
        )
