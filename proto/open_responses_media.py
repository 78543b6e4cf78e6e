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

#: Most pixels that one request's images may have: a quarter of a gigabyte with an alpha channel.
MAX_IMAGE_PIXELS = 64 << 20

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


def image_from_bytes(data: bytes, *, max_pixels: int = MAX_IMAGE_PIXELS) -> npt.NDArray[np.uint8]:
    """The pixels of an image file, turned as its EXIF data say; needs Pillow.

    uint8 `(height, width)` if it is grey, else `(height, width, channels)` with 3 channels, or 4 with transparency.
    Raises InvalidRequest (a ValueError) for what is no image, an image of more than `max_pixels`, or without Pillow.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise InvalidRequest("encoded images are read by Pillow, which is not installed here") from None
    try:
        opened = Image.open(io.BytesIO(data))
        # Before anything is decoded: a small file may name any size.
        _require_pixels(opened.size, max_pixels)
        image = ImageOps.exif_transpose(opened)
        if image.mode not in ("L", "RGB", "RGBA"):
            image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        return np.array(image)
    except InvalidRequest:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidRequest(f"an image cannot be read: {error!s:.100}") from None


def _require_pixels(size: tuple[int, int], most: int) -> None:
    if size[0] * size[1] > most:
        raise InvalidRequest(f"an image of {size[0]} x {size[1]} pixels: at most {most} are read")


#: Where files of a kind that models take say what they are, and its name.
_MARKS = (
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"GIF8", "image/gif"),
    (8, b"WEBP", "image/webp"),
    (4, b"ftyp", "video/mp4"),
    (0, b"\x1aE\xdf\xa3", "video/webm"),
)


def uri_of_bytes(data: bytes) -> str:
    """The `data:` URI of an encoded file, in base64."""
    kinds = (kind for at, mark, kind in _MARKS if data.startswith(mark, at))
    return f"data:{next(kinds, 'application/octet-stream')};base64,{base64.b64encode(data).decode()}"


def bytes_of_uri(uri: str) -> bytes:
    """What a `data:` URI in base64 holds; InvalidRequest (a ValueError) for any other address."""
    head, comma, data = uri.partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        raise InvalidRequest("media are sent as data:TYPE;base64,... URIs")
    return bytes_of_base64(data)


def bytes_of_base64(data: str) -> bytes:
    """What a text in base64 stands for; InvalidRequest (a ValueError) when it is none."""
    try:
        return base64.b64decode(data, validate=True)
    except ValueError:
        raise InvalidRequest("the data of a medium are not base64") from None


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
