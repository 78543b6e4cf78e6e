"""`SamplingParams`: what is allowed, how caller and model config are merged, and that nothing slips in later."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import logging
import math
import os
import pickle
import random

import msgspec
import numpy as np
import pytest

from tensoryard.errors import InvalidRequest
from tensoryard.proto import sampling
from tensoryard.proto.codec import decode_body, encode_body
from tensoryard.proto.sampling import (
    MAX_STOP_STRING_CHARS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
    SamplingParams,
    SamplingParamsGenerationConfigDefaults,
    SamplingParamsInput,
)

NAN, INF = math.nan, math.inf


def test_defaults():
    """The documented defaults."""
    params = SamplingParams(seed=3)
    assert dataclasses.asdict(params) == {
        "top_k": -1,
        "top_p": 1,
        "min_p": 0.0,
        "temperature": 1,
        "thinking_temperature": None,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "repetition_penalty": 1.0,
        "max_new_tokens": None,
        "min_new_tokens": 0,
        "ignore_eos": False,
        "stop": None,
        "stop_token_ids": None,
        "detokenize": True,
        "seed": 3,
        "logits_processors": None,
        "named_processors": None,
    }
    names = [spec.name for spec in dataclasses.fields(SamplingParams)]
    assert [spec.name for spec in dataclasses.fields(SamplingParamsInput)] == names
    assert all(value is None for value in SamplingParamsInput().__dict__.values())


def test_what_is_left_open_does_not_travel():
    """What is given does, defaults included; None leaves open; assignment gives, and a copy keeps which is which."""
    params = SamplingParams(top_p=1, top_k=None, seed=3)
    assert params.given == {"top_p", "seed"}
    params.min_p = 0.0
    there = decode_body(encode_body(params).frames, SamplingParams)
    assert there == copy.copy(params) == params
    assert there.given == copy.copy(params).given == {"top_p", "min_p", "seed"}
    assert SamplingParams(7).given == {"top_k", "seed"}
    assert SamplingParams(temperature=0).given == {"temperature", "top_k", "seed"}
    assert dataclasses.replace(params, seed=4).given >= {"temperature", "top_p", "detokenize"}
    assert list(inspect.signature(SamplingParams).parameters) == [f.name for f in dataclasses.fields(SamplingParams)]


GOOD = [
    ("top_k", None, -1),
    ("top_k", 0, -1),
    ("top_k", -1, -1),
    ("top_k", 100_000, 100_000),
    ("top_k", np.int32(5), 5),
    ("top_p", None, 1),
    ("top_p", 0, 0),
    ("top_p", np.float32(0.5), 0.5),
    ("min_p", 1, 1),
    ("temperature", 2, 2),
    ("temperature", np.float64(0.5), 0.5),
    ("thinking_temperature", 0.3, 0.3),
    ("thinking_temperature", None, None),
    ("frequency_penalty", -2.0, -2.0),
    ("presence_penalty", 2, 2),
    ("repetition_penalty", 1e-6, 1e-6),
    ("repetition_penalty", 1e300, 1e300),
    ("max_new_tokens", 0, 0),
    ("max_new_tokens", None, None),
    ("min_new_tokens", 7, 7),
    ("ignore_eos", np.True_, True),
    ("stop", ("a", "b"), ["a", "b"]),
    ("stop", [], []),
    ("stop", None, None),
    ("stop_token_ids", {4}, [4]),
    ("stop_token_ids", [np.int64(4)], [4]),
    ("stop_token_ids", None, None),
    ("seed", -1, -1),
    ("seed", 2**64 - 1, 2**64 - 1),
    ("logits_processors", [print], (print,)),
    ("logits_processors", None, None),
]

BAD = [
    *[("top_k", value) for value in (-2, 1.0, True, "3", NAN, 2**63)],
    *[("top_p", value) for value in (-0.1, 1.1, NAN, INF, True, "1")],
    *[("min_p", value) for value in (-0.1, 1.1, NAN, None, [0.1])],
    *[("temperature", value) for value in (-0.1, 2.1, NAN, INF, None, 10**400, np.zeros(2))],
    *[("thinking_temperature", value) for value in (-0.1, 2.1, NAN, "0")],
    *[("frequency_penalty", value) for value in (-2.1, 2.1, NAN, -INF, None)],
    *[("presence_penalty", value) for value in (-2.1, 2.1, NAN, INF, True)],
    *[("repetition_penalty", value) for value in (0, -1, NAN, INF, -INF, None)],
    *[("max_new_tokens", value) for value in (-1, True, 1.5, NAN, 2**63)],
    *[("min_new_tokens", value) for value in (-1, False, None, 1.5)],
    *[("ignore_eos", value) for value in (None, 1, "yes")],
    *[("detokenize", value) for value in (None, 0)],
    *[("stop", value) for value in ("END", [""], [3], {"a"}, ["a" * (MAX_STOP_STRING_CHARS + 1)], ["a"] * 200)],
    *[("stop_token_ids", value) for value in (3, [-1], [True], [1.0], "12", [0] * (MAX_STOP_TOKEN_IDS + 1))],
    *[("seed", value) for value in (2**64, -(2**63) - 1, 1.0, True, "7")],
    *[("logits_processors", value) for value in (print, [3], {print})],
]


@pytest.mark.parametrize(("name", "value", "kept"), GOOD)
def test_accepts(name, value, kept):
    """Allowed values, also by assignment, as plain Python values that can travel."""
    assigned = SamplingParams()
    setattr(assigned, name, value)
    for params in (SamplingParams(**{name: value}), assigned):
        found = getattr(params, name)
        assert found == kept
        assert type(found) is type(kept)


@pytest.mark.parametrize(("name", "value"), BAD)
def test_refuses(name, value):
    """Everything else is an input error that names the field."""
    with pytest.raises(InvalidRequest, match=f"`{name}` must be"):
        SamplingParams(**{name: value})


def test_greedy():
    """A temperature of 0 takes the most likely token, however it is set."""
    assert SamplingParams(temperature=0, top_k=50).top_k == 1
    params = SamplingParams(top_k=50)
    params.temperature = 0.0
    assert params.top_k == 1
    params.top_k = 50
    assert params.top_k == 1


def test_needs_penalties():
    """Any penalty off neutral counts."""
    assert not SamplingParams().needs_penalties
    assert SamplingParams(frequency_penalty=0.1).needs_penalties
    assert SamplingParams(presence_penalty=-0.1).needs_penalties
    assert SamplingParams(repetition_penalty=1.1).needs_penalties


def test_travels_and_copies():
    """Wire, pickle, copy and replace keep every value, and stay checked."""
    params = SamplingParams(top_k=5, stop=["x"], seed=2**63)
    wire = msgspec.msgpack.encode(params)
    clones = [
        msgspec.msgpack.decode(wire, type=SamplingParams),
        pickle.loads(pickle.dumps(params)),
        copy.deepcopy(params),
        dataclasses.replace(params),
    ]
    for clone in clones:
        assert clone == params
        with pytest.raises(InvalidRequest):
            clone.top_p = 3


@pytest.mark.parametrize(("name", "value"), [("top_p", 1.5), ("temperature", NAN), ("stop", [""]), ("top_k", -5)])
def test_arrival_is_checked(name, value):
    """Values out of range are refused when decoded too."""
    wire = msgspec.msgpack.encode({name: value})
    with pytest.raises(msgspec.ValidationError, match=name):
        msgspec.msgpack.decode(wire, type=SamplingParams)


def test_a_greedy_config_reaches_the_decoder():
    """The wire form of a temperature of 0 is greedy at the receiver."""
    wire = msgspec.msgpack.encode({"temperature": 0, "top_k": 9})
    assert msgspec.msgpack.decode(wire, type=SamplingParams).top_k == 1


# Merging


def merged(config=None, **asked):
    return SamplingParams.from_input_and_generation_config(
        SamplingParamsInput(**asked),
        SamplingParamsGenerationConfigDefaults(**(config or {})),
    )


def test_priority():
    """The caller wins over the config, the config over the class."""
    params = merged({"temperature": 0.5, "top_p": 0.9}, temperature=0.7)
    assert (params.temperature, params.top_p, params.top_k) == (0.7, 0.9, -1)


def test_config_values():
    """Only what is said, with the EOS ids renamed."""
    defaults = SamplingParamsGenerationConfigDefaults(top_k=5, eos_token_id=2)
    assert defaults.values_to_update == {"top_k": 5, "stop_token_ids": [2]}
    assert SamplingParamsGenerationConfigDefaults().values_to_update == {}
    assert SamplingParamsGenerationConfigDefaults(do_sample=False).values_to_update == {"do_sample": False}


@pytest.mark.parametrize("ids", [(2, 3), {2, 3}, [2, 3]])
def test_config_takes_any_collection_of_ids(ids):
    """A tuple of EOS ids is not silently dropped."""
    assert merged({"eos_token_id": ids}).stop_token_ids == [2, 3]


@pytest.mark.parametrize("ids", ["2", -1, 2.0, [-1], True])
def test_config_refuses_ids(ids):
    """An EOS id that is none is an input error."""
    with pytest.raises(InvalidRequest, match="eos_token_id"):
        SamplingParamsGenerationConfigDefaults(eos_token_id=ids)


def test_config_hashes():
    """Frozen and hashable, with a list of ids too."""
    one = SamplingParamsGenerationConfigDefaults(eos_token_id=[2, 3])
    assert len({one, SamplingParamsGenerationConfigDefaults(eos_token_id=(2, 3))}) == 1


def test_user_ids_replace_the_configs():
    """The caller's stop_token_ids are not added to the config's."""
    assert merged({"eos_token_id": 2}, stop_token_ids=[9]).stop_token_ids == [9]


def test_greedy_config():
    """do_sample False overrides the config's own values."""
    params = merged({"do_sample": False, "temperature": 0.8, "top_k": 40})
    assert (params.temperature, params.top_k) == (0, 1)
    assert merged({"do_sample": False}, top_p=0.5).top_k == 1
    assert merged({"do_sample": False}, temperature=0).top_k == 1
    assert merged({"do_sample": True}, temperature=0.5).top_k == -1


# Weaknesses of the reference, by number


@pytest.mark.parametrize(("name", "value"), BAD)
def test_weakness_34_checked_after_construction(name, value):
    """Assignment is checked like construction, and a refused one changes nothing."""
    params = SamplingParams(seed=1)
    with pytest.raises(InvalidRequest, match=f"`{name}` must be"):
        setattr(params, name, value)
    assert params == SamplingParams(seed=1)


def test_weakness_34_unknown_field():
    """A misspelt field is an error, not a new attribute."""
    with pytest.raises(AttributeError, match="temprature"):
        SamplingParams().temprature = 1


def test_weakness_34_nothing_mutable_is_shared():
    """Lists belong to one object: neither the caller, the config nor another request sees a change."""
    mine = ["a"]
    params = SamplingParams(stop=mine)
    mine.append("")
    assert params.stop == ["a"]
    ids = [2]
    config = SamplingParamsGenerationConfigDefaults(eos_token_id=ids)
    ids.append(3)
    first = SamplingParams.from_input_and_generation_config(SamplingParamsInput(), config)
    first.stop_token_ids.append(4)
    config.values_to_update["stop_token_ids"].append(5)
    second = SamplingParams.from_input_and_generation_config(SamplingParamsInput(), config)
    assert second.stop_token_ids == [2]


def test_weakness_34_a_user_temperature_samples():
    """A temperature above 0 undoes a greedy config, whose other values then count."""
    params = merged({"do_sample": False, "top_k": 40}, temperature=0.8)
    assert (params.temperature, params.top_k) == (0.8, 40)
    assert merged({"do_sample": False}, temperature=0.8).top_k == -1


def test_weakness_35_no_entropy_when_a_seed_is_given(monkeypatch):
    """A given seed draws nothing; a missing one draws from a generator seeded once."""
    draws = []

    class Counting(random.Random):
        def getrandbits(self, k):
            draws.append(k)
            return super().getrandbits(k)

    monkeypatch.setattr(sampling, "_seeds", Counting(1))
    SamplingParams(seed=5)
    merged(seed=5)
    assert draws == []
    seeds = {SamplingParams().seed for _ in range(50)} | {SamplingParams(seed=None).seed}
    assert draws == [32] * 51
    assert len(seeds) > 45
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_weakness_35_seeds_are_fresh_in_a_child():
    """The `random` module's seed does not set ours, and a forked child does not repeat its parent's."""
    random.seed(1)
    first = SamplingParams().seed
    random.seed(1)
    assert SamplingParams().seed != first
    reader, writer = os.pipe()
    state = sampling._seeds.getstate()
    child = os.fork()
    if child == 0:
        os.write(writer, str(SamplingParams().seed).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        childs = int(pipe.read())
    sampling._seeds.setstate(state)
    assert childs != SamplingParams().seed


def test_weakness_35_the_log_names_the_seed(caplog):
    """One INFO line holds every value."""
    with caplog.at_level(logging.INFO):
        SamplingParams(seed=1234, thinking_temperature=0.25).log_sampling_info()
    assert "seed=1234" in caplog.text
    assert "thinking_temperature=0.25" in caplog.text


def test_stop_bounds():
    """As many stop strings as the bound says, and no more."""
    assert len(SamplingParams(stop=["x"] * MAX_STOP_STRINGS).stop) == MAX_STOP_STRINGS
    with pytest.raises(InvalidRequest, match=str(MAX_STOP_STRINGS)):
        SamplingParams(stop=["x"] * (MAX_STOP_STRINGS + 1))
