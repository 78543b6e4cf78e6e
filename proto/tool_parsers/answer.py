"""One answer on its way through a tool parser: what is held back, and what goes out as content or as calls.

Grammars of formats read from it and report to it; it knows no format.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..tool_parsing import ParsedToolCallDelta
from .markers import Markers
from .source import Malformed, Reading, Sink, Source

#: Longest name of a function, and longest id of a call, in characters.
MAX_NAME_CHARS = 256


@dataclass(slots=True)
class _Outgoing:
    """A delta in the making; its text comes in parts, so that joining them is linear."""

    index: int
    is_content: bool
    id: str | None = None
    name: str | None = None
    parts: list[str] = field(default_factory=list)

    def delta(self) -> ParsedToolCallDelta:
        text = "".join(self.parts)
        if self.is_content:
            return ParsedToolCallDelta(self.index, content=text)
        return ParsedToolCallDelta(self.index, id=self.id, name=self.name, arguments=text or None)


class Call:
    """A call being read. It is announced once its name is known and its arguments begin, or it ends."""

    __slots__ = ("_answer", "_early", "_index", "_written", "id", "name")

    #: The id that the model gave, else None.
    id: str | None
    #: None until it is read.
    name: str | None
    #: Arguments that came before the name.
    _early: list[str]
    #: Position among the calls of the answer; None until it is announced.
    _index: int | None
    #: Any text of the arguments has come.
    _written: bool

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.id, self.name, self._early, self._index, self._written = None, None, [], None, False

    @property
    def announced(self) -> bool:
        """Whether the call has gone out, so that it cannot be taken for text any more."""
        return self._index is not None

    def named(self, name: str) -> None:
        """The name is read; Malformed when no function can have it, or when there is one already."""
        if self.name is not None:
            raise Malformed("a call has one name")
        if not 0 < len(name) <= MAX_NAME_CHARS:
            raise Malformed(f"the name of a function has 1 to {MAX_NAME_CHARS} characters")
        self.name = name
        if self._written:
            self.announce()

    def announce(self) -> None:
        """Send the id and the name; from here on the text read is a call for certain."""
        assert self.name is not None, "a call is announced by its name"
        self._index = self._answer.open_call(self.name, self.id)
        for text in self._early:
            self._answer.send_arguments(self._index, text)
        self._early.clear()

    def write(self, text: str) -> None:
        """More text of the arguments."""
        self._written = True
        if self._index is None and self.name is not None:
            self.announce()
        if self._index is None:
            self._early.append(text)
        else:
            self._answer.send_arguments(self._index, text)

    def end(self) -> None:
        """The call is whole; without arguments they are `{}`. Malformed when it has no name."""
        if self.name is None:
            raise Malformed("a call has no name")
        if not self._written:
            self.write("{}")
        self._answer.close_call()


class Answer(Source):
    """One answer: the text read, and the deltas to send.

    `make_id`: makes the id of a call that the model gave none, or one already used.
    """

    __slots__ = ("_gap", "_ids", "_make_id", "_open", "_out", "_partial", "calls", "failure", "unread")

    #: White space and the like behind a call, which belongs to the format unless other text follows.
    _gap: list[str]
    #: Ids given so far.
    _ids: set[str]
    #: The end of the text so far, as far as it could begin a marker.
    _partial: str
    #: Name of the call that is announced and not whole yet.
    _open: str | None
    #: Deltas not taken yet.
    _out: list[_Outgoing]
    #: Calls announced so far.
    calls: int
    #: Why a call that began cannot be read whole; the first such reason.
    failure: str | None
    #: Why a marker was taken for text; the first such reason.
    unread: str | None

    def __init__(self, make_id: Callable[[], str]) -> None:
        super().__init__()
        self._make_id = make_id
        self._gap, self._ids, self._open, self._out, self._partial = [], set(), None, [], ""
        self.calls, self.failure, self.unread = 0, None, None

    @property
    def is_clear(self) -> bool:
        """Nothing that has come is held back."""
        return not self._gap and not self._partial and self.held is None

    def deltas(self) -> list[ParsedToolCallDelta]:
        """What is to be sent; given once."""
        out, self._out = self._out, []
        return [outgoing.delta() for outgoing in out]

    def content(self, text: str) -> None:
        """Send ordinary text, behind what a call left open."""
        if not text:
            return
        if not self._out or not self._out[-1].is_content:
            self._out.append(_Outgoing(0, is_content=True))
        self._out[-1].parts.extend((*self._gap, text))
        self._gap.clear()

    def open_call(self, name: str, call_id: str | None) -> int:
        """Announce a call, and forget what was held until it was certain; its index."""
        self.drop()
        if call_id is None or call_id in self._ids:
            call_id = self._make_id()
        self._ids.add(call_id)
        self._open = name
        self._out.append(_Outgoing(self.calls, is_content=False, id=call_id, name=name))
        self.calls += 1
        return self.calls - 1

    def send_arguments(self, index: int, text: str) -> None:
        """Send more of a call's arguments."""
        if not self._out or self._out[-1].is_content:
            self._out.append(_Outgoing(index, is_content=False))
        self._out[-1].parts.append(text)

    def hold(self, marker: str) -> None:
        """A marker was read: keep the text from it on until it is certain to be a call."""
        self.held = [marker]

    def drop(self) -> None:
        """What is held belongs to the format."""
        self.held = None
        self._gap.clear()

    def release(self) -> None:
        """What is held is ordinary text."""
        held, self.held = self.held, None
        self.content("".join(held or ()))

    def close_call(self) -> None:
        """The call announced last is whole."""
        self._open = None

    def release_line_end(self) -> None:
        """Of the marker held, the line end before it is ordinary text."""
        assert self.held is not None
        self.content("\n")
        self.hold(self.held[0][1:])

    def fail(self, problem: object) -> None:
        """The call being read cannot be read whole."""
        which = f"the call of {self._open!r}" if self._open else f"call number {self.calls + 1}"
        self.failure = self.failure or f"{which} cannot be read whole: {problem}"
        self._open = None

    def until(
        self,
        markers: Markers[str],
        sink: Sink,
        *,
        last: Sink | None = None,
        first: Markers[str] | None = None,
        gap: str = "",
    ) -> Reading[str]:
        """Take text up to one of `markers`, and return that marker; "" when the text ends without one.

        The text before goes to `sink`, except what could begin a marker, which waits for the next characters; if the
        text ends there, it goes to `last`, or to `sink` too. As long as nothing but characters of `gap` came, `first`
        is looked for in place of `markers` and the gap is kept.
        """
        active, between = first or markers, first is not None
        node, partial = 0, ""
        while True:
            if not node and not between and (run := self.run(active.plain)):
                sink(run)
            self._partial = partial
            character = yield from self.look()
            if not character:
                self._partial = ""
                if partial:
                    (last or sink)(partial)
                return ""
            self.take()
            if between and not node and character in gap:
                self._gap.append(character)
                continue
            node = active.step(node, character)
            partial += character
            found = active.found[node]
            keep = len(found) if found else active.depth[node]
            passed, partial = partial[: len(partial) - keep], partial[len(partial) - keep :]
            if passed:
                sink(passed)
            if found:
                self._partial = ""
                return partial
            if between and passed:
                between, active = False, markers
                node, partial = _restart(markers, partial, sink)


def _restart(markers: Markers[str], text: str, sink: Sink) -> tuple[int, str]:
    """Begin to look for other markers behind `text`, which is shorter than any: the node, and what waits."""
    node = 0
    for character in text:
        node = markers.step(node, character)
    sink(text[: len(text) - markers.depth[node]])
    return node, text[len(text) - markers.depth[node] :]
