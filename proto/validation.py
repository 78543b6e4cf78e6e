"""The checks that the requests of every task share.

Each raises InvalidRequest with a text that names the field and what is allowed.
"""

from __future__ import annotations

import math

import numpy as np

from ..errors import InvalidRequest
from .request import RequestID

#: Longest name of a model, in characters: an envelope (`wire.py`) carries no longer one.
MAX_MODEL_CHARS = 256


def require_id(request_id: object) -> None:
    """A request is named by a RequestID, not by its bare string."""
    if not isinstance(request_id, RequestID):
        raise InvalidRequest(f"`request_id` must be a RequestID, not {_shown(request_id)}; leave it out for a new one")


def require_model(model: object, name: str = "model") -> None:
    """A request names its model, in the field `name`, by a string of 1 to 256 characters."""
    if not isinstance(model, str) or not 0 < len(model) <= MAX_MODEL_CHARS:
        raise InvalidRequest(
            f"`{name}` must be the name of a deployment's model, of at most {MAX_MODEL_CHARS} characters, "
            f"not {_shown(model)}",
        )


def require_options(options: object, name: str = "options") -> None:
    """A request's `options`, or another field of that kind, are a dict with string keys."""
    if not isinstance(options, dict) or (options and not all(isinstance(key, str) for key in options)):
        raise InvalidRequest(f"`{name}` must be a dict with string keys, not {_shown(options)}")


def require_text(name: str, value: object) -> None:
    """A text, which may be empty."""
    if not isinstance(value, str):
        raise InvalidRequest(f"`{name}` must be a text, not {_shown(value)}")


def require_flag(name: str, value: object) -> None:
    """True or False; a number is neither."""
    if not isinstance(value, bool):
        raise InvalidRequest(f"`{name}` must be True or False, not {_shown(value)}")


def require_at_least(name: str, value: float | None, least: float) -> None:
    """An optional number is finite and at least `least`; a bool is no number."""
    if value is not None and not (_is_number(value) and least <= value < math.inf):
        raise InvalidRequest(f"`{name}` must be a finite number of at least {least}, not {_shown(value)}")


def require_whole(name: str, value: int | None, least: float) -> None:
    """An optional number is whole and at least `least`; a bool is no number."""
    if value is not None and not (is_whole(value) and value >= least):
        raise InvalidRequest(f"`{name}` must be a whole number of at least {least}, not {_shown(value)}")


def require_count(name: str, value: object, least: int = 0) -> None:
    """A number that must be there is whole and at least `least`; a bool is no number."""
    if not is_whole(value) or value < least:  # type: ignore[operator]
        raise InvalidRequest(f"`{name}` must be a whole number of at least {least}, not {_shown(value)}")


def is_whole(value: object) -> bool:
    """Whether a value is an int, of Python or numpy, and no bool."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_token(value: object) -> bool:
    """Whether a value is a token id: a whole number that int64 holds."""
    return is_whole(value) and -(1 << 63) <= value < 1 << 63  # type: ignore[operator]


def _is_number(value: object) -> bool:
    return is_whole(value) or isinstance(value, float | np.floating)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}... ({type(value).__name__})"
