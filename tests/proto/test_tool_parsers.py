"""Tool parsers: each format by hand, and what holds for all of them, however an answer is cut into pieces."""

from __future__ import annotations

import doctest
import json
import re
from itertools import count, pairwise
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tensoryard.proto.tool_parsers import TOOL_PARSERS, HermesToolParser, tool_parser
from tensoryard.proto.tool_parsers.answer import MAX_NAME_CHARS
from tensoryard.proto.tool_parsers.harmony import MAX_HEADER_CHARS
from tensoryard.proto.tool_parsers.markers import Markers
from tensoryard.proto.tool_parsers.source import Source
from tensoryard.proto.tool_parsing import (
    ParsedToolCall,
    ParsedToolCallDelta,
    ParsedToolResponse,
    ToolParser,
    collect_deltas,
)

SCHEMAS = {
    "f": {
        "type": "object",
        "properties": {"n": {"type": "integer"}, "s": {"type": "string"}, "any": {}, "many": {"type": "array"}},
    },
}

# DeepSeek's markers have wide bars and low blocks.
DS = {word: f"<｜{word.replace(' ', '▁')}｜>" for word in ("tool calls begin", "tool calls end", "tool call begin")}  # noqa: RUF001
DS |= {word: f"<｜{word.replace(' ', '▁')}｜>" for word in ("tool call end", "tool sep")}  # noqa: RUF001


def deepseek(text):
    """`text` with [[…]] for markers."""
    for word, marker in DS.items():
        text = text.replace(f"[[{word}]]", marker)
    return text


def fresh(name):
    """A parser whose ids count up."""
    numbers = count()
    parser = tool_parser(name, make_id=lambda: f"id{next(numbers)}")
    parser.set_streaming_tool_schemas(SCHEMAS)
    return parser


def streamed(parser, pieces):
    """All deltas of a stream; what passes as it is comes as content."""
    deltas = []
    for piece in pieces:
        sent = parser.parse_delta(piece)
        deltas.extend([ParsedToolCallDelta(0, content=piece)] if sent is None else sent)
    deltas.extend(parser.flush())
    check_contract(deltas)
    return deltas


def check_contract(deltas):
    """Id and name come once, first and together; calls come in order; nothing empty is sent."""
    begun = 0
    for delta in deltas:
        if delta.content is not None:
            assert delta.content
            assert (delta.id, delta.name, delta.arguments) == (None, None, None)
        elif delta.id is not None:
            assert delta.name
            assert delta.index == begun
            begun += 1
        else:
            assert delta.name is None
            assert delta.arguments
            assert delta.index == begun - 1


def outcome(name, pieces):
    """What a stream adds up to, and what was wrong."""
    parser = fresh(name)
    return collect_deltas(streamed(parser, pieces)), parser.problem


def cut(text, at):
    """`text` in pieces that end at each of the positions."""
    edges = [0, *sorted({position % (len(text) + 1) for position in at}), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


def complete(name, text):
    """The whole answer, or the error's text."""
    try:
        return fresh(name).parse_complete(text)
    except ValueError as error:
        return str(error)


def check_all_ways(name, text, ways):
    """Every way to cut gives the same, and the same as the whole; an error there shows in the stream as well."""
    found, problem = outcome(name, [text])
    for pieces in ways:
        assert outcome(name, pieces) == (found, problem), pieces
    whole = complete(name, text)
    if isinstance(whole, str):
        assert problem == whole or (problem is None and not found.tool_calls), whole
    else:
        assert (whole, problem) == (found, None)
    return whole


def call(name, arguments="{}", call_id="id0"):
    return ParsedToolCall(call_id, name, arguments)


def answer(*calls, content=None):
    """Calls given as (name, arguments); ids count up."""
    return ParsedToolResponse(content, [call(*each, call_id=f"id{n}") for n, each in enumerate(calls)])


READ = {
    "hermes": [
        ('<tool_call>\n{"name": "f", "arguments": {"n": 1}}\n</tool_call>', answer(("f", '{"n": 1}'))),
        (
            'First <tool_call>{"name":"f","arguments":{}}</tool_call>\n\n<tool_call>{"name":"g"}</tool_call>\n then.',
            answer(("f",), ("g",), content="First \n then."),
        ),
        ('<tool_call>{"arguments": {"a": [1]}, "name": "f"}', answer(("f", '{"a": [1]}'))),
        ('<tool_call>{"name": "f", "arguments": null}</tool_call>', answer(("f",))),
        ('<tool_call>{"name": "f", "arguments": "{\\"a\\": \\"b\\"}"}</tool_call>', answer(("f", '{"a": "b"}'))),
        ('<tool_call>{"name": "f", "arguments": ""}</tool_call>', answer(("f",))),
        ('<tool_call>{"id": 7, "name": "f", "extra": [{"name": 1}], "arguments": {}}</tool_call>', answer(("f",))),
        (
            '<tool_call>[{"name": "f"}, {"name": "g", "arguments": {"b": 2}}]</tool_call>',
            answer(("f",), ("g", '{"b": 2}')),
        ),
        # Closing tags, markers, brackets and quotes in strings are strings.
        (
            '<tool_call>{"name": "f", "arguments": {"a": "</tool_call> {\\"}] <tool_call>"}}</tool_call>!',
            answer(("f", '{"a": "</tool_call> {\\"}] <tool_call>"}'), content="!"),
        ),
        (
            '<tool_call>{"name": "f\\u00e9\\ud83d\\ude00", "arguments": {"k": "\\ud83d\\ude00é"}}',
            answer(("fé😀", '{"k": "\\ud83d\\ude00é"}')),
        ),
        # A bracket too many, and a closing tag forgotten.
        ('<tool_call>{"name": "f", "arguments": {}}}\n</tool_call> ok', answer(("f",), content=" ok")),
        ('<tool_call>{"name": "f"}\n<tool_call>{"name": "g"}', answer(("f",), ("g",))),
        ('<tool_call>{"name": "f"} done', answer(("f",), content=" done")),
        ('<tool_call>{"name": "f"}} done </tool_call>', answer(("f",), content="} done </tool_call>")),
        ('<tool_call>{"name": "f"}</tool_call> </tool_', answer(("f",), content=" </tool_")),
        (
            '<tool_call>{"name": "f"}</tool_call></tool<tool_call>{"name": "g"}',
            answer(("f",), ("g",), content="</tool"),
        ),
        # A line end that JSON forbids in a string.
        ('<tool_call>{"name": "f", "arguments": {"a": "1\n2"}}</tool_call>', answer(("f", '{"a": "1\\n2"}'))),
        # Another marker that is no call does not spoil one that is.
        ('The <tool_call> tag: <tool_call>{"name": "f"}</tool_call>', answer(("f",), content="The <tool_call> tag: ")),
        ("<tool_cal", ParsedToolResponse("<tool_cal")),
        ("a < b </tool_call> <<tool_call", ParsedToolResponse("a < b </tool_call> <<tool_call")),
        ("", ParsedToolResponse()),
    ],
    "llama_json": [
        ('{"name": "f", "parameters": {"n": 1}}', answer(("f", '{"n": 1}'))),
        ('\n {"type": "function", "name": "f", "arguments": {}}', answer(("f",), content="\n ")),
        ('<|python_tag|>{"name": "f"}<|eom_id|>', answer(("f",))),
        ('{"name": "f", "parameters": {}}; {"name": "g", "parameters": {"x": {}}}', answer(("f",), ("g", '{"x": {}}'))),
        ('{"name": "f", "parameters": {}}\n{"name": "g", "parameters": {}}<|eot_id|>', answer(("f",), ("g",))),
        (
            '[{"name": "f", "parameters": {}}, {"name": "g", "parameters": {"a": "b"}}]',
            answer(("f",), ("g", '{"a": "b"}')),
        ),
        ('Sure:\n{"name": "f", "parameters": {}}\nSo.', answer(("f",), content="Sure:\n\nSo.")),
        ('Sure: <|python_tag|>[{"name": "f"}] ; and', answer(("f",), content="Sure:  ; and")),
        ('Let me.\n\n[{"name": "f", "arguments": {"a": 1}}]', answer(("f", '{"a": 1}'), content="Let me.\n\n")),
        # An object told to be a call stays one, whatever else it holds.
        ('{"name": "f", "parameters": {}, "why": [1, 2]}', answer(("f",))),
        # JSON that is no call.
        *(
            (text, ParsedToolResponse(text))
            for text in (
                '{"name": "Ann", "age": 3}',
                '{"name": "Ann"}',
                '{"name": 5, "parameters": {}}',
                '{"answer": {"name": "f", "parameters": {}}}',
                '{"tools": [\n  {"name": "f", "parameters": {}}\n]}',
                '{"name": "f", "description": "x", "parameters": {"type": "object"}}',
                'Look: {"name": "f", "parameters": {}}',
                "[1, 2]\n[x](y)\n{z}\n",
                "{",
                '{"name": "f", "para',
                "[",
                "\n\n  ",
                "text\n",
            )
        ),
    ],
    "mistral": [
        ('[TOOL_CALLS] [{"name": "f", "arguments": {"n": 1}}]', answer(("f", '{"n": 1}'))),
        ('Hm.[TOOL_CALLS][{"name": "f"},\n{"arguments": {}, "name": "g"}]\n', answer(("f",), ("g",), content="Hm.")),
        ('[TOOL_CALLS]{"name": "f", "arguments": {"a": "]"}}', answer(("f", '{"a": "]"}'))),
        ('[TOOL_CALLS]f{"n": 1}[TOOL_CALLS]g {}', answer(("f", '{"n": 1}'), ("g",))),
        ('[TOOL_CALLS] my-f.v2[ARGS]{"n": {"m": []}} over', answer(("my-f.v2", '{"n": {"m": []}}'), content=" over")),
        (
            "[TOOL_CALLS]f[CALL_ID]abcDEF123[ARGS]{}[TOOL_CALLS]g[CALL_ID]abcDEF123[ARGS]{}[TOOL_CALLS]h[CALL_ID][ARGS]{}",
            ParsedToolResponse(None, [call("f", call_id="abcDEF123"), call("g"), call("h", call_id="id1")]),
        ),
        ("[TOOL_CALL] [TOOL", ParsedToolResponse("[TOOL_CALL] [TOOL")),
    ],
    "deepseek": [
        (
            deepseek(
                "So: [[tool calls begin]][[tool call begin]]function[[tool sep]]f\n```json\n"
                '{"n": 1}\n```[[tool call end]]\n[[tool call begin]]function[[tool sep]]g\n```json\n{}\n```'
                "[[tool call end]][[tool calls end]] done",
            ),
            answer(("f", '{"n": 1}'), ("g",), content="So:  done"),
        ),
        (
            deepseek(
                '[[tool calls begin]][[tool call begin]]f[[tool sep]]{"a": "```"}[[tool call end]]'
                "[[tool call begin]]g[[tool sep]]{}[[tool call end]][[tool calls end]]",
            ),
            answer(("f", '{"a": "```"}'), ("g",)),
        ),
        (deepseek("[[tool call begin]] f [[tool sep]]\n```json\n{}\n```"), answer(("f",))),
        (deepseek("[[tool call begin]]function[[tool sep]]f\n{}[[tool call end]]"), answer(("f",))),
        (deepseek("[[tool calls begin]]\n[[tool call begin]]f[[tool sep]][[tool call end]]"), answer(("f",))),
        (deepseek("[[tool call begin]]function[[tool sep]]f[[tool call end]]x"), answer(("f",), content="x")),
        ("<｜tool", ParsedToolResponse("<｜tool")),  # noqa: RUF001
    ],
    "qwen_coder": [
        (
            "Go.<tool_call>\n<function=f>\n<parameter=n>\n5\n</parameter>\n<parameter=s>\n5\n</parameter>\n</function>\n</tool_call>",
            answer(("f", '{"n": 5, "s": "5"}'), content="Go."),
        ),
        ("<tool_call><function=g></function></tool_call> <tool_call><function=f></function>", answer(("g",), ("f",))),
        # Only one line end at each side is the format's; what looks like a tag in the middle of a line is text.
        (
            '<function=g><parameter=code>\n\n if a < b:\n\t"x" </function> <parameter=y>\n\n</parameter></function>',
            answer(("g", '{"code": "\\n if a < b:\\n\\t\\"x\\" </function> <parameter=y>\\n"}')),
        ),
        # A closing tag forgotten.
        (
            "<function=g>\n<parameter=a>\n1\n<parameter=b>\n2\n</function>\n</tool_call>after",
            answer(("g", '{"a": "1", "b": "2"}'), content="after"),
        ),
        (
            (
                "<function=f>"
                "<parameter=n>five</parameter><parameter=any>[1, 2]</parameter><parameter=many>\n[\n]\n</parameter>"
                "</function>"
            ),
            answer(("f", '{"n": "five", "any": [1, 2], "many": [\n]}')),
        ),
        ("<function=f><parameter=any>plain</parameter></function>", answer(("f", '{"any": "plain"}'))),
        (
            "<function=g><parameter=a></parameter><parameter=b>\n</parameter></function>",
            answer(("g", '{"a": "", "b": ""}')),
        ),
        ("1 <function and </function>", ParsedToolResponse("1 <function and </function>")),
    ],
    "pythonic": [
        ("[f()]", answer(("f",))),
        (
            "[f(n=1, s='it\\'s', any={'a': [True, None, (1.5,)]}), g.h(x=-2)]",
            answer(("f", '{"n": 1, "s": "it\'s", "any": {"a": [true, null, [1.5]]}}'), ("g.h", '{"x": -2}')),
        ),
        ("Well.\n[f(a=1,),]\nDone [f(a=1)]", answer(("f", '{"a": 1}'), content="Well.\n\nDone [f(a=1)]")),
        ("Well. <|python_start|> [ f ( a = 1 ) ] <|python_end|> so", answer(("f", '{"a": 1}'), content="Well.  so")),
        ('<|python_tag|>[f(a="[g()]")]<|eom_id|>[g()]', answer(("f", '{"a": "[g()]"}'), ("g",))),
        (" [f(a='é😀\\ud83d')]", answer(("f", '{"a": "é😀\\ud83d"}'), content=" ")),
        *(
            (text, ParsedToolResponse(text))
            for text in (
                "[1, 2]",
                "[]",
                "[see(figure 1)]",
                "[f(1)]",
                "[f(a==1)]",
                "[f(1=2)]",
                "[a for a in b]",
                "[f(a",
                "[x] done\n[link](there)\n[",
                "see [f(a=1)]",
                "[2f(a=1)]",
                "[.f(a=1)]",
            )
        ),
    ],
    "harmony": [
        (
            (
                "<|channel|>analysis<|message|>Let me see.<|end|>"
                '<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"n": 1}<|call|>'
            ),
            answer(("f", '{"n": 1}')),
        ),
        (
            (
                "<|channel|>commentary<|message|>I will.<|end|>"
                "<|start|>assistant to=functions.f<|channel|>commentary json<|message|>{}<|call|>"
                "<|start|>assistant<|channel|>final<|message|>Done.<|return|>"
            ),
            answer(("f",), content="I will.Done."),
        ),
        (' to=functions.g<|channel|>commentary<|message|>\n{"a": "<|end|>"}\n', answer(("g", '{"a": "<|end|>"}'))),
        ("<|channel|>commentary to=functions.f<|message|><|call|>", answer(("f",))),
        ("<|channel|>commentary to=functions.f<|message|>{}\n<|call|>", answer(("f",))),
        ("<|channel|>commentary to=functions.f<|message|>{} ?<|call|>!", answer(("f",), content=" ?!")),
        ("<|channel|>analysis to=python code<|message|>print(1)<|call|>", ParsedToolResponse()),
        ("<|start|>assistant<|message|>no channel<|end|>", ParsedToolResponse("no channel")),
        ("<|channel|>final <|constrain|>json<|message|>{}<|return|>", ParsedToolResponse("{}")),
        (
            "text <|end|>between<|channel|>final<|message|>a<|channel|>final<|message|>b",
            ParsedToolResponse("text betweenab"),
        ),
        (
            "<|start|>assistant<|end|>x<|start|>assistant<|start|>assistant<|channel|>final<|message|>y",
            ParsedToolResponse("xy"),
        ),
        ("today", ParsedToolResponse("today")),
        ("  to=function", ParsedToolResponse("  to=function")),
        ("<|channel|>analysis<|message|>cut of", ParsedToolResponse()),
        ("<|channel|>ana", ParsedToolResponse()),
        ("a<|chan", ParsedToolResponse("a<|chan")),
    ],
}

#: Answers that cannot be read whole: the format, the text, what the error says, what a stream gives.
REFUSED = [
    ("hermes", "<tool_call> nothing", "no call can be read", ParsedToolResponse("<tool_call> nothing")),
    ("hermes", "a<tool_call>", "the text ends where a call should come", ParsedToolResponse("a<tool_call>")),
    ("hermes", '<tool_call>{"name": "f"', "',' or '}' should come", ParsedToolResponse('<tool_call>{"name": "f"')),
    ("hermes", '<tool_call>{"a": 1}</tool_call>', "has no name", ParsedToolResponse('<tool_call>{"a": 1}</tool_call>')),
    ("hermes", '<tool_call>{"name": ""}', "1 to 256", ParsedToolResponse('<tool_call>{"name": ""}')),
    (
        "hermes",
        '<tool_call>{"name": "f", "name": "g"}',
        "one name",
        ParsedToolResponse('<tool_call>{"name": "f", "name": "g"}'),
    ),
    (
        "hermes",
        '<tool_call>{"name": 1}',
        "the name of a call is a string",
        ParsedToolResponse('<tool_call>{"name": 1}'),
    ),
    ("hermes", '<tool_call>{"name" "f"}', "a key is followed by ':'", ParsedToolResponse('<tool_call>{"name" "f"}')),
    ("hermes", '<tool_call>{"name": "f",}', "a comma stands before", ParsedToolResponse('<tool_call>{"name": "f",}')),
    ("hermes", '<tool_call>{"name": "f" 1', "'1' stands where", ParsedToolResponse('<tool_call>{"name": "f" 1')),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": 5}',
        "'5' stands",
        ParsedToolResponse('<tool_call>{"name": "f", "arguments": 5}'),
    ),
    ("hermes", "<tool_call>[1]", "holds objects", ParsedToolResponse("<tool_call>[1]")),
    ("hermes", '<tool_call>[{"name": "f"} 1]</tool_call>x', "stands behind a call", answer(("f",), content="x")),
    (
        "hermes",
        'a<tool_call>{"name": "f", "arguments": {"x": "1 2',
        "the call of 'f' cannot be read whole: the text ends where the end of a string should come",
        answer(("f", '{"x": "1 2'), content="a"),
    ),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"x": 12', "rest of a value", answer(("f", '{"x": '))),
    ("hermes", '<tool_call>{"name": "f", "arguments": {}, "arguments": {}}', "arguments once", answer(("f",))),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"x": oops}}</tool_call> b <tool_call>{"name": "g"}</tool_call>',
        "'oops' is no JSON value",
        answer(("f", '{"x": '), ("g",), content=" b "),
    ),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"x": oops}}\n<tool_call>{"name": "g"}</tool_call>',
        "'oops' is no JSON value",
        answer(("f", '{"x": '), ("g",)),
    ),
    (
        "hermes",
        '<tool_call>{"name": "f"}</tool_call><tool_call>{"na',
        "call number 2 cannot be read whole",
        answer(("f",), content='<tool_call>{"na'),
    ),
    ("llama_json", "<|python_tag|>print(1)", "no call can be read", ParsedToolResponse("<|python_tag|>print(1)")),
    ("llama_json", '{"name": "f", "parameters": {"a": ', "a value should come", answer(("f", '{"a": '))),
    ("llama_json", '[{"name": "f", "parameters": {}}, 5] b', "holds objects", answer(("f",))),
    ("mistral", "[TOOL_CALLS]", "a call should come", ParsedToolResponse("[TOOL_CALLS]")),
    ("mistral", "[TOOL_CALLS]f", "'{' should come", ParsedToolResponse("[TOOL_CALLS]f")),
    ("mistral", "[TOOL_CALLS]f(a=1)", "'(' stands where", ParsedToolResponse("[TOOL_CALLS]f(a=1)")),
    ("mistral", "[TOOL_CALLS]!", "1 to 256", ParsedToolResponse("[TOOL_CALLS]!")),
    ("mistral", "[TOOL_CALLS]f[CALL", "should come", ParsedToolResponse("[TOOL_CALLS]f[CALL")),
    ("mistral", "[TOOL_CALLS]f[ARGS]5", "'5' stands where", ParsedToolResponse("[TOOL_CALLS]f[ARGS]5")),
    ("mistral", '[TOOL_CALLS]f{"a": [', "a value or ']' should come", answer(("f", '{"a": ['))),
    (
        "deepseek",
        deepseek("[[tool calls begin]]x"),
        "no call can be read",
        ParsedToolResponse(deepseek("[[tool calls begin]]x")),
    ),
    (
        "deepseek",
        deepseek("[[tool call begin]]f[[tool sep]]g h"),
        "'h' stands where",
        ParsedToolResponse(deepseek("[[tool call begin]]f[[tool sep]]g h")),
    ),
    (
        "deepseek",
        deepseek("[[tool call begin]]f[[tool sep]]<"),
        "should come",
        ParsedToolResponse(deepseek("[[tool call begin]]f[[tool sep]]<")),
    ),
    (
        "deepseek",
        deepseek("[[tool call begin]]f[[tool sep]]"),
        "the arguments should come",
        ParsedToolResponse(deepseek("[[tool call begin]]f[[tool sep]]")),
    ),
    (
        "deepseek",
        deepseek('[[tool call begin]]f[[tool sep]]{"a": x}[[tool call end]] b'),
        "'x' is no JSON value",
        answer(("f", '{"a": '), content=" b"),
    ),
    ("qwen_coder", "<tool_call>{}", "no call can be read", ParsedToolResponse("<tool_call>{}")),
    ("qwen_coder", "<function=f> is a tag", "'i' stands where '<'", ParsedToolResponse("<function=f> is a tag")),
    ("qwen_coder", "<function=>", "1 to 256", ParsedToolResponse("<function=>")),
    ("qwen_coder", "<function=f>", "'</function>' should come", ParsedToolResponse("<function=f>")),
    ("qwen_coder", "<function=f><parameter=s>\nabc", "'</parameter>' should come", answer(("f", '{"s": "abc'))),
    ("qwen_coder", "<function=f><parameter=n>\n12", "'</parameter>' should come", answer(("f", '{"n": '))),
    (
        "qwen_coder",
        "<function=f><parameter=s>a</parameter><parameter=s>b</parameter></function></tool_call>c",
        "'s' comes twice",
        answer(("f", '{"s": "a"'), content="c"),
    ),
    ("pythonic", "<|python_start|>print", "no call can be read", ParsedToolResponse("<|python_start|>print")),
    ("pythonic", "<|python_start|>[f(", "an argument or ')' should come", ParsedToolResponse("<|python_start|>[f(")),
    ("pythonic", "[f(a='b", "the end of a string should come", answer(("f", '{"a": "b'))),
    ("pythonic", "[f(a=1, a=2)]", "comes twice", answer(("f", '{"a": 1'))),
    ("pythonic", "[f(a=1; b=2)]", "';' stands where", answer(("f", '{"a": 1'))),
    ("pythonic", "[f(a=[x for x in y])] z", "'x' is no literal", answer(("f", '{"a": ['))),
    ("pythonic", "[f(); g()]", "';' stands behind a call", answer(("f",))),
    ("pythonic", "[f(a=(1))]", "')' stands where ','", answer(("f", '{"a": [1'))),
    ("harmony", "<|channel|>commentary to=functions.f", "'<|message|>' should come", ParsedToolResponse()),
    ("harmony", "<|channel|>commentary to=functions.f<|message|>", "the arguments should come", answer(("f", ""))),
    ("harmony", "<|channel|>commentary to=functions.f<|message|><|ca", "'{' should come", answer(("f", ""))),
    ("harmony", '<|channel|>commentary to=functions.f<|message|>{"a"', "':' should come", answer(("f", '{"a"'))),
    ("harmony", "<|channel|>commentary to=functions.f<|message|>5<|call|>", "no JSON object", answer(("f", ""))),
    (
        "harmony",
        "<|channel|>commentary to=functions.f<|message|>{x<|call|><|channel|>final<|message|>y",
        "a key of a JSON object is a string",
        answer(("f", "{"), content="y"),
    ),
    ("harmony", "<|channel|>commentary to=functions.<|message|>{}<|call|>x", "1 to 256", ParsedToolResponse("x")),
]


def every_cut(text):
    """Character by character, and in two pieces at every position."""
    yield list(text)
    yield from ([text[:at], text[at:]] for at in range(len(text) + 1))


@pytest.mark.parametrize(("name", "text", "found"), [(name, *each) for name, cases in READ.items() for each in cases])
def test_answers_are_read(name, text, found):
    """By hand, whole and cut anywhere."""
    assert check_all_ways(name, text, every_cut(text)) == found


@pytest.mark.parametrize(("name", "text", "says", "found"), REFUSED)
def test_answers_that_cannot_be_read_whole(name, text, says, found):
    """The whole is an error that says what is missing; the stream gives what was certain and keeps the rest as text."""
    whole = check_all_ways(name, text, every_cut(text))
    assert isinstance(whole, str)
    assert says in whole
    assert outcome(name, [text])[0] == found


# --- the contract


@pytest.mark.parametrize("name", TOOL_PARSERS)
def test_parsers_by_name(name):
    """Each is a ToolParser of its own, and makes ids that differ."""
    first, second = tool_parser(name), tool_parser(name)
    assert isinstance(first, ToolParser)
    assert type(first) is TOOL_PARSERS[name]
    assert first is not second
    assert len({first.new_id() for _ in range(100)}) == 100
    assert first.flush() == []


def test_unknown_names_list_the_known():
    """The error helps."""
    with pytest.raises(ValueError, match=r"'gpt'.*deepseek, harmony, hermes"):
        tool_parser("gpt")


def test_ids():
    """`call_` and 24 digits; for Mistral nine letters and digits."""
    made = HermesToolParser().parse_complete('<tool_call>{"name": "f"}').tool_calls[0].id
    assert made.startswith("call_")
    assert int(made[5:], 16) >= 0
    assert len(made) == 29
    made = tool_parser("mistral").parse_complete("[TOOL_CALLS]f{}").tool_calls[0].id
    assert len(made) == 9
    assert made.isalnum()


def test_weakness_44_three_answers():
    """None passes a piece as it is, [] holds it, a list is sent; what is held comes with flush."""
    parser = fresh("hermes")
    assert parser.parse_delta("plain") is None
    assert parser.parse_delta("") == []
    assert parser.parse_delta("a <") == [ParsedToolCallDelta(0, content="a ")]
    assert parser.parse_delta("tool") == []
    assert parser.parse_delta("box>") == [ParsedToolCallDelta(0, content="<toolbox>")]
    assert parser.parse_delta("more") is None
    assert parser.parse_delta("<tool_ca") == []
    assert parser.flush() == [ParsedToolCallDelta(0, content="<tool_ca")]
    assert parser.flush() == []


def test_arguments_stream_as_they_come():
    """A call is announced with the first of its arguments; each piece goes out at once."""
    parser = fresh("hermes")
    sent = [
        parser.parse_delta(piece) for piece in ('<tool_call>{"name": "f", "arg', 'uments": {"s": "ab', "cd", '"', "}}")
    ]
    assert sent == [
        [],
        [ParsedToolCallDelta(0, id="id0", name="f", arguments='{"s": "ab')],
        [ParsedToolCallDelta(0, arguments="cd")],
        [ParsedToolCallDelta(0, arguments='"')],
        [ParsedToolCallDelta(0, arguments="}")],
    ]


def test_weakness_45_calls_without_arguments_are_announced():
    """A call that never gets an argument byte comes with the empty object."""
    parser = fresh("hermes")
    assert parser.parse_delta('<tool_call>{"name": "f"') == []
    assert parser.parse_delta("}") == [ParsedToolCallDelta(0, id="id0", name="f", arguments="{}")]


def test_strings_of_qwen_stream_as_they_come():
    """A value known to be a string does not wait for its end."""
    parser = fresh("qwen_coder")
    parser.parse_delta("<function=f><parameter=s>\n")
    assert parser.parse_delta('say "') == [ParsedToolCallDelta(0, arguments='say \\"')]
    assert parser.parse_delta("hi\n") == [ParsedToolCallDelta(0, arguments="hi")]


def test_reset_and_flush_begin_anew():
    """Nothing of one stream is in the next, but the schemas; a whole answer does not disturb a stream."""
    parser = fresh("qwen_coder")
    parser.parse_delta("<function=f><parameter=n>1")
    assert (
        parser.parse_complete("<function=f><parameter=n>2</parameter></function>").tool_calls[0].arguments == '{"n": 2}'
    )
    parser.flush()
    assert parser.problem is not None
    assert parser.parse_delta("hello") is None
    assert parser.problem is None
    parser.parse_delta("<function=f><para")
    parser.reset()
    assert parser.parse_delta("hello") is None
    deltas = streamed(parser, ["<function=f><parameter=n>3</parameter></function>"])
    assert [delta.arguments for delta in deltas] == ['{"n": 3}']
    assert deltas[0].index == 0


def test_names_are_bounded():
    """A name without end is no name."""
    text = "[TOOL_CALLS]" + "f" * (MAX_NAME_CHARS + 1) + "{}"
    assert "longer than 256" in check_all_ways("mistral", text, [list(text)])


def test_headers_of_harmony_are_bounded():
    """A header without end is text, and what follows is read as ever."""
    text = "<|channel|>" + "final " * (MAX_HEADER_CHARS // 6 + 1) + "<|channel|>final<|message|>x"
    whole = check_all_ways("harmony", text, [list(text), cut(text, range(0, len(text), 7))])
    assert whole.content == text[: text.rindex("<|channel|>")] + "x"


# --- properties

#: Text that is nearly right: what the formats use, and what all of them meet.
FRAGMENTS = {
    "hermes": "<tool_call> </tool_call>".split(),
    "llama_json": '<|python_tag|> <|eom_id|> ; "parameters"'.split(),
    "mistral": "[TOOL_CALLS] [ARGS] [CALL_ID] [TOOL_CALLS]f{".split(),
    "deepseek": [*DS.values(), "```", "```json", "function", DS["tool call begin"] + "f" + DS["tool sep"]],
    "qwen_coder": "<tool_call> </tool_call> <function=f> </function> <parameter=s> <parameter=n> </parameter>".split(),
    "pythonic": r"<|python_start|> <|python_end|> f( a= ) ' \' \x4 [f(a= r' True".split(),
    "harmony": [
        *"<|start|> <|channel|> <|message|> <|end|> <|call|> <|constrain|>json assistant analysis commentary".split(),
        *("final", " to=functions.f", "to=functions.", "<|channel|>commentary to=functions.f<|message|>{"),
    ],
}
COMMON = [
    *r"""{ } [ ] " , : f < <| "name" 1 \ \" é 😀 \u00 null [TOOL </ -1.5e3""".split(),
    *(" ", "\n", '{"name": "f"', ', "arguments": {', '"a": ', "\ud800", "text "),
]


@pytest.mark.parametrize("name", TOOL_PARSERS)
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_text_in_any_pieces_gives_the_same(name, data):
    """Text made to be nearly right: no way to cut it changes the outcome, and a stream never raises."""
    text = "".join(data.draw(st.lists(st.sampled_from(FRAGMENTS[name] * 2 + COMMON), max_size=16)))
    at = data.draw(st.lists(st.integers(0, 200), max_size=6))
    check_all_ways(name, text, [list(text), cut(text, at), cut(text, at[:1])])


@pytest.mark.parametrize("name", TOOL_PARSERS)
@settings(max_examples=50, deadline=None)
@given(text=st.text())
def test_random_text_is_content(name, text):
    """Text without a call passes through, whole; only harmony takes marks away where there is none."""
    found, _ = outcome(name, list(text))
    assume(not found.tool_calls and (name != "harmony" or not re.search(r"<\||to=", text)))
    assert found.content == (text or None)


NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,12}", fullmatch=True)
TRICKY = st.sampled_from(
    [
        *r"""</tool_call> <tool_call> [TOOL_CALLS] <|call|> ``` " \ ' { } ] é 😀 <function=x>""".split(),
        "\n",
        *DS.values(),
    ],
)
STRINGS = st.lists(TRICKY | st.text(max_size=4), max_size=4).map("".join)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | STRINGS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(STRINGS, inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(NAMES, VALUES, max_size=3)
#: Text around calls: it holds a letter, so that it is more than a gap, and no marker's first character but `<`.
PROSE = st.text("ab <.é\n", max_size=12).map(lambda text: f"{text}z") | st.just("")


def as_json(each, key="arguments", ascii_only=False):
    name, arguments = each
    return json.dumps({"name": name, key: arguments}, ensure_ascii=ascii_only)


def render_hermes(calls):
    return "".join(f"<tool_call>\n{as_json(each)}\n</tool_call>" for each in calls)


def render_mistral_list(calls):
    return f"[TOOL_CALLS] [{', '.join(as_json(each, ascii_only=True) for each in calls)}]"


def render_mistral_names(calls):
    return "".join(f"[TOOL_CALLS]{name}{json.dumps(arguments)}" for name, arguments in calls)


def render_mistral_ids(calls):
    return "".join(
        f"[TOOL_CALLS]{name}[CALL_ID]id{number}[ARGS]{json.dumps(arguments)}"
        for number, (name, arguments) in enumerate(calls)
    )


def render_llama(calls):
    return "<|python_tag|>" + "; ".join(as_json(each, "parameters") for each in calls)


def render_deepseek_fenced(calls):
    begin, middle, end = DS["tool call begin"], DS["tool sep"], DS["tool call end"]
    each = [f"{begin}function{middle}{name}\n```json\n{json.dumps(arguments)}\n```{end}" for name, arguments in calls]
    return DS["tool calls begin"] + "\n".join(each) + DS["tool calls end"]


def render_deepseek(calls):
    begin, middle, end = DS["tool call begin"], DS["tool sep"], DS["tool call end"]
    each = [f"{begin}{name}{middle}{json.dumps(arguments, ensure_ascii=False)}{end}" for name, arguments in calls]
    return DS["tool calls begin"] + "".join(each) + DS["tool calls end"]


def render_pythonic(calls):
    each = [f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})" for name, arguments in calls]
    return f"<|python_start|>[{', '.join(each)}]<|python_end|>"


def render_harmony(calls):
    header = "<|start|>assistant<|channel|>commentary to=functions.{} <|constrain|>json<|message|>{}"
    return "<|end|>".join(header.format(name, json.dumps(arguments)) for name, arguments in calls)


RENDERERS = [
    ("hermes", render_hermes),
    ("llama_json", render_llama),
    ("mistral", render_mistral_list),
    ("mistral", render_mistral_names),
    ("mistral", render_mistral_ids),
    ("deepseek", render_deepseek_fenced),
    ("deepseek", render_deepseek),
    ("pythonic", render_pythonic),
    ("harmony", render_harmony),
]


@pytest.mark.parametrize(("name", "render"), RENDERERS, ids=lambda each: getattr(each, "__name__", each))
@settings(max_examples=40, deadline=None)
@given(
    before=PROSE,
    after=PROSE,
    calls=st.lists(st.tuples(NAMES, ARGUMENTS), min_size=1, max_size=3),
    at=st.lists(st.integers(0, 1000), max_size=8),
)
def test_round_trip(name, render, before, after, calls, at):
    """Rendered calls come back, name for name and value for value, with the text around them."""
    end = "<|call|>" if name == "harmony" else ""
    text = before + render(calls) + end + after
    whole = check_all_ways(name, text, [list(text), cut(text, at)])
    assert [(each.name, json.loads(each.arguments)) for each in whole.tool_calls] == calls
    assert [each.id for each in whole.tool_calls] == [f"id{number}" for number in range(len(calls))]
    assert whole.content == (before + after or None)


def render_qwen(calls):
    return "\n".join(
        "<tool_call>\n<function={}>\n{}</function>\n</tool_call>".format(
            name,
            "".join(
                f"<parameter={key}>\n{value if isinstance(value, str) else json.dumps(value)}\n</parameter>\n"
                for key, value in arguments.items()
            ),
        )
        for name, arguments in calls
    )


def types_of(value):
    """The schema that a value fits."""
    if isinstance(value, bool):
        return {"type": "boolean"}
    names = {str: "string", int: "integer", float: "number", list: "array", dict: "object", type(None): "null"}
    return {"type": names[type(value)]}


@settings(max_examples=60, deadline=None)
@given(
    calls=st.lists(st.tuples(NAMES, ARGUMENTS), min_size=1, max_size=3, unique_by=lambda each: each[0]),
    at=st.lists(st.integers(0, 1000), max_size=8),
)
def test_round_trip_by_schema(calls, at):
    """Untyped values come back with the types that the schemas state."""
    text = render_qwen(calls)
    schemas = {name: {"properties": {key: types_of(value) for key, value in each.items()}} for name, each in calls}
    for pieces in ([text], list(text), cut(text, at)):
        parser = fresh("qwen_coder")
        parser.set_streaming_tool_schemas(schemas)
        found = collect_deltas(streamed(parser, pieces))
        assert [(each.name, json.loads(each.arguments)) for each in found.tool_calls] == calls
        assert found.content is None
        assert parser.parse_complete(text).tool_calls[0].arguments == found.tool_calls[0].arguments


# --- cost

PLAIN = "Some text < with [ brackets { and \n more. "
BIG = {"text": 'words \\ and "quotes" é ' * 40, "list": [[1, {"a": None}]] * 40}
LONG = {
    "hermes": [
        render_hermes([("f", BIG)]),
        "<tool_call>",
        "<",
        '<tool_call>{"',
        '<tool_call>{"arguments": ' + json.dumps(BIG) + ",",
    ],
    "llama_json": [render_llama([("f", BIG)]), "\n{", "{", '\n{"name": "f", ', ";"],
    "mistral": [render_mistral_list([("f", BIG)]), render_mistral_names([("f", BIG)]), "[TOOL_CALLS]", "["],
    "deepseek": [render_deepseek([("f", BIG)]), render_deepseek_fenced([("f", BIG)]), DS["tool calls begin"], "`"],
    "qwen_coder": [
        render_qwen([("f", {"s": BIG["text"], "n": 5})]),
        "<function=",
        "<function=f><parameter=s>\n<parameter",
        "\n",
    ],
    "pythonic": [render_pythonic([("f", BIG)]), "\n[", "\n[f(", "["],
    "harmony": [render_harmony([("f", BIG)]), "<|channel|>", "<|start|>", "<|channel|>final<|message|>x", "t"],
}


@pytest.fixture
def work(monkeypatch):
    """Counts what is looked at: each character taken or asked for, and each step of a marker's automaton."""
    counted = {"count": 0}

    def counting(cost, original):
        def counted_call(*args):
            result = original(*args)
            counted["count"] += cost(result)
            return result

        return counted_call

    monkeypatch.setattr(Source, "take", counting(lambda _: 1, Source.take))
    monkeypatch.setattr(Source, "look", counting(lambda _: 1, Source.look))
    monkeypatch.setattr(Source, "run", counting(lambda run: len(run) + 1, Source.run))
    monkeypatch.setattr(Markers, "step", counting(lambda _: 1, Markers.step))
    return counted


@pytest.mark.parametrize(("name", "unit"), [(name, unit) for name, units in LONG.items() for unit in [*units, PLAIN]])
@pytest.mark.parametrize("size", [1, 7, 10**9])
def test_weakness_44_work_is_linear(work, name, unit, size):
    """Four times the text is four times the work, in pieces of any size; each character is looked at a few times."""

    repeats = -(-2_500 // len(unit))

    def cost(times):
        text = unit * repeats * times
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        parser = fresh(name)
        before = work["count"]
        deltas = streamed(parser, pieces)
        sent = sum(len(each.content or "") + len(each.arguments or "") + len(each.name or "") for each in deltas)
        assert sent <= 2 * len(text)
        return work["count"] - before

    small, large = cost(1), cost(4)
    assert large <= 4.2 * small
    assert small <= 12 * repeats * len(unit)


@pytest.mark.parametrize("name", TOOL_PARSERS)
def test_what_is_held_back_in_text_is_bounded(name):
    """In ordinary text no more waits than the longest marker has."""
    parser = fresh(name)
    taken = sent = 0
    for character in PLAIN.replace("\n", " ") * 20:
        taken += 1
        deltas = parser.parse_delta(character)
        sent += 1 if deltas is None else sum(len(delta.content) for delta in deltas)
        assert taken - sent < 32


def test_the_examples_of_the_documentation():
    """Each does what it says."""
    page = Path(__file__).parents[2] / "docs" / "parsers.md"
    failed, attempted = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    assert attempted > 15
    assert failed == 0
