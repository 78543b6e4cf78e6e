"""Open Responses requests as requests of ours, and the outputs of our tasks as responses.

The gateway knows a model's task and calls `to_native` and `to_response`. What a body asks for and a task cannot do is
refused, never dropped (`open_responses_asked.py`). Text requests are `open_responses_text.py`'s, and the way back is in
`open_responses_from_native.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from ..errors import InvalidRequest
from .audio import AudioGenerationOutput, AudioGenerationRequest
from .generation import (
    GenerationOutput,
    OutputAudioContent,
    OutputContent,
    OutputImageContent,
    OutputTextContent,
    TokenLogProbability,
    Usage,
)
from .open_responses import OpenResponsesRequest
from .open_responses_asked import SAMPLING_FIELDS, refuse_blocks, refuse_others, require_modality
from .open_responses_body import OpenResponsesRequestBody
from .open_responses_enums import GeneratedMediaResponseFormat, ImageDetail
from .open_responses_media import (
    MAX_IMAGE_PIXELS,
    ResponseContent,
    bytes_of_uri,
    encode_content,
    image_from_bytes,
)
from .open_responses_messages import InputImageContent, InputTextContent, ReasoningSummaryContent
from .open_responses_options import ImageProviderOptions
from .open_responses_output import ResponseResource
from .open_responses_text import only_message, sampling_params, to_text_request
from .pipeline import PipelineTask
from .pixels import PixelGenerationRequest
from .text_output import TextGenerationOutput
from .text_request import TextGenerationRequest
from .tool_parsing import ParsedToolCall

NativeRequest = TextGenerationRequest | PixelGenerationRequest | AudioGenerationRequest
NativeOutput = TextGenerationOutput | GenerationOutput | AudioGenerationOutput

#: Image options that a `PixelGenerationRequest` has no field for: they become its `options`, where they are not the
#: default, so that a pipeline which does not know one says so.
PIPELINE_IMAGE_OPTIONS = (
    "secondary_prompt",
    "secondary_negative_prompt",
    "true_cfg_scale",
    "residual_threshold",
    "strength",
    "cfg_normalization",
    "cfg_truncation",
)
PIPELINE_AUDIO_OPTIONS = ("lyrics", "audio_duration", "steps", "guidance_scale")


# -- requests ---------------------------------------------------------------------------------------------------------


def to_native(request: OpenResponsesRequest, task: PipelineTask) -> NativeRequest:
    """The request of ours that a body means, for a model of the given task; it keeps the RequestID.

    Raises InvalidRequest (a ValueError) for what the body asks for and the task cannot do, or another task.
    """
    try:
        convert = _CONVERSIONS[task]
    except KeyError:
        allowed = ", ".join(task.value for task in _CONVERSIONS)
        raise InvalidRequest(f"Open Responses serves models of the tasks {allowed}, not {task.value!r}") from None
    return convert(request)


def to_pixel_request(request: OpenResponsesRequest) -> PixelGenerationRequest:
    """The texts of a user's message as the prompt, its images decoded (Pillow), and the image options."""
    body = request.body
    refuse_others(body, frozenset({"seed"}))
    refuse_blocks(body, "image")
    require_modality(body, "image")
    image = body.provider_options.image or ImageProviderOptions()
    if image.response_format is not GeneratedMediaResponseFormat.B64_JSON:
        raise InvalidRequest("images come back inside the JSON: `response_format` of the image options is b64_json")
    if body.n is not None and image.num_images not in (1, body.n):
        raise InvalidRequest(f"`n` is {body.n} and `num_images` {image.num_images}: say one of them")
    prompt, urls = _prompt(body, takes_images=True)
    return PixelGenerationRequest(
        request_id=request.request_id,
        model=body.model,
        prompt=prompt,
        images=_images(urls),
        negative_prompt=image.negative_prompt or "",
        height=image.height,
        width=image.width,
        num_inference_steps=image.steps,
        guidance_scale=image.guidance_scale,
        num_images_per_prompt=body.n or image.num_images,
        seed=body.seed,
        options=_changed(image, PIPELINE_IMAGE_OPTIONS),
    )


def to_audio_request(request: OpenResponsesRequest) -> AudioGenerationRequest:
    """The texts of a user's message as what is to be spoken or sung, and the audio options; in one piece."""
    body = request.body
    refuse_others(body, SAMPLING_FIELDS)
    refuse_blocks(body, "audio")
    require_modality(body, "audio")
    if body.n not in (None, 1):
        raise InvalidRequest("`n` above 1 is not offered for audio")
    audio = body.provider_options.audio
    text, _ = _prompt(body, takes_images=False)
    return AudioGenerationRequest(
        request_id=request.request_id,
        model=body.model,
        input=text,
        sampling_params=sampling_params(body),
        streaming=False,
        options={} if audio is None else _changed(audio, PIPELINE_AUDIO_OPTIONS),
    )


_CONVERSIONS: dict[PipelineTask, Callable[[OpenResponsesRequest], NativeRequest]] = {
    PipelineTask.TEXT_GENERATION: to_text_request,
    PipelineTask.PIXEL_GENERATION: to_pixel_request,
    PipelineTask.AUDIO_GENERATION: to_audio_request,
}


def _changed(options: msgspec.Struct, names: Sequence[str]) -> dict[str, Any]:
    default = type(options)()
    return {name: value for name in names if (value := getattr(options, name)) != getattr(default, name)}


def _prompt(body: OpenResponsesRequestBody, *, takes_images: bool) -> tuple[str, list[str]]:
    """The texts of a user's message, a line each, and the addresses of its images."""
    if isinstance(body.input, str):
        return body.input, []
    message = only_message(body)
    if message.role != "user":
        raise InvalidRequest(f"media are made from a message of the user, not of the {message.role}")
    parts = [InputTextContent(text=message.content)] if isinstance(message.content, str) else message.content
    allowed = (InputTextContent, InputImageContent) if takes_images else (InputTextContent,)
    for part in parts:
        if not isinstance(part, allowed):
            raise InvalidRequest(f"the model {body.model!r} takes no {part.type}")
        if isinstance(part, InputImageContent) and part.detail not in (None, ImageDetail.AUTO):
            raise InvalidRequest(f"the model {body.model!r} takes no `detail` of images: it sees all of each")
    texts = [part.text for part in parts if isinstance(part, InputTextContent)]
    return "\n".join(texts), [part.image_url for part in parts if isinstance(part, InputImageContent)]


def _images(urls: Sequence[str]) -> list[npt.NDArray[np.uint8]]:
    images: list[npt.NDArray[np.uint8]] = []
    left = MAX_IMAGE_PIXELS
    for url in urls:
        images.append(image_from_bytes(bytes_of_uri(url), max_pixels=left))
        left -= images[-1].shape[0] * images[-1].shape[1]
    return images


# -- responses --------------------------------------------------------------------------------------------------------


def to_response(
    request: OpenResponsesRequest,
    output: NativeOutput,
    *,
    text: str | None = None,
    reasoning: str | None = None,
    calls: Sequence[ParsedToolCall] | None = None,
    input_tokens: int = 0,
    created_at: int | None = None,
) -> ResponseResource:
    """The response for the whole output of a request (of a stream: merged), its media encoded.

    Of a `TextGenerationOutput` the text, the thinking and the calls are those that its worker made of the tokens,
    unless the caller gives others; log probabilities of the tokens of a text that stands without calls are told with
    it. How many tokens the prompt had is the caller's to say. `created_at`: seconds since 1970, None for now.

    Raises InvalidRequest (a ValueError) for media that cannot be encoded here, or the output of another request.
    """
    if isinstance(output, TextGenerationOutput):
        calls = output.calls if calls is None else calls
        reasoning = output.reasoning if reasoning is None else reasoning
        text = output.text if text is None else text
        generated = _text_output(output, text or "", None if calls else _log_probabilities(output), input_tokens)
    elif isinstance(output, AudioGenerationOutput):
        generated = _audio_output(request, output)
    else:
        generated = output
    if generated.request_id != request.request_id:
        raise InvalidRequest(f"the output is of request {generated.request_id}, not of {request.request_id}")
    image = request.body.provider_options.image or ImageProviderOptions()
    content: list[ResponseContent] = [encode_content(_in_format(part, image)) for part in generated.output]
    if reasoning:
        content.insert(0, ReasoningSummaryContent(text=reasoning))
    return ResponseResource.from_generation_output(
        generated,
        request.body.model,
        content=content,
        calls=calls or (),
        created_at=created_at,
    )


def to_failed_response(
    request: OpenResponsesRequest,
    error: BaseException,
    *,
    created_at: int | None = None,
) -> ResponseResource:
    """The response for a request that failed: the error's code and text, no output."""
    return ResponseResource.from_error(request.request_id, request.body.model, error, created_at=created_at)


def _log_probabilities(output: TextGenerationOutput) -> list[TokenLogProbability] | None:
    """Of the tokens that are text; None where none were asked for."""
    if output.log_probabilities is None:
        return None
    return [
        _log_probability(told.pieces[token], value, {told.pieces[i]: tops[i] for i in tops if i in told.pieces})
        for told in output.log_probabilities
        for token, value, tops in zip(
            told.sampled_token_ids, told.token_log_probabilities, told.top_log_probabilities, strict=True
        )
        if token in told.pieces
    ]


def _log_probability(piece: bytes, value: float, tops: Mapping[bytes, float]) -> TokenLogProbability:
    return TokenLogProbability(
        token=piece.decode(errors="replace"),
        logprob=value,
        bytes=list(piece),
        top_logprobs=[_log_probability(each, likely, {}) for each, likely in tops.items()],
    )


def _text_output(
    output: TextGenerationOutput, text: str, told: list[TokenLogProbability] | None, input_tokens: int
) -> GenerationOutput:
    return GenerationOutput(
        request_id=output.request_id,
        final_status=output.final_status,
        output=[OutputTextContent(text=text, logprobs=told)] if text else [],
        usage=Usage(input_tokens=input_tokens, output_tokens=len(output.tokens)),
    )


def _audio_output(request: OpenResponsesRequest, output: AudioGenerationOutput) -> GenerationOutput:
    rate = output.metadata.sample_rate
    if rate is None:
        raise InvalidRequest("sound without a sample rate cannot be encoded: the pipeline says it in `metadata`")
    samples = np.atleast_2d(output.audio_data)
    return GenerationOutput(
        request_id=output.metadata.request_id or request.request_id,
        final_status=output.final_status,
        output=[OutputAudioContent(samples=samples, sample_rate=rate)],
    )


def _in_format(part: OutputContent, image: ImageProviderOptions) -> OutputContent:
    """Raw pixels that name no format of their own are encoded in the one that was asked for."""
    if isinstance(part, OutputImageContent) and part.image is not None and part.format is None:
        return msgspec.structs.replace(part, format=image.output_format)
    return part
