"""`CheckedStruct`: a message whose fields are checked when it is built here, exactly as when it comes off the wire.

The messages of text (`text_messages.py`) and of Open Responses build on it; it knows none of them.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import msgspec

from ..errors import InvalidRequest


@cache
def _field_types(cls: type[msgspec.Struct]) -> tuple[tuple[str, Any], ...]:
    return tuple((spec.name, spec.type) for spec in msgspec.structs.fields(cls))


class CheckedStruct(msgspec.Struct, frozen=True, kw_only=True):
    """A struct whose fields are checked against their annotations when it is built, not only when decoded.

    Dicts become the structs that the annotations name. Raises InvalidRequest (a ValueError) naming the field.
    """

    def __post_init__(self) -> None:
        for name, kind in _field_types(type(self)):
            value = getattr(self, name)
            try:
                checked = msgspec.convert(value, kind)
            except msgspec.ValidationError as error:
                raise InvalidRequest(f"`{name}` of {type(self).__name__}: {error}") from None
            if isinstance(checked, float) and not math.isfinite(checked):
                raise InvalidRequest(f"`{name}` of {type(self).__name__} is a finite number, not {checked}")
            if checked is not value:
                msgspec.structs.force_setattr(self, name, checked)
