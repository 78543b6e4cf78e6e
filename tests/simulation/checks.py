"""What must hold: of every request while it lives, of every book after each event, and of what is left at the end.

`Asked` is one request as its caller knows it, and says which ends are right for it; `Ledger` has them all.
"""

from __future__ import annotations

from tensoryard.errors import TensoryardError
from tensoryard.workers.fleet import MAX_START_FAILURES

from .requests import is_right, samples_in
from .world import Violation

#: Times are sums of many.
_EPSILON_S = 1e-6


class Asked:
    """One request that a caller made."""

    def __init__(self, client, ask, request_id, number, retries):
        self.client = client
        self.site = client.site
        self.ask = ask
        self.request_id = request_id
        self.number = number
        self.retries = retries
        self.at = client.world.now
        self.reply = None
        #: Its client waits before it sends it, since it would be refused.
        self.held_back = False
        self.cancelled = False
        #: How it ended: "finished", or the code of its error; None while it has not.
        self.outcome = None
        self.error = None
        #: Its client ended before it did: nobody waits.
        self.abandoned = False
        #: Outputs taken, and their arrays as long as they are kept.
        self.parts = 0
        self.held = []
        #: It would take another, and none has come.
        self._waits = False

    def begin(self, reply):
        """It is under way."""
        self.reply = reply
        if self.ask.reads_in_s is None:
            reply.collect()
        else:
            self.client.later(self.ask.reads_in_s, self._read_on)
        reply.add_listener(self._heard)

    def _heard(self):
        reply = self.reply
        if self.ask.reads_in_s is None:
            for output in reply._outputs[self.parts :]:
                self._take(samples_in(output))
        elif self._waits:
            self._waits = False
            self.client.later(self.ask.reads_in_s, self._read_on)
        if reply.done and self.outcome is None:
            self.end(reply._error)
            self.client.answered(self, reply._error)

    def _read_on(self):
        """The caller takes the next output, if it has come, and then needs some time for it."""
        if self.reply is None:
            return
        try:
            outputs, last = self.reply.outputs_from(self.parts, 1)
        except TensoryardError:
            return
        for output in outputs:
            self._take(samples_in(output))
        self._waits = not outputs
        if outputs and not last:
            self.client.later(self.ask.reads_in_s, self._read_on)

    def _take(self, array):
        if not is_right(array, self.number, self.parts):
            raise Violation(
                f"a wrong answer: {array[:4]} as part {self.parts} of number {self.number}", self.request_id
            )
        self.parts += 1
        self.held.append(array)

    def end(self, error):
        """It has ended, or was refused before it was sent."""
        self.error = error and error.with_traceback(None)  # which would keep the request's arrays
        self.outcome = "finished" if error is None else error.code
        self.client.world.note("outcome", self.client.name, self.request_id, self.outcome, str(error or ""))
        self.site.ledger.outcomes[self.outcome] = self.site.ledger.outcomes.get(self.outcome, 0) + 1
        why = self._why_wrong()
        if why:
            raise Violation(f"{self.request_id} ended as {self.outcome} ({error}): {why}", self.request_id)

    def let_go(self):
        """The caller does not need the answer any more; until now it must be what it was."""
        for part, array in enumerate(self.held):
            if not is_right(array, self.number, part):
                raise Violation("an answer changed while its caller held it", self.request_id)
        self.held.clear()
        self.reply = None

    # -- which ends are right -----------------------------------------------------------------------------------------

    def _why_wrong(self):
        """Why it may not have ended like this; "" when it may."""
        if self.site.plan.hostility and self.outcome != "finished":
            return ""  # whatever was lost may have been the reason
        rule = getattr(self, f"_when_{self.outcome}", None)
        return "no request of the plan may" if rule is None else rule()

    def _when_finished(self):
        if self.ask.kind not in ("plain", "hang_once"):
            return f"it was to {self.ask.kind}"
        parts = self.reply._reading.came
        return "" if parts == self.ask.parts else f"it has {parts} parts of {self.ask.parts}"

    def _when_pipeline_error(self):
        together = any(self.request_id in worker.failed_together for worker in self.site.pipelines())
        return "" if self.ask.kind in ("fail", "explode", "unsendable") or together else "its pipeline did not fail"

    def _when_invalid_request(self):
        return "" if self.ask.kind == "bad_option" else "there is nothing wrong with it"

    def _when_unknown_model(self):
        site = self.site
        if self.ask.kind == "stranger" or not site.plan.fleet or site.unheard_fleet or site.shutting_down:
            return ""
        return "its model is served"

    def _when_wrong_task(self):
        return "" if self.ask.kind == "wrong_task" else "it asked for the right task"

    def _when_cancelled(self):
        return "" if self.cancelled or self.client.closing else "nobody cancelled it"

    def _when_expired(self):
        if self._may_pause():
            return ""
        if self.ask.deadline_s is None:
            return "it has no deadline"
        early = self.client.world.now < self.at + self.ask.deadline_s - _EPSILON_S - self.site.leapt_s
        return "its deadline has not passed" if early else ""

    def _may_pause(self):
        """It is a stream that is ended when nothing of it is read for some seconds."""
        settings = self.site.plan.settings
        windowed = self.ask.parts > settings.stream_window_parts or settings.stream_window_bytes < 10_000
        return self.ask.parts > 1 and windowed and settings.unread_s < 10.0

    def _when_overloaded(self):
        return "" if self.site.plan.tight else "no bound is low"

    def _when_duplicate_request(self):
        others = self.site.ledger.by_id[self.request_id]
        return "" if any(other is not self for other in others) else "its id is its own"

    def _when_shutting_down(self):
        return "" if self.site.shutting_down else "nobody shut the cluster down"

    def _when_worker_lost(self):
        abandoned = not self.site.plan.fleet or self.site.shutting_down or self.site.unheard_fleet
        return "" if abandoned or self.client.results_lost >= 4 else "no worker was lost"

    def _when_poison_request(self):
        if self.ask.kind in ("poison", "hang"):
            return ""
        lost = sum("worker" in line and ("attempt" not in line) for line in self.error.story)
        return "" if lost >= 3 else f"it lost {lost} workers: {self.error.story}"

    def _when_coordinator_lost(self):
        silent_s = self.client.world.now - self.client.heard_at
        if self.site.shutting_down or silent_s > self.site.plan.settings.reconnect_s - _EPSILON_S - self.site.leapt_s:
            return ""
        return f"the coordinator was heard {silent_s:.3f} s ago"

    _when_not_connected = _when_coordinator_lost

    def _when_deployment_unhealthy(self):
        fails = self.site.served(self.ask).fails_to_start + self.site.died_starting
        return "" if fails >= MAX_START_FAILURES else "its workers start"

    def _when_pool_exhausted(self):
        if self.reply is not None and not self.ask.answer_in_place:
            return "it needed no memory"
        segments = (
            self.site.plan.client_pool_segments if self.reply is None else self.site.served(self.ask).pool_segments
        )
        filled = self.site.faults.struck.get("fill pool")
        return "" if filled or segments < 50 else "there was memory enough"


class Ledger:
    """Every request of one schedule."""

    def __init__(self):
        self.asked = []
        self.by_id = {}
        #: By outcome.
        self.outcomes = {}

    def add(self, asked):
        """A caller has made a request."""
        self.asked.append(asked)
        self.by_id.setdefault(asked.request_id, []).append(asked)

    def client_ended(self, client):
        """Nobody waits for its answers, nor holds them."""
        for asked in self.asked:
            if asked.client is client:
                asked.abandoned = True
                asked.held.clear()
                asked.reply = None

    def open(self):
        """Requests that somebody waits for."""
        return [asked for asked in self.asked if asked.outcome is None and not asked.abandoned]

    def sent_by(self, client):
        """RequestIDs of those that a client must know."""
        return {
            asked.request_id
            for asked in self.asked
            if asked.outcome is None and asked.client is client and not (asked.abandoned or asked.held_back)
        }


def check(machine, name):
    """A machine's own invariants."""
    try:
        machine.check_invariants()
    except AssertionError as error:
        raise Violation(f"{name}: {error}") from error


def leftovers(site):
    """What is left in any book when everything has ended; empty when nothing is."""
    left = [f"{asked.request_id} of {asked.client.name} has not ended" for asked in site.ledger.open()]
    for pool, process in site.memory.pools():
        used = pool.statistics().used_blocks
        if used:
            left.append(f"{used} blocks of {process.name}: {pool.live_blocks()}")
    for worker in site.workers:
        if worker.alive:
            left += _left_in_worker(worker)
    for client in site.clients:
        if client.alive and client.conversation.queries and not site.shutting_down:
            left.append(f"{client.name} waits for answers to {len(client.conversation.queries)} questions")
    if site.network.hub is not None:
        left += _left_in_broker(site.network.hub.broker)
    if site.fleet is not None and site.fleet.alive and not site.shutting_down:
        left += _missing_workers(site.fleet)
    return left


def _left_in_worker(worker):
    found = {
        "in its inbox": worker.inbox.held(),
        "arriving": worker.intake._arriving,
        "in its pipeline": worker.pipeline.live if worker.pipeline else (),
        "unsent": worker.outbox,
    }
    return [f"{len(what)} {where} of {worker.name}" for where, what in found.items() if what]


def _left_in_broker(broker):
    router = broker.router
    found = {
        "requests": router.requests,
        "bodies": broker.bodies,
        "clients with requests": router.clients,
        "letters": broker._room or (),
        "held by workers": [slot for worker in router.workers.values() for slot in worker.slots],
        "adoptable": [request for model in router.models.values() for request in model.adoptable],
        "waiting": [model for model in router.models.values() if model.waiting or model.queued_bytes or model.reserved],
    }
    return [f"{len(what)} {name} in the coordinator" for name, what in found.items() if what]


def _missing_workers(fleet):
    left = []
    for name, squad in fleet.fleet._squads.items():
        ready = sum(member.state.value == "ready" for member in squad.members.values())
        if ready != squad.deployment.replicas and not squad.unhealthy:
            left.append(f"{ready} of {squad.deployment.replicas} workers of {name} are ready")
    return left
