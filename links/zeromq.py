"""Links over ZeroMQ: ROUTER at the hub, DEALER at each peer.

One of the implementations of `base.py`, for `tcp://` between hosts and for `ipc://`. ZeroMQ reconnects by itself,
unseen; that the other side is really gone is for heartbeats to find out. A frame over the limit makes ZeroMQ cut its
sender off.
"""

from __future__ import annotations

import logging
import math
import secrets
import threading
from collections.abc import Sequence
from typing import Any

import zmq

from ..errors import ConfigError
from .base import Frames, Opening

log = logging.getLogger(__name__)

#: A frame of this size is sent and received without a copy; below, the bookkeeping costs more than the copy.
_COPY_BELOW_BYTES = 64 << 10
#: How long a closing link may still deliver, in milliseconds.
_LINGER_MS = 500
_ROUTING_BYTES = 16
#: Beyond that, how long the end of a context is waited for, in seconds.
_TERM_PATIENCE_S = 2.0
#: Where a hub may listen: addresses that only this host reaches.
_PRIVATE = ("ipc://", "tcp://127.", "tcp://localhost:", "tcp://[::1]:")


class ZmqPeer:
    """A peer's end. Sending never waits: a link's owner bounds what it has in flight.

    `max_frame_bytes` bounds what is taken from the hub; -1: anything, since what a coordinator passes on has met its
    own limit, and an answer that was refused here would be missed for ever.

    `opening` is said once, first of all: a hub that took another's place is not noticed here.
    """

    any_thread = False
    #: As far as can be told.
    connected = True

    def __init__(self, address: str, *, opening: Opening | None = None, max_frame_bytes: int = -1) -> None:
        self._address = address
        # A context of its own: only its end tells that what was queued has left. One that is shared outlives the
        # socket, and a process that ends right after `close` would take its last messages with it.
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        self._socket.set(zmq.ROUTING_ID, b"\x01" + secrets.token_bytes(_ROUTING_BYTES - 1))
        # No high-water mark here: a full one would either block the caller or split a multipart message.
        self._socket.set(zmq.SNDHWM, 0)
        self._socket.set(zmq.SNDTIMEO, 0)
        self._socket.set(zmq.MAXMSGSIZE, max_frame_bytes)
        self._socket.set(zmq.RECONNECT_IVL, 50)
        self._socket.set(zmq.RECONNECT_IVL_MAX, 1000)
        try:
            self._socket.connect(address)
        except (zmq.ZMQError, TypeError, ValueError) as error:
            self._context.destroy(linger=0)
            raise ConfigError(f"{address!r} is no address: {error}; addresses begin with ipc:// or tcp://") from error
        if opening is not None:
            self.send(opening())

    @property
    def pollables(self) -> Sequence[Any]:
        """The socket."""
        return (self._socket,)

    def next_try(self) -> float:
        """ZeroMQ has a thread for that."""
        return math.inf

    def send(self, frames: Sequence[Any], *, more: bool = False) -> None:  # noqa: ARG002 - ZeroMQ puts them together
        """Queue a message; after `close`, drop it."""
        if self._socket.closed:
            return
        copy = _all_small(frames)
        try:
            self._socket.send_multipart(frames, copy=copy)
        except zmq.Again:
            # ZeroMQ has given up, for good, a connection on which something else than its protocol, or a frame over the
            # limit, came: there is nothing left to queue on.
            self._socket.disconnect(self._address)
            self._socket.connect(self._address)
            self._socket.send_multipart(frames, copy=copy)

    def flush(self) -> None:
        """Nothing is kept back."""

    def receive(self) -> Frames | None:
        """The next message, or None."""
        return _receive(self._socket)

    def begin_anew(self) -> None:
        """Nothing: only one thread uses this end, and nobody breaks that off."""

    def close(self) -> None:
        """Deliver for at most half a second, then let go; again is harmless."""
        _end(self._socket, self._context)


class ZmqHub:
    """The hub's end, bound to one or more addresses."""

    def __init__(self, addresses: Sequence[str], *, max_frame_bytes: int, peer_backlog: int) -> None:
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
        self._addresses: list[str] = []
        for address in addresses:
            self._bind(address)

    def _bind(self, address: str) -> None:
        if not address.startswith(_PRIVATE):
            self._context.destroy(linger=0)
            raise ConfigError(
                f"cannot listen on {address}: it may be reachable from other hosts, and this version has no keys to "
                "guard it; addresses begin with ipc:// or tcp://127.0.0.1",
            )
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise ConfigError(f"cannot listen on {address}: {error}") from error
        self._addresses.append(self._socket.get_string(zmq.LAST_ENDPOINT))

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
