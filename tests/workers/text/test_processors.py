"""Logits processors by name: found, checked and refused."""

from __future__ import annotations

import sys

import msgspec
import numpy as np
import pytest

from tensoryard.errors import ConfigError, InvalidRequest
from tensoryard.proto.codec import decode_body, encode_body
from tensoryard.proto.logits import NamedProcessor
from tensoryard.proto.sampling import SamplingParams
from tensoryard.workers.text import processors
from tensoryard.workers.text.processors import (
    Setting,
    batch_logits_processor,
    deployment_processors,
    known_processors,
    logits_processor,
    request_processors,
)
from tensoryard.workers.text.sampling import SamplingState

from .support import CPU, context, sampler

SETTING = Setting(CPU, 50)


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """What a test registers is gone behind it."""
    known_processors()
    monkeypatch.setattr(processors, "_KINDS", dict(processors._KINDS))
    yield
    processors._declared.cache_clear()


class Options(msgspec.Struct):
    by: float
    times: int = 1


def make(*asked):
    named = [NamedProcessor(name, options) for name, options in asked]
    return request_processors(context(named_processors=named), SETTING)


def test_one_of_ones_own_is_found_by_its_name():
    """Registered by a decorator, made for each request with its options, in the request's order."""
    made = []

    @logits_processor("shift", Options)
    def shift(options, setting, request):
        made.append((options, setting, request))
        return lambda inputs: None

    asked = [NamedProcessor("shift", {"by": 2}), {"name": "shift", "options": {"by": 1.5, "times": 3}}]
    request = context(named_processors=asked)
    assert len(request_processors(request, SETTING)) == 2
    assert made == [(Options(2), SETTING, request), (Options(1.5, 3), SETTING, request)]
    assert "shift" in known_processors()


def test_names_are_taken_once():
    """Another function under a name that is there is a mistake; loading the same module again is none."""
    for _ in range(2):

        @logits_processor("shift", Options)
        def shift(options, setting, request):
            return None

    with pytest.raises(ConfigError, match="'shift' already"):

        @batch_logits_processor("shift", Options)
        def other(options, setting):
            return None


def test_other_packages_declare_theirs(tmp_path, monkeypatch):
    """An entry point is loaded when its name is asked for, and not before."""
    (tmp_path / "their_processors.py").write_text(
        "import msgspec\n"
        "from tensoryard.workers.text.processors import logits_processor\n"
        "class Options(msgspec.Struct):\n    word: str\n"
        "@logits_processor('theirs', Options)\n"
        "def theirs(options, setting, context):\n    return options.word.split\n",
    )
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{processors.ENTRY_POINTS}]\ntheirs = their_processors:theirs\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    processors._declared.cache_clear()
    assert "theirs" in known_processors()
    assert "their_processors" not in sys.modules
    assert make(("theirs", {"word": "a b"}))[0]() == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("nobody", {}, "no logits processor called 'nobody'.*allowed_tokens"),
        ("banned_tokens_of_all", {"token_ids": [1]}, "a request has no"),
        ("logit_bias", {}, "logit_bias.*bias"),
        ("logit_bias", {"bias": {"3": 200}}, "logit_bias"),
        ("logit_bias", {"bias": {"3": float("nan")}}, "logit_bias"),
        ("logit_bias", {"bias": {"-3": 1}}, "logit_bias"),
        ("logit_bias", {"bias": {"50": 1}}, "names token 50; the model has 50 tokens"),
        ("logit_bias", {"bias": {"1": 1}, "strength": 3}, "no option 'strength'; it has bias"),
        ("banned_tokens", {"token_ids": []}, "banned_tokens"),
        ("banned_tokens", {"token_ids": ["a"]}, "banned_tokens.*token_ids"),
        ("allowed_tokens", {"token_ids": [0, 99]}, "token 99"),
        ("banned_sequences", {"sequences": [[1, 2], []]}, "banned_sequences"),
        ("banned_sequences", {"sequences": [[1, 77]]}, "token 77"),
        ("no_repeat_ngram", {"size": 0}, "no_repeat_ngram.*size"),
    ],
)
def test_what_is_wrong_is_named(name, options, said):
    """The processor, the option, and what is allowed."""
    with pytest.raises(InvalidRequest, match=said):
        make((name, options))


def test_there_is_a_bound_on_how_many():
    """For a request and for a deployment."""
    many = [NamedProcessor("banned_tokens", {"token_ids": [1]})] * 17
    with pytest.raises(InvalidRequest, match="at most 16"):
        SamplingParams(named_processors=many)
    with pytest.raises(ConfigError, match="at most 16"):
        deployment_processors([NamedProcessor("banned_tokens_of_all", {"token_ids": [1]})] * 17, SETTING)


def test_a_deployment_says_its_own_mistakes():
    """A request's processor is none of a deployment's, and the error is one of configuration."""
    with pytest.raises(ConfigError, match=r"a deployment has no.*banned_tokens_of_all"):
        deployment_processors([NamedProcessor("logit_bias", {})], SETTING)
    with pytest.raises(ConfigError, match="token 60"):
        deployment_processors([NamedProcessor("banned_tokens_of_all", {"token_ids": [60]})], SETTING)


def test_names_and_options_travel_as_plain_data():
    """With the sampling parameters of a request; keys of a map may have become strings on the way through JSON."""
    params = SamplingParams(named_processors=[NamedProcessor("logit_bias", {"bias": {3: 1.5}})])
    assert decode_body(encode_body(params).frames, SamplingParams).named_processors == params.named_processors
    through_json = msgspec.json.decode(msgspec.json.encode(params.named_processors), type=list[NamedProcessor])
    assert through_json[0].options == {"bias": {"3": 1.5}}
    assert make(("logit_bias", through_json[0].options), ("logit_bias", {"bias": {3: 1.5}}))


@pytest.mark.parametrize(
    "wrong",
    [[{"options": {}}], [{"name": 3}], [{"name": "a", "options": [1]}], "a", [{"name": "a", "options": {1: 2}}]],
)
def test_what_is_no_name_with_options_is_refused(wrong):
    """When it is set, by the name of the field."""
    with pytest.raises(InvalidRequest, match="named_processors"):
        SamplingParams(named_processors=wrong)


def test_a_request_gets_what_it_names_or_an_error():
    """Taken up by a sampler it has its processors; made without them it is refused rather than sampled otherwise."""
    asked = context(named_processors=[NamedProcessor("banned_tokens", {"token_ids": [3]})], temperature=0)
    chooser = sampler(50)
    logits = np.zeros((1, 50), np.float32)
    logits[0, 3], logits[0, 4] = 2, 1
    assert chooser.sample(logits, [chooser.admit(asked)]).tokens == [4]
    with pytest.raises(InvalidRequest, match="this engine makes none"):
        SamplingState(asked, vocab_size=50)
    with pytest.raises(InvalidRequest, match="nobody"):
        chooser.admit(context(named_processors=[NamedProcessor("nobody")]))
