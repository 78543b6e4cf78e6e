"""Who is let in by a hub with keys: a thread that ZeroMQ asks about each connection (ZAP, its RFC 27).

`zeromq.py` has one per guarded hub. Fails closed: without an answer from here nobody is let in.
"""

from __future__ import annotations

import threading

import zmq

from ..logs import logger

log = logger(__name__)

#: What ZeroMQ calls the guarded sockets of one context; without a name it would ask nobody.
DOMAIN = b"tensoryard"
_ENDPOINT = "inproc://zeromq.zap.01"


class Guard:
    """Lets in who proves to hold one of these keys' secret halves, for as long as the context is there."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], keys: frozenset[bytes]) -> None:
        self._context = context
        self._keys = keys
        self._bound = threading.Event()
        threading.Thread(target=self._run, name="tensoryard-guard", daemon=True).start()
        self._bound.wait()

    def _run(self) -> None:
        socket: zmq.Socket[bytes] = self._context.socket(zmq.REP)
        socket.set(zmq.LINGER, 0)
        try:
            socket.bind(_ENDPOINT)
            self._bound.set()
            while True:
                socket.send_multipart(self._answer(socket.recv_multipart()))
        except zmq.ContextTerminated:
            pass
        finally:
            self._bound.set()
            socket.close()

    def _answer(self, question: list[bytes]) -> list[bytes]:
        version, number, _domain, address, _identity, mechanism, *credentials = question
        let_in = mechanism == b"CURVE" and credentials[:1] and credentials[0] in self._keys
        if not let_in:
            log.warning(
                "a peer at %s was turned away: it holds no key of this cluster", address.decode("ascii", "replace")
            )
        status, text = (b"200", b"welcome") if let_in else (b"400", b"no key of this cluster")
        return [version, number, status, text, b"", b""]
