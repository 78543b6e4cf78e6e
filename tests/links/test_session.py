"""A session keeps its peer known to the coordinator: hello, beats, hello again; and hands over between threads."""

from __future__ import annotations

import itertools
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tensoryard.errors import ConfigError, Overloaded, VersionMismatch
from tensoryard.links import Session, pid_namespace
from tensoryard.proto import wire
from tensoryard.settings import Settings
from tensoryard.shm import host_name
from tensoryard.version import __version__

from ..baseline import Baseline
from ..scripted import CALM, DEADLINE_S, Hub, fresh_address

NEVER = Settings(heartbeat_s=1000.0, liveness_s=10_000.0)


class Owner:
    """Records what a session tells it."""

    def __init__(self):
        self.told = []
        self.threads = set()
        self.silences = []
        self.failure = None
        self.beat = wire.Heartbeat(progress=7, busy=True)
        self.react = lambda _message: None
        self._changed = threading.Condition()

    def _note(self, what):
        with self._changed:
            self.told.append(what)
            self.threads.add(threading.current_thread().name)
            self._changed.notify_all()

    def on_welcome(self, welcome):
        self._note(welcome)

    def on_message(self, message, body):
        self._note((message, [bytes(frame) for frame in body]))
        self.react(message)

    def on_refused(self, error):
        self._note(error)

    def on_beat(self, silent_s):
        with self._changed:
            self.silences.append(silent_s)
            self._changed.notify_all()
        return self.beat

    def on_failure(self, error):
        self.failure = error
        self._note("failure")

    def of(self, kind):
        return [what for what in self.told if isinstance(what, kind)]

    def until(self, condition, what):
        with self._changed:
            assert self._changed.wait_for(condition, DEADLINE_S), f"not in time: {what}; told {self.told}"


@pytest.fixture
def owner():
    return Owner()


@pytest.fixture(params=["unix", "ipc"])
def scheme(request):
    """Both kinds of links: those on which any thread sends, and those on which one does."""
    return request.param


@pytest.fixture
def hub(scheme):
    with Hub(fresh_address(scheme)) as hub:
        yield hub


@pytest.fixture
def make_session(owner):
    sessions = []

    def make(address, settings=CALM, **fields):
        fields = {"role": "worker", "name": "w-1", "decoder": wire.TO_WORKER, **fields}
        sessions.append(Session(address=address, callbacks=owner, settings=settings, **fields))
        sessions[-1].start()
        return sessions[-1]

    yield make
    for session in sessions:
        session.close()
        assert not session._thread.is_alive()


def test_it_introduces_itself(hub, owner, make_session):
    """HELLO says version, role, name, host, process and software; the answer reaches the owner."""
    make_session(hub.address)
    (hello,) = hub.wait(wire.Hello)
    assert hello == wire.Hello(
        version=wire.WIRE_VERSION,
        role="worker",
        name="w-1",
        host=host_name(),
        pid=os.getpid(),
        pid_namespace=pid_namespace(),
        software=f"tensoryard {__version__}",
        features=wire.FEATURES,
    )
    owner.until(lambda: owner.told, "the welcome")
    assert owner.told == [hub.welcome()]


def test_every_callback_runs_in_its_thread(hub, owner, make_session):
    """Welcome, messages and refusals come from one thread, named after the role."""
    make_session(hub.address)
    hub.wait(wire.Hello)
    hub.send(wire.Drain(), b"a body")
    hub.send(wire.Refused(code="overloaded", text="no"))
    owner.until(lambda: len(owner.told) == 3, "three calls")
    assert owner.told[1] == (wire.Drain(), [b"a body"])
    assert owner.threads == {"tensoryard-worker"}


def test_a_refusal_is_the_error_it_names(hub, owner, make_session):
    """REFUSED becomes the class that owns its code."""
    make_session(hub.address)
    hub.wait(wire.Hello)
    hub.send(wire.Refused(code="version_mismatch", text="speak up"))
    hub.send(wire.Refused(code="overloaded", text="later"))
    owner.until(lambda: len(owner.told) == 3, "two refusals")
    assert [type(error) for error in owner.told[1:]] == [VersionMismatch, Overloaded]
    assert str(owner.told[1]) == "speak up"


def test_it_beats(hub, owner, make_session):
    """Heartbeats go out as the owner words them, while heartbeats of the coordinator go no further."""
    seen = []
    hub.script = lambda _hub, _peer, message, _body: seen.append(message)
    make_session(hub.address, Settings(heartbeat_s=0.02, liveness_s=60.0))
    hub.wait_beats(5)
    assert {m for m in seen if isinstance(m, wire.Heartbeat)} == {owner.beat}
    assert owner.told == [hub.welcome()]


def test_posts_from_many_threads_keep_their_order(hub, make_session):
    """8 threads posting 500 messages each: all arrive, those of one thread in order, bodies with them."""
    session = make_session(hub.address)

    def post(thread):
        for number in range(500):
            session.post(wire.StartFailed(deployment=f"{thread}", text=f"{number}"), [b"%d" % number])

    threads = [threading.Thread(target=post, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    messages = hub.wait(wire.StartFailed, 4000)
    assert len(messages) == 4000
    for thread in range(8):
        assert [m.text for m in messages if m.deployment == f"{thread}"] == [f"{n}" for n in range(500)]
    assert hub.bodies(wire.StartFailed) == [[message.text.encode()] for message in messages]


def test_what_is_posted_together_leaves_at_the_end(hub, owner, make_session):
    """In order, with nothing else needed; also when something goes wrong before the end."""
    session = make_session(hub.address)
    owner.until(lambda: owner.told, "the welcome")

    def post_and_fail():
        with session.together():
            for number in range(20):
                session.post(wire.Cancel(request_id=str(number)))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        post_and_fail()
    assert [cancel.request_id for cancel in hub.wait(wire.Cancel, 20)] == [str(number) for number in range(20)]
    session.post(wire.Cancel(request_id="alone"))
    assert hub.wait(wire.Cancel, 21)[-1].request_id == "alone"


def test_a_flush_does_not_wait_for_the_end(hub, owner, make_session):
    """What was posted before it leaves, since its owner is about to wait for what that brings."""
    session = make_session(hub.address)
    owner.until(lambda: owner.told, "the welcome")
    with session.together():
        session.post(wire.Cancel(request_id="first"))
        session.flush()
        assert hub.wait(wire.Cancel)[0].request_id == "first"


def test_a_burst_larger_than_a_turn_is_served_to_its_end(hub, owner, make_session):
    """Many messages of one packet: what one turn leaves, the next takes up without waiting for more to come."""
    session = make_session(hub.address, NEVER)
    owner.until(lambda: owner.told, "the welcome")
    hub.send_together(wire.CancelWork(request_id=str(number), attempt=1) for number in range(1000))
    owner.until(lambda: len(owner.told) == 1001, "all of them")
    assert session.silent_s < 1000


def test_a_post_does_not_wait_for_a_beat(hub, make_session):
    """What is posted leaves at once, however rare heartbeats are."""
    session = make_session(hub.address, NEVER)
    hub.wait(wire.Hello)
    session.post(wire.Cancel(request_id="r"))
    hub.wait(wire.Cancel)


def test_close_sends_what_is_queued_and_says_goodbye(hub, make_session):
    """Everything posted before `close` arrives, then DISCONNECT, last and once; closing again is harmless."""
    session = make_session(hub.address)
    for number in range(500):
        session.post(wire.Cancel(request_id=f"{number}"))
    session.close()
    session.close()
    hub.wait(wire.Disconnect)
    assert [message.request_id for message in hub.of(wire.Cancel)] == [f"{number}" for number in range(500)]
    assert isinstance(hub.seen[-1][1], wire.Disconnect)


def test_it_may_be_closed_from_its_own_thread(hub, owner, make_session):
    """A callback that closes the session ends it, without waiting for itself."""
    session = make_session(hub.address)
    owner.react = lambda _message: session.close()
    hub.wait(wire.Hello)
    hub.send(wire.Drain())
    hub.wait(wire.Disconnect)
    session._thread.join(DEADLINE_S)
    assert not session._thread.is_alive()
    assert owner.failure is None


def test_one_that_never_began_can_be_closed(owner):
    """Closing a session that was not started leaves nothing open."""
    before = Baseline()
    session = Session(
        address=fresh_address(), role="client", name="c", decoder=wire.TO_CLIENT, callbacks=owner, settings=CALM
    )
    session.close()
    session.post(wire.Shutdown())
    before.assert_nothing_new()


def test_a_late_post_touches_nobody(hub, make_session):
    """After `close`, a post writes to no descriptor that somebody else was given meanwhile."""
    session = make_session(hub.address)
    fd = session._wake_fd
    session.close()
    taken = []
    while fd not in taken:
        taken.append(os.eventfd(0, os.EFD_NONBLOCK))
        assert len(taken) < 1000, "the session's descriptor was not given back"
    try:
        session.post(wire.Shutdown())
        for other in taken:
            with pytest.raises(BlockingIOError):
                os.eventfd_read(other)
    finally:
        for other in taken:
            os.close(other)


def test_sessions_leave_nothing_open(hub, owner, eventually):
    """100 sessions, opened and closed, leave as many descriptors and threads as before."""
    before = Baseline()
    for number in range(100):
        session = Session(
            address=hub.address, role="client", name=f"{number}", decoder=wire.TO_CLIENT, callbacks=owner, settings=CALM
        )
        session.start()
        session.close()
    before.assert_nothing_new()


# -- hello again ------------------------------------------------------------------------------------------------------


def test_it_says_hello_again_when_told_to(hub, owner, make_session):
    """REJOIN is answered by HELLO, and the owner hears of the second welcome."""
    make_session(hub.address)
    owner.until(lambda: owner.told, "the first welcome")
    hub.send(wire.Rejoin())
    hub.wait(wire.Hello, 2)
    owner.until(lambda: len(owner.of(wire.Welcome)) == 2, "the second welcome")


def test_a_hail_of_rejoins_is_one_hello(hub, owner, make_session):
    """A coordinator that answers 500 messages with REJOIN gets one HELLO; a REJOIN after its answer, one more."""
    session = make_session(hub.address, NEVER)
    owner.until(lambda: owner.told, "the first welcome")
    hub.script = lambda _hub, _peer, message, _body: isinstance(message, wire.Hello)  # answers none
    for _ in range(500):
        hub.send(wire.Rejoin())
    hub.send(wire.Drain())
    owner.until(lambda: (wire.Drain(), []) in owner.told, "every REJOIN was read")
    session.post(wire.Cancel(request_id="after all"))
    hub.wait(wire.Cancel)
    assert len(hub.of(wire.Hello)) == 2
    hub.send(hub.welcome())
    hub.send(wire.Rejoin())
    hub.wait(wire.Hello, 3)


def test_an_unanswered_hello_is_said_again(hub, owner, make_session):
    """When the answer to HELLO was lost, a REJOIN after a heartbeat's time makes it say HELLO again."""
    hub.script = lambda hub, _peer, message, _body: (
        (isinstance(message, wire.Heartbeat) and (hub.send(wire.Rejoin()) or True))
        or (isinstance(message, wire.Hello) and len(hub.of(wire.Hello)) < 3)
    )
    make_session(hub.address, Settings(heartbeat_s=0.02, liveness_s=60.0))
    hub.wait(wire.Hello, 3)
    owner.until(lambda: owner.told, "the welcome")


def test_it_finds_a_replaced_hub(owner, make_session, scheme):
    """It goes on with a second coordinator at the same address, says HELLO, and hears its epoch."""
    address = fresh_address(scheme)
    rejoin = lambda hub, peer, message, _body: (
        isinstance(message, wire.Heartbeat) and not hub.of(wire.Hello) and (hub.send(wire.Rejoin(), to=peer) or True)
    )
    with Hub(address) as first:
        make_session(address)
        owner.until(lambda: owner.told, "the first welcome")
        epoch = first.epoch
    with Hub(address, script=rejoin):
        owner.until(lambda: len(owner.told) == 2, "the second welcome")
    assert owner.told[1].epoch != epoch


def test_w_47_each_connection_begins_with_hello(owner, make_session, eventually):
    """To a coordinator in another's place HELLO comes first; what was posted meanwhile is left for its owner to say."""
    address = fresh_address()
    with Hub(address) as first:
        session = make_session(address)
        owner.until(lambda: owner.told, "the first welcome")
        link = session._open_link
        first.wait_beats(1)
    eventually(lambda: not link.connected, "the end of the coordinator is noticed")
    session.post(wire.Cancel(request_id="of an earlier conversation"))
    with Hub(address) as second:
        owner.until(lambda: len(owner.of(wire.Welcome)) == 2, "the second welcome")
        session.post(wire.Cancel(request_id="of this one"))
        second.wait(wire.Cancel)
        assert [type(message) for _, message, _ in second.seen] == [wire.Hello, wire.Cancel]
        assert second.of(wire.Cancel)[0].request_id == "of this one"


def test_a_post_before_the_start_is_sent(hub, owner):
    """What is posted before there is a link leaves once there is one, after HELLO and before what is posted later."""
    session = Session(
        address=hub.address, role="worker", name="w", decoder=wire.TO_WORKER, callbacks=owner, settings=NEVER
    )
    for number in range(100):
        session.post(wire.Cancel(request_id=f"{number}"))
    session.start()
    for number in range(100, 200):
        session.post(wire.Cancel(request_id=f"{number}"))
    try:
        hub.wait(wire.Cancel, 200)
        assert isinstance(hub.seen[0][1], wire.Hello)
        assert [message.request_id for message in hub.of(wire.Cancel)] == [f"{number}" for number in range(200)]
    finally:
        session.close()


# -- silence ----------------------------------------------------------------------------------------------------------


def test_silence_is_measured_and_beats_become_rare(hub, owner, make_session):
    """While the coordinator is silent its silence grows beat by beat; over `liveness_s`, every fifth beat is left."""
    session = make_session(hub.address, Settings(heartbeat_s=0.05, liveness_s=0.2))
    owner.until(lambda: owner.told, "the welcome")
    hub.silent = True
    owner.until(lambda: owner.silences and owner.silences[-1] > 0.6, "a long silence")
    start = max(index for index, silence in enumerate(owner.silences) if silence == 0)
    grown = owner.silences[start:]
    steps = [round(after - before, 3) for before, after in itertools.pairwise(grown[1:])]
    assert set(steps) == {0.05, 0.25}
    assert all(step == (0.25 if silence > 0.2 else 0.05) for silence, step in zip(grown[1:], steps, strict=False))
    hub.silent = False
    owner.until(lambda: owner.silences and owner.silences[-1] == 0, "the silence is over")
    assert session.silent_s < 0.2


def test_a_word_ends_the_silence_at_once(hub, owner, make_session):
    """Any message, not only the next beat, sets the silence back to nothing."""
    session = make_session(hub.address, Settings(heartbeat_s=0.05, liveness_s=0.1))
    owner.until(lambda: owner.told, "the welcome")
    hub.silent = True
    owner.until(lambda: owner.silences and owner.silences[-1] > 0.3, "a silence")
    seen = []
    owner.react = lambda _message: seen.append(session.silent_s)
    hub.send(wire.Drain())
    owner.until(lambda: seen, "the message")
    assert seen == [0.0]


_SILENT_CHILD = """
import sys
from tensoryard.links import Session
from tensoryard.proto import wire
from tensoryard.settings import Settings

class Owner:
    def on_welcome(self, welcome): pass
    def on_message(self, message, body): pass
    def on_refused(self, error): pass
    def on_failure(self, error): print("failed", flush=True)
    def on_beat(self, silent_s):
        print(silent_s, flush=True)
        return wire.Heartbeat()

session = Session(address=sys.argv[1], role="client", name="c", decoder=wire.TO_CLIENT, callbacks=Owner(),
                  settings=Settings(heartbeat_s=0.1, liveness_s=0.5))
session.start()
sys.stdin.read()
session.close()
"""


@pytest.mark.process
def test_a_process_that_was_stopped_does_not_blame_the_coordinator(hub):
    """A session counts no more silence for a beat than the beat was to last, however long SIGSTOP made it."""
    command = [sys.executable, "-P", "-c", _SILENT_CHILD, hub.address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        try:
            hub.wait_beats(5)
            for _ in range(3):
                os.kill(child.pid, signal.SIGSTOP)
                threading.Event().wait(0.5)  # the time that passes is the test's subject
                os.kill(child.pid, signal.SIGCONT)
                hub.wait_beats(5)
        finally:
            child.kill()
            silences = [float(line) for line in child.communicate(timeout=DEADLINE_S)[0].split()]
    assert len(silences) >= 20
    steps = [after - before for before, after in itertools.pairwise(silences) if before <= 0.5]
    assert max(steps) < 0.11


# -- trouble ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frame",
    [b"", b"\x00", os.urandom(64), b"\x91\xa3XYZ", b"\x93\xa7WELCOME\x01\x02", b"\xc1", b"\x91" * 5000],
    ids=["empty", "number", "random", "unknown", "incomplete", "reserved", "deep"],
)
def test_a_message_it_cannot_read_is_dropped(hub, owner, make_session, caplog, frame):
    """Nonsense from the coordinator is logged and left; the session goes on."""
    make_session(hub.address)
    owner.until(lambda: owner.told, "the welcome")
    hub.send_frames(frame)
    hub.send(wire.Drain())
    owner.until(lambda: len(owner.told) == 2, "the message after it")
    assert owner.failure is None
    assert "was dropped" in caplog.text


def test_a_flood_starves_nobody(hub, owner, make_session):
    """While messages come faster than they are taken, what is posted still leaves, and beats do."""
    over = threading.Event()

    def flood():
        hub.wait(wire.Hello)
        sent = 0
        while not over.is_set():
            if sent - len(owner.told) < 5000:  # always more than it takes in a turn, never what it is cut off for
                for _ in range(1000):
                    hub.send(wire.Drain())
                sent += 1000
            over.wait(0.001)

    owner.react = lambda _message: time.sleep(0.0002)  # slower than the flood
    flooding = threading.Thread(target=flood, daemon=True)
    flooding.start()
    try:
        session = make_session(hub.address, Settings(heartbeat_s=0.05, liveness_s=60.0))
        owner.until(lambda: len(owner.told) > 500, "the flood has begun")
        session.post(wire.Cancel(request_id="help"))
        hub.wait(wire.Cancel)
        hub.wait_beats(3)
    finally:
        over.set()
        flooding.join(DEADLINE_S)


def test_a_bug_in_a_callback_ends_it_and_says_so(hub, owner, make_session, caplog):
    """An exception of the owner's ends the thread, is logged with its traceback, and reaches `on_failure`."""

    def fail(_message):
        raise ZeroDivisionError("a bug")

    owner.react = fail
    session = make_session(hub.address)
    hub.wait(wire.Hello)
    hub.send(wire.Drain())
    owner.until(lambda: owner.failure is not None, "the failure")
    session._thread.join(DEADLINE_S)
    assert not session._thread.is_alive()
    assert isinstance(owner.failure, ZeroDivisionError)
    assert "Traceback" in caplog.text
    session.post(wire.Shutdown())  # harmless


def test_an_address_that_is_none_is_a_config_error(owner, make_session, caplog):
    """A wrong address reaches `on_failure` as ConfigError; it is no bug, and shows no traceback."""
    make_session("garbage")
    owner.until(lambda: owner.failure is not None, "the failure")
    assert isinstance(owner.failure, ConfigError)
    assert "garbage" in caplog.text
    assert "Traceback" not in caplog.text


def test_it_watches_other_descriptors(hub, owner, make_session):
    """A descriptor given to watch has its function called, in the session's thread, when it becomes readable."""
    called = threading.Event()
    read, write = os.pipe()
    try:
        make_session(hub.address, NEVER, watch={read: lambda: (os.read(read, 1), called.set())})
        os.write(write, b"x")
        assert called.wait(DEADLINE_S)
        assert owner.failure is None
    finally:
        os.close(write)
        os.close(read)


def test_a_pid_namespace_is_told_or_nothing(monkeypatch):
    """Two processes that see each other's pids have one text; where /proc does not tell, it is empty."""
    assert pid_namespace() == os.readlink("/proc/self/ns/pid")

    def hidden(_path):
        raise PermissionError

    monkeypatch.setattr(Path, "readlink", hidden)
    assert pid_namespace() == ""


def test_hello_does_not_depend_on_the_age_of_the_machine(hub, make_session, monkeypatch):
    """A machine that has just been started, whose clock is near nothing, says HELLO too."""
    boot = time.monotonic()
    clock = time.monotonic
    monkeypatch.setattr("tensoryard.links.session.time.monotonic", lambda: clock() - boot)
    make_session(hub.address, NEVER)
    hub.wait(wire.Hello)


def test_the_log_is_quiet_when_all_is_well(hub, owner, make_session, caplog):
    """Opening, working and closing log nothing."""
    with caplog.at_level(logging.INFO):
        session = make_session(hub.address)
        owner.until(lambda: owner.told, "the welcome")
        session.close()
    assert not [record for record in caplog.records if record.name.startswith("tensoryard")]
    assert math.isfinite(session.silent_s)


# -- callers that wait ------------------------------------------------------------------------------------------------


def _arrived(owner):
    return lambda: (wire.Drain(), []) in owner.told


def test_who_waits_sees_what_arrives(hub, owner, make_session):
    """A caller waits for what a callback brings about, on either kind of link, again and again."""
    session = make_session(hub.address, NEVER)
    owner.until(lambda: owner.told, "the welcome")
    for _ in range(20):
        owner.told.clear()
        hub.send(wire.Drain())
        assert session.wait(owner._changed, _arrived(owner), DEADLINE_S)


def test_a_wait_ends_in_time(hub, owner, make_session):
    """False after the time that was given; True at once for what is so already, whoever serves."""
    session = make_session(hub.address, NEVER)
    owner.until(lambda: owner.told, "the welcome")
    assert not session.wait(owner._changed, lambda: False, 0.02)
    assert session.wait(owner._changed, lambda: True, 0.0)


def test_many_who_wait_are_all_served(hub, owner, make_session):
    """32 threads, each waiting for a message of its own."""
    session = make_session(hub.address, NEVER)
    owner.until(lambda: owner.told, "the welcome")
    served = []

    def wait(number):
        mine = (wire.CancelWork(request_id=f"{number}", attempt=1), [])
        served.append(session.wait(owner._changed, lambda: mine in owner.told, DEADLINE_S))

    threads = [threading.Thread(target=wait, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for number in range(32):
        hub.send(wire.CancelWork(request_id=f"{number}", attempt=1))
    for thread in threads:
        thread.join(DEADLINE_S)
    assert served == [True] * 32


def test_beats_go_on_while_a_caller_waits(hub, owner, make_session):
    """Whoever serves the session sends its heartbeats."""
    session = make_session(hub.address, Settings(heartbeat_s=0.02, liveness_s=60.0))
    owner.until(lambda: owner.told, "the welcome")
    assert session.wait(owner._changed, lambda: len(owner.silences) > 10, DEADLINE_S)


def test_close_ends_the_service_of_a_caller(hub, owner, make_session):
    """A session that is closed while a caller serves it ends all the same; the caller learns from its condition."""
    session = make_session(hub.address, NEVER)
    owner.until(lambda: owner.told, "the welcome")
    over = threading.Event()
    waiting = threading.Thread(target=session.wait, args=(owner._changed, over.is_set))
    waiting.start()
    session.close()
    hub.wait(wire.Disconnect)
    over.set()
    with owner._changed:
        owner._changed.notify_all()
    waiting.join(DEADLINE_S)
    assert not waiting.is_alive()


@pytest.mark.parametrize("scheme", ["unix"], indirect=True)
def test_a_callers_broken_off_turn_begins_the_conversation_anew(hub, owner, make_session):
    """An interrupt in the midst of a message reaches the caller, and the coordinator is asked to tell all again."""
    session = make_session(hub.address, NEVER)
    owner.until(lambda: owner.told, "the welcome")
    main, interrupted = threading.get_ident(), []

    def interrupt(_message):
        if threading.get_ident() == main and not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt

    owner.react = interrupt
    while not interrupted:  # on a busy machine the session's own thread may get it
        owner.told.clear()
        hub.send(wire.Drain())
        try:
            session.wait(owner._changed, _arrived(owner), DEADLINE_S)
        except KeyboardInterrupt:
            break
    owner.until(lambda: owner.of(wire.Welcome), "the second welcome")
    assert len(hub.of(wire.Hello)) == 2


@pytest.mark.parametrize("scheme", ["unix"], indirect=True)
def test_a_bug_met_in_a_callers_turn_ends_the_session(hub, owner, make_session):
    """The owner is told by the session's thread; the caller who happened to serve is not to blame."""
    session = make_session(hub.address, NEVER)
    owner.until(lambda: owner.told, "the welcome")

    def fail(_message):
        raise ZeroDivisionError

    owner.react = fail
    hub.send(wire.Drain())
    assert session.wait(owner._changed, lambda: owner.failure is not None, DEADLINE_S)
    assert isinstance(owner.failure, ZeroDivisionError)
