"""Media for JSON: pixels, frames and samples as the parts of a response, encoded.

The raw parts are those of `generation.py`; the response that carries the encoded ones is `open_responses_output.py`'s.
"""

from __future__ import annotations

import base64
import io
import struct
import wave
import zlib

import msgspec
import numpy as np
import numpy.typing as npt

from ..errors import InvalidRequest
from .generation import (
    OutputAudioContent,
    OutputContent,
    OutputImageContent,
    OutputTextContent,
    OutputVideoContent,
)
from .open_responses_messages import ReasoningSummaryContent, RefusalContent


class EncodedVideoContent(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="output_video"):
    """A finished clip: base64 in `video_data`, or an address in `video_url`."""

    video_data: str | None = None
    video_url: str | None = None
    format: str | None = None
    frames_per_second: float | None = None


class EncodedAudioContent(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="output_audio"):
    """Finished sound: base64 in `audio_data`; `sample_rate` in Hz."""

    audio_data: str
    sample_rate: int
    format: str = "wav"


#: What a response can carry: all of it goes into JSON as it is.
ResponseContent = (
    OutputTextContent
    | OutputImageContent
    | EncodedVideoContent
    | EncodedAudioContent
    | RefusalContent
    | ReasoningSummaryContent
)

_PNG_COLOR_TYPES = {1: 0, 3: 2, 4: 6}


def image_from_numpy(
    array: npt.NDArray[np.uint8],
    format: str = "png",  # noqa: A002 - the documented name
    detail: str | None = None,
) -> OutputImageContent:
    """An image part with the pixels encoded, as base64.

    `array`: uint8 `(height, width)` or `(height, width, channels)` with 1, 3 or 4 channels. PNG is always there; other
    formats ("jpeg", also called "jpg", "webp") need Pillow, and JPEG leaves an alpha channel out.

    Raises InvalidRequest (a ValueError) for another array or format.
    """
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim not in (2, 3) or not array.size:
        raise InvalidRequest("an image is a uint8 array of shape (height, width) or (height, width, channels)")
    pixels = array[:, :, None] if array.ndim == 2 else array
    if pixels.shape[2] not in _PNG_COLOR_TYPES:
        raise InvalidRequest(f"an image has 1, 3 or 4 channels, not {pixels.shape[2]}")
    name = {"jpg": "jpeg"}.get(format.strip().lower(), format.strip().lower())
    data = _png(pixels) if name == "png" else _with_pillow(pixels, name)
    return OutputImageContent(image_data=base64.b64encode(data).decode(), format=name, detail=detail)


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    height, width, channels = pixels.shape
    # Each row begins with its filter: 0, none.
    rows = np.zeros((height, 1 + width * channels), np.uint8)
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, _PNG_COLOR_TYPES[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), level=3)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def _with_pillow(pixels: npt.NDArray[np.uint8], name: str) -> bytes:
    try:
        from PIL import Image
    except ImportError:
        raise InvalidRequest(f"the image format {name!r} needs Pillow; png does not") from None
    if name == "jpeg" and pixels.shape[2] == 4:
        pixels = pixels[:, :, :3]
    image = Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))
    buffer = io.BytesIO()
    try:
        image.save(buffer, format=name)
    except (KeyError, ValueError, OSError) as error:
        raise InvalidRequest(f"the image format {name!r} cannot be written: {error}") from None
    return buffer.getvalue()


def video_from_numpy_frames(
    frames: npt.NDArray[np.uint8],
    *,
    frames_per_second: float | None = None,
    format: str | None = None,  # noqa: A002 - the documented name
) -> OutputVideoContent:
    """A video part with raw frames, uint8 `(time, height, width, channels)`; InvalidRequest for another array."""
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8 or frames.ndim != 4:
        raise InvalidRequest("frames are a uint8 array of shape (time, height, width, channels)")
    return OutputVideoContent(frames=frames, frames_per_second=frames_per_second, format=format)


def audio_from_numpy_samples(
    samples: npt.NDArray[np.float32],
    *,
    sample_rate: int,
    format: str | None = None,  # noqa: A002 - the documented name
) -> OutputAudioContent:
    """An audio part with raw samples, float32 `(channels, samples)` in [-1, 1]; InvalidRequest for another array."""
    if not isinstance(samples, np.ndarray) or samples.dtype != np.float32 or samples.ndim != 2:
        raise InvalidRequest("samples are a float32 array of shape (channels, samples)")
    return OutputAudioContent(samples=samples, sample_rate=sample_rate, format=format)


def encode_audio(audio: OutputAudioContent) -> EncodedAudioContent:
    """The sound as a WAV file of 16-bit samples; what lies outside [-1, 1] is clipped, what is no number is silence."""
    if audio.format not in (None, "wav"):
        raise InvalidRequest(f"sound is encoded as wav, not {audio.format!r}")
    samples = np.clip(np.nan_to_num(np.atleast_2d(audio.samples)), -1.0, 1.0)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(samples.shape[0])
        file.setsampwidth(2)
        file.setframerate(audio.sample_rate)
        file.writeframes(np.rint(samples.T * 32767).astype("<i2").tobytes())
    data = base64.b64encode(buffer.getvalue()).decode()
    return EncodedAudioContent(audio_data=data, sample_rate=audio.sample_rate)


def encode_content(part: OutputContent | ResponseContent) -> ResponseContent:
    """A part ready for a response: raw pixels become PNG, raw samples WAV, the rest stays.

    Raises InvalidRequest (a ValueError) for raw video frames, for which no encoder is here: give the clip as an
    `EncodedVideoContent`.
    """
    if isinstance(part, OutputVideoContent):
        raise InvalidRequest("video frames are encoded by the caller: give the clip as an EncodedVideoContent")
    if isinstance(part, OutputAudioContent):
        return encode_audio(part)
    if isinstance(part, OutputImageContent) and part.image is not None:
        return image_from_numpy(part.image, part.format or "png", part.detail)
    return part
