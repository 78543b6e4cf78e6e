"""The checks that the requests of every task share.

Each raises InvalidRequest with a text that names the field and what is allowed.
"""

from __future__ import annotations

from ..errors import InvalidRequest


def require_model(model: object) -> None:
    """A request names its model by a non-empty string."""
    if not isinstance(model, str) or not model:
        raise InvalidRequest(f"`model` must be the name of a deployment's model, not {model!r}")


def require_options(options: object) -> None:
    """A request's `options` are a dict with string keys."""
    if not isinstance(options, dict) or not all(isinstance(key, str) for key in options):
        raise InvalidRequest(f"`options` must be a dict with string keys, not {type(options).__name__}")


def require_at_least(name: str, value: float | None, least: float) -> None:
    """An optional number is at least `least`; NaN never is."""
    if value is not None and not value >= least:
        raise InvalidRequest(f"`{name}` must be at least {least}, not {value!r}")
