"""Structured output: grammars compiled for a model's vocabulary, once for all requests that ask for the same.

`grammar_hold.py` holds an answer to one; masks reach the logits by `sampling/masks.py`. The automata are llguidance's
(extra `text`), and only this module imports it.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError, InvalidRequest
from ...proto.text_request import TextGenerationResponseFormat
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from llguidance import LLMatcher

#: Longest grammar, in characters of its text.
MAX_GRAMMAR_CHARS = 2**18

#: Most compiled grammars that are kept; the one used longest ago goes first.
MAX_COMPILED = 256

#: White space between the parts of JSON: models that may write any amount sometimes write nothing else any more.
JSON_SPACE = r"[\x20\x0A\x0D\x09]{1,40}"


@dataclass(frozen=True)
class Grammar:
    """What an answer is held to. `kind`: json, regex or lark; `text`: the schema (as JSON), expression or grammar."""

    kind: str
    text: str


def grammar_of(form: TextGenerationResponseFormat | None) -> Grammar | None:
    """The grammar of a response format; None where it sets none.

    `type` "grammar" (Lark) and "regex" take `grammar`; "json_object" is any object; anything else goes by
    `json_schema`, of which {} is any one JSON value. Raises InvalidRequest for a type without what it needs.
    """
    if form is None:
        return None
    if form.type in ("grammar", "regex"):
        if not form.grammar:
            raise InvalidRequest(f"a response format of type {form.type!r} needs `grammar`")
        return Grammar("lark" if form.type == "grammar" else "regex", form.grammar)
    if form.json_schema is not None:
        return Grammar("json", json.dumps(form.json_schema, sort_keys=False))
    if form.type == "json_object":
        return Grammar("json", '{"type":"object"}')
    if form.type == "json_schema":
        raise InvalidRequest("a response format of type 'json_schema' needs `json_schema`")
    return None


class GrammarCompiler:
    """The grammars of one model; threads may share it.

    `size`: columns of the model's logits; `end_ids`: tokens that end an answer, at least one. `encode`: a text's token
    ids, without special tokens around them. Raises ConfigError without llguidance.
    """

    #: Automata in their first state, copied for each request; newest last.
    _compiled: OrderedDict[Grammar, LLMatcher]

    def __init__(self, vocabulary: Vocabulary, *, size: int, end_ids: Collection[int], encode: Any) -> None:
        try:
            import llguidance
        except ImportError:
            raise ConfigError("structured output needs llguidance: pip install 'tensoryard[text]'") from None
        self._library = llguidance
        ends = sorted(token for token in end_ids if token < size)
        if not ends:
            raise ConfigError("structured output needs a model with an end token: grammars end by one")
        wrapper = llguidance.TokenizerWrapper(_Tokens(vocabulary, ends[0], encode))
        self._tokenizer = llguidance.LLTokenizer(wrapper, n_vocab=max(size, len(vocabulary)), eos_token=ends)
        self._compiled = OrderedDict()
        self._lock = threading.Lock()

    def has(self, grammar: Grammar) -> bool:
        """Whether a grammar is compiled."""
        return grammar in self._compiled

    def matcher(self, grammar: Grammar) -> LLMatcher:
        """A new automaton in its first state.

        Raises InvalidRequest for a grammar that is too long or wrong, with what the library says about it. Compiling
        takes from under a millisecond to a second and holds no lock.
        """
        with self._lock:
            found = self._compiled.get(grammar)
            if found is not None:
                self._compiled.move_to_end(grammar)
                return found.deep_copy()
        made = self._compile(grammar)
        with self._lock:
            self._compiled[grammar] = made
            while len(self._compiled) > MAX_COMPILED:
                self._compiled.popitem(last=False)
            return made.deep_copy()

    def _compile(self, grammar: Grammar) -> LLMatcher:
        if len(grammar.text) > MAX_GRAMMAR_CHARS:
            raise InvalidRequest(
                f"a grammar has at most {MAX_GRAMMAR_CHARS} characters, not {len(grammar.text)}",
            )
        made = self._library.LLMatcher(self._tokenizer, self._source(grammar), log_level=0)
        if made.is_error():
            raise InvalidRequest(f"the {grammar.kind} grammar cannot be used: {made.get_error():.2000}")
        return made

    def _source(self, grammar: Grammar) -> str:
        build = self._library.LLMatcher
        try:
            if grammar.kind == "json":
                return str(build.grammar_from_json_schema(grammar.text, defaults={"whitespace_pattern": JSON_SPACE}))
            return str((build.grammar_from_regex if grammar.kind == "regex" else build.grammar_from_lark)(grammar.text))
        except ValueError as error:
            raise InvalidRequest(f"the {grammar.kind} grammar cannot be used: {error!s:.2000}") from None


class _Tokens:
    """A vocabulary as llguidance reads one; the names are its own."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary, end: int, encode: Any) -> None:
        self.eos_token_id = end
        self.tokens = list(vocabulary.pieces)
        self.special_token_ids = sorted(vocabulary.special)
        self._encode = encode

    def __call__(self, text: bytes | str) -> list[int]:
        return list(self._encode(text.decode() if isinstance(text, bytes) else text))
