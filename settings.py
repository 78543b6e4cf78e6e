"""Every setting, with unit, default and reason; the one place that reads the environment.

Components take a `Settings` and never look at the environment themselves. docs/settings.md is generated from here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from .errors import ConfigError

#: Variables of ours that are no settings: each is read by the one function named.
OTHER_VARIABLES = {
    "TENSORYARD_ADDRESS": "where `connect()` looks for the coordinator",
    "TENSORYARD_RUNTIME_DIR": "the folder of sockets and connection files",
    "TENSORYARD_HOST": "this host's identity, where the host name does not tell hosts apart",
    "TENSORYARD_GPU": "0: never look for a GPU",
    "TENSORYARD_FAULT_POINTS": "for tests: the folder of orders to die or freeze at a fault point",
}


def _setting(default: Any, reason: str) -> Any:
    return field(default=default, metadata={"reason": reason})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a process of the cluster behaves. Raises ConfigError, naming the key, for a value out of range."""

    pool_budget_bytes: int | None = _setting(None, "most shared memory of one process; none: an eighth of the machine")
    pool_idle_s: float = _setting(30.0, "a segment nobody uses goes back to the system after this")
    claim_timeout_s: float = _setting(60.0, "a result that its client does not claim within this is dropped")
    threshold_bytes: int | None = _setting(None, "arrays from this size on go by handle; none: measured at start")
    out_of_band_bytes: int | None = _setting(None, "between hosts, as a frame of their own; none: measured at start")
    heartbeat_s: float = _setting(1.0, "how often peers tell each other that they live")
    liveness_s: float = _setting(10.0, "silence after which a peer counts as gone")
    max_frame_bytes: int = _setting(256 << 20, "largest single frame; large arrays should go by handle")
    max_message_bytes: int = _setting(1 << 30, "largest message, all frames together")
    max_in_flight: int = _setting(4096, "requests one client may have live in the coordinator")
    max_in_flight_bytes: int = _setting(4 << 30, "their bytes, shared memory included; one request may always come")
    max_kept_bytes: int = _setting(4 << 30, "messages that a coordinator keeps for live requests; beyond: Overloaded")
    max_clients: int = _setting(4096, "clients connected to one coordinator; more are refused")
    stream_window_parts: int = _setting(256, "outputs of a stream that may be unread; beyond, its worker pauses it")
    stream_window_bytes: int = _setting(64 << 20, "their bytes, shared memory included; one output may always come")
    unread_s: float = _setting(300.0, "a paused stream of which nothing is read for this long ends as expired")
    peer_backlog: int = _setting(10_000, "messages that may wait for a peer that does not read; beyond, it is dropped")
    peer_backlog_bytes: int = _setting(1 << 30, "their bytes, for a peer that has been silent for two heartbeats")
    settle_s: float = _setting(10.0, "how long requests wait for a new coordinator to hear what its fleet serves")
    reconnect_s: float = _setting(15.0, "how long a client waits for a coordinator to come back")
    allocate_timeout_s: float = _setting(5.0, "how long a full pool is waited for before the caller gets PoolExhausted")
    orphan_s: float = _setting(30.0, "a worker that has not heard of a coordinator for this long ends itself")
    drain_s: float = _setting(30.0, "how long workers may take to finish when they are told to leave")

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if value is None and entry.default is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ConfigError(f"setting `{entry.name}` must be a number, not {value!r}")
            if not value > 0 or math.isinf(value):
                raise ConfigError(f"setting `{entry.name}` must be above 0 and finite, not {value!r}")
        if self.liveness_s < 2 * self.heartbeat_s:
            raise ConfigError("setting `liveness_s` must be at least twice `heartbeat_s`, or a late beat ends a peer")


def from_environment(environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from TENSORYARD_<NAME> variables; a bad value or an unknown name is a ConfigError that names it."""
    environ = os.environ if environ is None else environ
    known = {f"TENSORYARD_{entry.name.upper()}": entry for entry in fields(Settings)}
    values: dict[str, Any] = {}
    for key in (key for key in environ if key.startswith("TENSORYARD_") and key not in OTHER_VARIABLES):
        if key not in known:
            raise ConfigError(f"{key} is no setting; known are {', '.join(sorted([*known, *OTHER_VARIABLES]))}")
        values[known[key].name] = _number(key, environ[key], whole="int" in str(known[key].type))
    return Settings(**values)


def _number(key: str, text: str, *, whole: bool) -> float:
    try:
        return int(text) if whole else float(text)
    except ValueError:
        kind = "a whole number" if whole else "a number"
        raise ConfigError(f"{key} must be {kind}, not {text!r}") from None


def settings_table() -> str:
    """The settings as a Markdown table: the content of docs/settings.md."""
    rows = ["| setting | environment | type | default | reason |", "|---|---|---|---|---|"]
    for entry in fields(Settings):
        name = f"TENSORYARD_{entry.name.upper()}"
        type_name = str(entry.type).replace("|", "\\|")
        rows.append(f"| `{entry.name}` | `{name}` | {type_name} | {entry.default} | {entry.metadata['reason']} |")
    return "\n".join(rows) + "\n"
