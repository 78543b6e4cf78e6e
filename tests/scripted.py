"""Scripted ends of a link, on real sockets: peers and a coordinator that say what a test wants said.

`Serving` runs a real coordinator in a thread; `Peer` talks to one from the test's thread, `Worker` from a thread of its
own. `Hub` plays the coordinator to a client.
"""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self

import msgspec
import zmq

from tensoryard.coordinator import Coordinator
from tensoryard.links import make_hub, make_peer, pid_namespace
from tensoryard.proto import wire
from tensoryard.proto.codec import encode_body
from tensoryard.proto.status import ClusterStatus
from tensoryard.settings import Settings
from tensoryard.shm import host_name, runtime_dir

DEADLINE_S = 30.0
#: Beats often, so that tests wait little, and is patient, so that a slow machine loses nobody.
CALM = Settings(heartbeat_s=0.1, liveness_s=60.0, reconnect_s=60.0)

_DECODERS: dict[str, Any] = {"client": wire.TO_CLIENT, "worker": wire.TO_WORKER, "fleet": wire.TO_FLEET}
READY: dict[str, Any] = {"model": "m", "task": "embeddings_generation", "deployment": "d", "credits": 4}


def fresh_address(scheme: str = "unix") -> str:
    """An address in the private runtime folder that nobody uses."""
    return f"{scheme}://{runtime_dir()}/{secrets.token_hex(4)}.hub"


def has_input(end: Any, wait_ms: float) -> bool:
    """Wait for input at an end of a link, for at most so long; whether there is some."""
    poller = zmq.Poller()
    for pollable in end.pollables:
        poller.register(pollable, zmq.POLLIN)
    return bool(poller.poll(wait_ms))


def submit(request_id: str, **fields: Any) -> wire.Submit:
    """SUBMIT for model m."""
    return wire.Submit(**{"request_id": request_id, "task": READY["task"], "model": "m", **fields})


class Serving:
    """A coordinator in a thread of its own, made and closed there."""

    def __init__(self, settings: Settings = CALM, *, name: str | None = None, **how: Any) -> None:
        self.coordinator: Coordinator = None  # type: ignore[assignment]
        self.error: BaseException | None = None
        self._how = {"name": name or f"t{secrets.token_hex(4)}", "settings": settings, **how}
        self._made = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        assert self._made.wait(DEADLINE_S), "the coordinator was not made in time"
        if self.coordinator is None:
            assert self.error is not None
            raise self.error
        self.address = self.coordinator.address

    def _run(self) -> None:
        try:
            self.coordinator = Coordinator(**self._how)
        except BaseException as error:
            self.error = error
            return
        finally:
            self._made.set()
        try:
            self.coordinator.run()
        except BaseException as error:
            self.error = error

    def join(self) -> None:
        """Wait until it has ended by itself."""
        self.thread.join(DEADLINE_S)
        assert not self.thread.is_alive(), "the coordinator did not end"

    def close(self) -> None:
        """End it; it must not have failed."""
        self.coordinator.stop()
        self.join()
        error, self.error = self.error, None
        if error is not None:
            raise error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


@contextlib.contextmanager
def stepped(settings: Settings = CALM) -> Iterator[Coordinator]:
    """A coordinator that takes its turns when the test says so."""
    coordinator = Coordinator(name=f"t{secrets.token_hex(4)}", settings=settings)
    try:
        yield coordinator
    finally:
        coordinator.stop()
        coordinator.run()


class Peer:
    """One peer, driven by the test."""

    def __init__(
        self,
        address: str,
        role: str = "client",
        name: str = "",
        *,
        hello: bool = True,
        **fields: Any,
    ) -> None:
        self.link = make_peer(address)
        self.role = role
        self.name = name or f"{role}-{secrets.token_hex(3)}"
        self.welcome: Any = None
        #: Called while it waits: beats, or makes a coordinator take its turns.
        self.meanwhile: Callable[[], object] = lambda: None
        self._queries = 0
        if hello:
            self.hello(**fields)
            self.welcome, _ = self.take(wire.Welcome)

    def hello(self, **fields: Any) -> None:
        """Say HELLO; the process that counts is this one if not said otherwise."""
        ours = {"host": host_name(), "pid": os.getpid(), "pid_namespace": pid_namespace()}
        self.send(wire.Hello(**{"version": wire.WIRE_VERSION, "role": self.role, "name": self.name, **ours, **fields}))

    def settle(self) -> None:
        """Wait until all that was sent before has been dealt with, and answered by nothing: a second HELLO tells."""
        self.hello()
        self.take(wire.Welcome)

    def ready(self, **fields: Any) -> None:
        """As a worker: say READY, and wait until that is known."""
        self.send(wire.Ready(**{**READY, **fields}))
        self.settle()

    def beat(self) -> None:
        """Say that it lives."""
        self.send(wire.Heartbeat())

    def send(self, message: wire.Message, *body: Any) -> None:
        """Send a message."""
        self.link.send([wire.encode(message), *body])

    def send_frames(self, *frames: Any) -> None:
        """Send anything."""
        self.link.send(list(frames))

    def answer(self, dispatch: wire.Dispatch, *body: Any, seq: int = 0, done: bool = True, **fields: Any) -> None:
        """As a worker: one output for one request."""
        output = wire.Output(
            request_id=dispatch.request_id,
            attempt=dispatch.attempt,
            seq=seq,
            done=done,
            frames=len(body),
            **fields,
        )
        self.send(wire.Outputs(outputs=[output]), *body)

    def take(self, kind: Any) -> tuple[Any, list[Any]]:
        """The next message that is no heartbeat, with its body; it must be of this kind."""
        give_up = time.monotonic() + DEADLINE_S
        while time.monotonic() < give_up:
            frames = self.link.receive()
            if frames is None:
                self.meanwhile()
                has_input(self.link, 20)
                continue
            message = wire.decode(_DECODERS[self.role], frames[0])
            if kind is wire.Heartbeat or not isinstance(message, wire.Heartbeat):
                assert isinstance(message, kind), f"{self.name} got {message} instead of {kind.__name__}"
                return message, frames[1:]
        raise AssertionError(f"{self.name} got no {kind.__name__} within {DEADLINE_S:.0f} s")

    def ask_status(self) -> int:
        """ASK_STATUS, without waiting for the answer."""
        self._queries += 1
        self.send(wire.AskStatus(query=self._queries))
        return self._queries

    def status(self) -> ClusterStatus:
        """As a client: the cluster's status. All that was sent before has been dealt with, and answered by nothing."""
        query = self.ask_status()
        report, body = self.take(wire.Report)
        assert report.query == query
        return msgspec.msgpack.decode(body[0], type=ClusterStatus)

    def close(self) -> None:
        """Leave without a word."""
        self.link.close()


#: What a scripted worker does with a request: it answers on the peer it is given, or not.
Answer = Callable[[Peer, wire.Dispatch, list[Any]], None]


class Worker:
    """A worker in a thread of its own: beats, and answers each request as `answer` says."""

    def __init__(self, address: str, answer: Answer, **ready: Any) -> None:
        self.dispatched: list[wire.Dispatch] = []
        self.cancelled: list[wire.CancelWork] = []
        self.rejoins = 0
        self.failure: BaseException | None = None
        self._address, self._answer, self._ready = address, answer, {**READY, **ready}
        self._stop = threading.Event()
        self._known = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._known.wait(DEADLINE_S), "the worker was not welcomed"

    def _run(self) -> None:
        peer = Peer(self._address, "worker")
        try:
            peer.send(wire.Ready(**self._ready))
            peer.settle()
            self._known.set()
            next_beat = 0.0
            while not self._stop.is_set():
                if time.monotonic() >= next_beat:
                    peer.send(wire.Heartbeat(busy=True, progress=time.monotonic_ns()))
                    next_beat = time.monotonic() + 0.1
                has_input(peer.link, 5)
                while (frames := peer.link.receive()) is not None:
                    self._receive(peer, frames)
        except BaseException as error:
            self.failure = error
            self._known.set()
            raise
        finally:
            with contextlib.suppress(zmq.ZMQError):
                peer.send(wire.Disconnect())
            peer.close()

    def _receive(self, peer: Peer, frames: list[Any]) -> None:
        match wire.decode(wire.TO_WORKER, frames[0]):
            case wire.Dispatch() as dispatch:
                self.dispatched.append(dispatch)
                self._answer(peer, dispatch, frames[1:])
            case wire.CancelWork() as cancel:
                self.cancelled.append(cancel)
            case wire.Rejoin():
                self.rejoins += 1
                peer.hello()
            case wire.Welcome():
                peer.send(wire.Ready(**self._ready))
            case _:
                pass

    def close(self) -> None:
        """Leave."""
        self._stop.set()
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive(), "the worker did not end"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


#: What a scripted coordinator does with a message: True when it has dealt with it.
Script = Callable[["Hub", bytes, Any, list[Any]], bool | None]


class Hub:
    """A coordinator that only does as it is told, in a thread of its own.

    By itself it welcomes and answers heartbeats. `script` sees each message first, in that thread.
    """

    def __init__(self, address: str | None = None, *, script: Script | None = None, **limits: Any) -> None:
        self.address = address or fresh_address()
        self.epoch = secrets.token_hex(4)
        self.script = script
        #: Neither welcomes nor beats while set.
        self.silent = False
        self._limits = limits
        #: (peer, message, body) of all that came, heartbeats left out.
        self.seen: list[tuple[bytes, Any, list[Any]]] = []
        self.beats = 0
        self._changed = threading.Condition()
        self._orders: queue.SimpleQueue[tuple[bytes, list[Any]]] = queue.SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stop = False
        self._bound = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._bound.wait(DEADLINE_S), "the hub was not bound"

    def _run(self) -> None:
        self._hub = make_hub([self.address], max_frame_bytes=1 << 28, max_message_bytes=1 << 30, peer_backlog=100_000)
        self._bound.set()
        poller = zmq.Poller()
        for pollable in self._hub.pollables:
            poller.register(pollable, zmq.POLLIN)
        poller.register(self._wake, zmq.POLLIN)
        try:
            while not self._stop:
                if self._wake in dict(poller.poll()):
                    os.eventfd_read(self._wake)
                while not self._orders.empty():
                    self._hub.send(*self._orders.get(), more=True)
                self._hub.flush()
                while (received := self._hub.receive()) is not None:
                    peer, frames = received
                    if frames is not None:
                        self._receive(peer, frames)
        finally:
            self._hub.close()

    def _receive(self, peer: bytes, frames: list[Any]) -> None:
        message = wire.decode(wire.TO_COORDINATOR, frames[0])
        body = [bytes(frame) for frame in frames[1:]]
        with self._changed:
            if isinstance(message, wire.Heartbeat):
                self.beats += 1
            else:
                self.seen.append((peer, message, body))
            self._changed.notify_all()
        if self.silent or (self.script is not None and self.script(self, peer, message, body)):
            return
        if isinstance(message, wire.Hello):
            self._hub.send(peer, [wire.encode(self.welcome())])
        elif isinstance(message, wire.Heartbeat):
            self._hub.send(peer, [wire.encode(wire.Heartbeat())])

    def welcome(self) -> wire.Welcome:
        """WELCOME with this hub's limits."""
        limits = {"max_frame_bytes": 1 << 28, "max_message_bytes": 1 << 30, "max_in_flight": 4096, **self._limits}
        host = limits.pop("host", host_name())
        return wire.Welcome(
            version=wire.WIRE_VERSION,
            epoch=self.epoch,
            host=host,
            heartbeat_s=0.1,
            liveness_s=10.0,
            **limits,
        )

    def send(self, message: wire.Message, *body: Any, to: bytes | None = None) -> None:
        """Send to a peer: the one that was heard first, if not said otherwise."""
        self.send_frames(wire.encode(message), *body, to=to)

    def send_frames(self, *frames: Any, to: bytes | None = None) -> None:
        """Send anything."""
        self._orders.put((to or self.seen[0][0], list(frames)))
        os.eventfd_write(self._wake, 1)

    def send_together(self, messages: Iterable[wire.Message]) -> None:
        """Send messages without a body, as many in one packet as go, to the peer that was heard first."""
        for message in messages:
            self._orders.put((self.seen[0][0], [wire.encode(message)]))
        os.eventfd_write(self._wake, 1)

    def of(self, kind: Any) -> list[Any]:
        """The messages of a kind that have come."""
        with self._changed:
            return [message for _, message, _ in self.seen if isinstance(message, kind)]

    def bodies(self, kind: Any) -> list[list[Any]]:
        """The bodies of the messages of a kind that have come."""
        with self._changed:
            return [body for _, message, body in self.seen if isinstance(message, kind)]

    def wait(self, kind: Any, count: int = 1) -> list[Any]:
        """Wait until so many messages of a kind have come."""
        self._until(lambda: len(self.of(kind)) >= count, f"{count} of {kind.__name__}")
        return self.of(kind)

    def wait_beats(self, more: int) -> None:
        """Wait for so many heartbeats more."""
        wanted = self.beats + more
        self._until(lambda: self.beats >= wanted, f"{more} heartbeats more")

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        with self._changed:
            came = self._changed.wait_for(condition, DEADLINE_S)
        assert came, f"not within {DEADLINE_S:.0f} s: {what}; came {[type(m).__name__ for _, m, _ in self.seen]}"

    def close(self) -> None:
        """Go, without a goodbye."""
        if self._thread.is_alive():
            self._stop = True
            os.eventfd_write(self._wake, 1)
            self._thread.join(DEADLINE_S)
            assert not self._thread.is_alive(), "the hub did not end"
            os.close(self._wake)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def frames_of(output: Any) -> list[Any]:
    """An output as the body of an answer, arrays inline."""
    return encode_body(output, threshold_bytes=1 << 62).frames


@contextlib.contextmanager
def closing(*things: Any) -> Iterator[Sequence[Any]]:
    """Close all, also after a failure."""
    try:
        yield things
    finally:
        for thing in things:
            thing.close()
