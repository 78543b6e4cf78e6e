"""What a request's answer is held to: its response format, its tools, and what the model's thinking leaves free.

Makes the `GrammarHold` of a request (`grammar_hold.py`) from what the request says and what is known of the model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import ConfigError, InvalidRequest
from ...proto.reasoning import ReasoningParser
from ...proto.text_request import TextGenerationResponseFormat
from .grammar import JSON_SPACE, Grammar, GrammarCompiler, grammar_of
from .grammar_hold import GrammarHold, Regions

#: Most tools that one grammar is made of.
MAX_TOOLS = 128

Encode = Callable[[str], Sequence[int]]
Tools = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class CallFormat:
    """How a model writes a call as JSON: what stands before and behind it, and the key of its arguments."""

    opener: str
    closer: str
    arguments: str = "arguments"


#: By the names of `proto/tool_parsers`; the other formats have no JSON object for a call, and no grammar here.
CALL_FORMATS: Mapping[str, CallFormat] = {
    "hermes": CallFormat("<tool_call>", "</tool_call>"),
    "mistral": CallFormat("[TOOL_CALLS][", "]"),
    "llama_json": CallFormat("<|python_tag|>", "", "parameters"),
}


def is_held(form: TextGenerationResponseFormat | None, tools: Tools | None) -> bool:
    """Whether anything holds an answer; InvalidRequest for a format without what it needs."""
    forced = form is not None and form.tools_forced
    if forced and not tools:
        raise InvalidRequest("`tools_forced` forces a call, and there is no tool to call")
    if grammar_of(form) is not None:
        return True
    return bool(tools) and (forced or any(_function(tool).get("strict") for tool in tools or ()))


class StructuredOutput:
    """Holds the answers of one model.

    `encode`: a text's token ids, without special tokens around them. `reasoning`: the parser that names the model's
    marks of thinking, if it thinks. `calls`: the name of its tool format, if it calls. Raises ConfigError for a format
    that no grammar is made for.
    """

    def __init__(
        self,
        compiler: GrammarCompiler,
        encode: Encode,
        *,
        reasoning: type[ReasoningParser] | None = None,
        calls: str | None = None,
    ) -> None:
        if calls is not None and calls not in CALL_FORMATS:
            raise ConfigError(f"calls in the format {calls!r} cannot be held; {', '.join(CALL_FORMATS)} can")
        self._compiler = compiler
        self._encode = encode
        self._format = CALL_FORMATS[calls] if calls is not None else None
        self._starts, self._ends = self._marks(reasoning)

    def hold(
        self, form: TextGenerationResponseFormat | None, tools: Tools | None = None, *, thinking: bool = False
    ) -> GrammarHold | None:
        """The hold on an answer; None when it is free.

        A schema, expression or grammar holds the answer from its first token on, but for thinking. Beside tools, and
        not `grammar_enforced`, a grammar begins at a call's opener, and a schema allows calls instead. Without any,
        tools that are `strict` have their calls held; with `tools_forced` the answer is calls and nothing else.
        `thinking`: the answer begins inside it.

        Raises InvalidRequest for a grammar, a schema or tools that cannot be used.
        """
        grammar, at_calls = self._asked(form, tools)
        if grammar is None:
            return None
        regions = Regions(self._starts, self._ends, self._call_starts() if at_calls else ())
        return GrammarHold(self._compiler.matcher(grammar), regions, thinking=thinking)

    def is_compiled(self, form: TextGenerationResponseFormat | None, tools: Tools | None = None) -> bool:
        """Whether `hold` has nothing to compile, which may take a second; InvalidRequest as there."""
        grammar, _ = self._asked(form, tools)
        return grammar is None or self._compiler.has(grammar)

    def _asked(self, form: TextGenerationResponseFormat | None, tools: Tools | None) -> tuple[Grammar | None, bool]:
        """The grammar that an answer is held to, and whether it begins only where a call does."""
        grammar = grammar_of(form)
        forced = form is not None and form.tools_forced
        if not tools:
            return grammar, False
        if grammar is None:
            return (self._calls(tools, only=forced), not forced) if is_held(form, tools) else (None, False)
        assert form is not None, "which the grammar came from"
        if grammar.kind == "json" and forced:
            return self._calls(tools, only=True), False
        if grammar.kind == "json" and self._format is not None and not form.grammar_enforced:
            return self._calls(tools, only=True, instead_of=grammar.text), False
        return grammar, form.type == "grammar" and not (form.grammar_enforced or forced)

    def _marks(
        self, reasoning: type[ReasoningParser] | None
    ) -> tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]]:
        if reasoning is None:
            return (), ()
        start, end = reasoning.REASONING_START, reasoning.REASONING_END
        if start is None or end is None:
            raise ConfigError(f"{reasoning.__name__} names no marks of thinking, so that none can be left free")
        return [list(self._encode(start))], [list(self._encode(end))]

    def _call_starts(self) -> Sequence[Sequence[int]]:
        return [list(self._encode(self._call_format().opener))]

    def _call_format(self) -> CallFormat:
        if self._format is None:
            raise InvalidRequest("the model has no format for calls, so that tools cannot be held to their schemas")
        return self._format

    def _calls(self, tools: Tools, *, only: bool, instead_of: str | None = None) -> Grammar:
        """One call, opener and closer included; any number of them where nothing else may come (`only`).

        `instead_of`: a schema that the answer may be an instance of, rather than calls.
        """
        form = self._call_format()
        if len(tools) > MAX_TOOLS:
            raise InvalidRequest(f"calls of at most {MAX_TOOLS} tools can be held, not of {len(tools)}")
        schema = {
            "anyOf": [_call_schema(tool, form) for tool in tools],
            "x-guidance": {"whitespace_pattern": JSON_SPACE},
        }
        closer = f" SPACE? {self._literal(form.closer)}" if form.closer else ""
        start, answer = "call (SPACE? call)*" if only else "call", ""
        if instead_of is not None:
            start, answer = f"{start} | answer", f"answer: %json {_spaced(instead_of)}\n"
        return Grammar(
            "lark",
            f"start: {start}\n{answer}"
            f"call: {self._literal(form.opener)} SPACE? json{closer}\n"
            f"json: %json {json.dumps(schema)}\n"
            f"SPACE: /{JSON_SPACE}/\n",
        )

    def _literal(self, text: str) -> str:
        """A mark in a grammar: by its id where it is one token, since special tokens match no text."""
        ids = list(self._encode(text))
        return f"<[{ids[0]}]>" if len(ids) == 1 else json.dumps(text)


def _spaced(schema: str) -> str:
    """A schema with as much white space between its parts as all of ours."""
    fields = json.loads(schema)
    spaced = {**fields, "x-guidance": {"whitespace_pattern": JSON_SPACE}} if isinstance(fields, dict) else fields
    return json.dumps(spaced)


def _function(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    function = tool.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InvalidRequest("a tool has a `function` with a `name`")
    return function


def _call_schema(tool: Mapping[str, Any], form: CallFormat) -> dict[str, Any]:
    function = _function(tool)
    # `strict` False holds the envelope alone.
    loose = {"type": "object"}
    arguments = loose if function.get("strict") is False else function.get("parameters") or loose
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, form.arguments: arguments},
        "required": ["name", form.arguments],
        "additionalProperties": False,
    }
