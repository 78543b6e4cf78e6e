"""Adapters inside a model: the logits of merged weights, rows that do not know their neighbours, and a cache apart."""

import json
import math

import numpy as np
import pytest

from tensoryard.proto.lora import LoRAOperation, LoRARequest, LoRAStatus
from tensoryard.workers.device import select_device
from tensoryard.workers.text.lora import Adapters, attach
from tensoryard.workers.text.models.cache import KVCache
from tensoryard.workers.text.models.decoder import Decoder
from tensoryard.workers.text.models.step import Span, lay_out

from .test_engine import ask, make, run
from .tiny import CONFIG, write_model

safetensors = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")

BLOCK = 8
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_adapter(folder, shapes, *, seed=0, targets=TARGETS, **config):
    """A PEFT folder of random weights for the layers of `shapes` that end with a target; returns the weights."""
    whole = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "target_modules": list(targets), "bias": "none", **config}
    random, tensors = np.random.default_rng(seed), {}
    for layer, (outputs, inputs) in shapes.items():
        if layer.endswith(tuple(targets)):
            rank = next((r for end, r in whole.get("rank_pattern", {}).items() if layer.endswith(end)), whole["r"])
            down, up = random.normal(0, 0.3, (rank, inputs)), random.normal(0, 0.3, (outputs, rank))
            tensors[f"base_model.model.{layer}.lora_A.weight"] = down.astype(np.float32)
            tensors[f"base_model.model.{layer}.lora_B.weight"] = up.astype(np.float32)
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(whole))
    safetensors.save_file(tensors, folder / "adapter_model.safetensors")
    return tensors


def registry(decoder, folders):
    """The adapters of these folders, loaded."""
    adapters = Adapters(decoder.device, decoder.adaptable, fit=decoder.fit)
    for name, folder in folders.items():
        answer = adapters.handle(LoRARequest(LoRAOperation.LOAD, name, str(folder)))
        assert answer.status is LoRAStatus.SUCCESS, answer.message
    return adapters


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return Decoder.load(write_model(tmp_path_factory.mktemp("model")), select_device("cpu"))


#: Ranks that make matrices of many shapes, for BLAS has kernels of its own for some.
KINDS = {
    "all": {},
    "attention": {"targets": ("q_proj", "v_proj"), "r": 1},
    "rslora": {"targets": ("k_proj", "o_proj", "down_proj"), "r": 16, "use_rslora": True},
    "patterns": {"targets": ("v_proj", "up_proj"), "rank_pattern": {"up_proj": 7}, "alpha_pattern": {"v_proj": 11}},
}


@pytest.fixture(scope="module")
def adapters(decoder, tmp_path_factory):
    root = tmp_path_factory.mktemp("adapters")
    for seed, (name, how) in enumerate(KINDS.items()):
        write_adapter(root / name, decoder.adaptable, seed=seed, **how)
    return registry(decoder, {name: root / name for name in KINDS})


# -- against transformers ---------------------------------------------------------------------------------------------


def logits(decoder, adapter, ids, parts):
    """Of all positions, when the ids come in parts."""
    cache = KVCache(decoder.config, blocks=16, block_size=BLOCK, device=decoder.device)
    table, rows, start = np.random.default_rng(1).permutation(16), [], 0
    for size in parts:
        span = Span(np.array(ids[start : start + size]), start, table, size, adapter)
        rows.append(decoder.forward(lay_out([span], BLOCK), cache))
        start += size
    return np.concatenate(rows)


@pytest.mark.parametrize("architecture", ["LlamaConfig", "Qwen3Config", "Qwen2Config"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_logits_are_those_of_merged_weights(tmp_path, architecture, kind):
    """W + scale · B · A in transformers' own layers gives the same logits, to 1e-4; and others than without."""
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'tensoryard[parity]'")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = {
        "vocab_size": 211,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "head_dim": 16,
    }
    if architecture == "Qwen2Config":
        del sizes["head_dim"]
    torch.manual_seed(3)
    config = getattr(transformers, architecture)(**sizes)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "model")
    decoder = Decoder.load(tmp_path / "model", select_device("cpu"))
    tensors = write_adapter(tmp_path / "adapter", decoder.adaptable, **KINDS[kind])
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    adapter = registry(decoder, {"a": tmp_path / "adapter"}).get("a")
    ids = np.random.default_rng(2).integers(0, 211, 40).tolist()

    def theirs():
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0].numpy()

    before = theirs()
    for layer in decoder.adaptable:
        down = tensors.get(f"base_model.model.{layer}.lora_A.weight")
        if down is not None:
            up, rank = tensors[f"base_model.model.{layer}.lora_B.weight"], len(down)
            alphas = settings.get("alpha_pattern", {})
            alpha = next((a for end, a in alphas.items() if layer.endswith(end)), settings["lora_alpha"])
            scale = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
            with torch.no_grad():
                model.get_submodule(layer).weight += torch.from_numpy(scale * up @ down)
    merged = theirs()
    assert np.abs(merged - before).max() > 0.05, "an adapter that changes nothing shows nothing"
    for parts in ([40], [17, 1, 1, 21]):
        np.testing.assert_allclose(logits(decoder, adapter, ids, parts), merged, atol=1e-4, rtol=0)
        np.testing.assert_allclose(logits(decoder, None, ids, parts), before, atol=1e-4, rtol=0)


# -- several in one batch ---------------------------------------------------------------------------------------------


def request(adapters, name, number, new=12):
    prompt = np.random.default_rng(number).integers(2, CONFIG["vocab_size"], 5 + 3 * number).tolist()
    context = ask(prompt, new, seed=number, logprobs=2, ignore_eos=True)
    attach(context, adapters.get(name))
    return context


def told(got):
    """Tokens and the bits of their log-probabilities."""
    return [(output.tokens, output.log_probabilities) for output in got]


def test_a_row_does_not_know_its_neighbours(decoder, adapters):
    """Four adapters and the base model in one batch: streams and numbers are, to the bit, those of runs alone."""
    names = [*KINDS, "base"] * 3
    engine, _ = make(decoder, max_tokens=64, max_chunk=16)
    contexts = [request(adapters, name, number) for number, name in enumerate(names)]
    _, together = run(engine, contexts)
    for number, name in enumerate(names):
        alone = request(adapters, name, number)
        _, single = run(make(decoder)[0], [alone])
        assert told(together[contexts[number].request_id]) == told(single[alone.request_id]), (number, name)


def test_each_adapter_answers_for_itself(decoder, adapters):
    """The same prompt goes on in as many ways as there are adapters: none is computed as another."""
    found = []
    for name in [*KINDS, "base"]:
        context = ask([5, 6, 7, 8], 16, temperature=0, ignore_eos=True)
        attach(context, adapters.get(name))
        tokens, _ = run(make(decoder)[0], [context])
        found.append(tuple(tokens[context.request_id]))
    assert len(set(found)) == len(found)


def test_put_out_and_computed_again_with_the_same_adapter(decoder, adapters):
    """With blocks for a few only, requests are put out in mid-answer, and nobody can tell from what they answer."""
    names = [*KINDS, "base"] * 2
    contexts = [request(adapters, name, number, new=30) for number, name in enumerate(names)]
    engine, scheduler = make(decoder, blocks=20, max_running=8, max_tokens=32, max_chunk=16)
    preempted, plan = [], scheduler.plan

    def watched(*args):
        made = plan(*args)
        preempted.extend(made.preempted)
        return made

    scheduler.plan = watched
    tokens, _ = run(engine, contexts)
    assert preempted, "the cache was to be too small"
    for number, name in enumerate(names):
        alone = request(adapters, name, number, new=30)
        assert run(make(decoder)[0], [alone])[0][alone.request_id] == tokens[contexts[number].request_id]


# -- the prefix cache -------------------------------------------------------------------------------------------------


def cached(engine, adapter, salt=None):
    """How many tokens of a prompt an engine had already."""
    context = ask(list(range(2, 42)), 2, salt=salt, ignore_eos=True)
    attach(context, adapter)
    _, got = run(engine, [context])
    return got[context.request_id][0].num_cached_tokens


def test_prompts_are_shared_within_an_adapter_alone(decoder, adapters):
    """Keys and values of one adapter are not another's, nor the base model's, whatever salt a caller gives."""
    engine, _ = make(decoder)
    first, second = adapters.get("all"), adapters.get("rslora")
    assert [cached(engine, who) for who in (None, first, second, None, first, second)] == [0, 0, 0, 32, 32, 32]
    for salt in (f"{first.number}", f"{first.number} ", f" {first.number}"):
        assert cached(engine, None, salt) == 0
    assert cached(engine, first, "own") == 0
    assert cached(engine, first, "own") == 32


def test_a_name_that_is_used_again_finds_nothing_of_the_former(decoder, tmp_path):
    """What was computed with an unloaded adapter is not taken for that of another one of its name."""
    write_adapter(tmp_path / "a", decoder.adaptable, seed=1)
    write_adapter(tmp_path / "b", decoder.adaptable, seed=2)
    adapters = registry(decoder, {"x": tmp_path / "a"})
    engine, _ = make(decoder)
    assert cached(engine, adapters.get("x")) == 0
    adapters.handle(LoRARequest(LoRAOperation.UNLOAD, "x"))
    adapters.handle(LoRARequest(LoRAOperation.LOAD, "x", str(tmp_path / "b")))
    assert cached(engine, adapters.get("x")) == 0
