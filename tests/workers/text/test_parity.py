"""Logits agree with transformers' for a tiny random checkpoint of each supported architecture."""

import json

import numpy as np
import pytest

from tensoryard.workers.device import select_device
from tensoryard.workers.text.models.cache import KVCache
from tensoryard.workers.text.models.decoder import Decoder
from tensoryard.workers.text.models.step import Span, lay_out

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'tensoryard[parity]'")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

SIZES = {
    "vocab_size": 211,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 500.0,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1000.0}

MODELS = {
    "llama": ("LlamaConfig", {}),
    "llama-one-kv-head-each": ("LlamaConfig", {"num_key_value_heads": 6}),
    "llama-tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "llama-biases": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "llama-wide-heads": ("LlamaConfig", {"head_dim": 16}),
    "llama-3.1": ("LlamaConfig", {"rope_parameters": LLAMA3}),
    "llama-linear": ("LlamaConfig", {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4}}),
    "llama-dynamic": ("LlamaConfig", {"rope_parameters": {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 1e4}}),
    "llama-yarn": ("LlamaConfig", {"rope_parameters": YARN}),
    "llama-yarn-mscale": ("LlamaConfig", {"rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 0.4}}),
    "mistral": ("MistralConfig", {"sliding_window": 11}),
    "mistral-no-window": ("MistralConfig", {"sliding_window": None}),
    "qwen2": ("Qwen2Config", {}),
    "qwen2-window": ("Qwen2Config", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "qwen3-tied": ("Qwen3Config", {"tie_word_embeddings": True, "attention_bias": True}),
    "smollm": ("LlamaConfig", {"tie_word_embeddings": True, "num_attention_heads": 3, "num_key_value_heads": 1}),
}
BLOCK = 8


@pytest.fixture
def make(tmp_path):
    def make(name, dtype=torch.float32, shard="5GB", **extra):
        kind, fields = MODELS[name]
        torch.manual_seed(7)
        config = getattr(transformers, kind)(**{**SIZES, **fields, **extra})
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:  # gains of 1 and biases of 0 would not be seen to be used
                    parameter.add_(0.3 * torch.randn_like(parameter))
        model = model.to(dtype)
        model.save_pretrained(tmp_path, max_shard_size=shard)
        # Read back, for a half-precision model has rounded the angles of its rotation too.
        return transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval(), tmp_path

    return make


def run(folder, ids, parts):
    """Logits of all positions when the ids come in parts, through blocks that lie in no order."""
    decoder = Decoder.load(folder, select_device("cpu"))
    cache = KVCache(decoder.config, blocks=40, block_size=BLOCK, device=decoder.device)
    table = np.random.default_rng(3).permutation(40)
    rows, start = [], 0
    for size in parts:
        span = Span(ids[start : start + size], start, table, logits=size)
        rows.append(decoder.forward(lay_out([span], BLOCK), cache))
        start += size
    return np.concatenate(rows)


def expected(model, ids):
    with torch.no_grad():
        return model(torch.from_numpy(ids)[None]).logits[0].numpy()


@pytest.mark.parametrize("name", MODELS)
def test_logits_of_a_prompt(make, name):
    """A prompt at once, and in chunks followed by single tokens, has the logits that transformers computes."""
    model, folder = make(name)
    ids = np.random.default_rng(1).integers(0, 211, 100)
    wanted = expected(model, ids)
    assert np.abs(wanted).max() > 1  # tiny logits would agree whatever was computed
    np.testing.assert_allclose(run(folder, ids, [100]), wanted, atol=1e-4)
    np.testing.assert_allclose(run(folder, ids, [37, 50, *[1] * 13]), wanted, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_in_shards(make, dtype):
    """Weights in float16 or bfloat16, in several files, are read to the bit."""
    model, folder = make("llama", dtype, shard="20KB")
    assert (folder / "model.safetensors.index.json").is_file()
    ids = np.random.default_rng(1).integers(0, 211, 30)
    np.testing.assert_allclose(run(folder, ids, [30]), expected(model, ids), atol=1e-4)


def test_keys_of_older_files(make):
    """`rope_theta` and `rope_scaling`, as files had them until 2025, mean the same as `rope_parameters`."""
    model, folder = make("llama-3.1")
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    rope = fields.pop("rope_parameters")
    fields |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope, "torch_dtype": fields.pop("dtype")}
    path.write_text(json.dumps(fields))
    ids = np.random.default_rng(1).integers(0, 211, 60)
    np.testing.assert_allclose(run(folder, ids, [60]), expected(model, ids), atol=1e-4)
