"""What all tool parsers share: streaming, ids, and what becomes of text that only looked like a call.

Whole answers and pieces go through the same grammar (`_read`), so that they cannot disagree.
"""

from __future__ import annotations

import secrets
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from ..tool_parsing import ParsedToolCallDelta, ParsedToolResponse, ToolParser, collect_deltas
from .answer import Answer
from .markers import Markers
from .source import SPACES, CutOff, Malformed, Pump, Reading, discard


def new_call_id() -> str:
    """A new id, `call_` and 24 hexadecimal digits."""
    return f"call_{secrets.token_hex(12)}"


class StreamingToolParser(ToolParser):
    """A parser of one format, for one stream at a time.

    `make_id` makes the ids of calls; a test gives its own. What becomes of the text:

    - A call is announced (id and name) once it is certain: its name is known and its arguments begin, or it ends. From
      then on its arguments are sent as they come, and nothing sent is ever taken back.
    - A call announced that goes on wrongly stays as far as it was sent, its rest up to the next marker is left out,
      and `problem` says what is wrong. `parse_complete` raises that as a ValueError.
    - All other text is content, exactly as it came: markers with no call behind them too. White space that stands only
      between calls, or behind the last, belongs to the format.
    """

    #: The stream under way.
    _answer: Answer
    _pump: Pump
    #: `flush` was called, so that the next piece begins a new stream.
    _finished: bool

    def __init__(self, *, make_id: Callable[[], str] | None = None) -> None:
        self._make_id = make_id or self.new_id
        self._schemas: dict[str, dict[str, Any]] = {}
        self.reset()

    @staticmethod
    def new_id() -> str:
        """An id for a call that the model gave none."""
        return new_call_id()

    @property
    def problem(self) -> str | None:
        """What is wrong with a call of this stream, in words; None when all is well so far."""
        return self._answer.failure

    def parse_complete(self, response: str) -> ParsedToolResponse:
        """Parse a whole answer; a stream that is under way is not disturbed.

        Raises ValueError, which says what is missing, for a call that is cut off or malformed, and when there are
        markers of calls but no call can be read.
        """
        answer = Answer(self._make_id)
        pump = Pump(answer, self._read(answer))
        pump.push(response)
        pump.finish()
        if answer.failure is not None:
            raise ValueError(answer.failure)
        if answer.unread is not None and not answer.calls:
            raise ValueError(answer.unread)
        return collect_deltas(answer.deltas())

    def parse_delta(self, delta: str) -> list[ParsedToolCallDelta] | None:
        """Take the next piece; None when it is plain text and passes as it is. After `flush` a new stream begins."""
        if self._finished:
            self.reset()
        was_clear = self._answer.is_clear
        self._pump.push(delta)
        deltas = self._answer.deltas()
        as_it_is = len(deltas) == 1 and deltas[0].content == delta
        return None if was_clear and as_it_is and self._answer.is_clear else deltas

    def flush(self) -> list[ParsedToolCallDelta]:
        """At the end of the stream: what is still held back."""
        if self._finished:
            return []
        self._finished = True
        self._pump.finish()
        return self._answer.deltas()

    def reset(self) -> None:
        """Begin a new stream; the schemas stay."""
        self._answer = Answer(self._make_id)
        self._pump = Pump(self._answer, self._read(self._answer))
        self._finished = False

    def set_streaming_tool_schemas(self, schemas: Mapping[str, dict[str, Any]]) -> None:
        """Learn the parameter schema of each tool; whole answers are read by it too."""
        self._schemas = dict(schemas)

    @abstractmethod
    def _read(self, answer: Answer) -> Reading[None]:
        """The grammar of a whole answer. It takes all text, and lets no Malformed out."""


class SectionToolParser(StreamingToolParser):
    """A format in which text and sections of calls take turns; a section begins with a marker."""

    #: Markers that begin a section in the midst of text.
    openers: ClassVar[tuple[str, ...]]
    #: The same directly behind a call; None: `openers`.
    next_openers: ClassVar[tuple[str, ...] | None] = None
    #: Markers that may stand behind a call and belong to it.
    closers: ClassVar[tuple[str, ...]] = ()
    #: Openers that are ordinary text unless a call follows.
    unmarked: ClassVar[frozenset[str]] = frozenset()
    #: Characters that may stand between a call and what follows.
    gap: ClassVar[str] = SPACES

    _openers: ClassVar[Markers[str]]
    #: What is looked for directly behind a call.
    _behind: ClassVar[Markers[str]]
    #: What ends the rest of a call that went wrong.
    _rescue: ClassVar[Markers[str]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not hasattr(cls, "openers"):
            return  # a base of several formats
        following = cls.openers if cls.next_openers is None else cls.next_openers
        cls._openers = Markers(cls.openers)
        cls._behind = Markers((*following, *cls.closers))
        cls._rescue = Markers((*cls.openers, *cls.closers))

    @abstractmethod
    def _section(self, answer: Answer, opener: str) -> Reading[None]:
        """Read the call or calls behind `opener`, which is held; Malformed when there is none or one breaks off."""

    def _first(self, answer: Answer) -> Reading[str]:
        """The first opener of an answer."""
        return (yield from answer.until(self._openers, answer.content))

    def _read(self, answer: Answer) -> Reading[None]:
        opener = yield from self._first(answer)
        while opener:
            begun = answer.calls
            answer.hold(opener)
            try:
                yield from self._section(answer, opener)
            except Malformed as problem:
                opener = yield from self._recover(answer, opener, problem, broken=answer.calls > begun)
            else:
                opener = yield from self._follow(answer)

    def _follow(self, answer: Answer) -> Reading[str]:
        """Pass over what closes a call; the next opener."""
        while True:
            marker = yield from answer.until(self._openers, answer.content, first=self._behind, gap=self.gap)
            if marker not in self.closers:
                return marker
            answer.drop()

    def _recover(self, answer: Answer, opener: str, problem: Malformed, *, broken: bool) -> Reading[str]:
        """Behind what is no call, or no whole one: the next opener."""
        if broken:
            answer.fail(problem)
            marker = yield from answer.until(self._rescue, discard)
            return (yield from self._follow(answer)) if marker in self.closers else marker
        answer.release()
        if opener not in self.unmarked:
            if isinstance(problem, CutOff):
                answer.fail(problem)
            answer.unread = answer.unread or f"{opener!r} stands there, but no call can be read behind it: {problem}"
        return (yield from answer.until(self._openers, answer.content))
