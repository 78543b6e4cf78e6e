"""Qwen3-Coder: tags for the function and each parameter; values carry no type, the tool's schema does."""

from __future__ import annotations

import re

from .answer import MAX_NAME_CHARS, Answer, Call
from .base import SectionToolParser
from .json_text import escaped
from .markers import Markers
from .schema import json_of, parameter_types
from .source import CutOff, Malformed, Reading, Sink, discard

_TAG_NAME = re.compile(r"[^<>\r\n]+")
_FUNCTION, _PARAMETER, _FUNCTION_END = "<function=", "<parameter=", "</function>"
#: What ends a value: its closing tag, or, where the model forgot that, the next tag at the start of a line.
_VALUE_ENDS = Markers(("\n</parameter>", "</parameter>", "\n" + _PARAMETER, "\n" + _FUNCTION_END))


class QwenCoderToolParser(SectionToolParser):
    """`<tool_call><function=name><parameter=key>value</parameter>…</function></tool_call>`.

    One line end behind `<parameter=key>` and one before `</parameter>` belong to the format; the rest of a value is
    kept as it is. The outer tags may be missing. A value whose parameter is a string by the schema, or is in no schema,
    is a string and is sent as it comes; any other is read as JSON (Python's True, False and None too) when it is whole,
    and is a string when it does not fit the type.
    """

    openers = ("<tool_call>", _FUNCTION)
    closers = ("</tool_call>",)

    def _section(self, answer: Answer, opener: str) -> Reading[None]:
        if opener != _FUNCTION:
            yield from answer.spaces()
            yield from answer.expect(_FUNCTION)
        call = Call(answer)
        call.named((yield from _tag_name(answer)))
        seen: set[str] = set()
        tag = yield from _tag(answer)
        while tag == _PARAMETER:
            key = yield from _tag_name(answer)
            if key in seen:
                raise Malformed(f"the parameter {key!r} comes twice")
            call.write(f'{", " if seen else "{"}"{escaped(key)}": ')
            seen.add(key)
            types = parameter_types(self._schemas.get(call.name or ""), key)
            ended_by = yield from _value(answer, types, call.write)
            tag = (yield from _tag(answer)) if ended_by.endswith("</parameter>") else ended_by[1:]
        if seen:
            call.write("}")
        call.end()


def _tag_name(answer: Answer) -> Reading[str]:
    """What stands between `=` and `>`."""
    name = yield from answer.word(_TAG_NAME, MAX_NAME_CHARS)
    yield from answer.expect(">")
    return name


def _tag(answer: Answer) -> Reading[str]:
    """The next tag inside a function: a parameter, or the end."""
    yield from answer.need(repr(_FUNCTION_END))
    yield from answer.expect("<")
    if (yield from answer.look()) == "/":
        yield from answer.expect(_FUNCTION_END[1:])
        return _FUNCTION_END
    yield from answer.expect(_PARAMETER[1:])
    return _PARAMETER


def _value(answer: Answer, types: frozenset[str] | None, write: Sink) -> Reading[str]:
    """Read a value and write it as JSON; the marker that ended it."""
    if types is None or types == {"string"}:
        write('"')
        ended_by = yield from _text(answer, lambda text: write(escaped(text)))
        write('"')
        return ended_by
    parts: list[str] = []
    ended_by = yield from _text(answer, parts.append)
    text = "".join(parts)
    write(json_of(text, types) or f'"{escaped(text)}"')
    return ended_by


def _text(answer: Answer, sink: Sink) -> Reading[str]:
    """The text of a value, without the line end at its beginning."""
    if (yield from answer.look()) == "\n":
        answer.take()
    ended_by = yield from answer.until(_VALUE_ENDS, sink, last=discard)
    if not ended_by:
        raise CutOff("'</parameter>'")
    return ended_by
