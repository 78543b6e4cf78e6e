"""A worker's process: the shell around `workers/conversation.py`, as `workers/link.py` and `workers/main.py` are.

The session's thread takes requests in; the main thread runs batches, which takes simulated time, and ends the process.
"""

from __future__ import annotations

from tensoryard.proto import wire
from tensoryard.workers.batcher import Batcher
from tensoryard.workers.conversation import EXIT_DRAINED, Conversation
from tensoryard.workers.engine import Engine
from tensoryard.workers.inbox import Inbox
from tensoryard.workers.intake import Intake

from .checks import check
from .memory import ATTACH_TIMEOUT_S
from .pipeline import Echo
from .plan import THRESHOLD_BYTES
from .processes import Peer

#: How long a process takes to begin, and its pipeline to load, at most, in seconds.
_BEGINS_IN_S = 0.2
_LOADS_IN_S = 0.5
#: As in `workers/main.py` and `workers/link.py`.
_CLAIM_GRACE_S = 5.0
_CLAIM_POLL_S = 0.1
_GRACE_S = 5.0
#: How often a thread that reads a client's memory looks whether the client answers, in seconds.
_LOOK_S = 0.5


class Worker(Peer):
    """One worker. `on_end` hears how it ended."""

    role = "worker"
    decoder = wire.TO_WORKER

    def __init__(self, site, name, serves, host, on_end):
        super().__init__(site, name, host, seen=site.world.rng.random() < 0.9)
        settings = site.plan.settings
        self.serves = serves
        self._on_end = on_end
        self.pool = site.memory.make_pool(self, budget_bytes=serves.pool_segments * 3 * 4096, settings=settings)
        self._batcher = Batcher(
            max_batch_size=1, max_wait_s=serves.deployment.max_wait_ms / 1000, unread_s=settings.unread_s
        )
        self.inbox = Inbox(self._batcher, clock=self.clock)
        self.intake = Intake(
            inbox=self.inbox,
            pool=self.pool,
            settings=settings,
            reject=self._reject,
            reader=site.memory.make_reader(self),
            clock=self.clock,
            spawn=self._spawn,
        )
        self.conversation = Conversation(
            name=name,
            settings=settings,
            post=self.post,
            requests=self.intake,
            memory=self.pool,
            leave=self._leave,
            begin_anew=self._begin_anew,
            fences=not site.network.is_near(self),
        )
        self.pipeline = None
        self.engine = None
        self.busy = False
        self._nudged = False
        #: Beats at which all work paused for its readers.
        self._stalls = 0
        #: Until when the last results may be claimed, at the end.
        self._claim_by = None
        self.later(self.world.rng.random() * _BEGINS_IN_S, self._begin)

    def _begin(self):
        self.join()
        self.later(self.world.rng.random() * _LOADS_IN_S, self._load)

    def _load(self):
        """The main thread makes the pipeline."""
        deployment, site = self.serves.deployment, self.site
        if site.fails_to_start(self.serves):
            self.conversation.start_failed(deployment.name, "no such file")
            self.soon(self.leave)
            return
        self._batcher.max_batch_size = self.serves.max_batch_size
        self.pipeline = Echo(deployment.task, self.serves.max_batch_size, site.lost_on_purpose)
        self.intake.begin(self.pipeline, deployment.task)
        self.engine = Engine(
            pipeline=self.pipeline,
            task=deployment.task,
            inbox=self.inbox,
            pool=self.pool,
            send=self.conversation.send,
            limits=self.conversation,
            settings=site.plan.settings,
            threshold_bytes=THRESHOLD_BYTES,
            worker=self.name,
            clock=self.clock,
        )
        self.conversation.ready(self._ready())
        self._work()

    def _ready(self):
        """As `workers/main.py` says it."""
        deployment = self.serves.deployment
        return wire.Ready(
            model=deployment.model,
            task=deployment.task.value,
            deployment=deployment.name,
            credits=deployment.max_ongoing_requests or 2 * self.serves.max_batch_size,
            hang_limit_s=deployment.hang_limit_s,
            max_queued=deployment.max_queued,
            max_queued_bytes=deployment.max_queued_bytes,
            features=wire.FEATURES,
        )

    # -- the main thread ----------------------------------------------------------------------------------------------

    def _nudge(self):
        """The main thread looks at its inbox."""
        if not self._nudged and not self.busy and self.engine is not None:
            self._nudged = True
            self.soon(self._work)

    def _work(self):
        self._nudged = False
        if self.busy:
            return
        batch, wait_s = self.inbox.poll()
        if batch is None:
            self.busy = True
            self._finish()
        elif batch:
            self._execute(batch)
        elif wait_s is not None:
            self.later(wait_s + 1e-6, self._work)

    def _execute(self, batch):
        self.busy = True
        executed = self.engine.execute(batch)
        pipeline = self.pipeline
        if pipeline.dies:
            self.struck = True
            self.later(pipeline.takes_s * self.world.rng.random(), self.kill)
        elif not pipeline.hangs:
            self.later(pipeline.takes_s, self._answer, executed)

    def _answer(self, executed):
        self.pipeline.finish()
        self.engine.answer(executed)
        self.busy = False
        self._work()

    def _finish(self):
        """The main thread has left its loop: see `workers/main.py`."""
        if self._claim_by is None:
            self.engine.release_all()
            self._claim_by = self.clock() + _CLAIM_GRACE_S
        waits = self.pool.statistics().published_blocks and self.clock() < self._claim_by
        if waits and self.conversation.exit_code == EXIT_DRAINED:
            self.later(_CLAIM_POLL_S, self._finish)
        else:
            self.leave()

    def _leave(self):
        """The conversation wants the process to end, whatever it does."""
        self.inbox.abandon()
        self.later(_GRACE_S, self.kill)
        self._nudge()
        if self.engine is None:
            self.soon(self.leave)

    def _begin_anew(self):
        self.connection.begin_anew()

    def drain_soon(self):
        """SIGTERM."""
        if self.connection is not None:
            self.conversation.ask_to_leave(self.clock())

    def ended(self, *, killed):
        super().ended(killed=killed)
        self._on_end(self.name, "its process has ended")

    def check_books(self):
        check(self.pool, f"the pool of {self.name}")

    # -- reading what lies in clients' memory -------------------------------------------------------------------------

    def _spawn(self, run):
        """A thread that reads; it waits for a client that does not answer, though not for ever."""
        self.soon(self._read_slowly, run, self.clock() + ATTACH_TIMEOUT_S)

    def _read_slowly(self, run, give_up):
        (pool_name,) = run.args
        memory = self.site.memory
        if memory.owner_of(pool_name).frozen and self.clock() < give_up:
            self.later(_LOOK_S, self._read_slowly, run, give_up)
            return
        memory.impatient = True
        run()
        memory.impatient = False
        self._nudge()

    # -- the session's callbacks --------------------------------------------------------------------------------------

    def _reject(self, key, error):
        self.conversation.reject(key, error)

    def on_welcome(self, welcome):
        self.conversation.welcomed(welcome)

    def on_message(self, message, body):
        self.conversation.message(message, body)
        self._nudge()

    def on_refused(self, error):
        self.conversation.refused(error)

    def on_beat(self, silent_s):
        self.intake.housekeep()
        self.conversation.beat(silent_s, self.clock())
        self._nudge()
        self._stalls += self.inbox.is_stalled
        progress = self.engine.progress if self.engine else 0
        return wire.Heartbeat(progress=progress + self._stalls, busy=bool(self.inbox.held()))
