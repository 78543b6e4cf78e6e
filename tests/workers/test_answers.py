"""How errors are put into words, whatever they hold. How answers are split is shown with the conversation."""

from __future__ import annotations

from tensoryard import errors
from tensoryard.workers.answers import MAX_TEXT_CHARS, clean_text, describe


class UnspeakableError(Exception):
    """Has no text."""

    def __str__(self) -> str:
        raise ZeroDivisionError


def test_errors_of_ours_keep_their_code():
    """Code and text as they are; anything else is the pipeline's error and says what and where."""
    assert describe(errors.InvalidRequest("bad option")) == ("invalid_request", "bad option")
    try:
        raise KeyError("missing")
    except KeyError as error:
        code, text = describe(error)
    assert code == "pipeline_error"
    assert text.startswith("KeyError: 'missing' (at ")
    assert __file__.rsplit("/", 1)[1] in text


def test_any_error_can_be_described():
    """Also one whose text cannot be made, or is no text, or is far too long."""
    assert describe(UnspeakableError()) == ("pipeline_error", "UnspeakableError: (its text cannot be made)")
    assert clean_text("a\udcffb") == "a?b"
    assert len(describe(ValueError("x" * 100_000))[1]) == MAX_TEXT_CHARS
