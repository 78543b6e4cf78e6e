"""The coordinator's process: the shell around the broker, as `coordinator/process.py` is in production.

Takes turns as that does: messages first, then the dead, then time.
"""

from __future__ import annotations

import math
from collections import deque

from tensoryard.coordinator.actions import Forget, Send, Watch
from tensoryard.coordinator.broker import Broker

from .checks import check
from .processes import NAMESPACE, Process
from .world import Violation

#: Messages taken per turn before timers and dead processes are looked at again.
_MESSAGES_PER_TURN = 256
#: How soon the end of a process is seen, at most, in seconds.
_SEES_IN_S = 0.02


class Coordinator(Process):
    """One life of the coordinator."""

    def __init__(self, site, number):
        super().__init__(site, f"coordinator-{number}", "h1")
        self.broker = Broker(
            name="sim",
            address="sim",
            epoch=f"epoch-{number}",
            host=self.host,
            settings=site.plan.settings,
            at=self.clock(),
            expects_fleet=site.plan.fleet,
        )
        self.inbound = deque()
        self._watched = {}
        self._died = []
        self._unreachable = {}
        self._tick_at = math.inf
        self._reading = False
        self._heard_fleet = not site.plan.fleet
        site.network.hub_came(self)
        self._turn()

    def readable(self):
        """A message has come."""
        if not self.frozen and not self._reading:
            self.world.touched.add(self)
            self._turn()

    def _turn(self):
        self._reading = True
        try:
            drained = self._take_messages()
            if self.alive and not self.frozen:
                if drained and (self._died or self._unreachable):
                    self._bury()
                self.broker.tick(self.clock())
                self._act()
        except Violation:
            raise
        except Exception as error:
            raise Violation(f"the coordinator failed: {error!r}") from error
        finally:
            self._reading = False
        if self.alive and not self.frozen:
            self._wake_in_time()
            if self.broker.finished:
                self._leave()

    def _take_messages(self):
        for _ in range(_MESSAGES_PER_TURN):
            if not self.inbound or not self.alive or self.frozen:
                break
            identity, frames = self.inbound[0]
            if not frames:  # between the last message of a connection that broke and the first of the next
                self.inbound.popleft()
                self._lose(identity, "lost its connection")
                continue
            self.site.tripwires.touch(frames[0], self, "before", identity)
            if not self.alive or self.frozen:
                return False
            self.inbound.popleft()
            self.world.note("read", self.name, frames[0], identity)
            waits = self.broker._room is not None
            self.broker.message(identity, frames, self.clock())
            if waits and self.broker._room is None:  # messages open its doors only when the fleet has spoken
                self._heard_fleet = True
            self._act()
            self.site.tripwires.touch(frames[0], self, "after", identity)
        return not self.inbound

    def _bury(self):
        died, self._died = self._died, []
        unreachable, self._unreachable = self._unreachable, {}
        for peer in died:
            self._lose(peer, "died")
        for peer in unreachable:
            self._lose(peer, "cannot be reached")

    def _lose(self, peer, reason):
        self.world.note("lost", self.name, peer.decode(), reason)
        self.broker.peer_gone(peer, reason, self.clock())

    def _act(self):
        """Do what the broker wants done."""
        if not self._heard_fleet and self.broker._room is None:
            self.site.unheard_fleet = True
        for action in self.broker.take_actions():
            match action:
                case Send(peer, frames):
                    if not self.site.network.send(peer, frames) and self.broker.knows(peer):
                        self._unreachable[peer] = None
                case Watch(peer):
                    sees = action.host == self.host and action.pid_namespace == NAMESPACE
                    if sees and self.site.network.connections[peer].peer.alive:
                        self._watched[peer] = None
                case Forget(peer):
                    self._unreachable.pop(peer, None)
                    self._watched.pop(peer, None)
        if self._unreachable:
            self.soon(self.readable)

    def _wake_in_time(self):
        due = self.broker.next_tick()
        if due < self._tick_at:
            self._tick_at = due
            self.later(max(due - self.clock(), 0.0), self._tick, due)

    def _tick(self, due):
        if due == self._tick_at:
            self._tick_at = math.inf
            self.readable()

    def check_books(self):
        check(self.broker, "the broker's books")

    # -- what happens -------------------------------------------------------------------------------------------------

    def process_ended(self, peer):
        """A process of this host has ended: its descriptor says so, once its last words can be read."""
        if peer.seen and peer.connection is not None:
            self.later(self.world.rng.random() * _SEES_IN_S, self._see_end, peer.connection)

    def _see_end(self, connection):
        if connection.words_to_come:
            self.later(_SEES_IN_S, self._see_end, connection)
        elif connection.identity in self._watched:
            self._died.append(connection.identity)
            self.readable()

    def disconnected(self, identity):
        """The link says that a connection broke."""
        self.inbound.append((identity, []))
        self.readable()

    def _leave(self):
        """A shutdown is complete."""
        self.broker.goodbye()
        self._act()
        self.kill("ended")

    def ended(self, *, killed):
        self.site.network.hub_went(killed=killed)
