"""The contexts that one-shot pipelines receive, made from each kind of request."""

from __future__ import annotations

import numpy as np
import pytest

from tensoryard.errors import InvalidRequest, PoolExhausted, WrongTask
from tensoryard.proto.audio import AudioGenerationRequest
from tensoryard.proto.context import BaseContext, GenerationStatus
from tensoryard.proto.embeddings import EmbeddingsRequest
from tensoryard.proto.one_shot import AudioContext, EmbeddingsRequestContext, OneShotContext, PixelContext, new_context
from tensoryard.proto.pixels import PixelGenerationRequest
from tensoryard.proto.request import RequestID
from tensoryard.proto.sampling import SamplingParams

ID = RequestID("r")
ARRAY = np.arange(6, dtype=np.float32)
REQUESTS = [
    EmbeddingsRequest(request_id=ID, model="m", input="a"),
    PixelGenerationRequest(request_id=ID, model="m", prompt="a"),
    AudioGenerationRequest(request_id=ID, model="m", input="a"),
]


def context_of(request, options=None, allocate=np.empty, **how):
    return new_context(request, options=options, allocate=allocate, **how)


def letters(text):
    """A tokenizer: the code of each letter."""
    return [ord(letter) for letter in text]


def embeddings_of(value):
    return context_of(EmbeddingsRequest(request_id=ID, model="m", input=value))


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: type(request).__name__)
def test_what_every_context_knows(request_):
    """Id, model, options and status are there, and it is a context for any scheduler."""
    context = context_of(request_, options={"k": 1})
    assert isinstance(context, BaseContext)
    assert isinstance(context, OneShotContext)
    assert (context.request_id, context.model_name, context.options) == (ID, "m", {"k": 1})
    assert (context.status, context.is_done, context.cancelled) == (GenerationStatus.ACTIVE, False, False)
    assert context_of(request_).options == {}


def test_options_of_a_type_of_their_own():
    """Options stay the object that the worker made of them, also one that is false."""

    class Options:
        def __bool__(self):
            return False

    options = Options()
    assert context_of(REQUESTS[0], options=options).options is options


@pytest.mark.parametrize(
    ("status", "done", "cancelled"),
    [
        (GenerationStatus.ACTIVE, False, False),
        (GenerationStatus.END_OF_SEQUENCE, True, False),
        (GenerationStatus.MAXIMUM_LENGTH, True, False),
        (GenerationStatus.CANCELLED, True, True),
    ],
)
def test_status(status, done, cancelled):
    """A context is done in every status but ACTIVE, and cancelled in one."""
    context = context_of(REQUESTS[0])
    context.status = status
    assert (context.is_done, context.cancelled) == (done, cancelled)


def test_embeddings_input_lies_in_one_place():
    """Of texts, token ids and arrays exactly one is filled, in order, single inputs as one of one."""
    expected = [
        ("a", ("a",), (), 0),
        (["a", "b"], ("a", "b"), (), 0),
        ([1, 2], (), ((1, 2),), 0),
        ([[1, 2], [3]], (), ((1, 2), (3,)), 0),
        (ARRAY, (), (), 1),
        ([ARRAY, ARRAY], (), (), 2),
    ]
    for value, texts, token_ids, arrays in expected:
        context = embeddings_of(value)
        assert isinstance(context, EmbeddingsRequestContext)
        assert (context.texts, context.token_ids, len(context.arrays)) == (texts, token_ids, arrays)
        assert all(array is ARRAY for array in context.arrays)


def test_tokens_of_an_embeddings_request():
    """The first list of ids is there as a TokenBuffer that keeps its state."""
    context = embeddings_of([[5, 6], [7]])
    assert context.tokens.all.tolist() == [5, 6]
    context.tokens.skip_processing(1)
    assert context.tokens.processed_length == 1


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (EmbeddingsRequest(model="m", input="abc"), "abc"),
        (EmbeddingsRequest(model="m", input=["abc", "d"]), "abc"),
        (EmbeddingsRequest(model="m", input=[97, 98]), "ab"),
        (PixelGenerationRequest(model="m", prompt="a cat"), "a cat"),
        (AudioGenerationRequest(model="m", input="hello"), "hello"),
        (AudioGenerationRequest(model="m", input="hello", prompt=[97]), "a"),
    ],
)
def test_the_pipelines_tokenizer_makes_tokens(request_, expected):
    """Of texts, once, and only when asked for; ids that the request gives are taken as they are."""
    asked = []
    context = context_of(request_, tokenize=lambda text: asked.append(text) or np.array(letters(text)))
    assert asked == []
    assert context.tokens.all.tolist() == letters(expected)
    assert context.tokens is context.tokens
    assert len(asked) <= 1


@pytest.mark.parametrize(
    "request_",
    [
        EmbeddingsRequest(model="m", input="a"),
        EmbeddingsRequest(model="m", input=["a", "b"]),
        EmbeddingsRequest(model="m", input=ARRAY),
        PixelGenerationRequest(model="m", prompt="a"),
        AudioGenerationRequest(model="m", input="a"),
    ],
)
def test_a_request_without_tokens(request_):
    """Asking for tokens that nobody can make is the caller's error, which names the request."""
    context = context_of(request_)
    with pytest.raises(InvalidRequest, match=f"{request_.request_id} has no token ids"):
        _ = context.tokens
    assert not hasattr(context, "tokens")


def test_nothing_to_tokenize():
    """Neither arrays nor an empty prompt become tokens, whatever the tokenizer."""
    for request in (
        EmbeddingsRequest(model="m", input=ARRAY),
        PixelGenerationRequest(model="m", images=[ARRAY]),
        AudioGenerationRequest(model="m", prompt=[]),
    ):
        with pytest.raises(InvalidRequest, match="no token ids"):
            _ = context_of(request, tokenize=letters).tokens


def test_pixels():
    """A pixel context carries images, prompts, sizes and seed of its request."""
    request = PixelGenerationRequest(
        request_id=ID,
        model="m",
        prompt="a cat",
        negative_prompt="a dog",
        images=[ARRAY, ARRAY],
        height=8,
        width=16,
        num_inference_steps=4,
        guidance_scale=1.5,
        num_images_per_prompt=2,
        seed=7,
    )
    context = context_of(request)
    assert isinstance(context, PixelContext)
    assert [array is ARRAY for array in context.arrays] == [True, True]
    for name in (
        "prompt",
        "negative_prompt",
        "height",
        "width",
        "num_inference_steps",
        "guidance_scale",
        "num_images_per_prompt",
        "seed",
    ):
        assert getattr(context, name) == getattr(request, name), name


def pixels_of(**fields):
    return context_of(PixelGenerationRequest(**{"request_id": ID, "model": "m", "prompt": "a", **fields}))


def test_sizes_left_open():
    """Sizes and steps are numbers even where the caller said nothing; the request tells what was said."""
    context = pixels_of(width=64)
    assert (context.height, context.width, context.num_inference_steps) == (1024, 64, 50)
    assert (context.request.height, context.request.width, context.request.num_inference_steps) == (None, 64, None)


def test_latents():
    """Normal noise for each image, of the size that autoencoders make of the pixels; drawn once."""
    context = pixels_of(height=64, width=100, num_images_per_prompt=3)
    assert (context.latents.shape, context.latents.dtype) == ((3, 4, 8, 13), np.float32)
    assert context.latents is context.latents
    assert abs(context.latents.mean()) < 0.2
    assert 0.8 < context.latents.std() < 1.2
    context.latents = ARRAY
    assert context.latents is ARRAY


@pytest.mark.parametrize("seed", [0, 7, -1, 2**64 - 1, 10**30])
def test_noise_follows_the_seed(seed):
    """The same seed, or without one the same request, gives the same noise on every worker; others give other noise."""
    shape = (2, 16, 4, 4)
    by_seed = [pixels_of(request_id=RequestID(name), seed=seed).noise(shape) for name in "ab"]
    np.testing.assert_array_equal(*by_seed)
    by_id = [pixels_of(request_id=RequestID(name)).noise(shape) for name in "aab"]
    np.testing.assert_array_equal(*by_id[:2])
    assert not np.array_equal(*by_id[1:])
    assert not np.array_equal(by_seed[0], pixels_of(seed=1).noise(shape))


def test_latents_have_a_bound():
    """A caller's sizes cannot take the worker's memory."""
    for fields in ({"height": 2**40}, {"width": 2**40, "height": 2**40}, {"num_images_per_prompt": 10**6}):
        with pytest.raises(InvalidRequest, match="latents of shape"):
            _ = pixels_of(**fields).latents


def test_audio():
    """An audio context carries what its request says, and has sent nothing yet."""
    params, tail = SamplingParams(seed=1), np.arange(3)
    request = AudioGenerationRequest(
        request_id=ID,
        model="m",
        input="hello",
        audio_prompt_tokens=[1, 2],
        audio_prompt_transcription="hi",
        sampling_params=params,
        streaming=False,
        buffer_speech_tokens=tail,
    )
    context = context_of(request)
    assert isinstance(context, AudioContext)
    assert (context.text, context.streaming, context.chunks_sent) == ("hello", False, 0)
    assert (context.audio_prompt_tokens, context.audio_prompt_transcription) == ((1, 2), "hi")
    assert context.sampling_params is params
    assert context.buffer_speech_tokens is tail
    assert context.arrays == ()


@pytest.mark.parametrize("prompt", ["a prompt", [1, 2, 3], ""])
def test_a_prompt_bypasses_the_text(prompt):
    """Where a request has a prompt, that is what is spoken, whatever its input says."""
    assert context_of(AudioGenerationRequest(model="m", prompt=prompt)).text == prompt
    assert context_of(AudioGenerationRequest(model="m", input="text", prompt=prompt)).text == prompt


def test_allocate_asks_the_workers_pool():
    """Shapes may be an int or a sequence, float32 is the default, and the pool's error comes through."""
    asked = []

    def allocate(shape, dtype):
        asked.append((shape, dtype))
        return np.empty(shape, dtype)

    context = context_of(REQUESTS[1], allocate=allocate)
    assert context.allocate(3).shape == (3,)
    assert context.allocate([2, 3], np.uint8).dtype == np.uint8
    assert context.allocate(()).shape == ()
    assert asked == [((3,), np.float32), ((2, 3), np.uint8), ((), np.float32)]

    def full(shape, dtype):
        raise PoolExhausted("full")

    with pytest.raises(PoolExhausted):
        context_of(REQUESTS[1], allocate=full).allocate(3)


def test_allocate_without_a_pool():
    """A context made by hand, as in a test of a pipeline, allocates plain memory."""
    array = OneShotContext(request_id=ID, model_name="m").allocate((2, 2))
    array[:] = 1
    assert array.sum() == 4


def test_other_requests_have_no_one_shot_context():
    """An object that is no one-shot request is WrongTask, which names its type."""
    for value, name in [("a text", "str"), (None, "NoneType"), (ID, "RequestID")]:
        with pytest.raises(WrongTask, match=name):
            context_of(value)
