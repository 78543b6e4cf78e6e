"""Provider options: their defaults and bounds, and no key that is not known."""

from __future__ import annotations

import pytest

from tensoryard.errors import InvalidRequest
from tensoryard.proto.open_responses_enums import GeneratedMediaResponseFormat
from tensoryard.proto.open_responses_options import (
    AudioProviderOptions,
    ImageProviderOptions,
    MaxProviderOptions,
    ProviderOptions,
    VideoProviderOptions,
)


def test_image_defaults():
    """What a caller who says nothing gets."""
    image = ImageProviderOptions()
    assert (image.guidance_scale, image.true_cfg_scale, image.num_images, image.strength) == (3.5, 1.0, 1, 0.6)
    assert (image.cfg_normalization, image.cfg_truncation, image.output_format) == (False, 1.0, "jpeg")
    assert image.response_format is GeneratedMediaResponseFormat.B64_JSON
    assert (image.width, image.height, image.steps) == (None, None, None)


def test_each_kind_may_be_left_out():
    """Given without a block, that block is None; videos come back as addresses unless asked otherwise."""
    options = ProviderOptions(video={})
    assert (options.max, options.image, options.audio) == (None, None, None)
    assert options.video.response_format is GeneratedMediaResponseFormat.URL


def test_audio_format_is_trimmed():
    """In any case, with blanks around."""
    assert AudioProviderOptions(audio_format=" WAV ").audio_format == "wav"


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (ImageProviderOptions, {"width": 127}),
        (ImageProviderOptions, {"height": 132}),
        (ImageProviderOptions, {"steps": 0}),
        (ImageProviderOptions, {"strength": 1.5}),
        (ImageProviderOptions, {"cfg_truncation": 0}),
        (VideoProviderOptions, {"num_frames": 0}),
        (VideoProviderOptions, {"guidance_scale_2": 0}),
        (AudioProviderOptions, {"audio_duration": 0}),
        (AudioProviderOptions, {"audio_format": "mp3"}),
        (MaxProviderOptions, {"target_endpoint": 5}),
    ],
)
def test_bounds(kind, fields):
    """A value outside its bounds is an input error that names the field."""
    with pytest.raises(InvalidRequest, match=next(iter(fields))):
        kind(**fields)


@pytest.mark.parametrize("block", ["max", "image", "video", "audio"])
def test_unknown_keys_are_errors_at_every_level(block):
    """A misspelt option is never silently ignored."""
    with pytest.raises(InvalidRequest, match="colour"):
        ProviderOptions(**{block: {"colour": 1}})
