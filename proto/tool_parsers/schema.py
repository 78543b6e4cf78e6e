"""Untyped text of a parameter to JSON, by the type that the tool's schema states."""

from __future__ import annotations

import json
from typing import Any

_WORDS = {"True": "true", "False": "false", "None": "null"}
#: References followed from one schema; a cycle ends here.
_MAX_STEPS = 32


def parameter_types(schema: Any, parameter: str) -> frozenset[str] | None:
    """The JSON types that a tool's schema allows a parameter; empty: it states none. None: it has no such parameter."""
    properties = schema.get("properties") if isinstance(schema, dict) else None
    if not isinstance(properties, dict) or parameter not in properties:
        return None
    found: set[str] = set()
    waiting = [properties[parameter]]
    for _ in range(_MAX_STEPS):
        if not waiting:
            break
        part = waiting.pop()
        if isinstance(part, dict):
            found |= _stated(part)
            for name in ("anyOf", "oneOf", "allOf"):
                waiting.extend(part[name] if isinstance(part.get(name), list) else ())
            waiting.append(_referred(schema, part.get("$ref")))
    return frozenset(found)


def _stated(part: dict[str, Any]) -> set[str]:
    """The types that one schema states itself."""
    stated = part.get("type")
    if isinstance(stated, str):
        return {stated}
    if isinstance(stated, list):
        return {name for name in stated if isinstance(name, str)}
    values = part["enum"] if isinstance(part.get("enum"), list) else [part["const"]] if "const" in part else []
    return {name for value in values for name in _types_of(value)[:1]}


def _referred(schema: dict[str, Any], reference: Any) -> Any:
    """What `#/…` refers to within the schema; None for nothing."""
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return None
    part: Any = schema
    for step in reference[2:].split("/"):
        part = part.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(part, dict) else None
    return part


def json_of(text: str, types: frozenset[str]) -> str | None:
    """`text` as JSON of one of `types`, or of any when they are empty; None where it is a string (without quotes)."""
    text = text.strip()
    text = _WORDS.get(text, text)
    try:
        value = json.loads(text, parse_constant=_refused)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, str) or (types and not types.intersection(_types_of(value))):
        return None
    return text


def _refused(word: str) -> Any:
    raise ValueError(f"{word} is no JSON")


def _types_of(value: Any) -> tuple[str, ...]:
    """The names of a value's type, the narrowest first."""
    if value is None:
        return ("null",)
    if isinstance(value, bool):
        return ("boolean",)
    if isinstance(value, int):
        return ("integer", "number")
    if isinstance(value, float):
        return ("number", "integer") if value.is_integer() else ("number",)
    if isinstance(value, str):
        return ("string",)
    return ("array",) if isinstance(value, list) else ("object",)
