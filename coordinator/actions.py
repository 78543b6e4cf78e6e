"""What the broker wants done outside: plain data, in the order in which it is to be done.

Made by `broker.py`, carried out by `process.py`, or by whatever else holds a broker.
"""

from __future__ import annotations

import msgspec

from ..proto import wire


class Action(msgspec.Struct, frozen=True, gc=False):
    """Base of actions. `peer`: the identity under which a link knows it."""

    peer: bytes


class Send(Action, frozen=True):
    """Send a message. Where that fails for a peer that the broker `knows`, it wants to hear of it: `peer_gone`."""

    frames: wire.Frames


class Watch(Action, frozen=True, kw_only=True):
    """Say `peer_gone` when this process ends, where it can be seen: on that host, in that PID namespace."""

    pid: int
    host: str
    pid_namespace: str


class Forget(Action, frozen=True):
    """The peer is gone: nothing more that was to be watched or reported of it counts."""
