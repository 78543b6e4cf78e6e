"""Text from tokens as they come, against the tokenizer's own decoding of the whole."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensoryard.errors import ConfigError
from tensoryard.workers.text.detokenizer import Detokenizer
from tensoryard.workers.text.vocabulary import Vocabulary

from . import tokenizers_made as made

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def stream(detokenizer, tokens, cuts=()):
    """All pieces of a stream that is cut at some places, or after every token."""
    cuts = sorted({0, *cuts, len(tokens)}) if cuts else range(len(tokens) + 1)
    pieces = [detokenizer.feed(tokens[start:end]) for start, end in zip(cuts, [*cuts][1:], strict=False)]
    return [*pieces, detokenizer.flush()]


@settings(max_examples=150, deadline=None)
@given(TEXTS, st.lists(st.integers(0, 100), max_size=4))
def test_pieces_add_up_to_the_text(text, cuts):
    """Both kinds of vocabularies, any text, any cuts; what goes out is a whole character at any time."""
    for tokenizer in (made.byte_level(), made.byte_fallback()):
        tokens = made.ids(tokenizer, text)
        vocabulary = Vocabulary.from_tokenizer(tokenizer)
        cuts = [cut for cut in cuts if cut <= len(tokens)]
        pieces = stream(Detokenizer(vocabulary, at_start=True), tokens, cuts)
        assert "".join(pieces) == tokenizer.decode(tokens, skip_special_tokens=True)
        if "\ufffd" not in text:
            assert not any("\ufffd" in piece for piece in pieces)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 1200), max_size=40))
def test_any_tokens_make_the_text_that_the_tokenizer_makes(tokens):
    """Also where they are no UTF-8, special, or beyond the vocabulary."""
    tokenizer = made.byte_level()
    detokenizer = Detokenizer(Vocabulary.from_tokenizer(tokenizer))
    assert "".join(stream(detokenizer, tokens)) == tokenizer.decode(tokens, skip_special_tokens=True)


def test_part_of_a_character_waits():
    """The four bytes of an emoji: nothing before the last, then all of it; at the end of the stream U+FFFD."""
    tokenizer = made.byte_fallback()
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    tokens = made.ids(tokenizer, "🦀")[1:]
    assert len(tokens) == 4
    assert stream(Detokenizer(vocabulary), tokens) == ["", "", "", "🦀", ""]
    assert stream(Detokenizer(vocabulary), tokens[:3]) == ["", "", "", "\ufffd"]
    letter = made.ids(tokenizer, "the")[-1]
    assert stream(Detokenizer(vocabulary), [*tokens[:2], letter]) == ["", "", "\ufffd the", ""]


def test_a_first_space_goes_only_where_a_text_begins():
    """Behind a prompt the space belongs to the text."""
    vocabulary = Vocabulary.from_tokenizer(made.byte_fallback())
    tokens = made.ids(made.byte_fallback(), "the  the")
    assert "".join(stream(Detokenizer(vocabulary, at_start=True), tokens)) == "the  the"
    assert "".join(stream(Detokenizer(vocabulary), tokens)) == " the  the"


def test_special_tokens_are_shown_where_asked():
    """They structure the text and are no part of it, unless somebody looks for them."""
    tokenizer = made.byte_level()
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    tokens = made.ids(tokenizer, "<|start|>a<think>b<|end|>")
    assert "".join(stream(Detokenizer(vocabulary), tokens)) == "a<think>b"
    shown = Detokenizer(vocabulary, hidden={tokenizer.token_to_id("<|end|>")})
    assert "".join(stream(shown, tokens)) == "<|start|>a<think>b"


def test_added_tokens_are_meant_as_they_are_written():
    """Characters that stand for no byte are themselves."""
    tokenizer = type(made.byte_level()).from_str(made.byte_level().to_str())
    tokenizer.add_tokens(["<｜tool▁calls▁begin｜>"])  # noqa: RUF001
    token = tokenizer.token_to_id("<｜tool▁calls▁begin｜>")  # noqa: RUF001
    assert Detokenizer(Vocabulary.from_tokenizer(tokenizer)).feed([token]) == "<｜tool▁calls▁begin｜>"  # noqa: RUF001


def test_another_kind_of_tokenizer_is_refused():
    """The error names its decoder and those that are known."""
    with pytest.raises(ConfigError, match=r"WordPiece.*ByteLevel"):
        Vocabulary.from_tokenizer(made.word_piece())
