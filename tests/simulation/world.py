"""Simulated time: what happens when, everything that chance decides while it happens, and a trace of it all.

Every other module here hangs its processes, messages and faults on one `World`; `plan.py` decides beforehand what is to
happen. Nothing reads a clock, so a seed gives the same events each time.
"""

from __future__ import annotations

import heapq
import itertools
import random


class Violation(BaseException):
    """Something that must not be; `request_id` names the request concerned, if there is one.

    No `Exception`: machines keep those of callers to themselves.
    """

    def __init__(self, text, request_id=None):
        super().__init__(text)
        self.request_id = request_id


class World:
    """Time, chance, and what is due."""

    def __init__(self, seed):
        self.rng = random.Random(f"{seed}: what happens")
        #: Seconds.
        self.now = 0.0
        self.events = 0
        #: (time, what, …): see `story.py`.
        self.trace = []
        #: Called after each event.
        self.after_event = lambda: None
        #: Processes whose books the event may have changed.
        self.touched = set()
        self._queue = []
        self._order = itertools.count()

    def later(self, delay_s, act, *args):
        """Call `act` after a while; what is due at the same time comes in the order in which it was asked for."""
        heapq.heappush(self._queue, (self.now + delay_s, next(self._order), act, args))

    def run(self, until, done=None):
        """Let time pass, at most until a time; True as soon as `done` says so."""
        queue = self._queue
        while queue and queue[0][0] <= until:
            self._step(*heapq.heappop(queue))
            if done is not None and done():
                return True
        self.now = max(self.now, until)
        return False

    def _step(self, at, _number, act, args):
        """One event. A function of its own, so that no frame keeps what an event was about."""
        self.now = at
        act(*args)
        self.events += 1
        self.after_event()

    def note(self, *what):
        """Remember something for the story."""
        self.trace.append((self.now, *what))
