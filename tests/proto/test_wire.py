"""The envelopes: each round-trips, is plain msgpack, holds to its limits, and is specified in docs/spec/wire.md."""

from __future__ import annotations

import math
import re
from pathlib import Path

import msgpack
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect

from tensoryard import errors
from tensoryard.errors import ProtocolError, VersionMismatch
from tensoryard.proto import wire
from tensoryard.proto.codec import decode_body, encode_body
from tensoryard.proto.embeddings import EmbeddingsRequest
from tensoryard.proto.lora import MAX_LORAS
from tensoryard.proto.request import RequestID

ROOT = Path(__file__).parents[2]
SPEC = ROOT / "docs" / "spec" / "wire.md"
DECODERS = {
    "coordinator": (wire.TO_COORDINATOR, wire.ToCoordinator),
    "client": (wire.TO_CLIENT, wire.ToClient),
    "worker": (wire.TO_WORKER, wire.ToWorker),
    "fleet": (wire.TO_FLEET, wire.ToFleet),
}
MESSAGES = sorted({kind for _, union in DECODERS.values() for kind in union.__args__}, key=lambda kind: kind.__name__)
PARTS = [wire.Running, wire.LoadedAdapter, wire.Use, wire.Ledger, wire.Output, wire.Expected, wire.Load]
EVERY = pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
FIELDS = {kind: inspect.type_info(kind).fields for kind in [*MESSAGES, *PARTS]}


def strategy(info):
    """Values of a field's type, its limits among them."""
    match info:
        case inspect.StrType():
            return st.text(min_size=info.min_length or 0, max_size=min(info.max_length or 20, 300))
        case inspect.IntType():
            low, high = info.ge or 0, info.le or 2**64 - 1
            return st.integers(low, high) | st.sampled_from([low, high])
        case inspect.FloatType():
            low = info.ge if info.ge is not None else math.nextafter(info.gt, math.inf)
            return st.floats(low, info.le) | st.sampled_from([low, info.le])
        case inspect.BoolType():
            return st.booleans()
        case inspect.NoneType():
            return st.none()
        case inspect.ListType():
            return st.lists(strategy(info.item_type), max_size=3)
        case inspect.UnionType():
            return st.one_of([strategy(each) for each in info.types])
        case inspect.StructType():
            return messages_of(info.cls)
    raise AssertionError(info)


def messages_of(kind):
    """Messages of a kind with every field drawn."""
    return st.builds(kind, **{field.name: strategy(field.type) for field in FIELDS[kind]})


def least(kind, **changes):
    """A message of a kind with the shortest values that are allowed."""
    values = {}
    for field in FIELDS[kind]:
        match field.type:
            case inspect.StrType():
                values[field.name] = "x"
            case inspect.IntType():
                values[field.name] = max(field.type.ge or 0, 1)
            case inspect.FloatType():
                values[field.name] = 1.0
            case inspect.BoolType():
                values[field.name] = False
            case inspect.ListType():
                values[field.name] = []
    required = {field.name for field in FIELDS[kind] if field.required}
    return kind(**{**{name: value for name, value in values.items() if name in required}, **changes})


def decoders_of(kind):
    return [decoder for decoder, union in DECODERS.values() if kind in union.__args__]


def plain(value):
    """A message as the msgpack package would show it."""
    return msgpack.unpackb(wire.encode(value))


def places():
    """Every field of every message, also inside the parts of messages: kind, field, and how to set it."""
    for kind in MESSAGES:
        for field in FIELDS[kind]:
            yield kind, field, lambda value, kind=kind, field=field: least(kind, **{field.name: value})
    for field in FIELDS[wire.Running]:
        yield (
            wire.Ready,
            field,
            lambda value, field=field: least(wire.Ready, running=[least(wire.Running, **{field.name: value})]),
        )
    for field in FIELDS[wire.LoadedAdapter]:
        yield (
            wire.Ready,
            field,
            lambda value, field=field: least(wire.Ready, adapters=[least(wire.LoadedAdapter, **{field.name: value})]),
        )
    for field in FIELDS[wire.Output]:
        yield (
            wire.Outputs,
            field,
            lambda value, field=field: wire.Outputs(outputs=[least(wire.Output, **{field.name: value})]),
        )
    for field in FIELDS[wire.Expected]:
        yield (
            wire.Deployments,
            field,
            lambda value, field=field: wire.Deployments(deployments=[least(wire.Expected, **{field.name: value})]),
        )
    for field in FIELDS[wire.Ledger]:
        yield wire.Final, field, lambda value, field=field: least(wire.Final, ledger=wire.Ledger(**{field.name: value}))
        yield (
            wire.Outputs,
            field,
            lambda value, field=field: wire.Outputs(
                outputs=[least(wire.Output, ledger=wire.Ledger(**{field.name: value}))]
            ),
        )


def of_type(info, kind):
    """The part of a field's type that is of a kind, None when there is none."""
    choices = info.types if isinstance(info, inspect.UnionType) else [info]
    return next((each for each in choices if isinstance(each, kind)), None)


PLACES = [(kind, field, make) for kind, field, make in places()]


def assert_refused(kind, message):
    for decoder in decoders_of(kind):
        with pytest.raises(ProtocolError):
            wire.decode(decoder, wire.encode(message))


def assert_taken(kind, message):
    for decoder in decoders_of(kind):
        assert wire.decode(decoder, wire.encode(message)) == message


# -- form -------------------------------------------------------------------------------------------------------------


@EVERY
@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_every_message_round_trips(kind, data):
    """Each message, with any values that its limits allow, comes back equal by each decoder that takes it."""
    assert_taken(kind, data.draw(messages_of(kind)))


@EVERY
@settings(deadline=None, max_examples=10)
@given(data=st.data())
def test_w_01_an_envelope_is_an_array_that_begins_with_its_name(kind, data):
    """The msgpack package reads any envelope as an array: the name, then the fields in order."""
    message = data.draw(messages_of(kind))
    name, *fields = plain(message)
    assert re.fullmatch(r"[A-Z]+(_[A-Z]+)*", name)
    assert name == inspect.type_info(kind).tag
    assert fields == [msgspec.to_builtins(getattr(message, field.name)) for field in FIELDS[kind]]


@EVERY
@settings(deadline=None, max_examples=10)
@given(data=st.data())
def test_w_02_envelopes_written_with_plain_msgpack_are_read(kind, data):
    """What the msgpack package packs is read as the message, whole floats as ints and other number sizes included."""
    message = data.draw(messages_of(kind))
    for decoder in decoders_of(kind):
        assert wire.decode(decoder, msgpack.packb(plain(message))) == message
        shortened = [int(each) if isinstance(each, float) and each.is_integer() else each for each in plain(message)]
        assert wire.decode(decoder, msgpack.packb(shortened)) == message


def test_names_are_unique():
    """No two messages have the same name."""
    names = [inspect.type_info(kind).tag for kind in MESSAGES]
    assert len(set(names)) == len(names)


def test_messages_are_frozen():
    """A message cannot be changed once made."""
    with pytest.raises(AttributeError):
        wire.Cancel(request_id="a").request_id = "b"


def test_any_buffer_is_an_envelope():
    """A frame may come as bytes, bytearray or memoryview."""
    frame = wire.encode(wire.Disconnect())
    for each in (frame, bytearray(frame), memoryview(frame)):
        assert wire.decode(wire.TO_COORDINATOR, each) == wire.Disconnect()


@EVERY
def test_w_03_each_direction_has_its_messages(kind):
    """A decoder takes the messages of its direction and no other."""
    message = least(kind)
    for decoder, union in DECODERS.values():
        if kind in union.__args__:
            assert wire.decode(decoder, wire.encode(message)) == message
        else:
            with pytest.raises(ProtocolError, match=inspect.type_info(kind).tag):
                wire.decode(decoder, wire.encode(message))


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        msgpack.packb([]),
        msgpack.packb(["HELO", 1]),
        msgpack.packb(["hello", 1, "worker", "w"]),
        msgpack.packb([5]),
        msgpack.packb([None]),
        msgpack.packb([["HELLO"]]),
        msgpack.packb({"type": "HELLO"}),
        msgpack.packb("DISCONNECT"),
        msgpack.packb(["DISCONNECT"]) + b"\x00",
        msgpack.packb(msgpack.ExtType(1, b"\x90")),
        msgpack.packb(["CANCEL", msgpack.ExtType(1, b"\x90")]),
        b"\x91" * 100_000,
        b"\x92\xaaDISCONNECT" + b"\x91" * 100_000,
        b"\x92\xa7OUTPUTS\xdd\xff\xff\xff\xff",
        b"\x91\xa9DISCONN\xff",
        b"\x92\xa6CANCEL\xa1\xff",
        b"\x91\xa2\xff\xff",
        msgpack.packb(["A" * 100_000]),
    ],
    ids=lambda frame: repr(frame[:24]),
)
def test_w_04_anything_else_is_refused(frame):
    """What is no message, or no message known here, is a ProtocolError of a short text for every decoder."""
    for decoder, _ in DECODERS.values():
        with pytest.raises(ProtocolError, match="wire version 1") as caught:
            wire.decode(decoder, frame)
        assert len(str(caught.value)) < 500


@EVERY
@pytest.mark.parametrize("extra", [[None], ["new", 7, [1, {"a": 2}], 1.5, b"x"]], ids=["one", "many"])
def test_w_05_later_fields_are_ignored(kind, extra):
    """Elements that a newer peer adds at the end do not disturb an older one."""
    message = least(kind)
    for decoder in decoders_of(kind):
        assert wire.decode(decoder, msgpack.packb([*plain(message), *extra])) == message


def test_later_fields_inside_are_ignored():
    """The parts of a message may grow at their ends as well."""
    envelope = plain(wire.Outputs(outputs=[least(wire.Output, ledger=wire.Ledger(worker="w"))]))
    envelope[1][0][-1].append("new")
    envelope[1][0].append("new")
    (output,) = wire.decode(wire.TO_COORDINATOR, msgpack.packb(envelope)).outputs
    assert output == least(wire.Output, ledger=wire.Ledger(worker="w"))


@EVERY
def test_w_06_missing_fields_take_their_defaults(kind):
    """Elements with a default may be left out from the end; one without a default may not."""
    required = sum(field.required for field in FIELDS[kind])
    envelope = plain(least(kind))
    assert all(field.required for field in FIELDS[kind][:required])
    for decoder in decoders_of(kind):
        assert wire.decode(decoder, msgpack.packb(envelope[: 1 + required])) == least(kind)
        if required:
            with pytest.raises(ProtocolError, match="length"):
                wire.decode(decoder, msgpack.packb(envelope[:required]))


def test_w_06_defaults_are_the_documented_ones():
    """A field left out is 0, empty, false or nil, but for the three limits that the page names."""
    named = {"hang_limit_s": 300.0, "max_queued": 10_000, "max_queued_bytes": 8 << 30}
    for kind, fields in FIELDS.items():
        for field in fields:
            if not field.required:
                default = getattr(least(kind), field.name)
                assert (default or None) == named.get(field.name), (kind, field.name)


def test_w_07_an_envelope_is_at_most_4_mib():
    """A first frame of over 4 MiB is refused before it is read; one of exactly that size is not."""
    assert wire.MAX_ENVELOPE_BYTES == 4 << 20
    frame = msgpack.packb(["DISCONNECT", b""])
    padding = wire.MAX_ENVELOPE_BYTES - len(frame) - 3
    longest = msgpack.packb(["DISCONNECT", b"\0" * padding])
    assert len(longest) == wire.MAX_ENVELOPE_BYTES
    assert wire.decode(wire.TO_COORDINATOR, longest) == wire.Disconnect()
    for longer in (msgpack.packb(["DISCONNECT", b"\0" * (padding + 1)]), memoryview(longest + b"\0")):
        with pytest.raises(ProtocolError, match=r"4194305 bytes is over the limit of 4194304"):
            wire.decode(wire.TO_COORDINATOR, longer)


def test_a_ready_of_many_adapters_is_an_envelope():
    """As many as may be, with paths as long as Linux has them and the longest names, fit into one."""
    adapter = wire.LoadedAdapter(lora_name="\U0001f600" * 256, lora_path="p" * 4096)
    ready = least(wire.Ready, adapters=[adapter] * MAX_LORAS)
    assert len(wire.encode(ready)) < wire.MAX_ENVELOPE_BYTES
    assert_taken(wire.Ready, ready)
    assert_refused(wire.Ready, least(wire.Ready, adapters=[adapter] * (MAX_LORAS + 1)))


# -- limits -----------------------------------------------------------------------------------------------------------


def limited(name, *, most, shortest=0):
    """The places whose texts have these limits, as parameters."""
    found = [
        pytest.param(kind, make, id=f"{kind.__name__}.{field.name}")
        for kind, field, make in PLACES
        if isinstance(field.type, inspect.StrType)
        and (field.type.min_length or 0, field.type.max_length) == (shortest, most)
    ]
    assert found, name
    return pytest.mark.parametrize(("kind", "make"), found)


@limited("Id", shortest=1, most=128)
def test_w_08_ids_have_1_to_128_characters(kind, make):
    """A RequestID in an envelope is as long as a RequestID may be, in characters, and never empty."""
    for taken in ("r", "ä" * 128):
        assert_taken(kind, make(taken))
    for refused in ("", "r" * 129):
        assert_refused(kind, make(refused))


@limited("Name", shortest=1, most=256)
def test_w_09_names_have_1_to_256_characters(kind, make):
    """Names of peers, models, tasks and deployments are never empty and at most 256 characters."""
    for taken in ("n", "n" * 256):
        assert_taken(kind, make(taken))
    for refused in ("", "n" * 257):
        assert_refused(kind, make(refused))


@limited("Text", most=65536)
def test_w_10_texts_have_at_most_65536_characters(kind, make):
    """The texts that a worker or the fleet sends for people have a limit."""
    for taken in ("", "t" * 65536):
        assert_taken(kind, make(taken))
    assert_refused(kind, make("t" * 65537))


@limited("Word", most=64)
def test_w_11_words_have_at_most_64_characters(kind, make):
    """Roles, codes and versions are short."""
    for taken in ("", "w" * 64):
        assert_taken(kind, make(taken))
    assert_refused(kind, make("w" * 65))


@limited("Host", most=255)
def test_hosts_have_at_most_255_characters(kind, make):
    """A host's name is as long as a handle's may be."""
    assert_taken(kind, make("h" * 255))
    assert_refused(kind, make("h" * 256))


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        pytest.param(kind, make, id=f"{kind.__name__}.{field.name}")
        for kind, field, make in PLACES
        if of_type(field.type, inspect.FloatType)
    ],
)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2e9, -2e9, 1e300])
def test_w_12_times_are_finite(kind, make, value):
    """No time on the wire is NaN, infinite or beyond some thirty years, whichever message it is in."""
    assert_taken(kind, make(1.5))
    assert_refused(kind, make(value))


@pytest.mark.parametrize(
    ("kind", "field", "taken", "refused"),
    [
        (wire.Submit, "priority", [-1000, 0, 1000], [-1001, 1001, 1.5, "0", None, True]),
        (wire.Submit, "deadline_s", [None, 0, 0.0, 1e9], [-0.001, "1"]),
        (wire.Submit, "shared_bytes", [0, 2**53], [-1, 2**53 + 1, 2**64 - 1]),
        (wire.Dispatch, "deadline_s", [None, -0.5, 0], ["1"]),
        (wire.Dispatch, "attempt", [0, 2**53], [-1, 2**53 + 1]),
        (wire.Ready, "credits", [1, 65536], [0, -1, 65537]),
        (wire.Ready, "hang_limit_s", [1e-9, 1e9], [0, -1.0]),
        (wire.Ready, "max_queued", [1], [0, -1]),
        (wire.Ready, "max_queued_bytes", [1], [0, -1]),
        (wire.Hello, "pid", [0, 1 << 22], [-1, (1 << 22) + 1, 2**64 - 1]),
        (wire.Hello, "version", [-1, 0, 2**64 - 1], ["1", None, 1.5]),
        (wire.Heartbeat, "busy", [True], [1, None, "yes"]),
        (wire.Welcome, "heartbeat_s", [0.001], [0, -1]),
        (wire.Error, "retry_after_s", [0, 1.5], [-0.001]),
        (wire.Partial, "seq", [0, 2**53], [-1, 2**53 + 1]),
        (wire.Consumed, "parts", [0, 2**53], [-1, 2**53 + 1]),
        (wire.Submit, "window_parts", [0, 2**53], [-1, 2**53 + 1]),
        (wire.Ready, "features", [[], ["f"] * 64], [["f"] * 65]),
    ],
)
def test_w_13_numbers_are_in_bounds(kind, field, taken, refused):
    """Priorities, counts, credits and times are taken within their bounds, and refused beyond, by name of the place."""
    at = 1 + [each.name for each in FIELDS[kind]].index(field)
    for value in taken:
        assert_taken(kind, least(kind, **{field: value}))
    for value in refused:
        for decoder in decoders_of(kind):
            with pytest.raises(ProtocolError, match=re.escape(f"$[{at}]")):
                wire.decode(decoder, wire.encode(least(kind, **{field: value})))


def test_whatever_a_peer_says_is_bounded():
    """No text and no count that the coordinator takes is without a limit of its own."""
    for kind, field, _ in PLACES:
        if kind in wire.ToCoordinator.__args__:
            text = of_type(field.type, inspect.StrType)
            assert text is None or text.max_length, (kind, field.name)


# -- dialogue ---------------------------------------------------------------------------------------------------------


def test_w_14_versions_must_be_equal():
    """Another version is VersionMismatch, which names the peer, both versions and what to do."""
    wire.check_version(wire.WIRE_VERSION, "worker 'w'")
    for other in (0, wire.WIRE_VERSION + 1, -1):
        with pytest.raises(
            VersionMismatch, match=rf"^worker 'w' speaks wire version {other}, this side speaks 1; inst"
        ):
            wire.check_version(other, "worker 'w'")


def test_w_15_hello_of_another_version_is_read():
    """HELLO of a later version can be read far enough to name its version, whatever it adds at its end."""
    hello = wire.decode(
        wire.TO_COORDINATOR, msgpack.packb(["HELLO", 7, "client", "c", "h", 1, "", "", [], 0, {"new": 1}])
    )
    assert (hello.version, hello.role, hello.name) == (7, "client", "c")


def output(frames, **changes):
    return wire.Output(request_id="r", attempt=1, seq=0, done=True, frames=frames, **changes)


def test_w_16_outputs_frames_add_up():
    """Each output gets as many frames as it announces, in order; another sum is a ProtocolError."""
    outputs = [output(2), output(0), output(1)]
    assert wire.split_frames(outputs, ["a", "b", "c"]) == [["a", "b"], [], ["c"]]
    assert wire.split_frames([], []) == []
    for frames in (["a", "b"], ["a", "b", "c", "d"], []):
        with pytest.raises(ProtocolError, match="another number of frames"):
            wire.split_frames(outputs, frames)
    with pytest.raises(ProtocolError):
        wire.split_frames([output(2**53), output(2**53)], ["a"])


def test_w_36_answers_frames_add_up():
    """Each output of ANSWERS gets as many frames as are said; another sum, or another count, is a ProtocolError."""
    outputs = [wire.Partial(request_id="a", seq=0), wire.Final(request_id="b", seq=3)]
    answers = wire.Answers(outputs=outputs, frames=[2, 1])
    assert wire.decode(wire.TO_CLIENT, wire.encode(answers)) == answers
    assert list(wire.split_answers(answers, ["a", "b", "c"])) == [["a", "b"], ["c"]]
    for counts, frames in [([2, 1], ["a"]), ([2, 1], ["a", "b", "c", "d"]), ([3], ["a", "b", "c"]), ([], [])]:
        with pytest.raises(ProtocolError):
            wire.split_answers(wire.Answers(outputs=outputs, frames=counts), frames)


@pytest.mark.parametrize("cls", errors.BY_CODE.values(), ids=lambda cls: cls.__name__)
def test_w_17_errors_keep_their_class(cls):
    """An error of ours that crosses in ERROR arrives as the same class, with its text, story and time to retry."""
    error = cls("the text")
    code, text = errors.to_wire(error)
    sent = wire.Error(request_id="r", code=code, text=text, retry_after_s=2.0, story=["accepted"])
    got = wire.decode(wire.TO_CLIENT, wire.encode(sent))
    arrived = errors.from_wire(
        got.code, got.text, request_id=got.request_id, story=tuple(got.story), retry_after_s=got.retry_after_s
    )
    assert type(arrived) is cls
    assert (arrived.text, arrived.request_id, arrived.story) == ("the text", "r", ("accepted",))
    assert arrived.retryable is cls.retryable
    assert_taken(wire.Outputs, wire.Outputs(outputs=[output(0, code=code, text=text)]))


def test_w_18_an_unknown_code_is_a_failure():
    """A code that this side does not know, from a newer peer, counts as `failed`."""
    got = wire.decode(wire.TO_CLIENT, wire.encode(wire.Error(request_id="r", code="melted", text="x")))
    assert type(errors.from_wire(got.code, got.text)) is errors.Failed


# -- the specification ------------------------------------------------------------------------------------------------


def worked_messages():
    """The two messages whose bytes docs/spec/wire.md shows, frame by frame."""
    submit = wire.Submit(request_id="r-1", task="embeddings_generation", model="tiny", deadline_s=2.5)
    body = EmbeddingsRequest(request_id=RequestID("r-1"), model="tiny", input=np.array([1.0, 2.0], "<f4"))
    failure = wire.Output(request_id="r-1", attempt=1, seq=0, done=False, code="pipeline_error", text="no")
    return {
        "SUBMIT": [wire.encode(submit), *encode_body(body).frames],
        "OUTPUTS": [wire.encode(wire.Outputs(outputs=[failure]))],
    }


def hex_lines(frame):
    """A frame as the page shows it: an indented block, 16 bytes a line."""
    return "\n".join(f"    {frame[start : start + 16].hex(' ')}" for start in range(0, len(frame), 16))


@pytest.mark.parametrize("name", ["SUBMIT", "OUTPUTS"])
def test_the_worked_bytes_are_real(name):
    """The bytes that the specification shows are those that the code writes, and it reads them."""
    page = SPEC.read_text()
    for frame in worked_messages()[name]:
        assert hex_lines(frame) in page, f"{name} is\n{hex_lines(frame)}"
    envelope, *frames = worked_messages()[name]
    assert wire.encode(wire.decode(wire.TO_COORDINATOR, envelope)) == envelope
    if frames:
        assert decode_body(frames, EmbeddingsRequest).input.tolist() == [1.0, 2.0]


def index_of_tests():
    """The lines of the page's index: each rule with the tests that carry its number."""
    found = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for number, rest in re.findall(r"^def test_w_(\d\d)_(\w+)", path.read_text(), re.MULTILINE):
            found.setdefault(f"W-{number}", []).append(f"`{path.relative_to(ROOT)}::test_w_{number}_{rest}`")
    return {rule: f"| {rule} | {', '.join(tests)} |" for rule, tests in sorted(found.items())}


def test_every_rule_has_its_test():
    """Each MUST of the specification has an id of its own, at least one test with that id, and a true index line."""
    page = SPEC.read_text()
    rules = re.findall(r"^- \*\*(W-\d\d)\*\*", page, re.MULTILINE)
    assert len(set(rules)) == len(rules)
    assert sorted(rules) == sorted(index_of_tests()), "rules and tests differ"
    missing = [line for line in index_of_tests().values() if line not in page]
    assert not missing, "the index lacks\n" + "\n".join(missing)
    assert page.count("| W-") == len(rules)
    paragraphs = re.split(r"\n(?=- |\n)", page)
    assert all("**W-" in each for each in paragraphs if re.search(r"\bMUST\b", each) and "RFC" not in each)


def test_the_page_names_every_message():
    """Each message and each of its fields is on the page, and no message that does not exist."""
    page = SPEC.read_text()
    listed = {}
    for name, fields in re.findall(r"^\| `([A-Z_]+)` \|[^|]*\|([^|]*)\|", page, re.MULTILINE):
        listed[name] = re.findall(r"`(\w+)`", fields)
    assert listed == {inspect.type_info(kind).tag: [field.name for field in FIELDS[kind]] for kind in MESSAGES}
