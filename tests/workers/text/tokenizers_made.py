"""Tokenizers of the two common kinds, made here in a moment; `tokenizers` is needed, models are not."""

from __future__ import annotations

import functools
import pydoc_data.topics
from types import SimpleNamespace

import pytest

#: Markers that models use, and the ends of texts.
SPECIAL = ["<|end|>", "<|start|>", "<think>", "</think>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]"]
TEXT = " ".join(pydoc_data.topics.topics.values())[:150_000] + " grüße, 你好 👍🏽 naïve €"


def _library():
    return pytest.importorskip("tokenizers")


@functools.cache
def byte_level():
    """Byte-level BPE, as Llama 3 and Qwen have it; only the first two markers are special."""
    lib = _library()
    made = lib.Tokenizer(lib.models.BPE())
    made.pre_tokenizer = lib.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = lib.decoders.ByteLevel()
    trainer = lib.trainers.BpeTrainer(
        vocab_size=900, show_progress=False, initial_alphabet=lib.pre_tokenizers.ByteLevel.alphabet()
    )
    made.train_from_iterator([TEXT], trainer)
    made.add_special_tokens(SPECIAL[:2])
    made.add_tokens(SPECIAL[2:])
    return made


@functools.cache
def byte_fallback():
    """SentencePiece BPE with bytes as a last resort, as Llama 2 and Mistral have it."""
    lib = _library()
    base = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = sorted(set(TEXT[:5000].replace(" ", "▁")) | {"▁"})
    words = ["▁t", "he", "▁the", "in", "▁a", "er"]
    vocabulary = {name: token for token, name in enumerate([*base, *letters, *words])}
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("i", "n"), ("▁", "a"), ("e", "r")]
    made = lib.Tokenizer(lib.models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = lib.normalizers.Sequence([lib.normalizers.Prepend("▁"), lib.normalizers.Replace(" ", "▁")])
    made.decoder = lib.decoders.Sequence(
        [
            lib.decoders.Replace("▁", " "),
            lib.decoders.ByteFallback(),
            lib.decoders.Fuse(),
            lib.decoders.Strip(" ", 1, 0),
        ]
    )
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return made


def word_piece():
    """Of a kind that nobody generates text with."""
    lib = _library()
    made = lib.Tokenizer(lib.models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    made.decoder = lib.decoders.WordPiece()
    return made


def ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


def with_ids(tokenizer):
    """As the parsers of `proto` want a tokenizer: `encode` that may be awaited."""

    async def encode(text, add_special_tokens=False):
        return tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    return SimpleNamespace(encode=encode)
