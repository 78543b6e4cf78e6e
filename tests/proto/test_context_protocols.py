"""Each context of ours against the protocols that it satisfies: every member, its signature, its type, what it does."""

from __future__ import annotations

import functools
import inspect
import types
import typing

import numpy as np
import pytest

import tensoryard.proto as proto
from tensoryard.proto.context import BaseContext, GenerationStatus
from tensoryard.proto.embeddings import EmbeddingsContext
from tensoryard.proto.one_shot import OneShotContext, new_context
from tensoryard.proto.pixels import PixelGenerationContext
from tensoryard.proto.text_protocol import TextGenerationContext
from tensoryard.proto.vision import VLMTextGenerationContext

from .contract_facts import signature

PROTOCOLS = [BaseContext, TextGenerationContext, VLMTextGenerationContext, EmbeddingsContext, PixelGenerationContext]


def one_shot(request):
    return new_context(request, options=None, allocate=np.empty, tokenize=lambda text: list(text.encode()))


def text_context(kind, **more):
    return kind(tokens=proto.TokenBuffer(np.arange(5)), max_length=9, **more)


def vision_context():
    images = [proto.ImageMetadata(start_idx=1, end_idx=3, pixel_values=np.zeros(4, np.float32))]
    return text_context(proto.TextAndVisionContext, images=images, vision_token_ids=[1, 2])


#: How to make each context, and the protocols that it satisfies.
CONTEXTS = {
    "TextContext": (lambda: text_context(proto.TextContext), {TextGenerationContext}),
    "TextAndVisionContext": (vision_context, {TextGenerationContext, VLMTextGenerationContext}),
    "EmbeddingsRequestContext": (
        lambda: one_shot(proto.EmbeddingsRequest(model="m", input=[[1, 2], [3]])),
        {EmbeddingsContext},
    ),
    "EmbeddingsRequestContext of a text": (
        lambda: one_shot(proto.EmbeddingsRequest(model="m", input="a")),
        {EmbeddingsContext},
    ),
    "PixelContext": (
        lambda: one_shot(proto.PixelGenerationRequest(model="m", prompt="a cat")),
        {PixelGenerationContext, EmbeddingsContext},
    ),
    "PixelContext of all fields": (
        lambda: one_shot(
            proto.PixelGenerationRequest(
                model="m",
                prompt="a",
                height=np.int64(64),
                width=8,
                num_inference_steps=np.uint8(4),
                guidance_scale=1,
                num_images_per_prompt=np.int32(2),
                seed=np.uint64(2**63),
            )
        ),
        {PixelGenerationContext, EmbeddingsContext},
    ),
    "AudioContext": (lambda: one_shot(proto.AudioGenerationRequest(model="m", input="a")), {EmbeddingsContext}),
    "OneShotContext": (
        lambda: OneShotContext(request_id=proto.RequestID(), model_name="m"),
        {EmbeddingsContext},
    ),
}
PAIRS = [
    pytest.param(make, protocol, id=f"{name}-{protocol.__name__}")
    for name, (make, satisfied) in CONTEXTS.items()
    for protocol in sorted({BaseContext, *satisfied}, key=PROTOCOLS.index)
    if name != "OneShotContext" or protocol is BaseContext
]


def members(protocol):
    """Every public member of a protocol, and the class of it that declares the member."""
    found = {}
    for base in protocol.__mro__:
        for name in (*vars(base), *inspect.get_annotations(base)):
            if not name.startswith("_"):
                found.setdefault(name, base)
    return found


def declared(protocol, name):
    """The type that a protocol says a member has; None for a method."""
    base = members(protocol)[name]
    member = vars(base).get(name)
    if isinstance(member, property):
        return hints(member.fget)["return"]
    return None if inspect.isfunction(member) else hints(base)[name]


def hints(value):
    """Its annotations, also of names that modules import for them alone."""
    return typing.get_type_hints(value, {**vars(inspect.getmodule(value)), **vars(proto), "np": np})


def fits(value, kind):
    """Whether a value is of an annotated type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is typing.Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, argument) for argument in arguments)
    if origin is np.ndarray:
        return type(value) is np.ndarray and np.issubdtype(value.dtype, typing.get_args(arguments[1])[0])
    if origin is list:
        return isinstance(value, list) and all(fits(item, arguments[0]) for item in value)
    if kind in (float, int):
        return type(value) is kind
    return isinstance(value, kind)


@pytest.mark.parametrize(("make", "protocol"), PAIRS)
def test_a_context_has_what_its_protocol_says(make, protocol):
    """Each member is there: a method with the same parameters, data with a value of the declared type."""
    context = make()
    assert isinstance(context, protocol)
    for name in members(protocol):
        kind = declared(protocol, name)
        if kind is None:
            ours = getattr(type(context), name)
            theirs = getattr(protocol, name)
            assert signature(ours, skip_first=True) == signature(theirs, skip_first=True), name
        else:
            assert fits(getattr(context, name), kind), f"{name} is {getattr(context, name)!r}, not a {kind}"


@pytest.mark.parametrize(("make", "protocol"), PAIRS)
def test_data_can_be_set_where_the_protocol_lets_it_be(make, protocol):
    """A plain annotation in the protocol may be assigned; what is read again is what was assigned."""
    context = make()
    for name, base in members(protocol).items():
        if name in inspect.get_annotations(base) and name != "status":
            value = getattr(context, name)
            setattr(context, name, value)
            assert getattr(context, name) is value


@pytest.mark.parametrize("make", [make for make, _ in CONTEXTS.values()], ids=list(CONTEXTS))
def test_the_status_says_whether_a_request_has_ended(make):
    """Active at first; done from the moment that the status says so, for whatever reason."""
    for status in GenerationStatus:
        context = make()
        assert (context.status, context.is_done) == (GenerationStatus.ACTIVE, False)
        context.status = status
        assert (context.status, context.is_done, context.cancelled) == (
            status,
            status.is_done,
            status is GenerationStatus.CANCELLED,
        )


@pytest.mark.parametrize("name", [name for name in CONTEXTS if name != "OneShotContext"])
def test_tokens_keep_their_state(name):
    """The buffer is one object, which the scheduler moves on."""
    context = CONTEXTS[name][0]()
    first = int(context.tokens[0])
    context.tokens.advance_with_token(7)
    assert (context.tokens.generated.tolist(), int(context.tokens[0])) == ([7], first)


@pytest.mark.parametrize("name", CONTEXTS)
def test_a_context_satisfies_nothing_else(name):
    """`isinstance` tells contexts apart, also before any of their members was read."""
    make, satisfied = CONTEXTS[name]
    context = make()
    assert {protocol for protocol in PROTOCOLS if isinstance(context, protocol)} >= {BaseContext, *satisfied}
    strangers = {TextGenerationContext, VLMTextGenerationContext, PixelGenerationContext} - satisfied
    assert not {protocol for protocol in strangers if isinstance(context, protocol)}
    assert "latents" not in vars(context)


def watched(protocol, ran, without=""):
    """A class with every member of a protocol, each of which tells when it runs."""
    body = {
        name: property(functools.partial(lambda _self, name: ran.append(name), name=name))
        for name in members(protocol)
        if name != without
    }
    return type("Watched", (), body)


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.__name__)
def test_weakness_28_no_member_runs(protocol):
    """The check of any protocol looks for names: no property of the object runs."""
    ran = []
    assert isinstance(watched(protocol, ran)(), protocol)
    assert ran == []


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.__name__)
def test_every_member_counts(protocol):
    """Without any one of its members an object does not satisfy the protocol."""
    for name in members(protocol):
        assert not isinstance(watched(protocol, [], without=name)(), protocol), name


def test_a_class_that_inherits_a_protocol_satisfies_it():
    """As of any protocol: what the class says it is needs no look."""

    class Own(BaseContext):
        @property
        def request_id(self):
            return proto.RequestID("r")

    assert isinstance(Own(), BaseContext)
    assert not isinstance(Own(), EmbeddingsContext)
