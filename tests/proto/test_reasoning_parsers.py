"""Reasoning parsers: each format by hand, and what holds for all of them, however the tokens come in chunks."""

from __future__ import annotations

import asyncio
import re
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensoryard.proto.reasoning import ParsedReasoningDelta, ReasoningParser
from tensoryard.proto.reasoning_parsers import (
    REASONING_PARSERS,
    DelimitedReasoningParser,
    HarmonyReasoningParser,
    MistralReasoningParser,
    ReasoningStream,
    ThinkFirstReasoningParser,
    ThinkReasoningParser,
    reasoning_parser,
    stream,
)
from tensoryard.proto.reasoning_parsers.harmony import MAX_HEADER_TOKENS
from tensoryard.proto.reasoning_parsers.labels import Label, spans_of
from tensoryard.proto.tool_parsers import markers, tool_parser


class Tokenizer:
    """Some texts are one token each, the longest first; all else is a token per character."""

    def __init__(self, *words):
        self.pattern = re.compile("|".join([*map(re.escape, sorted(words, key=len, reverse=True)), r"[\s\S]"]))

    def ids(self, text):
        return [
            sum(ord(character) << 8 * at for at, character in enumerate(word)) for word in self.pattern.findall(text)
        ]

    async def encode(self, prompt, add_special_tokens):
        assert add_special_tokens is False
        return self.ids(prompt)

    def text(self, ids):
        return b"".join(token.to_bytes(32, "little").rstrip(b"\0") for token in ids).decode("ascii")


class HubTokenizer(Tokenizer):
    """As the `tokenizers` package has it: not awaitable, and an object with `ids`."""

    def encode(self, prompt, add_special_tokens):
        return type("Encoding", (), {"ids": self.ids(prompt)})()


THINK = Tokenizer("<think>", "</think>", "<tool_call>")
LETTERS = Tokenizer()
MARKS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>", "<|constrain|>")
HARMONY = Tokenizer(*MARKS, "assistant", "analysis", "comment", "ary", "final", " to", "=", "functions")


def made(name, tokenizer):
    """A parser for a tokenizer."""
    return asyncio.run(reasoning_parser(name).from_tokenizer(tokenizer))


def split(parser, chunks, reasoning=False):
    """What a stream adds up to, in tokens."""
    stream = ReasoningStream(parser, is_reasoning=reasoning)
    found = [*(stream.feed(chunk) for chunk in chunks), stream.flush()]
    return [token for each in found for token in each.reasoning], [token for each in found for token in each.content]


def cut(tokens, at):
    """Tokens in chunks that end at each of the positions."""
    edges = [0, *sorted({position % (len(tokens) + 1) for position in at}), len(tokens)]
    return [tokens[start:end] for start, end in pairwise(edges)]


def every_cut(tokens):
    """Token by token, and in two chunks at every position."""
    yield [[token] for token in tokens]
    yield from ([tokens[:at], tokens[at:]] for at in range(len(tokens) + 1))


def texts(parser, tokenizer, text, reasoning=False):
    """Reasoning and content as text, checked for every way to cut."""
    tokens = tokenizer.ids(text)
    found = split(parser, [tokens], reasoning)
    for chunks in every_cut(tokens):
        assert split(parser, chunks, reasoning) == found, chunks
    return tuple(map(tokenizer.text, found))


# --- spans


@given(st.lists(st.sampled_from(Label)))
def test_spans_of_labels(labels):
    """Reasoning lies inside the spans, content outside, delimiters in neither; spans are in order."""
    first, *more = spans_of(labels)
    delta = ParsedReasoningDelta(first, is_still_reasoning=False, more_spans=tuple(more))
    assert delta.extract_content(labels) == [label for label in labels if label is Label.CONTENT]
    assert delta.extract_reasoning(labels) == [label for label in labels if label is Label.REASONING]


# --- <think>


@pytest.mark.parametrize("tokenizer", [THINK, LETTERS])
@pytest.mark.parametrize(
    ("text", "reasoning", "found"),
    [
        ("<think>why</think>so", False, ("why", "so")),
        ("why</think>so", True, ("why", "so")),
        ("why", True, ("why", "")),
        ("so", False, ("", "so")),
        ("", False, ("", "")),
        ("a<think>b</think>c<think>d</think>e", False, ("bd", "ace")),
        ("a</think>b", False, ("", "a</think>b")),
        ("a<think>b<think>c</think>d</think>e", False, ("bc", "ad</think>e")),
        ("<think>b</think>c", True, ("b", "c")),
        ("</think><think></think>c", True, ("", "c")),
        ("a<think>b", False, ("b", "a")),
    ],
)
def test_think(tokenizer, text, reasoning, found):
    """Any number of blocks; stray closers are content; delimiters of one token or of many."""
    assert texts(made("think", tokenizer), tokenizer, text, reasoning) == found


@pytest.mark.parametrize(
    ("text", "reasoning", "found"),
    [
        ("a<b <thin air", False, ("", "a<b <thin air")),
        ("<think>a </ <th </thin", False, ("a </ <th </thin", "")),
        ("<<think>a<</think>b<", False, ("a<", "<b<")),
        ("<think>a</think>\nb", False, ("a", "b")),
        ("<think>a </think>b", False, ("a", "b")),
    ],
)
def test_think_in_many_tokens(text, reasoning, found):
    """What only begins a delimiter is given back; one that is merged with a space or a line end is known."""
    tokenizer = Tokenizer("nk>\n", " <") if "\n" in text or " </think>" in text else LETTERS
    assert texts(made("think", tokenizer), tokenizer, text, reasoning) == found


def test_weakness_46_a_second_opener_in_a_chunk():
    """Tokens behind it are reasoning."""
    tokens = THINK.ids("a<think>b</think>c<think>d")
    delta = made("think", THINK).stream(tokens, is_currently_reasoning=False)
    assert len(delta.spans) == 2
    assert THINK.text(delta.extract_content(tokens)) == "ac"
    assert THINK.text(delta.extract_reasoning(tokens)) == "bd"
    assert delta.is_still_reasoning
    assert (delta.restored, delta.withheld, delta.reasoning_text_formatter) == ((), 0, None)


def test_weakness_46_delimiters_of_several_tokens():
    """A caller that only joins the spans of each chunk reads whole delimiters right, wherever they are cut."""
    tokens = LETTERS.ids("ab<think>cd</think>ef")
    for chunks in every_cut(tokens):
        parser, flag, content, reasoning = made("think", LETTERS).for_request(), False, [], []
        for chunk in chunks:
            delta = parser.stream(chunk, flag)
            content += delta.extract_content(chunk)
            reasoning += delta.extract_reasoning(chunk)
            flag = delta.is_still_reasoning
        assert (LETTERS.text(content), LETTERS.text(reasoning)) == ("abef", "cd")


def test_weakness_46_streams_do_not_mix():
    """What one stream holds back is not in another made from the same parser."""
    shared = made("think", LETTERS)
    first, second = shared.for_request(), shared.for_request()
    first.stream(LETTERS.ids("<thi"), False)
    second.stream(LETTERS.ids("<"), False)
    assert first.flush() == tuple(LETTERS.ids("<thi"))
    assert second.flush() == tuple(LETTERS.ids("<"))
    assert shared.flush() == ()


def test_withheld_and_restored():
    """The delta says how much waits, and what comes back."""
    parser = made("think", LETTERS)
    delta = parser.stream(LETTERS.ids("a<t"), False)
    assert (delta.withheld, delta.restored) == (2, ())
    assert LETTERS.text(delta.extract_content(LETTERS.ids("a<t"))) == "a"
    delta = parser.stream(LETTERS.ids("<"), False)
    assert (delta.withheld, LETTERS.text(delta.restored)) == (1, "<t")
    assert delta.extract_content(LETTERS.ids("<")) == []
    delta = parser.stream(LETTERS.ids("b"), False)
    assert (delta.withheld, LETTERS.text(delta.restored)) == (0, "<")


def test_the_callers_flag_is_believed():
    """What waits as the beginning of a closer is content once the caller says that reasoning is over."""
    parser = made("think", LETTERS)
    assert parser.stream(LETTERS.ids("a</"), True).withheld == 2
    delta = parser.stream(LETTERS.ids("b"), False)
    assert LETTERS.text(delta.restored) == "</"
    assert not delta.is_still_reasoning


def test_a_section_of_tools_ends_reasoning():
    """Its opener stays content, for the tool parser; where it is no token of the model, it ends nothing."""
    text = '<think>a<tool_call>{"name": "f"}'
    assert texts(made("think", THINK), THINK, text) == ("a", '<tool_call>{"name": "f"}')
    assert texts(made("think", LETTERS), LETTERS, text) == ('a<tool_call>{"name": "f"}', "")
    some = DelimitedReasoningParser(starts=[[1, 2]], ends=[[3, 4]], tool_openers=[5])
    assert split(some, [[1], [2], [9], [3], [5], [8]]) == ([9, 3], [5, 8])


def test_mistral():
    """The same with other delimiters."""
    tokenizer = Tokenizer("[THINK]", "[/THINK]", "[TOOL_CALLS]")
    parser = made("mistral", tokenizer)
    assert isinstance(parser, MistralReasoningParser)
    assert texts(parser, tokenizer, "[THINK]a[/THINK]b[TOOL_CALLS]f{}") == ("a", "b[TOOL_CALLS]f{}")


@pytest.mark.parametrize("tokenizer", [THINK, LETTERS])
@pytest.mark.parametrize(
    ("prompt", "think", "first"),
    [
        ("", False, True),
        ("q", False, True),
        ("q<think>\n", True, True),
        ("q<think>\n\n</think>\n\n", False, False),
        ("<think>a</think>b<think>", True, True),
    ],
)
def test_whether_an_answer_begins_inside_reasoning(tokenizer, prompt, think, first):
    """The prompt's last delimiter says; without any, the format does."""
    assert made("think", tokenizer).will_reason_after_prompt(tokenizer.ids(prompt)) is think
    assert made("think_first", tokenizer).will_reason_after_prompt(tokenizer.ids(prompt)) is first


def test_starting_in_reasoning_may_be_said_at_construction():
    """For formats of one's own."""
    parser = DelimitedReasoningParser(starts=[[1]], ends=[[2]], starts_in_reasoning=True)
    assert parser.will_reason_after_prompt([])
    assert (
        ThinkFirstReasoningParser(starts=[[1]], ends=[[2]], starts_in_reasoning=False).will_reason_after_prompt([])
        is False
    )


def test_construction_is_checked():
    """An opener and a closer are needed, of at least a token."""
    with pytest.raises(ValueError, match="an opener and a closer"):
        DelimitedReasoningParser(starts=[], ends=[[1]])
    with pytest.raises(ValueError, match="at least one"):
        DelimitedReasoningParser(starts=[[]], ends=[[1]])


SYMBOLS = st.integers(1, 7)


def by_hand(tokens, starts, ends, tools, reasoning):
    """The rules once more, without an automaton: look whether a delimiter ends here, after each token."""
    found, fresh = {True: [], False: []}, []
    for token in tokens:
        fresh.append(token)
        for delimiter in sorted([*starts, *(ends + tools if reasoning else [])], key=len):
            if tuple(fresh[-len(delimiter) :]) == delimiter:
                found[reasoning] += fresh[: -len(delimiter)]
                fresh = []
                reasoning = delimiter in starts
                if delimiter in tools:
                    found[False] += delimiter
                break
    found[reasoning] += fresh
    return found[True], found[False]


@settings(max_examples=300, deadline=None)
@given(
    tokens=st.lists(SYMBOLS, max_size=40),
    words=st.lists(st.lists(SYMBOLS, min_size=1, max_size=3).map(tuple), min_size=4, max_size=4, unique=True),
    reasoning=st.booleans(),
    at=st.lists(st.integers(0, 40), max_size=8),
)
def test_any_chunks_give_the_same(tokens, words, reasoning, at):
    """Random delimiters, overlapping and all, in any chunks: what the rules say."""
    starts, ends, tools = words[:2], words[2:], [(7,)]
    if (7,) in words:
        tools = []
    parser = DelimitedReasoningParser(starts=starts, ends=ends, tool_openers=[token for (token,) in tools])
    # The shortest of two delimiters that end at the same token decides which it is, not what is left out.
    endings = [a for a in words + tools for b in words + tools if a != b and a[-len(b) :] == b]
    found = split(parser, [tokens], reasoning)
    assert split(parser, [[token] for token in tokens], reasoning) == found
    assert split(parser, cut(tokens, at), reasoning) == found
    if not endings:
        assert found == by_hand(tokens, starts, ends, tools, reasoning)


LONG = [
    ("think", LETTERS, "<think>ab </thin"),
    ("think", LETTERS, "<think>ab</think>"),
    ("think", LETTERS, "<"),
    ("think", THINK, "<think>ab</think><tool_call>"),
    ("think_first", LETTERS, "plain words </thin"),
    ("mistral", LETTERS, "[THINK][/TH"),
    ("harmony", HARMONY, "<|start|>assistant<|channel|>analysis<|message|>why<|end|>"),
    ("harmony", HARMONY, "<|channel|>final<|message|>so<|return|>"),
    ("harmony", HARMONY, "<|channel|>"),
    ("harmony", HARMONY, "<|start|>x"),
    ("harmony", HARMONY, "plain "),
]
#: The folders whose lines count as work.
PARSERS = (str(Path(stream.__file__).parent), str(Path(markers.__file__).parent))


def lines_of(work):
    """How many lines of the parsers some work executes."""
    count = 0

    def local(_frame, event, _value):
        nonlocal count
        count += event == "line"
        return local

    before = sys.gettrace()
    sys.settrace(lambda frame, _event, _value: local if frame.f_code.co_filename.startswith(PARSERS) else None)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize(("name", "tokenizer", "unit"), LONG)
@pytest.mark.parametrize("size", [1, 7, 10**9])
def test_work_is_linear(name, tokenizer, unit, size):
    """Four times the tokens are four times the lines executed, in chunks of any size, the prompt's look included."""
    parser = made(name, tokenizer)
    ids = tokenizer.ids(unit)

    def cost(times):
        tokens = ids * (times * -(-400 // len(ids)))
        chunks = [tokens[at : at + size] for at in range(0, len(tokens), size)]
        return lines_of(lambda: split(parser, chunks, parser.will_reason_after_prompt(tokens)))

    small, large = cost(1), cost(4)
    assert large <= 4.2 * small
    assert small <= 100 * 400


def test_the_count_sees_work_that_is_not_linear():
    """A parser that looks at everything again for each chunk costs more than four times as much."""

    class Rescanning(ThinkReasoningParser):
        def stream(self, delta_token_ids, is_currently_reasoning=True):
            self.seen = [*getattr(self, "seen", ()), *delta_token_ids]
            self.will_reason_after_prompt(self.seen)
            return super().stream(delta_token_ids, is_currently_reasoning)

    parser = asyncio.run(Rescanning.from_tokenizer(LETTERS))
    small, large = (lines_of(lambda n=n: split(parser, [[120]] * n)) for n in (100, 400))
    assert large > 8 * small


# --- harmony

CALL = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>'


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "<|channel|>analysis<|message|>why<|end|><|start|>assistant<|channel|>final<|message|>so<|return|>",
            ("why", "so"),
        ),
        (
            (
                "<|channel|>analysis<|message|>why<|end|><|start|>assistant<|channel|>commentary<|message|>well<|end|>"
                f"<|start|>assistant{CALL}"
            ),
            ("why", f"well<|start|>assistant{CALL}"),
        ),
        (CALL, ("", CALL)),
        ("<|channel|>final <|constrain|>json<|message|>{}", ("", "{}")),
        # Two analysis messages, and one whose end is missing.
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b<|channel|>final<|message|>c",
            ("ab", "c"),
        ),
        # A recipient in the role, or in what the prompt began.
        (
            "<|start|>assistant to=functions.f<|channel|>commentary<|message|>{}<|call|>",
            ("", "<|start|>assistant to=functions.f<|channel|>commentary<|message|>{}<|call|>"),
        ),
        (
            " to=functions.f<|channel|>commentary<|message|>{}<|call|>",
            ("", " to=functions.f<|channel|>commentary<|message|>{}<|call|>"),
        ),
        ("<|channel|>analysis to=python<|message|>1<|end|>", ("", "<|channel|>analysis to=python<|message|>1<|end|>")),
        ("<|start|>assistant<|message|>x<|end|>", ("", "<|start|>assistant<|message|>x<|end|>")),
        ("plain<|end|>text<|message|>", ("", "plaintext<|message|>")),
        ("<|channel|>final<|message|>cut", ("", "cut")),
        ("<|channel|>final", ("", "<|channel|>final")),
        ("<|channel|>odd<|message|>x", ("", "<|channel|>odd<|message|>x")),
        (
            "<|channel|>a<|end|>b<|start|>c<|start|>assistant<|channel|>final<|message|>d",
            ("", "<|channel|>a<|end|>b<|start|>cd"),
        ),
        ("", ("", "")),
    ],
)
def test_harmony(text, found):
    """Analysis is reasoning; final and preambles are bare; messages to functions stay whole."""
    assert texts(made("harmony", HARMONY), HARMONY, text) == found


def test_harmony_in_reasoning_from_the_prompt():
    """An answer that continues an analysis message."""
    parser = made("harmony", HARMONY)
    assert texts(parser, HARMONY, "why<|end|><|start|>assistant<|channel|>final<|message|>so", reasoning=True) == (
        "why",
        "so",
    )


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", False),
        ("<|start|>assistant", False),
        ("<|start|>assistant<|channel|>analysis<|message|>so far", True),
        ("<|start|>assistant<|channel|>analysis<|message|>x<|end|><|start|>assistant", False),
        ("<|start|>assistant<|channel|>final<|message|>", False),
    ],
)
def test_harmony_prompt(prompt, expected):
    """Only a prompt that ends inside an analysis message."""
    assert made("harmony", HARMONY).will_reason_after_prompt(HARMONY.ids(prompt)) is expected


def test_harmony_headers_are_bounded():
    """A header without end is content."""
    text = "<|channel|>" + "x" * (MAX_HEADER_TOKENS + 5) + "<|message|>y<|end|>"
    tokens = HARMONY.ids(text)
    parser = made("harmony", HARMONY)
    for chunks in ([tokens], [[token] for token in tokens], cut(tokens, range(0, 300, 7))):
        assert split(parser, chunks) == ([], tokens)


def test_harmony_needs_its_marks():
    """Another model's tokenizer is refused."""
    with pytest.raises(ValueError, match=re.escape("'<|start|>' is no token")):
        made("harmony", LETTERS)


PIECES = st.sampled_from(
    [*MARKS, "assistant", "analysis", "commentary", "final", " to=functions.f", "x", '{"a": 1}', CALL]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=14).map("".join), st.lists(st.integers(0, 100), max_size=8), st.booleans())
def test_any_chunks_of_harmony_give_the_same(text, at, reasoning):
    """Messages broken off and mixed up, in any chunks; nothing but delimiters is lost."""
    parser = made("harmony", HARMONY)
    tokens = HARMONY.ids(text)
    found = split(parser, [tokens], reasoning)
    assert split(parser, [[token] for token in tokens], reasoning) == found
    assert split(parser, cut(tokens, at), reasoning) == found
    assert sum(map(len, found)) <= len(tokens)


MESSAGES = st.lists(
    st.sampled_from(
        [
            "<|start|>assistant<|channel|>analysis<|message|>why<|end|>",
            "<|start|>assistant<|channel|>commentary<|message|>well<|end|>",
            f"<|start|>assistant{CALL}",
            "<|start|>assistant to=functions.g<|channel|>commentary<|message|>{}<|call|>",
            "<|start|>assistant<|channel|>final<|message|>so<|return|>",
        ],
    ),
    max_size=5,
).map("".join)


@given(MESSAGES)
def test_reasoning_then_tools(text):
    """The two parsers behind each other: the thinking here, calls and text there, as from the whole answer."""
    text = text.removeprefix("<|start|>assistant")
    reasoning, content = split(made("harmony", HARMONY), [[token] for token in HARMONY.ids(text)])
    assert HARMONY.text(reasoning) == "why" * text.count("why")
    whole = tool_parser("harmony", make_id=lambda: "x").parse_complete(text)
    assert tool_parser("harmony", make_id=lambda: "x").parse_complete(HARMONY.text(content)) == whole


# --- by name


def test_parsers_by_name():
    """Each name is a class of parsers; an unknown one lists them."""
    assert all(issubclass(each, ReasoningParser) for each in REASONING_PARSERS.values())
    assert isinstance(made("think", HubTokenizer("<think>", "</think>")), ThinkReasoningParser)
    assert isinstance(made("harmony", HARMONY), HarmonyReasoningParser)
    with pytest.raises(ValueError, match=r"'deep'.*harmony, mistral, think"):
        reasoning_parser("deep")


@pytest.mark.parametrize(
    ("name", "tokenizer", "token"),
    [
        ("think", THINK, "</think>"),
        ("think", LETTERS, None),
        ("harmony", HARMONY, "<|end|>"),
        ("harmony", LETTERS, None),
    ],
)
def test_the_token_that_ends_reasoning(name, tokenizer, token):
    """None where it is several."""
    found = asyncio.run(reasoning_parser(name).reasoning_end_token_id(tokenizer))
    assert found == (None if token is None else tokenizer.ids(token)[0])


def test_a_stream_tells_where_it_stands():
    """The flag between chunks."""
    stream = ReasoningStream(made("think", THINK), is_reasoning=True)
    assert stream.is_reasoning
    stream.feed(THINK.ids("a</think>"))
    assert not stream.is_reasoning
