"""Tiny random checkpoints, written as Hugging Face's libraries write them, without those libraries."""

import json

import numpy as np
from safetensors.numpy import save_file

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 640,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "eos_token_id": 1,
}


def write_config(folder, **changes):
    """A config.json; a change to None takes the key out."""
    fields = {key: value for key, value in {**CONFIG, **changes}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(fields))


def tensors(seed=0, **changes):
    """Random weights of a model of `CONFIG`."""
    fields = {**CONFIG, **changes}
    random = np.random.default_rng(seed)
    width, inner, words = fields["hidden_size"], fields["intermediate_size"], fields["vocab_size"]
    heads, kv_heads = fields["num_attention_heads"], fields["num_key_value_heads"]
    size = fields.get("head_dim") or width // heads
    shapes = {
        "model.embed_tokens.weight": (words, width),
        "model.norm.weight": (width,),
        "lm_head.weight": (words, width),
    }
    for layer in range(fields["num_hidden_layers"]):
        shapes |= {
            f"model.layers.{layer}.{name}.weight": shape
            for name, shape in {
                "input_layernorm": (width,),
                "post_attention_layernorm": (width,),
                "self_attn.q_proj": (heads * size, width),
                "self_attn.k_proj": (kv_heads * size, width),
                "self_attn.v_proj": (kv_heads * size, width),
                "self_attn.o_proj": (width, heads * size),
                "mlp.gate_proj": (inner, width),
                "mlp.up_proj": (inner, width),
                "mlp.down_proj": (width, inner),
            }.items()
        }
    return {name: random.normal(0, 0.4, shape).astype(np.float32) for name, shape in shapes.items()}


def write_model(folder, seed=0, **changes):
    """A whole folder: config and weights."""
    write_config(folder, **changes)
    save_file(tensors(seed, **changes), folder / "model.safetensors")
    return folder
