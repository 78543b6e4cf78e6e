"""Generated media: `GenerationOutput` and the content parts it carries.

Arrays in a content part travel like any other: by shared-memory handle when large. `open_responses_media.py` encodes
them for people's programs.

Source: `max.interfaces.generation` (26.3), `max.pipelines.context.outputs` (26.7).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from ..errors import InvalidRequest
from .context import GenerationStatus
from .request import RequestID
from .validation import require_id


class TokenLogProbability(msgspec.Struct, frozen=True, kw_only=True):
    """A token of a text, as the API tells of it: what it says, in text and in bytes, and how likely it was."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TokenLogProbability] = []


class OutputTextContent(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="output_text", omit_defaults=True
):
    """Text, alone or beside media; `logprobs`: of its tokens, where they were asked for."""

    text: str
    logprobs: list[TokenLogProbability] | None = None


class OutputImageContent(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="output_image"):
    """One image: raw pixels in `image` (`(height, width[, channels])`), or encoded, as base64 in `image_data`."""

    image: npt.NDArray[Any] | None = None
    image_data: str | None = None
    format: str | None = None
    detail: str | None = None

    def __post_init__(self) -> None:
        if self.image is None:
            return
        if not isinstance(self.image, np.ndarray):
            raise InvalidRequest(f"`image` is a numpy array of pixels, not a {type(self.image).__name__}")
        if self.image.ndim not in (2, 3):
            raise InvalidRequest(f"an image has 2 or 3 dimensions, not {self.image.ndim}")

    @classmethod
    def from_numpy(
        cls,
        array: npt.NDArray[np.uint8],
        format: str = "png",  # noqa: A002 - the documented name
        detail: str | None = None,
    ) -> OutputImageContent:
        """The pixels encoded, as base64; see `image_from_numpy` of `open_responses_media.py`."""
        from .open_responses_media import image_from_numpy

        return image_from_numpy(array, format, detail)


class OutputVideoContent(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="output_video"):
    """Frames of one clip: uint8 `(time, height, width, channels)`, and how many are shown per second."""

    frames: npt.NDArray[np.uint8]
    frames_per_second: float | None = None
    format: str | None = None

    @classmethod
    def from_numpy_frames(
        cls,
        frames: npt.NDArray[np.uint8],
        *,
        frames_per_second: float | None = None,
        format: str | None = None,  # noqa: A002 - the documented name
    ) -> OutputVideoContent:
        """The frames as they are, checked; InvalidRequest (a ValueError) for an array of another kind."""
        if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8 or frames.ndim != 4:
            raise InvalidRequest("frames are a uint8 array of shape (time, height, width, channels)")
        return cls(frames=frames, frames_per_second=frames_per_second, format=format)


class OutputAudioContent(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="output_audio"):
    """Sound: float32 `(channels, samples)` and its sample rate in Hz."""

    samples: npt.NDArray[np.float32]
    sample_rate: int
    format: str | None = None

    @classmethod
    def from_numpy_samples(
        cls,
        samples: npt.NDArray[np.float32],
        *,
        sample_rate: int,
        format: str | None = None,  # noqa: A002 - the documented name
    ) -> OutputAudioContent:
        """The samples as they are, checked; InvalidRequest (a ValueError) for an array of another kind."""
        if not isinstance(samples, np.ndarray) or samples.dtype != np.float32 or samples.ndim != 2:
            raise InvalidRequest("samples are a float32 array of shape (channels, samples)")
        return cls(samples=samples, sample_rate=sample_rate, format=format)


OutputContent = OutputTextContent | OutputImageContent | OutputVideoContent | OutputAudioContent


class Usage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a request consumed and made, in tokens."""

    input_tokens: int = 0
    output_tokens: int = 0


class GenerationOutput(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """The media made for one request, complete or (with `final_status` ACTIVE) so far.

    `final_status` may be given as its value. Raises InvalidRequest (a ValueError) that names the field for another id
    than a RequestID, an unknown status, or an `output` that is no list of parts.
    """

    request_id: RequestID
    final_status: GenerationStatus
    output: list[OutputContent]
    usage: Usage | None = None

    def __post_init__(self) -> None:
        require_id(self.request_id)
        if not isinstance(self.final_status, GenerationStatus):
            msgspec.structs.force_setattr(self, "final_status", _status(self.final_status))
        if not isinstance(self.output, list) or not all(isinstance(part, OutputContent) for part in self.output):
            raise InvalidRequest("`output` is a list of parts: OutputImageContent and the like")
        if self.usage is not None and not isinstance(self.usage, Usage):
            raise InvalidRequest(f"`usage` is a Usage, not a {type(self.usage).__name__}")

    @property
    def is_done(self) -> bool:
        """Whether this ends its request."""
        return self.final_status.is_done

    @property
    def images(self) -> list[npt.NDArray[Any]]:
        """The raw pixels of every image part, in order."""
        return [part.image for part in self.output if isinstance(part, OutputImageContent) and part.image is not None]

    @classmethod
    def of_images(cls, request_id: RequestID, images: Sequence[npt.NDArray[Any]]) -> GenerationOutput:
        """A finished answer of raw images, `(height, width[, channels])` each."""
        parts: list[OutputContent] = [OutputImageContent(image=image) for image in images]
        return cls(request_id=request_id, final_status=GenerationStatus.END_OF_SEQUENCE, output=parts)


def _status(value: object) -> GenerationStatus:
    try:
        return GenerationStatus(value)
    except ValueError:
        known = ", ".join(status.value for status in GenerationStatus)
        raise InvalidRequest(f"`final_status` is one of {known}, not {value!r:.40}") from None
