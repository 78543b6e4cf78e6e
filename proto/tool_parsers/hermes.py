"""Hermes and Qwen: a JSON object in `<tool_call>` tags."""

from __future__ import annotations

from .answer import Answer
from .base import SectionToolParser
from .json_call import json_calls
from .source import SPACES, Reading


class HermesToolParser(SectionToolParser):
    """`<tool_call>{"name": …, "arguments": {…}}</tool_call>`, any number of times; an array of objects too.

    The closing tag may be missing, and a bracket too many may stand before it.
    """

    openers = ("<tool_call>",)
    closers = ("</tool_call>",)
    gap = SPACES + "}]"

    def _section(self, answer: Answer, opener: str) -> Reading[None]:  # noqa: ARG002 - there is one opener
        yield from json_calls(answer)
