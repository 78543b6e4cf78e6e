"""The messages between clients, coordinator, workers and fleet: small typed envelopes, one per message.

A message is a list of frames: the envelope below, then a body that the coordinator never opens (`codec.py`), then the
body's out-of-band buffers. Envelopes are msgpack arrays whose first element names the message, so plain `msgpack` reads
them; docs/spec/wire.md specifies the dialogue. This module does no I/O.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from ..errors import ProtocolError, VersionMismatch
from .lora import MAX_LORA_NAME_CHARS, MAX_LORA_PATH_CHARS, MAX_LORAS

#: Raised by one whenever an old peer could misread a message.
WIRE_VERSION = 1
#: An envelope is small; a longer first frame is not ours.
MAX_ENVELOPE_BYTES = 4 << 20
#: Frames of one message, outputs of a whole batch included.
MAX_FRAMES = 4096
#: What this side speaks beyond the messages that every peer of its version knows; told in HELLO, WELCOME and READY.
#: "windows": streams have a window, and CONSUMED moves it. "answers": a client reads ANSWERS.
#: "loads": a fleet reads LOADS. "lora": a coordinator takes LORA, a worker's pipeline has adapters and reads LORA_WORK.
FEATURES = ["windows", "answers", "loads", "lora"]

#: One message: bytes-like objects, the envelope first.
Frames = list[Any]
Id = Annotated[str, Meta(min_length=1, max_length=128)]
Name = Annotated[str, Meta(min_length=1, max_length=256)]
Text = Annotated[str, Meta(max_length=65536)]
Count = Annotated[int, Meta(ge=0, le=1 << 53)]
Host = Annotated[str, Meta(max_length=255)]
#: Short texts that programs compare or show: roles, error codes, versions.
Word = Annotated[str, Meta(max_length=64)]
#: What a peer speaks: see FEATURES.
Features = Annotated[list[Word], Meta(max_length=64)]
#: The name of an adapter, or of its model, or none; where its files are, on the worker's host.
AdapterName = Annotated[str, Meta(max_length=MAX_LORA_NAME_CHARS)]
AdapterPath = Annotated[str, Meta(max_length=MAX_LORA_PATH_CHARS)]
#: Seconds, never NaN or infinite: up to some thirty years.
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
#: Seconds left or taken, by clocks that may disagree.
Span = Annotated[float, Meta(ge=-1e9, le=1e9)]


class Message(msgspec.Struct, array_like=True, frozen=True, kw_only=True, gc=False):
    """Base of every envelope: an array on the wire, fields in order; later versions add fields at the end."""


# -- from any peer ----------------------------------------------------------------------------------------------------


class Hello(Message, frozen=True, tag="HELLO"):
    """The first message of a peer, and again after REJOIN. Answered by WELCOME or REFUSED."""

    version: int
    role: Word
    name: Name
    host: Host = ""
    #: At most Linux's own limit.
    pid: Annotated[int, Meta(ge=0, le=1 << 22)] = 0
    #: Identifies the PID namespace in which `pid` means something.
    pid_namespace: Word = ""
    software: Word = ""
    features: Features = []
    #: How many connections this peer has had before, as far as it knows: what was under way on them is lost.
    connection: Count = 0


class Heartbeat(Message, frozen=True, tag="HEARTBEAT"):
    """Both ways, so that each side knows the other lives. A worker's `progress` moves while its work moves."""

    progress: int = 0
    busy: bool = False


class Disconnect(Message, frozen=True, tag="DISCONNECT"):
    """The peer leaves; nothing is owed to it any more."""


# -- client → coordinator ---------------------------------------------------------------------------------------------


class Use(Message, frozen=True):
    """Which use of its memory a handle of this generation means: those with one number name the same bytes."""

    generation: Count
    number: Count


class Submit(Message, frozen=True, tag="SUBMIT"):
    """A request; its body follows. The same RequestID again from the same client changes nothing."""

    request_id: Id
    task: Name
    model: Name
    priority: Annotated[int, Meta(ge=-1000, le=1000)] = 0
    #: Seconds from now; None: no deadline.
    deadline_s: Seconds | None = None
    #: Where the arrays of the body lie, and how many bytes of them in shared memory.
    host: Host = ""
    shared_bytes: Count = 0
    #: How much of a stream may be unread, in outputs and in bytes; 0 outputs: any number.
    window_parts: Count = 0
    window_bytes: Count = 0
    #: Outputs of it that have been read already, when it is sent again.
    consumed: Count = 0
    #: Names this wish of its caller's: its answers carry it, and what comes again with it is the same request. Another
    #: one under the same RequestID is another request. 0, from older peers: not known.
    submission: Count = 0
    #: A porter on the client's host brings arrays from other hosts, and lends arrays to them.
    porter: bool = False
    #: Of the blocks that the body names; where one is missing, nothing is known of it.
    uses: list[Use] = []


class Cancel(Message, frozen=True, tag="CANCEL"):
    """Client → coordinator: the answer is not wanted any more. Answered by ERROR `cancelled`, or what came first."""

    request_id: Id


class Consumed(Message, frozen=True, tag="CONSUMED"):
    """So many outputs of a stream, counted from its first, have been read: client → coordinator → worker.

    The number never shrinks; a smaller one changes nothing.
    """

    request_id: Id
    parts: Count
    #: The attempt that is meant; a client does not know it.
    attempt: Count = 0


class AskStatus(Message, frozen=True, tag="ASK_STATUS"):
    """Asks for a `ClusterStatus`; `query` comes back in the answer."""

    query: int = 0


class AskStory(Message, frozen=True, tag="ASK_STORY"):
    """Asks what the coordinator saw of a request."""

    request_id: Id
    query: int = 0


class Lora(Message, frozen=True, tag="LORA"):
    """Load an adapter on all workers of a model, or unload it (`operation`, as in `LoRAOperation`).

    Answered by REPORT with a `LoRAResponse`, within `timeout_s` whatever workers do. Asked again it changes nothing.
    """

    operation: Word
    lora_name: Name
    timeout_s: Seconds
    lora_path: AdapterPath = ""
    #: Whose adapter it is; to unload one its name is enough.
    model: AdapterName = ""
    query: int = 0


class Shutdown(Message, frozen=True, tag="SHUTDOWN"):
    """Ends the whole cluster: nothing new is accepted, the fleet drains, the coordinator leaves last."""


# -- worker → coordinator ---------------------------------------------------------------------------------------------


class Running(Message, frozen=True):
    """A request that a worker holds, told when it joins a coordinator that may not know."""

    request_id: Id
    attempt: Count
    submission: Count = 0
    #: Outputs that it has sent of it.
    sent: Count = 0
    #: It was told to stop, and has not ended yet.
    cancelled: bool = False


class LoadedAdapter(Message, frozen=True):
    """An adapter that a worker has, and where it came from."""

    lora_name: Name
    lora_path: AdapterPath


class Ready(Message, frozen=True, tag="READY"):
    """The pipeline is loaded; up to `credits` requests at once may come."""

    model: Name
    task: Name
    deployment: Name
    credits: Annotated[int, Meta(ge=1, le=65536)]
    #: Seconds without progress after which a busy worker counts as hung.
    hang_limit_s: Annotated[float, Meta(gt=0, le=1e9)] = 300.0
    max_queued: Annotated[int, Meta(ge=1)] = 10_000
    max_queued_bytes: Annotated[int, Meta(ge=1)] = 8 << 30
    running: list[Running] = []
    features: Features = []
    adapters: Annotated[list[LoadedAdapter], Meta(max_length=MAX_LORAS)] = []


class LoraDone(Message, frozen=True, tag="LORA_DONE"):
    """What became of LORA_WORK of that number: a `LoRAStatus`, and a text for people."""

    number: Count
    lora_name: Name
    status: Word
    text: Text = ""


class StartFailed(Message, frozen=True, tag="START_FAILED"):
    """The pipeline's factory raised; the worker leaves."""

    deployment: Name
    text: Text


class Ledger(Message, frozen=True):
    """What the worker saw of a request's bytes: how they came and went, and how often it copied them."""

    #: Frames of the request as received, and of all its outputs as sent, envelopes shared out.
    request_socket_bytes: Count = 0
    output_socket_bytes: Count = 0
    #: Array bytes that left by shared-memory handle, and those that were copied to get there.
    output_shared_bytes: Count = 0
    output_copies: Count = 0
    #: Seconds in the worker: waiting for its batch, and in `execute`.
    wait_s: Span = 0.0
    execute_s: Span = 0.0
    worker: Annotated[str, Meta(max_length=256)] = ""


class Output(Message, frozen=True):
    """One request's part of OUTPUTS: `frames` frames follow for it, in order. `code` is set for an error."""

    request_id: Id
    attempt: Count
    seq: Count
    done: bool
    frames: Count = 0
    code: Word = ""
    text: Text = ""
    ledger: Ledger | None = None


class Outputs(Message, frozen=True, tag="OUTPUTS"):
    """Everything one step produced, for all its requests; the coordinator splits it without opening a body."""

    outputs: list[Output]


# -- coordinator → peers ----------------------------------------------------------------------------------------------


class Welcome(Message, frozen=True, tag="WELCOME"):
    """The answer to HELLO: who the coordinator is, and the limits it holds peers to."""

    version: int
    #: Changes when the coordinator was replaced: clients then send again what is unanswered.
    epoch: str
    host: str
    heartbeat_s: Annotated[float, Meta(gt=0, le=1e9)]
    liveness_s: Annotated[float, Meta(gt=0, le=1e9)]
    max_frame_bytes: int
    max_message_bytes: int
    max_in_flight: int
    features: Features = []
    #: Bytes of one client's live requests; 0: not told.
    max_in_flight_bytes: Count = 0
    #: The cluster's name, by which the porter of a host is found.
    cluster: Word = ""


class Refused(Message, frozen=True, tag="REFUSED"):
    """The peer, or its message, was not understood or not admitted."""

    code: str
    text: str


class Rejoin(Message, frozen=True, tag="REJOIN"):
    """The coordinator does not know this peer: say HELLO again."""


class Partial(Message, frozen=True, tag="PARTIAL"):
    """One output of a stream, in order of `seq` from 0; more come."""

    request_id: Id
    seq: Count
    ledger: Ledger | None = None
    submission: Count = 0


class Final(Message, frozen=True, tag="FINAL"):
    """The last output of a request, or its only one."""

    request_id: Id
    seq: Count
    ledger: Ledger | None = None
    submission: Count = 0


class Answers(Message, frozen=True, tag="ANSWERS"):
    """Several outputs for one client in one message; of the frames, so many belong to each, in order."""

    outputs: list[Partial | Final]
    frames: list[Count]


class Error(Message, frozen=True, tag="ERROR"):
    """A request ends without a final output. `code` is for programs (`errors.py`), `text` for people."""

    request_id: Id
    code: str
    text: str
    retry_after_s: Seconds = 0.0
    story: list[str] = []
    #: How the coordinator counts it: one of `errors.OUTCOMES`.
    outcome: Word = ""
    submission: Count = 0


class Report(Message, frozen=True, tag="REPORT"):
    """The answer to ASK_STATUS or ASK_STORY; the body is JSON-like msgpack."""

    query: int


class Dispatch(Message, frozen=True, tag="REQUEST"):
    """Coordinator → worker: run this; its body follows. Answers carry `attempt`."""

    request_id: Id
    attempt: Count
    #: Seconds left when it was sent; None: no deadline.
    deadline_s: Span | None = None
    #: As in SUBMIT.
    window_parts: Count = 0
    window_bytes: Count = 0
    consumed: Count = 0
    submission: Count = 0
    #: The adapter that it is to run with, of those that the worker has; "" for none.
    adapter: AdapterName = ""
    #: Where the answer is read, if that is another host than the worker's, and whether a porter is there; as in SUBMIT.
    reader_host: Host = ""
    porter: bool = False
    uses: list[Use] = []


class LoraWork(Message, frozen=True, tag="LORA_WORK"):
    """Coordinator → worker: load or unload this adapter, after all that was asked for before; answer LORA_DONE."""

    number: Count
    operation: Word
    lora_name: Name
    lora_path: AdapterPath = ""


class CancelWork(Message, frozen=True, tag="CANCEL_WORK"):
    """Coordinator → worker: nobody wants this attempt any more; answer with an error, or with what is finished."""

    request_id: Id
    attempt: Count


class Discard(Message, frozen=True, tag="DISCARD"):
    """Coordinator → worker: this output reached nobody; its memory may be reused."""

    request_id: Id
    attempt: Count
    seq: Count


class Drain(Message, frozen=True, tag="DRAIN"):
    """Coordinator → worker: finish what you hold, then leave."""


# -- fleet ------------------------------------------------------------------------------------------------------------


class Expected(Message, frozen=True):
    """One deployment as the fleet means it to be; `unhealthy` holds the reason when it is given up.

    `pending`: what keeps it from being so, workers without a place above all.
    """

    deployment: Name
    model: Name
    task: Name
    replicas: Count
    unhealthy: Text = ""
    max_queued: Annotated[int, Meta(ge=1)] = 10_000
    max_queued_bytes: Annotated[int, Meta(ge=1)] = 8 << 30
    pending: Text = ""


class Deployments(Message, frozen=True, tag="DEPLOYMENTS"):
    """Fleet → coordinator: all deployments; replaces the last list."""

    deployments: list[Expected]


class DrainWorker(Message, frozen=True, tag="DRAIN_WORKER"):
    """Fleet → coordinator: this worker is to finish and leave. From a worker: it is itself, whatever name it gives."""

    worker: Name


class WorkerNotice(Message, frozen=True, tag="WORKER_NOTICE"):
    """Coordinator → fleet: what happened to a worker: ready, start_failed, hung or gone."""

    worker: Name
    deployment: str
    what: str
    text: str = ""


class Load(Message, frozen=True):
    """How much one deployment has to do: requests that wait or run now, and the most at once since the last LOADS."""

    deployment: Name
    ongoing: Count
    peak: Count


class Loads(Message, frozen=True, tag="LOADS"):
    """Coordinator → fleet, about once a heartbeat: the load of every deployment."""

    loads: list[Load]


ToCoordinator = (
    Hello
    | Heartbeat
    | Disconnect
    | Submit
    | Cancel
    | Consumed
    | AskStatus
    | AskStory
    | Shutdown
    | Lora
    | Ready
    | LoraDone
    | StartFailed
    | Outputs
    | Deployments
    | DrainWorker
)
ToClient = Welcome | Refused | Rejoin | Heartbeat | Partial | Final | Answers | Error | Report | Disconnect
ToWorker = (
    Welcome | Refused | Rejoin | Heartbeat | Dispatch | CancelWork | Consumed | Discard | Drain | LoraWork | Disconnect
)
ToFleet = Welcome | Refused | Rejoin | Heartbeat | WorkerNotice | Loads | Shutdown | Disconnect

_T = TypeVar("_T")
_encoder = msgspec.msgpack.Encoder()

#: One typed decoder per direction.
TO_COORDINATOR: msgspec.msgpack.Decoder[ToCoordinator] = msgspec.msgpack.Decoder(ToCoordinator)
TO_CLIENT: msgspec.msgpack.Decoder[ToClient] = msgspec.msgpack.Decoder(ToClient)
TO_WORKER: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
TO_FLEET: msgspec.msgpack.Decoder[ToFleet] = msgspec.msgpack.Decoder(ToFleet)


def encode(message: Message) -> bytes:
    """The envelope frame of a message."""
    return _encoder.encode(message)


def decode(decoder: msgspec.msgpack.Decoder[_T], frame: Any) -> _T:
    """The message in an envelope frame; ProtocolError for anything else."""
    if len(frame) > MAX_ENVELOPE_BYTES:
        raise ProtocolError(f"an envelope of {len(frame)} bytes is over the limit of {MAX_ENVELOPE_BYTES}")
    try:
        return decoder.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"not a message of wire version {WIRE_VERSION}: {error!s:.400}") from error


def word_of(message: Message | Frames) -> str:
    """The word that a message of ours begins with, in small letters."""
    if isinstance(message, Message):
        return str(type(message).__struct_config__.tag).lower()
    return str(msgspec.msgpack.decode(message[0])[0]).lower()


def words_of(message: Message | Frames) -> list[str]:
    """The word of a message for a client, or those of the outputs that it holds."""
    word = word_of(message)
    if word != "answers":
        return [word]
    answers = message if isinstance(message, Message) else decode(TO_CLIENT, message[0])
    assert isinstance(answers, Answers), "its word says so"
    return [word_of(output) for output in answers.outputs]


def size_of(frames: Frames) -> int:
    """Bytes of all frames together."""
    if len(frames) == 1 and type(frames[0]) is bytes:  # by far the most frequent
        return len(frames[0])
    return sum([len(frame) if type(frame) is bytes else memoryview(frame).nbytes for frame in frames])


def check_version(version: int, peer: str, *, own: str = "this side") -> None:
    """VersionMismatch, naming both versions, unless the peer speaks ours. `peer`, `own`: who they are, in words."""
    if version != WIRE_VERSION:
        raise VersionMismatch(
            f"{peer} speaks wire version {version}, {own} speaks {WIRE_VERSION}; "
            "install the same tensoryard on both sides",
        )


def split_frames(outputs: list[Output], frames: list[Any]) -> list[list[Any]]:
    """The frames of each output of OUTPUTS, in order; ProtocolError when the counts do not add up."""
    return list(_split([output.frames for output in outputs], frames))


def split_answers(answers: Answers, frames: list[Any]) -> Iterator[list[Any]]:
    """The same for ANSWERS, one by one: some hundred lists at once would each time call the garbage collector."""
    if len(answers.frames) != len(answers.outputs):
        raise ProtocolError("ANSWERS announces frames for another number of outputs than it has")
    return _split(answers.frames, frames)


def _split(counts: list[int], frames: list[Any]) -> Iterator[list[Any]]:
    if sum(counts) != len(frames):
        raise ProtocolError(
            f"a message announces another number of frames, {sum(counts)}, than it carries, {len(frames)}"
        )
    if counts.count(1) == len(counts):  # nearly always
        return ([frame] for frame in frames)
    starts = itertools.accumulate(counts, initial=0)
    return (frames[start : start + count] for start, count in zip(starts, counts, strict=False))
