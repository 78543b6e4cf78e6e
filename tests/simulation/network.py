"""Links between peers and their coordinator: what they guarantee, and not more.

A lane carries messages one way, in order, each after some time. It loses messages where a real link does: with a
process that dies, what had not left it; with a coordinator that dies, what it had not read; with a connection that
breaks, some of what was under way, and then the hub is told. What a peer says while nobody listens waits. In a hostile
network messages are lost, doubled and overtake each other besides, and nobody is told.
"""

from __future__ import annotations

from collections import deque

#: Some messages take long: this part of them, up to so many seconds more.
_SLOW_PART = 0.02
_SLOW_S = 0.4
#: Messages may not arrive at one moment, so that their order is never the queue's choice.
_APART_S = 1e-7


class Lane:
    """Messages one way between two processes. `arrive` takes them at the other end."""

    __slots__ = ("_arrive", "_latency_s", "_latest", "_life", "_network", "_queue", "flowing")

    def __init__(self, network, arrive):
        self._network = network
        self._arrive = arrive
        self._latency_s = network.latency_s
        self._queue = deque()
        #: Arrivals that were due before the lane stopped do not count any more.
        self._life = 0
        self._latest = 0.0
        self.flowing = True

    def __len__(self):
        return len(self._queue)

    def send(self, frames):
        """Queue a message."""
        for message in self._network.fate(self, frames):
            self._queue.append(message)
            if self.flowing:
                self._schedule()

    def _schedule(self):
        world = self._network.world
        self._latest = max(world.now + self._network.delay_s(), self._latest + _APART_S)
        world.later(self._latest - world.now, self._come, self._life)

    def _come(self, life):
        if life == self._life:
            self._arrive(self._queue.popleft())

    def overtake(self, frames):
        """Some time, whatever else is under way: not what a link does."""
        self._network.world.later(self._network.delay_s() * 20, self._come_late, frames)

    def _come_late(self, frames):
        if self.flowing:
            self._arrive(frames)

    def stop(self):
        """Nothing arrives until `flow`."""
        if self.flowing:
            self.flowing = False
            self._life += 1

    def flow(self):
        """What waits arrives, in order."""
        if not self.flowing:
            self.flowing = True
            for _ in self._queue:
                self._schedule()

    def lose_first(self, count):
        """The oldest messages under way are lost."""
        self._cut(self._queue.popleft, count)

    def lose_last(self, count):
        """The youngest messages under way are lost."""
        self._cut(self._queue.pop, count)

    def _cut(self, drop, count):
        was_flowing = self.flowing
        self.stop()
        for _ in range(count):
            self._network.lost(drop())
        if was_flowing:
            self.flow()


class Connection:
    """One peer's end of its link, for as long as its process lives, and both lanes."""

    def __init__(self, network, identity, peer):
        self.identity = identity
        self.peer = peer
        self.inbound = deque()
        self.up = Lane(network, lambda frames: network.to_hub(self, frames))
        self.down = Lane(network, self._arrived)
        #: Whether the coordinator that runs now is reached.
        self.connected = False
        self.partitioned = False
        #: The process has ended, and the hub's end of the connection knows.
        self.ended = False
        self.adjust()

    def send(self, frames):
        """The peer's `PeerLink.send`. Frames that are views of its memory are copied, as by a socket."""
        self.up.send([frame if isinstance(frame, bytes) else bytes(frame) for frame in frames])

    def _arrived(self, frames):
        self.inbound.append(frames)
        self.peer.readable()

    def adjust(self):
        """Let the lanes flow or not, as things are."""
        for lane, flows in ((self.up, self.connected), (self.down, True)):
            (lane.flow if flows and not self.partitioned else lane.stop)()


class Network:
    """Every connection of one world. `hub` is the coordinator that runs now, or None."""

    def __init__(self, world, plan):
        self.world = world
        self.latency_s = plan.latency_s
        self.backlog = plan.settings.peer_backlog
        #: Chance that something happens to a message that no link does.
        self.hostility = plan.hostility
        self.hub = None
        self.connections = {}

    def connect(self, identity, peer):
        """A peer's end of its link; messages wait until there is a coordinator."""
        connection = self.connections[identity] = Connection(self, identity, peer)
        self._reach(connection)
        return connection

    def delay_s(self):
        """How long a message is under way."""
        chance = self.world.rng.random()
        slow_s = _SLOW_S * (1 - chance / _SLOW_PART) if chance < _SLOW_PART else 0.0
        return self.latency_s * (0.5 + chance) + slow_s

    def fate(self, lane, frames):
        """What becomes of a message: itself, on an honest network."""
        if not self.hostility or self.world.rng.random() >= self.hostility:
            return (frames,)
        fate = self.world.rng.randrange(4)
        if fate == 0:
            self.lost(frames)
            return ()
        if fate == 1:
            return (frames, frames)
        lane.overtake(frames)
        return (frames,) if fate == 2 else ()

    def lost(self, frames):
        """For the story."""
        self.world.note("dropped", frames[0])

    # -- the hub's end ------------------------------------------------------------------------------------------------

    def send(self, identity, frames):
        """The coordinator's `HubLink.send`."""
        connection = self.connections.get(identity)
        if connection is None or connection.ended or not connection.connected:
            return False
        if len(connection.down) + len(connection.inbound) >= self.backlog:
            return False
        connection.down.send(frames)
        return True

    def to_hub(self, connection, frames):
        """A message has come to the coordinator."""
        if self.hub is not None:
            self.hub.inbound.append((connection.identity, frames))
            self.hub.readable()

    # -- what happens -------------------------------------------------------------------------------------------------

    def hub_came(self, hub):
        """A coordinator listens: peers reach it some time soon."""
        self.hub = hub
        for connection in self.connections.values():
            self.world.later(self.world.rng.uniform(0.001, 1.0), self._reach, connection, hub)

    def _reach(self, connection, hub=None):
        if self.hub is not None and hub in (None, self.hub):
            connection.connected = True
            connection.adjust()

    def hub_went(self):
        """The coordinator has died: of what it was sent some is lost with it, of what it sent some never left."""
        self.hub = None
        for connection in self.connections.values():
            if connection.connected:
                connection.up.lose_first(self.world.rng.randint(0, len(connection.up)))
                connection.down.lose_last(self.world.rng.randint(0, len(connection.down)))
            connection.connected = False
            connection.adjust()

    def hub_left(self):
        """The coordinator has ended of its own accord: what it sent still arrives."""
        self.hub = None
        for connection in self.connections.values():
            connection.connected = False
            connection.adjust()

    def peer_went(self, connection, *, killed):
        """A peer's process has ended: killed, some of what it sent never left it. Its last words still arrive."""
        under_way = len(connection.up)
        if not connection.connected:
            connection.up.lose_last(under_way)
        elif killed:
            connection.up.lose_last(self.world.rng.randint(0, under_way))
        connection.down.lose_first(len(connection.down))
        self.world.later(self.world.rng.uniform(0, 0.05), self._hear_end, connection)

    def _hear_end(self, connection):
        connection.ended = True

    def partition(self, connection):
        """Nothing gets through, either way, until `heal`."""
        connection.partitioned = True
        connection.adjust()

    def heal(self, connection):
        """What waited arrives."""
        connection.partitioned = False
        connection.adjust()

    def reset(self, connection):
        """The connection breaks and is made anew. Some of what was under way is lost, both ways; the hub is told."""
        for lane in (connection.up, connection.down):
            lane.lose_first(self.world.rng.randint(0, len(lane)))
        if self.hub is not None and connection.connected:
            self.hub.disconnected(connection.identity)
