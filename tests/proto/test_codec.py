"""The codec: every value comes back as it was, by each way an array can travel, and nothing hostile gets through."""

from __future__ import annotations

import gc
import importlib.util
import json
import pickle
import subprocess
import sys
import threading
import tracemalloc
import weakref
from collections import OrderedDict
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import msgpack
import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tensoryard.errors import (
    ConfigError,
    DecodeError,
    PoolExhausted,
    SegmentGone,
    StaleHandle,
    UnsupportedArray,
)
from tensoryard.proto import codec
from tensoryard.proto.audio import AudioGenerationMetadata, AudioGenerationOutput, AudioGenerationRequest
from tensoryard.proto.codec import (
    DEFAULT_THRESHOLD_BYTES,
    INLINE,
    MAX_INLINE_BYTES,
    OUT_OF_BAND,
    SHARED,
    as_buffers,
    decode_body,
    encode_body,
    msgpack_numpy_decoder,
    msgpack_numpy_encoder,
    msgpack_numpy_oob_decoder,
    msgpack_numpy_oob_encoder,
    publisher,
)
from tensoryard.proto.context import GenerationStatus
from tensoryard.proto.embeddings import EmbeddingsGenerationOutput, EmbeddingsRequest
from tensoryard.proto.generation import (
    GenerationOutput,
    OutputAudioContent,
    OutputImageContent,
    OutputTextContent,
    OutputVideoContent,
    Usage,
)
from tensoryard.proto.pixels import PixelGenerationRequest
from tensoryard.proto.request import RequestID
from tensoryard.proto.sampling import SamplingParams
from tensoryard.proto.tokens import TokenBuffer
from tensoryard.shm import Pool, Reader, SharedMemoryArray

from .message_strategies import mixed, same

LARGE = DEFAULT_THRESHOLD_BYTES
HAS_ML_DTYPES = importlib.util.find_spec("ml_dtypes") is not None
#: One of each kind, both byte orders where there are two.
DTYPES = [
    *("|b1", "|i1", "|u1", "<i2", ">i2", "<u4", ">u4", "<i8", ">i8", ">u8", "<f2", ">f2", "<f4", ">f4", "<f8", ">f8"),
    *("<c8", ">c8", "<c16", ">c16", "|S1", "|S7", "<U1", "<U5", ">U5", "<M8[ns]", ">M8[D]", "<M8[25s]", "<m8[us]"),
    *(">m8[Y]", np.dtype(np.longdouble).str, np.dtype(np.clongdouble).str),
]
WAYS = ["inline", "out_of_band", "shared"]
A = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture(autouse=True)
def process_memory(monkeypatch):
    """The factories' own pool and reader, new for each test and closed after it."""
    memory = codec._ProcessMemory()
    monkeypatch.setattr(codec, "_memory", memory)
    yield memory
    for each in (memory._pool, memory._reader):
        if each is not None:
            each.close()


@pytest.fixture(scope="module")
def pool():
    """A pool whose books balance at the end."""
    with Pool(budget_bytes=128 << 20) as made:
        yield made
        made.check_invariants()


@pytest.fixture(scope="module")
def reader():
    """A reader of that pool."""
    made = Reader()
    yield made
    made.close()


def used(pool):
    """Blocks in use, those that only a cycle of garbage holds left out."""
    if pool.statistics().used_blocks:
        gc.collect()
    return pool.statistics().used_blocks


class Travel:
    """One way for arrays to travel: encodes, checks that they went that way, decodes, and gives the memory back."""

    def __init__(self, way, pool, reader, threshold=1):
        self.way, self.pool, self.reader, self.threshold = way, pool, reader, threshold

    def encode(self, value):
        place = publisher(self.pool) if self.way == "shared" else None
        return encode_body(value, place=place, out_of_band=self.way == "out_of_band", threshold_bytes=self.threshold)

    def decode(self, encoded, kind=Any, *, copy=False):
        return decode_body(encoded.frames, kind, resolve=self.reader.open, copy=copy)

    def __call__(self, value, kind=Any, *, copy=True):
        encoded = self.encode(value)
        try:
            return self.decode(encoded, kind, copy=copy)
        finally:
            encoded.release()


@pytest.fixture(params=WAYS)
def travel(request, pool, reader):
    """Each way in turn."""
    return Travel(request.param, pool, reader)


def extension_codes(frames):
    """The ways the arrays of a message went, by its extension types."""
    codes = []
    msgpack.unpackb(frames[0], ext_hook=lambda code, data: codes.append(code), strict_map_key=False)
    return codes


def assert_same(sent, received):
    """Equal in type, shape and bytes, all the way down; tuples may have become lists."""
    if isinstance(sent, np.ndarray):
        assert type(received) is np.ndarray
        assert (received.dtype.str, received.shape) == (sent.dtype.str, sent.shape)
        assert received.tobytes() == sent.tobytes()
        assert received.flags.aligned
    elif isinstance(sent, list | tuple):
        assert isinstance(received, list | tuple)
        assert len(received) == len(sent)
        for one, other in zip(sent, received, strict=True):
            assert_same(one, other)
    elif isinstance(sent, dict):
        assert list(received) == list(sent)
        for key, one in sent.items():
            assert_same(one, received[key])
    elif isinstance(sent, msgspec.Struct):
        assert type(received) is type(sent)
        for name in sent.__struct_fields__:
            assert_same(getattr(sent, name), getattr(received, name))
    elif is_dataclass(sent):
        assert type(received) is type(sent)
        for spec in fields(sent):
            assert_same(getattr(sent, spec.name), getattr(received, spec.name))
    else:
        assert type(received) is type(sent) or (type(sent), type(received)) == (
            int,
            float,
        )  # a float field's whole value
        assert received == sent or (received != received and sent != sent)


def filled(dtype, shape):
    """An array of arbitrary bytes that are valid in the dtype."""
    dtype, count = np.dtype(dtype), int(np.prod(shape))
    numbers = (np.arange(count) * 7) % 100
    if dtype.kind in "SU":
        return np.array([str(number) for number in numbers], dtype).reshape(shape)
    if dtype.kind in "mM":
        return numbers.astype(np.int64).astype(dtype).reshape(shape)
    return numbers.astype(dtype).reshape(shape)


# -- arrays come back as they were ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size_bytes", [24, LARGE, 2 * LARGE])
def test_w_22_every_dtype_travels(travel, dtype, size_bytes):
    """Each allowed dtype comes back with byte order, shape and content, small and large, by each way."""
    sent = filled(dtype, (2, -(-size_bytes // 2 // np.dtype(dtype).itemsize)))
    assert_same(sent, travel(sent))
    assert_same(sent, travel(sent, np.ndarray))


def numpy_arrays():
    return hnp.arrays(
        dtype=hnp.scalar_dtypes().filter(lambda dtype: dtype.itemsize > 0),
        shape=hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4),
    )


@pytest.mark.case(30)
@settings(deadline=None, max_examples=150)
@given(array=numpy_arrays(), way=st.sampled_from(WAYS), threshold=st.integers(0, 64), order=st.sampled_from("CFT"))
def test_any_array_travels(pool, reader, array, way, threshold, order):
    """Any dtype, shape and order comes back equal, whatever the threshold."""
    sent = array.T if order == "T" else np.asarray(array, order=order)
    assert_same(sent, Travel(way, pool, reader, threshold)(sent))


class Subclass(np.ndarray):
    """An array type of a user's own."""


LAYOUTS = {
    "0-d": np.array(1.5),
    "empty": np.empty((0, 3), np.float32),
    "empty inside": np.empty((3, 0, 2), "<U4"),
    "fortran": np.asfortranarray(A),
    "transposed": np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1),
    "strided": np.arange(20, dtype=np.int16)[3:17:5],
    "reversed": np.arange(20, dtype=">i4").reshape(4, 5)[::-1, ::-2],
    "broadcast": np.broadcast_to(np.float32(3), (4, 5)),
    "one of many": np.ones((1, 1, 1, 5)),
    "unaligned": np.frombuffer(b"x" + A.tobytes(), np.uint8)[1:].view(np.float32),
    "subclass": A.view(Subclass),
    "64 dimensions": np.ones((1,) * 64, np.uint8),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(travel, name):
    """Whatever the order in memory, an array arrives in C order with the same content."""
    sent = LAYOUTS[name]
    received = travel(sent)
    assert_same(np.asarray(sent), received)
    assert received.flags.c_contiguous


def test_read_only_arrays_travel(travel):
    """An array that may not be written is sent like any other, and stays so."""
    sent = A.copy()
    sent.flags.writeable = False
    assert_same(sent, travel(sent))
    assert not sent.flags.writeable


@pytest.mark.process
def test_low_precision_floats_need_their_package():
    """In a process without ml_dtypes a bfloat16 array cannot be read, and the error names the type."""
    body = packed_extension(INLINE, "bfloat16", [2], b"\x80\x3f\x00\x40")
    code = f"""
import sys
sys.modules["ml_dtypes"] = None  # as if it were not installed
from tensoryard.errors import DecodeError
from tensoryard.proto.codec import decode_body
try:
    decode_body([{body!r}], object)
except DecodeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "'bfloat16' is no dtype that may travel" in done.stdout


@pytest.mark.case(30)
@pytest.mark.skipif(not HAS_ML_DTYPES, reason="ml_dtypes is not installed")
@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_low_precision_floats_travel(travel, name):
    """With ml_dtypes its floats come back exactly, and count as floating where that is declared."""
    import ml_dtypes

    sent = np.arange(6).astype(getattr(ml_dtypes, name))
    assert_same(sent, travel(sent))
    assert_same(sent, travel(sent, npt.NDArray[np.floating[Any]]))
    scalar = travel(sent[3])
    assert (scalar.dtype, float(scalar)) == (sent.dtype, 3.0)


@pytest.mark.parametrize(
    ("scalar", "expected"),
    [
        (np.bool_(True), True),
        (np.int8(-3), -3),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.float16(1.5), 1.5),
        (np.float32(0.1), float(np.float32(0.1))),
        (np.float64("inf"), float("inf")),
        (np.str_("ä"), "ä"),
        (np.bytes_(b"ab"), b"ab"),
    ],
)
def test_numpy_scalars_arrive_as_pythons(scalar, expected):
    """A numpy scalar that Python has exactly is Python's on arrival, as a key of a map too."""
    received = decode_body(encode_body([scalar, {scalar: 1}]).frames, Any)
    assert received == [expected, {expected: 1}]
    assert type(received[0]) is type(expected)


@pytest.mark.parametrize(
    "scalar",
    [
        np.complex64(1 + 2j),
        np.longdouble(1) / 3,
        np.clongdouble(1j) / 3,
        np.datetime64("2026-01-02T03:04:05.678901234", "ns"),
        np.datetime64("NaT"),
        np.timedelta64(5, "D"),
    ],
    ids=lambda scalar: type(scalar).__name__,
)
def test_other_numpy_scalars_arrive_exactly(scalar):
    """A numpy scalar that Python does not have arrives as an array of no dimension with all its digits."""
    received = decode_body(encode_body({"k": scalar}).frames, Any)["k"]
    assert (received.dtype, received.shape) == (scalar.dtype, ())
    np.testing.assert_array_equal(received, scalar)


# -- which way each array goes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "code", "frames"), [("inline", INLINE, 1), ("out_of_band", OUT_OF_BAND, 2), ("shared", SHARED, 1)]
)
def test_the_threshold_counts(pool, reader, way, code, frames):
    """An array of exactly the threshold goes the large way, one byte less stays inside the message."""
    at, below = np.zeros(LARGE, np.uint8), np.zeros(LARGE - 1, np.uint8)
    encoded = Travel(way, pool, reader, LARGE).encode([at, below])
    assert extension_codes(encoded.frames) == [code, INLINE]
    assert len(encoded.frames) == frames
    encoded.release()


@pytest.mark.case(30)
def test_0_d_and_empty_arrays_stay_inside(travel):
    """Arrays without a dimension or without a byte are inline, however small the threshold."""
    travel.threshold = 0
    encoded = travel.encode([np.array("x" * LARGE), np.empty((0, 5))])
    assert extension_codes(encoded.frames) == [INLINE, INLINE]
    assert encoded.loans == []
    assert travel.decode(encoded)[1].shape == (0, 5)


def test_what_an_encoding_took(pool, reader):
    """Bytes in frames, bytes in shared memory and copies are counted; an array in the pool costs none."""
    large, strided = np.zeros(LARGE, np.uint8), np.zeros(2 * LARGE, np.uint8)[::2]
    inline = encode_body([large, A])
    assert (inline.copies, inline.shared_bytes) == (1, 0)
    assert LARGE < inline.socket_bytes < LARGE + 200
    out_of_band = encode_body([large, strided, A], out_of_band=True)
    assert (out_of_band.copies, out_of_band.shared_bytes, len(out_of_band.frames)) == (1, 0, 3)
    assert out_of_band.socket_bytes == len(out_of_band.frames[0]) + 2 * LARGE
    mine = pool.empty((LARGE,), np.uint8)
    mine[:] = 7
    shared = encode_body([large, mine, mine[16 : LARGE - 16]], place=publisher(pool), threshold_bytes=LARGE - 64)
    assert (shared.copies, shared.shared_bytes, len(shared.loans)) == (1, 3 * LARGE - 32, 3)
    assert shared.socket_bytes < 400
    received = decode_body(shared.frames, Any, resolve=reader.open)
    assert [int(each.sum()) for each in received] == [0, 7 * LARGE, 7 * (LARGE - 32)]
    assert received[1].__array_interface__["data"][0] != mine.__array_interface__["data"][0]
    mine[0] = 8  # the reader looks at the same memory
    assert received[1][0] == 8
    shared.release()
    shared.release()


def test_out_of_band_buffers_are_views(pool, reader):
    """A contiguous array goes out-of-band without a copy: its frame is its own memory, byte by byte."""
    sent = np.arange(4, dtype=">u4")
    frame = encode_body(sent, out_of_band=True, threshold_bytes=1).frames[1]
    assert bytes(frame) == sent.tobytes()
    sent[0] = 9
    assert bytes(frame) == sent.tobytes()


def test_the_same_array_twice(travel):
    """The same array in two places is placed or sent once; both places receive it."""
    encoded = travel.encode({"a": A, "b": [A, A], "c": A.copy()})
    assert len(encoded.loans) == (2 if travel.way == "shared" else 0)
    assert len(encoded.frames) == (3 if travel.way == "out_of_band" else 1)
    received = travel.decode(encoded)
    for each in (received["a"], *received["b"], received["c"]):
        assert_same(A, each)
    del each, received
    encoded.release()


def test_arrays_made_on_the_way_are_not_mixed_up(travel):
    """Arrays that exist only while they are encoded keep their own content, even where memory is used again."""

    class Fleeting:
        def __init__(self, number):
            self.number = number

        def to_wire(self):
            return np.full(50, self.number)

    received = travel([Fleeting(number) for number in range(20)])
    assert [int(each[0]) for each in received] == list(range(20))


def test_a_full_pool_sends_inline(reader):
    """Where the pool has no room the array travels inside the message: slower, not broken."""
    with Pool(budget_bytes=1 << 20) as tiny:
        encoder = msgpack_numpy_encoder(True, 1, pool=tiny)
        data = encoder(A)
        assert extension_codes([data]) == [INLINE]
        assert_same(A, msgpack_numpy_decoder(np.ndarray)(data))
        encoded = encode_body(A, place=publisher(tiny), out_of_band=True, threshold_bytes=1)
        assert extension_codes(encoded.frames) == [OUT_OF_BAND]


def test_an_array_too_large_for_a_message():
    """An array of over 4 GiB is refused before a byte of it is copied, and the text says what to use instead."""
    huge = np.broadcast_to(np.uint8(0), (1 << 33,))
    with pytest.raises(UnsupportedArray, match=rf"{1 << 33} bytes, over the {MAX_INLINE_BYTES} .*out-of-band"):
        encode_body([huge])


# -- every request and output, every way ------------------------------------------------------------------------------

ids = st.builds(RequestID, st.text("abcdef0123456789-", min_size=1, max_size=20))
small_arrays = hnp.arrays(
    dtype=st.sampled_from(["|u1", "<f4", ">i8", "<U3", "<M8[s]", "<c16"]),
    shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)


def arrays_of(dtype, dims=(1, 3)):
    return hnp.arrays(dtype=dtype, shape=hnp.array_shapes(min_dims=dims[0], max_dims=dims[1], min_side=0, max_side=5))


leaves = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary() | small_arrays
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8
)
options = st.dictionaries(st.text(), values, max_size=3)
statuses = st.sampled_from(list(GenerationStatus))
parts = (
    st.builds(OutputTextContent, text=st.text())
    | st.builds(OutputImageContent, image=st.none() | arrays_of("|u1", (2, 3)), image_data=st.none() | st.text())
    | st.builds(OutputVideoContent, frames=arrays_of("|u1"), frames_per_second=st.none() | st.floats(allow_nan=False))
    | st.builds(OutputAudioContent, samples=arrays_of("<f4"), sample_rate=st.integers(1, 1 << 20))
)
MESSAGES = {
    EmbeddingsRequest: st.builds(
        EmbeddingsRequest,
        request_id=ids,
        model=st.just("m"),
        input=st.text() | st.lists(st.text(), min_size=1) | small_arrays | st.lists(small_arrays, min_size=1),
        options=options,
    ),
    PixelGenerationRequest: st.builds(
        PixelGenerationRequest,
        request_id=ids,
        model=st.just("m"),
        prompt=st.text(min_size=1),
        images=st.lists(small_arrays, max_size=3),
        height=st.none() | st.integers(1, 2**40),
        guidance_scale=st.floats(0, 100),
        options=options,
    ),
    AudioGenerationRequest: st.builds(
        AudioGenerationRequest,
        request_id=ids,
        model=st.just("m"),
        input=st.none() | st.text(),
        prompt=st.text() | st.lists(st.integers(0, 9)),
        audio_prompt_tokens=st.lists(st.integers(0, 9)),
        sampling_params=st.builds(SamplingParams, top_k=st.integers(1, 50), seed=st.integers(0, 2**32)),
        streaming=st.booleans(),
        buffer_speech_tokens=st.none() | arrays_of(">i4"),
        options=options,
    ),
    EmbeddingsGenerationOutput: st.builds(EmbeddingsGenerationOutput, arrays_of(">f4") | arrays_of("<f8", (0, 2))),
    GenerationOutput: st.builds(
        GenerationOutput,
        request_id=ids,
        final_status=statuses,
        output=st.lists(parts, max_size=4),
        usage=st.none() | st.builds(Usage, input_tokens=st.integers(0, 9)),
    ),
    AudioGenerationOutput: st.builds(
        AudioGenerationOutput,
        final_status=statuses,
        steps_executed=st.integers(0, 99),
        audio_data=arrays_of("<f4"),
        buffer_speech_tokens=st.none() | arrays_of("<u2"),
        metadata=st.builds(AudioGenerationMetadata, chunk_id=st.integers(0, 9), request_id=st.none() | ids),
    ),
}


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@settings(deadline=None, max_examples=60)
@given(data=st.data(), way=st.sampled_from(WAYS), threshold=st.sampled_from([0, 16, LARGE]))
def test_every_message_travels(pool, reader, kind, data, way, threshold):
    """Each request and output comes back equal in every field, nested arrays included, by every way."""
    sent = data.draw(MESSAGES[kind])
    assert_same(sent, Travel(way, pool, reader, threshold)(sent, kind))


def test_nested_arrays_in_options(travel):
    """Arrays anywhere in a request's options arrive where they were."""
    sent = EmbeddingsRequest(model="m", input="x", options={"a": {"b": [A, {"c": A[0]}]}, "d": A[:0]})
    assert_same(sent, travel(sent, EmbeddingsRequest))


def test_value_classes_travel():
    """Our own value classes travel as what they say, also as map keys, and are checked on arrival."""
    buffer = TokenBuffer(np.arange(4))
    frames = encode_body({RequestID("a"): buffer}).frames
    assert decode_body(frames, dict[RequestID, TokenBuffer]) == {RequestID("a"): buffer}
    with pytest.raises(DecodeError):
        decode_body(encode_body({"a": [A, 1]}).frames, dict[RequestID, TokenBuffer])


@pytest.mark.parametrize(
    "value",
    [
        {"__shm__": True, "name": "0123456789abcdef.1", "shape": [4], "dtype": "<f4"},
        {"__np__": True, "data": b"1234", "shape": [1], "dtype": "<f4"},
        {"__np_oob__": True, "index": 0, "shape": [1], "dtype": "<f4"},
        {"__pydantic__": True, "type": "os.system", "data": {"command": "true"}},
    ],
    ids=lambda value: next(iter(value)),
)
def test_w_21_a_dict_stays_a_dict(pool, reader, value):
    """A dictionary that looks like another system's handle is a dictionary, wherever a caller puts it."""
    before = used(pool)
    for sent in (value, [value], {"tools": [{"parameters": value}]}):
        assert decode_body(encode_body(sent).frames, Any, resolve=reader.claim) == sent
    request = EmbeddingsRequest(model="m", input="x", options={"a": value})
    assert decode_body(encode_body(request).frames, EmbeddingsRequest, resolve=reader.claim) == request
    assert used(pool) == before


def test_w_21_handles_are_not_made_of_plain_values(pool, reader):
    """A handle's fields in a list, or a SharedMemoryArray a caller sends as a value, name no memory on arrival."""
    loan = pool.place(A)
    for sent in (list(loan.handle.to_wire()), loan.handle):
        received = decode_body(encode_body({"x": sent}).frames, Any, resolve=reader.open)
        assert not isinstance(received["x"], np.ndarray)
        with pytest.raises(DecodeError, match="an array is expected"):
            decode_body(encode_body(sent).frames, np.ndarray, resolve=reader.open)
    loan.release()


def test_w_19_bodies_are_readable_with_plain_msgpack(pool, reader):
    """The msgpack package reads any body: maps of fields, and extension types 1, 2 and 3 that hold arrays."""
    request = EmbeddingsRequest(request_id=RequestID("r"), model="m", input=A)
    expected = {
        "inline": ["<f4", [2, 3], A.tobytes()],
        "out_of_band": [1, [2, 3], "<f4"],
    }
    for way in WAYS:
        encoded = Travel(way, pool, reader).encode(request)
        body = msgpack.unpackb(encoded.frames[0])
        assert body["request_id"] == "r"
        assert body["model"] == "m"
        assert body["input"].code == {"inline": 1, "shared": 2, "out_of_band": 3}[way]
        held = msgpack.unpackb(body["input"].data)
        assert held == (expected[way] if way != "shared" else [*map(_listed, encoded.loans[0].handle.to_wire())])
        encoded.release()


def _listed(value):
    return list(value) if isinstance(value, tuple) else value


def test_w_19_bodies_made_with_plain_msgpack_are_read():
    """What the msgpack package writes, with its own choice of number sizes, is read all the same."""
    array = msgpack.ExtType(1, msgpack.packb(["<f4", [2, 3], A.tobytes()]))
    body = msgpack.packb({"model": "m", "request_id": "r", "input": array, "options": {"k": 1.5}, "new_field": 1})
    received = decode_body([body], EmbeddingsRequest)
    assert_same(EmbeddingsRequest(request_id=RequestID("r"), model="m", input=A, options={"k": 1.5}), received)


# -- what cannot be sent ----------------------------------------------------------------------------------------------

STRUCTURED = np.zeros(2, [("a", "<i4"), ("b", "<f4")])
OBJECTS = np.array([object(), None])


@dataclass
class Loose:
    """A dataclass of a user's own."""

    inner: Any


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (EmbeddingsRequest(model="m", input=[A, OBJECTS]), "input[1]"),
        (EmbeddingsRequest(model="m", input="x", options={"mask": OBJECTS}), "options['mask']"),
        (
            EmbeddingsRequest(model="m", input="x", options={"a": {"b": [1, {"c": STRUCTURED}]}}),
            "options['a']['b'][1]['c']",
        ),
        (PixelGenerationRequest(model="m", images=[A, A, STRUCTURED]), "images[2]"),
        (EmbeddingsGenerationOutput(OBJECTS), "embeddings"),
        (
            GenerationOutput(
                request_id=RequestID("r"),
                final_status=GenerationStatus.ACTIVE,
                output=[OutputTextContent(text="x"), OutputAudioContent(samples=OBJECTS, sample_rate=1)],
            ),
            "output[1].samples",
        ),
        ([A, (A, OBJECTS)], "[1][1]"),
        ({"k": np.void(b"ab")}, "['k']"),
        (Loose(Loose(STRUCTURED)), "inner.inner"),
        ([np.ma.masked_array(A, A > 1)], "[0]"),
        ([np.array(["a"], np.dtypes.StringDType())], "[0]"),
        ([np.zeros(3, [("a", "<U0")])["a"]], "[0]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_w_23_unsupported_arrays_are_named(pool, value, path):
    """Object, structured, masked and itemless arrays are UnsupportedArray, a TypeError, with the path to each."""
    before = used(pool)
    for place in (None, publisher(pool)):
        for out_of_band in (False, True):
            with pytest.raises(UnsupportedArray) as caught:
                encode_body(value, place=place, out_of_band=out_of_band, threshold_bytes=1)
            assert isinstance(caught.value, TypeError)
            assert str(caught.value).startswith(f"`{path}`: ")
            assert "cannot travel: send" in str(caught.value)
    assert used(pool) == before


class Broken:
    def to_wire(self):
        raise ValueError("lost")


LOOP: list[Any] = []
LOOP.append(LOOP)
MAZE: dict[str, Any] = {"a": [1, {}]}
MAZE["a"][1]["back"] = MAZE


def nested(depth):
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "path", "text"),
    [
        (EmbeddingsRequest(model="m", input="x", options={"f": print}), "options['f']", "builtin_function_or_method"),
        (EmbeddingsRequest(model="m", input="x", options={"a": [1, 2j]}), "options['a'][1]", "complex"),
        (EmbeddingsRequest(model="m", input="\ud800"), "input", "surrogates"),
        (EmbeddingsRequest(model="m", input="x", options={"n": 2**64}), "options['n']", "ints"),
        (EmbeddingsRequest(model="m", input="x", options={"n": -(2**63) - 1}), "options['n']", "ints"),
        (
            AudioGenerationRequest(model="m", input="x", sampling_params=SamplingParams(logits_processors=[print])),
            "sampling_params.logits_processors[0]",
            "builtin_function_or_method",
        ),
        ([1, {2: object()}], "[1][2]", "object"),
        ([{"k\ud800": 1}], "[0][key 'k\\ud800']", "surrogates"),
        ({"x": {1, 2, 2**70}}, "['x'][…", "ints"),
        ({"x" * 100: print}, "['" + "x" * 39 + "]", "builtin_function_or_method"),
        ((1, [Exception("x")]), "[1][0]", "Exception"),
        (OrderedDict(a=range(3)), "['a']", "range"),
        ([RequestID], "[0]", "type"),
        ([TokenBuffer], "[0]", "type"),
        ({"b": Broken()}, "['b']", "lost"),
        (Loose([1, Loose(iter([]))]), "inner[1].inner", "list_iterator"),
        (LOOP, "[0]", "within itself"),
        (MAZE, "['a'][1]['back']", "within itself"),
        ({"deep": nested(100_000)}, "['deep'][0][0]…", "too deeply"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unsupported_values_are_named(pool, value, path, text):
    """A value that no message can carry is a TypeError that names the path and what is wrong; nothing recurses."""
    before = used(pool)
    for place in (None, publisher(pool)):
        with pytest.raises(TypeError, match=text) as caught:
            encode_body(value, place=place, threshold_bytes=1)
        assert str(caught.value).startswith(f"`{path[:-1]}" if path.endswith("…") else f"`{path}`: ")
        assert not isinstance(caught.value, RecursionError)
        assert len(str(caught.value)) < 1000
    assert used(pool) == before


def test_a_bare_value_needs_no_path():
    """Where the value itself is at fault, the text is about it."""
    with pytest.raises(TypeError, match=r"^a value of type complex cannot travel"):
        encode_body(1j)
    with pytest.raises(UnsupportedArray, match=r"^arrays of dtype object cannot travel"):
        encode_body(OBJECTS)


def test_a_failed_encoding_leaves_nothing(pool):
    """Arrays that were placed before the failure are given back at once, with the path finder's own work too."""
    before = used(pool)
    value = {"good": [A, A.copy()], "bad": [OBJECTS], "after": A.copy()}
    with pytest.raises(UnsupportedArray, match=r"`\['bad'\]\[0\]`"):
        encode_body(value, place=publisher(pool), threshold_bytes=1)
    assert used(pool) == before
    encoder = msgpack_numpy_encoder(True, 1, pool=pool)
    with pytest.raises(UnsupportedArray):
        encoder(value)
    assert used(pool) == before


def test_a_value_that_cannot_travel_is_not_kept():
    """Nor is whatever its sender had at hand: no cycle of errors and frames waits for the garbage collector."""

    class Thing:
        pass

    def send():
        at_hand, value = Thing(), {"bad": [Thing()]}
        try:
            encode_body(value)
        except TypeError:
            return [weakref.ref(at_hand), weakref.ref(value["bad"][0])]

    gc.collect()
    gc.disable()
    try:
        assert [ref() for ref in send()] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "error", [PoolExhausted("full"), SegmentGone("closed"), ValueError("odd"), KeyboardInterrupt()]
)
def test_errors_of_the_placement_pass(pool, error):
    """What the placement raises comes out as it is, and what it had placed before is given back."""
    before, calls = used(pool), []

    def place(array):
        calls.append(array)
        if len(calls) == 2:
            raise error
        return pool.publish(array)

    with pytest.raises(type(error)) as caught:
        encode_body([A, A.copy()], place=place, threshold_bytes=1)
    assert caught.value is error
    assert used(pool) == before


def test_a_closed_pool():
    """An encoder whose pool is closed says so."""
    pool = Pool(budget_bytes=8 << 20)
    encoder = msgpack_numpy_encoder(True, 1, pool=pool)
    pool.close()
    with pytest.raises(SegmentGone, match="closed"):
        encoder(A)


# -- what cannot be received ------------------------------------------------------------------------------------------


def packed_extension(code, *held):
    """A body that is one extension, written by the msgpack package."""
    return msgpack.packb(msgpack.ExtType(code, msgpack.packb(held)))


GARBAGE = {
    "empty": b"",
    "reserved": b"\xc1",
    "truncated text": b"\xa5ab",
    "truncated array": b"\x93\x01",
    "trailing bytes": b"\x01\x02",
    "bad utf-8": b"\xa1\xff",
    "long array": b"\xdd\xff\xff\xff\xff",
    "long map": b"\xdf\xff\xff\xff\xff",
    "long bytes": b"\xc6\xff\xff\xff\xff",
    "long text": b"\xdb\xff\xff\xff\xff",
    "long extension": b"\xc9\xff\xff\xff\xff\x01",
    "unhashable key": b"\x81\x81\x01\x01\x02",
    "array as key": b"\x81" + packed_extension(1, "<f4", [1], b"1234") + b"\x01",
    "bad timestamp": b"\xc7\x03\xffabc",
    "far timestamp": b"\xc7\x0c\xff\x00\x00\x00\x00\x7f" + b"\xff" * 7,
    "nested lists": b"\x91" * 100_000 + b"\x01",
    "nested maps": b"\x81\x01" * 100_000 + b"\x01",
    "nested keys": b"\x81\x91" * 100_000 + b"\x01",
    "unknown extension": packed_extension(4, 1),
    "extension 0": packed_extension(0, 1),
    "negative extension": b"\xd4\x80\x00",
    "empty extension": b"\xc7\x00\x01",
    "no fields": packed_extension(1),
    "few fields": packed_extension(1, "<f4", [1]),
    "many fields": packed_extension(1, "<f4", [1], b"1234", 0),
    "untyped fields": packed_extension(1, 5, 5, 5),
    "field of text": packed_extension(1, "<f4", "1", b"1234"),
    "bytes as text": packed_extension(1, "<f4", [1], "1234"),
    "fraction in a shape": packed_extension(1, "<f4", [1.5], b"1234"),
    "bad utf-8 inside": msgpack.packb(msgpack.ExtType(1, b"\x93\xa1\xff\x90\xc4\x00")),
    "too few bytes": packed_extension(1, "<f4", [2], b"1234"),
    "too many bytes": packed_extension(1, "<f4", [1], b"12345"),
    "negative side": packed_extension(1, "<f4", [-1], b""),
    "negative sides": packed_extension(1, "<f4", [-1, -1], b"1234"),
    "huge product": packed_extension(1, "<f4", [2**62, 2**62], b""),
    "product that wraps to 0": packed_extension(1, "|u1", [2**32, 2**32], b""),
    "product that wraps to 4": packed_extension(1, "|u1", [2**63 + 2, 2], b"1234"),
    "huge side": packed_extension(1, "<f4", [2**64 - 1], b""),
    "huge beside 0": packed_extension(1, "<f4", [0, 2**62, 2**62], b""),
    "65 dimensions": packed_extension(1, "|u1", [1] * 65, b"1"),
    "a million dimensions": packed_extension(1, "|u1", [2**63] * 500_000, b"1"),
    "object dtype": packed_extension(1, "|O", [1], b"12345678"),
    "structured dtype": packed_extension(1, "i4,i4", [1], b"12345678"),
    "void dtype": packed_extension(1, "|V4", [1], b"1234"),
    "dtype without byte order": packed_extension(1, "f4", [1], b"1234"),
    "deprecated dtype": packed_extension(1, "|a4", [1], b"1234"),
    "python dtype": packed_extension(1, "{'names':['a'],'formats':['f4']}", [1], b"1234"),
    "empty dtype": packed_extension(1, "", [1], b"12345678"),
    "itemless dtype": packed_extension(1, "<U0", [2**40], b""),
    "itemless bytes": packed_extension(1, "|S0", [3], b""),
    "endless dtype": packed_extension(1, "<U" + "9" * 1000, [0], b""),
    "text beyond characters": packed_extension(1, "<U1", [1], b"\x00\x00\x11\x00"),
    "text of the other byte order": packed_extension(1, ">U2", [1], b"\x00\x00\x00a\x00\x11\x00\x00"),
    "text of no dimension": packed_extension(1, "<U1", [], b"\xff\xff\xff\xff"),
    "buffer of text beyond characters": packed_extension(3, 1, [1], "<U1"),
    "buffer 0": packed_extension(3, 0, [1], "<f4"),
    "negative buffer": packed_extension(3, -1, [1], "<f4"),
    "missing buffer": packed_extension(3, 2, [1], "<f4"),
    "huge buffer": packed_extension(3, 2**63, [1], "<f4"),
    "buffer of another size": packed_extension(3, 1, [2], "<f4"),
    "buffer with a bad dtype": packed_extension(3, 1, [1], "|O4"),
    "handle with a bad name": packed_extension(2, "../../etc", [1], "<f4", 4096, 1, ""),
    "handle with a negative offset": packed_extension(2, "0123456789abcdef.1", [1], "<f4", -4, 1, ""),
    "handle with a huge shape": packed_extension(2, "0123456789abcdef.1", [2**50], "<f4", 4096, 1, ""),
    "handle with a huge generation": packed_extension(2, "0123456789abcdef.1", [1], "<f4", 4096, 2**64 - 1, ""),
    "handle with objects": packed_extension(2, "0123456789abcdef.1", [1], "|O", 4096, 1, ""),
    "handle off its alignment": packed_extension(2, "0123456789abcdef.1", [1], "<f4", 4097, 1, ""),
    "handle with a long host": packed_extension(2, "0123456789abcdef.1", [1], "<f4", 4096, 1, "h" * 1000),
    "handle of an odd type": packed_extension(2, "0123456789abcdef.1", [1], "<f4", "0", 1, ""),
    "handle with few fields": packed_extension(2, "0123456789abcdef.1", [1], "<f4"),
}


@pytest.mark.parametrize("name", GARBAGE)
@pytest.mark.parametrize("copy", [False, True])
def test_w_24_garbage_is_a_decode_error(reader, name, copy):
    """Bytes that are no such value are a DecodeError of a short text, whatever is wrong with them."""
    for resolve in (None, reader.open, reader.claim):
        with pytest.raises(DecodeError) as caught:
            decode_body([GARBAGE[name], b"1234"], Any, resolve=resolve, copy=copy)
        assert isinstance(caught.value, ValueError)
        assert len(str(caught.value)) <= 400
    for kind in (np.ndarray, EmbeddingsRequest, list[npt.NDArray[np.float32]]):
        with pytest.raises(DecodeError):
            decode_body([GARBAGE[name], b"1234"], kind, resolve=reader.open)


def test_every_character_arrives():
    """Text of any character that there is, lone surrogates included, is text on arrival, in either byte order."""
    words = np.array(["\0a", "\ud800", "\U0010ffff", ""])
    for sent in (words, words.astype(">U2"), words[:0], np.array("one")):
        back = decode_body(encode_body(sent).frames, np.ndarray)
        assert (back.dtype, back.tolist()) == (sent.dtype, sent.tolist())


@pytest.mark.parametrize(
    "name", ["long array", "long map", "long bytes", "huge product", "itemless dtype", "huge buffer"]
)
def test_w_25_claimed_sizes_are_checked_before_memory_is_taken(name):
    """A few bytes that claim to be gigabytes cost no memory."""
    body = GARBAGE[name]
    tracemalloc.start()
    try:
        for kind in (Any, np.ndarray, list[int], tuple[int, ...], dict[str, int]):
            with pytest.raises(DecodeError):
                decode_body([body, b"1234"], kind)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("way", WAYS)
def test_every_truncation_is_refused(pool, reader, way):
    """A message cut short anywhere is a DecodeError."""
    travel = Travel(way, pool, reader)
    encoded = travel.encode(EmbeddingsRequest(model="m", input=[A, A[0]], options={"k": [1, "x", A[1]]}))
    body, *buffers = encoded.frames
    for end in range(len(body)):
        with pytest.raises(DecodeError):
            decode_body([body[:end], *buffers], EmbeddingsRequest, resolve=reader.open)
    if buffers:
        with pytest.raises(DecodeError, match="buffer"):
            decode_body([body, *buffers[:-1]], EmbeddingsRequest)
        with pytest.raises(DecodeError, match="does not have"):
            decode_body([body, *buffers[:-1], buffers[-1][:-1]], EmbeddingsRequest)
    encoded.release()


def test_no_frames():
    """A message without a body is a DecodeError."""
    with pytest.raises(DecodeError, match="without a body"):
        decode_body([], Any)


@pytest.mark.parametrize(
    ("wire", "where"),
    [
        ({"request_id": 5}, "request_id"),
        ({"request_id": None}, "request_id"),
        ({"request_id": ""}, "request_id"),
        ({"request_id": {"value": "a"}}, "request_id"),
        ({"request_id": A}, "request_id"),
        ({"model": 5}, r"\$\.model"),
        ({"model": A}, r"\$\.model"),
        ({"prompt": ["x"]}, r"\$\.prompt"),
        ({"images": A}, r"\$\.images"),
        ({"images": [A, 5]}, r"\$\.images\[\.\.\.\]|\$\.images\[1\]"),
        ({"images": [{"data": b""}]}, r"\$\.images"),
        ({"height": "8"}, r"\$\.height"),
        ({"height": 0}, "`height`"),
        ({"guidance_scale": float("nan")}, "`guidance_scale`"),
        ({"options": [1]}, r"\$\.options"),
        ({"options": {5: 1}}, r"\$\.options|key"),
    ],
)
def test_wrong_types_per_field(wire, where):
    """A field of a wrong type, or with a wrong value, is a DecodeError that names the field."""
    with pytest.raises(DecodeError, match=where):
        decode_body(
            encode_body({"request_id": "r", "model": "m", "prompt": "x", **wire}).frames, PixelGenerationRequest
        )


def test_errors_quote_little_of_what_they_refuse():
    """However long a refused text is, the error about it is short."""
    for sent, kind in [({"type": "x" * 100_000}, GenerationOutput), ({"x" * 100_000: 1}, dict[int, int])]:
        with pytest.raises(DecodeError) as caught:
            decode_body(encode_body(sent).frames, kind)
        assert len(str(caught.value)) <= 400


def test_w_20_unknown_fields_are_ignored():
    """A field that a newer peer added does not disturb."""
    wire = {"request_id": "r", "model": "m", "prompt": "x", "style": [A]}
    assert decode_body(encode_body(wire).frames, PixelGenerationRequest).prompt == "x"


@pytest.mark.parametrize(
    ("kind", "sent", "fits"),
    [
        (npt.NDArray[np.float32], A, True),
        (npt.NDArray[np.float32], A.astype(">f4"), True),
        (npt.NDArray[np.float32], A.astype("f8"), False),
        (npt.NDArray[np.floating[Any]], A.astype("f2"), True),
        (npt.NDArray[np.floating[Any]], A.astype("i4"), False),
        (npt.NDArray[np.integer[Any]], A.astype("u1"), True),
        (npt.NDArray[np.integer[Any]], A.astype("m8[s]"), False),
        (npt.NDArray[np.integer[Any]], A > 1, False),
        (npt.NDArray[np.float32 | np.float64], A.astype("f8"), True),
        (npt.NDArray[np.float32 | np.float64], A.astype("f2"), False),
        (npt.NDArray[np.str_], np.array(["a"]), True),
        (npt.NDArray[np.bytes_], np.array(["a"]), False),
        (npt.NDArray[Any], A.astype("c8"), True),
        (np.ndarray, A.astype("c8"), True),
        (np.ndarray[Any, Any], A.astype("c8"), True),
        (np.ndarray[tuple[int, int], np.dtype[np.float32]], A, True),
        (np.ndarray[tuple[int, int], np.dtype[np.float32]], A[0], False),
        (np.ndarray[tuple[int], np.dtype[Any]], A[0], True),
        (np.ndarray[tuple[int, ...], np.dtype[Any]], A, True),
        (npt.NDArray[np.float32] | None, A, True),
        (list[npt.NDArray[np.float32]], [A, A.astype("f8")], False),
    ],
    ids=str,
)
def test_w_26_declared_dtypes_and_dimensions_are_checked(travel, kind, sent, fits):
    """An array of another dtype, or number of dimensions, than its annotation says does not arrive."""
    if fits:
        assert_same(sent, travel(sent, kind))
    else:
        with pytest.raises(DecodeError, match=r"is expected, not of|are expected, not of|dimensions is expected"):
            travel(sent, kind)


def test_a_low_precision_float_is_floating():
    """ml_dtypes' floats, which numpy counts as void, pass for floating and for nothing narrower."""
    bfloat16 = np.dtype("V2")
    assert codec._is_subdtype(bfloat16, np.floating)
    assert codec._is_subdtype(bfloat16, np.number)
    assert not codec._is_subdtype(bfloat16, np.float32)
    assert not codec._is_subdtype(bfloat16, np.integer)


@pytest.mark.parametrize("value", [None, 5, "x", b"x", [1], {"a": 1}], ids=repr)
def test_an_array_is_expected(value):
    """Anything but an array where one is declared is an error that names what came."""
    with pytest.raises(DecodeError, match="an array is expected"):
        decode_body(encode_body(value).frames, npt.NDArray[np.float32])


def test_types_that_never_travel():
    """A declared type that no message carries is a DecodeError, not an object made of whatever came."""

    class Strange:
        pass

    with pytest.raises(DecodeError, match="no message carries a Strange"):
        decode_body(encode_body({"a": 1}).frames, Strange)
    with pytest.raises(DecodeError, match="no message carries a SharedMemoryArray"):
        decode_body(encode_body([1]).frames, SharedMemoryArray)


# -- handles ----------------------------------------------------------------------------------------------------------


def test_w_27_handles_are_refused_where_none_is_expected(pool):
    """Without a resolver a handle is a DecodeError: who has no business with shared memory opens none."""
    encoded = encode_body(A, place=publisher(pool), threshold_bytes=1)
    with pytest.raises(DecodeError, match="none is expected"):
        decode_body(encoded.frames, Any)
    encoded.release()


def handle_of(encoded):
    return encoded.loans[0].handle.to_wire()


@pytest.mark.parametrize(
    "change",
    [
        lambda name, shape, dtype, offset, generation, host: (name, (1 << 30,), dtype, offset, generation, host),
        lambda name, shape, dtype, offset, generation, host: (name, shape, dtype, 0, generation, host),
        lambda name, shape, dtype, offset, generation, host: (name, shape, dtype, 1 << 40, generation, host),
        lambda name, shape, dtype, offset, generation, host: (name, shape, dtype, offset + 1, generation, host),
        lambda name, shape, dtype, offset, generation, host: (name, shape, "|O", offset, generation, host),
    ],
    ids=["beyond the block", "in the header", "beyond the segment", "unaligned", "objects"],
)
def test_w_28_forged_handles_are_decode_errors(pool, reader, change):
    """A handle that points where no array can be is a DecodeError like any other nonsense."""
    encoded = encode_body(A, place=publisher(pool), threshold_bytes=1)
    for resolve in (reader.open, reader.claim):
        with pytest.raises(DecodeError):
            decode_body([packed_extension(2, *change(*handle_of(encoded)))], Any, resolve=resolve)
    encoded.release()


def test_w_29_stale_handles_pass(pool, reader):
    """A handle whose block was given back is StaleHandle, which is retryable, and never another's bytes."""
    encoded = encode_body(A, place=publisher(pool), threshold_bytes=1)
    encoded.release()
    pool.housekeep()
    again = encode_body(A + 100, place=publisher(pool), threshold_bytes=1)
    assert handle_of(again)[3] == handle_of(encoded)[3]
    for kind in (Any, np.ndarray, npt.NDArray[np.float32] | None):
        with pytest.raises(StaleHandle) as caught:
            decode_body(encoded.frames, kind, resolve=reader.claim)
        assert caught.value.retryable
    again.release()


def test_w_29_memory_that_is_gone_passes():
    """Handles of a pool that has ended, of another host, or of no pool at all are SegmentGone."""
    reader = Reader()
    pool = Pool(budget_bytes=8 << 20)
    encoded = encode_body(A, place=publisher(pool), threshold_bytes=1)
    fields_ = handle_of(encoded)
    pool.close()
    for changed in (fields_, (*fields_[:5], "another-host"), ("0" * 16 + ".1", *fields_[1:])):
        with pytest.raises(SegmentGone):
            decode_body([packed_extension(2, *changed)], np.ndarray, resolve=reader.claim)
    reader.close()


def test_a_wrong_setting_is_not_the_messages_fault(pool, monkeypatch):
    """A runtime folder that cannot be is a ConfigError on decoding too, since sending something else will not help."""
    encoded = encode_body(A, place=publisher(pool), threshold_bytes=1)
    monkeypatch.setenv("TENSORYARD_RUNTIME_DIR", "/" + "x" * 200)
    with pytest.raises(ConfigError, match="TENSORYARD_RUNTIME_DIR"):
        decode_body(encoded.frames, Any, resolve=Reader().claim)
    encoded.release()


def test_other_errors_of_the_resolver_pass(pool):
    """What a resolver raises that says nothing about the message comes out as it is."""
    encoded = encode_body(A, place=publisher(pool), threshold_bytes=1)

    def resolve(handle):
        raise OSError("no such luck")

    with pytest.raises(OSError, match="no such luck"):
        decode_body(encoded.frames, Any, resolve=resolve)
    encoded.release()


# -- views ------------------------------------------------------------------------------------------------------------


def test_w_32_views_are_read_only_and_copies_are_owned(travel):
    """By default an array cannot be written; with `copy` it can, and owns its memory."""
    encoded = travel.encode({"x": A})
    view = travel.decode(encoded)["x"]
    assert not view.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        view[0, 0] = 1
    owned = travel.decode(encoded, copy=True)["x"]
    assert owned.flags.writeable
    assert owned.flags.owndata
    owned[0, 0] = 50
    assert view[0, 0] == 0
    del view
    encoded.release()


class Frame(bytearray):
    """A frame that can be watched."""


@pytest.mark.parametrize("out_of_band", [False, True])
@pytest.mark.parametrize("copy", [False, True])
def test_a_view_keeps_its_frame_alive(out_of_band, copy):
    """A view keeps the bytes it looks at for as long as it, or a slice of it, lives; a copy keeps nothing."""
    sent = np.arange(64, dtype=np.uint8)
    frames = [Frame(frame) for frame in encode_body(sent, out_of_band=out_of_band, threshold_bytes=1).frames]
    held = weakref.ref(frames[-1])
    array = decode_body(frames, np.ndarray, copy=copy)[10:]
    del frames
    gc.collect()
    assert (held() is None) is copy
    assert array.tolist() == list(range(10, 64))
    del array
    gc.collect()
    assert held() is None


@pytest.mark.parametrize("shift", range(16))
def test_arrays_are_aligned_wherever_they_lie(shift):
    """An array is aligned for its dtype at any place in a frame."""
    for dtype in ("<f8", "<c16", "<i2"):
        sent = np.arange(8).astype(dtype)
        body = encode_body(["x" * shift, sent])
        assert_same(sent, decode_body(body.frames, Any)[1])
        frames = encode_body(sent, out_of_band=True, threshold_bytes=1).frames
        moved = memoryview(b"x" * shift + bytes(frames[1]))[shift:]
        assert_same(sent, decode_body([frames[0], moved], Any))


def test_large_inline_arrays_are_not_copied_on_arrival():
    """An aligned array inside the message is a view of the message, not a copy of it."""
    sent = np.zeros(1 << 20, np.uint8)
    body = encode_body(sent).frames[0]
    received = decode_body([body], np.ndarray)
    start = np.frombuffer(body, np.uint8).__array_interface__["data"][0]
    assert start < received.__array_interface__["data"][0] < start + len(body)


# -- the four factories -----------------------------------------------------------------------------------------------


def test_signatures_and_defaults():
    """Called as the reference documents them, the factories give callables that do what they say."""
    assert msgpack_numpy_decoder(Any)(msgpack_numpy_encoder()([A]))[0].tolist() == A.tolist()
    data = msgpack_numpy_encoder(use_shared_memory=True, shared_memory_threshold=24)(A)
    assert isinstance(data, bytes)
    assert extension_codes([data]) == [SHARED]
    assert msgpack_numpy_decoder(np.ndarray, copy=True)(data).flags.writeable
    frames = msgpack_numpy_oob_encoder(oob_threshold=24)(A)
    assert [len(frames), extension_codes(frames)] == [2, [OUT_OF_BAND]]
    assert not msgpack_numpy_oob_decoder(type_=np.ndarray)(frames).flags.writeable
    assert msgpack_numpy_oob_decoder(np.ndarray, True)(frames).flags.writeable


def test_default_thresholds(process_memory):
    """Shared memory is for 24 MB and more, out-of-band for 64 KiB and more, unless told otherwise."""
    small = np.zeros(24_000_000 - 1, np.uint8)
    assert extension_codes([msgpack_numpy_encoder(True)(small)]) == [INLINE]
    assert process_memory._pool.statistics().taken_total == 0
    frames = msgpack_numpy_oob_encoder()([np.zeros(65536, np.uint8), np.zeros(65535, np.uint8)])
    assert extension_codes(frames) == [OUT_OF_BAND, INLINE]
    assert extension_codes([msgpack_numpy_encoder()(np.zeros(1 << 20))]) == [INLINE]


def test_the_decoder_takes_any_buffer():
    """A message may come as bytes, bytearray or memoryview."""
    data = msgpack_numpy_encoder()(A)
    for each in (data, bytearray(data), memoryview(data)):
        assert_same(A, msgpack_numpy_decoder(np.ndarray)(each))


@pytest.mark.parametrize("options", [(False,), (True, 24), (True, 0)])
def test_encoders_pickle(options):
    """An encoder survives a pickle with its options, and uses the pool of the process it is then in."""
    with Pool(budget_bytes=8 << 20) as own:
        encoder = msgpack_numpy_encoder(*options, pool=own)
        twin = pickle.loads(pickle.dumps(encoder))
        assert twin == msgpack_numpy_encoder(*options)
        assert_same(A, msgpack_numpy_decoder(np.ndarray)(twin(A)))
        assert own.statistics().taken_total == 0


def test_the_others_pickle():
    """Decoders and the out-of-band pair survive a pickle, with their type and options."""
    for decoder in (msgpack_numpy_decoder(npt.NDArray[np.float32], True), msgpack_numpy_decoder(dict[str, Any])):
        assert pickle.loads(pickle.dumps(decoder)) == decoder
    encoder, decoder = pickle.loads(
        pickle.dumps((msgpack_numpy_oob_encoder(1), msgpack_numpy_oob_decoder(EmbeddingsRequest)))
    )
    request = EmbeddingsRequest(model="m", input=A)
    assert_same(request, decoder(encoder(request)))


def test_several_decodes_of_the_same_bytes(pool):
    """While a view lives, the same bytes can be read again, and each view is of the same memory."""
    data = msgpack_numpy_encoder(True, 1, pool=pool)({"a": A, "b": A})
    decoder = msgpack_numpy_decoder(Any)
    first = decoder(data)
    again = [decoder(data) for _ in range(3)]
    address = first["a"].__array_interface__["data"][0]
    assert {each[key].__array_interface__["data"][0] for each in again for key in "ab"} == {address}
    last = again.pop()["b"][1:]
    del first, again
    gc.collect()
    assert pool.statistics().used_blocks == 1
    assert last.tolist() == A[1:].tolist()
    assert_same(A, decoder(data)["a"])
    del last
    gc.collect()
    assert pool.statistics().used_blocks == 0
    with pytest.raises(StaleHandle):
        decoder(data)


def test_a_copy_gives_the_memory_back(pool):
    """Decoding with `copy` leaves nothing held in the pool."""
    data = msgpack_numpy_encoder(True, 1, pool=pool)(A)
    array = msgpack_numpy_decoder(np.ndarray, copy=True)(data)
    assert used(pool) == 0
    assert_same(A, array)


def test_when_nobody_reads():
    """Memory that no reader claims in time is used again, and who comes then learns that it is stale."""
    with Pool(budget_bytes=8 << 20, claim_timeout_s=0) as hasty:
        data = msgpack_numpy_encoder(True, 1, pool=hasty)([A, A + 1])
        hasty.housekeep()
        assert hasty.statistics().used_blocks == 0
        with pytest.raises(StaleHandle):
            msgpack_numpy_decoder(Any)(data)
    with Pool(budget_bytes=8 << 20, claim_timeout_s=3600) as patient:
        data = msgpack_numpy_encoder(True, 1, pool=patient)([A, A + 1])
        patient.housekeep()
        assert (patient.statistics().used_blocks, patient.statistics().published_blocks) == (2, 2)
        assert_same([A, A + 1], msgpack_numpy_decoder(Any)(data))


def test_the_source_may_change_after_a_shared_encode(pool):
    """What was copied into shared memory is a snapshot: the sender may go on writing to its own array."""
    mine = A.copy()
    data = msgpack_numpy_encoder(True, 1, pool=pool)(mine)
    mine[:] = 0
    assert_same(A, msgpack_numpy_decoder(np.ndarray)(data))


def in_threads(work, count=8):
    """Run `work(number)` in threads that start together; raise what any of them raised."""
    barrier, failures = threading.Barrier(count), []

    def run(number):
        try:
            barrier.wait(30)
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    if failures:
        raise failures[0]


def test_one_encoder_and_decoder_for_many_threads(pool):
    """Eight threads that share an encoder and a decoder of each kind each get their own values back."""
    pairs = [
        (msgpack_numpy_encoder(), msgpack_numpy_decoder(EmbeddingsRequest)),
        (msgpack_numpy_encoder(True, 64, pool=pool), msgpack_numpy_decoder(EmbeddingsRequest, True)),
        (msgpack_numpy_oob_encoder(64), msgpack_numpy_oob_decoder(EmbeddingsRequest)),
    ]

    def work(number):
        for turn in range(30):
            arrays = [np.full(turn + size, number * 1000 + turn) for size in (1, 50)]
            request = EmbeddingsRequest(model=f"m{number}", input=arrays, options={"turn": turn})
            for encoder, decoder in pairs:
                assert_same(request, decoder(encoder(request)))

    in_threads(work)
    assert used(pool) == 0


def test_threads_that_start_together_share_one_pool(process_memory):
    """The process's own pool and reader are made once, however many threads need them first at the same time."""
    encoder, decoder = msgpack_numpy_encoder(True, 1), msgpack_numpy_decoder(np.ndarray)
    received = {}

    def work(number):
        received[number] = decoder(encoder(A + number))

    in_threads(work)
    for number, array in received.items():
        assert_same(A + number, array)
    assert process_memory.pool.statistics().taken_total == 8


# -- other processes --------------------------------------------------------------------------------------------------

_CHILD = """
import json, sys
import numpy as np
from tensoryard.proto.codec import msgpack_numpy_decoder, msgpack_numpy_encoder
encoder, decoder, held = msgpack_numpy_encoder(True, 1), msgpack_numpy_decoder(dict), []
for line in sys.stdin:
    what, text = json.loads(line)
    try:
        if what == "decode":
            held.append(decoder(bytes.fromhex(text))["x"])
            answer = [held[-1].tolist(), held[-1].dtype.str, held[-1].flags.writeable]
        elif what == "encode":
            answer = encoder({"x": np.arange(int(text))}).hex()
        else:
            held.clear()
            answer = "dropped"
    except Exception as error:
        answer = type(error).__name__
    print(json.dumps(answer), flush=True)
"""


class Child:
    """Another process with its own encoder and decoder."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-W", "error", "-c", _CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def ask(self, what, text=""):
        self.process.stdin.write(json.dumps([what, text]).encode() + b"\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def kill(self):
        self.process.kill()
        self.process.wait(30)

    def close(self):
        self.process.stdin.close()
        assert self.process.wait(30) == 0
        self.process.stdout.close()


@pytest.fixture
def child():
    """Ends with the test."""
    made = Child()
    yield made
    made.kill()
    for pipe in (made.process.stdin, made.process.stdout):
        pipe.close()


def test_another_process_reads(pool, child):
    """An array encoded here is read in another process, twice from the same bytes, and its memory comes back."""
    sent = np.arange(100, dtype=">i4")
    data = msgpack_numpy_encoder(True, 1, pool=pool)({"x": sent}).hex()
    assert child.ask("decode", data) == [sent.tolist(), ">i4", False]
    assert child.ask("decode", data) == [sent.tolist(), ">i4", False]
    assert used(pool) == 1
    child.ask("drop")
    assert used(pool) == 0
    assert child.ask("decode", data) == "StaleHandle"


def test_several_processes_read_the_same_message(pool, child, eventually):
    """One message has as many readers as want it; its memory lives until the last of them is done, or dead."""
    other = Child()
    try:
        data = msgpack_numpy_encoder(True, 1, pool=pool)({"x": A})
        here = msgpack_numpy_decoder(dict)(data)
        for process in (child, other):
            assert process.ask("decode", data.hex())[0] == A.tolist()
        del here
        assert used(pool) == 1
        child.ask("drop")
        assert used(pool) == 1
        other.kill()
        eventually(lambda: not used(pool), "the dead reader's memory comes back")
    finally:
        other.kill()
        for pipe in (other.process.stdin, other.process.stdout):
            pipe.close()


def test_the_writer_may_die_first(child):
    """A view outlives the process that made the array; bytes that come after its death are SegmentGone."""
    data, unread = bytes.fromhex(child.ask("encode", "1000")), bytes.fromhex(child.ask("encode", "10"))
    decoder = msgpack_numpy_decoder(dict)
    view = decoder(data)["x"]
    child.kill()
    assert view.tolist() == list(range(1000))
    with pytest.raises(SegmentGone):
        msgpack_numpy_decoder(dict)(unread)


_FORKED = """
import os, sys
import numpy as np
from tensoryard.proto.codec import msgpack_numpy_decoder, msgpack_numpy_encoder
encoder, decoder = msgpack_numpy_encoder(True, 1), msgpack_numpy_decoder(np.ndarray)
mine = decoder(encoder(np.arange(5)))
pid = os.fork()
if not pid:
    theirs = decoder(encoder(np.arange(7)))
    os._exit(0 if theirs.tolist() == list(range(7)) and mine.tolist() == list(range(5)) else 1)
status = os.waitpid(pid, 0)[1]
again = decoder(encoder(np.arange(6)))
sys.exit(status or again.tolist() != list(range(6)) or mine.tolist() != list(range(5)))
"""


def test_a_forked_child_has_memory_of_its_own():
    """After a fork the child encodes and decodes with a pool of its own, and the parent's goes on."""
    command = [sys.executable, "-P", "-W", "error", "-W", "ignore::DeprecationWarning", "-c", _FORKED]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


# -- the same body another way ----------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(value=mixed)
def test_shared_arrays_can_go_along_instead(value):
    """A body that names shared memory becomes one that carries its arrays, and stands for the same value."""
    with Pool(budget_bytes=64 << 20) as own:
        encoded = encode_body(value, place=own.publish, threshold_bytes=1)
        carried = as_buffers(encoded, own.view)
        assert same(decode_body(carried.frames, Any), decode_body(encode_body(value).frames, Any))
        assert carried.loans == []
        assert carried.shared_bytes == 0
        assert len(carried.frames) - 1 == len({loan.handle for loan in encoded.loans})
        encoded.release()


def test_what_goes_along_once_is_named_twice(pool):
    """Buffers that went along before stay, one array under two names is one buffer, and one over the wire is a copy."""
    array, other = np.arange(1000.0), np.arange(500)
    loan = pool.place(array)
    place = lambda given: (loan, True) if given is array else None
    encoded = encode_body({"a": array, "b": [array, other]}, place=place, out_of_band=True, threshold_bytes=1)
    carried = as_buffers(encoded, pool.view)
    assert len(carried.frames) == 3
    loan.release()
    got = decode_body(carried.frames, Any)
    assert np.array_equal(got["a"], array)
    assert np.array_equal(got["b"][0], array)
    assert np.array_equal(got["b"][1], other)
