"""Peers that nobody invited, for `tensoryard chaos`: one talks nonsense, one asks much and never listens.

They use the links and doors that every peer uses, so what they send is what a broken or hostile process of the same
user could send. Nobody waits for their answers; `chaos_faults.py` sets them loose.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..links import PeerLink, make_peer
from ..proto import wire
from ..proto.codec import encode_body
from ..proto.outputs import task_of
from ..shm import messages, runtime_dir

#: Messages of one visit.
RUBBISH = 24
#: How often one that does not listen says that it lives.
BEAT_S = 0.3


def babble(address: str, rng: random.Random, *, request: Any, their_ids: Sequence[str], pools: Sequence[str]) -> str:
    """One visit of rubbish: to the coordinator as a peer, to its socket, and to the doors of these pools.

    `request` lends its envelope to bodies that cannot be read; `their_ids` are requests of others, which it tries to
    cancel and to answer. Returns what it did, in words.
    """
    with _linked(address) as link:
        for _ in range(RUBBISH):
            link.send(_rubbish(rng, request, their_ids))
    knocked = _knock(address, rng)
    for pool in pools:
        _scratch(pool, rng)
    where = f", {knocked} raw bytes" if knocked else ""
    return f"{RUBBISH} messages to the coordinator{where}, {len(pools)} pools"


@contextlib.contextmanager
def _linked(address: str) -> Iterator[PeerLink]:
    link = make_peer(address)
    try:
        link.receive()  # connects, where that is not done by itself
        yield link
    finally:
        link.close()


def _rubbish(rng: random.Random, request: Any, their_ids: Sequence[str]) -> list[bytes]:
    """One message that is broken in one of many ways."""
    theirs = rng.choice(their_ids) if their_ids else "nobody's"
    submit = wire.Submit(request_id=f"stray-{rng.getrandbits(64):x}", task=_task_of(request), model=request.model)
    body = [bytes(frame) for frame in encode_body(request).frames]
    whole = wire.encode(submit)
    return rng.choice(
        [
            [rng.randbytes(rng.randint(0, 2000))],
            [rng.randbytes(40) for _ in range(rng.randint(2, 300))],
            [_hello(version=wire.WIRE_VERSION + 1)],
            [_hello()[: rng.randint(0, 20)]],
            [_hello(role="emperor")],
            [_hello()],
            [whole[: rng.randint(1, len(whole) - 1)], *body],
            [whole, rng.randbytes(rng.randint(0, 5000))],
            [whole, _spoilt(body[0], rng), *body[1:]],
            [whole],
            [whole, *body, *[b"x"] * 50],
            [wire.encode(wire.Cancel(request_id=theirs))],
            [wire.encode(wire.Outputs(outputs=[wire.Output(request_id=theirs, attempt=1, seq=0, done=True)]))],
        ]
    )


def _task_of(request: Any) -> str:
    return task_of(request).value


def _spoilt(data: bytes, rng: random.Random) -> bytes:
    """The same with one byte changed."""
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ rng.randint(1, 255)]) + data[place + 1 :]


def _hello(*, version: int = wire.WIRE_VERSION, role: str = "client") -> bytes:
    return wire.encode(wire.Hello(version=version, role=role, name=f"stranger-{secrets.token_hex(4)}", pid=os.getpid()))


def _knock(address: str, rng: random.Random) -> int:
    """Raw bytes on the coordinator's own socket, where that is a file; returns how many."""
    scheme, _, path = address.partition("://")
    kind = {"ipc": socket.SOCK_STREAM, "unix": socket.SOCK_SEQPACKET}.get(scheme)
    if kind is None:
        return 0
    data = rng.randbytes(rng.randint(1, 4000))
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, kind) as sock:
        sock.settimeout(1.0)
        sock.connect(path)
        sock.sendall(data)
        return len(data)
    return 0


def _scratch(pool: str, rng: random.Random) -> None:
    """Packets that no reader sends, descriptors that nobody asked for, and questions for what is not there."""
    path = runtime_dir() / f"pool-{pool}.sock"
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(1.0)
        sock.connect(str(path))
        for _ in range(RUBBISH):
            kind = rng.choice([messages.ATTACH, messages.COPIED, messages.WAKE, messages.TELL, messages.SEGMENT, b"?"])
            packet = rng.choice([messages.pack(kind, rng.getrandbits(64)), rng.randbytes(rng.randint(1, 200))])
            sock.send(packet, socket.MSG_DONTWAIT)
        with Path(os.devnull).open("rb") as file:
            socket.send_fds(sock, [b"take"], [file.fileno()] * 3)


class Deaf:
    """A client that asks for much, says that it lives, and never reads an answer. `end` it."""

    def __init__(self, address: str, requests: Sequence[Any]) -> None:
        self._address = address
        self._requests = requests
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chaos-deaf", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with _linked(self._address) as link:
            link.send([_hello()])
            for request in self._requests:
                submit = wire.Submit(request_id=str(request.request_id), task=_task_of(request), model=request.model)
                link.send([wire.encode(submit), *(bytes(frame) for frame in encode_body(request).frames)])
            while not self._ending.wait(BEAT_S):
                link.send([wire.encode(wire.Heartbeat())])

    def end(self) -> None:
        """It leaves without a goodbye."""
        self._ending.set()
        self._thread.join(10)
