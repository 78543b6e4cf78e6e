"""What an answer is held to, by what its request says."""

from __future__ import annotations

import json

import pytest

from tensoryard.errors import ConfigError, InvalidRequest
from tensoryard.proto import TextGenerationResponseFormat
from tensoryard.proto.reasoning_parsers import HarmonyReasoningParser, ThinkReasoningParser
from tensoryard.proto.tool_parsers import tool_parser
from tensoryard.workers.text.answer import AnswerStream
from tensoryard.workers.text.sampling.masks import Hold
from tensoryard.workers.text.structured import StructuredOutput
from tensoryard.workers.text.vocabulary import Vocabulary

from . import tokenizers_made as made
from .support import random_logits, sampler
from .test_grammar import compiler
from .test_grammar_hold import mask_of, request, size, token, tokens

NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
SCHEMA = TextGenerationResponseFormat("json_schema", json_schema=NUMBER)


def tool(name, **more):
    return {"type": "function", "function": {"name": name, "parameters": NUMBER, **more}}


@pytest.fixture(scope="module")
def compiled():
    return compiler()


def structured(compiled, **known):
    known = {"reasoning": ThinkReasoningParser, "calls": "hermes", **known}
    return StructuredOutput(compiled, tokens, **known)


def accepts(hold, text):
    """Whether the whole text may be the answer."""
    ids = tokens(text)
    return hold.try_consume_tokens(ids) == len(ids) and hold.is_accepting()


def test_a_schema_holds_the_answer_and_not_the_thinking(compiled):
    """From the first token on, or from the end of thinking."""
    makes = structured(compiled)
    assert accepts(makes.hold(SCHEMA), '{"n": 3}')
    assert accepts(makes.hold(SCHEMA), '<think>three, {"n": "x"}</think>{"n": 3}')
    assert accepts(makes.hold(SCHEMA, thinking=True), 'three</think>{"n": 3}')
    assert not accepts(makes.hold(SCHEMA), 'Well: {"n": 3}')
    assert not accepts(makes.hold(SCHEMA, [tool("f")]), 'Well: {"n": 3}')
    assert not accepts(structured(compiled, reasoning=None).hold(SCHEMA), "<think>so</think>")


def test_without_a_wish_an_answer_is_free(compiled):
    """Text, and tools that are not strict."""
    makes = structured(compiled)
    assert makes.hold(None) is None
    assert makes.hold(None, [tool("f"), tool("g", strict=False)]) is None
    assert makes.hold(TextGenerationResponseFormat("text")) is None


def test_strict_tools_have_their_calls_held(compiled):
    """Text is free, any number of calls too; inside one only a tool's name and what its schema allows."""
    makes = structured(compiled)
    tools = [tool("f", strict=True), tool("g", strict=False)]
    right = '<tool_call>\n{"name": "f", "arguments": {"n": 1}}\n</tool_call>'
    loose = '<tool_call>{"name": "g", "arguments": {"anything": [1]}}</tool_call>'
    assert accepts(makes.hold(None, tools), f"Let me see. {right} and {loose}{right} done")
    assert accepts(makes.hold(None, tools), f"<think>hm {right}")
    assert accepts(makes.hold(None, tools), "no call at all")
    assert not accepts(makes.hold(None, tools), right.replace('"n": 1', '"n": "1"'))
    assert not accepts(makes.hold(None, tools), right.replace('"f"', '"h"'))


def test_forced_tools_are_called(compiled):
    """Nothing but calls, one at least."""
    forced = TextGenerationResponseFormat("text", tools_forced=True)
    right = '<tool_call>{"name": "f", "arguments": {"n": 1}}</tool_call>'
    assert accepts(structured(compiled).hold(forced, [tool("f")]), right + "\n" + right)
    assert accepts(structured(compiled).hold(forced, [tool("f")]), f"<think>so</think>{right}")
    assert not accepts(structured(compiled).hold(forced, [tool("f")]), f"Well {right}")
    assert not structured(compiled).hold(forced, [tool("f")]).is_accepting()


def test_a_grammar_beside_tools_begins_at_the_opener(compiled):
    """Unless it is enforced from the first token on."""
    text = f'start: <[{token("<tool_call>")}]> "yes" | "no"'
    armed, enforced = (
        TextGenerationResponseFormat("grammar", grammar=text, grammar_enforced=now) for now in (False, True)
    )
    makes = structured(compiled)
    assert mask_of(makes.hold(armed, [tool("f")]))[0] is Hold.FREE
    assert accepts(makes.hold(armed, [tool("f")]), "free text <tool_call>yes and more")
    assert mask_of(makes.hold(enforced, [tool("f")]))[0] is Hold.HELD
    assert mask_of(makes.hold(armed))[0] is Hold.HELD


@pytest.mark.parametrize(
    ("calls", "text"),
    [
        ("hermes", '<tool_call>{"name": "f", "arguments": {"n": 12}}</tool_call>'),
        ("mistral", '[TOOL_CALLS][{"name": "f", "arguments": {"n": 12}}]'),
        ("llama_json", '<|python_tag|>{"name": "f", "parameters": {"n": 12}}'),
    ],
)
def test_each_format_is_what_its_parser_reads(compiled, calls, text):
    """The grammar's calls are calls to the tool parser of the same name."""
    forced = TextGenerationResponseFormat("text", tools_forced=True)
    assert accepts(structured(compiled, calls=calls).hold(forced, [tool("f")]), text)
    (call,) = tool_parser(calls).parse_complete(text).tool_calls
    assert (call.name, json.loads(call.arguments)) == ("f", {"n": 12})


def test_noise_calls_a_tool(compiled):
    """Random logits under the grammar: the stream gives calls of the tool with valid arguments."""
    forced = TextGenerationResponseFormat("text", tools_forced=True)
    vocabulary = Vocabulary.from_tokenizer(made.byte_level())
    for seed in range(5):
        one = request(
            structured(compiled, reasoning=None).hold(forced, [tool("f"), tool("g")]), seed=seed, max_length=500
        )
        answer = AnswerStream(vocabulary, tracker=one.context.eos_tracker, tools=tool_parser("hermes"))
        chooser, deltas = sampler(size()), []
        for step in range(400):
            if one.context.is_done:
                break
            logits = random_logits((seed, step), 1, size(), spread=1.0)
            logits[0, [token("<|end|>"), token("</tool_call>"), *tokens("}")]] += 6
            chosen = chooser.sample(logits, [one]).tokens[0]
            one.context.update(chosen)
            one.accept([chosen])
            deltas.append(answer.feed([chosen]))
        assert one.context.is_done
        deltas.append(answer.flush())
        names = [call.name for delta in deltas for call in delta.tool_calls if call.name]
        assert names
        assert set(names) <= {"f", "g"}
        assert "".join(delta.content for delta in deltas).strip() == ""


def test_what_cannot_be_held_is_said(compiled):
    """A model without a format, formats without a grammar, thinking without marks, and too much of it."""
    forced = TextGenerationResponseFormat("text", tools_forced=True)
    with pytest.raises(InvalidRequest, match="no format for calls"):
        structured(compiled, calls=None).hold(forced, [tool("f")])
    with pytest.raises(ConfigError, match="'pythonic' cannot be held; hermes"):
        structured(compiled, calls="pythonic")
    with pytest.raises(InvalidRequest, match="at most 128 tools"):
        structured(compiled).hold(forced, [tool("f")] * 129)
    with pytest.raises(InvalidRequest, match="`function` with a `name`"):
        structured(compiled).hold(forced, [{"type": "function"}])
    with pytest.raises(InvalidRequest, match="nonsense"):
        structured(compiled).hold(forced, [{"function": {"name": "f", "parameters": {"type": "nonsense"}}}])

    class Unnamed(HarmonyReasoningParser):
        REASONING_START = None
        REASONING_END = None

    with pytest.raises(ConfigError, match="Unnamed names no marks"):
        structured(compiled, reasoning=Unnamed)
