"""What a client has to do with other hosts: outputs whose arrays are being fetched, models whose workers cannot fetch.

Books of `conversation.py`, pure; `fetching.py` does what may wait. Times, `at`, are monotonic seconds.
"""

from __future__ import annotations

from collections import deque

from ..proto import wire

#: For how long a model's workers count as out of reach, after one of them said so; then it is tried again.
UNREACHED_S = 30.0
#: Models remembered for it; beyond, those whose time has passed are forgotten.
_MAX_MODELS = 1024

#: A message about a request, and its body.
Letter = tuple[wire.Partial | wire.Final | wire.Error, wire.Frames]


class Abroad(Exception):
    """An output names arrays on another host: to read it takes a while."""


class Parked:
    """Of each request whose output is being fetched, that output and what has come behind it."""

    def __init__(self) -> None:
        #: By RequestID; an output is looked for only where there is any.
        self.letters: dict[str, deque[Letter]] = {}

    def park(self, request_id: str, letter: Letter) -> None:
        """This output is fetched from now on; what comes for its request waits behind it."""
        self.letters[request_id] = deque([letter])

    def waits(self, request_id: str, letter: Letter) -> bool:
        """Whether a message has to wait for one before it; it does from now on."""
        letters = self.letters.get(request_id)
        if letters is not None:
            letters.append(letter)
        return letters is not None

    def fetched(self, request_id: str) -> deque[Letter]:
        """What was parked: the output that is there now, and what came behind it; nothing any more."""
        return self.letters.pop(request_id, deque())

    def clear(self) -> None:
        """Nobody waits for any of it."""
        self.letters.clear()

    def __len__(self) -> int:
        return len(self.letters)


class Unreached:
    """Models of which a worker could not reach this client's memory: their arrays go in messages for a while."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def note(self, model: str, at: float) -> None:
        """A worker of this model has said so."""
        if len(self._until) >= _MAX_MODELS:
            self._until = {name: until for name, until in self._until.items() if until > at}
        if len(self._until) < _MAX_MODELS:
            self._until[model] = at + UNREACHED_S

    def knows(self, model: str, at: float) -> bool:
        """Whether that was lately."""
        return bool(self._until) and self._until.get(model, at) > at
