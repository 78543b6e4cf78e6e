"""What happened to each request, kept short: for errors, for people, for tests.

`router.py` writes a line per step; a request has its story with it, which is kept a while longer for questions.
"""

from __future__ import annotations

from collections import OrderedDict

#: Lines per request; a long stream keeps its beginning and its end.
MAX_LINES = 48
#: Characters per line; what a worker or a pipeline says may be long.
MAX_CHARS = 200
#: Stories of ended requests that can still be asked for.
MAX_ENDED = 2048


#: A story: seconds and text of each step. Formatting waits until somebody asks.
Lines = list[tuple[float, str]]


def write(lines: Lines, at: float, text: str) -> None:
    """One step more."""
    if len(lines) >= MAX_LINES:
        del lines[MAX_LINES // 2]
    lines.append((at, text if len(text) <= MAX_CHARS else text[:MAX_CHARS]))


def told(lines: Lines) -> tuple[str, ...]:
    """The steps for people, oldest first, with seconds since the first."""
    return tuple([f"+{at - lines[0][0]:.3f}s {text}" for at, text in lines])


class Stories:
    """Those of the last MAX_ENDED requests that ended, by RequestID; a live request has its own."""

    def __init__(self) -> None:
        self._ended: OrderedDict[str, Lines] = OrderedDict()

    def keep(self, request_id: str, lines: Lines) -> None:
        """A request has ended."""
        self._ended[request_id] = lines
        self._ended.move_to_end(request_id)
        if len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)

    def of(self, request_id: str) -> Lines:
        """The story of a request that ended lately; without lines when nothing is known."""
        return self._ended.get(request_id, [])
