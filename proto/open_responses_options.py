"""Options beyond the Open Responses API, by kind of media; a key that is not known is an error at every level.

A part of the body (`open_responses_body.py`); `open_responses_convert.py` reads them into our own requests.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from ..errors import InvalidRequest
from .checked import CheckedStruct
from .open_responses_enums import GeneratedMediaResponseFormat

# Numbers with their bounds.
_AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]
_Positive = Annotated[float, msgspec.Meta(gt=0)]
_NotNegative = Annotated[float, msgspec.Meta(ge=0)]
_Share = Annotated[float, msgspec.Meta(gt=0, le=1)]
_ImageSize = Annotated[int, msgspec.Meta(ge=128, multiple_of=8)]


class MaxProviderOptions(CheckedStruct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Routing. `target_endpoint`: the worker's endpoint that must serve this."""

    target_endpoint: str | None = None


class ImageProviderOptions(CheckedStruct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to make images.

    `width` and `height` in pixels, at least 128 and multiples of 8. `steps`: denoising steps, None for the model's
    default. `guidance_scale`: 0 or more. `strength`: how far an input image may change, above 0 up to 1.
    """

    negative_prompt: str | None = None
    secondary_prompt: str | None = None
    secondary_negative_prompt: str | None = None
    guidance_scale: _NotNegative = 3.5
    true_cfg_scale: _Positive = 1.0
    width: _ImageSize | None = None
    height: _ImageSize | None = None
    steps: _AtLeastOne | None = None
    num_images: _AtLeastOne = 1
    residual_threshold: _Positive | None = None
    strength: _Share = 0.6
    cfg_normalization: bool = False
    cfg_truncation: _Positive = 1.0
    output_format: str = "jpeg"
    response_format: GeneratedMediaResponseFormat = GeneratedMediaResponseFormat.B64_JSON


class VideoProviderOptions(CheckedStruct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to make a video; what is None is the model's choice. Sizes in pixels."""

    negative_prompt: str | None = None
    secondary_prompt: str | None = None
    secondary_negative_prompt: str | None = None
    width: _AtLeastOne | None = None
    height: _AtLeastOne | None = None
    steps: _AtLeastOne | None = None
    frames_per_second: _AtLeastOne | None = None
    num_frames: _AtLeastOne | None = None
    guidance_scale: _NotNegative | None = None
    guidance_scale_2: _Positive | None = None
    true_cfg_scale: _Positive | None = None
    flow_shift: _Positive | None = None
    response_format: GeneratedMediaResponseFormat = GeneratedMediaResponseFormat.URL


class AudioProviderOptions(CheckedStruct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to make sound. `audio_duration` in seconds; `audio_format` is "wav", in any case and with blanks around."""

    lyrics: str | None = None
    audio_duration: _Positive | None = None
    steps: _AtLeastOne | None = None
    guidance_scale: _Positive | None = None
    audio_format: str = "wav"

    def __post_init__(self) -> None:
        super().__post_init__()
        wanted = self.audio_format.strip().lower()
        if wanted != "wav":
            raise InvalidRequest(f"`audio_format` is wav, not {wanted!r}")
        msgspec.structs.force_setattr(self, "audio_format", wanted)


class ProviderOptions(CheckedStruct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options beyond the API, by kind; each may be left out."""

    max: MaxProviderOptions | None = None
    image: ImageProviderOptions | None = None
    video: VideoProviderOptions | None = None
    audio: AudioProviderOptions | None = None
