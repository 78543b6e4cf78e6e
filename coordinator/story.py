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


class Stories:
    """Lines by RequestID. A line is (seconds, text); formatting waits until somebody asks."""

    def __init__(self) -> None:
        self._live: dict[str, list[tuple[float, str]]] = {}
        self._ended: OrderedDict[str, list[tuple[float, str]]] = OrderedDict()

    def add(self, request_id: str, at: float, text: str) -> None:
        """One step more."""
        lines = self._live.get(request_id)
        if lines is None:
            lines = self._live[request_id] = []
        elif len(lines) >= MAX_LINES:
            del lines[MAX_LINES // 2]
        lines.append((at, text[:MAX_CHARS]))

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
