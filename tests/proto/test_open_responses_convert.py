"""Open Responses requests become requests of ours, and our outputs, whole, cut short or failed, become responses."""

from __future__ import annotations

import base64
import builtins
import io
import json
import struct
import wave
import zlib

import msgspec
import numpy as np
import pytest

from tensoryard import errors
from tensoryard.errors import InvalidRequest
from tensoryard.proto.audio import AudioGenerationMetadata, AudioGenerationOutput, AudioGenerationRequest
from tensoryard.proto.context import GenerationStatus
from tensoryard.proto.generation import GenerationOutput, OutputImageContent, OutputTextContent
from tensoryard.proto.open_responses import OpenResponsesRequest
from tensoryard.proto.open_responses_body import OpenResponsesRequestBody
from tensoryard.proto.open_responses_convert import to_failed_response, to_native, to_response
from tensoryard.proto.open_responses_media import MAX_IMAGE_PIXELS, image_from_bytes
from tensoryard.proto.open_responses_output import ResponseResource
from tensoryard.proto.pipeline import PipelineTask
from tensoryard.proto.pixels import PixelGenerationRequest
from tensoryard.proto.request import RequestID
from tensoryard.proto.text_output import TextGenerationOutput
from tensoryard.proto.text_request import TextGenerationRequest
from tensoryard.proto.tokens import LogProbabilities
from tensoryard.proto.tool_parsing import ParsedToolCall, ParsedToolCallDelta

TEXT, PIXEL, AUDIO = PipelineTask.TEXT_GENERATION, PipelineTask.PIXEL_GENERATION, PipelineTask.AUDIO_GENERATION
ACTIVE, END = GenerationStatus.ACTIVE, GenerationStatus.END_OF_SEQUENCE
FULL, CANCELLED = GenerationStatus.MAXIMUM_LENGTH, GenerationStatus.CANCELLED
PIXELS = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
ID = RequestID("r")


def request_of(**fields):
    body = OpenResponsesRequestBody(**{"model": "m", "input": "a cat", **fields})
    return OpenResponsesRequest(request_id=ID, body=body)


def image_uri(array, kind="png"):
    data = OutputImageContent.from_numpy(array, kind).image_data
    return f"data:image/{kind};base64,{data}"


def response_json(response):
    return json.loads(msgspec.json.encode(response))


# Requests


@pytest.mark.parametrize(
    ("task", "kind"),
    [(TEXT, TextGenerationRequest), (PIXEL, PixelGenerationRequest), (AUDIO, AudioGenerationRequest)],
)
def test_the_task_says_which_request(task, kind):
    """One body becomes the request of whatever task its model serves, under the same id."""
    found = to_native(request_of(), task)
    assert type(found) is kind
    assert found.request_id == ID


@pytest.mark.parametrize("task", [PipelineTask.EMBEDDINGS_GENERATION, PipelineTask.UNDEFINED])
def test_other_tasks(task):
    """A task without Open Responses is refused, and the tasks that have it are named."""
    with pytest.raises(InvalidRequest, match=f"text_generation.*{task.value}"):
        to_native(request_of(), task)


def test_an_image_from_a_text():
    """The prompt, and nothing that the caller did not say."""
    found = to_native(request_of(), PIXEL)
    expected = PixelGenerationRequest(request_id=ID, model="m", prompt="a cat")
    assert found == expected


def test_image_options():
    """Fields of the request where it has them; what only a pipeline knows becomes its options, if not the default."""
    image = {
        "negative_prompt": "dogs",
        "width": 256,
        "height": 128,
        "steps": 4,
        "guidance_scale": 1.0,
        "num_images": 3,
        "strength": 0.9,
        "secondary_prompt": "fur",
    }
    found = to_native(request_of(seed=5, provider_options={"image": image}), PIXEL)
    assert (found.negative_prompt, found.width, found.height, found.num_inference_steps) == ("dogs", 256, 128, 4)
    assert (found.guidance_scale, found.num_images_per_prompt, found.seed) == (1.0, 3, 5)
    assert found.options == {"strength": 0.9, "secondary_prompt": "fur"}
    assert to_native(request_of(n=2), PIXEL).num_images_per_prompt == 2
    assert to_native(request_of(provider_options={}), PIXEL).options == {}


def test_input_images_are_decoded():
    """The pixels that were sent are the pixels that arrive, in order, beside the texts of the message."""
    pytest.importorskip("PIL")
    grey = PIXELS[:, :, 0].copy()
    clear = np.dstack([PIXELS, PIXELS[:, :, :1]])
    parts = [
        {"type": "input_text", "text": "brighter"},
        {"type": "input_image", "image_url": image_uri(PIXELS)},
        {"type": "input_image", "image_url": image_uri(grey)},
        {"type": "input_image", "image_url": image_uri(clear)},
        {"type": "input_text", "text": "please"},
    ]
    found = to_native(request_of(input=[{"content": parts}]), PIXEL)
    assert found.prompt == "brighter\nplease"
    for sent, arrived in zip((PIXELS, grey, clear), found.images, strict=True):
        assert arrived.dtype == np.uint8
        np.testing.assert_array_equal(arrived, sent)


def test_images_are_turned_upright():
    """A camera's note of how it was held is applied, once."""
    image = pytest.importorskip("PIL.Image")
    buffer = io.BytesIO()
    exif = image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.fromarray(PIXELS).save(buffer, "png", exif=exif)
    np.testing.assert_array_equal(image_from_bytes(buffer.getvalue()), np.rot90(PIXELS, -1))


def test_a_palette_becomes_colours():
    """Any mode arrives as grey, RGB or RGBA."""
    image = pytest.importorskip("PIL.Image")
    buffer = io.BytesIO()
    image.fromarray(PIXELS).convert("P", palette=image.Palette.ADAPTIVE).save(buffer, "png")
    assert image_from_bytes(buffer.getvalue()).shape == (2, 4, 3)


def png_header(width, height):
    """A PNG that names a size and holds no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
        + struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [8193, 10_000, 60_000])
def test_a_small_file_of_a_huge_image(side):
    """The size in its header is looked at before anything is decoded."""
    pytest.importorskip("PIL")
    assert side**2 > MAX_IMAGE_PIXELS
    with pytest.raises(InvalidRequest, match="image"):
        image_from_bytes(png_header(side, side))


def test_all_images_of_a_request_share_one_bound(monkeypatch):
    """Many images cannot take more memory than one."""
    pytest.importorskip("PIL")
    monkeypatch.setattr("tensoryard.proto.open_responses_convert.MAX_IMAGE_PIXELS", 15)
    part = {"type": "input_image", "image_url": image_uri(PIXELS)}
    assert len(to_native(request_of(input=[{"content": [part]}]), PIXEL).images) == 1
    with pytest.raises(InvalidRequest, match="at most 7 are read"):
        to_native(request_of(input=[{"content": [part, part]}]), PIXEL)


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", png_header(2, 2), b"not an image at all"])
def test_what_is_no_image(data):
    """Bytes that no image library reads are an input error."""
    pytest.importorskip("PIL")
    with pytest.raises(InvalidRequest, match="image"):
        image_from_bytes(data)


def test_without_pillow(monkeypatch):
    """Encoded images are refused with the reason where nothing can decode them."""
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == "PIL":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InvalidRequest, match="Pillow"):
        image_from_bytes(b"")


def test_sound():
    """What is to be spoken, how tokens are chosen, and the audio options; in one piece."""
    audio = {"lyrics": "la", "audio_duration": 2.5, "audio_format": "wav"}
    found = to_native(request_of(temperature=0.5, seed=3, provider_options={"audio": audio}), AUDIO)
    assert (found.input, found.streaming) == ("a cat", False)
    assert (found.sampling_params.temperature, found.sampling_params.seed) == (0.5, 3)
    assert found.options == {"lyrics": "la", "audio_duration": 2.5}
    parts = [{"type": "input_text", "text": "one"}, {"type": "input_text", "text": "two"}]
    assert to_native(request_of(input=[{"content": parts}]), AUDIO).input == "one\ntwo"


@pytest.mark.parametrize(
    ("task", "fields"),
    [
        (PIXEL, {"modalities": ["text"]}),
        (PIXEL, {"temperature": 0.0}),
        (PIXEL, {"max_output_tokens": 5}),
        (PIXEL, {"tools": [{"name": "add"}]}),
        (PIXEL, {"response_format": {"type": "json_object"}}),
        (PIXEL, {"provider_options": {"image": {"response_format": "url"}}}),
        (PIXEL, {"provider_options": {"image": {"num_images": 3}}, "n": 2}),
        (PIXEL, {"provider_options": {"video": {"num_frames": 5}}}),
        (PIXEL, {"provider_options": {"max": {"target_endpoint": "tcp://host:1"}}}),
        (PIXEL, {"input": []}),
        (PIXEL, {"input": ""}),
        (PIXEL, {"input": [{"role": "system", "content": "a cat"}]}),
        (PIXEL, {"input": [{"content": [{"type": "input_video", "video_url": "data:video/mp4;base64,AAAA"}]}]}),
        (AUDIO, {"modalities": ["image"]}),
        (AUDIO, {"top_logprobs": 0}),
        (AUDIO, {"reasoning": {"effort": "low"}}),
        (AUDIO, {"n": 2}),
        (AUDIO, {"input": "x" * 5000}),
        (AUDIO, {"input": [{"content": [{"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]}]}),
    ],
)
def test_what_a_task_cannot_do_is_refused(task, fields):
    """What was asked for and would change the answer is an input error, never dropped in silence."""
    with pytest.raises(InvalidRequest):
        to_native(request_of(**fields), task)


def test_what_asks_for_nothing_is_taken():
    """False and empty lists are no wishes."""
    assert to_native(request_of(logprobs=False, tools=[], logit_bias={}, store=True), PIXEL).prompt == "a cat"


# Responses


def text_output(tokens, status=END):
    return TextGenerationOutput(request_id=ID, tokens=tokens, final_status=status)


def test_text():
    """The text, the thinking before it, and how many tokens went in and came out."""
    response = to_response(
        request_of(), text_output([1, 2, 3]), text="hi", reasoning="hm", input_tokens=4, created_at=5
    )
    found = response_json(response)
    assert (found["status"], found["error"], found["created_at"]) == ("completed", None, 5)
    assert found["usage"] == {"input_tokens": 4, "output_tokens": 3, "total_tokens": 7}
    assert [part["type"] for part in found["output"][0]["content"]] == ["reasoning_summary", "output_text"]
    assert found["output"][0]["content"][1]["text"] == "hi"


def test_what_the_worker_told_goes_in_by_itself():
    """Text, thinking, calls, and the log probabilities of tokens that are text: pieces of characters as bytes."""
    told = [
        LogProbabilities([-0.5], [{7: -0.5, 8: -1.5}], [7], {7: b"h", 8: "é".encode()[:1]}),
        LogProbabilities([-0.1], [{2: -0.1}], [2]),
    ]
    output = TextGenerationOutput(
        request_id=ID, tokens=[7, 2], final_status=END, text="h", reasoning="hm", log_probabilities=told
    )
    thought, part = response_json(to_response(request_of(), output))["output"][0]["content"]
    assert (thought["text"], part["text"]) == ("hm", "h")
    (token,) = part["logprobs"]
    assert (token["token"], token["bytes"], token["logprob"]) == ("h", [104], -0.5)
    assert [(each["token"], each["bytes"]) for each in token["top_logprobs"]] == [("h", [104]), ("\ufffd", [195])]
    called = TextGenerationOutput(
        request_id=ID,
        tokens=[7],
        final_status=END,
        tool_calls=[ParsedToolCallDelta(0, "call_1", "add", "{}")],
        log_probabilities=told[:1],
    )
    (item,) = response_json(to_response(request_of(), called))["output"]
    assert (item["type"], item["call_id"], item["name"]) == ("function_call", "call_1", "add")


def test_calls():
    """Each call is an item of its own, named by the id under which its result is to come back."""
    calls = [ParsedToolCall("call_1", "add", '{"a":1}'), ParsedToolCall("call_2", "add", "{}")]
    found = response_json(to_response(request_of(), text_output([1]), calls=calls))
    assert [item["type"] for item in found["output"]] == ["function_call", "function_call"]
    assert [(item["call_id"], item["name"], item["arguments"]) for item in found["output"]] == [
        ("call_1", "add", '{"a":1}'),
        ("call_2", "add", "{}"),
    ]
    assert len({item["id"] for item in found["output"]}) == 2
    beside = response_json(to_response(request_of(), text_output([1]), text="wait", calls=calls))
    assert [item["type"] for item in beside["output"]] == ["message", "function_call", "function_call"]


@pytest.mark.parametrize(
    ("status", "said", "reason"),
    [
        (ACTIVE, "in_progress", None),
        (END, "completed", None),
        (FULL, "incomplete", "max_output_tokens"),
        (CANCELLED, "incomplete", "cancelled"),
    ],
)
def test_weakness_42_cut_short_is_not_completed(status, said, reason):
    """Of every task only what ended by itself is completed, and the response says why it is not."""
    audio = AudioGenerationOutput(
        status, 1, np.zeros(4, np.float32), metadata=AudioGenerationMetadata(sample_rate=8000)
    )
    image = GenerationOutput(request_id=ID, final_status=status, output=[])
    for output in (text_output([1], status), audio, image):
        response = to_response(request_of(), output)
        assert response.status.value == response.output[0].status.value == said
        assert (response.incomplete_details and response.incomplete_details.reason) == reason


def test_weakness_42_a_failure_says_so():
    """A request that failed has a response of status failed, with the error's code and text and no output."""
    response = to_failed_response(request_of(), errors.WorkerLost("the worker is gone"), created_at=5)
    found = response_json(response)
    assert (found["id"], found["model"], found["status"], found["output"]) == ("resp_r", "m", "failed", [])
    assert found["error"] == {"code": "worker_lost", "message": "the worker is gone"}
    assert response_json(to_failed_response(request_of(), KeyError("x")))["error"]["code"] == "failed"


def test_images_come_back_in_the_format_asked_for():
    """Raw pixels are encoded as the options say; a part that names its own format keeps it."""
    pytest.importorskip("PIL")
    output = GenerationOutput(
        request_id=ID,
        final_status=END,
        output=[OutputImageContent(image=PIXELS), OutputImageContent(image=PIXELS, format="png")],
    )
    asked = request_of(provider_options={"image": {"output_format": "webp"}})
    one, two = response_json(to_response(asked, output))["output"][0]["content"]
    assert (one["format"], two["format"]) == ("webp", "png")
    np.testing.assert_array_equal(image_from_bytes(base64.b64decode(two["image_data"])), PIXELS)
    assert image_from_bytes(base64.b64decode(one["image_data"])).shape == PIXELS.shape
    default = response_json(to_response(request_of(), output))["output"][0]["content"][0]
    assert default["format"] == "jpeg"


@pytest.mark.parametrize("shape", [(8,), (2, 8)])
def test_sound_comes_back_as_wav(shape):
    """Samples of one channel or several, at the rate that the pipeline says."""
    samples = np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    output = AudioGenerationOutput(END, 1, samples, metadata=AudioGenerationMetadata(sample_rate=8000))
    (part,) = response_json(to_response(request_of(), output))["output"][0]["content"]
    with wave.open(io.BytesIO(base64.b64decode(part["audio_data"]))) as file:
        assert (file.getnchannels(), file.getframerate(), file.getnframes()) == (len(shape), 8000, 8)


def test_outputs_that_cannot_be_a_response():
    """Sound at no known rate, and the output of another request."""
    silent = AudioGenerationOutput(END, 1, np.zeros(4, np.float32))
    with pytest.raises(InvalidRequest, match="sample rate"):
        to_response(request_of(), silent)
    other = GenerationOutput(request_id=RequestID("other"), final_status=END, output=[OutputTextContent(text="x")])
    with pytest.raises(InvalidRequest, match="other"):
        to_response(request_of(), other)


def test_a_response_can_be_read_back():
    """A client decodes the JSON into the same response, calls and failures included."""
    calls = [ParsedToolCall("call_1", "add", "{}")]
    for response in (
        to_response(request_of(), text_output([1]), text="x", calls=calls),
        to_failed_response(request_of(), errors.Overloaded("later")),
    ):
        assert msgspec.json.decode(msgspec.json.encode(response), type=ResponseResource) == response
