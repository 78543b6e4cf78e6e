"""Models for tests of text generation: the small one that comes with the package, and what is made of it.

`thinker` is the small model with marks of thinking among its tokens and a template that tells of tools; `stranger` has
its vocabulary and random weights, so that it guesses badly.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import tensoryard as ty
from tensoryard.workers.pipelines.llama import SMALL_MODEL

THINK, END_THINK = 2046, 2047

#: Shows a model its tools, as templates do: one line of JSON each.
TEMPLATE = (
    "{{ bos_token }}{% for tool in tools or [] %}# {{ tool['function'] | tojson }}\n{% endfor %}"
    "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    "{% if effort is defined %}# effort {{ effort }}\n{% endif %}{% if thinking is defined %}<think>{% endif %}"
)


def deployment(model: str, replicas: int = 1, **options: Any) -> ty.Deployment:
    """A deployment of the Llama pipeline on the CPU."""
    return ty.Deployment(
        model=model,
        task=ty.PipelineTask.TEXT_GENERATION,
        pipeline="tensoryard.workers.pipelines.llama:create",
        options={"device": "cpu", "max_batch_size": 8, **options},
        replicas=replicas,
        max_wait_ms=0.0,
    )


def thinker(folder: Path, **generation: Any) -> str:
    """The small model whose last two tokens are `<think>` and `</think>`; `generation`: keys of its config."""
    shutil.copytree(SMALL_MODEL, folder, dirs_exist_ok=True)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    words, merges = tokenizer["model"]["vocab"], tokenizer["model"]["merges"]
    for token, text in ((THINK, "<think>"), (END_THINK, "</think>")):
        words.pop(next(name for name, number in words.items() if number == token))
        merges.pop()
        tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": token, "content": text})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    _change(folder / "tokenizer_config.json", chat_template=TEMPLATE)
    _change(folder / "generation_config.json", **generation)
    return str(folder)


def stranger(folder: Path) -> str:
    """A tiny model of the small one's vocabulary, with random weights."""
    import numpy as np
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(SMALL_MODEL / "tokenizer.json", folder)
    shutil.copy(SMALL_MODEL / "config.json", folder)
    _change(
        folder / "config.json",
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    random = np.random.default_rng(5)
    shapes = {"model.embed_tokens.weight": (2048, 16), "model.norm.weight": (16,)} | {
        f"model.layers.0.{name}.weight": shape
        for name, shape in {
            "input_layernorm": (16,),
            "post_attention_layernorm": (16,),
            "self_attn.q_proj": (16, 16),
            "self_attn.k_proj": (8, 16),
            "self_attn.v_proj": (8, 16),
            "self_attn.o_proj": (16, 16),
            "mlp.gate_proj": (16, 16),
            "mlp.up_proj": (16, 16),
            "mlp.down_proj": (16, 16),
        }.items()
    }
    weights = {name: random.normal(0, 0.4, shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors")
    return str(folder)


def _change(path: Path, **keys: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))
