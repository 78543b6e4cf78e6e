"""Who steers a session: its own thread, or a caller that waits for it anyway and so saves waking a second thread.

`session.py` runs its turns under the helm. Nothing here knows what a turn does.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

#: The session's thread takes the helm back when no caller has had it for so long, in seconds: so much later may
#: something be served that nobody waits for, shortly after a caller was. The longer where caller comes after caller.
_PATIENCE_S, _LONGEST_PATIENCE_S = 0.002, 0.01
#: When one caller steers for so long, the thread sleeps until it is woken; so long if that should fail. Not earlier: to
#: wake it costs a caller more than the thread's looking, some hundred times a second.
_DEEP_S = 0.25
#: A caller waits so long for the thread to hand over, and then leaves it to the thread.
_HANDOVER_S = 0.05


class Helm:
    """One thread steers at a time. `call_out` ends a wait of the session's thread within its turn."""

    def __init__(self, call_out: Callable[[], None]) -> None:
        self._call_out = call_out
        #: Held by who steers. It knows its owner: a release by anybody else is an error and changes nothing.
        self._helm = threading.RLock()
        #: Held by the caller for whom the session's thread is to hand over.
        self._asking = threading.Lock()
        #: Released to wake the session's thread.
        self._call = threading.Lock()
        self._call.acquire()
        #: How often callers have taken the helm, so that the thread sees that one did.
        self._lent = 0
        #: The thread is to be woken when the helm is free.
        self._deep = False
        #: Callers that wait for what other threads do; changed under the lock.
        self._followers = 0
        self._lock = threading.Lock()

    @property
    def mine(self) -> bool:
        """Whether the thread that asks steers."""
        return bool(self._helm._is_owned())  # type: ignore[attr-defined]  # noqa: SLF001 - Condition asks it so too

    # -- for callers --------------------------------------------------------------------------------------------------

    def steer(self, work: Callable[[], None]) -> bool:
        """Do `work` at the helm; False, and nothing is done, when another caller has it, or waits for one that has.

        An exception, also one that a signal brings, leaves the helm free.
        """
        if self._followers or self.mine:
            return False
        try:
            if not self._take():
                return False
            self._lent += 1
            work()
            return True
        finally:
            # The first thing done here, since a signal's handler may raise after each call.
            try:
                self._helm.release()
            except RuntimeError:
                pass
            else:
                if self._deep or self._followers:
                    self.call()

    def _take(self) -> bool:
        if self._helm.acquire(blocking=False):
            return True
        if not self._asking.acquire(blocking=False):
            return False
        try:
            self._call_out()
            return self._helm.acquire(timeout=_HANDOVER_S)
        finally:
            self._asking.release()

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """While inside, a caller waits for what others do: the session's thread steers whenever no caller does."""
        with self._lock:
            self._followers += 1
        try:
            yield
        finally:
            with self._lock:
                self._followers -= 1

    def call(self) -> None:
        """Wake the session's thread, if it rests."""
        with contextlib.suppress(RuntimeError):  # it is called already
            self._call.release()

    # -- for the session's thread -------------------------------------------------------------------------------------

    @property
    def asked(self) -> bool:
        """Whether a caller waits for the helm."""
        return self._asking.locked()

    def keep(self, work: Callable[[], None]) -> None:
        """Do `work` at the helm, once no caller wants it."""
        while self.asked or not self._helm.acquire(blocking=False):
            self._rest()
        try:
            work()
        finally:
            self._helm.release()

    def settle(self, work: Callable[[], None]) -> None:
        """Do `work` at the helm as soon as whoever has it lets go."""
        with self._helm:
            work()

    def _rest(self) -> None:
        """Until called, or no caller has steered for a moment."""
        patience_s, steered_s = _PATIENCE_S, 0.0
        while True:
            lent = self._lent
            if self._call.acquire(timeout=patience_s):
                return
            patience_s = min(2 * patience_s, _LONGEST_PATIENCE_S)
            if self._lent != lent:
                steered_s = 0.0
                continue
            if self._is_free():
                return
            steered_s += patience_s
            if steered_s >= _DEEP_S:
                self._rest_deeply()
                if self._followers:
                    return

    def _rest_deeply(self) -> None:
        """A caller steers for long: sleep until it lets go, and do not look meanwhile."""
        self._deep = True
        if not self._is_free():
            self._call.acquire(timeout=_DEEP_S)
        self._deep = False

    def _is_free(self) -> bool:
        free = self._helm.acquire(blocking=False)
        if free:
            self._helm.release()
        return free
