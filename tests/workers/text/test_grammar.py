"""Grammars compiled for a vocabulary: what they allow, how long they are kept, and what is refused."""

from __future__ import annotations

import json
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensoryard.errors import ConfigError, InvalidRequest
from tensoryard.proto import TextGenerationResponseFormat
from tensoryard.workers.text import grammar as grammars
from tensoryard.workers.text.grammar import Grammar, GrammarCompiler, grammar_of
from tensoryard.workers.text.vocabulary import Vocabulary

from . import tokenizers_made as made


def compiler(**more):
    pytest.importorskip("llguidance")
    tokenizer = made.byte_level()
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    given_ones = {"size": len(vocabulary) + 30, "end_ids": [tokenizer.token_to_id("<|end|>")]}
    return GrammarCompiler(vocabulary, encode=lambda text: made.ids(tokenizer, text), **{**given_ones, **more})


@pytest.fixture(scope="module")
def compiled():
    return compiler()


def allowed(matcher):
    bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
    return set(np.flatnonzero(bits).tolist())


def accepts(compiled, grammar, text):
    """Whether the whole text is in the language, token by token."""
    matcher = compiled.matcher(grammar)
    tokens = made.ids(made.byte_level(), text)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def test_each_kind_of_grammar(compiled):
    """A schema, an expression, a Lark grammar: what is in the language passes, the rest does not."""
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    form = TextGenerationResponseFormat("json_schema", json_schema=schema)
    assert accepts(compiled, grammar_of(form), '{"n": 12}')
    assert accepts(compiled, grammar_of(form), '{\n  "n": 12\n}')
    assert not accepts(compiled, grammar_of(form), '{"n": "12"}')
    assert not accepts(compiled, grammar_of(form), '{"n": 12}}')
    regex = grammar_of(TextGenerationResponseFormat("regex", grammar=r"[a-c]+\d"))
    assert accepts(compiled, regex, "abc3")
    assert not accepts(compiled, regex, "abc")
    lark = grammar_of(TextGenerationResponseFormat("grammar", grammar='start: "yes" | "no" "!"*'))
    assert accepts(compiled, lark, "no!!")
    assert not accepts(compiled, lark, "maybe")


TEXT = st.text('aé你"\\ \n1{}', max_size=8)
LEAVES = st.none() | st.booleans() | st.integers() | TEXT
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)


@settings(max_examples=50, deadline=None)
@given(JSON)
def test_an_empty_schema_is_any_json(compiled, value):
    """Objects are a type of their own, and text that is no JSON is neither."""
    text = json.dumps(value, ensure_ascii=False)
    assert accepts(compiled, grammar_of(TextGenerationResponseFormat("json_schema", json_schema={})), text)
    as_object = grammar_of(TextGenerationResponseFormat("json_object"))
    assert accepts(compiled, as_object, text) == isinstance(value, dict)


def test_white_space_ends(compiled):
    """A model cannot write nothing but line ends for ever."""
    matcher = compiled.matcher(Grammar("json", '{"type":"array"}'))
    blank = made.ids(made.byte_level(), "\n")
    assert matcher.try_consume_tokens(made.ids(made.byte_level(), "[")) == 1
    assert 0 < matcher.try_consume_tokens(blank * 200) < 200


def test_no_format_is_no_grammar():
    """Text, and types without a constraint."""
    assert grammar_of(None) is None
    assert grammar_of(TextGenerationResponseFormat("text")) is None


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (TextGenerationResponseFormat("json_schema"), "needs `json_schema`"),
        (TextGenerationResponseFormat("grammar"), "needs `grammar`"),
        (TextGenerationResponseFormat("regex", grammar="((("), "regex grammar cannot be used.*unclosed"),
        (TextGenerationResponseFormat("grammar", grammar="start: nothing"), "lark grammar.*nothing"),
        (TextGenerationResponseFormat("json_schema", json_schema={"type": "nonsense"}), "json grammar.*nonsense"),
        (TextGenerationResponseFormat("regex", grammar="a" * 300_000), "at most 262144 characters"),
    ],
)
def test_a_wrong_grammar_is_the_requests_own_mistake(compiled, form, said):
    """The error says what is wrong with it, and the next request is served."""
    with pytest.raises(InvalidRequest, match=f"(?s){said}"):
        compiled.matcher(grammar_of(form))
    assert accepts(compiled, Grammar("regex", "ok"), "ok")


def test_a_grammar_is_compiled_once_and_copies_are_apart():
    """Two requests of the same grammar share nothing but the compiled form."""
    compiled = compiler()
    one, other = compiled.matcher(Grammar("regex", "[ab]+")), compiled.matcher(Grammar("regex", "[ab]+"))
    assert len(compiled._compiled) == 1
    assert one.try_consume_tokens(made.ids(made.byte_level(), "ab")) > 0
    assert one.is_accepting()
    assert not other.is_accepting()


def test_compiled_grammars_have_a_bound(monkeypatch):
    """The one used longest ago goes."""
    monkeypatch.setattr(grammars, "MAX_COMPILED", 2)
    compiled = compiler()
    for text in ("a", "b", "a", "c"):
        compiled.matcher(Grammar("regex", text))
    assert [grammar.text for grammar in compiled._compiled] == ["a", "c"]


def test_threads_share_a_compiler():
    """Each gets an automaton of its own."""
    compiled, found = compiler(), []
    threads = [
        threading.Thread(target=lambda: found.append(accepts(compiled, Grammar("regex", "[ab]+"), "abab")))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [True] * 8


def test_what_is_missing_is_said(monkeypatch):
    """The library, with how to install it; an end token."""
    with pytest.raises(ConfigError, match="end token"):
        compiler(end_ids=[10**6])
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ConfigError, match=r"tensoryard\[text\]"):
        GrammarCompiler(Vocabulary((b"a",), frozenset()), size=1, end_ids=[0], encode=list)
