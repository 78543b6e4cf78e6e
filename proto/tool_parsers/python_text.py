"""Reads Python literals as they arrive and writes them as JSON; nothing is ever evaluated.

Strings go out character by character, numbers and words when they are whole. JSON is written as `json.dumps` writes
it, with readable characters beyond ASCII.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata

from .json_text import MAX_DEPTH, MAX_NUMBER_CHARS, escaped
from .source import CutOff, Malformed, Reading, Sink, Source

_ATOM = re.compile(r"[\w.+-]+")
_INTEGER = re.compile(r"[+-]?(?:[0-9][0-9_]*|0[xX][0-9a-fA-F_]+|0[oO][0-7_]+|0[bB][01_]+)")
_FLOAT = re.compile(r"[+-]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(?:[eE][+-]?[0-9][0-9_]*)?")
#: Models write JSON's words too.
_WORDS = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}
_QUOTES = "\"'"
_PLAIN = {quote: re.compile(rf"[^\\{quote}]+") for quote in _QUOTES}
_ESCAPES = {
    **dict(zip("abfnrtv", "\a\b\f\n\r\t\v", strict=True)),
    "\\": "\\",
    "'": "'",
    '"': '"',
    "\n": "",
}
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
_HEX = re.compile(r"[0-9a-fA-F]")
_OCTAL = re.compile(r"[0-7]")
_CHARACTER_NAME = re.compile(r"[^}]+")
_MAX_CHARACTER_NAME = 100


def value(source: Source, write: Sink) -> Reading[None]:
    """Read one literal: string, number, True, False, None, list, tuple (an array too) or dict, nested."""
    closers: list[str] = []
    closable: list[bool] = []
    while True:
        character = yield from source.need("a value")
        if character in "[({":
            if len(closers) == MAX_DEPTH:
                raise Malformed(f"a literal is nested deeper than {MAX_DEPTH}")
            closers.append({"[": "]", "(": ")", "{": "}"}[source.take()])
            write("{" if character == "{" else "[")
            empty = (yield from source.need(f"a value or {closers[-1]!r}")) == closers[-1]
            # `(1)` is no tuple; whether it is one would be known too late to begin an array.
            closable.append(empty or character != "(")
            if not empty:
                yield from _key(source, write, closers)
                continue
        elif character in _QUOTES:
            yield from _string(source, write)
        else:
            yield from _atom(source, write)
        if not (yield from _more(source, write, closers, closable)):
            return


def _more(source: Source, write: Sink, closers: list[str], closable: list[bool]) -> Reading[bool]:
    """Behind a value: close what ends here; whether another value follows."""
    while closers:
        character = yield from source.need(f"',' or {closers[-1]!r}")
        if character == ",":
            source.take()
            closable[-1] = True
            character = yield from source.need(f"a value or {closers[-1]!r}")
            if character != closers[-1]:
                write(", ")
                yield from _key(source, write, closers)
                return True
        if character != closers[-1] or not closable[-1]:
            raise Malformed(f"{character!r} stands where ',' should be")
        source.take()
        write("}" if character == "}" else "]")
        closers.pop()
        closable.pop()
    return False


def _key(source: Source, write: Sink, closers: list[str]) -> Reading[None]:
    """The key of a dict's item; nothing inside a list or tuple. Numbers and words become strings, as in json.dumps."""
    if closers[-1] != "}":
        return
    if (yield from source.need("a key")) in _QUOTES:
        yield from _string(source, write)
    else:
        key: list[str] = []
        yield from _atom(source, key.append)
        text = "".join(key)
        write(text if text[0] == '"' else f'"{text}"')
    if (yield from source.need("':'")) != ":":
        raise Malformed("a key of a dict is followed by ':'")
    source.take()
    write(": ")


def _atom(source: Source, write: Sink) -> Reading[None]:
    """A number, a word, or a string behind a prefix."""
    text = yield from source.word(_ATOM, MAX_NUMBER_CHARS)
    follows = yield from source.look()
    if not follows:
        raise CutOff("the rest of a value")
    if follows in _QUOTES and text.lower() in ("r", "u"):
        yield from _string(source, write, raw=text in "rR")
        return
    write(_json_of(text or follows))


def _json_of(text: str) -> str:
    if text in _WORDS:
        return _WORDS[text]
    try:
        if _INTEGER.fullmatch(text):
            return str(int(text, 0))
        if _FLOAT.fullmatch(text) and math.isfinite(number := float(text)):
            return json.dumps(number)
    except ValueError:
        pass
    raise Malformed(f"{text!r} is no literal with a form in JSON")


def _string(source: Source, write: Sink, *, raw: bool = False) -> Reading[None]:
    """Read a string, and those that directly follow it, which Python joins."""
    write('"')
    while True:
        yield from _one_string(source, write, raw=raw)
        follows = yield from source.need("what follows a string")
        raw = follows in "rR"
        if follows in "rRuU":
            source.take()
            follows = yield from source.look()
            if follows not in ("", *_QUOTES):
                raise Malformed(f"{follows!r} stands behind a string and a prefix")
        if not follows:
            raise CutOff("the rest of a string")
        if follows not in _QUOTES:
            break
    write('"')


def _one_string(source: Source, write: Sink, *, raw: bool) -> Reading[None]:
    quote = source.take()
    opening = 1 + (yield from _quotes(source, quote, 2))
    if opening == 2:
        return  # an empty string
    while True:
        if run := source.run(_PLAIN[quote]):
            write(escaped(run))
        character = yield from source.look()
        if not character:
            raise CutOff("the end of a string")
        if character == quote:
            closing = yield from _quotes(source, quote, opening)
            if closing == opening:
                return
            write(escaped(quote * closing))
        elif character == "\\":
            source.take()
            yield from (_raw_escape if raw else _escape)(source, write)


def _quotes(source: Source, quote: str, most: int) -> Reading[int]:
    """Take up to `most` quotes; how many."""
    count = 0
    while count < most and (yield from source.look()) == quote:
        source.take()
        count += 1
    return count


def _raw_escape(source: Source, write: Sink) -> Reading[None]:
    if not (yield from source.look()):
        raise CutOff("the end of a string")
    write(escaped("\\" + source.take()))


def _escape(source: Source, write: Sink) -> Reading[None]:
    """What follows a backslash; as in Python one that means nothing stays with what follows it."""
    kind = yield from source.look()
    if not kind:
        raise CutOff("the rest of an escape")
    if kind in _ESCAPES:
        write(escaped(_ESCAPES[source.take()]))
    elif kind in _HEX_DIGITS:
        source.take()
        digits = yield from _digits(source, _HEX, _HEX_DIGITS[kind])
        if len(digits) < _HEX_DIGITS[kind] or int(digits, 16) > 0x10FFFF:
            raise Malformed(f"an escape \\{kind} ends early or names no character")
        write(escaped(chr(int(digits, 16))))
    elif _OCTAL.match(kind):
        write(escaped(chr(int((yield from _digits(source, _OCTAL, 3)), 8))))
    elif kind == "N":
        source.take()
        yield from source.expect("{")
        name = yield from source.word(_CHARACTER_NAME, _MAX_CHARACTER_NAME)
        yield from source.expect("}")
        try:
            write(escaped(unicodedata.lookup(name)))
        except KeyError:
            raise Malformed(f"there is no character {name!r}") from None
    else:
        write(escaped("\\" + source.take()))


def _digits(source: Source, pattern: re.Pattern[str], most: int) -> Reading[str]:
    digits = ""
    while len(digits) < most:
        character = yield from source.look()
        if not character:
            raise CutOff("the rest of an escape")
        if not pattern.match(character):
            break
        digits += source.take()
    return digits
