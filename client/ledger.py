"""The copy ledger: what became of a request's bytes on their way.

Put together by `reply.py` from what this side sent and what the worker tells (`wire.Ledger`).
"""

from __future__ import annotations

import msgspec


class CopyLedger(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One request's bytes, copies and times; complete once its reply is.

    `copies_in` and `copies_out` count copies of whole arrays at or over the threshold, made to get them into shared
    memory or into a message. `socket_bytes` adds up what crossed a socket on all four hops: client to coordinator,
    coordinator to worker, and back.
    """

    worker: str = ""
    shared_bytes_in: int = 0
    shared_bytes_out: int = 0
    copies_in: int = 0
    copies_out: int = 0
    socket_bytes: int = 0
    #: Seconds: waiting for a batch in the worker, in `execute`, and from submit to the last output.
    wait_s: float = 0.0
    execute_s: float = 0.0
    round_trip_s: float = 0.0
