"""The failure cases, with what becomes of each: the table that docs/reliability.md is made of.

Tests carry `pytest.mark.case(number)`; `sources.py` collects them, `test_cases.py` sees to it that no case is without,
and `scripts/generate_reliability.py` writes the page.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row. `not_promised`: what one might expect besides, and does not get."""

    number: int
    what: str
    outcome: str
    not_promised: str = ""


def _case(number: int, what: str, outcome: str, not_promised: str = "") -> Case:
    return Case(number=number, what=what, outcome=outcome, not_promised=not_promised)


CASES = [
    _case(
        1,
        "a worker is killed while it is idle",
        "it is seen at once, by the end of its connection and by its pidfd; nothing more is sent to it, another takes "
        "its place, no request is affected",
    ),
    _case(
        2,
        "a worker is killed in the middle of a request",
        "the request runs again on another, three times in all, then ends as `PoisonRequest`; its input stays where it "
        "is for that; parts of a stream that were delivered are not delivered twice",
        "that a pipeline runs a request at most once: one with effects outside has to look at the RequestID",
    ),
    _case(
        3,
        "a worker is killed while it writes or sends a result",
        "a result is named to nobody before it is whole; the request runs again; a result whose memory went with its "
        "worker before the client had it is made again",
    ),
    _case(
        4,
        "a process is killed while it reads somebody's memory",
        "the kernel ends its connection, and its leases with it; the block is used again, other readers keep theirs",
    ),
    _case(
        5,
        "a client is killed or frozen with requests under way",
        "they are cancelled, queued or running; its memory goes with it, results on their way to it are freed, at the "
        "latest after `claim_timeout_s`; one that was only frozen has its answers when it goes on",
    ),
    _case(
        6,
        "a client keeps an array after everything else is gone",
        "it stays what it was for as long as a view of it lives, after `close` and after its worker's end too; never "
        "another request's bytes",
    ),
    _case(7, "a handle of an earlier use of a block", "`StaleHandle`; where it was a result, it is asked for again"),
    _case(
        8,
        "a handle that is forged: out of range, negative, overflowing, of no pool",
        "refused before anything is mapped; that request fails alone",
        "a count of such attempts: whoever can connect is the same user",
    ),
    _case(
        9,
        "a pool is full",
        "a client waits `allocate_timeout_s`, then `PoolExhausted` says how much is used, of what, and which setting; "
        "a worker's outputs go through the socket instead",
        "that `ctx.allocate` finds room: it raises `PoolExhausted`, and if the pipeline lets it, its batch fails",
    ),
    _case(
        10,
        "the machine or the control group has no memory left",
        "memory is reserved when it is taken, so it is an error then (`PoolExhausted`: what was wanted, and what is "
        "left) and never a SIGBUS later",
    ),
    _case(
        11,
        "the kernel kills a worker because memory ran out",
        "as 2; the log of whoever started the worker says that the kernel has killed for want of memory meanwhile",
        "that the request's own error says so",
    ),
    _case(12, "/dev/shm has 64 MB, or nothing", "nothing changes: nothing of ours lies there"),
    _case(
        13,
        "everything is killed, the folders stay",
        "no memory is left, since none has a name; the next start serves at once and removes sockets and files that a "
        "lock or a refused connection shows to be dead",
    ),
    _case(
        14,
        "two clusters share a host and a folder",
        "neither sees the other's workers or requests, nor minds its end, good or bad",
    ),
    _case(
        15,
        "the coordinator is killed",
        "it is started anew at the same address (by Ray, `tensoryard up`, the embedded cluster); workers go on and say "
        "what they hold, clients send again what is unanswered; each request is answered once. If none comes back, "
        "requests end as `CoordinatorLost` after `reconnect_s`",
        "that somebody starts a coordinator that was started by hand",
    ),
    _case(
        16,
        "the coordinator lives and does nothing",
        "who waits is told after `reconnect_s` (`CoordinatorLost`, retryable), what is new is refused "
        "(`NotConnected`); when it goes on, everybody does, and nobody is held to have been silent meanwhile",
        "that it is replaced: nothing watches a coordinator that hangs",
    ),
    _case(
        17,
        "a worker lives and makes no progress",
        "frozen, it is given up after `liveness_s`; computing without end, after its deployment's `hang_limit_s`; its "
        "requests run again, it is killed and replaced. Time paused for a reader does not count",
        "that a pipeline which hangs is found in less than 300 s where `hang_limit_s` is not set",
    ),
    _case(
        18,
        "a request kills every worker that runs it",
        "what was lost with a worker runs apart from the others and alone on its last try; after three workers it ends "
        "as `PoisonRequest`; its neighbours are answered",
    ),
    _case(19, "one bad item in a batch", "it fails alone; an exception of `execute` itself fails the batch"),
    _case(20, "a cancel races the answer", "one outcome, the first; what comes later is dropped, and its memory freed"),
    _case(
        21,
        "a RequestID comes twice",
        "sent again by the client library it changes nothing; another request under a live ID is `DuplicateRequest`, "
        "from whichever client; two streams are never mixed",
        "that an ID is remembered after its request has ended",
    ),
    _case(
        22,
        "messages are lost, doubled, late or out of order",
        "outputs carry attempt and number: each counts once and in order; on a gap the request runs again or fails, "
        "and is never answered with a hole in it; nothing is said before HELLO and WELCOME",
    ),
    _case(
        23,
        "a socket file of the dead, a path that is too long, a port that is taken",
        "the first is removed when a connection is refused, the others are errors that name path or port",
    ),
    _case(
        24,
        "a pipeline or a client forks",
        "the child holds no lease, connection or pool of its parent, so that its parent's death is seen and its memory "
        "comes back while the child lives; what it starts itself inherits no descriptor",
        "that a child uses its parent's client: it says so, connect anew",
    ),
    _case(
        25,
        "multiprocessing's resource tracker, a tree of Ray workers that is torn down",
        "nothing of ours is tracked: no memory vanishes under a reader, nothing is said at exit; when the process that "
        "started a cluster is killed, all of it ends",
    ),
    _case(
        26,
        "a copy to or from the GPU is under way when a request ends",
        "inputs are held until the answer has come, and our pipelines' copies are complete before they answer",
        "the same for a pipeline of your own that copies asynchronously: it has to wait for its copies before it "
        "returns. Open: no test of this runs on a GPU",
    ),
    _case(
        27,
        "a client reads a stream slowly, or never",
        "the stream pauses at its worker (`stream_window_parts`, `stream_window_bytes`), others take its place; after "
        "`unread_s` without a word it ends as `DeadlineExpired`",
    ),
    _case(
        28,
        "an old worker meets a new coordinator, or the other way round",
        "each says what it speaks: what the other does not know is not said; another wire version is refused on both "
        "sides (`VersionMismatch`), never misread",
    ),
    _case(
        29,
        "the clock jumps",
        "nothing happens: every deadline, timeout and age is monotonic time",
        "that time passes while a machine sleeps",
    ),
    _case(
        30,
        "arrays of objects, strided, big-endian, bfloat16, without dimensions, empty",
        "the same bytes, dtype and shape come back, or `UnsupportedArray` before anything is sent; nothing is pickled",
    ),
    _case(
        31,
        "the link of a host is cut",
        "after `liveness_s` its workers count as lost and their requests run elsewhere; they stop by themselves, say "
        "nothing, and end after `orphan_s`; a client there waits for `reconnect_s`. When the link is back, connections "
        "begin anew and what is unanswered is sent again; where Ray has its node again, workers start on it",
        "that Ray's node comes back by itself: Ray ends it when it was taken for dead, and who keeps it, a service, "
        "KubeRay or the autoscaler, starts it again",
    ),
    _case(
        32,
        "a node of the cluster, or the fleet, is killed",
        "as 2, for each of its workers; those that find no place wait for one, and `status` says so; a fleet's workers "
        "end with it wherever they are, and the next fleet, which Ray starts, has others",
        "that a cluster outlives its head node, where Ray's own state, the coordinator and the fleet are",
    ),
    _case(
        33,
        "a stranger finds the coordinator's port, or a peer somebody else's",
        "nothing is read that does not come from who holds the cluster's keys, and nothing is said to who does not; "
        "whoever is turned away learns why, and nobody else notices",
        "anything against who holds a whole address: it is handed out like a password",
    ),
    _case(
        34,
        "a porter is killed, or arrays lie on a host that has none",
        "who waits for it asks the next one, which Ray makes: inputs are fetched again, and results that went with it "
        "are computed again; what it held goes with it or, lent by others, within half a minute. Where none comes, "
        "arrays go in messages, one try later",
        "that this costs nothing: messages pass through the coordinator, and count against its bounds",
    ),
]

PAGE = """# What is promised, and what is not

**Promised.** A request that was accepted has exactly one terminal answer: the right output, or an error that says what
happened and whether sending it again may help (`.retryable`). That holds when any one process is killed or frozen at
any moment. Memory is not used again while somebody can read it, and when its holders are gone nothing stays on the
machine, whatever was killed. Everything that can grow has a bound ([bounds.md](bounds.md)).

**How it is shown.** By state machines under hostile inputs (`tests/coordinator`, `tests/client`, `tests/shm`), by a
simulation of all of them on simulated time (`tests/simulation`), and on real processes: `tests/cluster/test_matrix.py`
kills and freezes client, coordinator and worker at each step of the life of a small request, of one by handle and of a
stream; `tests/cluster/test_cases.py` and the others below have one fault each; [`tensoryard chaos`](chaos.md) does it
at random, to your own cluster if you like.

**Not promised.**

- *That a request runs once.* It is answered once; a worker that dies after computing and before telling has computed in
  vain, and another does it again. A pipeline with effects outside has to look at the RequestID.
- *That answers survive their client.* What a killed client had asked for is cancelled. Nothing is kept on disk.
- *That several processes may die at once without a trace.* Clients, workers and coordinator may all be killed, and what
  lives goes on; but a request whose client waits longer than `reconnect_s` for a coordinator ends as `CoordinatorLost`.
- *That a hang of the coordinator is found.* Its death is. See case 16.
- *Anything against other processes of the same user.* They may kill ours, or speak as a client.
- *That a cluster outlives its head node.* Any other host may be lost, and come back: cases 31 and 32, on three hosts in
  network namespaces (`tests/cluster/hosts.py`). `HOSTS_CUT_S=30 pytest tests/cluster/test_ray_hosts.py` cuts a link for
  half a minute instead of 6 s.

## Ways to fail

The number is the test's mark: `pytest -m case` runs all of them. Made from `tests/reliability/cases.py` and those marks
by `scripts/generate_reliability.py`; a test sees to it that no case is without a test.

"""

HEAD = "| | what happens | what becomes of it | not promised | shown by |\n|---|---|---|---|---|\n"


def page(tests: dict[int, list[str]]) -> str:
    """docs/reliability.md; `tests`: by case, as "file::name"."""
    return PAGE + HEAD + "".join(_row(case, tests[case.number]) for case in CASES)


def _row(case: Case, tests: list[str]) -> str:
    shown = "; ".join(f"`{test.removeprefix('tests/')}`" for test in tests)
    return f"| {case.number} | {case.what} | {case.outcome} | {case.not_promised} | {shown} |\n"
