"""Reads JSON as it arrives and passes its text on, checked, character for character.

What is passed on is always the beginning of a valid JSON text. The one thing changed: control characters and lone
surrogates that stand raw in a string, which models write and JSON forbids, become escapes.
"""

from __future__ import annotations

import json
import re

from .source import CutOff, Malformed, Pump, Reading, Sink, Source

#: Deepest nesting of arrays and objects; Python's own reader gives up near 1000.
MAX_DEPTH = 100

#: Longest number, in characters; Python reads no integer of more than 4300 digits.
MAX_NUMBER_CHARS = 1000

_PLAIN = re.compile(r'[^"\\\x00-\x1f\ud800-\udfff]+')
_SCALAR = re.compile(r"[-+.0-9A-Za-z]+")
_WHOLE_SCALAR = re.compile(r"true|false|null|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_HEX = frozenset("0123456789abcdefABCDEF")
_ESCAPES = frozenset('"\\/bfnrt')
_SURROGATES = re.compile(r"[\ud800-\udfff]")


def escaped(text: str) -> str:
    """`text` as the inside of a JSON string: readable, and encodable as UTF-8 whatever it holds."""
    inside = json.dumps(text, ensure_ascii=False)[1:-1]
    return _SURROGATES.sub(lambda found: f"\\u{ord(found[0]):04x}", inside)


def value(source: Source, write: Sink) -> Reading[None]:
    """Read one value and write its text; a number or a word is written when it is whole."""
    closers: list[str] = []
    while True:
        character = yield from source.need("a value", write)
        if character in "{[":
            if len(closers) == MAX_DEPTH:
                raise Malformed(f"JSON is nested deeper than {MAX_DEPTH}")
            closers.append("}" if character == "{" else "]")
            write(source.take())
            if (yield from source.need(f"a value or {closers[-1]!r}", write)) != closers[-1]:
                yield from _key(source, write, closers)
                continue
        elif character == '"':
            yield from _string(source, write)
        else:
            yield from _scalar(source, write)
        if not (yield from _more(source, write, closers)):
            return


def _more(source: Source, write: Sink, closers: list[str]) -> Reading[bool]:
    """Behind a value: close what ends here; whether another value follows."""
    while closers:
        character = yield from source.need(f"',' or {closers[-1]!r}", write)
        if character == ",":
            write(source.take())
            yield from _key(source, write, closers)
            return True
        if character != closers[-1]:
            raise Malformed(f"{character!r} stands where ',' or {closers[-1]!r} should be")
        write(source.take())
        closers.pop()
    return False


def _key(source: Source, write: Sink, closers: list[str]) -> Reading[None]:
    """The key of a member; nothing inside an array."""
    if closers[-1] == "]":
        return
    if (yield from source.need("a key", write)) != '"':
        raise Malformed("a key of a JSON object is a string")
    yield from _string(source, write)
    if (yield from source.need("':'", write)) != ":":
        raise Malformed("a key of a JSON object is followed by ':'")
    write(source.take())


def _scalar(source: Source, write: Sink) -> Reading[None]:
    text = yield from source.word(_SCALAR, MAX_NUMBER_CHARS)
    follows = yield from source.look()
    if not follows:
        raise CutOff("the rest of a value")
    if not _WHOLE_SCALAR.fullmatch(text):
        raise Malformed(f"{text or follows!r} is no JSON value")
    write(text)


def _string(source: Source, write: Sink) -> Reading[None]:
    write('"')
    yield from string_inside(source, write)
    write('"')


def string_inside(source: Source, write: Sink) -> Reading[None]:
    """Take a string, quotes and all, and write its inside; each escape is written whole."""
    source.take()
    while True:
        if run := source.run(_PLAIN):
            write(run)
        character = yield from source.look()
        if not character:
            raise CutOff("the end of a string")
        if character == '"':
            source.take()
            return
        if character == "\\":
            yield from _escape(source, write)
        elif not _PLAIN.match(character):
            write(json.dumps(source.take())[1:-1])


def _escape(source: Source, write: Sink) -> Reading[None]:
    text = source.take()
    kind = yield from source.look()
    if kind == "u":
        text += source.take()
        for _ in range(4):
            digit = yield from source.look()
            if digit and digit not in _HEX:
                raise Malformed(f"{digit!r} stands in a \\u escape")
            if not digit:
                raise CutOff("the rest of an escape")
            text += source.take()
    elif not kind:
        raise CutOff("the rest of an escape")
    elif kind in _ESCAPES:
        text += source.take()
    else:
        raise Malformed(f"JSON has no escape \\{kind}")
    write(text)


def decoded_string(source: Source, what: str) -> Reading[str]:
    """Read a string and return what it says."""
    if (yield from source.need(what)) != '"':
        raise Malformed(f"{what} is a string")
    parts: list[str] = []
    yield from string_inside(source, parts.append)
    return _decoded("".join(parts))


def _decoded(inside: str) -> str:
    return str(json.loads(f'"{inside}"'))


def arguments(source: Source, write: Sink) -> Reading[None]:
    """The arguments of a call: an object, or a string that holds one.

    For null or an empty string nothing is written.
    """
    character = yield from source.need("arguments")
    if character == "{":
        yield from value(source, write)
    elif character == '"':
        inner = Source()
        pump = Pump(inner, _object_alone(inner, write))
        yield from string_inside(source, lambda piece: pump.push(_decoded(piece)))
        try:
            pump.finish()
        except CutOff as problem:  # of the string, which has its end: waiting for more would not help
            raise Malformed("arguments given as a string hold no whole object") from problem
    elif character == "n":
        yield from source.expect("null")
    else:
        raise Malformed(f"{character!r} stands where the arguments' '{{' should be")


def _object_alone(source: Source, write: Sink) -> Reading[None]:
    character = yield from source.spaces()
    if not character:
        return
    if character != "{":
        raise Malformed("arguments given as a string hold no object")
    yield from value(source, write)
    if (yield from source.spaces()):
        raise Malformed("something follows the arguments in their string")
