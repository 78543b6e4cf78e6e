"""The coordinator's process: sockets, clock, processes of peers and signals around the broker.

It takes messages from its link, lets `broker.py` decide, and does what it says; no message is looked at here.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Sequence

from .. import faults
from ..links import Frames, HubLink, Poller, make_hub
from ..links.address import HubKeys
from ..logs import logger
from ..proto import wire
from ..settings import Settings
from ..shm import host_name
from ..version import __version__
from .actions import Forget, Send, Watch
from .broker import Broker
from .connection import ConnectionFile
from .liveness import ProcessWatch

log = logger(__name__)

#: Messages taken per turn before timers and dead processes are looked at again.
_MESSAGES_PER_TURN = 256
#: What so many messages bring about leaves together: to send alone costs more than to decide, to wait costs time.
_MESSAGES_PER_ACT = 16
#: How long a flood of messages may keep us from seeing that a peer is gone.
_LAST_WORDS_S = 0.5
_UNREACHABLE = "cannot be reached, or does not read what it is sent"


class Coordinator:
    """One coordinator. `run` serves until `stop`, or until a shutdown that a client asked for is complete.

    `name` registers a connection file; `addresses` are bound besides the one that goes with the name, those of
    other hosts guarded by `keys`. With `expects_fleet`, requests wait for the fleet's list of deployments, for at most
    `settle_s`.

    Peers may connect once it is made. Crash-only: whatever is wrong with a message is its sender's alone, but an error
    of our own ends `run` without a goodbye, as SIGKILL would, and peers wait for the next coordinator.
    """

    def __init__(
        self,
        *,
        name: str,
        addresses: Sequence[str] = (),
        settings: Settings | None = None,
        expects_fleet: bool = False,
        keys: HubKeys | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self.name = name
        self.epoch = secrets.token_hex(8)
        with contextlib.ExitStack() as undo:
            self._connection = ConnectionFile(name)
            undo.callback(self._connection.close)
            self._hub: HubLink = make_hub(
                [self._connection.hub_address, *addresses],
                max_frame_bytes=self.settings.max_frame_bytes,
                # A message a little over the limit is read, so that the request it names gets an error.
                max_message_bytes=self.settings.max_message_bytes + self.settings.max_frame_bytes,
                peer_backlog=self.settings.peer_backlog,
                keys=keys,
            )
            undo.callback(self._hub.close)
            self.addresses: list[str] = list(self._hub.addresses)
            #: Ends a wait of `run`; -1 once closed. The lock, which a signal handler may meet held by its own thread,
            #: keeps a late `stop` from writing to whatever has the number next.
            self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._stop_lock = threading.RLock()
            undo.callback(self._close_stop_fd)
            self._connection.publish(self.address, __version__)
            undo.pop_all()
        self.broker = Broker(
            name=name,
            address=self.address,
            epoch=self.epoch,
            host=host_name(),
            settings=self.settings,
            at=time.monotonic(),
            expects_fleet=expects_fleet,
        )
        self._processes = ProcessWatch(self.broker.host)
        self._poller = Poller((*self._hub.pollables, self._stop_fd, self._processes.fileno()))
        #: Peers to which something could not be sent; a dict for its order.
        self._unreachable: dict[bytes, None] = {}
        #: Until when they, and those that died, may have last words in our queue.
        self._bury_by: float | None = None
        self._stopped = False
        #: The link has said that it has nothing more.
        self._drained = True

    @property
    def address(self) -> str:
        """Where clients and workers connect."""
        return self.addresses[0]

    def run(self) -> None:
        """Serve. Ends after `stop`, from any thread or a signal handler."""
        log.info("coordinator %s of cluster %s listens on %s", self.epoch, self.name, ", ".join(self.addresses))
        try:
            while not (self._stopped or self.broker.finished):
                self._turn()
            self.broker.goodbye()
            self._act()
        finally:
            self._close()

    def stop(self) -> None:
        """End `run` soon; harmless when it has ended."""
        with self._stop_lock:
            if self._stop_fd >= 0:
                os.eventfd_write(self._stop_fd, 1)

    # -- one turn of the loop -----------------------------------------------------------------------------------------

    def _turn(self) -> None:
        due = self.broker.next_tick()
        ready = self._poller.poll(self._sleep_s(due))
        # Now: what messages bring about may give these descriptors' numbers to others.
        died = self._processes.ended() if self._processes.fileno() in ready else []
        self._drained = self._take_messages()
        self._act()
        if died or self._unreachable:
            self._bury_by = self._bury_by or time.monotonic() + _LAST_WORDS_S
            if self._drained or time.monotonic() > self._bury_by:
                self._bury(died)
        if self._stop_fd in ready:
            self._stopped = True
        if time.monotonic() >= due:
            self.broker.tick(time.monotonic())
            self._act()

    def _sleep_s(self, due: float) -> float:
        busy = self._unreachable or not self._drained
        return 0.0 if busy else max(due - time.monotonic(), 0.0)

    def _take_messages(self) -> bool:
        """Serve some messages; True when none is left."""
        for number in range(_MESSAGES_PER_TURN):
            if number and number % _MESSAGES_PER_ACT == 0:
                self._act()
            received = self._hub.receive()
            if received is None:
                return True
            identity, frames = received
            if frames is None:  # the link says so, after all that came before
                reason = _UNREACHABLE if identity in self._unreachable else "ended without a goodbye"
                self.broker.peer_gone(identity, reason, time.monotonic())
            else:
                if faults.ARMED:
                    _reach("on", frames)
                self.broker.message(identity, frames, time.monotonic())
        return False

    def _bury(self, died: list[bytes]) -> None:
        """Peers that died or cannot be reached, once everything they sent before has been served: last words count."""
        unreachable, self._unreachable, self._bury_by = self._unreachable, {}, None
        for peer in died:
            self.broker.peer_gone(peer, "died", time.monotonic())
        for peer in unreachable:
            self.broker.peer_gone(peer, _UNREACHABLE, time.monotonic())

    def _act(self) -> None:
        """Do what the broker wants done."""
        for action in self.broker.take_actions():
            match action:
                case Send():
                    self._send(action)
                case Watch():
                    self._processes.watch(action)
                case Forget():
                    self._unreachable.pop(action.peer, None)
                    self._processes.forget(action.peer)
        self._hub.flush()

    def _send(self, action: Send) -> None:
        if faults.ARMED:
            _reach("before", action.frames)
        sent = self._hub.send(action.peer, action.frames, more=True)
        if not sent and self.broker.knows(action.peer):
            self._unreachable[action.peer] = None
        if faults.ARMED:
            self._hub.flush()
            _reach("after", action.frames)

    # -- leaving ------------------------------------------------------------------------------------------------------

    def _close(self) -> None:
        """Let go of everything; the name last, when its socket is free for the next coordinator."""
        self._poller.close()
        self._processes.close()
        self._hub.close()
        self._connection.close()
        self._close_stop_fd()
        log.info("coordinator %s has ended", self.epoch)

    def _close_stop_fd(self) -> None:
        with self._stop_lock:
            fd, self._stop_fd = self._stop_fd, -1
            if fd >= 0:
                os.close(fd)


def _reach(when: str, frames: Frames) -> None:
    """A fault point of a message: garbage has none."""
    with contextlib.suppress(Exception):
        for word in wire.words_of(frames):
            faults.reach(f"coordinator.{when}_{word}")
