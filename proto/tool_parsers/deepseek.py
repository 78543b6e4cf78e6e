"""DeepSeek V3 and R1, with fenced arguments, and V3.1, without: calls in a section of special markers."""

from __future__ import annotations

import re

from .answer import MAX_NAME_CHARS, Answer, Call
from .base import SectionToolParser
from .json_text import value
from .source import SPACES, Malformed, Reading

CALLS_BEGIN = "<｜tool▁calls▁begin｜>"  # noqa: RUF001 - the markers have wide bars
CALLS_END = "<｜tool▁calls▁end｜>"  # noqa: RUF001
CALL_BEGIN = "<｜tool▁call▁begin｜>"  # noqa: RUF001
CALL_END = "<｜tool▁call▁end｜>"  # noqa: RUF001
SEPARATOR = "<｜tool▁sep｜>"  # noqa: RUF001

_NAME = re.compile(r"[^\s<`{]+")
_LANGUAGE = re.compile(r"[A-Za-z]+")


class DeepSeekToolParser(SectionToolParser):
    """Both generations, told apart by what stands behind the separator.

    V3: `CALL_BEGIN`function`SEPARATOR`name, a line end, and the arguments fenced as json. V3.1:
    `CALL_BEGIN`name`SEPARATOR`{…}. Each call ends with `CALL_END`, and all stand between `CALLS_BEGIN` and `CALLS_END`,
    which may be missing.
    """

    openers = (CALLS_BEGIN, CALL_BEGIN)
    closers = (CALL_END, CALLS_END)
    gap = SPACES + "`"

    def _section(self, answer: Answer, opener: str) -> Reading[None]:
        if opener == CALLS_BEGIN:
            yield from answer.spaces()
            yield from answer.expect(CALL_BEGIN)
        yield from answer.spaces()
        name = yield from answer.word(_NAME, MAX_NAME_CHARS)
        yield from answer.spaces()
        yield from answer.expect(SEPARATOR)
        if (yield from answer.need("the arguments")) not in "{`<":
            name = yield from answer.word(_NAME, MAX_NAME_CHARS)  # what stood before is the kind of call
        call = Call(answer)
        call.named(name)
        follows = yield from answer.need("the arguments")
        if follows == "`":
            yield from answer.expect("```")
            yield from answer.word(_LANGUAGE, MAX_NAME_CHARS)
            follows = yield from answer.need("the arguments")
        if follows == "<":  # no arguments at all: what else could begin so would be no call
            yield from answer.expect(CALL_END)
        elif follows == "{":
            yield from value(answer, call.write)
        else:
            raise Malformed(f"{follows!r} stands where the arguments' '{{' should be")
        call.end()
