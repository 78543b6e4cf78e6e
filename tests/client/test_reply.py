"""A reply: waiting, iterating, listening and cancelling, from whatever thread, before and after the end."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest

from tensoryard.client.ledger import CopyLedger
from tensoryard.client.reading import ALL, Reading
from tensoryard.client.reply import Reply
from tensoryard.errors import InvalidRequest, PipelineError, ReplyTimeout, RequestCancelled
from tensoryard.proto import AudioGenerationMetadata, AudioGenerationOutput, GenerationStatus, RequestID

from ..scripted import DEADLINE_S


@pytest.fixture
def cancelled():
    return []


@pytest.fixture
def reply(cancelled):
    return Reply(RequestID("r"), cancelled.append)


@pytest.fixture
def in_thread():
    """Runs a function in a thread; the call gives what it returned or raised."""
    threads = []

    def start(function, *args):
        outcome = []

        def run():
            try:
                outcome.append((function(*args), None))
            except BaseException as error:
                outcome.append((None, error))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        threads.append(thread)

        def result():
            thread.join(DEADLINE_S)
            assert outcome, "the thread did not end"
            value, error = outcome[0]
            if error is not None:
                raise error
            return value

        return result

    yield start
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def add(reply, output, *, done=False, **ledger):
    reply.add_output(output, CopyLedger(**ledger), done=done)


def chunk(*samples, done=False):
    status = GenerationStatus.END_OF_SEQUENCE if done else GenerationStatus.ACTIVE
    metadata = AudioGenerationMetadata(sample_rate=10, chunk_id=0)
    data = np.array(samples, np.float32)
    return AudioGenerationOutput(final_status=status, steps_executed=1, audio_data=data, metadata=metadata)


def test_the_result_is_the_only_output(reply):
    """A single output is the result, again and again, and the same object."""
    assert not reply.done
    output = object()
    add(reply, output, done=True)
    assert reply.done
    assert reply.result() is output
    assert reply.result(timeout_s=0) is output


def test_the_result_of_a_stream_is_joined(reply):
    """Audio chunks are joined end to end; the duration is that of the whole."""
    add(reply, chunk(1, 2))
    add(reply, chunk(3, done=True), done=True)
    whole = reply.result()
    assert whole.audio_data.tolist() == [1, 2, 3]
    assert whole.metadata.duration == 0.3
    assert whole.is_done


def test_a_wait_that_is_too_long_is_a_reply_timeout(reply):
    """ReplyTimeout names the request, is a TimeoutError, may be tried again, and the answer can still come."""
    for timeout_s in (0, 0.01):
        with pytest.raises(ReplyTimeout, match="request r: no answer within") as raised:
            reply.result(timeout_s)
        assert isinstance(raised.value, TimeoutError)
        assert raised.value.retryable
        assert raised.value.request_id == "r"
    add(reply, "late", done=True)
    assert reply.result(0) == "late"


def test_what_ended_it_is_raised(reply):
    """An error is raised by `result`, each time, whatever outputs came before."""
    add(reply, chunk(1))
    reply.fail(PipelineError("broken"))
    for _ in range(2):
        with pytest.raises(PipelineError, match="broken"):
            reply.result()


def test_the_first_end_counts(reply):
    """After the end, neither outputs nor errors change anything."""
    add(reply, "answer", done=True)
    reply.fail(PipelineError("late"))
    add(reply, "another", done=True)
    assert reply.result() == "answer"
    assert list(reply) == ["answer"]


def test_an_error_that_came_first_counts_too(reply):
    """An output after the error is dropped."""
    reply.fail(RequestCancelled("gone"))
    add(reply, "late", done=True)
    with pytest.raises(RequestCancelled):
        reply.result()
    with pytest.raises(RequestCancelled):
        list(reply)


def test_iteration_gives_each_output_once(reply):
    """Each iteration starts at the beginning and gives every output in order, the last included."""
    for number in range(3):
        add(reply, number)
    add(reply, 3, done=True)
    assert list(reply) == [0, 1, 2, 3]
    assert list(reply) == [0, 1, 2, 3]


def test_iteration_follows_the_stream(reply, in_thread):
    """Outputs are given as they come, while the request runs."""
    given = threading.Semaphore(0)
    seen = []

    def follow():
        for output in reply:
            seen.append(output)
            given.release()

    done = in_thread(follow)
    for number in range(3):
        add(reply, number)
        assert given.acquire(timeout=DEADLINE_S)
        assert seen[-1] == number
    add(reply, "last", done=True)
    done()
    assert seen == [0, 1, 2, "last"]


def test_iteration_gives_what_came_before_an_error(reply):
    """The outputs before a failure can be read; then the failure is raised."""
    add(reply, 1)
    add(reply, 2)
    reply.fail(PipelineError("broken"))
    outputs = iter(reply)
    assert [next(outputs), next(outputs)] == [1, 2]
    with pytest.raises(PipelineError, match="broken"):
        next(outputs)


def test_many_threads_may_wait(reply, in_thread):
    """Ten threads waiting for one reply all get its answer."""
    waiting = [in_thread(reply.result, DEADLINE_S) for _ in range(5)]
    waiting += [in_thread(list, reply) for _ in range(5)]
    add(reply, "a")
    add(reply, "b", done=True)
    assert [wait() for wait in waiting] == ["b"] * 5 + [["a", "b"]] * 5


def test_cancel_asks_once_it_runs(reply, cancelled):
    """`cancel` passes the request's id on, and after the end does nothing."""
    reply.cancel()
    assert cancelled == [RequestID("r")]
    assert not reply.done
    reply.fail(RequestCancelled("cancelled by its client"))
    reply.cancel()
    assert len(cancelled) == 1


def test_listeners_hear_every_change(reply):
    """A listener is called at each output and at the end; one that comes late, at once."""
    heard = []
    reply.add_listener(lambda: heard.append(reply.done))
    add(reply, 1)
    add(reply, 2, done=True)
    assert heard == [False, True]
    late = []
    reply.add_listener(lambda: late.append(reply.result()))
    assert late == [2]


def test_a_listener_may_use_the_reply(reply):
    """Within a listener the reply can be read, waited for and listened to; nothing blocks."""
    heard = []

    def listen():
        heard.append(reply.result(0))
        reply.add_listener(lambda: heard.append("inner"))

    reply.add_listener(listen)
    add(reply, "x", done=True)
    assert heard == ["x", "inner"]


def test_a_listener_that_raises_stops_nobody(reply, caplog):
    """Its error is logged with a traceback; the other listeners and whoever waits go on."""
    heard = []

    def broken():
        raise ZeroDivisionError("a listener's bug")

    reply.add_listener(broken)
    reply.add_listener(lambda: heard.append(1))
    add(reply, "x", done=True)
    assert heard == [1]
    assert reply.result(0) == "x"
    assert "a listener's bug" in caplog.text


# -- what is read, and what is kept of it -----------------------------------------------------------------------------


@pytest.fixture
def told():
    return []


@pytest.fixture
def windowed(told):
    """A reply to a stream of at most 4 unread outputs, or 100 bytes of them."""
    tell = lambda request_id, parts: told.append((str(request_id), parts))
    return Reply(RequestID("r"), lambda _: None, consumed=tell, reading=Reading(parts=4, size_bytes=100))


def test_reading_is_told_and_coming_is_not(windowed, told):
    """Outputs count as read when the caller gets them, one by one; half a window makes a message."""
    for number in range(4):
        windowed.add_output(number, CopyLedger(), done=False, size_bytes=1)
    assert told == []
    outputs = iter(windowed)
    assert [next(outputs), next(outputs), next(outputs)] == [0, 1, 2]
    assert told == [("r", 2)]
    windowed.tell_all()
    assert told[1:] == [("r", 3)]


@pytest.mark.parametrize("when", ["before", "while"])
def test_a_whole_that_is_wanted_is_read_as_it_comes(windowed, told, when):
    """`collect` and `result` say so once; what was read before that is no matter."""
    if when == "before":
        windowed.collect()
    windowed.add_output(0, CopyLedger(), done=False, size_bytes=90)
    if when == "while":
        with pytest.raises(ReplyTimeout):
            windowed.result(0)
    assert told == [("r", ALL)]
    for number in range(1, 50):
        windowed.add_output(number, CopyLedger(), done=number == 49, size_bytes=90)
    assert windowed.consumed == ALL
    assert len(told) == 1
    assert windowed.result() == 49
    assert list(windowed) == list(range(50))


def test_an_answer_of_one_output_is_told_by_nobody(windowed, told):
    """Neither iteration nor `result` costs a message where there is no stream."""
    windowed.collect()
    windowed.add_output("all", CopyLedger(), done=True, size_bytes=1000)
    assert list(windowed) == ["all"]
    assert windowed.result() == "all"
    windowed.tell_all()
    assert told == []


def test_a_long_stream_that_is_read_is_let_go_of(windowed):
    """Iteration keeps no more than a window of what it gave; the whole can then not be had, and the error says so."""

    class Output:
        pass

    outputs, alive = iter(windowed), []
    for number in range(20):
        windowed.add_output(Output(), CopyLedger(), done=number == 19, size_bytes=1)
        alive.append(weakref.ref(next(outputs)))
        gc.collect()
        assert sum(ref() is not None for ref in alive) <= 5
    for ask in (windowed.result, lambda: list(windowed)):
        with pytest.raises(InvalidRequest, match="the first 16 outputs of this stream have been read and let go of"):
            ask()


def test_the_ledger_grows_with_the_outputs(reply):
    """The ledger is that of the last output."""
    assert reply.ledger == CopyLedger()
    add(reply, 1, copies_out=1)
    add(reply, 2, done=True, copies_out=2)
    assert reply.ledger == CopyLedger(copies_out=2)


def test_it_can_be_printed(reply):
    """`repr` tells request, state and how many outputs came."""
    assert repr(reply) == "<Reply to r: running, 0 outputs>"
    add(reply, 1, done=True)
    assert repr(reply) == "<Reply to r: done, 1 outputs>"


def test_a_failed_reply_goes_with_its_outputs_too():
    """Whoever was given the error, by iteration or as the result, keeps nothing of the reply when that is over."""

    class Output:
        pass

    gc.disable()
    try:
        reply, output = Reply(RequestID("r"), lambda _id: None), Output()
        add(reply, output)
        watched = [weakref.ref(reply), weakref.ref(output)]
        reply.fail(PipelineError("broken", story=("accepted",)))
        told = []
        for ask in (Reply.result, list):
            try:
                ask(reply)
            except PipelineError as error:
                told.append((error.text, error.story))
        assert told == [("broken", ("accepted",))] * 2
        del reply, output
        assert [ref() for ref in watched] == [None, None]
    finally:
        gc.enable()


def test_a_reply_nobody_wants_goes_with_its_outputs():
    """A reply that is dropped is collected without a cycle, and so are its outputs and listeners."""

    class Output:
        pass

    gc.disable()
    try:
        reply, output = Reply(RequestID("r"), lambda _id: None), Output()
        reply.add_listener(lambda: None)
        add(reply, output, done=True)
        watched = [weakref.ref(reply), weakref.ref(output)]
        del reply, output
        assert [ref() for ref in watched] == [None, None]
    finally:
        gc.enable()


def test_iteration_takes_a_stride_at_once_and_gives_each_alone():
    """What has come is taken a sixteenth of the window at a time; that much counts as read."""
    told = []
    reply = Reply(RequestID("r"), lambda _: None, consumed=lambda _, n: told.append(n), reading=Reading(parts=32))
    for value in range(5):
        add(reply, value)
    parts = iter(reply)
    assert (next(parts), reply.consumed) == (0, 2)
    assert (next(parts), reply.consumed) == (1, 2)
    assert (next(parts), reply.consumed) == (2, 4)
    add(reply, 5, done=True)
    assert list(parts) == [3, 4, 5]


def test_an_output_without_a_ledger_changes_none(reply):
    """Between the first output of a stream and its last, workers tell nothing new."""
    add(reply, 1, worker="w-1")
    reply.add_output(2, None, done=False)
    assert reply.ledger == CopyLedger(worker="w-1")
