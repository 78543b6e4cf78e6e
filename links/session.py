"""A peer's session with the coordinator: threads around `presence.py`, which knows what to say and when.

Clients, workers and the fleet each own one and get its callbacks, one at a time: in its own thread, or in that of a
caller who waits for one (`helm.py`). `base.py` is what it talks through.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from .. import faults
from ..errors import ConfigError
from ..proto import wire
from ..settings import Settings
from ..shm import host_name
from ..version import __version__
from .base import Frames, PeerLink
from .choice import make_peer
from .helm import Helm
from .pid_namespace import pid_namespace
from .poller import Poller
from .presence import Callbacks, Presence

log = logging.getLogger(__name__)

#: Messages taken per turn before what is to be sent is sent and the heartbeat is looked at.
_MESSAGES_PER_TURN = 256


class Session:
    """One peer's conversation. `watch`: further descriptors to wait on, each with what to call when it is readable."""

    def __init__(
        self,
        *,
        address: str,
        role: str,
        name: str,
        decoder: Any,
        callbacks: Callbacks,
        settings: Settings,
        watch: dict[int, Callable[[], None]] | None = None,
    ) -> None:
        self.address = address
        self._role = role
        self._name = name
        self._callbacks = callbacks
        self._watch = watch or {}
        #: What waits for the thread to send it.
        self._outbox: deque[Frames] = deque()
        #: The link, while any thread may send on it.
        self._open_link: PeerLink | None = None
        #: Ends a wait of the thread; -1 once closed. The lock, which a signal handler may meet held by its own thread,
        #: keeps a late `post` from writing to whatever has the number next, or from overtaking an earlier one.
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._wake_lock = threading.RLock()
        self._closing = False
        self._helm = Helm(self._wake)
        #: What it waits with, while callers may steer.
        self._poller: Poller | None = None
        #: What a caller who steered has met, for the thread to act on: an error of ours; a message that a signal's
        #: handler broke off, so that nobody knows what became of it, or another reason to begin anew.
        self._failure: Exception | None = None
        self._broken_off = False
        #: Nothing has been taken from the link since the last wait.
        self._idle = True
        #: The link has said that it has nothing more.
        self._drained = True
        #: Callers that post several messages which are to leave together; changed under the lock.
        self._gathering = 0
        hello = wire.Hello(
            version=wire.WIRE_VERSION,
            role=role,
            name=name,
            host=host_name(),
            pid=os.getpid(),
            pid_namespace=pid_namespace(),
            software=f"tensoryard {__version__}",
            features=wire.FEATURES,
        )
        #: What the link said last of why no hub is reached.
        self.trouble = ""
        self._silence_s = settings.liveness_s
        self._presence = Presence(
            hello=hello, decoder=decoder, callbacks=callbacks, settings=settings, at=time.monotonic()
        )
        self._thread = threading.Thread(target=self._run, name=f"tensoryard-{role}", daemon=True)

    @property
    def silent_s(self) -> float:
        """For how many seconds, up to the last beat, the coordinator has not been heard."""
        return self._presence.silent_s

    @property
    def hellos(self) -> int:
        """How many HELLO have been said; what is posted from now on comes after as many, or more."""
        return self._presence.hellos

    def start(self) -> None:
        """Connect and say hello."""
        self._thread.start()

    def post(self, message: wire.Message, body: Frames | tuple[()] = ()) -> None:
        """Send a message, from any thread: at once where the link lets us, else by waking the session's thread."""
        if faults.ARMED:
            faults.reach(f"{self._role}.before_{wire.word_of(message)}")
        self._send([wire.encode(message), *body])
        if faults.ARMED:
            faults.reach(f"{self._role}.after_{wire.word_of(message)}")

    def _send(self, frames: Frames) -> None:
        link = self._open_link
        if link is None:
            with self._wake_lock:
                link = self._open_link
                if link is None:
                    self._outbox.append(frames)
                    self._wake()
                    return
        link.send(frames, more=self._gathering > 0)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What is posted inside, by any thread, may wait for the end of it: `flush` before anything that takes time."""
        with self._wake_lock:
            self._gathering += 1
        try:
            yield
        finally:
            with self._wake_lock:
                self._gathering -= 1
            self.flush()

    def flush(self) -> None:
        """Let go of what `together` may have kept back."""
        link = self._open_link
        if link is not None:
            link.flush()

    def wait(self, condition: threading.Condition, done: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Wait until `done()`, which callbacks bring about and `condition` announces; returns it.

        The session is served by this thread meanwhile, unless another does. Not to be called holding a lock that
        callbacks take, nor, for long, from a callback.
        """
        give_up = math.inf if timeout_s is None else time.monotonic() + timeout_s
        if done():
            return True
        served = self._poller is not None and self._helm.steer(lambda: self._serve_until(done, give_up))
        if served and (done() or time.monotonic() >= give_up):
            return done()
        left_s = None if timeout_s is None else max(give_up - time.monotonic(), 0.0)
        with self._helm.following(), condition:
            return condition.wait_for(done, left_s)

    def nudge(self) -> None:
        """What a caller waits for may have come about elsewhere: have it look, if it is one that serves the session."""
        if not self._helm.mine:
            self._wake()

    def begin_anew(self) -> None:
        """Make another connection, and say hello on it: for a callback whose owner has lost the thread."""
        self._broken_off = True

    def close(self, timeout_s: float = 5.0) -> None:
        """Send what is queued, say goodbye, end the thread. Again is harmless."""
        self._closing = True
        self._wake()
        self._helm.call()
        if self._thread.ident is None:
            self._close_wake_fd()
        elif self._thread is not threading.current_thread() and not self._helm.mine:
            self._thread.join(timeout_s)

    def _wake(self) -> None:
        with self._wake_lock:
            if self._wake_fd >= 0:
                os.eventfd_write(self._wake_fd, 1)

    def _close_wake_fd(self) -> None:
        with self._wake_lock:
            fd, self._wake_fd = self._wake_fd, -1
            if fd >= 0:
                os.close(fd)

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        link: PeerLink | None = None
        try:
            link = make_peer(
                self.address,
                opening=lambda: self._presence.opening(time.monotonic()),
                silence_s=self._silence_s,
            )
            poller = Poller((*link.pollables, self._wake_fd, *self._watch))
            self._share(link, poller)
            while not self._closing:
                self._helm.keep(lambda: self._turn(link, poller))
            self._helm.settle(lambda: self._leave(link))
        except ConfigError as error:
            log.error("the session of %s %s cannot begin: %s", self._role, self._name, error)  # noqa: TRY400 - no bug
            self._callbacks.on_failure(error)
        except Exception as error:
            log.exception("the session of %s %s failed", self._role, self._name)
            self._callbacks.on_failure(error)
        finally:
            self._poller = self._open_link = None
            if link is not None:
                link.close()
            self._close_wake_fd()

    def _share(self, link: PeerLink, poller: Poller) -> None:
        """Let other threads send for themselves, after what they have left to us, and serve the session."""
        if link.any_thread:
            with self._wake_lock:
                self._flush(link)
                self._open_link, self._poller = link, poller

    def _turn(self, link: PeerLink, poller: Poller, until: float = math.inf) -> None:
        """Wait for something, until that time at most, and serve it; a caller who asks for the helm cuts it short."""
        if self._closing:
            return
        if self._failure is not None or self._broken_off:
            self._settle_the_last(link)
        due = min(self._presence.next_beat, link.next_try(), until)
        self._idle = True
        ready = poller.poll(max(due - time.monotonic(), 0.0) if self._drained else 0.0)
        self._idle = False
        for fd in ready:
            if fd == self._wake_fd:
                os.eventfd_read(self._wake_fd)
            elif (call := self._watch.get(fd)) is not None:
                call()
        self._receive(link)
        if self._outbox:
            self._flush(link)
        now = time.monotonic()
        if now >= self._presence.next_beat:
            self._presence.beat(link if link.connected else None, now)
            self.trouble = link.trouble

    def _settle_the_last(self, link: PeerLink) -> None:
        """A caller's turn did not end well."""
        if self._failure is not None:
            raise self._failure
        self._broken_off = False
        link.begin_anew()

    def _receive(self, link: PeerLink) -> None:
        self._drained = False
        for _ in range(_MESSAGES_PER_TURN):
            frames = link.receive()
            if frames is None:
                self._drained = True
                break
            self._presence.receive(link, frames, time.monotonic())
            if self._helm.asked:
                break

    def _serve_until(self, done: Callable[[], bool], give_up: float) -> None:
        """A caller's turns."""
        link, poller = self._open_link, self._poller
        try:
            while link is not None and poller is not None and not (done() or self._closing):
                self._turn(link, poller, give_up)
                if time.monotonic() >= give_up:
                    break
        except Exception as error:
            self._failure = error
            self._helm.call()
        except BaseException:
            # A message may be half received, or half understood: the conversation has to begin anew.
            self._broken_off = not self._idle
            raise

    def _leave(self, link: PeerLink) -> None:
        self._poller = self._open_link = None
        self._flush(link)
        link.send([wire.encode(wire.Disconnect())])

    def _flush(self, link: PeerLink) -> None:
        """Send what is queued now; what is posted meanwhile wakes the next turn."""
        for _ in range(len(self._outbox)):
            link.send(self._outbox.popleft())
