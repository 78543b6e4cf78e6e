"""Harmony (gpt-oss): messages on channels; those to a function are calls, the final one is content."""

from __future__ import annotations

import re

from .answer import MAX_NAME_CHARS, Answer, Call
from .base import StreamingToolParser
from .json_text import value
from .markers import Markers
from .source import SPACES, CutOff, Malformed, Reading, discard

START, CHANNEL, MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
ENDS = ("<|end|>", "<|return|>", "<|call|>")

#: Longest header of a message, in characters; a longer one is ordinary text.
MAX_HEADER_CHARS = 4 * MAX_NAME_CHARS

_MARKS = Markers((START, CHANNEL, *ENDS))
_HEADER_MARKS = Markers((MESSAGE, START, *ENDS))
_CHANNEL_NAME = re.compile(re.escape(CHANNEL) + r"\s*(\w+)")
_RECIPIENT = re.compile(r"(?:^|\s)to=([^\s<]+)")
_FUNCTIONS = "functions."
_TO_FUNCTIONS = f"to={_FUNCTIONS}"


class HarmonyToolParser(StreamingToolParser):
    """`<|channel|>commentary to=functions.name …<|message|>{…}<|call|>` is a call.

    The recipient may stand before the channel too. Messages on the final channel, and on commentary without a
    recipient, are content, and so is text outside any message. Headers, ends, messages on the analysis channel and
    messages to tools that are no functions are left out: `reasoning_parsers` finds the thinking.
    """

    def _read(self, answer: Answer) -> Reading[None]:
        mark = yield from _recipient_first(answer)
        if not mark:
            mark = yield from answer.until(_MARKS, answer.content)
        while mark:
            if mark in ENDS:
                mark = yield from answer.until(_MARKS, answer.content)
            else:
                mark = yield from _message(answer, mark)


def _recipient_first(answer: Answer) -> Reading[str]:
    """`to=functions.` where the answer begins in the middle of a header that the prompt began; else ""."""
    answer.hold("")
    if (yield from answer.spaces()) == "t":
        try:
            yield from answer.expect(_TO_FUNCTIONS)
        except Malformed:
            pass
        else:
            return _TO_FUNCTIONS
    answer.release()
    return ""


def _message(answer: Answer, mark: str) -> Reading[str]:
    """Read one message, of whose header `mark` is taken; the mark that ended it."""
    if mark != _TO_FUNCTIONS:
        answer.hold(mark)
    parts = [mark]
    length = 0

    def collect(text: str) -> None:
        nonlocal length
        parts.append(text)
        length += len(text)
        if length > MAX_HEADER_CHARS:
            raise Malformed(f"a header is longer than {MAX_HEADER_CHARS} characters")

    try:
        ended_by = yield from answer.until(_HEADER_MARKS, collect)
    except Malformed:
        answer.release()
        return (yield from answer.until(_MARKS, answer.content))
    answer.drop()
    header = "".join(parts)
    recipient = _RECIPIENT.search(header)
    name = recipient[1].removeprefix(_FUNCTIONS) if recipient and recipient[1].startswith(_FUNCTIONS) else None
    if ended_by != MESSAGE:
        if name is not None and not ended_by:
            answer.fail(CutOff(repr(MESSAGE)))
        return ended_by
    if name is not None:
        return (yield from _arguments(answer, name))
    channel = _CHANNEL_NAME.search(header)
    is_content = recipient is None and (channel is None or channel[1] != "analysis")
    return (yield from answer.until(_MARKS, answer.content if is_content else discard))


def _arguments(answer: Answer, name: str) -> Reading[str]:
    """Read the body of a message to a function; the mark that ended it."""
    call = Call(answer)
    try:
        call.named(name)
        call.announce()
        if (yield from answer.need("the arguments")) == "{":
            yield from value(answer, call.write)
            call.end()
            return (yield from answer.until(_MARKS, answer.content, first=_MARKS, gap=SPACES))
        body: list[str] = []
        mark = yield from answer.until(_MARKS, body.append)
        if mark and not body:
            call.end()
            return mark
        answer.fail(CutOff("'{'") if not mark else Malformed("the arguments are no JSON object"))
    except Malformed as problem:
        answer.fail(problem)
        mark = yield from answer.until(_MARKS, discard)
    return mark
