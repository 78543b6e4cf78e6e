"""Links over ZeroMQ: ROUTER at the hub, DEALER at each peer.

One of the implementations of `base.py`, for `tcp://` between hosts and for `ipc://`; `address.py` reads keys from an
address, `guard.py` lets peers in by them. A peer sees its connection end, and begins anew; a hub is never told. A frame
over the limit makes ZeroMQ cut its sender off.
"""

from __future__ import annotations

import contextlib
import logging
import math
import secrets
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from ..errors import ConfigError
from .address import HubKeys, new_secret, public_of, read, with_key
from .base import Frames, Opening
from .guard import DOMAIN, Guard

log = logging.getLogger(__name__)

#: A frame of this size is sent and received without a copy; below, the bookkeeping costs more than the copy.
_COPY_BELOW_BYTES = 64 << 10
#: How long a closing link may still deliver, in milliseconds.
_LINGER_MS = 500
_ROUTING_BYTES = 16
#: Beyond that, how long the end of a context is waited for, in seconds.
_TERM_PATIENCE_S = 2.0
#: A host that does not answer is tried anew after this, in milliseconds; the system would wait for minutes.
_CONNECT_MS = 3000
_HANDSHAKE_MS = 5000
#: Between two tries to connect again: at first, and at most, in seconds.
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0
#: ZeroMQ's own pause. By then a connection that ended must have been seen to: after it, ZeroMQ would send, before our
#: first word, what that one had not taken.
_OWN_PAUSE_MS = 200
#: By so much, at most, is a frame larger when it is encrypted.
_SEAL_BYTES = 64
#: Questions whether the other side is there, in the time that it may be silent.
_PINGS = 4
_NONE_OF_OURS = (
    "what answers there breaks off: it is no coordinator, or is guarded by other keys than the address names"
)
_FAILED: dict[int, str] = {
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "it does not let us in: the address has the secret of another cluster, or none",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: _NONE_OF_OURS,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: _NONE_OF_OURS,
}
#: What a peer looks for in its connection.
_SEEN = sum(_FAILED) | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED


class ZmqPeer:
    """A peer's end. Sending never waits: a link's owner bounds what it has in flight.

    `max_frame_bytes` bounds what is taken from the hub; -1: anything, since what a coordinator passes on has met its
    own limit, and an answer that was refused here would be missed for ever.

    `opening` is said first of all, and again when the connection has ended, since what was under way is lost. Without
    one there is no conversation that could begin anew: what the last connection has not taken leaves on the next.

    With `silence_s`, a `tcp://` connection on which nothing comes for so long has ended: a host that is gone says no
    goodbye.
    """

    any_thread = False

    def __init__(
        self, address: str, *, opening: Opening | None = None, max_frame_bytes: int = -1, silence_s: float | None = None
    ) -> None:
        where = read(address)
        if address.startswith("tcp://") and not (where.is_private or where.key or where.is_plain):
            raise ConfigError(
                f"{address!r} is no address to trust: it leads to another host and names no key. `tensoryard address` "
                "prints a whole one, with `?key=…`; `?plain` says that nothing is to be encrypted there",
            )
        self._endpoint = where.endpoint
        self._opening = opening
        #: Whether a hub is there; until the first one is met, ZeroMQ looks for it, and keeps what is said.
        self.connected = True
        self.trouble = ""
        #: Messages for the next connection, and those that were left of the last.
        self._queue: list[Sequence[Any]] = []
        self._inbox: deque[Frames] = deque()
        self._met = False
        self._pause_s = _FIRST_PAUSE_S
        self._next_try = math.inf
        # A context of its own: only its end tells that what was queued has left. One that is shared outlives the
        # socket, and a process that ends right after `close` would take its last messages with it.
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        self._socket.set(zmq.ROUTING_ID, b"\x01" + secrets.token_bytes(_ROUTING_BYTES - 1))
        # No high-water mark here: a full one would either block the caller or split a multipart message.
        self._socket.set(zmq.SNDHWM, 0)
        self._socket.set(zmq.SNDTIMEO, 0)
        self._socket.set(zmq.MAXMSGSIZE, max_frame_bytes)
        self._socket.set(zmq.RECONNECT_IVL, _OWN_PAUSE_MS)
        self._socket.set(zmq.RECONNECT_IVL_MAX, 1000)
        self._socket.set(zmq.CONNECT_TIMEOUT, _CONNECT_MS)
        self._socket.set(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
        if silence_s is not None and self._endpoint.startswith("tcp://"):
            self._listen_for(round(silence_s * 1000))
        if where.key is not None:
            self._lock(where.key, where.secret or new_secret())
        self._monitor: zmq.Socket[bytes] = self._socket.get_monitor_socket(_SEEN)
        try:
            self._socket.connect(self._endpoint)
        except (zmq.ZMQError, ValueError) as error:
            self.close()
            raise ConfigError(
                f"{where.endpoint!r} is no address: {error}; addresses begin with ipc:// or tcp://"
            ) from error
        if opening is not None:
            self.send(opening())

    def _listen_for(self, silence_ms: int) -> None:
        """Have both ends of the connection end it when the other is silent for so long."""
        self._socket.set(zmq.HEARTBEAT_IVL, max(silence_ms // _PINGS, 1))
        self._socket.set(zmq.HEARTBEAT_TIMEOUT, silence_ms)
        self._socket.set(zmq.HEARTBEAT_TTL, min(silence_ms, 6_000_000))

    def _lock(self, key: bytes, secret: bytes) -> None:
        """Talk to the holder of that key alone, as the holder of this secret."""
        self._socket.set(zmq.CURVE_SERVERKEY, key)
        self._socket.set(zmq.CURVE_SECRETKEY, secret)
        self._socket.set(zmq.CURVE_PUBLICKEY, public_of(secret))

    @property
    def pollables(self) -> Sequence[Any]:
        """The socket, and what tells of its connection."""
        return (self._socket, self._monitor)

    def next_try(self) -> float:
        """When to look for a hub again."""
        return self._next_try

    def send(self, frames: Sequence[Any], *, more: bool = False) -> None:  # noqa: ARG002 - ZeroMQ puts them together
        """Send a message, or queue it until a hub is there; after `close`, drop it."""
        if self._socket.closed:
            return
        if not self.connected:
            self._queue.append(frames)
            return
        try:
            self._socket.send_multipart(frames, copy=_all_small(frames))
        except zmq.Again:
            # ZeroMQ has given up, for good, a connection on which something else than its protocol, or a frame over the
            # limit, came: there is nothing left to queue on.
            self._queue.append(frames)
            self._let_go()

    def flush(self) -> None:
        """Nothing is kept back."""

    def receive(self) -> Frames | None:
        """The next message, or None. Sees when the connection has ended, and connects again when it is time to."""
        frames = self._inbox.popleft() if self._inbox else _receive(self._socket)
        if frames is None and self._has_news():
            self._look()
            frames = self._inbox.popleft() if self._inbox else None
        if time.monotonic() >= self._next_try:
            self._next_try = math.inf
            self._socket.connect(self._endpoint)
        return frames

    def _has_news(self) -> bool:
        return bool(self._monitor.get(zmq.EVENTS) & zmq.POLLIN)

    def _look(self) -> None:
        """What has become of the connection since."""
        while self._has_news():
            event = recv_monitor_message(self._monitor)["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._begin()
            elif event in _FAILED:
                self._complain(_FAILED[event])
            elif not self.connected or (event == zmq.EVENT_DISCONNECTED and self._opening is not None):
                self._let_go()

    def _begin(self) -> None:
        """Introduce ourselves, if we have not, then send what waits; what waited for an earlier hub is dropped."""
        self.trouble = ""
        self._pause_s = _FIRST_PAUSE_S
        met, self._met = self._met, True
        if self.connected:
            return
        self.connected = True
        queue, self._queue = self._queue, []
        if self._opening is not None:
            self.send(self._opening())
            queue = [] if met else queue
        for frames in queue:
            self.send(frames)

    def _let_go(self) -> None:
        """The connection has ended, or did not come about: what came on it counts, nothing more is to leave by it."""
        if self._next_try < math.inf:
            return
        self.connected = False
        self._next_try = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        while (frames := _receive(self._socket)) is not None:
            self._inbox.append(frames)
        self._socket.set(zmq.LINGER, 0)
        with contextlib.suppress(zmq.ZMQError):  # ZeroMQ has let go of it already
            self._socket.disconnect(self._endpoint)

    def _complain(self, text: str) -> None:
        if text != self.trouble:
            self.trouble = text
            log.warning("no hub is reached at %s: %s", self._endpoint, text)

    def begin_anew(self) -> None:
        """End this connection and make another, on which the first word is said again."""
        if self._opening is not None:
            self._let_go()
            self._inbox.clear()

    def close(self) -> None:
        """Deliver for at most half a second, then let go; again is harmless."""
        if not self._socket.closed:
            give_up = time.monotonic() + _LINGER_MS / 1000
            while self._queue and not self.connected and (left_s := give_up - time.monotonic()) > 0:
                self._monitor.poll(round(1000 * min(left_s, _FIRST_PAUSE_S)))
                self.receive()
            self._queue.clear()
            self._socket.disable_monitor()
            self._monitor.close(linger=0)
        _end(self._socket, self._context)


class ZmqHub:
    """The hub's end, bound to one or more addresses; with `keys`, to `tcp://` ones alone, and guarded by them."""

    def __init__(
        self, addresses: Sequence[str], *, max_frame_bytes: int, peer_backlog: int, keys: HubKeys | None = None
    ) -> None:
        # A context of its own, as at the peer: goodbyes are delivered, and the addresses free, when `close` returns.
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        self._socket.set(zmq.ROUTER_MANDATORY, 1)
        self._socket.set(zmq.ROUTER_HANDOVER, 1)
        # Of what a peer sent, at most 1,000 messages (ZeroMQ's own RCVHWM) wait here; the rest waits at the peer. Of
        # one that leaves while more wait, ZeroMQ loses the rest.
        self._socket.set(zmq.SNDHWM, peer_backlog)
        # ROUTER looks at a peer's high-water mark once per message, when it reads the identity frame, so refusing at
        # once cannot take a part of a message and drop the rest.
        self._socket.set(zmq.SNDTIMEO, 0)
        self._socket.set(zmq.MAXMSGSIZE, max_frame_bytes)
        self._keys = keys
        self._addresses: list[str] = []
        try:
            if keys is not None:
                self._lock(keys, max_frame_bytes)
            for address in addresses:
                self._addresses.append(self._bind(address))
        except BaseException:
            self.close()
            raise

    def _lock(self, keys: HubKeys, max_frame_bytes: int) -> None:
        """Prove to hold the key that peers know us by, and let in who holds the one that they are known by."""
        Guard(self._context, frozenset([public_of(keys.client_secret)]))
        self._socket.set(zmq.MAXMSGSIZE, max_frame_bytes + _SEAL_BYTES)
        self._socket.set(zmq.CURVE_SERVER, 1)
        self._socket.set(zmq.CURVE_SECRETKEY, keys.secret)
        self._socket.set(zmq.CURVE_PUBLICKEY, keys.key)
        self._socket.set(zmq.ZAP_DOMAIN, DOMAIN)
        self._socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)

    def _bind(self, address: str) -> str:
        where = read(address)
        if not (where.is_private or self._keys or where.is_plain):
            raise ConfigError(
                f"cannot listen on {address}: it may be reachable from other hosts, and there are no keys to guard it "
                "(a launched cluster has some). Addresses of this host alone begin with ipc:// or tcp://127.0.0.1; "
                "`?plain` behind it says that nothing is to be encrypted, and anybody let in",
            )
        try:
            self._socket.bind(where.endpoint)
        except zmq.ZMQError as error:
            raise ConfigError(f"cannot listen on {address}: {error}") from error
        bound = self._socket.get_string(zmq.LAST_ENDPOINT)
        if self._keys is not None:
            return with_key(bound, self._keys.key)
        return f"{bound}?plain" if where.is_plain else bound

    @property
    def addresses(self) -> Sequence[str]:
        """Where peers connect; a port left open is filled in."""
        return self._addresses

    @property
    def pollables(self) -> Sequence[Any]:
        """The socket."""
        return (self._socket,)

    def send(self, peer: bytes, frames: Sequence[Any], *, more: bool = False) -> bool:  # noqa: ARG002 - the same
        """Send to a peer without waiting; False when it is gone or has `peer_backlog` messages unread."""
        try:
            self._socket.send_multipart([peer, *frames], copy=_all_small(frames))
        except zmq.ZMQError as error:
            if error.errno in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                return False
            raise
        return True

    def flush(self) -> None:
        """Nothing is kept back."""

    def receive(self) -> tuple[bytes, Frames | None] | None:
        """The next message and who sent it, or None. Nobody's end is ever told."""
        frames = _receive(self._socket)
        return (bytes(frames[0]), frames[1:]) if frames is not None else None

    def close(self) -> None:
        """Deliver for at most half a second, then let go; again is harmless."""
        _end(self._socket, self._context)


def _end(socket: zmq.Socket[bytes], context: zmq.Context[zmq.Socket[bytes]]) -> None:
    """Close the socket, and wait until what it had queued has left or been given up.

    Ending a context has been seen to hang for ever in libzmq 4.3.5 (a ROUTER on ipc whose peers leave at that moment,
    on a busy machine, once in some hundred times), so it is done aside, and not waited for without end.
    """
    socket.close(linger=_LINGER_MS)
    ender = threading.Thread(target=context.term, name="tensoryard-zmq-end", daemon=True)
    ender.start()
    ender.join(_LINGER_MS / 1000 + _TERM_PATIENCE_S)
    if ender.is_alive():
        log.warning("a ZeroMQ context did not end; it is left to the end of this process")


def _all_small(frames: Sequence[Any]) -> bool:
    return all(memoryview(frame).nbytes < _COPY_BELOW_BYTES for frame in frames)


def _receive(socket: zmq.Socket[bytes]) -> Frames | None:
    """One message; small frames as bytes, large ones as views of ZeroMQ's own memory."""
    try:
        frames = socket.recv_multipart(zmq.NOBLOCK, copy=False)
    except zmq.Again:
        return None
    return [frame.bytes if len(frame) < _COPY_BELOW_BYTES else frame.buffer for frame in frames]
