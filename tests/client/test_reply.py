"""A reply: waiting, iterating, listening and cancelling, from whatever thread, before and after the end."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest

from tensoryard.client.ledger import CopyLedger
from tensoryard.client.reply import Reply
from tensoryard.errors import PipelineError, ReplyTimeout, RequestCancelled
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
