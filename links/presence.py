"""How a peer stays known to its coordinator: hello, beats, hello again; a pure machine.

`session.py` is the shell around it, with the link, the clock and the thread. It reads the messages that keep a session
alive and hands on all others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from ..errors import ProtocolError, TensoryardError, from_wire
from ..logs import logger
from ..proto import wire
from ..settings import Settings

log = logger(__name__)

#: While nobody answers, only every so many heartbeats is sent, so that what is queued stays small.
_LOST_BEAT_FACTOR = 5
#: What keeps a session alive, and is nobody else's business.
_OF_SESSION = frozenset({wire.Welcome, wire.Rejoin, wire.Refused, wire.Heartbeat})


class Callbacks(Protocol):
    """What a session tells its owner, in the thread that serves it. None of these may wait for anything."""

    def on_welcome(self, welcome: wire.Welcome) -> None:
        """The coordinator knows us: for the first time, again, or a new one."""

    def on_message(self, message: Any, body: wire.Frames) -> None:
        """Any other message."""

    def on_refused(self, error: TensoryardError) -> None:
        """The coordinator did not understand, or does not admit us."""

    def on_beat(self, silent_s: float) -> wire.Heartbeat:
        """About once a heartbeat: for how many seconds the coordinator has been silent. Returns what to send."""

    def on_failure(self, error: Exception) -> None:
        """The session's thread ends: the address is none (ConfigError), or there is a bug of ours."""


class Sender(Protocol):
    """A peer's end of a link, as far as it is needed here."""

    def send(self, frames: Sequence[Any]) -> None:
        """Queue a message, behind none that its owner posted and that has not left yet."""


class Presence:
    """One peer's standing with the coordinator, whichever that is at the time. Times, `at`, are monotonic seconds."""

    def __init__(self, *, hello: wire.Hello, decoder: Any, callbacks: Callbacks, settings: Settings, at: float) -> None:
        #: What was said last, or will be first.
        self._hello = hello
        self._decoder = decoder
        self._callbacks = callbacks
        self._settings = settings
        #: When the HELLO that has no answer yet was sent; minus infinity when none is due.
        self._asked_at = -math.inf
        #: How many HELLO have been said: what is posted after the last of them comes after it.
        self.hellos = 0
        #: There was a connection before the next one.
        self._connected = False
        #: Seconds, up to the last beat, in which we listened and heard nothing. Time in which we did not listen, since
        #: this process was stopped, is not held against the coordinator.
        self.silent_s = 0.0
        self._heard = True
        #: When `beat` is due.
        self.next_beat = at
        self._last_beat = at

    def opening(self, at: float) -> wire.Frames:
        """HELLO: the first word to a coordinator, also to one that took another's place, before all that waits."""
        self._asked_at = at
        if self._connected:
            self._hello = msgspec.structs.replace(self._hello, connection=self._hello.connection + 1)
        self._connected = True
        self.hellos += 1
        return [wire.encode(self._hello)]

    def greet(self, link: Sender, at: float) -> None:
        """Ask to be let in, unless an answer to that is still due."""
        if at - self._asked_at >= self._settings.heartbeat_s:
            self._asked_at = at
            link.send([wire.encode(self._hello)])
            self.hellos += 1  # not before: another thread may post meanwhile

    def beat(self, link: Sender | None, at: float) -> None:
        """A beat is due: count the silence, tell the owner, and send what it says, if there is a link."""
        planned_s = self.next_beat - self._last_beat
        if not self._heard:
            self.silent_s += planned_s
        self._heard = False
        beat = self._callbacks.on_beat(self.silent_s)
        if link is not None:
            link.send([wire.encode(beat)])
        lost = self.silent_s > self._settings.liveness_s
        self._last_beat = at
        self.next_beat = at + self._settings.heartbeat_s * (_LOST_BEAT_FACTOR if lost else 1)

    def receive(self, link: Sender, frames: wire.Frames, at: float) -> None:
        """A message has come; one that cannot be read is dropped."""
        self._heard = True
        self.silent_s = 0.0
        try:
            message = wire.decode(self._decoder, frames[0] if frames else b"")
        except ProtocolError as error:
            log.warning("a message from the coordinator was dropped: %s", error)
            return
        if type(message) not in _OF_SESSION:  # by far the most
            self._callbacks.on_message(message, frames[1:])
            return
        match message:
            case wire.Welcome():
                self._asked_at = -math.inf
                self._callbacks.on_welcome(message)
            case wire.Rejoin():
                self.greet(link, at)
            case wire.Refused():
                self._callbacks.on_refused(from_wire(message.code, message.text))
            case wire.Heartbeat():
                pass
