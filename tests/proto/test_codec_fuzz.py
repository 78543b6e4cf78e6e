"""Hostile bytes: whatever comes in, a decoder gives a value or an error of its family, and the process lives on.

TENSORYARD_FUZZ_INPUTS says how many mutated messages each of the two loops tries, TENSORYARD_FUZZ_SEED from which seed.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from dataclasses import fields, is_dataclass
from typing import Any

import msgpack
import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensoryard.errors import DecodeError, ProtocolError, SegmentGone, StaleHandle
from tensoryard.proto import wire
from tensoryard.proto.audio import AudioGenerationMetadata, AudioGenerationOutput, AudioGenerationRequest
from tensoryard.proto.codec import decode_body, encode_body, publisher
from tensoryard.proto.context import GenerationStatus
from tensoryard.proto.embeddings import EmbeddingsGenerationOutput, EmbeddingsRequest
from tensoryard.proto.generation import GenerationOutput, OutputImageContent, OutputTextContent, OutputVideoContent
from tensoryard.proto.outputs import served_tasks, task_types
from tensoryard.proto.pipeline import PipelineTask
from tensoryard.proto.pixels import PixelGenerationRequest
from tensoryard.proto.request import RequestID
from tensoryard.proto.sampling import SamplingParams
from tensoryard.shm import Pool, Reader

INPUTS = int(os.environ.get("TENSORYARD_FUZZ_INPUTS", "10500"))
SEED = int(os.environ.get("TENSORYARD_FUZZ_SEED", "0"))
DECODERS = [wire.TO_COORDINATOR, wire.TO_CLIENT, wire.TO_WORKER, wire.TO_FLEET]
FLOATS, PIXELS = np.linspace(0, 1, 40, dtype=np.float32), np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
ID = RequestID("0123456789abcdef")
BODIES: list[Any] = [
    EmbeddingsRequest(
        request_id=ID, model="m", input=["a text", "another"], options={"normalize": True, "k": [1.5, None]}
    ),
    EmbeddingsRequest(request_id=ID, model="m", input=[FLOATS, PIXELS[::2]], options={"mask": PIXELS[..., 0] > 9}),
    PixelGenerationRequest(request_id=ID, model="m", prompt="a cat", images=[PIXELS, PIXELS], height=64, seed=2**40),
    AudioGenerationRequest(
        request_id=ID,
        model="m",
        input="say this",
        audio_prompt_tokens=[1, 200, 70000],
        sampling_params=SamplingParams(stop=["."], stop_token_ids=[1, 2], max_new_tokens=9),
        buffer_speech_tokens=np.arange(9, dtype=">i4"),
    ),
    EmbeddingsGenerationOutput(FLOATS.reshape(4, 10)),
    GenerationOutput(
        request_id=ID,
        final_status=GenerationStatus.ACTIVE,
        output=[OutputTextContent(text="x"), OutputImageContent(image=PIXELS), OutputVideoContent(frames=PIXELS[None])],
    ),
    AudioGenerationOutput(
        GenerationStatus.END_OF_SEQUENCE, 3, FLOATS, None, AudioGenerationMetadata(sample_rate=22050)
    ),
    {"text": np.array(["ab", "c"]), "when": np.array(["2026-01-02"], "M8[ns]"), "z": [FLOATS * 1j, {"d": np.array(5)}]},
]
TYPES = [
    *(each for task in served_tasks() for each in task_types(PipelineTask(task))),
    np.ndarray,
    npt.NDArray[np.float32],
    list[npt.NDArray[Any]],
    dict[RequestID, Any],
    Any,
]
LEDGER = wire.Ledger(request_socket_bytes=9, wait_s=0.5, worker="w")
ENVELOPES: list[wire.Message] = [
    wire.Hello(version=1, role="worker", name="w1", host="h", pid=77, pid_namespace="pid:[1]", software="0.1"),
    wire.Heartbeat(progress=9, busy=True),
    wire.Disconnect(),
    wire.Submit(request_id="r1", task="t", model="m", priority=-5, deadline_s=2.5, host="h", shared_bytes=1 << 40),
    wire.Cancel(request_id="r1"),
    wire.Consumed(request_id="r1", parts=3),
    wire.AskStatus(query=3),
    wire.AskStory(request_id="r1", query=4),
    wire.Shutdown(),
    wire.Ready(model="m", task="t", deployment="m", credits=16, running=[wire.Running(request_id="r1", attempt=2)]),
    wire.StartFailed(deployment="m", text="boom"),
    wire.Outputs(
        outputs=[
            wire.Output(request_id="r1", attempt=1, seq=0, done=True, frames=2, ledger=LEDGER),
            wire.Output(request_id="r2", attempt=1, seq=5, done=False, code="failed", text="it failed"),
        ]
    ),
    wire.Deployments(deployments=[wire.Expected(deployment="m", model="m", task="t", replicas=2)]),
    wire.DrainWorker(worker="w1"),
    wire.Lora(operation="load", lora_name="tone", timeout_s=30.0, lora_path="/adapters/tone", model="m", query=3),
    wire.LoraDone(number=3, lora_name="tone", status="success", text="loaded"),
    wire.Welcome(
        version=1,
        epoch="e",
        host="h",
        heartbeat_s=1.0,
        liveness_s=5.0,
        max_frame_bytes=1 << 30,
        max_message_bytes=1 << 32,
        max_in_flight=64,
    ),
    wire.Refused(code="protocol", text="no"),
    wire.Rejoin(),
    wire.Partial(request_id="r1", seq=0, ledger=LEDGER),
    wire.Final(request_id="r1", seq=1),
    wire.Answers(outputs=[wire.Partial(request_id="r1", seq=0), wire.Final(request_id="r2", seq=1)], frames=[1, 2]),
    wire.Error(request_id="r1", code="failed", text="x", retry_after_s=1.0, story=["accepted", "sent"]),
    wire.Report(query=3),
    wire.Dispatch(request_id="r1", attempt=1, deadline_s=1.5),
    wire.CancelWork(request_id="r1", attempt=1),
    wire.Discard(request_id="r1", attempt=1, seq=0),
    wire.Drain(),
    wire.WorkerNotice(worker="w1", deployment="m", what="gone", text="died"),
    wire.LoraWork(number=3, operation="load", lora_name="tone", lora_path="/adapters/tone"),
    wire.Loads(loads=[wire.Load(deployment="m", ongoing=3, peak=9)]),
]


@pytest.fixture(scope="module")
def pool():
    """A pool that lies behind the valid messages."""
    with Pool(budget_bytes=16 << 20) as made:
        yield made
        made.check_invariants()


@pytest.fixture(scope="module")
def reader():
    """A reader that hostile handles are given to."""
    made = Reader()
    yield made
    made.close()


@pytest.fixture(scope="module")
def messages(pool):
    """Valid messages of every type by every way, and the loans that keep their memory."""
    encoded = []
    for value in BODIES:
        encoded += [
            encode_body(value),
            encode_body(value, out_of_band=True, threshold_bytes=16),
            encode_body(value, place=publisher(pool), threshold_bytes=16),
        ]
    yield [[bytes(frame) for frame in each.frames] for each in encoded]
    for each in encoded:
        each.release()


# -- what a message may become ----------------------------------------------------------------------------------------

#: Bytes that begin or bound something in msgpack, numbers at their limits, and names the codec knows.
TOKENS = [
    *(
        bytes([byte])
        for byte in (0x00, 0x01, 0x7F, 0x80, 0x90, 0x91, 0x9F, 0xA0, 0xA1, 0xC0, 0xC1, 0xC2, 0xC3, 0xE0, 0xFF)
    ),
    *(b"\xcf" + b"\xff" * 8, b"\xd3\x80" + b"\x00" * 7, b"\xcb\x7f\xf8" + b"\x00" * 6, b"\xcb\x7f\xf0" + b"\x00" * 6),
    *(
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xdc\x00\x02",
    ),
    *(b"\xc7\x00\x01", b"\xd4\x01\x90", b"\xd4\x02\x90", b"\xd4\x03\x90", b"\xd4\xff\x00", b"\xd8\xff" + b"\xff" * 16),
    *(b"\xa3<f4", b"\xa3|u1", b"\xa3|O8", b"\xa3<U0", b"\xa6<M8[s]", b"\xa3>c8", b"\xa2|O", b"\xa6<f4,<f4"),
    *(b"\x92\x00\xcf" + b"\xff" * 8, b"\x91" * 40, b"\x81\xa1a" * 20),
]


def mutated(rng, frames, others):
    """A message with one to four things wrong."""
    frames = [bytearray(frame) for frame in frames]
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        frame = frames[0 if rng.random() < 0.85 else rng.randrange(len(frames))]
        at = rng.randrange(len(frame) + 1)
        match rng.randrange(10):
            case 0 if frame:
                frame[rng.randrange(len(frame))] = rng.randrange(256)
            case 1 if frame:
                frame[rng.randrange(len(frame))] ^= 1 << rng.randrange(8)
            case 2:
                frame[at:at] = rng.choice(TOKENS)
            case 3:
                token = rng.choice(TOKENS)
                frame[at : at + len(token)] = token
            case 4:
                del frame[at : at + rng.randrange(1, 9)]
            case 5:
                del frame[at:]
            case 6:
                other = rng.choice(rng.choice(others))
                start = rng.randrange(len(other) + 1)
                frame[at : at + rng.randrange(20)] = other[start : start + rng.randrange(40)]
            case 7:
                frame[at:at] = frame[at : at + rng.randrange(60)]
            case 8:
                frames.append(bytearray(rng.randbytes(rng.randrange(64))))
            case 9 if len(frames) > 1:
                del frames[rng.randrange(len(frames))]
    return [bytes(frame) for frame in frames]


def arrays_in(value):
    """Every array of a decoded value."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from arrays_in(each)
    elif isinstance(value, list | tuple | set):
        for each in value:
            yield from arrays_in(each)
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from arrays_in(getattr(value, name))
    elif is_dataclass(value):
        for spec in fields(value):
            yield from arrays_in(getattr(value, spec.name))


def outcome_of(error):
    """The name of an error whose text nobody could swell."""
    assert len(str(error)) < 1000
    return type(error).__name__


def try_body(frames, kind, resolve, *, copy=False):
    """Decode and look at every byte of what came out; the outcome, or whatever should not have been raised."""
    try:
        value = decode_body(frames, kind, resolve=resolve, copy=copy)
    except (DecodeError, StaleHandle, SegmentGone) as error:
        return outcome_of(error)
    for array in arrays_in(value):
        assert copy or not array.flags.writeable or not array.size  # an empty one may be a field's own default
        assert array.dtype.kind in "biufcSUmMV"
        assert not array.dtype.hasobject
        assert len(array.tobytes()) == array.nbytes
    return "value"


def try_envelope(decoder, frame):
    """Decode; a message that comes out survives another round trip."""
    try:
        message = wire.decode(decoder, frame)
    except ProtocolError as error:
        return outcome_of(error)
    assert wire.encode(wire.decode(decoder, wire.encode(message))) == wire.encode(message)
    return "value"


# -- mutations of valid messages --------------------------------------------------------------------------------------


def test_valid_messages_are_read(messages, reader):
    """The messages that the mutations start from are themselves read, each in its own type."""
    for index, frames in enumerate(messages):
        value = BODIES[index // 3]
        kind = Any if isinstance(value, dict) else type(value)
        assert try_body(frames, kind, reader.open) == "value"
        assert try_body(frames, Any, reader.claim, copy=True) == "value"
    for message in ENVELOPES:
        outcomes = [try_envelope(decoder, wire.encode(message)) for decoder in DECODERS]
        assert "value" in outcomes, message
    assert {type(message) for message in ENVELOPES} == {
        each for union in (wire.ToCoordinator, wire.ToClient, wire.ToWorker, wire.ToFleet) for each in union.__args__
    }


def test_w_33_mutated_bodies(messages, reader):
    """Thousands of damaged bodies, in every type and with real memory behind their handles, end in the family."""
    rng, outcomes = random.Random(SEED), Counter()
    resolvers = [reader.open, reader.claim, reader.claim, None]
    for _ in range(INPUTS):
        index = rng.randrange(len(messages))
        frames = mutated(rng, messages[index], messages)
        kind = rng.choice((type(BODIES[index // 3]), Any, rng.choice(TYPES)))
        outcomes[try_body(frames, kind, rng.choice(resolvers), copy=rng.random() < 0.2)] += 1
    print(f"\nbodies, seed {SEED}: {dict(outcomes)}")
    assert outcomes.total() == INPUTS
    assert min(outcomes["value"], outcomes["DecodeError"]) > INPUTS // 20, outcomes
    assert min(outcomes["StaleHandle"], outcomes["SegmentGone"]) > 0, outcomes


def test_w_33_mutated_envelopes():
    """Thousands of damaged envelopes, for each of the four decoders, are messages or a ProtocolError."""
    rng, outcomes = random.Random(SEED), Counter()
    valid = [[wire.encode(message)] for message in ENVELOPES]
    decoders = [[each for each in DECODERS if try_envelope(each, frames[0]) == "value"] for frames in valid]
    for _ in range(INPUTS):
        index = rng.randrange(len(valid))
        frames = mutated(rng, valid[index], valid)
        decoder = rng.choice(decoders[index] if rng.random() < 0.7 else DECODERS)
        outcomes[try_envelope(decoder, frames[0] if frames else b"")] += 1
    print(f"\nenvelopes, seed {SEED}: {dict(outcomes)}")
    assert outcomes.total() == INPUTS
    assert min(outcomes["value"], outcomes["ProtocolError"]) > INPUTS // 20, outcomes


def test_random_bytes(reader):
    """Bytes of no meaning at all, as body and as envelope, end in the family."""
    rng = random.Random(SEED)
    for _ in range(max(INPUTS // 12, 1)):
        frames = [rng.randbytes(rng.randrange(60)) for _ in range(rng.randrange(1, 3))]
        try_body(frames, rng.choice(TYPES), reader.open)
        try_envelope(rng.choice(DECODERS), frames[0])


# -- well-formed msgpack with the wrong things in it ------------------------------------------------------------------

sides = st.sampled_from([0, 1, 2, 3, 4, 40, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1, -1, -(2**63)])
names = st.sampled_from(
    [
        "<f4",
        ">f4",
        "|u1",
        "|b1",
        "<U2",
        "|S3",
        "<M8[ns]",
        "<m8",
        "<c8",
        "f4",
        "O",
        "|O",
        "|V4",
        "<U0",
        "bfloat16",
        "",
        "i4,i4",
    ]
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | names
)


def packed(code, *held):
    return msgpack.ExtType(code, msgpack.packb(held))


extensions = (
    st.builds(packed, st.just(1), names, st.lists(sides, max_size=3), st.binary(max_size=16))
    | st.builds(
        packed, st.just(2), st.text(max_size=20), st.lists(sides, max_size=3), names, sides, sides, st.text(max_size=9)
    )
    | st.builds(packed, st.just(3), sides, st.lists(sides, max_size=3), names)
    | st.builds(packed, st.integers(0, 127), scalars, scalars, scalars)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=16))
    | st.builds(msgpack.Timestamp, st.integers(-(2**63), 2**63 - 1), st.integers(0, 10**9 - 1))
)
anything = st.recursive(
    scalars | extensions,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=4) | st.integers(-1, 99) | st.booleans(), inner, max_size=4)
    ),
    max_leaves=10,
)


@settings(deadline=None, max_examples=150)
@given(value=anything, buffers=st.lists(st.binary(max_size=16), max_size=2), kind=st.sampled_from(TYPES))
def test_any_value_as_a_body(reader, value, buffers, kind):
    """Any msgpack value, with extensions of ours that claim anything, ends in the family in every type."""
    try_body([msgpack.packb(value), *buffers], kind, reader.claim)


@pytest.mark.parametrize("value", BODIES[:7], ids=lambda value: type(value).__name__)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_value_in_any_field(reader, value, data):
    """A body of the right fields with anything in some of them ends in the family."""
    body = msgpack.unpackb(encode_body(value).frames[0])
    for name in data.draw(st.lists(st.sampled_from(list(body)), min_size=1, max_size=3)):
        body[name] = data.draw(anything)
    try_body([msgpack.packb(body)], type(value), reader.open)


@settings(deadline=None, max_examples=150)
@given(
    name=st.sampled_from([msgpack.unpackb(wire.encode(message))[0] for message in ENVELOPES]) | scalars,
    held=st.lists(anything, max_size=8),
    decoder=st.sampled_from(DECODERS),
)
def test_any_values_as_an_envelope(name, held, decoder):
    """Any array of values after any name is a message or a ProtocolError."""
    try_envelope(decoder, msgpack.packb([name, *held]))


@settings(deadline=None, max_examples=150)
@given(data=st.data(), message=st.sampled_from(ENVELOPES), decoder=st.sampled_from(DECODERS))
def test_any_value_in_any_place_of_an_envelope(data, message, decoder):
    """A message with anything in one of its places, or more places than it has, is a message or a ProtocolError."""
    envelope = msgpack.unpackb(wire.encode(message))
    envelope.append(data.draw(anything))
    envelope[data.draw(st.integers(0, len(envelope) - 1))] = data.draw(anything)
    try_envelope(decoder, msgpack.packb(envelope))
