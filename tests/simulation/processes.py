"""Processes on simulated time: they live, freeze and die, and each has a clock of its own.

`Peer` is the shell of a process with a session at the coordinator, as `links/session.py` is in production: its thread
reads what has come, sends what was posted, and beats. The rest of each process is in `coordinator.py`, `client.py`,
`worker.py` and `fleet.py`.
"""

from __future__ import annotations

from collections import deque

from tensoryard.links.presence import Presence
from tensoryard.proto import wire

from .memory import ATTACH_TIMEOUT_S, Waits, end_tenancies

#: The coordinator sees the processes of this namespace.
NAMESPACE = "pid:[1]"
#: Messages that a session reads before it sends and beats.
_MESSAGES_PER_TURN = 256
#: How soon a thread goes on that was woken, at most, in seconds.
WAKE_S = 0.002
#: How often a thread that waits for a process that does not answer looks again.
_LOOK_S = 0.5


#: What is left of a process in a world that is over; finalizers may ask for it.
_LASTS = {"site", "world", "name", "host", "alive", "frozen", "offset_s", "tenancies"}


class Process:
    """A process: what it asked to be called later is called while it lives, and waits while it is frozen."""

    def __init__(self, site, name, host, *, seen=True):
        self.site = site
        self.world = site.world
        self.name = name
        self.host = host
        #: Whether the coordinator can see it end.
        self.seen = seen
        self.alive = True
        self.frozen = False
        #: A fault has struck it.
        self.struck = False
        #: Its monotonic clock began some time ago; it may leap.
        self.offset_s = self.world.rng.uniform(0, 1e6)
        #: Connections to other processes' pools, as weak references.
        self.tenancies = {}
        self._stalled = []

    def clock(self):
        """Its monotonic seconds."""
        return self.world.now + self.offset_s

    def later(self, delay_s, act, *args):
        """Call `act` after a while, if the process still lives; when it is frozen, after that."""
        self.world.later(delay_s, self._run, act, args)

    def soon(self, act, *args):
        """Call `act` in another thread of this process."""
        self.later(self.world.rng.random() * WAKE_S, act, *args)

    def _run(self, act, args):
        if self.frozen:
            self._stalled.append((act, args))
        elif self.alive:
            self.world.touched.add(self)
            act(*args)

    def freeze(self):
        """SIGSTOP."""
        if self.alive:
            self.frozen = True
            self.world.note("frozen", self.name)

    def thaw(self):
        """SIGCONT: its threads go on in whatever order."""
        if not self.frozen:
            return
        self.frozen = False
        self.world.note("thawed", self.name)
        stalled, self._stalled = self._stalled, []
        for act, args in stalled:
            self.soon(act, *args)

    def kill(self, how="killed"):
        """SIGKILL, or the end of its main thread."""
        if self.alive:
            self.alive = self.frozen = False
            self._stalled.clear()
            self.world.note(how, self.name)
            end_tenancies(self)
            self.ended(killed=how == "killed")

    def ended(self, *, killed):
        """The process has ended."""

    def forget(self):
        """The world is over: let go of all arrays, whose cycles no garbage collector sees."""
        for name in vars(self).keys() - _LASTS:
            delattr(self, name)
        self._stalled = []

    def check_books(self):
        """What must hold in this process after every event; raises Violation."""


class Peer(Process):
    """A process with a session. Subclasses have the callbacks of `Presence`."""

    role = ""
    decoder = None
    #: What it speaks.
    features = wire.FEATURES

    def __init__(self, site, name, host, *, seen=True):
        super().__init__(site, name, host, seen=seen)
        self.outbox = deque()
        self.connection = None
        self.presence = None
        #: When it last heard anything, in simulated time.
        self.heard_at = self.world.now
        #: Seconds that its session takes for each message: a slow reader.
        self.reads_in_s = 0.0
        self._reading = False
        self._flushing = False
        #: Until when the session's thread waits for another process; None when it does not.
        self._waits_until = None

    def join(self):
        """Begin the session."""
        identity = f"{self.name}/{len(self.site.network.connections)}".encode()  # names may be used again
        hello = wire.Hello(
            version=wire.WIRE_VERSION,
            role=self.role,
            name=self.name,
            host=self.host,
            pid=1,
            pid_namespace=NAMESPACE if self.seen else "",
            features=self.features,
        )
        self.presence = Presence(
            hello=hello, decoder=self.decoder, callbacks=self, settings=self.site.plan.settings, at=self.clock()
        )
        self.connection = self.site.network.connect(identity, self, lambda: self.presence.opening(self.clock()))
        self._beat()

    # -- the session's thread -----------------------------------------------------------------------------------------

    def post(self, message, body=()):
        """The session's `post`: from any thread, sent at once where the link lets that, else at its thread's turn."""
        frames = [wire.encode(message), *body]
        if self.connection is not None and self.connection.any_thread:
            self.connection.send(frames)
            return
        self.outbox.append(frames)
        if not self._flushing:
            self._flushing = True
            self.soon(self._flush_soon)

    def _flush_soon(self):
        self._flushing = False
        if self._waits_until is None:
            self._flush()

    def _flush(self):
        while self.outbox:
            self.connection.send(self.outbox.popleft())

    def readable(self):
        """Something has come."""
        if not self.frozen and not self._reading and self._waits_until is None:
            self.world.touched.add(self)
            self._turn()

    def _turn(self):
        """Read what has come, then send. A slow one reads a message at a time."""
        self._reading = True
        inbound = self.connection.inbound
        for _ in range(1 if self.reads_in_s else _MESSAGES_PER_TURN):
            if not inbound or not self._receive(inbound):
                break
        self._reading = False
        if not self.alive or self.frozen or self._waits_until is not None:
            return
        self._flush()
        if inbound:
            self._reading = True
            self.later(self.reads_in_s, self._turn)

    def _receive(self, inbound):
        """Read one message; False when that was the last for now."""
        if isinstance(inbound[0], str):
            inbound.popleft()
            self.connection.hear_end()
            return True
        self.site.tripwires.touch(inbound[0][0], self, "before")
        if not self.alive or self.frozen:
            return False
        frames = inbound.popleft()
        try:
            self._read(frames)
        except Waits:
            inbound.appendleft(frames)
            self._waits_until = self.clock() + ATTACH_TIMEOUT_S
            self.later(_LOOK_S, self._look_again)
            return False
        return self.alive and not self.frozen

    def _read(self, frames):
        self.world.note("read", self.name, frames[0])
        self.heard_at = self.world.now
        self.presence.receive(self.connection, frames, self.clock())
        self.site.tripwires.touch(frames[0], self, "after")

    def _look_again(self):
        """The thread waits for a process that did not answer, though not for ever."""
        inbound, memory = self.connection.inbound, self.site.memory
        memory.impatient = self.clock() >= self._waits_until
        frames = inbound.popleft()
        try:
            self._read(frames)
        except Waits:
            inbound.appendleft(frames)
            self.later(_LOOK_S, self._look_again)
            return
        finally:
            memory.impatient = False
        self._waits_until = None
        if self.alive and not self.frozen:
            self._turn()

    def _beat(self):
        if self._waits_until is not None:
            self.later(_LOOK_S, self._beat)
            return
        self._flush()
        self.presence.beat(self.connection if self.connection.connected else None, self.clock())
        self.later(max(self.presence.next_beat - self.clock(), 0.0), self._beat)

    def thaw(self):
        super().thaw()
        if self.connection is not None:
            self.soon(self.readable)

    def leave(self):
        """The end of the process's own accord: what was posted and a goodbye are sent."""
        if self.connection is not None:
            self._flush()
            self.connection.send([wire.encode(wire.Disconnect())])
        self.kill("ended")

    def ended(self, *, killed):
        if self.connection is not None:
            self.connection.inbound.clear()
            self.connection.peer_went(killed=killed)
            self.site.process_ended(self)
