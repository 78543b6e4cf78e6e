"""The 48 known weaknesses of the interface that the contracts follow, none of which ours may have.

Each has at least one test named `test_weakness_NN_...` somewhere under tests/; those that concern one module stand with
the tests of that module, the rest here. `ALSO` names tests that hold a part of one under another name, `PARTS` what no
test holds yet, and why. Tests keep this index.
"""

from __future__ import annotations

import ast
import gc
import os
import pickle
import re
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
from collections import defaultdict
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

import tensoryard.proto as proto
from tensoryard import errors
from tensoryard.errors import (
    DecodeError,
    InvalidRequest,
    PoolExhausted,
    SegmentGone,
    StaleHandle,
    TensoryardError,
    VersionMismatch,
)
from tensoryard.links.zeromq import ZmqHub, ZmqPeer
from tensoryard.proto import wire
from tensoryard.proto.codec import SHARED, decode_body, encode_body
from tensoryard.proto.one_shot import OneShotContext
from tensoryard.proto.open_responses_body import OpenResponsesRequestBody
from tensoryard.settings import Settings
from tensoryard.shm import Pool, Reader, os_memory
from tensoryard.workers.batcher import Batcher, Work
from tensoryard.workers.engine import Engine
from tensoryard.workers.inbox import Inbox

from ..scripted import has_input

TESTS = Path(__file__).resolve().parents[1]
NUMBERS = range(1, 49)
ARRAY = np.arange(1 << 16, dtype=np.float32)

#: Tests of another name that hold a part of a weakness, in the words of their own module.
ALSO = {
    10: (
        ("proto/test_codec.py", "test_w_24_garbage_is_a_decode_error"),
        ("proto/test_codec.py", "test_w_25_claimed_sizes_are_checked_before_memory_is_taken"),
        ("proto/test_codec.py", "test_w_26_declared_dtypes_and_dimensions_are_checked"),
    ),
    11: (("proto/test_codec.py", "test_w_28_forged_handles_are_decode_errors"),),
    15: (("client/test_connection.py", "test_the_caller_may_go_on_writing_to_its_arrays"),),
    21: (("proto/test_eos.py", "test_may_end_settles_most_tokens"),),
    31: (("proto/test_eos.py", "test_text_agrees_with_a_search_of_everything"),),
    34: (("proto/test_sampling.py", "test_refuses"), ("proto/test_sampling.py", "test_arrival_is_checked")),
    36: (("proto/test_text_context.py", "test_refused_token_turns_the_grammar_off"),),
    39: (("proto/test_audio.py", "test_an_input_or_a_prompt_is_needed"),),
    40: (("proto/test_audio.py", "test_metadata_keep_zeros"),),
    44: (
        ("proto/test_tool_parsers.py", "test_any_text_in_any_pieces_gives_the_same"),
        ("proto/test_reasoning_parsers.py", "test_work_is_linear"),
    ),
    46: (("proto/test_reasoning_parsers.py", "test_any_chunks_give_the_same"),),
    48: (
        ("cluster/test_bad_input.py", "test_one_bad_item_fails_alone"),
        ("cluster/test_faults.py", "test_cancel_while_it_runs_and_while_it_waits"),
    ),
}

#: Parts of a weakness that no test of its number holds, and why.
PARTS = {
    15: "the buffers of `msgpack_numpy_oob_encoder` itself are views of the arrays, as its docstring says; client and "
    "worker copy them before they wait for a socket",
    47: "no worker serves LoRA operations yet, so there are no replies to mismatch and no list to drift; a reply is "
    "matched by RequestID like any other",
}


# -- the index --------------------------------------------------------------------------------------------------------


def named_in(path):
    """The names of the tests in a file, each with its docstring."""
    tree = ast.parse(path.read_text())
    return {
        node.name: ast.get_docstring(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def numbered():
    """The tests of each weakness, as pairs of file and name."""
    found = defaultdict(list)
    for path in sorted(TESTS.rglob("test_*.py")):
        for name in named_in(path):
            if match := re.match(r"test_weakness_(\d\d)_\w+", name):
                found[int(match[1])].append((path.relative_to(TESTS).as_posix(), name))
    return found


def test_every_weakness_has_a_test_of_its_number():
    """Each of the 48 has at least one, which says what it claims; what is left over of one has a reason."""
    found = numbered()
    assert sorted(found) == list(NUMBERS)
    for entries in found.values():
        assert all(named_in(TESTS / file)[name] for file, name in entries), entries
    assert set(PARTS) <= set(found)
    assert all(len(reason) > 20 for reason in PARTS.values())


@pytest.mark.parametrize(("number", "file", "name"), [(n, *entry) for n, entries in ALSO.items() for entry in entries])
def test_the_index_names_tests_that_are_there(number, file, name):
    """What is said to hold a part of a weakness exists, and says what it claims."""
    assert number in NUMBERS
    assert named_in(TESTS / file).get(name), f"{file} has no {name} with a docstring"


def test_numbers_are_well_formed():
    """No test is lost to a misspelt number."""
    for path in TESTS.rglob("test_*.py"):
        for name in named_in(path):
            if "weakness" in name and path != Path(__file__):
                match = re.fullmatch(r"test_weakness_(\d\d)_[a-z0-9_]+", name)
                assert match, f"{path.name}: {name}"
                assert int(match[1]) in NUMBERS


# -- shared memory ----------------------------------------------------------------------------------------------------


@pytest.fixture
def pool():
    with Pool(budget_bytes=64 << 20) as pool:
        yield pool


@pytest.fixture
def reader():
    reader = Reader()
    yield reader
    reader.close()


def shared(pool):
    return proto.msgpack_numpy_encoder(use_shared_memory=True, shared_memory_threshold=0, pool=pool)


def in_child(code, **how):
    """Start a Python of its own on some code."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **how,
    )


#: A process that shares an array, tells how to read it, and ends when told to.
PRODUCER = """
    import sys
    import numpy as np
    import tensoryard.proto as proto
    encoder = proto.msgpack_numpy_encoder(use_shared_memory=True, shared_memory_threshold=0)
    print(encoder(np.arange(1 << 16, dtype=np.float32)).hex(), flush=True)
    sys.stdin.readline()
"""


def test_weakness_01_the_same_bytes_are_read_many_times(pool):
    """One message serves several readers, a retry and a log: reading it takes nothing away."""
    data = shared(pool)(ARRAY)
    decode = proto.msgpack_numpy_decoder(np.ndarray)
    views = [decode(data) for _ in range(3)]
    other = Reader()
    views.append(decode_body([data], np.ndarray, resolve=other.claim))
    for view in views:
        np.testing.assert_array_equal(view, ARRAY)
    del views
    other.close()


def test_weakness_02_what_nobody_reads_comes_back():
    """A message that is dropped gives its memory back after its time, and an encoding that fails at once."""
    with Pool(budget_bytes=64 << 20, claim_timeout_s=0.0) as pool:
        shared(pool)(ARRAY)
        assert pool.statistics().used_blocks == 0
        with pytest.raises(TypeError):
            shared(pool)([ARRAY, ARRAY[1:], object()])
        assert pool.statistics().used_blocks == 0
        pool.check_invariants()


@pytest.mark.process
def test_weakness_02_nothing_stays_when_a_process_is_killed():
    """Memory has no name that could outlive its processes: all that a producer maps and shares ends with it."""
    producer = in_child(PRODUCER)
    producer.stdout.readline()
    mapped = Path(f"/proc/{producer.pid}/maps").read_text()
    producer.kill()
    producer.communicate()
    shared = [line for line in mapped.splitlines() if " rw-s " in line]
    assert shared
    assert all(re.search(r" /memfd:\S+ \(deleted\)$", line) for line in shared), shared


@pytest.mark.process
def test_weakness_03_a_producer_that_leaves_early_is_a_clear_error():
    """Data of a process that ended unread are lost with an error that says so and may be retried, and no warnings."""
    producer = in_child(PRODUCER)
    data = bytes.fromhex(producer.stdout.readline())
    _, told = producer.communicate("\n")
    assert told == ""
    with pytest.raises(SegmentGone) as caught:
        proto.msgpack_numpy_decoder(np.ndarray)(data)
    assert caught.value.retryable


@pytest.mark.process
def test_weakness_03_a_reader_keeps_what_it_has(eventually):
    """An array that was read stays whole when its producer is killed."""
    producer = in_child(PRODUCER)
    view = proto.msgpack_numpy_decoder(np.ndarray)(bytes.fromhex(producer.stdout.readline()))
    producer.kill()
    producer.communicate()
    np.testing.assert_array_equal(view, ARRAY)


def test_weakness_04_memory_is_reserved_before_it_is_written(monkeypatch):
    """A machine without memory is an error when memory is asked for, never a SIGBUS when it is written."""
    reserved = []
    real = os.posix_fallocate
    monkeypatch.setattr(os, "posix_fallocate", lambda fd, start, size: reserved.append(size) or real(fd, start, size))
    with Pool(budget_bytes=64 << 20) as pool:
        array = pool.empty((1 << 20,), np.uint8)
        assert sum(reserved) >= pool.statistics().reserved_bytes >= array.nbytes

    def refuse(_fd, _start, _size):
        raise OSError(28, "No space left on device")

    with Pool(budget_bytes=64 << 20) as pool:
        monkeypatch.setattr(os, "posix_fallocate", refuse)
        with pytest.raises(PoolExhausted, match="No space left"):
            pool.empty((1 << 20,), np.uint8)


def test_weakness_05_the_budget_is_counted_not_guessed(monkeypatch):
    """However many threads take memory at once, their sum stays in the budget; no file system is asked what is free."""
    monkeypatch.setattr(os, "statvfs", lambda *_: pytest.fail("what is free now may be gone at once"))
    kept, lock = [], threading.Lock()
    with Pool(budget_bytes=16 << 20) as pool:

        def take():
            while True:
                try:
                    array = pool.empty((300_000,), np.uint8)
                except PoolExhausted:
                    return
                with lock:
                    kept.append(array)

        threads = [threading.Thread(target=take) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(array.nbytes for array in kept) <= pool.statistics().reserved_bytes <= 16 << 20
        assert len(kept) > 20
        pool.check_invariants()
        kept.clear()


def test_weakness_06_memory_is_used_again(pool, reader):
    """A hundred tensors, one after another, take one segment of the system, and one mapping of the reader."""
    for number in range(100):
        encoded = encode_body(np.full(1 << 16, number, np.float32), place=pool.publish)
        view = decode_body(encoded.frames, np.ndarray, resolve=reader.open)
        assert view[0] == number
        encoded.release()
        del view
    assert pool.statistics().taken_total == 100
    assert pool.statistics().segments_created_total == 1
    assert reader.mapped_segments == 1


@pytest.mark.parametrize("way", ["inline", "by handle", "out of band"])
@pytest.mark.parametrize(
    "array",
    [np.array([object(), None]), np.zeros(2, dtype=[("a", "<i4"), ("b", "O")]), np.zeros(2, dtype=[("a", "<i4")])],
    ids=["objects", "structured objects", "structured"],
)
def test_weakness_07_pointers_never_travel(pool, way, array):
    """An array of objects or fields is a TypeError that says where it is, before a byte of it is written."""
    request = proto.EmbeddingsRequest(model="m", input="x", options={"deep": [0, {"here": array}]})
    place = pool.publish if way == "by handle" else None
    with pytest.raises(TypeError, match=r"options\['deep'\]\[1\]\['here'\]"):
        encode_body(request, place=place, out_of_band=way == "out of band", threshold_bytes=0)
    assert pool.statistics().used_blocks == 0


def test_weakness_08_a_view_keeps_its_memory(pool):
    """Closing reader and pool takes nothing from under an array, nor from under a slice of it."""
    reader = Reader()
    view = decode_body([shared(pool)(ARRAY)], np.ndarray, resolve=reader.claim)[1000:2000]
    reader.close()
    pool.close()
    del reader
    gc.collect()
    np.testing.assert_array_equal(view, ARRAY[1000:2000])


@pytest.mark.process
def test_weakness_08_views_that_live_at_exit_are_harmless():
    """A process that ends with views alive, and reads one in its last function, ends well."""
    child = in_child(
        """
        import atexit
        import numpy as np
        import tensoryard.proto as proto
        encoder = proto.msgpack_numpy_encoder(use_shared_memory=True, shared_memory_threshold=0)
        kept = [proto.msgpack_numpy_decoder(np.ndarray)(encoder(np.ones(1 << 16))) for _ in range(9)]
        pointer = kept[0].ctypes.data
        atexit.register(lambda: print(int(sum(view.sum() for view in kept))))
        """
    )
    said, told = child.communicate()
    assert (child.returncode, said.strip(), told) == (0, str(9 << 16), "")


# -- the codec --------------------------------------------------------------------------------------------------------


class Stranger:
    """A class that no message knows."""


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (Stranger(), "Stranger"),
        ({"a": [1, {2: Stranger()}]}, r"\['a'\]\[1\]\[2\].*Stranger"),
        (proto.EmbeddingsRequest(model="m", input="x", options={"f": len}), r"options\['f'\].*builtin"),
        (proto.SamplingParams(logits_processors=[print]), "logits_processors"),
    ],
)
def test_weakness_09_what_cannot_travel_is_named(value, path):
    """A value of a kind that no message carries is a TypeError that names the path to it."""
    for encode in (proto.msgpack_numpy_encoder(), proto.msgpack_numpy_oob_encoder()):
        with pytest.raises(TypeError, match=path):
            encode(value)


def extension(code, *fields):
    return msgpack.packb(msgpack.ExtType(code, msgpack.packb(fields)))


@pytest.mark.parametrize(
    "frames",
    [
        [extension(1, "<f4", [-1], b"")],
        [extension(1, "<f4", [3], b"1234")],
        [extension(1, "|O", [1], b"12345678")],
        [extension(3, -1, [1], "<f4"), b"1234"],
        [extension(3, 1, [1], "<f4")],
        [extension(3, 2, [1], "<f4"), b"1234"],
        [b"\xc1"],
        [b"\xa3no"],
        [],
        [msgpack.packb({"__np__": True, "data": b"1234", "shape": [1], "dtype": "<f4"})],
    ],
)
def test_weakness_10_one_family_of_errors(frames):
    """Bad bytes, sizes, names and missing frames are all one error, which is a ValueError and one of ours."""
    with pytest.raises(DecodeError) as caught:
        decode_body(frames, np.ndarray)
    assert isinstance(caught.value, TensoryardError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("declared", [np.int64, np.float64])
def test_weakness_10_what_is_declared_is_checked(declared):
    """An array of another dtype, or of another rank, than its annotation is refused."""
    body = encode_body(np.zeros((2, 2), np.float32)).frames
    with pytest.raises(DecodeError, match="float32"):
        decode_body(body, np.ndarray[tuple[int, int], np.dtype[declared]])
    with pytest.raises(DecodeError, match="dimension"):
        decode_body(body, np.ndarray[tuple[int], np.dtype[np.float32]])


def test_weakness_10_lost_memory_is_told_apart(pool, reader):
    """Memory that was there and is gone is an error of its own, after which sending again may help."""
    encoded = encode_body(ARRAY, place=pool.publish)
    encoded.release()
    pool.place(ARRAY).release()
    with pytest.raises(StaleHandle) as caught:
        decode_body(encoded.frames, np.ndarray, resolve=reader.open)
    assert caught.value.retryable
    assert not DecodeError("x").retryable


@pytest.fixture
def foreign():
    """A segment of somebody else, with a name."""
    segment = shared_memory.SharedMemory(create=True, size=4096)
    segment.buf[:6] = b"secret"
    yield segment
    segment.close()
    segment.unlink()


def test_weakness_11_no_message_can_name_memory_of_others(foreign, pool, reader):
    """A handle names a block of a pool of ours or nothing: what else it says is refused, and nothing is touched."""
    handles = [
        (foreign.name, [6], "|u1", 0, 0, ""),
        (f"/dev/shm/{foreign.name}", [6], "|u1", 0, 0, ""),
        (f"{pool.name}.1", [1 << 30], "|u1", 0, 1, pool.host),
        (f"{pool.name}.99", [6], "|u1", 4096, 1, pool.host),
        (f"{'0' * 16}.1", [6], "|u1", 4096, 1, pool.host),
    ]
    for handle in handles:
        for resolve in (reader.open, reader.claim):
            with pytest.raises(TensoryardError):
                decode_body([extension(SHARED, *handle)], np.ndarray, resolve=resolve)
    attached = shared_memory.SharedMemory(foreign.name)
    assert bytes(attached.buf[:6]) == b"secret"
    attached.close()


@pytest.mark.parametrize(
    "sentinel",
    [
        {"__shm__": True, "name": "NAME", "shape": [6], "dtype": "|u1"},
        {"__np__": True, "data": b"123456", "shape": [6], "dtype": "|u1"},
        {"__np_oob__": True, "index": 0, "shape": [6], "dtype": "|u1"},
        {"__pydantic__": True, "type": "builtins.dict", "data": {}},
    ],
    ids=lambda sentinel: next(iter(sentinel)),
)
def test_weakness_12_a_dictionary_is_a_dictionary(foreign, reader, sentinel):
    """No key of a caller's dictionary means anything to the codec, whatever type is declared around it."""
    sent = {key: foreign.name if value == "NAME" else value for key, value in sentinel.items()}
    request = proto.OpenResponsesRequest(
        request_id=proto.RequestID("r"),
        body=OpenResponsesRequestBody(model="m", input="x", tools=[{"name": "f", "parameters": sent}]),
    )
    frames = [*encode_body(request).frames, b"123456"]
    for kind in (proto.OpenResponsesRequest, dict, dict[str, Any]):
        back = decode_body(frames, kind, resolve=reader.open)
        body = back.body if kind is proto.OpenResponsesRequest else back["body"]
        tool = body.tools[0].parameters if kind is proto.OpenResponsesRequest else body["tools"][0]["parameters"]
        assert tool == sent
    assert bytes(foreign.buf[:6]) == b"secret"


def test_weakness_13_no_module_path_and_a_version():
    """No message names a module or a class of ours, so that code can be moved; peers agree on a version first."""
    context = proto.TextContext(tokens=proto.TokenBuffer(np.arange(3)), max_length=9)
    output = proto.GenerationOutput.of_images(proto.RequestID("r"), [np.zeros((2, 2), np.uint8)])
    tracker = proto.EOSTracker(eos_token_ids=[1])
    for value in (context, output, tracker, proto.EmbeddingsRequest(model="m", input=[ARRAY[:3]])):
        body = encode_body(value).frames[0]
        assert not [word for word in (b"tensoryard", b"proto", b"builtins", b"pydantic") if word in body]
    with pytest.raises(VersionMismatch, match=str(wire.WIRE_VERSION)):
        wire.check_version(wire.WIRE_VERSION + 1, "the peer")
    assert "version" in wire.Hello.__struct_fields__


def test_weakness_14_bytes_are_not_copied_again_on_arrival():
    """An inline array is a view of the very message that came, or one copy of it where it lies askew."""
    raw = ARRAY.view(np.uint8)
    frame = proto.msgpack_numpy_encoder()([raw])
    (view,) = decode_body([frame], list[np.ndarray])
    assert np.shares_memory(view, np.frombuffer(frame, np.uint8))
    assert peak_bytes(lambda: decode_body([frame], list[np.ndarray])) < 64 << 10
    assert peak_bytes(lambda: decode_body([frame], list[np.ndarray], copy=True)) < 1.1 * raw.nbytes
    askew = proto.msgpack_numpy_encoder()([b"x", ARRAY])
    assert peak_bytes(lambda: decode_body([askew], list[Any])) < 1.1 * raw.nbytes


def peak_bytes(work):
    """The most memory that some work takes at once."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_weakness_14_an_array_in_the_pool_is_not_copied_at_all(pool):
    """Written in place, it leaves and arrives as the same memory."""
    array = pool.empty(ARRAY.shape, ARRAY.dtype)
    array[:] = ARRAY
    encoded = encode_body(array, place=pool.publish)
    assert (encoded.copies, encoded.shared_bytes) == (0, ARRAY.nbytes)
    encoded.release()


def test_weakness_15_large_dates_go_out_of_band():
    """Every dtype that travels inline travels as a buffer of its own too."""
    dates = np.arange(1 << 14).astype("<M8[s]")
    frames = proto.msgpack_numpy_oob_encoder(1 << 10)([dates, dates.astype("<m8[s]")])
    assert len(frames) == 3
    back = proto.msgpack_numpy_oob_decoder(list[np.ndarray])(frames)
    np.testing.assert_array_equal(back[0], dates)


def test_weakness_15_the_same_array_is_sent_once():
    """However often an array is in a message, its bytes are in it once."""
    frames = proto.msgpack_numpy_oob_encoder(1 << 10)({"a": ARRAY, "b": [ARRAY, ARRAY]})
    assert len(frames) == 2
    back = proto.msgpack_numpy_oob_decoder(dict)(frames)
    np.testing.assert_array_equal(back["b"][1], ARRAY)


def test_weakness_15_one_encoder_serves_many_threads():
    """Nothing is kept on encoder or decoder: messages of threads that run at once do not mix."""
    encode = pickle.loads(pickle.dumps(proto.msgpack_numpy_oob_encoder(16)))
    decode = pickle.loads(pickle.dumps(proto.msgpack_numpy_oob_decoder(list[np.ndarray])))
    wrong = []

    def work(number):
        for size in range(20, 220):
            arrays = [np.full(size, number), np.full(size + 1, number)]
            back = decode(encode(arrays))
            wrong.extend(1 for sent, got in zip(arrays, back, strict=True) if not np.array_equal(sent, got))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_weakness_15_what_was_shared_or_written_inline_is_frozen(pool, reader):
    """The source may change once the encoder has returned; where buffers are views, the docstring says so."""
    for place in (None, pool.publish):
        source = ARRAY.copy()
        encoded = encode_body(source, place=place)
        source[:] = -1
        np.testing.assert_array_equal(decode_body(encoded.frames, np.ndarray, resolve=reader.open), ARRAY)
        encoded.release()
    assert "must not change until they have been sent" in " ".join(proto.msgpack_numpy_oob_encoder.__doc__.split())


def test_weakness_16_a_full_peer_gets_whole_messages_or_none(runtime_folder):
    """At a finite high-water mark a message of several frames is sent whole or refused: the stream keeps its step."""
    address = f"ipc://{runtime_folder}/weakness-16"
    hub = ZmqHub([address], max_frame_bytes=1 << 20, peer_backlog=5)
    peer = ZmqPeer(address)
    try:
        peer.send([b"hello"])
        identity, _ = received(hub)
        sent = 0
        while hub.send(identity, [b"%d" % sent, bytes(30_000), b"end"]):
            sent += 1
        assert sent >= 5
        for number in range(sent):
            assert [bytes(frame) for frame in received(peer)] == [b"%d" % number, bytes(30_000), b"end"]
        assert peer.receive() is None
    finally:
        peer.close()
        hub.close()


def received(end):
    """The next message at an end of a link."""
    give_up = time.monotonic() + 60
    while (message := end.receive()) is None:
        assert time.monotonic() < give_up
        has_input(end, 50)
    return message


@pytest.mark.parametrize(
    "make", [ARRAY.copy, lambda: ARRAY.copy()[::2], lambda: np.asfortranarray(ARRAY.reshape(256, 256))]
)
def test_weakness_15_a_sender_can_own_its_buffers(make):
    """Then a message that waits for a socket does not change with the array; nothing is copied twice."""
    source = make()
    encoded = encode_body(source, out_of_band=True)
    assert encoded.copies == (not source.flags.c_contiguous)
    for _ in range(2):
        encoded.own_buffers()
        assert encoded.copies == 1
    expected = source.copy()
    source[:] = -1
    np.testing.assert_array_equal(decode_body(encoded.frames, np.ndarray), expected)


# -- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_weakness_36_no_check_is_an_assertion():
    """With assertions switched off (`python -O`) everything that is refused with them is refused."""
    child = subprocess.run(
        [sys.executable, "-O", "-c", textwrap.dedent(REFUSED)], capture_output=True, text=True, check=False
    )
    assert (child.returncode, child.stderr) == (0, "")
    assert child.stdout.split() == ["refused"] * REFUSED.count("lambda")


#: What must be refused, each by a ValueError; a line of output for each.
REFUSED = """
    import numpy as np
    import tensoryard.proto as proto
    from tensoryard.proto.codec import decode_body

    assert False, "assertions are switched off here"

    def buffer():
        return proto.TokenBuffer(np.arange(4))

    for act in (
        lambda: proto.ReasoningSpan((3, 1), (1, 1)),
        lambda: proto.ReasoningSpan((0, 4), (2, 5)),
        lambda: proto.Range(3, 1),
        lambda: proto.TokenBuffer(np.zeros((2, 2), np.int64)),
        lambda: buffer().chunk(9),
        lambda: buffer().advance_with_token(-1),
        lambda: proto.TextContext(tokens=buffer(), max_length=2),
        lambda: proto.TextContext(tokens=buffer(), max_length=9).realize_future_token(3),
        lambda: proto.ImageMetadata(start_idx=3, end_idx=1, pixel_values=np.zeros(2)),
        lambda: proto.LogProbabilities([1.0], []),
        lambda: proto.SamplingParams(temperature=float("nan")),
        lambda: proto.EOSTracker(eos_sequences=[[]]),
        lambda: proto.TextGenerationRequest(model_name="m", images=[b""]),
        lambda: proto.RequestID(""),
        lambda: decode_body([b"\\xc1"], np.ndarray),
    ):
        try:
            act()
        except ValueError:
            print("refused")
"""


@pytest.mark.parametrize("value", [5, b"r", "", "x" * 129, "two\nlines", None.__class__])
def test_weakness_38_a_request_id_is_checked(value):
    """Built or received, an id is a short printable text; a missing one is not made up on arrival."""
    with pytest.raises(InvalidRequest):
        proto.RequestID(value)
    for body in (msgpack.packb({"value": "r"}), msgpack.packb({}), msgpack.packb(None), msgpack.packb(5)):
        with pytest.raises(DecodeError):
            decode_body([body], proto.RequestID)
    with pytest.raises(DecodeError):
        decode_body([msgpack.packb({"model": "m", "input": "x", "request_id": None})], proto.EmbeddingsRequest)


def test_weakness_38_an_id_is_its_text_on_the_wire():
    """Also as a key of a map, which therefore is JSON too."""
    ids = {proto.RequestID("a"): 1}
    assert encode_body(ids).frames[0] == msgpack.packb({"a": 1})
    assert decode_body(encode_body(ids).frames, dict[proto.RequestID, int]) == ids


def test_weakness_38_hashing_builds_nothing():
    """A dictionary access asks the text for its hash, which Python keeps."""
    request_id = proto.RequestID("a")
    assert hash(request_id) == hash("a")
    assert min(peak_bytes(lambda: hash(request_id)) for _ in range(20)) < 1000


def test_weakness_38_no_client_can_be_the_dummy():
    """The id of synthetic work is refused from the wire."""
    with pytest.raises(DecodeError, match="kept"):
        decode_body([msgpack.packb(proto.DUMMY_REQUEST_ID.value)], proto.RequestID)


# -- queues and schedulers --------------------------------------------------------------------------------------------


def work_of(name):
    """A request as the scheduler holds it."""
    context = OneShotContext(request_id=proto.RequestID(name), model_name="m")
    return Work(name, 1, context, arrived=0.0)


class Looked(Batcher):
    """Counts how often the inbox asks for a batch."""

    asked = 0

    def next_batch(self, *args):
        self.asked += 1
        return super().next_batch(*args)


def test_weakness_48_who_waits_is_woken(eventually):
    """A worker without work looks once and sleeps until something comes; it does not look every millisecond."""
    batcher = Looked(max_batch_size=4, max_wait_s=0.0)
    inbox, batches = Inbox(batcher), []
    waiting = threading.Thread(target=lambda: batches.append(inbox.next_batch()), daemon=True)
    waiting.start()
    eventually(lambda: inbox._changed._waiters, "the worker waits")
    assert batcher.asked == 1
    inbox.put(work_of("a"))
    waiting.join(60)
    assert [work.request_id for work in batches[0]] == ["a"]
    assert batcher.asked == 2


class Forgetful(proto.Pipeline):
    """Answers every request but the one named `lost`."""

    max_batch_size = 4

    def execute(self, inputs):
        answered = [request_id for request_id in inputs.batch if str(request_id) != "lost"]
        return {request_id: proto.EmbeddingsGenerationOutput(np.zeros((1, 2))) for request_id in answered}

    def release(self, request_id):
        pass


def test_weakness_48_every_request_is_answered(pool):
    """Of a batch, also the one that was cancelled and the one that the pipeline's answer lacks, each by what it was."""
    inbox, answers = Inbox(Batcher(max_batch_size=4, max_wait_s=0.0)), []
    for name in ("fine", "gone", "lost", "unwanted"):
        inbox.put(work_of(name))
    assert inbox.cancel("gone", 1).request_id == "gone"
    unwanted = next(work for work in inbox.held() if work.request_id == "unwanted")
    unwanted.context.status = proto.GenerationStatus.CANCELLED
    inbox.drain()
    Engine(
        pipeline=Forgetful(),
        task=proto.PipelineTask.EMBEDDINGS_GENERATION,
        inbox=inbox,
        pool=pool,
        send=answers.extend,
        limits=Settings(),
        settings=Settings(),
        threshold_bytes=1 << 16,
        worker="w",
    ).run()
    said = {output.request_id: (output.done, output.code) for output, _, _ in answers}
    assert said == {
        "fine": (True, ""),
        "lost": (False, errors.PipelineError.code),
        "unwanted": (False, errors.RequestCancelled.code),
    }


def test_the_tests_of_memory_look_at_the_right_module():
    """What the tests above replace in `os` is what allocates: the only file with calls of that kind."""
    files = sorted(
        path.name for path in Path(os_memory.__file__).parent.glob("*.py") if "memfd_create" in path.read_text()
    )
    assert files == ["os_memory.py"]
