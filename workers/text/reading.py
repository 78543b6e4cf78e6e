"""How one model's answers are read: the marks of its thinking and the format of its calls, as a deployment says.

Makes the `AnswerStream` of a request (`answer.py`) from the parsers of `proto`; the engine finds it in the request's
context.
"""

from __future__ import annotations

from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ...errors import ConfigError
from ...proto.reasoning import ReasoningParser
from ...proto.reasoning_parsers import ReasoningStream, reasoning_parser
from ...proto.text_context import TextContext
from ...proto.tool_parsers import TOOL_PARSERS, StreamingToolParser, tool_parser
from .answer import AnswerStream
from .vocabulary import Vocabulary

T = TypeVar("T")

Tools = Sequence[Mapping[str, Any]]


@dataclass(kw_only=True, eq=False)
class ReadContext(TextContext):
    """A request together with who reads its answer; None where nobody wants text and nothing ends by it."""

    answer: AnswerStream | None = None


class AnswerReader:
    """Reads the answers of one model.

    `tokenizer`: has `encode(text, add_special_tokens=…)`. `reasoning`, `tools`: names of parsers (docs/parsers.md),
    None where the model neither thinks nor calls. Raises ConfigError for a name that there is not, or a parser whose
    marks the tokenizer does not have.
    """

    def __init__(self, vocabulary: Vocabulary, tokenizer: Any, *, reasoning: str | None, tools: str | None) -> None:
        if tools is not None and tools not in TOOL_PARSERS:
            raise ConfigError(f"no tool parser is called {tools!r}; there are {', '.join(TOOL_PARSERS)}")
        self._vocabulary = vocabulary
        self._tools = tools
        self._reasoning: ReasoningParser | None = None
        if reasoning is not None:
            try:
                self._reasoning = _at_once(reasoning_parser(reasoning).from_tokenizer(tokenizer))
            except ValueError as error:
                raise ConfigError(f"`reasoning_parser`: {error}") from error

    def thinks_after(self, prompt: Sequence[int]) -> bool:
        """Whether the answer to this prompt begins inside thinking."""
        return self._reasoning is not None and self._reasoning.for_request().will_reason_after_prompt(prompt)

    def read(self, context: ReadContext, tools: Tools | None) -> None:
        """Have the context's answer read from here on; `tools`: those that it may call."""
        params = context.sampling_params
        phases = self._reasoning is not None and params.thinking_temperature is not None
        if not (params.detokenize or params.stop or phases):
            return
        reasoning = None
        if self._reasoning is not None:
            reasoning = ReasoningStream(self._reasoning, is_reasoning=context.in_reasoning_phase)
        context.answer = AnswerStream(
            self._vocabulary,
            tracker=context.eos_tracker,
            reasoning=reasoning,
            tools=self._tool_parser(tools) if tools and params.detokenize else None,
        )

    def _tool_parser(self, tools: Tools) -> StreamingToolParser | None:
        if self._tools is None:
            return None
        parser = tool_parser(self._tools)
        functions = [tool.get("function") for tool in tools]
        parser.set_streaming_tool_schemas(
            {
                str(function["name"]): function.get("parameters") or {}
                for function in functions
                if isinstance(function, Mapping) and "name" in function
            }
        )
        return parser


def _at_once(awaitable: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for nothing, as with a tokenizer that lies in memory it does."""
    try:
        awaitable.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise AssertionError("a tokenizer in memory lets nobody wait")
