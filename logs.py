"""Loggers that no flood drowns: of one and the same trouble so many lines a minute are written, the rest is counted.

What a peer or a pipeline does wrong, it may do for every request; the modules that say so take their logger here. This
module imports nothing of ours and sets up no handlers: what becomes of a line is the program's business.
"""

from __future__ import annotations

import logging
import threading

#: Lines of one kind (one place in the code) that are written in so many seconds.
LINES = 20
SECONDS = 60.0
#: Kinds that are remembered; texts are constants, so there are far fewer.
_MAX_KINDS = 1024


def logger(name: str) -> logging.Logger:
    """The logger of that name, which holds back what is said too often: warnings and errors."""
    found = logging.getLogger(name)
    if _ration not in found.filters:
        found.addFilter(_ration)
    return found


def forget() -> None:
    """Start counting anew: for tests."""
    _ration.forget()


class _Ration(logging.Filter):
    """Counts lines by their text before its arguments are filled in."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        #: By kind: when its minute began, lines in it, and how many of those were held back.
        self._kinds: dict[tuple[str, str], tuple[float, int, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this line is written; the first after a flood says how many were not."""
        if record.levelno < logging.WARNING:
            return True
        with self._lock:
            held_back = self._count((record.name, str(record.msg)), record.created)
        if held_back:
            record.msg = f"{record.msg} (and {held_back} more of these, not written)"
        return held_back is not None

    def _count(self, kind: tuple[str, str], at: float) -> int | None:
        """None when the line is one too many; else how many were held back before it."""
        if kind not in self._kinds and len(self._kinds) >= _MAX_KINDS:
            self._kinds.clear()
        began, lines, held_back = self._kinds.get(kind, (at, 0, 0))
        if at - began >= SECONDS or at < began:
            self._kinds[kind] = (at, 1, 0)
            return held_back
        if lines < LINES:
            self._kinds[kind] = (began, lines + 1, 0)
            return 0
        self._kinds[kind] = (began, lines, held_back + 1)
        return None

    def forget(self) -> None:
        """Forget all kinds."""
        with self._lock:
            self._kinds.clear()


_ration = _Ration()
