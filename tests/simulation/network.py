"""Links between peers and their coordinator: what they guarantee, and not more.

A lane carries messages one way, in order, each after some time. What happens to messages beyond that is its link's
doing: `UnixConnection` (`links/seqpacket_peer.py`, `links/seqpacket_hub.py`) breaks with either process or by itself,
and both sides see its end; `ZmqConnection` (`links/zeromq.py`) outlives a coordinator, and nobody sees anything. In a
hostile network messages are lost, doubled and overtake each other besides.
"""

from __future__ import annotations

from collections import Counter, deque

#: Some messages take long: this part of them, up to so many seconds more.
_SLOW_PART = 0.02
_SLOW_S = 0.4
#: Messages may not arrive at one moment, so that their order is never the queue's choice.
_APART_S = 1e-7
#: How long a peer takes to find a hub that listens, at most, in seconds: the longest pause of `SeqpacketPeer`.
_FINDS_IN_S = 0.25
#: What comes at the end of a connection, and at the beginning of one, in place of a message.
_END = "end"
_GREETING = "greeting"


class Lane:
    """Messages one way between two processes. `arrive` takes them at the other end."""

    __slots__ = ("_arrive", "_latest", "_life", "_network", "_queue", "flowing")

    def __init__(self, network, arrive):
        self._network = network
        self._arrive = arrive
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
            self.put(message)

    def put(self, message):
        """The same, for what no network touches."""
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
            lost = drop()
            if not isinstance(lost, str):
                self._network.lost(lost)
        if was_flowing:
            self.flow()


def _kept(frames):
    """Frames that are views of a process's memory are copied, as by a socket."""
    return [frame if isinstance(frame, bytes) else bytes(frame) for frame in frames]


class _Connection:
    """One peer's end of its link, for as long as its process lives, and both lanes. `opening` makes its first word."""

    #: Whether any thread of the peer sends by itself.
    any_thread = False

    def __init__(self, network, identity, peer, opening):
        self.network = network
        self.identity = identity
        self.peer = peer
        self.opening = opening
        self.inbound = deque()
        self.up = Lane(network, self._arrived_at_hub)
        self.down = Lane(network, self._arrived)
        self.partitioned = False

    def _arrived_at_hub(self, frames):
        hub = self.network.hub
        if hub is not None:
            hub.inbound.append((self.identity, frames))
            hub.readable()

    def _arrived(self, frames):
        self.inbound.append(frames)
        self.peer.readable()

    #: Whether the peer knows a hub.
    connected = True

    @property
    def words_to_come(self):
        """Whether the hub is still to read something of this peer."""
        return len(self.up) and self.up.flowing

    def _lose_some_of(self, lane):
        """The youngest of what is under way are lost, however many."""
        lane.lose_last(self.network.world.rng.randint(0, len(lane)))


class ZmqConnection(_Connection):
    """ZeroMQ: what a peer says while nobody listens waits, and nobody is told of an end.

    Lost is with a process that dies what had not left it, and with a coordinator that dies what it had not read.
    Connections break while both processes live, too, and are held up.
    """

    def __init__(self, *args):
        super().__init__(*args)
        #: Whether the coordinator that runs now is reached, which the peer does not know.
        self._reached = False
        #: The process has ended, and the hub's end of the connection knows.
        self.ended = False
        self._adjust()
        self.send(self.opening())

    def send(self, frames):
        """The peer's `PeerLink.send`."""
        self.up.send(_kept(frames))

    @property
    def takes(self):
        """Whether the hub can send."""
        return self._reached and not self.ended

    def _adjust(self):
        """Let the lanes flow or not, as things are."""
        for lane, flows in ((self.up, self._reached), (self.down, True)):
            (lane.flow if flows and not self.partitioned else lane.stop)()

    def hub_came(self):
        """A coordinator listens."""
        self._reached = True
        self._adjust()

    def begin_anew(self):
        """The peer ends the connection, to make another."""
        self.inbound.clear()
        self._break()

    def _break(self):
        """Of what was under way some is lost; the hub is not told; the peer says its first word on the next one."""
        self.network.counts["broken connections"] += 1
        self.peer.struck = True
        if self._reached and not self.partitioned:
            self._lose_some_of(self.up)
        else:
            self.up.lose_last(len(self.up))
        self._lose_some_of(self.down)
        self.send(self.opening())

    def hub_went(self, *, killed):
        """It has ended. If it was killed, some of what it was sent is lost with it, and some of its own never left."""
        if self._reached and killed:
            self.up.lose_first(self.network.world.rng.randint(0, len(self.up)))
            self._lose_some_of(self.down)
        self._reached = False
        self._adjust()

    def peer_went(self, *, killed):
        """The peer's process has ended. Its last words still arrive."""
        if not self._reached:
            self.up.lose_last(len(self.up))
        elif killed:
            self._lose_some_of(self.up)
        self.down.lose_first(len(self.down))
        self.network.world.later(self.network.world.rng.uniform(0, 0.05), self._hear_end)

    def _hear_end(self):
        self.ended = True

    def disturb(self):
        """The connection breaks, which the peer alone sees."""
        if self.peer.frozen:
            return False
        self._break()
        return True

    def cut_off(self):
        """The hub refuses to send, and no more."""

    def hold(self):
        """Nothing gets through, either way, until `release`; then what waited arrives, if it was not too long."""
        self.partitioned = True
        self.peer.struck = True
        self._adjust()
        self.network.world.later(self.network.silence_s, self._fall_silent)
        return True

    def _fall_silent(self):
        """ZeroMQ has asked whether the other side is there, and had no answer: the connection has ended."""
        if self.partitioned and self.peer.alive and not self.peer.frozen:
            self._break()
            self.network.world.later(self.network.silence_s, self._fall_silent)

    def release(self):
        """Let it through again."""
        self.partitioned = False
        self._adjust()


class UnixConnection(_Connection):
    """A UNIX socket, made anew whenever it ended: of each connection a beginning arrives, both ways, then its end.

    A peer that finds a hub drops what it had not sent, and says its first word.
    """

    any_thread = True

    def __init__(self, *args):
        super().__init__(*args)
        #: Whether the socket is whole; whether each side has seen a whole one and not its end.
        self.whole = False
        self.connected = False
        self._hub_sees = False
        #: What the peer has to say and cannot.
        self._waiting = deque()
        self._met = False
        self._look()

    def send(self, frames):
        """The peer's `PeerLink.send`: into a socket that is broken, and not seen to be, it is lost."""
        if self.whole:
            self.up.send(_kept(frames))
        elif not self.connected:
            self._waiting.append(_kept(frames))

    @property
    def takes(self):
        """Whether the hub can send."""
        return self.whole and self._hub_sees

    def _look(self):
        """The peer looks for a hub."""
        if self.peer.frozen:
            self._look_later()
        elif self.peer.alive and not self.connected and self.network.hub is not None:
            self._begin()

    def _look_later(self):
        self.network.world.later(self.network.world.rng.uniform(0.01, _FINDS_IN_S), self._look)

    def _begin(self):
        self.whole = self.connected = True
        if self._met:
            self._waiting.clear()
        self._met = True
        self.up.put(_GREETING)
        self.send(self.opening())
        while self._waiting:
            self.up.send(self._waiting.popleft())

    def _arrived_at_hub(self, frames):
        if frames is _GREETING:
            self._hub_sees = True
        elif frames is _END:
            self._hub_sees = False
            if self.network.hub is not None:
                self.network.hub.disconnected(self.identity)
        else:
            super()._arrived_at_hub(frames)

    def hear_end(self):
        """The peer has read all that came."""
        self.connected = False
        self._look_later()

    def _break(self):
        """The socket ends: of what is under way a beginning arrives, then the end."""
        if self.whole:
            self.network.counts["broken connections"] += 1
            self.peer.struck = True
            self.whole = False
            for lane in (self.up, self.down):
                self._lose_some_of(lane)
                lane.put(_END)

    def hub_came(self):
        """A coordinator listens."""
        self._look()

    def hub_went(self, *, killed):
        """It has ended, and its sockets with it; nobody reads what was still to come."""
        self._break()
        self.up.lose_first(len(self.up))
        self._hub_sees = False

    def peer_went(self, *, killed):
        """The peer's process has ended: killed, some of what it sent never left it."""
        if not killed and self.whole:  # it closed its link, which delivers
            self.whole = False
            self.up.put(_END)
        self._break()
        self.down.lose_first(len(self.down))
        self._waiting.clear()

    def begin_anew(self):
        """The peer ends the connection, to make another."""
        self._break()

    def disturb(self):
        """The socket breaks by itself, or by a rule that somebody broke."""
        self._break()
        return True

    def cut_off(self):
        """Too much waits for this peer."""
        self._break()

    def hold(self):
        """Nothing holds a UNIX socket up."""
        return False


class Network:
    """Every connection of one world. `hub` is the coordinator that runs now, or None."""

    def __init__(self, world, plan):
        self.world = world
        self.latency_s = plan.latency_s
        self.backlog = plan.settings.peer_backlog
        #: Silence after which a connection between hosts has ended.
        self.silence_s = plan.settings.liveness_s
        #: Chance that something happens to a message that no link does.
        self.hostility = plan.hostility
        self.hub = None
        self.connections = {}
        #: What happened to messages, and to connections.
        self.counts = Counter()
        self._unix = plan.unix

    def connect(self, identity, peer, opening):
        """A peer's end of its link; messages wait until there is a coordinator."""
        kind = UnixConnection if self.is_near(peer) else ZmqConnection
        connection = self.connections[identity] = kind(self, identity, peer, opening)
        if self.hub is not None:
            connection.hub_came()
        return connection

    def is_near(self, peer):
        """Whether a peer is linked by a UNIX socket."""
        return self._unix and peer.host == "h1"

    def delay_s(self):
        """How long a message is under way."""
        chance = self.world.rng.random()
        slow_s = _SLOW_S * (1 - chance / _SLOW_PART) if chance < _SLOW_PART else 0.0
        self.counts["sent"] += 1
        self.counts["delayed"] += slow_s > 0
        return self.latency_s * (0.5 + chance) + slow_s

    def fate(self, lane, frames):
        """What becomes of a message: itself, on an honest network."""
        if not self.hostility or self.world.rng.random() >= self.hostility:
            return (frames,)
        fate = self.world.rng.randrange(4)
        if fate == 0:
            self.lost(frames)
            return ()
        self.counts["doubled" if fate == 1 else "overtaken"] += 1
        if fate == 1:
            return (frames, frames)
        lane.overtake(frames)
        return (frames,) if fate == 2 else ()

    def lost(self, frames):
        """For the story."""
        self.counts["lost"] += 1
        self.world.note("dropped", frames[0])

    def send(self, identity, frames):
        """The coordinator's `HubLink.send`."""
        connection = self.connections.get(identity)
        if connection is None or not connection.takes:
            return False
        if len(connection.down) + len(connection.inbound) >= self.backlog:
            connection.cut_off()
            return False
        connection.down.send(_kept(frames))
        return True

    def hub_came(self, hub):
        """A coordinator listens: peers reach it some time soon."""
        self.hub = hub
        for connection in self.connections.values():
            self.world.later(self.world.rng.uniform(0.001, 1.0), self._reach, connection, hub)

    def _reach(self, connection, hub):
        if hub is self.hub and connection.peer.alive:
            connection.hub_came()

    def hub_went(self, *, killed):
        """The coordinator has ended."""
        self.hub = None
        for connection in self.connections.values():
            connection.hub_went(killed=killed)
