"""Media for JSON: pixels, frames and samples are encoded as promised."""

from __future__ import annotations

import base64
import builtins
import io
import struct
import wave
import zlib

import numpy as np
import pytest

from tensoryard.errors import InvalidRequest
from tensoryard.proto.generation import (
    OutputAudioContent,
    OutputImageContent,
    OutputTextContent,
    OutputVideoContent,
)
from tensoryard.proto.open_responses_media import (
    EncodedAudioContent,
    encode_audio,
    encode_content,
    image_from_numpy,
)


def png_pixels(part):
    """The pixels of a PNG of ours, decoded by hand."""
    data = base64.b64decode(part.image_data)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    position, chunks = 8, {}
    while position < len(data):
        (size,) = struct.unpack(">I", data[position : position + 4])
        name, payload = data[position + 4 : position + 8], data[position + 8 : position + 8 + size]
        assert struct.unpack(">I", data[position + 8 + size : position + 12 + size])[0] == zlib.crc32(name + payload)
        chunks[name] = payload
        position += 12 + size
    width, height, depth, color, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert (depth, rest) == (8, [0, 0, 0])
    channels = {0: 1, 2: 3, 6: 4}[color]
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, 1 + width * channels)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, channels)


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 1), (3, 5, 3), (3, 5, 4), (1, 1, 1), (1, 1)])
def test_weakness_40_png_of_every_shape(shape):
    """Grey, colour and alpha, down to a single pixel."""
    pixels = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    part = image_from_numpy(pixels, detail="low")
    assert (part.format, part.detail, part.image) == ("png", "low", None)
    assert (png_pixels(part).reshape(shape) == pixels).all()


def test_png_of_a_strided_view():
    """Not only contiguous arrays."""
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)[::2, ::-1]
    assert (png_pixels(image_from_numpy(pixels)) == pixels).all()


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 2), np.float32),
        np.zeros(4, np.uint8),
        np.zeros((2, 2, 2), np.uint8),
        np.zeros((0, 2), np.uint8),
        [[1]],
    ],
)
def test_images_that_are_wrong(array):
    """Another dtype, rank or number of channels."""
    with pytest.raises(InvalidRequest):
        image_from_numpy(array)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3), (8, 8, 4)])
def test_weakness_40_jpeg_by_either_name(shape):
    """ "jpg" is "jpeg", and an alpha channel does not stop it."""
    pytest.importorskip("PIL")
    part = image_from_numpy(np.full(shape, 200, np.uint8), format="JPG")
    assert part.format == "jpeg"
    assert base64.b64decode(part.image_data)[:2] == b"\xff\xd8"


def test_formats_that_cannot_be_written():
    """A format that nobody knows is an input error."""
    with pytest.raises(InvalidRequest, match="nonsense"):
        image_from_numpy(np.zeros((2, 2), np.uint8), format="nonsense")


def test_formats_without_pillow(monkeypatch):
    """The error says what is missing and what works."""
    real = builtins.__import__

    def without_pillow(name, *args):
        if name == "PIL":
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without_pillow)
    with pytest.raises(InvalidRequest, match="Pillow"):
        image_from_numpy(np.zeros((2, 2), np.uint8), format="jpeg")


def test_raw_parts():
    """Frames and samples stay raw until they are encoded."""
    frames, samples = np.zeros((2, 4, 4, 3), np.uint8), np.zeros((2, 10), np.float32)
    video = OutputVideoContent.from_numpy_frames(frames, frames_per_second=24.0)
    assert (video.frames is frames, video.frames_per_second) == (True, 24.0)
    audio = OutputAudioContent.from_numpy_samples(samples, sample_rate=8000)
    assert (audio.samples is samples, audio.sample_rate) == (True, 8000)
    with pytest.raises(InvalidRequest):
        OutputVideoContent.from_numpy_frames(frames[0])
    with pytest.raises(InvalidRequest):
        OutputAudioContent.from_numpy_samples(samples.astype(np.float64), sample_rate=8000)


def test_audio_becomes_wav():
    """16 bits, clipped, with the channels and the rate given."""
    samples = np.array([[0.0, 1.0, -1.0], [5.0, np.nan, 0.5]], np.float32)
    encoded = encode_audio(OutputAudioContent(samples=samples, sample_rate=8000))
    assert encoded.sample_rate == 8000
    with wave.open(io.BytesIO(base64.b64decode(encoded.audio_data))) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (2, 2, 8000)
        found = np.frombuffer(file.readframes(3), "<i2").reshape(3, 2)
    assert found.T.tolist() == [[0, 32767, -32767], [32767, 0, 16384]]
    with pytest.raises(InvalidRequest, match="mp3"):
        encode_audio(OutputAudioContent(samples=samples, sample_rate=8000, format="mp3"))


def test_encode_content():
    """Raw pixels and samples are encoded, the rest stays, frames are the caller's to encode."""
    pixels = np.zeros((2, 2, 3), np.uint8)
    assert encode_content(OutputImageContent(image=pixels)) == image_from_numpy(pixels)
    text = OutputTextContent(text="x")
    assert encode_content(text) is text
    audio = OutputAudioContent(samples=np.zeros((1, 2), np.float32), sample_rate=8000)
    assert isinstance(encode_content(audio), EncodedAudioContent)
    with pytest.raises(InvalidRequest, match="EncodedVideoContent"):
        encode_content(OutputVideoContent(frames=np.zeros((1, 2, 2, 3), np.uint8)))
