"""Pythonic calls (Llama 3.2 and 4, ToolACE): a list of Python calls with literal keyword arguments."""

from __future__ import annotations

import re

from . import python_text
from .answer import MAX_NAME_CHARS, Answer, Call
from .json_text import escaped
from .llama import PYTHON_TAG, LineStartToolParser
from .source import Malformed, Reading

_NAME = re.compile(r"[\w.]+")


class PythonicToolParser(LineStartToolParser):
    """`[name(key=literal, …), …]`, at the start of the answer or of a line, or behind `<|python_start|>`.

    Names may have dots. Arguments become a JSON object; what is no literal, positional or repeated is no call.
    """

    openers = ("<|python_start|>", PYTHON_TAG, "\n[")
    next_openers = ("<|python_start|>", PYTHON_TAG, "[")
    unmarked = frozenset({"[", "\n["})
    closers = ("<|python_end|>", "<|eom_id|>", "<|eot_id|>")
    brackets = "["

    def _calls(self, answer: Answer, *, bracket: str) -> Reading[None]:
        if not bracket:
            yield from answer.spaces()
            yield from answer.expect("[")
        while True:
            yield from answer.need("a call")
            yield from _call(answer)
            follows = yield from answer.need("',' or ']'")
            if follows == ",":
                answer.take()
                follows = yield from answer.need("a call or ']'")
                if follows != "]":
                    continue
            if follows != "]":
                raise Malformed(f"{follows!r} stands behind a call")
            answer.take()
            return


def _call(answer: Answer) -> Reading[None]:
    call = Call(answer)
    name = yield from answer.word(_NAME, MAX_NAME_CHARS)
    if not all(part.isidentifier() for part in name.split(".")):
        raise Malformed(f"{name!r} is no name of a function")
    call.named(name)
    yield from answer.spaces()
    yield from answer.expect("(")
    seen: set[str] = set()
    follows = yield from answer.need("an argument or ')'")
    while follows != ")":
        yield from _argument(answer, call, seen)
        follows = yield from answer.need("',' or ')'")
        if follows == ",":
            answer.take()
            follows = yield from answer.need("an argument or ')'")
        elif follows != ")":
            raise Malformed(f"{follows!r} stands where ',' or ')' should be")
    answer.take()
    if seen:
        call.write("}")
    call.end()


def _argument(answer: Answer, call: Call, seen: set[str]) -> Reading[None]:
    key = yield from answer.word(_NAME, MAX_NAME_CHARS)
    if not key.isidentifier() or key in seen:
        raise Malformed(f"{key!r} is no name of an argument, or comes twice")
    if (yield from answer.need("'='")) != "=":
        raise Malformed("an argument is given by its name")
    answer.take()
    if (yield from answer.need("a value")) == "=":
        raise Malformed("a comparison is no argument")
    call.write(f'{", " if seen else "{"}"{escaped(key)}": ')
    seen.add(key)
    yield from python_text.value(answer, call.write)
