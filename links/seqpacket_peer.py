"""A peer's end of the UNIX link: one connection to the hub, made again whenever it ends.

`seqpacket_hub.py` is the other end, `channel.py` the connection. Any thread sends, without waking another.
"""

from __future__ import annotations

import logging
import math
import secrets
import select
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from .base import Frames, Opening
from .buffers import Buffers
from .channel import Channel
from .framing import IDENTITY_BYTES, PACKET_BYTES, FramingError, Kept, Limits, greeting, kept, take_together
from .unix_socket import abandon_in_children, connect, path_of

log = logging.getLogger(__name__)

#: Between two tries to connect: at first, and at most, in seconds. A try that finds nobody costs microseconds.
_FIRST_PAUSE_S = 0.01
_LONGEST_PAUSE_S = 0.25
#: A closing peer gives up when its hub takes nothing for so long, and after so long in any case, in seconds.
_PATIENCE_S = 0.5
_LINGER_S = 3.0


class SeqpacketPeer:
    """Connects to a `unix://` address, also before a hub is there; ConfigError for what is no address.

    `max_frame_bytes` bounds what is taken from the hub; -1: anything, as at `ZmqPeer`.
    """

    any_thread = True
    #: The other end is of this host and this user: there is nobody whom it would turn away.
    trouble = ""

    def __init__(self, address: str, *, opening: Opening | None = None, max_frame_bytes: int = -1) -> None:
        self._path = path_of(address)
        self._opening = opening
        self._identity = secrets.token_bytes(IDENTITY_BYTES)
        self._limits = Limits(math.inf if max_frame_bytes < 0 else max_frame_bytes, math.inf)
        #: None while no hub is there. Changed by the link's own thread, under the lock.
        self._channel: Channel | None = None
        #: What is to be sent: any thread appends, who holds the lock takes.
        self._queue: deque[Kept] = deque()
        #: The messages that have begun to leave and have not left.
        self._leaving: list[Kept] = []
        #: Held while sending, which never waits. Only the link's own thread waits for it.
        self._lock = threading.Lock()
        #: There is no room, or no hub; the link's own thread sees when there is.
        self._stuck = True
        self._closed = False
        self._scratch = memoryview(bytearray(PACKET_BYTES))
        self._buffers = Buffers()
        self._epoll = select.epoll()
        self._pause_s = _FIRST_PAUSE_S
        self._next_try = -math.inf
        #: A hub was reached before.
        self._met = False
        self._complained = False
        abandon_in_children(self)
        self._connect()

    @property
    def pollables(self) -> Sequence[Any]:
        """One descriptor, the same for every connection."""
        return (self._epoll,)

    @property
    def connected(self) -> bool:
        """Whether a hub is there."""
        return self._channel is not None

    def next_try(self) -> float:
        """When to look for a hub again."""
        return self._next_try if self._channel is None else math.inf

    # -- out ----------------------------------------------------------------------------------------------------------

    def send(self, frames: Sequence[Any], *, more: bool = False) -> None:
        """Send a message, from any thread, or queue it behind others; after `close`, drop it."""
        if not self._closed:
            self._queue.append(kept(frames))
            if not more:
                self._pump()

    def flush(self) -> None:
        """Send what `more` has kept back, from any thread."""
        self._pump()

    def _pump(self) -> None:
        """Send what is queued, unless another is at it, who then looks again once it has let go of the lock.

        Nobody waits here, so a finalizer or a signal handler may come by in the midst of it and send too.
        """
        while self._queue and not self._stuck and self._lock.acquire(blocking=False):
            try:
                self._flush()
            finally:
                self._lock.release()

    def _flush(self) -> None:
        """Send as much as goes. Under the lock."""
        channel = self._channel
        if channel is None or self._stuck:
            return
        try:
            while channel.resume():
                self._leaving = []
                if not self._queue:
                    return
                self._leaving, packet = take_together(self._queue)
                if not channel.send_all(self._leaving, packet):
                    break
            self._epoll.modify(channel.sock, select.EPOLLIN | select.EPOLLOUT)
        except OSError as error:  # its end of file tells the link's own thread
            log.debug("cannot send to the hub at %s: %s", self._path, error)
            self._take_back(channel)
        self._stuck = True

    def _take_back(self, channel: Channel) -> None:
        """What could not leave goes first on the next connection.

        A message of which a part has left is lost with this one: perhaps it was the reason why the hub ended it.
        """
        if not channel.torn:
            self._queue.extendleft(reversed(self._leaving))
        self._leaving = []
        channel.drop()

    def _resume(self, channel: Channel) -> None:
        """Perhaps there is room again. In the link's own thread."""
        with self._lock:
            self._stuck = False
            self._epoll.modify(channel.sock, select.EPOLLIN)
            self._flush()
        self._pump()

    # -- in -----------------------------------------------------------------------------------------------------------

    def receive(self) -> Frames | None:
        """The next message, or None when none has come yet. Connects again and sends on, when it is time to.

        The end of a packet is not the end of what has come: a worker that began its step there would make it small.
        """
        channel = self._channel or self._connect()
        if channel is None:
            return None
        if self._stuck:
            self._resume(channel)
        try:
            frames = channel.receive(self._scratch)
        except (FramingError, OSError, EOFError) as error:
            self._disconnect(error)
            return None
        if frames is not None:
            self._pause_s = _FIRST_PAUSE_S
            self._complained = False
        return frames

    def _connect(self) -> Channel | None:
        """Look for a hub, unless that was done a moment ago."""
        now = time.monotonic()
        if self._closed or now < self._next_try:
            return None
        self._next_try = now + self._pause_s
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        try:
            sock = connect(self._path, greeting(self._identity))
        except OSError as error:
            log.debug("no hub at %s: %s", self._path, error)
            return None
        channel = Channel(sock, self._limits, self._buffers)
        with self._lock:
            self._begin(channel)
        self._pump()
        return channel

    def _begin(self, channel: Channel) -> None:
        """Introduce ourselves, then send what waits."""
        if self._opening is not None:
            if self._met:
                self._queue.clear()
            self._queue.appendleft(kept(self._opening()))
        self._met = True
        self._epoll.register(channel.sock, select.EPOLLIN)
        self._channel = channel
        self._stuck = False

    def _disconnect(self, why: Exception) -> None:
        """The hub is gone, or talks nonsense, which is logged until it talks sense again."""
        if isinstance(why, FramingError) and not self._complained:
            self._complained = True
            log.warning("the hub at %s was left: %s", self._path, why)
        self._let_go()

    def _let_go(self) -> None:
        with self._lock:
            channel, self._channel = self._channel, None
            self._stuck = True
            if channel is not None:
                self._take_back(channel)
                self._epoll.unregister(channel.sock)
                channel.sock.close()

    def begin_anew(self) -> None:
        """End this connection and make another, which the hub takes for a new beginning."""
        self._let_go()
        self._next_try = -math.inf

    # -- leaving ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Deliver what the hub, if there is one, takes without long pauses; then let go. Again is harmless."""
        if not self._epoll.closed:
            self._next_try = -math.inf
            channel = self._channel or self._connect()
            self._closed = True
            if channel is not None:
                self._deliver(channel, time.monotonic() + _LINGER_S)
            self._let_go()
            self._queue.clear()
            self._epoll.close()

    def _deliver(self, channel: Channel, give_up: float) -> None:
        """Wait until all has left, as long as the hub is there."""
        poller = select.poll()
        poller.register(channel.sock, select.POLLOUT)
        while (self._queue or self._leaving) and time.monotonic() < give_up:
            ready = poller.poll(_PATIENCE_S * 1000)
            if not ready or ready[0][1] & select.POLLHUP:
                return
            self._resume(channel)

    def abandon(self) -> None:
        """Close every descriptor and do nothing else: they are copies, in a forked child."""
        self._closed = self._stuck = True
        if self._channel is not None:
            self._channel.sock.close()
        self._epoll.close()
