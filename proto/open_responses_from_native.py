"""Requests of ours as Open Responses requests: the way back from `open_responses_convert.py`.

`to_native` reads what is made here as the same request again; what no body can say is refused by name, never dropped.
Text requests are `open_responses_from_text.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from ..errors import InvalidRequest
from .audio import AudioGenerationRequest
from .open_responses import OpenResponsesRequest
from .open_responses_body import OpenResponsesRequestBody
from .open_responses_convert import PIPELINE_AUDIO_OPTIONS, PIPELINE_IMAGE_OPTIONS, NativeRequest
from .open_responses_from_text import text_body
from .open_responses_media import MAX_IMAGE_PIXELS, image_from_numpy
from .open_responses_options import AudioProviderOptions, ImageProviderOptions, ProviderOptions
from .open_responses_said import body_of, require_unset, said, sampling_fields, unsayable
from .pixels import PixelGenerationRequest
from .text_request import TextGenerationRequest

_Options = TypeVar("_Options", bound=msgspec.Struct)

#: Fields of a `PixelGenerationRequest` that are image options there, under their names.
_IMAGE_FIELDS = {
    "negative_prompt": "negative_prompt",
    "height": "height",
    "width": "width",
    "num_inference_steps": "steps",
    "guidance_scale": "guidance_scale",
    "num_images_per_prompt": "num_images",
}
#: What of an `AudioGenerationRequest` no body has, and the value that asks for nothing.
_NO_AUDIO: Mapping[str, Any] = {
    "audio_prompt_tokens": [],
    "audio_prompt_transcription": "",
    "_assistant_message_override": None,
    "prompt": None,
    "streaming": False,
    "buffer_speech_tokens": None,
}


def to_open(request: NativeRequest) -> OpenResponsesRequest:
    """The Open Responses request that means the same, under the same RequestID: `to_native` reads it as this one.

    Lists and dicts that are empty come back as None, and a tool with all its keys. Decoded images stay behind, as they
    do whenever a request travels. Raises InvalidRequest (a ValueError) that names the field for what no body can say,
    and for a request of another task.
    """
    for kind, make_body in _BODIES.items():
        if isinstance(request, kind):
            return OpenResponsesRequest(request_id=request.request_id, body=make_body(request))
    kinds = ", ".join(kind.__name__ for kind in _BODIES)
    raise InvalidRequest(f"a {type(request).__name__} has no form in Open Responses; those that have: {kinds}")


def _pixel_body(request: PixelGenerationRequest) -> OpenResponsesRequestBody:
    fields: dict[str, Any] = {}
    for ours, theirs in _IMAGE_FIELDS.items():
        value = getattr(request, ours)
        if value not in (None, ""):
            fields[theirs] = getattr(said(ours, ImageProviderOptions, {theirs: value}), theirs)
    image = _options(request.options, PIPELINE_IMAGE_OPTIONS, ImageProviderOptions)
    return body_of(
        {
            "model": ("model", request.model),
            "input": ("images", _pixel_input(request)),
            "seed": ("seed", request.seed),
            "provider_options": ("options", ProviderOptions(image=msgspec.structs.replace(image, **fields))),
        },
    )


def _pixel_input(request: PixelGenerationRequest) -> Any:
    if not request.images:
        return request.prompt
    left = MAX_IMAGE_PIXELS
    parts = [{"type": "input_text", "text": request.prompt}] if request.prompt else []
    for index, image in enumerate(request.images):
        left -= image.size and image.shape[0] * image.shape[1] if image.ndim > 1 else 0
        if left < 0:
            unsayable("images", f"all together have at most {MAX_IMAGE_PIXELS} pixels there")
        parts.append({"type": "input_image", "image_url": _image_uri(f"images[{index}]", image)})
    return [{"role": "user", "content": parts}]


def _image_uri(path: str, image: npt.NDArray[Any]) -> str:
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or not image.size or image.shape[2:] not in ((), (3,), (4,)):
        unsayable(
            path,
            f"it is {image.dtype} {image.shape}, and there an image is uint8 (height, width), grey, or "
            "(height, width, 3 or 4)",
        )
    return f"data:image/png;base64,{image_from_numpy(image).image_data}"


def _options(options: Mapping[str, Any], names: Sequence[str], kind: type[_Options]) -> _Options:
    """A pipeline's options as those of the API, which take a default for something that was not said."""
    fields: dict[str, Any] = {}
    for name, value in options.items():
        path = f"options[{name!r:.40}]"
        if name not in names:
            unsayable(path, f"it has {', '.join(names)} alone")
        fields[name] = getattr(said(path, kind, {name: value}), name)
        if fields[name] == getattr(kind(), name):
            unsayable(path, f"{fields[name]!r:.40} is the default there, which says nothing: leave it out")
    return kind(**fields)


def _audio_body(request: AudioGenerationRequest) -> OpenResponsesRequestBody:
    require_unset(request, _NO_AUDIO)
    audio = _options(request.options, PIPELINE_AUDIO_OPTIONS, AudioProviderOptions)
    return body_of(
        {
            "model": ("model", request.model),
            "input": ("input", request.input),
            "provider_options": ("options", ProviderOptions(audio=audio)),
            **sampling_fields(request.sampling_params),
        },
    )


_BODIES: dict[type[Any], Callable[[Any], OpenResponsesRequestBody]] = {
    TextGenerationRequest: text_body,
    PixelGenerationRequest: _pixel_body,
    AudioGenerationRequest: _audio_body,
}
