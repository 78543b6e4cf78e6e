"""Client, coordinator and worker in one process on a clock of the test's: every machine is the one in production.

Only the shells are replaced: messages are delivered, lost and delayed as the test says, and time passes when it says.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import math

import numpy as np
import pytest

import tensoryard as ty
from tensoryard import errors
from tensoryard.client.conversation import Conversation as ClientConversation
from tensoryard.client.pending import Pending
from tensoryard.client.reading import Reading
from tensoryard.client.reply import Reply
from tensoryard.coordinator.actions import Send
from tensoryard.coordinator.broker import Broker
from tensoryard.links.calibration import DEFAULT
from tensoryard.links.presence import Presence
from tensoryard.proto import wire
from tensoryard.proto.codec import decode_body, encode_body
from tensoryard.proto.outputs import task_types
from tensoryard.proto.pipeline import Pipeline
from tensoryard.settings import Settings
from tensoryard.shm import Pool
from tensoryard.workers.batcher import Batcher
from tensoryard.workers.conversation import Conversation as WorkerConversation
from tensoryard.workers.engine import Engine
from tensoryard.workers.inbox import Inbox
from tensoryard.workers.intake import Intake

SETTINGS = Settings(heartbeat_s=1.0, liveness_s=5.0, reconnect_s=30.0, orphan_s=30.0, settle_s=0.5)
TASK = ty.PipelineTask.EMBEDDINGS_GENERATION
HOP_S = 0.01
RUN_S = 4.0
WINDOW = 4
AUDIO = ty.PipelineTask.AUDIO_GENERATION


class World:
    """Time, and what is to happen when; a coordinator that may be replaced, and links that never reorder."""

    def __init__(self):
        self.now = 0.0
        self.queue = []
        self.order = itertools.count()
        self.peers = {}
        self.epochs = itertools.count(1)
        self.start_coordinator()

    def later(self, delay_s, act, *args):
        heapq.heappush(self.queue, (self.now + delay_s, next(self.order), functools.partial(act, *args)))

    def run(self, seconds):
        until = self.now + seconds
        while self.queue and self.queue[0][0] <= until:
            self.now, _, act = heapq.heappop(self.queue)
            act()
            if self.broker is not None:
                self.broker.check_invariants()
        self.now = until

    # -- the coordinator's shell

    def start_coordinator(self, *, expects_fleet=False):
        how = {"settings": SETTINGS, "at": self.now, "expects_fleet": expects_fleet}
        epoch = f"e{next(self.epochs)}"
        self.broker = Broker(name="sim", address="sim", epoch=epoch, host="h", **how)
        self.tick_at = math.inf
        self.act()

    def tick(self, broker):
        if broker is self.broker and self.now >= self.tick_at:
            self.tick_at = math.inf
            broker.tick(self.now)
            self.act()

    def act(self):
        """Do what the broker wants done, and see that it is woken when that is due."""
        if self.broker.next_tick() < self.tick_at:
            self.tick_at = self.broker.next_tick()
            self.later(max(self.tick_at - self.now, 0.0), self.tick, self.broker)
        for action in self.broker.take_actions():
            if isinstance(action, Send) and action.peer in self.peers:
                self.later(HOP_S, self.deliver, action.peer, action.frames)

    def to_coordinator(self, peer, frames):
        self.later(HOP_S, self.arrive, peer, frames)

    def arrive(self, peer, frames):
        if self.broker is not None:
            self.broker.message(peer, frames, self.now)
            self.act()

    def deliver(self, peer, frames):
        if peer in self.peers:
            self.peers[peer].receive(frames)

    def kill(self, peer):
        """A process of this host dies, which is seen once its last words have been read."""
        del self.peers[peer]
        self.later(2 * HOP_S, self.bury, peer)

    def bury(self, peer):
        self.broker.peer_gone(peer, "died", self.now)
        self.act()


class Process:
    """What a client and a worker have in common: a presence and its beats. `send` is its end of the link."""

    def __init__(self, world, identity, role, decoder):
        self.world, self.identity = world, identity
        hello = wire.Hello(version=wire.WIRE_VERSION, role=role, name=identity.decode(), host="h")
        self.presence = Presence(hello=hello, decoder=decoder, callbacks=self, settings=SETTINGS, at=world.now)
        world.peers[identity] = self
        self.presence.greet(self, world.now)
        self.beat()

    @property
    def lives(self):
        return self.world.peers.get(self.identity) is self

    def send(self, frames):
        self.world.to_coordinator(self.identity, list(frames))

    def post(self, message, body=()):
        self.send([wire.encode(message), *body])

    def receive(self, frames):
        self.presence.receive(self, frames, self.world.now)

    def beat(self):
        if self.lives:
            self.presence.beat(self, self.world.now)
            self.world.later(self.presence.next_beat - self.world.now, self.beat)


class Client(Process):
    """A client whose callers are the test."""

    def __init__(self, world, identity):
        self.conversation = ClientConversation(address="sim", reconnect_s=30.0, post=self.post, decode=decode_body)
        super().__init__(world, identity, "client", wire.TO_CLIENT)

    def submit(self, text, *, deadline_s=None, task=TASK):
        kind = ty.EmbeddingsRequest if task is TASK else ty.AudioGenerationRequest
        request = kind(request_id=ty.RequestID(), model="m", input=text)
        key = str(request.request_id)
        window = {"window_parts": WINDOW, "window_bytes": 1 << 20}
        entry = Pending(
            reply=Reply(
                request.request_id,
                lambda _: self.conversation.cancel(key),
                consumed=lambda _, parts: self.conversation.consumed(key, parts),
                reading=Reading(parts=WINDOW, size_bytes=1 << 20),
            ),
            submit=wire.Submit(request_id=key, task=task.value, model="m", deadline_s=deadline_s, **window),
            body=encode_body(request),
            output_type=task_types(task).output,
            sent_at=self.world.now,
            deadline=None if deadline_s is None else self.world.now + deadline_s,
        )
        self.conversation.submit(entry, self.presence.silent_s)
        return entry.reply

    def on_welcome(self, welcome):
        self.conversation.welcomed(welcome, self.world.now)

    def on_message(self, message, body):
        self.conversation.message(message, body, self.world.now)

    def on_refused(self, error):
        self.conversation.refused(error)

    def on_beat(self, silent_s):
        self.conversation.beat(silent_s)
        return wire.Heartbeat()


class Length(Pipeline):
    """Answers the length of the text."""

    max_batch_size = 4

    def execute(self, inputs):
        return {
            request_id: ty.EmbeddingsGenerationOutput(embeddings=np.full(3, len(context.texts[0]), np.float32))
            for request_id, context in inputs.batch.items()
        }

    def release(self, request_id):
        pass


class Chunks(Pipeline):
    """Speaks as many chunks as the text asks for, each its own number."""

    max_batch_size = 4

    def execute(self, inputs):
        return {request_id: self._chunk(context) for request_id, context in inputs.batch.items()}

    def _chunk(self, context):
        last = context.chunks_sent == int(context.text) - 1
        status = ty.GenerationStatus.END_OF_SEQUENCE if last else ty.GenerationStatus.ACTIVE
        data = np.full(1, context.chunks_sent, np.float32)
        return ty.AudioGenerationOutput(final_status=status, steps_executed=1, audio_data=data)

    def release(self, request_id):
        pass


class Worker(Process):
    """A worker whose pipeline takes RUN_S of simulated time."""

    def __init__(self, world, identity, pool, task=TASK):
        spawn = functools.partial(world.later, 0.0)

        def clock():
            return world.now

        self.inbox = Inbox(Batcher(max_batch_size=4, max_wait_s=0.0), clock=clock)
        self.intake = Intake(
            inbox=self.inbox, pool=pool, settings=SETTINGS, reject=self.reject, clock=clock, spawn=spawn
        )
        self.conversation = WorkerConversation(
            name=identity.decode(),
            settings=SETTINGS,
            post=self.post,
            requests=self.intake,
            memory=pool,
            leave=self.leave,
            begin_anew=lambda: None,
        )
        pipeline = Length() if task is TASK else Chunks()
        self.intake.begin(pipeline, task)
        self.engine = Engine(
            pipeline=pipeline,
            task=task,
            inbox=self.inbox,
            pool=pool,
            send=self.conversation.send,
            limits=self.conversation,
            settings=SETTINGS,
            threshold_bytes=DEFAULT.handle_bytes,
            worker=identity.decode(),
            clock=clock,
        )
        self.busy = False
        self.stalls = 0
        super().__init__(world, identity, "worker", wire.TO_WORKER)
        ready = wire.Ready(
            model="m", task=task.value, deployment="d", credits=8, hang_limit_s=20.0, features=wire.FEATURES
        )
        self.conversation.ready(ready)

    def work(self):
        """The main thread's turn: begin what is due."""
        batch, wait_s = self.inbox.poll() if self.lives and not self.busy else ([], None)
        if batch:
            self.busy = True
            self.world.later(RUN_S, self.answer, self.engine.execute(batch))
        elif wait_s is not None:
            self.world.later(wait_s, self.work)

    def answer(self, executed):
        if self.lives:
            self.engine.answer(executed)
            self.busy = False
            self.work()

    def reject(self, key, error):
        self.conversation.reject(key, error)

    def leave(self):
        self.inbox.abandon()
        del self.world.peers[self.identity]

    def on_welcome(self, welcome):
        self.conversation.welcomed(welcome)

    def on_message(self, message, body):
        self.conversation.message(message, body)
        self.work()

    def on_refused(self, error):
        self.conversation.refused(error)

    def on_beat(self, silent_s):
        self.intake.housekeep()
        self.conversation.beat(silent_s, self.world.now)
        self.stalls += self.inbox.is_stalled
        return wire.Heartbeat(progress=self.engine.progress + self.stalls, busy=bool(self.inbox.held()))


@pytest.fixture
def world():
    return World()


@pytest.fixture
def client(world):
    return Client(world, b"client")


@pytest.fixture
def make_worker(world):
    with Pool(budget_bytes=1 << 20) as pool:
        workers = []

        def make(name, task=TASK):
            workers.append(Worker(world, name, pool, task))
            return workers[-1]

        yield make
        for worker in workers:
            worker.intake.close()


def length(reply):
    """The answer, which has come."""
    assert reply.done
    return reply.result(0).embeddings[0]


def test_a_request_takes_as_long_as_its_pipeline(world, client, make_worker):
    """There and back in four hops and the pipeline's time, to the hundredth of a second."""
    make_worker(b"w")
    world.run(1.0)
    reply = client.submit("four")
    world.run(RUN_S + 4 * HOP_S - 1e-6)
    assert not reply.done
    world.run(2e-6)
    assert length(reply) == 4.0
    assert reply.ledger.round_trip_s == pytest.approx(RUN_S + 4 * HOP_S)


def test_a_worker_that_dies_costs_no_answer(world, client, make_worker):
    """Its requests run on another; the client hears one answer."""
    make_worker(b"w1")
    world.run(0.5)
    make_worker(b"w2")
    world.run(0.5)
    replies = [client.submit("x" * number) for number in range(5)]
    world.run(1.0)
    world.kill(b"w1")
    world.run(20.0)
    assert [length(reply) for reply in replies] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert world.broker.router.outcomes == {"finished": 5}


def test_a_coordinator_that_dies_costs_no_answer(world, client, make_worker):
    """The worker goes on, says what it holds, the client sends again what is unanswered: nothing runs twice."""
    worker = make_worker(b"w")
    world.run(1.0)
    replies = [client.submit("x" * number) for number in range(3)]
    world.run(0.5)
    world.broker = None
    world.run(0.5)
    world.start_coordinator(expects_fleet=True)
    world.run(10.0)
    assert [length(reply) for reply in replies] == [0.0, 1.0, 2.0]
    assert worker.engine.progress <= 2 * 2, "a batch ran twice"


def test_a_silent_network_ends_in_words(world, client, make_worker):
    """When no coordinator comes back, the client says so after `reconnect_s`, and the worker ends itself."""
    worker = make_worker(b"w")
    world.run(1.0)
    reply = client.submit("x")
    world.broker = None
    world.run(100.0)
    with pytest.raises(errors.CoordinatorLost):
        reply.result(0)
    assert worker.conversation.orphaned
    assert not worker.lives


def test_a_deadline_passes_on_simulated_time(world, client, make_worker):
    """A request that takes longer than it may is answered `expired` when its time is up."""
    make_worker(b"w")
    world.run(1.0)
    reply = client.submit("x", deadline_s=0.5)
    world.run(0.5 + 3 * HOP_S)
    with pytest.raises(errors.DeadlineExpired):
        reply.result(0)
    world.run(10.0)
    assert world.broker.router.outcomes == {"expired": 1}


def chunks(reply, start, count):
    """The next parts of a stream, which have come."""
    outputs = []
    for position in range(start, start + count):
        outputs += reply.outputs_from(position, 1)[0]
    return [int(output.audio_data[0]) for output in outputs]


def test_a_stream_pauses_while_nobody_reads(world, client, make_worker):
    """Its worker goes no further than the window, is not taken for hung, and goes on when it is read."""
    worker = make_worker(b"w", AUDIO)
    world.run(1.0)
    reply = client.submit("20", task=AUDIO)
    world.run(200.0)
    assert reply._reading.came == WINDOW
    assert worker.lives
    assert worker.engine.progress == 2 * WINDOW
    seen = []
    while len(seen) < 20:
        seen += chunks(reply, len(seen), WINDOW)
        world.run(2 * WINDOW * RUN_S)
    assert seen == list(range(20))
    assert reply.done


@pytest.mark.parametrize("who", ["worker", "coordinator"])
def test_a_stream_that_pauses_survives_a_death(world, client, make_worker, who):
    """The next worker runs it from its start, no further than its reader; he sees each part once."""
    make_worker(b"w1", AUDIO)
    world.run(1.0)
    reply = client.submit("20", task=AUDIO)
    world.run(50.0)
    seen = chunks(reply, 0, 3)
    world.run(50.0)
    assert reply._reading.came == 3 + WINDOW
    if who == "worker":
        make_worker(b"w2", AUDIO)
        world.run(1.0)
        world.kill(b"w1")
    else:
        world.broker = None
        world.run(1.0)
        world.start_coordinator(expects_fleet=True)
    for _ in range(20):
        seen += chunks(reply, len(seen), 1)
        world.run(100.0)
        assert reply._reading.came <= len(seen) + 2 * WINDOW
    assert seen == list(range(20))
    assert reply.done
    assert not world.broker.router.requests
