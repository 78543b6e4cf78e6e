"""What a model's folder may hold: config, rotation and weights are read whole, or refused by name."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from tensoryard.errors import ConfigError
from tensoryard.workers.device import select_device
from tensoryard.workers.text.models.checkpoint import Checkpoint
from tensoryard.workers.text.models.config import DecoderConfig
from tensoryard.workers.text.models.decoder import Decoder
from tensoryard.workers.text.models.rope import Rope

from .tiny import CONFIG, tensors, write_config, write_model


def parse(**changes):
    fields = {key: value for key, value in {**CONFIG, **changes}.items() if value is not None}
    return DecoderConfig.parse(fields, where="config.json")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM.*supported is one of LlamaForCausalLM"),
        ({"architectures": None, "model_type": "gpt2"}, "model_type.*gpt2"),
        ({"model_type": "qwen2"}, "model_type.*'llama' for LlamaForCausalLM"),
        ({"hidden_act": "gelu"}, "hidden_act.*'gelu'.*'silu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config.*not known.*ignore_config_keys"),
        ({"sliding_window": 128}, "sliding_window.*not known"),
        ({"logit_scale": 2.0}, "logit_scale"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"vocab_size": None}, "vocab_size"),
        ({"num_key_value_heads": 3}, "num_key_value_heads.*divisor"),
        ({"head_dim": 7}, "head_dim.*even"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
        ({"rope_scaling": {"type": "longrope", "factor": 2}}, "rope_type.*'longrope'.*llama3"),
        ({"rope_scaling": {"type": "linear"}}, "linear"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 3}}, "beta_fast"),
        ({"rope_scaling": {"type": "linear", "factor": -1.0}}, "factor"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_interleaved": True}, "rope_interleaved"),
    ],
)
def test_what_is_not_supported_is_named(changes, named):
    """The error names the key and says what would do."""
    with pytest.raises(ConfigError, match=named):
        parse(**changes)


def test_a_key_may_be_passed_by_at_ones_own_risk():
    """Only when the operator names it."""
    fields = {**CONFIG, "logit_scale": 2.0}
    assert DecoderConfig.parse(fields, where="", ignored=["logit_scale"]).vocabulary == CONFIG["vocab_size"]


def test_qwen_windows_by_layer():
    """Off by default; then from a layer on, or as the file lists them."""
    qwen = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "sliding_window": 5, "num_hidden_layers": 3}
    assert parse(**qwen).windows == (None, None, None)
    assert parse(**qwen, use_sliding_window=True, max_window_layers=2).windows == (None, None, 5)
    kinds = ["sliding_attention", "full_attention", "full_attention"]
    assert parse(**qwen, use_sliding_window=True, layer_types=kinds).windows == (5, None, None)
    with pytest.raises(ConfigError, match="layer_types"):
        parse(**qwen, use_sliding_window=True, layer_types=kinds[:2])
    with pytest.raises(ConfigError, match="layer_types"):
        parse(**qwen, layer_types=kinds)


def test_mistral_has_a_window_unless_told_otherwise():
    """As its class in transformers: a file that says nothing means 4096, null means none."""
    mistral = {**CONFIG, "architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    assert DecoderConfig.parse(mistral, where="").windows == (4096, 4096)
    assert DecoderConfig.parse({**mistral, "sliding_window": None}, where="").windows == (None, None)


def test_dynamic_scaling_changes_nothing_within_the_length():
    """Its angles are the plain ones: sequences end where it would begin."""
    dynamic = Rope(1e4, "dynamic", {"factor": 4.0}).table(16, 64)
    np.testing.assert_array_equal(dynamic, Rope(1e4).table(16, 64))


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (lambda found: found.pop("model.layers.1.mlp.up_proj.weight"), "no tensor 'model.layers.1.mlp.up_proj.weight'"),
        (lambda found: found.update({"model.norm.bias": np.zeros(32, np.float32)}), "first 'model.norm.bias'"),
        (lambda found: found.update({"lm_head.weight": np.zeros((3, 32), np.float32)}), r"shape \(3, 32\)"),
        (lambda found: found.update({"lm_head.weight": np.zeros((97, 32), np.int8)}), "I8; supported are"),
    ],
)
def test_weights_must_be_those_of_the_config(tmp_path, harm, named):
    """A tensor that is missing, left over, misshapen or of another kind is named."""
    write_config(tmp_path)
    found = tensors()
    harm(found)
    save_file(found, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=named):
        Decoder.load(tmp_path, select_device("cpu"))


def test_a_tied_head_that_differs_is_refused(tmp_path):
    """Which of the two matrices is meant cannot be known."""
    write_model(tmp_path, tie_word_embeddings=True)
    with pytest.raises(ConfigError, match="tie_word_embeddings"):
        Decoder.load(tmp_path, select_device("cpu"))
    found = tensors()
    found["lm_head.weight"] = found["model.embed_tokens.weight"].copy()
    save_file(found, tmp_path / "model.safetensors")
    assert Decoder.load(tmp_path, select_device("cpu")).config.tied


@pytest.mark.parametrize("content", [b"", b"\x05\0\0\0\0\0\0\0{}", b"\xff" * 40, b"\x02\0\0\0\0\0\0\0[]" + b"\0" * 64])
def test_broken_weights_are_a_clear_error(tmp_path, content):
    """Not a struct error, nor gigabytes of memory."""
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match="no safetensors file"):
        Checkpoint(tmp_path)


def test_offsets_outside_the_file_are_refused(tmp_path):
    """A tensor lies inside its file and has the size of its shape."""
    for shape, offsets in (([4], [0, 400]), ([4], [0, 8]), ([2], [-8, 0])):
        header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}).encode()
        content = len(header).to_bytes(8, "little") + header + bytes(64)
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(ConfigError, match="lies at bytes"):
            Checkpoint(tmp_path)


def test_missing_files_are_named(tmp_path):
    """The config, the weights, and a shard that the index names."""
    with pytest.raises(ConfigError, match=r"config\.json"):
        DecoderConfig.read(tmp_path)
    with pytest.raises(ConfigError, match=r"model\.safetensors"):
        Checkpoint(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    for name in ("model-00001-of-00002.safetensors", "../elsewhere.safetensors"):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(ConfigError, match="no file of the folder"):
            Checkpoint(tmp_path)
