"""Loading and unloading adapters from a client: the question, and what counts as its answer.

Used by `client.py` and `aio.py`; the coordinator has all workers of the model do it (`coordinator/adapters.py`).
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

from ..errors import InvalidRequest, NotConnected, ReplyTimeout
from ..proto import wire
from ..proto.lora import LoRAOperation, LoRARequest, LoRAResponse, LoRAStatus
from .connection import Connection

#: Beyond the time that the workers are given, how long an answer may be under way, in seconds.
_UNDER_WAY_S = 5.0


def load_request(lora_name: str, lora_path: str | os.PathLike[str]) -> LoRARequest:
    """The request to load; a relative path is the caller's."""
    if not isinstance(lora_path, str | os.PathLike) or not os.fspath(lora_path):
        raise InvalidRequest(f"`lora_path` is the folder of an adapter, not {lora_path!r:.80}")
    return LoRARequest(LoRAOperation.LOAD, lora_name, str(Path(lora_path).expanduser().absolute()))


def change(connection: Connection, request: LoRARequest, *, model: str, timeout_s: float) -> LoRAResponse:
    """Have it done, and wait. What does not come within its time is UNSPECIFIED_ERROR; NotConnected before it began."""
    make = functools.partial(
        wire.Lora,
        operation=request.operation.value,
        lora_name=request.lora_name,
        lora_path=request.lora_path or "",
        model=model,
        timeout_s=_seconds(timeout_s),
    )
    connection.require_open()
    if not connection.speaks("lora"):
        text = f"the coordinator at {connection.address} is of an earlier version, which loads no adapters"
        return LoRAResponse(LoRAStatus.UNSPECIFIED_ERROR, text)
    try:
        response: LoRAResponse = connection.ask(make, LoRAResponse, timeout_s + _UNDER_WAY_S)
    except (ReplyTimeout, NotConnected) as error:
        return LoRAResponse(LoRAStatus.UNSPECIFIED_ERROR, f"{error}; whether it was done, `status` tells")
    return response


def _seconds(timeout_s: float) -> float:
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not 0 < timeout_s <= 1e6:
        raise InvalidRequest(f"`timeout_s` is a number of seconds, not {timeout_s!r:.60}")
    return float(timeout_s)
