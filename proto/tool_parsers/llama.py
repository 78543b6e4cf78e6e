"""Llama 3: calls as JSON, with a marker or as the whole answer; and what its pythonic relative shares."""

from __future__ import annotations

from abc import abstractmethod

from .answer import Answer
from .base import SectionToolParser
from .json_call import json_calls
from .source import SPACES, Reading

PYTHON_TAG = "<|python_tag|>"


class LineStartToolParser(SectionToolParser):
    """A format whose calls stand behind a marker, or begin with a bracket at the start of the answer or of a line.

    Such a bracket is ordinary text until what follows can only be a call. Indented ones are never calls, except at the
    start of the answer and behind another call.
    """

    #: Brackets that may begin calls without a marker.
    brackets: str

    def _first(self, answer: Answer) -> Reading[str]:
        character = yield from answer.spaces(answer.content)
        if character and character in self.brackets:
            return answer.take()
        return (yield from super()._first(answer))

    def _section(self, answer: Answer, opener: str) -> Reading[None]:
        if opener not in self.unmarked:
            yield from self._calls(answer, bracket="")
            return
        if opener[0] == "\n":
            answer.release_line_end()
        yield from self._calls(answer, bracket=opener[-1])

    @abstractmethod
    def _calls(self, answer: Answer, *, bracket: str) -> Reading[None]:
        """Read calls; `bracket` is what is taken of them, "" behind a marker."""


class LlamaJsonToolParser(LineStartToolParser):
    """`{"name": …, "parameters": {…}}`, several separated by `;` or white space, or in an array.

    `<|python_tag|>` may stand before them, and must where text stands before them on the line. `arguments` is taken
    for `parameters` too.
    """

    openers = (PYTHON_TAG, "\n{", "\n[")
    next_openers = (PYTHON_TAG, "{", "[")
    unmarked = frozenset({"{", "[", "\n{", "\n["})
    closers = ("<|eom_id|>", "<|eot_id|>")
    gap = SPACES + ";"
    brackets = "{["

    def _calls(self, answer: Answer, *, bracket: str) -> Reading[None]:
        yield from json_calls(answer, first=bracket, strict=bool(bracket))
