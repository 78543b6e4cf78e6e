"""What happened to each request, kept short: for errors, for people, for tests.

`router.py` writes a line per step; a story ends with its request and is kept a while longer for questions.
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


class Stories:
    """Lines by RequestID."""

    def __init__(self) -> None:
        self._live: dict[str, Lines] = {}
        self._ended: OrderedDict[str, Lines] = OrderedDict()

    def begin(self, request_id: str) -> Lines:
        """The story of a request that has just come: to be written with `write`, and kept here until it ends."""
        lines = self._live[request_id] = []
        return lines

    def add(self, request_id: str, at: float, text: str) -> None:
        """One step more of a request, begun or not."""
        lines = self._live.get(request_id)
        write(self.begin(request_id) if lines is None else lines, at, text)

    def end(self, request_id: str) -> None:
        """The request has ended; its story is kept among the last MAX_ENDED."""
        lines = self._live.pop(request_id, None)
        if lines is not None:
            self._ended[request_id] = lines
            self._ended.move_to_end(request_id)
            if len(self._ended) > MAX_ENDED:
                self._ended.popitem(last=False)

    def tell(self, request_id: str) -> tuple[str, ...]:
        """The steps, oldest first, with seconds since the first; empty when nothing is known."""
        lines = self._live.get(request_id) or self._ended.get(request_id) or []
        return tuple(f"+{at - lines[0][0]:.3f}s {text}" for at, text in lines)

    def __len__(self) -> int:
        return len(self._live)
