"""Everything that can grow, with its bound: the table that docs/bounds.md is made of.

`test_bounds.py` checks it against the code: each container of coordinator, workers and client stands in a row, and each
test that a row names is there. `scripts/generate_reliability.py` writes the page.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from tensoryard import logs
from tensoryard.client import abroad, fetching, gate, pending
from tensoryard.client import conversation as client_conversation
from tensoryard.coordinator import adapters, roster, story, waiting_room
from tensoryard.proto import lora, wire
from tensoryard.settings import Settings
from tensoryard.shm import courier, leases, reader, server
from tensoryard.workers import answers, intake, porter, porter_door
from tensoryard.workers import conversation as worker_conversation
from tensoryard.workers import main as worker_main
from tensoryard.workers.text.lora import MAX_ADAPTERS, MAX_ADAPTERS_BYTES

DEFAULTS = {field.name: field.default for field in dataclasses.fields(Settings)}


def number(value: int) -> str:
    """A count for people."""
    return f"{value:,}".replace(",", " ")


def size(value: int) -> str:
    """So many bytes, for people."""
    unit, divisor = ("GiB", 1 << 30) if value >= 1 << 30 else ("MiB", 1 << 20)
    return f"{value // divisor} {unit}"


def setting(name: str) -> str:
    """A setting's default and name."""
    default = DEFAULTS[name]
    shown = f"{default:g} s" if name.endswith("_s") else size(default) if name.endswith("_bytes") else number(default)
    return f"{shown} (`{name}`)"


@dataclass(frozen=True, kw_only=True)
class Bound:
    """One row. `holds`: the containers it speaks of, as "file:Class.attribute"; `tests`: what shows it."""

    what: str
    bound: str
    rule: str
    seen: str
    holds: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()


CLIENT = [
    Bound(
        what="requests under way, by number and by bytes",
        bound=f"{setting('max_in_flight')}; {setting('max_in_flight_bytes')}: as the coordinator told",
        rule="the reply fails with `Overloaded` before the request is encoded or copied",
        seen="the error's text",
        holds=("client/pending.py:PendingTable._entries",),
        tests=(
            "tests/client/test_connection.py::test_a_client_keeps_to_its_bounds_by_itself",
            "tests/client/test_gate.py::test_what_is_under_way_has_a_bound",
            "tests/client/test_pending.py::test_what_is_under_way_is_weighed",
        ),
    ),
    Bound(
        what="messages on their way to the coordinator, also while it is away",
        bound="each request under way once per coordinator that greets us, and one cancel each; a heartbeat in five",
        rule=f"after {setting('reconnect_s')} without a word requests end as `CoordinatorLost`, new ones are refused; "
        "only heartbeats, some 60 bytes each, go on to collect: about 1 MB a day",
        seen="`NotConnected`, with how long it has been",
        holds=(),
        tests=(
            "tests/client/test_conversation.py::test_a_cancel_is_said_once",
            "tests/client/test_conversation.py::test_a_coordinator_that_stays_away_is_lost",
        ),
    ),
    Bound(
        what="outputs of a stream that the caller has not read",
        bound=f"{setting('stream_window_parts')}, {setting('stream_window_bytes')}",
        rule=f"the worker pauses the stream; after {setting('unread_s')} it ends as `DeadlineExpired`",
        seen="`repr(reply)`; the error's text",
        holds=("client/reading.py:Reading._sizes", "client/reply.py:Reply._outputs"),
        tests=(
            "tests/cluster/test_streams.py::test_a_reader_that_does_not_keep_up_holds_up_nobody",
            "tests/machines/test_together.py::test_a_stream_pauses_while_nobody_reads",
        ),
    ),
    Bound(
        what="outputs of a stream that iteration has given, kept for `result` and other iterations",
        bound="the same again",
        rule="the oldest is let go of; who asks for it later gets `InvalidRequest`, which says what to do",
        seen="the error's text",
        holds=("client/reply.py:Reply._outputs",),
        tests=("tests/client/test_reply.py::test_a_long_stream_that_is_read_is_let_go_of",),
    ),
    Bound(
        what="outputs of an answer that is asked for whole (`result`, `collect`, `map`)",
        bound="the answer: whoever asks for it whole gets it whole",
        rule="none",
        seen="`repr(reply)`",
        holds=("client/reply.py:Reply._outputs",),
        tests=("tests/client/test_reply.py::test_a_whole_that_is_wanted_is_read_as_it_comes",),
    ),
    Bound(
        what="questions to the coordinator (`status`, `story`) without an answer yet",
        bound=number(client_conversation._MAX_QUERIES),
        rule="`Overloaded`",
        seen="the error's text",
        holds=("client/conversation.py:Conversation.queries",),
        tests=("tests/client/test_conversation.py::test_questions_are_bounded",),
    ),
    Bound(
        what="requests that sleep before they are tried again",
        bound="those under way; of ended ones twice as many, and 64",
        rule="they are swept",
        seen="`error.story`",
        holds=("client/retry.py:Sleepers._heap",),
        tests=("tests/client/test_retry.py::test_those_that_ended_are_swept",),
    ),
    Bound(
        what="the story of a request on this side",
        bound=f"{pending._MAX_EVENTS} lines of {pending._MAX_CHARS} characters",
        rule="the middle is forgotten",
        seen="`error.story`",
        holds=("client/pending.py:Pending.events",),
        tests=("tests/client/test_conversation.py::test_errors_made_here_have_a_story_too",),
    ),
    Bound(
        what="models that were said to be full",
        bound=number(gate._MAX_MODELS),
        rule="those that have room again are forgotten; else the newest is not remembered",
        seen="-",
        holds=("client/gate.py:Gate._full",),
        tests=("tests/client/test_gate.py::test_models_are_not_remembered_for_ever",),
    ),
    Bound(
        what="outputs that are fetched from other hosts, and what came behind them; threads for it",
        bound=f"those of the requests under way; {fetching.MAX_THREADS} threads",
        rule="a stream pauses at its window; others wait for a thread",
        seen="-",
        holds=(
            "client/abroad.py:Parked.letters",
            "client/fetching.py:Fetching._orders",
            "client/fetching.py:Fetching._results",
        ),
        tests=(
            "tests/client/test_abroad.py::test_an_output_from_abroad_holds_up_its_own_request_alone",
            "tests/client/test_fetching.py::test_a_few_are_read_at_once",
        ),
    ),
    Bound(
        what="models whose workers could not reach this client's memory",
        bound=f"{number(abroad._MAX_MODELS)}, for {abroad.UNREACHED_S:g} s",
        rule="those whose time has passed are forgotten; else the newest is not remembered",
        seen="-",
        holds=("client/abroad.py:Unreached._until",),
        tests=("tests/client/test_abroad.py::test_models_out_of_reach_are_bounded",),
    ),
    Bound(
        what="listeners of a reply",
        bound="as many as the caller adds; they go with the reply",
        rule="none",
        seen="-",
        holds=("client/reply.py:Reply._listeners",),
        tests=("tests/client/test_reply.py::test_a_reply_nobody_wants_goes_with_its_outputs",),
    ),
]

COORDINATOR = [
    Bound(
        what="live requests of one client, by number and by bytes (shared memory included)",
        bound=f"{setting('max_in_flight')}; {setting('max_in_flight_bytes')}, but one of any size",
        rule="`Overloaded`, with the time until there is likely room",
        seen="outcomes `rejected`",
        holds=(
            "coordinator/records.py:Client.live",
            "coordinator/router.py:Router.clients",
            "coordinator/router.py:Router.requests",
            "coordinator/router.py:Router._deadlines",
        ),
        tests=(
            "tests/coordinator/test_router_limits.py::test_a_client_has_a_bound",
            "tests/coordinator/test_router_limits.py::test_a_client_has_a_bound_in_bytes",
            "tests/coordinator/test_admission.py::test_each_bound_is_named",
        ),
    ),
    Bound(
        what="requests that wait for a model, by number and by bytes",
        bound="10 000, 8 GiB (`max_queued`, `max_queued_bytes` of the deployment), but one of any size",
        rule="`Overloaded`, with the time until there is likely room for one more; those sent away together are told "
        "one time after the other",
        seen="`status`: `queued`, `queued_bytes`",
        holds=(
            "coordinator/records.py:Model.queue",
            "coordinator/records.py:Adapter.queue",
            "coordinator/records.py:Adapter.live",
            "coordinator/records.py:Model.suspects",
            "coordinator/queues.py:RequestQueue._levels",
            "coordinator/queues.py:RequestQueue._order",
            "coordinator/queues.py:RequestQueue._places",
            "coordinator/queues.py:_Line._heap",
            "coordinator/queues.py:_Line._row",
        ),
        tests=(
            "tests/coordinator/test_router_limits.py::test_the_queue_has_a_bound",
            "tests/coordinator/test_router_limits.py::test_bytes_that_wait_have_a_bound",
            "tests/coordinator/test_router_limits.py::test_suspects_count_against_the_bounds",
            "tests/coordinator/test_records.py::test_those_who_are_sent_away_together_come_back_one_by_one",
        ),
    ),
    Bound(
        what="messages kept for live requests, so that they can run again",
        bound=f"{setting('max_kept_bytes')}, but one of any size",
        rule="`Overloaded`",
        seen="`status`: `kept_bytes`",
        holds=("coordinator/dispatcher.py:Dispatcher.bodies",),
        tests=("tests/coordinator/test_router_limits.py::test_bodies_have_a_bound",),
    ),
    Bound(
        what="requests that wait until the fleet has spoken",
        bound=f"{number(waiting_room.MAX_LETTERS)}, of one client {setting('max_in_flight')}; "
        f"{setting('max_kept_bytes')}; for at most {setting('settle_s')}, and as long again for the first worker of "
        "each model where the name may be an adapter's",
        rule="`Overloaded`",
        seen="`status`: `waiting_for_fleet`",
        holds=(
            "coordinator/waiting_room.py:WaitingRoom._letters",
            "coordinator/waiting_room.py:WaitingRoom._by_client",
            "coordinator/waiting_room.py:WaitingRoom._deadlines",
        ),
        tests=(
            "tests/coordinator/test_waiting_room.py::test_bytes_are_bounded",
            "tests/coordinator/test_waiting_room.py::test_requests_are_bounded",
            "tests/coordinator/test_waiting_room.py::test_one_client_does_not_take_all_the_room",
            "tests/coordinator/test_broker.py::test_a_name_that_stays_unknown_is_told_after_a_time",
        ),
    ),
    Bound(
        what="adapters of a model, and those that are remembered as gone",
        bound=f"{number(lora.MAX_LORAS)}; on each worker {number(MAX_ADAPTERS)} (`max_adapters`) of "
        f"{size(MAX_ADAPTERS_BYTES)} together (`adapter_bytes`)",
        rule="`load_lora` answers LOAD_ERROR, which names the bound; none is ever evicted. Of those that are gone the "
        "oldest are forgotten",
        seen="`status`: `adapters`",
        holds=(
            "coordinator/adapters.py:AdapterBooks._by_name",
            "coordinator/adapters.py:AdapterBooks._gone",
            "coordinator/records.py:Model.adapters",
            "coordinator/records.py:Model.lanes",
            "coordinator/records.py:Adapter.on",
            "coordinator/records.py:Adapter.asked",
            "coordinator/records.py:Adapter.failures",
        ),
        tests=(
            "tests/coordinator/test_adapters.py::test_adapters_have_a_bound",
            "tests/coordinator/test_adapters.py::test_what_is_gone_is_remembered_within_bounds",
            "tests/workers/text/test_lora.py::test_adapters_have_a_bound",
            "tests/workers/text/test_lora.py::test_adapters_have_a_bound_in_bytes",
        ),
    ),
    Bound(
        what="wishes about adapters without an answer yet, also while a new coordinator settles",
        bound=number(adapters.MAX_ASKED),
        rule="LOAD_ERROR or UNLOAD_ERROR at once; of those that have waited for their `timeout_s` UNSPECIFIED_ERROR",
        seen="the answer's text",
        holds=(
            "coordinator/adapters.py:AdapterBooks._askers",
            "coordinator/adapters.py:AdapterBooks._deadlines",
            "coordinator/records.py:Adapter.askers",
            "coordinator/broker.py:Broker._early",
        ),
        tests=(
            "tests/coordinator/test_adapters.py::test_askers_have_a_bound",
            "tests/coordinator/test_adapters.py::test_who_waits_too_long_is_told",
            "tests/coordinator/test_broker.py::test_early_wishes_have_a_bound",
        ),
    ),
    Bound(
        what="requests dispatched to a worker",
        bound=f"its credits: two batches (`max_ongoing_requests`), at most {number(worker_main._MAX_CREDITS)}",
        rule="what has no credit stays in the queue",
        seen="`status`: `in_flight`, `credits`",
        holds=(
            "coordinator/records.py:Worker.slots",
            "coordinator/records.py:Model.adoptable",
            "coordinator/records.py:Model.free_workers",
            "coordinator/records.py:Adapter.free",
            "coordinator/queues.py:LeastLoaded._all",
            "coordinator/queues.py:LeastLoaded._groups",
            "coordinator/queues.py:LeastLoaded._group_of",
            "coordinator/queues.py:LeastLoaded._moved",
            "coordinator/router.py:Router._hang_checks",
        ),
        tests=("tests/coordinator/test_router.py::test_credits_are_never_exceeded",),
    ),
    Bound(
        what="messages on their way to a peer, by number and by bytes",
        bound=f"{setting('peer_backlog')}; {setting('peer_backlog_bytes')} once it is silent for two heartbeats",
        rule="the peer counts as gone: its requests are cancelled (client), or run elsewhere (worker)",
        seen="the worker's `gone` in the log; a client's requests as `cancelled`",
        holds=("coordinator/process.py:Coordinator._unreachable",),
        tests=(
            "tests/coordinator/test_broker.py::test_a_peer_that_does_not_read_is_dropped_early",
            "tests/links/test_conformance.py::test_a_peer_that_does_not_read_is_not_waited_for",
        ),
    ),
    Bound(
        what="connected clients",
        bound=setting("max_clients"),
        rule="`connect` raises `Overloaded`",
        seen="`status`: `clients`",
        holds=(
            "coordinator/roster.py:Roster._by_identity",
            "coordinator/roster.py:Roster._by_name",
            "coordinator/liveness.py:ProcessWatch._by_peer",
            "coordinator/liveness.py:ProcessWatch._by_pidfd",
        ),
        tests=("tests/coordinator/test_broker.py::test_clients_have_a_bound",),
    ),
    Bound(
        what="workers and models",
        bound="what the fleet starts, and who is started by hand on this host",
        rule="none: they are the operator's",
        seen="`status`: `models`, `workers`",
        holds=(
            "coordinator/router.py:Router.workers",
            "coordinator/router.py:Router.models",
            "coordinator/records.py:Model.workers",
        ),
        tests=("tests/coordinator/test_router_fleet.py::test_the_last_standalone_worker_takes_its_model_with_it",),
    ),
    Bound(
        what="stories of requests",
        bound=f"{story.MAX_LINES} lines of {story.MAX_CHARS} characters; of ended requests the last "
        f"{number(story.MAX_ENDED)}",
        rule="the middle of a story, and the oldest ended story, are forgotten",
        seen="`client.story`",
        holds=(
            "coordinator/router.py:Router._stories",
            "coordinator/story.py:Stories._ended",
        ),
        tests=("tests/coordinator/test_router.py::test_a_story_is_bounded",),
    ),
    Bound(
        what="peers remembered for unreadable messages",
        bound=number(roster._MAX_COMPLAINTS),
        rule="all are forgotten, and counted anew",
        seen="the log, eight lines a peer",
        holds=("coordinator/roster.py:Roster._complaints",),
        tests=("tests/coordinator/test_roster.py::test_complaints_are_bounded",),
    ),
    Bound(
        what="heaps that delete lazily",
        bound="twice what lives in them, and 16",
        rule="they are swept",
        seen="-",
        holds=("coordinator/queues.py:LazyHeap._entries", "coordinator/queues.py:LazyHeap._heap"),
        tests=("tests/coordinator/test_router_hostile.py::test_a_long_life_leaves_nothing_behind",),
    ),
    Bound(
        what="decisions on their way from router to sockets, and counts of outcomes",
        bound="what one message brings about; eight names",
        rule="empty before the next message is read",
        seen="`status`: `outcomes`",
        holds=(
            "coordinator/dispatcher.py:Dispatcher.actions",
            "coordinator/dispatcher.py:Dispatcher._gathered",
            "coordinator/dispatcher.py:Dispatcher._pending",
            "coordinator/router.py:Router._effects",
            "coordinator/router.py:Router._stirred",
            "coordinator/router.py:Router.outcomes",
        ),
        tests=("tests/coordinator/test_router_hostile.py::test_a_long_life_leaves_nothing_behind",),
    ),
]

WORKER = [
    Bound(
        what="requests held, and the threads that read those of slow clients",
        bound="its credits: the coordinator keeps to them",
        rule="nothing more comes",
        seen="`status`: `in_flight`",
        holds=(
            "workers/batcher.py:Batcher._waiting",
            "workers/batcher.py:Batcher._active",
            "workers/intake.py:Intake._queues",
            "workers/intake.py:Intake._arriving",
        ),
        tests=("tests/coordinator/test_router.py::test_credits_are_never_exceeded",),
    ),
    Bound(
        what="outputs that its clients have not read",
        bound=f"of each stream {setting('stream_window_parts')}, {setting('stream_window_bytes')}",
        rule="the stream pauses, others go on",
        seen="`progress` of its heartbeats moves while all it holds pauses",
        holds=("workers/window.py:Window._unread",),
        tests=(
            "tests/workers/test_window.py::test_any_course_keeps_the_rule",
            "tests/workers/test_engine.py::test_w_34_a_stream_goes_no_further_than_its_window",
            "tests/workers/test_batcher.py::test_a_stream_that_nobody_reads_ends",
        ),
    ),
    Bound(
        what="adapters that are to be loaded or unloaded",
        bound="for each of its model's adapters what the coordinator asks for: one thing, and one that takes it back",
        rule="none more is asked for; what waits is dropped when another coordinator is met",
        seen="`status`: `adapters`",
        holds=("workers/adapters.py:AdapterDesk._queue",),
        tests=(
            "tests/coordinator/test_adapters.py::test_one_thing_at_a_time",
            "tests/workers/test_adapters.py::test_w_61_what_an_earlier_coordinator_asked_for_is_not_done",
        ),
    ),
    Bound(
        what="answers on their way to the coordinator, also while it is away",
        bound=f"those of the requests held; for at most {setting('orphan_s')}",
        rule="the worker ends",
        seen="exit code 4",
        tests=("tests/workers/test_conversation.py::test_alone_for_too_long_is_the_end",),
    ),
    Bound(
        what="outputs whose memory can still be taken back, names of segments seen before",
        bound=f"{number(worker_conversation._MAX_REMEMBERED)}; {number(intake._MAX_ATTACHED)}",
        rule=f"the oldest falls to the pool's own limit, {setting('claim_timeout_s')}; all names are asked for again",
        seen="-",
        holds=("workers/conversation.py:Conversation._sent", "workers/intake.py:Intake._attached"),
        tests=(
            "tests/workers/test_conversation.py::test_what_can_be_taken_back_is_bounded",
            "tests/workers/test_intake.py::test_names_of_attached_segments_are_bounded",
        ),
    ),
    Bound(
        what="outputs and frames of one message, texts of errors",
        bound=f"an envelope of {number(wire.MAX_ENVELOPE_BYTES)} bytes, {number(wire.MAX_FRAMES)} frames; "
        f"{number(answers.MAX_TEXT_CHARS)} "
        "characters",
        rule="several messages; the text is cut",
        seen="-",
        tests=("tests/workers/test_conversation.py::test_too_much_for_one_message_is_several",),
    ),
    Bound(
        what="what is remembered of a deployment's load",
        bound="a report for each heartbeat of `upscale_delay_s` and `downscale_delay_s`",
        rule="older ones are forgotten, and those that a later one outdoes",
        seen="-",
        holds=("workers/autoscale.py:Window._values",),
        tests=("tests/workers/test_autoscale.py::test_a_window_knows_the_largest",),
    ),
    Bound(
        what="workers of a deployment, those that end, and who watches them",
        bound="`replicas`, while they are replaced a quarter more, and those that leave",
        rule="what fails to start, or dies young, is started again later and later, and at last given up",
        seen="`status`: `replicas`, `unhealthy`",
        holds=(
            "workers/squad.py:Squad.members",
            "workers/fleet.py:Fleet._told",
            "workers/fleet.py:Fleet._squads",
            "workers/fleet.py:Fleet._retired",
            "workers/fleet.py:Fleet._numbers",
            "workers/fleet_runner.py:FleetRunner._inbox",
            "workers/launchers.py:ProcessLauncher._processes",
            "workers/launchers.py:ProcessLauncher._watchers",
            "workers/ray_launcher.py:RayLauncher._workers",
            "workers/ray_launcher.py:RayLauncher._counts",
            "workers/fleet_runner.py:FleetRunner._unplaced",
            "workers/fleet_runner.py:FleetRunner._doomed",
            "workers/ray_launcher.py:RayLauncher._watchers",
            "workers/ray_launcher.py:RayLauncher._bundles",
        ),
        tests=(
            "tests/workers/test_fleet.py::test_a_deployment_that_never_starts_is_given_up",
            "tests/workers/test_fleet.py::test_as_many_as_wanted_serve_at_any_moment_of_a_change",
        ),
    ),
]

PORTER = [
    Bound(
        what="arrays of other hosts that have landed on this one",
        bound="an eighth of the machine (`pool_budget_bytes`); what nobody uses: half of that, "
        f"for {porter._KEEP_S:g} s",
        rule=f"what nobody uses goes, the oldest first; then {setting('allocate_timeout_s')} are waited for room; "
        "then `out_of_reach`: the array goes in a message",
        seen="`landed_now`, `used_bytes` of a porter's report; `tensoryard shm`",
        holds=("workers/porter.py:Porter._arrays", "workers/shelf.py:Shelf._items", "workers/shelf.py:Shelf._dropped"),
        tests=(
            "tests/workers/test_porter.py::test_a_full_landing_pool_makes_room_and_then_says_so",
            "tests/workers/test_shelf.py::test_beyond_the_budget_the_one_used_longest_ago_goes",
        ),
    ),
    Bound(
        what="arrays of this host in Ray's object store, and their owners' blocks meanwhile",
        bound=f"as many bytes as may land, what nobody uses for {porter._KEEP_S:g} s; an owner's block until it has "
        f"landed, {porter._HOLD_S:g} s at most; in the store Ray's own limit, beyond which it spills",
        rule="the oldest that nobody uses is given up",
        seen="`lent_now`, `leases_now` of a porter's report",
        holds=(
            "workers/porter.py:Porter._references",
            "workers/porter.py:Porter._leases",
            "workers/porter.py:Porter._borrowers",
        ),
        tests=(
            "tests/workers/test_shelf.py::test_what_nobody_uses_is_kept_for_a_while",
            "tests/workers/test_shelf.py::test_who_never_says_done_is_forgotten",
            "tests/workers/test_porter.py::test_a_result_stays_lent_until_it_has_landed",
        ),
    ),
    Bound(
        what="processes that ask a porter, and connections that each keeps",
        bound=f"{number(porter_door.MAX_CONNECTIONS)} connections; {courier._MAX_IDLE} idle ones",
        rule="further ones are refused, and wait or send arrays in messages; idle ones beyond are closed",
        seen="the log",
        holds=("workers/porter_door.py:PorterDoor._open",),
        tests=("tests/workers/test_porter.py::test_beyond_the_bound_nobody_is_let_in",),
    ),
    Bound(
        what="porters, and the hosts that each knows and counts",
        bound=f"one a node; {number(porter._MAX_HOSTS)} hosts",
        rule="a node that is gone loses its porter; further hosts are counted together, and all looked up again",
        seen="`fetched_bytes` of a porter's report",
        holds=(
            "workers/ray_porter.py:PorterKeeper._actors",
            "workers/ray_porter.py:PorterKeeper._leaving",
            "workers/ray_porter.py:RayCarrier._actors",
            "workers/porter.py:Counters.fetched_bytes",
        ),
        tests=("tests/workers/test_porter.py::test_hosts_beyond_the_bound_are_counted_together",),
    ),
]

SHARED = [
    Bound(
        what="a process's tensor pool",
        bound="an eighth of the machine (`pool_budget_bytes`)",
        rule=f"the caller waits {setting('allocate_timeout_s')}, then `PoolExhausted`; a worker's output goes through "
        "the socket",
        seen="`Pool.statistics`, `Pool.live_blocks`",
        tests=(
            "tests/workers/test_engine.py::test_with_a_full_pool_arrays_go_through_the_socket",
            "tests/shm/test_pool.py::test_a_full_budget_is_an_error_that_says_all",
        ),
    ),
    Bound(
        what="results sent and not fetched",
        bound=f"{setting('claim_timeout_s')}",
        rule="their memory is used again; who comes late gets `StaleHandle`, and the client asks again by itself",
        seen="`Pool.statistics`: `published_blocks`",
        tests=("tests/shm/test_pool.py::test_a_block_that_nobody_claims_is_free_after_its_time",),
    ),
    Bound(
        what="readers of a pool, and views that one of them holds",
        bound=f"{number(server.MAX_READERS)}; {number(leases.SLOTS)}",
        rule="further readers are refused; further results are copied out",
        seen="`Pool.statistics`: `readers`",
        tests=("tests/shm/test_reader.py::test_beyond_the_last_slot_a_result_is_copied_out",),
    ),
    Bound(
        what="pools that a process reads from",
        bound=number(reader.MAX_OWNERS),
        rule="the one used longest ago is let go of; its live views stay good",
        seen="-",
        tests=("tests/shm/test_reader.py::test_beyond_the_bound_the_owner_used_longest_ago_is_let_go",),
    ),
    Bound(
        what="a frame, a message, an envelope",
        bound=f"{setting('max_frame_bytes')}, {setting('max_message_bytes')}, {size(wire.MAX_ENVELOPE_BYTES)}",
        rule="`MessageTooLarge` at the sender; a peer that sends more is cut off",
        seen="the error's text",
        tests=("tests/client/test_connection.py::test_too_many_frames_are_not_sent",),
    ),
    Bound(
        what="lines of the log",
        bound=f"{logs.LINES} of a kind in {logs.SECONDS:g} s",
        rule="further ones are counted, and the next line says how many there were",
        seen="the log",
        tests=("tests/test_logs.py::test_a_flood_is_counted",),
    ),
]

#: By heading.
PARTS = {
    "Client": CLIENT,
    "Coordinator": COORDINATOR,
    "Worker and fleet": WORKER,
    "Porter": PORTER,
    "Shared memory, messages, logs": SHARED,
}

#: Containers that do not grow with anything that happens: tables made once, and what one call passes on.
FIXED = {
    "coordinator/events.py:RequestArrived.uses",
    "coordinator/records.py:Request.uses",
    "coordinator/process.py:Coordinator.addresses",
    "coordinator/router.py:Router._handlers",
    "workers/ray_launcher.py:RayLauncher._addresses",
    "workers/ray_launcher.py:RayLauncher.environment",
    "workers/ray_runtime.py:_Kept.deployments",
    "workers/ray_runtime.py:_Kept.environment",
    "workers/engine.py:Executed.batch",
    "workers/engine.py:Executed.results",
    "workers/launchers.py:ProcessLauncher._environment",
}

PAGE = """# What can grow, and its bound

Each queue, table and buffer has a bound with a number, a rule for what happens there, and a place where it is seen.
Made from `tests/reliability/bounds.py` by `scripts/generate_reliability.py`; a test compares the table with the code,
so that no container of coordinator, workers or client is missing, and every row names the tests that show it.

"""

END = """## Not bounded

- The log file of a detached cluster (`tensoryard up --detach`) grows by what is written into it; how fast is bounded.
- What a pipeline keeps for itself is its own affair. The worker tells it when a request has ended (`release`).
- ZeroMQ reads up to 1 000 messages of a peer before the coordinator looks at them, each as large as a message may be.
"""


HEAD = "| what can grow | bound | at the bound | seen in | tests |"


def page() -> str:
    """docs/bounds.md."""
    parts = []
    for heading, rows in PARTS.items():
        lines = [
            f"## {heading}",
            "",
            "| what can grow | bound | at the bound | seen in | tests |",
            "|---|---|---|---|---|",
        ]
        for row in rows:
            shown = ", ".join(f"`{test.rpartition('::')[2]}`" for test in row.tests)
            lines.append(f"| {row.what} | {row.bound} | {row.rule} | {row.seen} | {shown} |")
        parts.append("\n".join(lines) + "\n\n")
    return PAGE + "".join(parts) + END
