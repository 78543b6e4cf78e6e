"""LoRA adapters: read from PEFT folders, loaded and unloaded with every outcome, and applied in a mixed batch."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest

from tensoryard.proto.lora import LoRAOperation, LoRARequest, LoRAStatus
from tensoryard.workers.text import lora
from tensoryard.workers.text.lora import AdapterBatch, Adapters

from .support import CPU

SHAPES = {"model.layers.0.self_attn.q_proj": (8, 6), "model.layers.0.mlp.down_proj": (6, 10)}
PREFIX = "base_model.model."
RANK = 3


def matrices(seed=0, rank=RANK, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    found = {}
    for layer, (outputs, inputs) in shapes.items():
        found[f"{PREFIX}{layer}.lora_A.weight"] = rng.standard_normal((rank, inputs)).astype(np.float32)
        found[f"{PREFIX}{layer}.lora_B.weight"] = rng.standard_normal((outputs, rank)).astype(np.float32)
    return found


def folder(path, tensors=None, raw=None, **config):
    save = pytest.importorskip("safetensors.numpy").save_file
    path.mkdir(exist_ok=True)
    whole = {"peft_type": "LORA", "r": RANK, "lora_alpha": 6, "target_modules": ["q_proj"], "bias": "none", **config}
    (path / "adapter_config.json").write_text(json.dumps(whole) if raw is None else raw)
    save(matrices() if tensors is None else tensors, path / "adapter_model.safetensors")
    return path


def safetensors_bytes(tensors, kind):
    """The format by hand: the library does not write bfloat16 of NumPy."""
    header, end = {}, 0
    for key, value in tensors.items():
        header[key] = {"dtype": kind, "shape": value.shape, "data_offsets": [end, end := end + value.nbytes]}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(value.tobytes() for value in tensors.values())


def load(adapters, name, path):
    return adapters.handle(LoRARequest(LoRAOperation.LOAD, name, str(path)))


def unload(adapters, name):
    return adapters.handle(LoRARequest(LoRAOperation.UNLOAD, name))


@pytest.fixture
def adapters():
    return Adapters(CPU, SHAPES)


def batch(rows):
    """A step of rows with these adapters."""
    adapters = dict.fromkeys(adapter for adapter in rows if adapter is not None)
    return AdapterBatch(CPU, [(a, np.array([at for at, row in enumerate(rows) if row is a])) for a in adapters])


def expected(inputs, tensors, layer, scale):
    down, up = tensors[f"{PREFIX}{layer}.lora_A.weight"], tensors[f"{PREFIX}{layer}.lora_B.weight"]
    return (inputs.astype(np.float64) @ down.T.astype(np.float64) @ up.T.astype(np.float64)) * scale


def test_several_adapters_in_one_batch(tmp_path, adapters):
    """Each row gets what its own adapter adds, scaled as its config says; rows of the base model get nothing."""
    first, second = matrices(1), matrices(2, rank=5)
    assert load(adapters, "a", folder(tmp_path / "a", first)).status is LoRAStatus.SUCCESS
    assert load(adapters, "b", folder(tmp_path / "b", second, r=5, use_rslora=True)).status is LoRAStatus.SUCCESS
    a, b = adapters.get("a"), adapters.get("b")
    rows = [a, None, b, a, b, None]
    for layer, (outputs, inputs) in SHAPES.items():
        x = np.random.default_rng(3).standard_normal((len(rows), inputs)).astype(np.float32)
        y = np.ones((len(rows), outputs), np.float32)
        batch(rows).add(layer, x, y)
        for row, adapter in enumerate(rows):
            tensors, scale = {a: (first, 6 / 3), b: (second, 6 / 5**0.5), None: (first, 0)}[adapter]
            np.testing.assert_allclose(y[row], 1 + expected(x[row], tensors, layer, scale), rtol=1e-4, atol=1e-4)


def test_without_adapters_nothing_is_done():
    """A batch of the base model alone stays as it is."""
    y = np.ones((2, 8), np.float32)
    assert batch([None, None]).add(next(iter(SHAPES)), np.ones((2, 6), np.float32), y) is y
    assert (y == 1).all()


def test_layers_may_have_their_own_rank_and_scale(tmp_path, adapters):
    """Patterns name the ends of layers, as PEFT writes them."""
    query, down = SHAPES
    tensors = {**matrices(4, 3, {query: SHAPES[query]}), **matrices(5, 2, {down: SHAPES[down]})}
    path = folder(tmp_path / "a", tensors, rank_pattern={"down_proj": 2}, alpha_pattern={"mlp.down_proj": 20})
    assert load(adapters, "a", path).status is LoRAStatus.SUCCESS
    x, y = np.ones((1, 10), np.float32), np.zeros((1, 6), np.float32)
    batch([adapters.get("a")]).add(down, x, y)
    np.testing.assert_allclose(y, expected(x, tensors, down, 10), rtol=1e-4)


def test_halves_and_bfloat16(tmp_path, adapters):
    """Weights of 16 bits become float32 exactly."""
    dtypes = pytest.importorskip("ml_dtypes")
    layer = next(iter(SHAPES))
    for name, kind in (("F16", np.float16), ("BF16", dtypes.bfloat16)):
        exact = {key: value.astype(kind) for key, value in matrices(7, shapes={layer: SHAPES[layer]}).items()}
        path = folder(tmp_path / name)
        (path / "adapter_model.safetensors").write_bytes(safetensors_bytes(exact, name))
        assert load(adapters, name, path).status is LoRAStatus.SUCCESS
        down = exact[f"{PREFIX}{layer}.lora_A.weight"].astype(np.float32)
        assert np.array_equal(adapters.get(name).layers[layer].down, down.T)


def test_each_outcome(tmp_path, adapters, monkeypatch):
    """Loaded, loaded again, taken, missing, wrong, unloaded, unknown, failed: each is told apart, with words."""
    path, other = folder(tmp_path / "a"), folder(tmp_path / "b")
    assert load(adapters, "a", path).status is LoRAStatus.SUCCESS
    assert load(adapters, "a", path).status is LoRAStatus.SUCCESS
    taken = load(adapters, "a", other)
    assert taken.status is LoRAStatus.LOAD_NAME_EXISTS
    assert str(path) in taken.message
    assert load(adapters, "c", tmp_path / "nowhere").status is LoRAStatus.LOAD_INVALID_PATH
    (other / "adapter_model.safetensors").unlink()
    assert "adapter_model.safetensors" in load(adapters, "c", other).message
    assert load(adapters, "c", folder(other, peft_type="IA3")).status is LoRAStatus.LOAD_INVALID_ADAPTER
    assert adapters.loaded == {"a": str(path)}

    def broken(*_):
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(lora, "read_adapter", broken)
        failed = load(adapters, "d", path)
    assert failed.status is LoRAStatus.LOAD_ERROR
    assert "the disk is gone" in failed.message
    assert unload(adapters, "d").status is LoRAStatus.UNLOAD_NAME_NONEXISTENT
    assert unload(adapters, "a").status is LoRAStatus.SUCCESS
    assert unload(adapters, "a").status is LoRAStatus.UNLOAD_NAME_NONEXISTENT

    class Stuck(dict):
        def __delitem__(self, name):
            raise RuntimeError("busy")

    adapters._loaded = Stuck(a=None)
    assert unload(adapters, "a").status is LoRAStatus.UNLOAD_ERROR


def test_who_runs_with_an_adapter_keeps_it(tmp_path, adapters):
    """Unloading takes the name away, not the weights of those under way; the name may be loaded anew at once."""
    load(adapters, "a", folder(tmp_path / "a"))
    held = adapters.get("a")
    assert unload(adapters, "a").status is LoRAStatus.SUCCESS
    assert adapters.get("a") is None
    assert load(adapters, "a", folder(tmp_path / "b", matrices(9))).status is LoRAStatus.SUCCESS
    assert held.number != adapters.get("a").number
    y = np.zeros((2, 8), np.float32)
    batch([held, adapters.get("a")]).add(next(iter(SHAPES)), np.ones((2, 6), np.float32), y)
    assert not np.allclose(y[0], y[1])


WRONG = {
    "no JSON": ({"raw": "{"}, "no JSON"),
    "no object": ({"raw": "[]"}, "an object"),
    "DoRA": ({"use_dora": True}, "`use_dora` is True; supported is False"),
    "no type": ({"raw": '{"r": 3}'}, "peft_type"),
    "biases": ({"bias": "all"}, "`bias`"),
    "whole modules": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "no rank": ({"r": None}, "`r`"),
    "another beginning": ({"init_lora_weights": "pissa"}, "`init_lora_weights` is 'pissa'"),
    "a pattern": ({"alpha_pattern": {"(q|v)_proj": 3}}, "`alpha_pattern` maps ends of layers' names"),
    "a list of patterns": ({"rank_pattern": [3]}, "`rank_pattern`"),
    "another rank": ({"r": 4}, "needs matrices of"),
    "an endless scale": ({"raw": '{"peft_type": "LORA", "r": 3, "lora_alpha": Infinity}'}, "lora_alpha"),
    "a strange layer": ({"tensors": matrices(shapes={"model.layers.7.q_proj": (8, 6)})}, "model.layers.7.q_proj"),
    "another shape": ({"tensors": matrices(shapes={next(iter(SHAPES)): (8, 7)})}, "needs matrices of"),
    "half a pair": ({"tensors": dict(list(matrices().items())[:1])}, "only one of two"),
    "nothing": ({"tensors": {}}, "no LoRA weights"),
    "a fused part": ({"tensors": {f"{PREFIX}x.lora_B_kv.weight": np.ones((2, 2), np.float32)}}, "lora_B_kv"),
    "a vector": ({"tensors": {f"{PREFIX}x.lora_A.weight": np.ones(2, np.float32)}}, "not a matrix"),
    "integers": ({"tensors": {f"{PREFIX}x.lora_A.weight": np.ones((2, 2), np.int8)}}, "not a matrix of floats"),
    "no numbers": ({"tensors": {f"{PREFIX}x.lora_A.weight": np.full((2, 2), np.nan, np.float32)}}, "no finite"),
}


@pytest.mark.parametrize(("given", "said"), WRONG.values(), ids=WRONG)
def test_a_wrong_adapter_is_told_by_what_is_wrong(tmp_path, adapters, given, said):
    """Nothing is loaded, and the message names the setting or the weight."""
    answer = load(adapters, "a", folder(tmp_path / "a", **given))
    assert answer.status is LoRAStatus.LOAD_INVALID_ADAPTER
    assert said in answer.message
    assert adapters.loaded == {}


def test_no_safetensors_at_all(tmp_path, adapters):
    """Other bytes under that name, and a file beyond the bound."""
    path = folder(tmp_path / "a")
    (path / "adapter_model.safetensors").write_bytes(b"\x80\x04pickle?" * 9)
    answer = load(adapters, "a", path)
    assert answer.status is LoRAStatus.LOAD_INVALID_ADAPTER
    assert "no safetensors file" in answer.message
    with (path / "adapter_model.safetensors").open("wb") as file:
        file.truncate(2**30 + 1)
    assert "larger than" in load(adapters, "a", path).message


def test_adapters_have_a_bound(tmp_path):
    """Beyond it loading fails and says so; those loaded stay."""
    adapters = Adapters(CPU, SHAPES, max_adapters=2)
    path = folder(tmp_path / "a")
    answers = [load(adapters, name, path) for name in "abc"]
    assert [answer.status for answer in answers] == [LoRAStatus.SUCCESS, LoRAStatus.SUCCESS, LoRAStatus.LOAD_ERROR]
    assert "2 adapters" in answers[2].message
    assert list(adapters.loaded) == ["a", "b"]


def test_adapters_have_a_bound_in_bytes(tmp_path):
    """Their weights in float32 count together; what one gave back another may have."""
    path = folder(tmp_path / "a")
    size = sum(array.nbytes for array in matrices().values())
    adapters = Adapters(CPU, SHAPES, max_bytes=2 * size)
    answers = [load(adapters, name, path) for name in "abc"]
    assert [answer.status for answer in answers] == [LoRAStatus.SUCCESS, LoRAStatus.SUCCESS, LoRAStatus.LOAD_ERROR]
    assert f"takes {size} bytes, those loaded {2 * size}" in answers[2].message
    assert "`adapter_bytes`" in answers[2].message
    unload(adapters, "a")
    assert load(adapters, "c", path).status is LoRAStatus.SUCCESS


def test_threads_load_and_unload(tmp_path, adapters):
    """Many at once: each operation is whole, and what remains is what the last one left."""
    path = folder(tmp_path / "a")

    def churn(name):
        for _ in range(5):
            assert load(adapters, name, path).status is LoRAStatus.SUCCESS
            assert unload(adapters, name).status is LoRAStatus.SUCCESS

    threads = [threading.Thread(target=churn, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert adapters.loaded == {}
