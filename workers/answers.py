"""Answers of a worker on their way out: what they are, how large they may be, and how errors are put into words.

Made by `engine.py`, sent by `conversation.py`; no sockets, no clock.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from typing import Any

from .. import errors
from ..proto import wire
from ..shm import Loan

#: One answer on its way: its part of OUTPUTS, the frames, and the shared memory that they name.
Answer = tuple[wire.Output, list[Any], list[Loan]]
#: Most frames of one output: a message of OUTPUTS has one more, its envelope.
MAX_FRAMES = wire.MAX_FRAMES - 1
#: What an output takes of the envelope at most, its text aside.
ENVELOPE_BYTES = 4096
#: Longest text of an error.
MAX_TEXT_CHARS = 8000


def in_messages(answers: list[Answer], max_message_bytes: int) -> Iterator[list[Answer]]:
    """The answers in as few messages as the limits allow; each fits by itself."""
    part: list[Answer] = []
    size = frames = envelope = 0
    for answer in answers:
        output, body, _ = answer
        # A character takes at most four bytes.
        words = ENVELOPE_BYTES + 4 * len(output.text)
        weight = words + (len(body[0]) if len(body) == 1 else wire.size_of(body))
        full = frames + len(body) > MAX_FRAMES or size + weight > max_message_bytes
        if part and (full or envelope + words > wire.MAX_ENVELOPE_BYTES):
            yield part
            part, size, frames, envelope = [], 0, 0, 0
        part.append(answer)
        size += weight
        frames += len(body)
        envelope += words
    if part:
        yield part


def describe(error: BaseException) -> tuple[str, str]:
    """Code and text of what went wrong with a request: ours as they are, others as the pipeline's error."""
    if isinstance(error, errors.TensoryardError):
        code = error.code if error.code in errors.BY_CODE else errors.PipelineError.code
        return code, clean_text(error.text)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" (at {frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return errors.PipelineError.code, clean_text(f"{type(error).__name__}: {_said(error)}{where}")


def clean_text(text: object, max_chars: int = MAX_TEXT_CHARS) -> str:
    """A text that can travel: file names in it may hold bytes that are no text."""
    return str(text).encode(errors="replace").decode()[:max_chars]


def _said(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "(its text cannot be made)"
