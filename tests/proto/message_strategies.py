"""Hypothesis strategies for every message of the contracts: any value that each of them may have.

`MESSAGES` has them by type; the round trips of the wire and the conversions draw from them, and compare by `same`.
"""

from __future__ import annotations

import base64
import dataclasses
import enum
import math
import string

import msgspec
import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tensoryard.proto as proto
from tensoryard.proto.open_responses_body import (
    AllowedToolChoice,
    FunctionToolChoice,
    FunctionToolParam,
    JsonObjectParam,
    JsonSchemaParam,
    OpenResponsesRequestBody,
    ReasoningParam,
    TextParam,
)
from tensoryard.proto.open_responses_enums import (
    ImageDetail,
    IncludeEnum,
    MessageStatus,
    ReasoningEffortEnum,
    ResponseStatus,
    ServiceTierEnum,
    ToolChoiceValueEnum,
    VerbosityEnum,
)
from tensoryard.proto.open_responses_media import EncodedAudioContent, EncodedVideoContent
from tensoryard.proto.open_responses_messages import (
    AssistantMessage,
    DeveloperMessage,
    InputFileContent,
    InputImageContent,
    InputTextContent,
    InputVideoContent,
    ReasoningSummaryContent,
    RefusalContent,
    SystemMessage,
    UserMessage,
)
from tensoryard.proto.open_responses_options import (
    AudioProviderOptions,
    ImageProviderOptions,
    MaxProviderOptions,
    ProviderOptions,
    VideoProviderOptions,
)
from tensoryard.proto.open_responses_output import (
    IncompleteDetails,
    ResponseError,
    ResponseFunctionCall,
    ResponseMessage,
    ResponseResource,
    ResponseUsage,
)


def same(one, other):
    """Whether two values are equal in type and content, arrays to the bit and numbers that are none included."""
    if isinstance(one, np.ndarray):
        return (
            isinstance(other, np.ndarray)
            and (one.dtype, one.shape) == (other.dtype, other.shape)
            and one.tobytes() == other.tobytes()
        )
    if isinstance(one, float):
        # 1 may come back as 1.0.
        return isinstance(other, int | float) and (one == other or (math.isnan(one) and math.isnan(other)))
    if isinstance(one, int) and not isinstance(one, bool | enum.Enum):
        return not isinstance(other, bool) and one == other
    if isinstance(one, list | tuple):
        return isinstance(other, list | tuple) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if type(one) is not type(other):
        return False
    if hasattr(one, "to_wire"):
        return same(one.to_wire(), other.to_wire())
    if isinstance(one, msgspec.Struct):
        return all(same(getattr(one, name), getattr(other, name)) for name in one.__struct_fields__)
    if dataclasses.is_dataclass(one):
        return all(same(getattr(one, spec.name), getattr(other, spec.name)) for spec in dataclasses.fields(one))
    return one == other


# -- pieces -----------------------------------------------------------------------------------------------------------

texts = st.text(max_size=12)
names = st.text(string.printable.strip(), min_size=1, max_size=12)
maybe = lambda inner: st.none() | inner
counts = st.integers(0, 2**40)
ids = st.integers(0, 2**62)
reals = st.floats(allow_nan=False, allow_infinity=False, width=32)
flags = st.booleans()
#: But for the dummy's, which is refused from the wire, and which Hypothesis knows from the code.
request_ids = st.builds(
    proto.RequestID, st.text(string.ascii_letters + string.digits + "-_", min_size=1, max_size=64)
).filter(lambda request_id: request_id != proto.DUMMY_REQUEST_ID)
statuses = st.sampled_from(list(proto.GenerationStatus))
arrays = hnp.arrays(
    dtype=st.sampled_from(["|u1", "|b1", "<i8", ">i4", "<f2", "<f4", ">f8", "<c8", "<U3", "|S4", "<M8[us]", "<m8[s]"]),
    shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)
floats = hnp.arrays(dtype=st.sampled_from(["<f4", "<f2", ">f8"]), shape=hnp.array_shapes(max_side=4))
pixels = hnp.arrays(dtype="|u1", shape=hnp.array_shapes(min_dims=2, max_dims=3, max_side=4))
leaves = st.none() | flags | st.integers(-(2**63), 2**64 - 1) | st.floats() | texts | st.binary(max_size=8)
plain = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3))
mixed = st.recursive(
    leaves | arrays, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2)
)
schemas = st.dictionaries(texts, plain, max_size=3)
options = st.dictionaries(texts, mixed, max_size=3)


def bounded(low, high):
    return st.floats(low, high, width=32)


sampling = st.builds(
    proto.SamplingParams,
    top_k=st.integers(-1, 10**6),
    top_p=bounded(0, 1),
    min_p=bounded(0, 1),
    temperature=bounded(0, 2),
    thinking_temperature=maybe(bounded(0, 2)),
    frequency_penalty=bounded(-2, 2),
    presence_penalty=bounded(-2, 2),
    repetition_penalty=bounded(0.5, 9),
    max_new_tokens=maybe(counts),
    min_new_tokens=st.integers(0, 3),
    ignore_eos=flags,
    stop=maybe(st.lists(st.text(min_size=1, max_size=9), max_size=3)),
    stop_token_ids=maybe(st.lists(ids, max_size=3)),
    detokenize=flags,
    seed=st.integers(-(2**63), 2**64 - 1),
)
scores = st.lists(st.tuples(reals, st.dictionaries(ids, reals, max_size=3), ids), max_size=3).map(
    lambda rows: proto.LogProbabilities([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows])
)
spans = st.tuples(counts, counts).map(sorted)


@st.composite
def trackers(draw):
    """Stop rules, and a text of which some is remembered."""
    tracker = proto.EOSTracker(
        eos_token_ids=draw(st.sets(ids, max_size=3)),
        eos_sequences=draw(st.lists(st.lists(ids, min_size=1, max_size=3), max_size=2)),
        eos_stop_strings=draw(st.lists(st.text("abc", min_size=1, max_size=5), max_size=2)),
    )
    for piece in draw(st.lists(st.text("abc", max_size=3), max_size=3)):
        tracker.find_stop(piece)
    return tracker


@st.composite
def buffers(draw):
    """A buffer somewhere in its life: chunked, grown, rewound, shifted, drained, reset, or waiting for a token."""
    buffer = proto.TokenBuffer(draw(hnp.arrays(np.int64, st.integers(1, 70))))
    for _ in range(draw(st.integers(0, 6))):
        act = draw(
            st.sampled_from(
                ["chunk", "advance", "append", "placeholder", "realize", "rewind", "skip", "shift", "drain", "reset"]
            )
        )
        n = draw(st.integers(0, 80))
        try:
            match act:
                case "chunk":
                    buffer.chunk(n)
                case "advance":
                    buffer.advance_chunk()
                case "append":
                    buffer.advance_with_token(n)
                case "placeholder":
                    buffer.advance_with_placeholder()
                case "realize":
                    buffer.overwrite_last_token(n)
                case "rewind":
                    buffer.rewind_processing(n)
                case "skip":
                    buffer.skip_processing(n)
                case "shift":
                    buffer.apply_processing_offset(n - 40)
                case "drain":
                    buffer.consume_recently_generated_tokens()
                case "reset":
                    buffer.reset_as_new_prompt()
        except ValueError:
            continue  # not allowed in this state, and it has changed nothing
    return buffer


CONTEXT_FIELDS = {
    "request_id": request_ids,
    "model_name": texts,
    "eos_tracker": trackers(),
    "sampling_params": sampling,
    "log_probabilities": st.integers(0, 9),
    "log_probabilities_echo": flags,
    "json_schema": maybe(texts),
    "target_endpoint": st.sampled_from([None, "tcp://host:1", "ipc://path"]),
    "cached_prefix_length": maybe(counts),
    "in_reasoning_phase": flags,
    "spec_decoding_state": st.builds(proto.SpecDecodingState, st.lists(ids, max_size=3), st.lists(ids, max_size=3)),
    "vocab_size": st.just(1000),
    "cache_salt": maybe(texts),
}


@st.composite
def contexts(draw):
    """A text context after some of what a scheduler does with it."""
    prompt = np.arange(draw(st.integers(1, 9)), dtype=np.int64)
    fields = {name: draw(strategy) for name, strategy in CONTEXT_FIELDS.items()}
    context = proto.TextContext(tokens=proto.TokenBuffer(prompt), max_length=draw(st.integers(12, 20)), **fields)
    for _ in range(draw(st.integers(0, 6))):
        act = draw(
            st.sampled_from(["chunk", "update", "update", "scored", "future", "realize", "text", "output", "reset"])
        )
        token = draw(st.integers(0, 999))
        try:
            match act:
                case "chunk":
                    context.tokens.chunk(1)
                case "update":
                    context.update(token)
                case "scored":
                    context.update(token, draw(scores))
                case "future":
                    context.update_with_future_token()
                case "realize":
                    context.realize_future_token(token)
                case "text":
                    context.update_with_text(draw(st.text("abc", max_size=3)))
                case "output":
                    context.to_generation_output()
                case "reset":
                    context.reset()
        except ValueError:
            continue
    return context


@st.composite
def vision_contexts(draw):
    """A text context with images, some of them processed."""
    widths = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3)), max_size=3))
    tokens, images = [1], []
    for gap, width in widths:
        tokens += [1] * gap
        images.append(
            proto.ImageMetadata(
                start_idx=len(tokens),
                end_idx=len(tokens) + width,
                pixel_values=draw(arrays),
                image_hash=draw(maybe(ids)),
                num_embedding_rows=draw(maybe(st.integers(1, width))),
            )
        )
        tokens += [9] * width
    tokens.append(1)
    places = draw(st.sets(st.integers(0, len(tokens) - 1), max_size=2))
    fields = {name: draw(strategy) for name, strategy in CONTEXT_FIELDS.items()}
    context = proto.TextAndVisionContext(
        tokens=proto.TokenBuffer(np.array(tokens, np.int64)),
        max_length=len(tokens) + 9,
        images=images,
        vision_token_ids=[9],
        token_hash_overrides=[
            proto.TokenHashOverride(token_idx=place, token_hash=draw(ids)) for place in sorted(places)
        ],
        **fields,
    )
    if draw(flags) and len(tokens) > 2:
        context.tokens.chunk(draw(st.integers(1, len(tokens) - 1)))
        context.update(0)
    return context


text_parts = st.builds(proto.TextContentPart, text=texts)
image_parts = st.builds(proto.ImageContentPart, detail=maybe(texts), max_long_side_pixel=maybe(counts))
video_parts = st.builds(proto.VideoContentPart, fps=maybe(reals), max_frames=maybe(counts), detail=maybe(texts))
roles = st.sampled_from(["system", "user", "assistant", "tool", "function", "root"])
messages = st.builds(
    proto.TextGenerationRequestMessage,
    role=roles,
    content=texts | st.lists(text_parts | image_parts | video_parts, max_size=4),
    tool_calls=maybe(st.lists(schemas, max_size=2)),
    tool_call_id=maybe(texts),
    reasoning_content=maybe(texts),
)
formats = st.builds(
    proto.TextGenerationResponseFormat,
    type=texts,
    json_schema=maybe(schemas),
    grammar=maybe(texts),
    grammar_enforced=flags,
    tools_forced=flags,
    requires_structured_output_flag=flags,
    has_json_schema=flags,
)
tools = st.fixed_dictionaries(
    {
        "type": texts,
        "function": st.fixed_dictionaries({"name": texts}, optional={"parameters": schemas, "strict": flags}),
    },
)


@st.composite
def text_requests(draw):
    """From a prompt, or from messages with as much media as they have places for."""
    fields = {
        "request_id": draw(request_ids),
        "model_name": draw(names),
        "max_decoded_bytes": draw(maybe(counts)),
        "tools": draw(maybe(st.lists(tools, max_size=2))),
        "response_format": draw(maybe(formats)),
        "timestamp_ns": draw(counts),
        "request_path": draw(texts),
        "logprobs": draw(st.integers(0, 9)),
        "echo": draw(flags),
        "chat_template_options": draw(maybe(schemas)),
        "sampling_params": draw(sampling),
        "target_endpoint": draw(maybe(texts)),
        "dkv_cache_hint": draw(maybe(schemas)),
        "cache_salt": draw(maybe(texts)),
    }
    if draw(flags):
        return proto.TextGenerationRequest(prompt=draw(texts | st.lists(ids, max_size=5)), **fields)
    turns = draw(st.lists(messages, max_size=3))
    media = lambda wanted: [draw(st.binary(max_size=4)) for _ in range(wanted)]
    return proto.TextGenerationRequest(
        messages=turns,
        images=media(sum(turn.number_of_images for turn in turns)),
        videos=media(sum(turn.number_of_videos for turn in turns)),
        **fields,
    )


# -- open responses ---------------------------------------------------------------------------------------------------

uris = st.binary(max_size=6).map(lambda data: f"data:image/png;base64,{base64.b64encode(data).decode()}")
function_names = st.text(string.ascii_letters, min_size=1, max_size=9)
input_parts = st.one_of(
    st.builds(InputTextContent, text=texts),
    st.builds(InputImageContent, image_url=uris, detail=maybe(st.sampled_from(ImageDetail))),
    st.builds(InputFileContent, filename=maybe(texts), file_data=maybe(texts), file_url=maybe(texts)),
    st.builds(InputVideoContent, video_url=texts),
)
answer_parts = st.one_of(
    st.builds(proto.OutputTextContent, text=texts),
    st.builds(proto.OutputImageContent, image_data=texts, format=maybe(texts)),
    st.builds(RefusalContent, refusal=texts),
    st.builds(ReasoningSummaryContent, text=texts),
)
about = {"id": maybe(texts), "status": maybe(st.sampled_from(MessageStatus))}
turns = st.one_of(
    st.builds(UserMessage, content=texts | st.lists(input_parts, max_size=3), **about),
    st.builds(AssistantMessage, content=texts | st.lists(answer_parts, max_size=3), **about),
    st.builds(SystemMessage, content=texts | st.lists(st.builds(InputTextContent, text=texts), max_size=2), **about),
    st.builds(DeveloperMessage, content=texts, **about),
)
function_choices = st.builds(FunctionToolChoice, name=function_names)
choices = st.one_of(
    st.sampled_from(ToolChoiceValueEnum),
    function_choices,
    st.builds(
        AllowedToolChoice, tools=st.lists(function_choices, max_size=2), mode=st.sampled_from(ToolChoiceValueEnum)
    ),
)
sizes = st.integers(16, 99).map(lambda n: n * 8)
provider_options = st.builds(
    ProviderOptions,
    max=maybe(st.builds(MaxProviderOptions, target_endpoint=maybe(texts))),
    image=maybe(
        st.builds(
            ImageProviderOptions,
            negative_prompt=maybe(texts),
            width=maybe(sizes),
            height=maybe(sizes),
            steps=maybe(st.integers(1, 99)),
            guidance_scale=bounded(0, 9),
            strength=bounded(0.125, 1),
            num_images=st.integers(1, 9),
        )
    ),
    video=maybe(st.builds(VideoProviderOptions, num_frames=maybe(st.integers(1, 99)), flow_shift=maybe(bounded(1, 9)))),
    audio=maybe(st.builds(AudioProviderOptions, lyrics=maybe(texts), audio_duration=maybe(bounded(0.5, 9)))),
)
bodies = st.builds(
    OpenResponsesRequestBody,
    model=names,
    input=texts | st.lists(turns, max_size=1),
    temperature=maybe(bounded(0, 2)),
    top_p=maybe(bounded(0, 1)),
    seed=maybe(st.integers(-(2**63), 2**64 - 1)),
    stop=maybe(texts | st.lists(texts, max_size=4)),
    max_output_tokens=maybe(st.integers(1, 2**40)),
    logit_bias=maybe(st.dictionaries(texts, bounded(-100, 100), max_size=2)),
    top_logprobs=maybe(st.integers(0, 20)),
    tools=maybe(st.lists(st.builds(FunctionToolParam, name=function_names, parameters=maybe(schemas)), max_size=2)),
    tool_choice=maybe(choices),
    response_format=maybe(
        st.builds(TextParam)
        | st.builds(JsonObjectParam)
        | st.builds(JsonSchemaParam, name=texts, schema=maybe(schemas))
    ),
    verbosity=maybe(st.sampled_from(VerbosityEnum)),
    include=maybe(st.lists(st.sampled_from(IncludeEnum), max_size=2)),
    reasoning=maybe(st.builds(ReasoningParam, effort=maybe(st.sampled_from(ReasoningEffortEnum)))),
    citations=maybe(plain),
    metadata=maybe(st.dictionaries(texts, texts, max_size=2)),
    service_tier=maybe(st.sampled_from(ServiceTierEnum)),
    stream_options=maybe(schemas),
    provider_options=provider_options,
)
finished_parts = answer_parts | st.one_of(
    st.builds(EncodedVideoContent, video_url=maybe(texts), frames_per_second=maybe(reals)),
    st.builds(EncodedAudioContent, audio_data=texts, sample_rate=counts),
)
responses = st.builds(
    ResponseResource,
    id=texts,
    created_at=counts,
    model=texts,
    status=st.sampled_from(ResponseStatus),
    output=st.lists(
        st.builds(
            ResponseMessage,
            id=texts,
            status=st.sampled_from(MessageStatus),
            content=st.lists(finished_parts, max_size=3),
        )
        | st.builds(ResponseFunctionCall, id=texts, call_id=texts, name=texts, arguments=texts),
        max_size=3,
    ),
    incomplete_details=maybe(st.builds(IncompleteDetails, reason=texts)),
    error=maybe(st.builds(ResponseError, code=texts, message=texts)),
    usage=maybe(st.builds(ResponseUsage, input_tokens=counts, output_tokens=counts, total_tokens=counts)),
)

# -- the rest ---------------------------------------------------------------------------------------------------------

scales = st.builds(
    proto.Autoscale,
    min=st.integers(0, 5),
    max=st.integers(5, 99),
    target_ongoing_requests=bounded(1, 99),
    upscale_delay_s=bounded(0, 99),
    downscale_delay_s=bounded(0, 99),
    tolerance=bounded(0, 0.5),
)


media_parts = st.one_of(
    st.builds(proto.OutputTextContent, text=texts),
    st.builds(proto.OutputImageContent, image=maybe(pixels), image_data=maybe(texts), format=maybe(texts)),
    st.builds(
        proto.OutputVideoContent,
        frames=hnp.arrays("|u1", hnp.array_shapes(min_dims=4, max_dims=4, max_side=3)),
        frames_per_second=maybe(reals),
    ),
    st.builds(
        proto.OutputAudioContent,
        samples=hnp.arrays("<f4", hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)),
        sample_rate=st.integers(1, 10**6),
    ),
)
integers = hnp.arrays(dtype=st.sampled_from(["<i8", ">u2"]), shape=st.integers(0, 9))
metadata = st.builds(
    proto.AudioGenerationMetadata,
    sample_rate=maybe(counts),
    duration=maybe(reals),
    chunk_id=maybe(counts),
    timestamp=maybe(texts),
    final_chunk=maybe(flags),
    model_name=maybe(texts),
    request_id=maybe(request_ids),
    tokens_generated=maybe(counts),
    processing_time=maybe(reals),
    echo=maybe(texts),
)
workers = st.builds(
    proto.WorkerStatus,
    name=texts,
    host=texts,
    pid=counts,
    state=texts,
    in_flight=counts,
    credits=counts,
    seen_s=reals,
)
models = st.builds(
    proto.ModelStatus,
    model=texts,
    task=texts,
    deployment=texts,
    replicas=counts,
    unhealthy=texts,
    queued=counts,
    queued_bytes=counts,
    workers=st.lists(workers, max_size=2),
)
deltas = st.builds(
    proto.ParsedToolCallDelta,
    index=counts,
    id=maybe(texts),
    name=maybe(texts),
    arguments=maybe(texts),
    content=maybe(texts),
)
calls = st.builds(proto.ParsedToolCall, texts, texts, texts)

MESSAGES = {
    proto.AudioGenerationMetadata: metadata,
    proto.AudioGenerationOutput: st.builds(
        proto.AudioGenerationOutput,
        final_status=statuses,
        steps_executed=counts,
        audio_data=hnp.arrays("<f4", hnp.array_shapes(max_dims=2, max_side=9)),
        buffer_speech_tokens=maybe(integers),
        metadata=metadata,
    ),
    proto.AudioGenerationRequest: st.builds(
        proto.AudioGenerationRequest,
        request_id=request_ids,
        model=names,
        input=maybe(texts),
        audio_prompt_tokens=st.lists(ids, max_size=3),
        audio_prompt_transcription=texts,
        sampling_params=sampling,
        _assistant_message_override=maybe(texts),
        prompt=texts | st.lists(ids, max_size=3),
        streaming=flags,
        buffer_speech_tokens=maybe(integers),
        options=options,
    ),
    proto.ClusterStatus: st.builds(
        proto.ClusterStatus,
        name=texts,
        address=texts,
        epoch=texts,
        version=texts,
        uptime_s=reals,
        accepting=flags,
        clients=counts,
        live_requests=counts,
        outcomes=st.dictionaries(texts, counts, max_size=3),
        models=st.lists(models, max_size=2),
    ),
    proto.CompletedBatchStats: st.builds(
        proto.CompletedBatchStats,
        batch_type=st.sampled_from(proto.BatchType),
        batch_size=counts,
        num_input_tokens=counts,
        num_context_tokens=counts,
        execution_time_s=reals,
        num_output_tokens=maybe(counts),
        acceptance_rate_per_position=st.lists(reals, max_size=3),
        early_sync_duration_s=maybe(reals),
    ),
    proto.Autoscale: scales,
    proto.Deployment: st.builds(
        proto.Deployment,
        model=names,
        task=st.sampled_from([proto.PipelineTask.PIXEL_GENERATION, proto.PipelineTask.AUDIO_GENERATION]),
        pipeline=names,
        options=schemas,
        replicas=st.integers(0, 99) | scales,
        num_gpus=bounded(0, 1) | st.integers(0, 8).map(float),
        placement=st.sampled_from(["", "SPREAD", "PACK", "STRICT_PACK"]),
        node_labels=st.dictionaries(names, names, max_size=2),
        resources=st.dictionaries(texts, bounded(0, 8), max_size=2),
        max_batch_size=maybe(st.integers(1, 99)),
        max_wait_ms=bounded(0, 99),
    ),
    proto.EOSTracker: trackers(),
    proto.EmbeddingsGenerationOutput: st.builds(proto.EmbeddingsGenerationOutput, floats),
    proto.EmbeddingsRequest: st.builds(
        proto.EmbeddingsRequest,
        request_id=request_ids,
        model=names,
        input=st.one_of(
            texts,
            st.lists(texts, min_size=1, max_size=3),
            st.lists(ids, min_size=1, max_size=3),
            st.lists(st.lists(ids, min_size=1, max_size=3), min_size=1, max_size=3),
            arrays,
            st.lists(arrays, min_size=1, max_size=3),
        ),
        options=options,
    ),
    proto.GenerationOutput: st.builds(
        proto.GenerationOutput,
        request_id=request_ids,
        final_status=statuses,
        output=st.lists(media_parts, max_size=4),
        usage=maybe(st.builds(proto.Usage, input_tokens=counts, output_tokens=counts)),
    ),
    proto.ImageContentPart: image_parts,
    proto.ImageMetadata: st.builds(
        proto.ImageMetadata,
        start_idx=counts,
        end_idx=st.integers(2**40 + 9, 2**41),
        pixel_values=arrays,
        image_hash=maybe(ids),
        num_embedding_rows=maybe(st.integers(1, 9)),
    ),
    proto.LoRARequest: st.builds(proto.LoRARequest, st.sampled_from(proto.LoRAOperation), names, names),
    proto.LoRAResponse: st.builds(
        proto.LoRAResponse, st.sampled_from(proto.LoRAStatus), texts | st.lists(texts, max_size=3)
    ),
    proto.LogProbabilities: scores,
    proto.ModelStatus: models,
    proto.OpenResponsesRequest: st.builds(proto.OpenResponsesRequest, request_id=request_ids, body=bodies),
    proto.OpenResponsesRequestBody: bodies,
    proto.ParsedToolCall: calls,
    proto.ParsedToolCallDelta: deltas,
    proto.ParsedToolResponse: st.builds(proto.ParsedToolResponse, maybe(texts), st.lists(calls, max_size=3)),
    proto.PixelGenerationRequest: st.builds(
        proto.PixelGenerationRequest,
        request_id=request_ids,
        model=names,
        prompt=st.text(min_size=1, max_size=9),
        images=st.lists(arrays, max_size=3),
        negative_prompt=texts,
        height=maybe(st.integers(1, 2**40)),
        width=maybe(st.integers(1, 2**40)),
        num_inference_steps=maybe(st.integers(1, 99)),
        guidance_scale=bounded(0, 99),
        num_images_per_prompt=st.integers(1, 9),
        seed=maybe(st.integers(-(2**63), 2**64 - 1)),
        options=options,
    ),
    proto.ProviderOptions: provider_options,
    proto.Range: spans.map(lambda span: proto.Range(*span)),
    proto.RequestID: request_ids,
    proto.ResponseResource: responses,
    proto.SamplingParams: sampling,
    proto.SamplingParamsGenerationConfigDefaults: st.builds(
        proto.SamplingParamsGenerationConfigDefaults,
        temperature=maybe(reals),
        top_k=maybe(counts),
        do_sample=maybe(flags),
        eos_token_id=maybe(ids | st.lists(ids, max_size=3)),
    ),
    proto.SamplingParamsInput: st.builds(
        proto.SamplingParamsInput,
        top_k=maybe(st.integers(-5, 5)),
        temperature=maybe(reals),
        stop=maybe(st.lists(texts, max_size=2)),
        seed=maybe(st.integers(-(2**63), 2**64 - 1)),
    ),
    proto.SchedulerResult: st.one_of(
        st.builds(proto.SchedulerResult, is_done=flags, result=texts, batch_id=maybe(counts)),
        st.builds(proto.SchedulerResult, is_done=st.just(True), result=st.none(), error=maybe(texts)),
    ),
    proto.SpecDecodingState: CONTEXT_FIELDS["spec_decoding_state"],
    proto.TextAndVisionContext: vision_contexts(),
    proto.TextContentPart: text_parts,
    proto.TextContext: contexts(),
    proto.TextGenerationOutput: st.builds(
        proto.TextGenerationOutput,
        request_id=request_ids,
        tokens=st.lists(ids, max_size=5),
        final_status=statuses,
        log_probabilities=maybe(st.lists(scores, max_size=2)),
        num_cached_tokens=maybe(counts),
        ttft_join_hops_ms=maybe(st.dictionaries(texts, reals, max_size=2)),
        label_log_probabilities=maybe(st.lists(reals, max_size=3)),
        text=maybe(texts),
        reasoning=maybe(texts),
        tool_calls=maybe(st.lists(st.builds(proto.ParsedToolCallDelta, counts, maybe(texts)), max_size=2)),
        draft_tokens_generated=counts,
        draft_tokens_accepted=counts,
    ),
    proto.TextGenerationRequest: text_requests(),
    proto.TextGenerationRequestMessage: messages,
    proto.TextGenerationResponseFormat: formats,
    proto.TokenBuffer: buffers(),
    proto.TokenHashOverride: st.builds(proto.TokenHashOverride, token_idx=counts, token_hash=ids, source=texts),
    proto.Usage: st.builds(proto.Usage, input_tokens=counts, output_tokens=counts),
    proto.VideoContentPart: video_parts,
    proto.WorkerStatus: workers,
}
