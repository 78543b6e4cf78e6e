"""Tool calls in generated text: what a parser finds, whole or piece by piece.

Parsers of concrete formats implement `ToolParser`; who calls them turns deltas into replies.

Source: `max.interfaces.tool_parsing` (26.3), `max.pipelines.modeling.types.tool_parsing` (26.7).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable


@dataclass
class ParsedToolCall:
    """One call: `arguments` is JSON text, not parsed."""

    id: str
    name: str
    arguments: str


@dataclass
class ParsedToolCallDelta:
    """One piece of a streamed call, or of the text beside it.

    `index`: which call. `id` and `name` come once, before the first piece of `arguments` or with it, also for a call
    without arguments. `arguments` is appended to what came before. `content` is ordinary text, whatever `index` says.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str | None = None
    content: str | None = None


@dataclass
class ParsedToolResponse:
    """A whole answer: the text beside the calls (None without one), and the calls."""

    content: str | None = None
    tool_calls: list[ParsedToolCall] = field(default_factory=list)


@runtime_checkable
class ToolParser(Protocol):
    """Finds tool calls in an answer; one object per stream.

    A class that inherits from it has the last two methods already.
    """

    def parse_complete(self, response: str) -> ParsedToolResponse:
        """Parse a whole answer; ValueError when there are markers of calls but no call can be read."""
        ...

    def parse_delta(self, delta: str) -> list[ParsedToolCallDelta] | None:
        """Take the next piece of decoded text; the parser keeps what it needs of the pieces before.

        A list with entries: send them. An empty list: the piece is taken and nothing is to be sent yet. None: the piece
        is plain text and passes as it is, and nothing is held back.
        """
        ...

    def reset(self) -> None:
        """Forget everything; called before each streamed answer."""
        ...

    def set_streaming_tool_schemas(self, schemas: Mapping[str, dict[str, Any]]) -> None:
        """Learn the parameter schema of each tool, for formats whose values carry no type."""

    def flush(self) -> list[ParsedToolCallDelta]:
        """At the end of the stream: what is still held back, such as text that could have begun a marker."""
        return []


def argument_suffix(sent: str, arguments: str) -> str:
    """What to send of a call's growing `arguments` when `sent` has gone already.

    ValueError when `arguments` no longer begins with `sent`: what is sent cannot be taken back, and a suffix counted by
    length would corrupt the stream silently.
    """
    if not arguments.startswith(sent):
        raise ValueError("the arguments of a streamed tool call changed where they were already sent")
    return arguments[len(sent) :]


def collect_deltas(deltas: Iterable[ParsedToolCallDelta]) -> ParsedToolResponse:
    """The whole answer that streamed deltas add up to; calls in order of their index.

    ValueError for arguments of a call whose id and name never came.
    """
    content: list[str] = []
    calls: dict[int, ParsedToolCall] = {}
    arguments: dict[int, list[str]] = {}  # joined at the end: adding to a string each time would be quadratic
    for delta in deltas:
        if delta.content:
            content.append(delta.content)
        if delta.id is None and delta.name is None and delta.arguments is None:
            continue
        call = calls.setdefault(delta.index, ParsedToolCall("", "", ""))
        call.id = delta.id or call.id
        call.name = delta.name or call.name
        arguments.setdefault(delta.index, []).append(delta.arguments or "")
    for index, call in calls.items():
        call.arguments = "".join(arguments[index])
        if not call.id or not call.name:
            raise ValueError(f"tool call {index} has arguments but never got its id and name")
    return ParsedToolResponse("".join(content) or None, [calls[index] for index in sorted(calls)])
