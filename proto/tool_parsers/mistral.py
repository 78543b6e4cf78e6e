"""Mistral: `[TOOL_CALLS]` before an array of JSON objects, or before each name and its arguments."""

from __future__ import annotations

import re
import secrets
import string

from .answer import MAX_NAME_CHARS, Answer, Call
from .base import SectionToolParser
from .json_call import json_calls
from .json_text import value
from .source import Malformed, Reading

_NAME = re.compile(r"[\w.:/-]+")
_ID = re.compile(r"[A-Za-z0-9]+")
_ALPHABET = string.ascii_letters + string.digits


class MistralToolParser(SectionToolParser):
    """`[TOOL_CALLS] [{"name": …, "arguments": {…}}, …]`, and `[TOOL_CALLS]name{…}` once per call.

    In the second, `[CALL_ID]…` and `[ARGS]` may stand between the name and the arguments; that id is kept.
    """

    openers = ("[TOOL_CALLS]",)

    @staticmethod
    def new_id() -> str:
        """Nine letters and digits: what Mistral's templates take for an id."""
        return "".join(secrets.choice(_ALPHABET) for _ in range(9))

    def _section(self, answer: Answer, opener: str) -> Reading[None]:  # noqa: ARG002 - there is one opener
        if (yield from answer.need("a call")) in "{[":
            yield from json_calls(answer)
            return
        call = Call(answer)
        call.named((yield from answer.word(_NAME, MAX_NAME_CHARS)))
        follows = yield from answer.need("'{'")
        if follows == "[":
            answer.take()
            if (yield from answer.look()) == "C":
                yield from answer.expect("CALL_ID]")
                call.id = (yield from answer.word(_ID, MAX_NAME_CHARS)) or None
                yield from answer.expect("[")
            yield from answer.expect("ARGS]")
            follows = yield from answer.need("'{'")
        if follows != "{":
            raise Malformed(f"{follows!r} stands where the arguments' '{{' should be")
        yield from value(answer, call.write)
        call.end()
