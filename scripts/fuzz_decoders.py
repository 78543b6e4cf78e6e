"""Feeds broken bytes to every decoder: never a crash, never an error outside the family, never much memory.

`python scripts/fuzz_decoders.py --inputs 1000000`: mutates valid messages of every type, and makes some bytes from
nothing. What still decodes is written and read again, and must stay the same. A run is repeatable by its
`--seed`; a finding is printed with all that is needed to see it again, and makes the script end with 1.
"""

from __future__ import annotations

import argparse
import random
import resource
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from tensoryard.errors import DecodeError, InvalidRequest, ProtocolError, SegmentGone, StaleHandle
from tensoryard.proto import wire
from tensoryard.proto.audio import AudioGenerationMetadata, AudioGenerationOutput, AudioGenerationRequest
from tensoryard.proto.codec import decode_body, encode_body
from tensoryard.proto.context import GenerationStatus
from tensoryard.proto.embeddings import EmbeddingsGenerationOutput, EmbeddingsRequest
from tensoryard.proto.eos import EOSTracker
from tensoryard.proto.generation import (
    GenerationOutput,
    OutputAudioContent,
    OutputImageContent,
    OutputTextContent,
    OutputVideoContent,
    Usage,
)
from tensoryard.proto.lora import LoRAOperation, LoRARequest, LoRAResponse, LoRAStatus
from tensoryard.proto.open_responses import OpenResponsesRequest
from tensoryard.proto.open_responses_body import OpenResponsesRequestBody
from tensoryard.proto.outputs import task_types
from tensoryard.proto.pipeline import PipelineTask
from tensoryard.proto.pixels import PixelGenerationRequest
from tensoryard.proto.request import RequestID
from tensoryard.proto.sampling import SamplingParams, SamplingParamsInput
from tensoryard.proto.scheduler_result import SchedulerResult
from tensoryard.proto.text_context import TextContext
from tensoryard.proto.text_messages import ImageContentPart, TextContentPart, TextGenerationRequestMessage
from tensoryard.proto.text_output import TextGenerationOutput
from tensoryard.proto.text_protocol import SpecDecodingState
from tensoryard.proto.text_request import TextGenerationRequest, TextGenerationResponseFormat
from tensoryard.proto.tokens import LogProbabilities, Range, TokenBuffer
from tensoryard.proto.vision import ImageMetadata, TextAndVisionContext, TokenHashOverride
from tensoryard.shm import Pool, Reader, SharedMemoryArray

#: What decoding one message may take, beyond what the process had: Python ends a single allocation above it.
MEMORY_LIMIT_BYTES = 256 << 20

#: Arrays of this size and more leave the body in the seeds, so that all three ways are broken.
THRESHOLD_BYTES = 64

#: msgpack's headers with a length of 32 bits: text, bytes, list, map, extension.
LONG_HEADERS = (0xDB, 0xC6, 0xDD, 0xDF, 0xC9)
#: Bytes that mean something to msgpack.
TELLING = (0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, *range(0xC0, 0xE0), 0xE0, 0xFF)
#: Numbers at the edges of what fields hold.
EDGES = (0, 1, -1, 127, 128, 2**31 - 1, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, -(2**63), 2**64 - 1)

Frames = list[bytes]


@dataclass(frozen=True)
class Target:
    """One decoder: how it reads frames, how it writes what it read, and valid frames to begin with."""

    name: str
    decode: Callable[[Frames], Any]
    encode: Callable[[Any], Frames]
    seeds: list[Frames]
    #: The only errors that it may raise.
    family: tuple[type[Exception], ...]
    #: Keeps the shared memory that the seeds name.
    holds: Sequence[Any] = ()


@dataclass
class Report:
    """What a run found."""

    inputs: int = 0
    decoded: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    seconds: float = 0.0
    #: Largest resident size of the process, before and after.
    start_bytes: int = 0
    peak_bytes: int = 0

    def __str__(self) -> str:
        refused = ", ".join(f"{count} {name}" for name, count in self.refused.most_common())
        return (
            f"{self.inputs} inputs in {self.seconds:.0f} s ({self.inputs / max(self.seconds, 1e-9):.0f}/s): "
            f"{self.decoded} decoded, refused: {refused}; {len(self.findings)} findings; "
            f"peak memory {self.peak_bytes >> 20} MiB, at the start {self.start_bytes >> 20} MiB"
        )


# -- valid messages ---------------------------------------------------------------------------------------------------


def messages() -> list[Any]:
    """One message of every type that travels, most fields filled; all that is random is fixed."""
    rid, sampling = RequestID("r"), SamplingParams(seed=1, stop=["end"], stop_token_ids=[2], temperature=0.5)
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    scores = LogProbabilities([-0.5], [{3: -0.5, 4: -1.5}], [3])
    tokens = np.arange(1, 9, dtype=np.int64)
    tracker = EOSTracker(eos_token_ids=[2], eos_sequences=[[5, 6]], eos_stop_strings=["end", "stop"])
    tracker.find_stop("en")
    buffer = TokenBuffer(tokens)
    buffer.chunk(3)
    context = TextContext(
        tokens=TokenBuffer(tokens),
        max_length=99,
        request_id=rid,
        model_name="m",
        eos_tracker=tracker,
        sampling_params=sampling,
        vocab_size=1000,
    )
    context.update(7, scores)
    context.reset()
    image = ImageMetadata(start_idx=2, end_idx=4, pixel_values=array, image_hash=5)
    return [
        EmbeddingsRequest(request_id=rid, model="m", input="text", options={"a": [1, None, {"b": array}]}),
        EmbeddingsRequest(request_id=rid, model="m", input=[array, array[0]]),
        EmbeddingsRequest(request_id=rid, model="m", input=[[1, 2], [3]]),
        EmbeddingsGenerationOutput(embeddings=array),
        PixelGenerationRequest(
            request_id=rid, model="m", prompt="p", images=[array], width=64, seed=3, options={"s": 0.5}
        ),
        GenerationOutput(
            request_id=rid,
            final_status=GenerationStatus.END_OF_SEQUENCE,
            output=[
                OutputTextContent(text="t"),
                OutputImageContent(image=np.zeros((4, 4, 3), np.uint8), format="png"),
                OutputVideoContent(frames=np.zeros((1, 2, 2, 3), np.uint8), frames_per_second=24.0),
                OutputAudioContent(samples=np.zeros((1, 30), np.float32), sample_rate=8000),
            ],
            usage=Usage(input_tokens=1, output_tokens=2),
        ),
        AudioGenerationRequest(
            request_id=rid, model="m", input="t", sampling_params=sampling, buffer_speech_tokens=tokens
        ),
        AudioGenerationOutput(
            GenerationStatus.ACTIVE,
            1,
            np.zeros(20, np.float32),
            tokens,
            AudioGenerationMetadata(sample_rate=8000, duration=0.5, request_id=rid, final_chunk=False),
        ),
        AudioGenerationMetadata(chunk_id=1, timestamp="t", model_name="m", echo="e", processing_time=0.1),
        TextGenerationRequest(
            request_id=rid,
            model_name="m",
            messages=[
                TextGenerationRequestMessage(role="user", content=[TextContentPart(text="t"), ImageContentPart()]),
                TextGenerationRequestMessage(role="assistant", tool_calls=[{"id": "c"}], reasoning_content="r"),
            ],
            images=[b"image"],
            tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}],
            response_format=TextGenerationResponseFormat("json_schema", json_schema={"type": "object"}),
            sampling_params=sampling,
            cache_salt="s",
        ),
        TextGenerationRequest(request_id=rid, model_name="m", prompt=[1, 2, 3], sampling_params=sampling),
        TextGenerationRequestMessage(role="tool", content="t", tool_call_id="c"),
        TextGenerationResponseFormat("grammar", grammar="g"),
        TextGenerationOutput(
            request_id=rid,
            tokens=[3, 4],
            final_status=GenerationStatus.MAXIMUM_LENGTH,
            log_probabilities=[scores],
            num_cached_tokens=2,
            ttft_join_hops_ms={"a": 1.5},
            label_log_probabilities=[-1.0],
        ),
        context,
        TextAndVisionContext(
            tokens=TokenBuffer(np.array([1, 1, 9, 9, 1], np.int64)),
            max_length=20,
            request_id=rid,
            sampling_params=sampling,
            images=[image],
            vision_token_ids=[9],
            token_hash_overrides=[TokenHashOverride(token_idx=2, token_hash=77)],
        ),
        SpecDecodingState([1, 2], [3]),
        image,
        TokenHashOverride(token_idx=1, token_hash=2),
        buffer,
        Range(1, 5),
        scores,
        tracker,
        sampling,
        SamplingParamsInput(top_k=5, stop=["a"]),
        rid,
        OpenResponsesRequest(
            request_id=rid,
            body=OpenResponsesRequestBody(
                model="m",
                input=[{"content": [{"type": "input_text", "text": "t"}]}],  # type: ignore[list-item]
                tools=[{"name": "f"}],  # type: ignore[list-item]
                tool_choice={"type": "function", "name": "f"},  # type: ignore[arg-type]
                stop=["a"],
                metadata={"a": "b"},
            ),
        ),
        SchedulerResult(is_done=True, result=None, error="e", batch_id=3),
        LoRARequest(LoRAOperation.LOAD, "name", "/path"),
        LoRAResponse(LoRAStatus.LOAD_ERROR, ["one", "two"]),
    ]


def envelopes() -> list[tuple[str, msgspec.msgpack.Decoder[Any], list[wire.Message]]]:
    """Messages of the wire by the decoder that reads them."""
    ledger = wire.Ledger(request_socket_bytes=5, execute_s=0.5, worker="w")
    output = wire.Output(request_id="r", attempt=1, seq=0, done=True, frames=2, code="failed", text="t", ledger=ledger)
    return [
        (
            "wire to the coordinator",
            wire.TO_COORDINATOR,
            [
                wire.Hello(version=1, role="client", name="n", host="h", pid=5, pid_namespace="p", software="s"),
                wire.Heartbeat(progress=5, busy=True),
                wire.Submit(request_id="r", task="t", model="m", deadline_s=5.0, host="h", shared_bytes=7),
                wire.Ready(
                    model="m",
                    task="t",
                    deployment="d",
                    credits=2,
                    running=[wire.Running(request_id="r", attempt=1)],
                ),
                wire.Outputs(outputs=[output, output]),
                wire.Deployments(deployments=[wire.Expected(deployment="d", model="m", task="t", replicas=2)]),
            ],
        ),
        (
            "wire to a client",
            wire.TO_CLIENT,
            [
                wire.Welcome(
                    version=1,
                    epoch="e",
                    host="h",
                    heartbeat_s=1.0,
                    liveness_s=5.0,
                    max_frame_bytes=1 << 20,
                    max_message_bytes=1 << 30,
                    max_in_flight=9,
                ),
                wire.Final(request_id="r", seq=3, ledger=ledger),
                wire.Error(request_id="r", code="failed", text="t", story=["one", "two"]),
            ],
        ),
        (
            "wire to a worker",
            wire.TO_WORKER,
            [
                wire.Dispatch(request_id="r", attempt=1, deadline_s=2.0),
                wire.LoraWork(number=3, operation="load", lora_name="tone", lora_path="/adapters/tone"),
            ],
        ),
        (
            "wire to the fleet",
            wire.TO_FLEET,
            [
                wire.WorkerNotice(worker="w", deployment="d", what="gone", text="t"),
                wire.Loads(loads=[wire.Load(deployment="d", ongoing=2, peak=5)]),
            ],
        ),
    ]


# -- decoders ---------------------------------------------------------------------------------------------------------


def targets(pool: Pool, reader: Reader) -> list[Target]:
    """Every decoder with its seeds: inline, out-of-band and by handle for what holds arrays."""
    by_type: dict[type[Any], list[Frames]] = {}
    keep: list[Any] = []

    def place(array: npt.NDArray[Any]) -> Any:
        placed = pool.publish(array)
        keep.append(placed[0])
        return placed

    for message in messages():
        encodings = [encode_body(message), encode_body(message, out_of_band=True, threshold_bytes=THRESHOLD_BYTES)]
        encodings.append(encode_body(message, place=place, threshold_bytes=THRESHOLD_BYTES))
        keep.append(encodings[-1])
        seeds = by_type.setdefault(type(message), [])
        seeds.extend([bytes(frame) for frame in encoded.frames] for encoded in encodings)
    every = [seed for seeds in by_type.values() for seed in seeds]
    # The last ones where the type is not known, as in the replay of a recording.
    pairs = [*by_type.items(), *((kind, every) for kind in (Any, dict[str, Any], np.ndarray, list[Any]))]
    found = [_body(kind, seeds, reader.claim, keep) for kind, seeds in pairs]
    found.extend(_envelope(*entry) for entry in envelopes())
    found.extend(_step(task, reader.claim) for task in PipelineTask if task is not PipelineTask.UNDEFINED)
    found.append(_texts())
    (spoken,) = (message for message in messages() if isinstance(message, OpenResponsesRequest))
    found.append(
        Target(
            "JSON of Open Responses",
            lambda frames: OpenResponsesRequestBody.from_json(frames[0] if frames else b""),
            lambda value: [msgspec.json.encode(value)],
            [[msgspec.json.encode(spoken.body)]],
            (InvalidRequest,),
        )
    )
    return found


def _body(
    kind: Any,
    seeds: list[Frames],
    resolve: Callable[[SharedMemoryArray], npt.NDArray[Any]],
    holds: Sequence[Any],
) -> Target:
    return Target(
        f"body of {getattr(kind, '__name__', kind)}",
        lambda frames: decode_body(frames, kind, resolve=resolve),
        lambda value: [bytes(frame) for frame in encode_body(value).frames],
        seeds,
        (DecodeError, StaleHandle, SegmentGone),
        holds,
    )


def _step(task: PipelineTask, resolve: Callable[[SharedMemoryArray], npt.NDArray[Any]]) -> Target:
    """A step's results by RequestID, as a task's decoder reads them."""
    kind = task_types(task).output
    outputs = [message for message in messages() if isinstance(message, kind)]
    step = {RequestID(f"r{number}"): SchedulerResult.create(output, 7) for number, output in enumerate(outputs)}
    step |= {RequestID("c"): SchedulerResult.cancelled(), RequestID("f"): SchedulerResult.failed("no")}
    seeds = [[bytes(frame) for frame in encode_body(step, out_of_band=far, threshold_bytes=64).frames] for far in _BOTH]
    return replace(_body(task.output_type, seeds, resolve, ()), name=f"step of {task.value}")


_BOTH = (False, True)


def _texts() -> Target:
    """Arrays of text, each read to its last character."""

    def decode(frames: Frames) -> list[Any]:
        arrays = decode_body(frames, list[np.ndarray[Any, np.dtype[np.str_]]])
        return [(array.dtype.str, array.shape, array.tolist()) for array in arrays]

    arrays = [np.array(["a", "bcd"]), np.array(["\U0010ffff", "x"]).astype(">U2"), np.array("one")]
    return Target(
        "arrays of text",
        decode,
        lambda value: [bytes(frame) for frame in encode_body([np.array(t, d) for d, _, t in value]).frames],
        [[bytes(frame) for frame in encode_body(arrays, out_of_band=far, threshold_bytes=1).frames] for far in _BOTH],
        (DecodeError,),
    )


def _envelope(name: str, decoder: msgspec.msgpack.Decoder[Any], valid: list[wire.Message]) -> Target:
    return Target(
        name,
        lambda frames: wire.decode(decoder, frames[0] if frames else b""),
        lambda value: [wire.encode(value)],
        [[wire.encode(message)] for message in valid],
        (ProtocolError,),
    )


# -- broken bytes -----------------------------------------------------------------------------------------------------


def mutated(chance: random.Random, seed: Frames, other: Frames) -> Frames:
    """A seed with one to four things broken, mostly in its body; `other` is there to be spliced in."""
    frames = [bytearray(frame) for frame in seed]
    for _ in range(chance.choice((1, 1, 1, 2, 3, 4))):
        number = chance.randrange(len(frames)) if frames and chance.random() < 0.1 else 0
        if chance.random() < 0.02:
            _break_frames(chance, frames)
        elif frames:
            chance.choice(_MUTATIONS)(chance, frames[number], other[0])
    return [bytes(frame) for frame in frames]


def _break_frames(chance: random.Random, frames: list[bytearray]) -> None:
    if frames and chance.random() < 0.5:
        del frames[chance.randrange(len(frames))]
    else:
        frames.insert(chance.randrange(len(frames) + 1), bytearray(chance.randbytes(chance.choice((0, 1, 8, 96)))))


def _flip_bit(chance: random.Random, frame: bytearray, _other: bytes) -> None:
    if frame:
        frame[chance.randrange(len(frame))] ^= 1 << chance.randrange(8)


def _set_telling(chance: random.Random, frame: bytearray, _other: bytes) -> None:
    if frame:
        frame[chance.randrange(len(frame))] = chance.choice(TELLING)


def _claim_length(chance: random.Random, frame: bytearray, _other: bytes) -> None:
    """A header that claims much, over whatever is there."""
    at = chance.randrange(len(frame) + 1)
    length = chance.choice((0xFFFFFFFF, 0x7FFFFFFF, 0x10000000, chance.getrandbits(32)))
    frame[at : at + chance.choice((1, 5))] = bytes([chance.choice(LONG_HEADERS)]) + struct.pack(">I", length)


def _set_number(chance: random.Random, frame: bytearray, _other: bytes) -> None:
    at = chance.randrange(len(frame) + 1)
    frame[at : at + 1] = msgspec.msgpack.encode(chance.choice((*EDGES, 0.0, float("nan"), float("inf"), None, True)))


def _delete(chance: random.Random, frame: bytearray, _other: bytes) -> None:
    at = chance.randrange(len(frame) + 1)
    del frame[at : at + chance.choice((1, 1, 2, 4, 16))]


def _insert(chance: random.Random, frame: bytearray, _other: bytes) -> None:
    at = chance.randrange(len(frame) + 1)
    frame[at:at] = chance.randbytes(chance.choice((1, 1, 2, 4, 16)))


def _repeat(chance: random.Random, frame: bytearray, _other: bytes) -> None:
    at = chance.randrange(len(frame) + 1)
    frame[at:at] = frame[at : at + chance.choice((1, 2, 8, 32))] * chance.choice((1, 2, 200))


def _truncate(chance: random.Random, frame: bytearray, _other: bytes) -> None:
    del frame[chance.randrange(len(frame) + 1) :]


def _splice(chance: random.Random, frame: bytearray, other: bytes) -> None:
    start = chance.randrange(len(other) + 1)
    piece = other[start : start + chance.choice((1, 4, 16, 64, 256))]
    at = chance.randrange(len(frame) + 1)
    frame[at : at + chance.choice((0, len(piece)))] = piece


def _nest(chance: random.Random, frame: bytearray, _other: bytes) -> None:
    at = chance.randrange(len(frame) + 1)
    frame[at:at] = chance.choice((b"\x91", b"\x81\xa0", b"\x81")) * chance.choice((1, 3, 1000, 5000))


def _replace_all(chance: random.Random, frame: bytearray, _other: bytes) -> None:
    frame[:] = chance.randbytes(chance.choice((0, 1, 2, 8, 64)))


_Mutation = Callable[[random.Random, bytearray, bytes], None]
_MUTATIONS: tuple[_Mutation, ...] = (
    *(_flip_bit, _set_telling, _set_number, _delete, _insert, _splice) * 3,
    *(_claim_length, _repeat, _truncate, _nest, _replace_all),
)


# -- the run ----------------------------------------------------------------------------------------------------------


def run(inputs: int, seed: int, *, chosen: Sequence[str] = ()) -> Report:
    """Feed so many inputs, the decoders in turn; `chosen`: parts of the names of those that take part, else all."""
    chance = random.Random(seed)  # noqa: S311 - a repeatable run is wanted
    report = Report(start_bytes=peak_bytes())
    with Pool(budget_bytes=64 << 20, claim_timeout_s=1e9) as pool:
        reader = Reader()
        everything = targets(pool, reader)
        taking_part = [t for t in everything if not chosen or any(part in t.name for part in chosen)]
        others = [frames for target in everything for frames in target.seeds]
        started = time.monotonic()
        for number in range(inputs):
            target = taking_part[number % len(taking_part)]
            frames = mutated(chance, chance.choice(target.seeds), chance.choice(others))
            problem = feed(target, frames, report)
            if problem:
                report.findings.append(
                    f"input {number} of seed {seed}: {target.name}: {problem}\n  frames: {[f.hex() for f in frames]}"
                )
        report.seconds = time.monotonic() - started
        reader.close()
    report.peak_bytes = peak_bytes()
    return report


def feed(target: Target, frames: Frames, report: Report) -> str:
    """Decode one input, and what it became once more; what is wrong with the decoder, or an empty text."""
    report.inputs += 1
    try:
        value = target.decode(frames)
    except target.family as error:
        report.refused[type(error).__name__] += 1
        return ""
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"raised {type(error).__name__}: {error!s:.200}"
    report.decoded += 1
    return _unstable(target, value)


def _unstable(target: Target, value: Any) -> str:
    """What was read must be writable, and come back the same. The first writing may differ: 1 for 1.0.

    Save for what is nested about as deeply as Python allows: how deep that is depends on who calls, and the writer says
    so with a TypeError.
    """
    try:
        once = target.encode(target.decode(target.encode(value)))
        twice = target.encode(target.decode(once))
    except Exception as error:
        if isinstance(error, TypeError) and isinstance(error.__cause__, RecursionError):
            return ""
        return f"decoded, and then failed with {type(error).__name__}: {error!s:.200}"
    return "" if once == twice else f"decoded to what does not stay the same: {once[0].hex()} then {twice[0].hex()}"


def peak_bytes() -> int:
    """Largest resident size that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def limit_memory(allowance_bytes: int) -> None:
    """End any allocation beyond what the process maps now and the allowance, as a MemoryError."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + allowance_bytes, resource.getrlimit(resource.RLIMIT_AS)[1]))


def main() -> int:
    """Read the command line, run, print; 1 when something was found."""
    parser = argparse.ArgumentParser(description="Feed broken bytes to every decoder.")
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", action="append", default=[], help="part of a decoder's name; may be repeated")
    asked = parser.parse_args()
    # Room for the pool's own memory beside it.
    limit_memory(MEMORY_LIMIT_BYTES + (128 << 20))
    report = run(asked.inputs, asked.seed, chosen=asked.only)
    for finding in report.findings[:20]:
        print(finding)
    print(report)
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
