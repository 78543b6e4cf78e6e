"""The text of an answer as it arrives: what a format's grammar, written as a generator, reads from.

A grammar reads as if the text were whole, and pauses (a bare `yield`) where it has not come yet; each character is
taken once, wherever the pieces are cut. This module knows neither calls nor replies.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from typing import TypeAlias, TypeVar

T = TypeVar("T")

#: A step of a grammar: it may pause for more text, and returns what it read.
Reading: TypeAlias = Generator[None, None, T]

#: Where a step puts what it reads.
Sink: TypeAlias = Callable[[str], object]

#: White space of JSON; the other formats are written by templates that use no other.
SPACES = " \t\r\n"
_SPACES = re.compile(r"[ \t\r\n]+")


class Malformed(Exception):
    """The text cannot go on like this; raised before the offending character is taken."""


class CutOff(Malformed):
    """The text ended in the middle; says what is missing."""

    def __init__(self, missing: str) -> None:
        super().__init__(f"the text ends where {missing} should come")


def discard(_text: str) -> None:
    """A sink for what is not wanted."""


class Source:
    """Text that comes in pieces, read through `look`, `take` and `run` alone.

    While `held` is a list, all that is taken is added to it.
    """

    __slots__ = ("_at", "_ended", "_piece", "held")

    #: The piece being read; used up before the next one comes.
    _piece: str
    #: Next character of `_piece`.
    _at: int
    #: No further piece comes.
    _ended: bool
    #: The text since a marker, for when it turns out to be no call; None when nothing is in doubt.
    held: list[str] | None

    def __init__(self) -> None:
        self._piece, self._at, self._ended, self.held = "", 0, False, None

    def give(self, piece: str) -> None:
        """The next piece."""
        assert self._at == len(self._piece), "the piece before was not read to its end"
        self._piece, self._at = piece, 0

    def end(self) -> None:
        """No more text comes."""
        self._ended = True

    def look(self) -> Reading[str]:
        """The next character, not taken; "" at the end of the text."""
        while self._at == len(self._piece):
            if self._ended:
                return ""
            yield
        return self._piece[self._at]

    def take(self) -> str:
        """Take the character that `look` showed."""
        character = self._piece[self._at]
        self._at += 1
        if self.held is not None:
            self.held.append(character)
        return character

    def run(self, pattern: re.Pattern[str]) -> str:
        """Take what matches here within this piece, perhaps nothing; the run may go on in the next piece."""
        match = pattern.match(self._piece, self._at)
        if match is None:
            return ""
        self._at = match.end()
        if self.held is not None:
            self.held.append(match[0])
        return match[0]

    def spaces(self, write: Sink = discard) -> Reading[str]:
        """Take white space; the character behind it, not taken, or ""."""
        while True:
            if run := self.run(_SPACES):
                write(run)
            character = yield from self.look()
            if not character or character not in SPACES:
                return character

    def need(self, what: str, write: Sink = discard) -> Reading[str]:
        """The character behind white space, not taken; CutOff when the text ends."""
        character = yield from self.spaces(write)
        if not character:
            raise CutOff(what)
        return character

    def expect(self, literal: str) -> Reading[None]:
        """Take exactly `literal`."""
        for wanted in literal:
            character = yield from self.look()
            if not character:
                raise CutOff(repr(literal))
            if character != wanted:
                raise Malformed(f"{character!r} stands where {literal!r} should be")
            self.take()

    def word(self, pattern: re.Pattern[str], longest: int) -> Reading[str]:
        """Take all that matches `pattern`, across pieces; Malformed beyond `longest` characters."""
        parts: list[str] = []
        length = 0
        while (yield from self.look()) and (part := self.run(pattern)):
            parts.append(part)
            length += len(part)
            if length > longest:
                raise Malformed(f"a word is longer than {longest} characters")
        return "".join(parts)


class Pump:
    """A grammar that is pushed its text."""

    __slots__ = ("_reading", "_source")

    def __init__(self, source: Source, reading: Reading[None]) -> None:
        self._source = source
        self._reading = reading

    def push(self, text: str) -> None:
        """Read one more piece to its end."""
        self._source.give(text)
        next(self._reading, None)

    def finish(self) -> None:
        """Let the grammar come to its end."""
        self._source.end()
        next(self._reading, None)
