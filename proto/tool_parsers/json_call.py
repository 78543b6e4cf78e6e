"""Reads calls written as JSON objects with a name and arguments, one or an array of them."""

from __future__ import annotations

from .answer import Answer, Call
from .json_text import arguments, decoded_string, value
from .source import Malformed, Reading, discard

_ARGUMENTS = ("arguments", "parameters")
_BESIDE = frozenset({"type", "id"})


def json_calls(answer: Answer, *, first: str = "", strict: bool = False) -> Reading[None]:
    """Read `{…}` or `[{…}, …]`.

    `first`: the opening bracket, where it is taken already. `strict`: an object is a call only with arguments and
    without keys that calls do not have, for where no marker tells calls from other JSON.
    """
    if not first:
        first = yield from answer.need("a call")
        if first not in "{[":
            raise Malformed(f"{first!r} stands where a call should begin")
        answer.take()
    if first == "{":
        yield from _call(answer, strict=strict)
        return
    following = ","
    while following == ",":
        if (yield from answer.need("a call")) != "{":
            raise Malformed("an array of calls holds objects")
        answer.take()
        yield from _call(answer, strict=strict)
        following = yield from answer.need("',' or ']'")
        if following not in ",]":
            raise Malformed(f"{following!r} stands behind a call")
        answer.take()


def _call(answer: Answer, *, strict: bool) -> Reading[None]:
    """Read one object, whose bracket is taken."""
    call = Call(answer)
    seen: set[str] = set()
    following = yield from answer.need("a key or '}'")
    while following != "}":
        yield from _member(answer, call, seen, strict=strict)
        following = yield from answer.need("',' or '}'")
        if following == ",":
            answer.take()
            if (yield from answer.need("a key")) == "}":
                raise Malformed("a comma stands before '}'")
        elif following != "}":
            raise Malformed(f"{following!r} stands where ',' or '}}' should be")
    if strict and "arguments" not in seen:
        raise Malformed("a call has arguments")
    answer.take()
    call.end()


def _member(answer: Answer, call: Call, seen: set[str], *, strict: bool) -> Reading[None]:
    """Read one key and its value; "arguments" in `seen` stands for either key of them."""
    key = yield from decoded_string(answer, "a key")
    if (yield from answer.need("':'")) != ":":
        raise Malformed("a key is followed by ':'")
    answer.take()
    if key == "name":
        call.named((yield from decoded_string(answer, "the name of a call")))
    elif key in _ARGUMENTS:
        if "arguments" in seen:
            raise Malformed("a call has arguments once")
        seen.add("arguments")
        yield from arguments(answer, call.write)
    elif strict and key not in _BESIDE and not call.announced:
        raise Malformed(f"a call has no {key!r}")
    else:
        yield from value(answer, discard)
