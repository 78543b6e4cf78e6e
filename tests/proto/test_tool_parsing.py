"""Tool calls: the contract, shown on a small parser that holds back text which may begin a marker."""

from __future__ import annotations

import pytest

from tensoryard.proto.tool_parsing import (
    ParsedToolCall,
    ParsedToolCallDelta,
    ParsedToolResponse,
    ToolParser,
    argument_suffix,
    collect_deltas,
)


class Brackets(ToolParser):
    """Calls look like `[name]`; they have no arguments."""

    def __init__(self):
        self.held = ""
        self.calls = 0

    def parse_complete(self, response):
        deltas = [*(self.parse_delta(response) or ()), *self.flush()]
        return collect_deltas(deltas)

    def parse_delta(self, delta):
        if not self.held and "[" not in delta:
            return None
        self.held += delta
        found = []
        while "]" in self.held:
            text, _, rest = self.held.partition("[")
            name, _, self.held = rest.partition("]")
            if text:
                found.append(ParsedToolCallDelta(0, content=text))
            found.append(ParsedToolCallDelta(self.calls, id=f"call_{self.calls}", name=name))
            self.calls += 1
        return found

    def reset(self):
        self.held, self.calls = "", 0

    def flush(self):
        held, self.held = self.held, ""
        return [ParsedToolCallDelta(0, content=held)] if held else []


def test_defaults():
    """Everything but the index may be absent; lists are not shared."""
    assert ParsedToolCallDelta(2) == ParsedToolCallDelta(2, None, None, None, None)
    assert ParsedToolResponse() == ParsedToolResponse(None, [])
    ParsedToolResponse().tool_calls.append(1)
    assert ParsedToolResponse().tool_calls == []


def test_weakness_44_the_three_answers_are_distinct():
    """None passes text on, an empty list holds it back, a list is sent."""
    parser = Brackets()
    assert parser.parse_delta("plain") is None
    assert parser.parse_delta("[ti") == []
    assert parser.parse_delta("me]") == [ParsedToolCallDelta(0, id="call_0", name="time")]


def test_weakness_44_protocol_is_checkable_and_has_flush():
    """isinstance works, and what is held back comes out at the end of the stream."""
    parser = Brackets()
    assert isinstance(parser, ToolParser)
    assert not isinstance(object(), ToolParser)
    parser.parse_delta("a [unfinished")
    assert parser.flush() == [ParsedToolCallDelta(0, content="a [unfinished")]
    assert parser.flush() == []


def test_defaults_of_the_protocol():
    """A class that inherits need not define schemas and flush."""

    class Plain(ToolParser):
        def parse_complete(self, response):
            return ParsedToolResponse(response)

        def parse_delta(self, delta):
            return None

        def reset(self):
            pass

    parser = Plain()
    assert parser.set_streaming_tool_schemas({"f": {}}) is None
    assert parser.flush() == []
    assert isinstance(parser, ToolParser)


def test_weakness_45_calls_without_arguments_are_announced():
    """A call that never gets an argument byte still appears."""
    assert Brackets().parse_complete("see [time] now") == ParsedToolResponse(
        "see  now",
        [ParsedToolCall("call_0", "time", "")],
    )


def test_weakness_45_rewritten_arguments_are_an_error():
    """A suffix is taken only of what was really sent."""
    assert argument_suffix('{"a"', '{"a": 1') == ": 1"
    assert argument_suffix("", "{}") == "{}"
    with pytest.raises(ValueError, match="already sent"):
        argument_suffix('{"a"', '{"b": 1')


def test_collect_deltas():
    """Pieces of several calls and of text, in any order."""
    deltas = [
        ParsedToolCallDelta(0, content="hello "),
        ParsedToolCallDelta(1, id="b", name="g", arguments="{"),
        ParsedToolCallDelta(0, id="a", name="f"),
        ParsedToolCallDelta(1, arguments="}"),
        ParsedToolCallDelta(0, content="world"),
    ]
    assert collect_deltas(deltas) == ParsedToolResponse(
        "hello world",
        [ParsedToolCall("a", "f", ""), ParsedToolCall("b", "g", "{}")],
    )
    assert collect_deltas([]) == ParsedToolResponse()
    with pytest.raises(ValueError, match="id and name"):
        collect_deltas([ParsedToolCallDelta(0, arguments="{}")])
