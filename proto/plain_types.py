"""Types whose values hold no arrays: their bodies are one frame, which needs no second look.

Asked by `codec.py`, once for each type.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from .request import RequestID


def is_plain(type_: Any) -> bool:
    """Whether no value of a type can hold an array, as far as its annotations tell; False where they do not tell."""
    import msgspec.inspect  # as long as importing the rest of this module, and few processes ask

    try:
        found = msgspec.inspect.type_info(type_)
    except Exception:  # an annotation that is no type for msgspec
        return False
    return _is_plain(found, set())


def _is_plain(node: Any, seen: set[Any]) -> bool:
    """The same of a part of a type's description; `seen`: classes that are being looked at, or have been."""
    match type(node).__name__:
        case "AnyType" | "RawType" | "ExtType":
            return False
        case "CustomType":
            return node.cls is RequestID
    if (cls := getattr(node, "cls", None)) is not None:
        if cls in seen:
            return True
        seen.add(cls)
    return all(_is_plain(part, seen) for part in _parts(node))


def _parts(node: Any) -> Iterable[Any]:
    """The descriptions inside one: of its fields, items or choices."""
    for name in node.__struct_fields__:
        value = getattr(node, name)
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, msgspec.inspect.Type | msgspec.inspect.Field):
                yield part
