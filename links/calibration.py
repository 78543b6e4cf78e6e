"""From which size an array goes by handle, or as a frame of its own: measured once per machine, on the real paths.

Clients and workers ask when they start, unless their settings say. Stands on the pools of `shm`, the codec of `proto`
and the links beside it; what was found is kept in the runtime folder, which lives about as long as the machine is up.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import zmq

from ..proto.codec import decode_body, encode_body
from ..settings import Settings
from ..shm import Pool, Reader, runtime_dir
from ..version import __version__
from .base import Frames
from .zeromq import ZmqHub, ZmqPeer

log = logging.getLogger(__name__)

#: All fit into one packet of a UNIX socket, so that both ways cost one system call per hop.
_SIZES = tuple(1 << power for power in range(13, 18))
_ROUNDS = 25
#: Room for a slab of every size.
_POOL_BYTES = 32 << 20
#: Not named like a connection file, which would be swept. Each version has its own: while workers are rolled over to
#: the next one, both start on this machine, and neither is to undo what the other has found.
FILE = f"array-thresholds-{__version__}"
_POLL_MS = 1000

#: Seconds that an array takes from one side to the other and back into numpy, when it goes one way or the other.
_Trip = Callable[[npt.NDArray[Any]], float]


class Thresholds(msgspec.Struct, frozen=True):
    """Bytes from which an array goes another way than inside the message."""

    #: By handle, between processes of one host.
    handle_bytes: int
    #: As a frame of its own, between hosts.
    out_of_band_bytes: int


#: Where nothing can be measured.
DEFAULT = Thresholds(64 << 10, 64 << 10)


def thresholds_of(settings: Settings) -> Thresholds:
    """Both thresholds: as set, else as remembered, else as measured now (well under a second)."""
    handle, out_of_band = settings.threshold_bytes, settings.out_of_band_bytes
    if handle and out_of_band:
        return Thresholds(handle, out_of_band)
    found = thresholds()
    return Thresholds(handle or found.handle_bytes, out_of_band or found.out_of_band_bytes)


def thresholds() -> Thresholds:
    """This machine's. Of many processes that ask at once, one measures and the others wait for it."""
    path = runtime_dir() / FILE
    with _locked(path.with_name(f"{FILE}.guard")):
        found = _remembered(path)
        if found is None:
            found = _measured()
            _remember(path, found)
    return found


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _remembered(path: Path) -> Thresholds | None:
    """What this version found here before; None for anything else."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Thresholds)
    except (OSError, msgspec.DecodeError):
        return None
    usable = found.handle_bytes > 0 and found.out_of_band_bytes > 0
    return found if usable else None


def _remember(path: Path, found: Thresholds) -> None:
    """A whole file or none."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_bytes(msgspec.json.encode(found))
    fresh.rename(path)


def _measured() -> Thresholds:
    try:
        found = Thresholds(measure_handle(), measure_out_of_band())
    except Exception:
        log.warning("the size from which arrays go by handle could not be measured", exc_info=True)
        return DEFAULT
    log.info("arrays go by handle from %d bytes, out-of-band from %d", found.handle_bytes, found.out_of_band_bytes)
    return found


def measure_handle(sizes: Sequence[int] = _SIZES, rounds: int = _ROUNDS) -> int:
    """The size from which a handle is not slower than the bytes themselves, over a local socket, two hops."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reader, packet = Reader(), bytearray(2 * sizes[-1])

    def hop(frames: Frames) -> Frames:
        near.sendmsg(frames)
        return [bytes(memoryview(packet)[: far.recv_into(packet)])]

    with near, far, Pool(budget_bytes=_POOL_BYTES) as pool, contextlib.closing(reader):

        def by_handle(array: npt.NDArray[Any]) -> float:
            began = time.perf_counter()
            encoded = encode_body(array, place=pool.publish, threshold_bytes=1)
            for loan in encoded.loans:
                pool.send(loan)
            decode_body(hop(hop(encoded.frames)), Any, resolve=reader.claim)
            return time.perf_counter() - began

        def inline(array: npt.NDArray[Any]) -> float:
            began = time.perf_counter()
            decode_body(hop(hop(encode_body(array, threshold_bytes=array.nbytes + 1).frames)), Any)
            return time.perf_counter() - began

        return crossing(sizes, *_medians(sizes, rounds, inline, by_handle))


def measure_out_of_band(sizes: Sequence[int] = _SIZES, rounds: int = _ROUNDS) -> int:
    """The size from which a frame of its own is not slower than bytes inside the message, over TCP, one hop."""
    hub = ZmqHub(["tcp://127.0.0.1:0"], max_frame_bytes=4 * sizes[-1], peer_backlog=100)
    with contextlib.closing(hub), contextlib.closing(ZmqPeer(hub.addresses[0])) as peer:

        def trip(threshold_bytes: int) -> _Trip:
            def send(array: npt.NDArray[Any]) -> float:
                began = time.perf_counter()
                peer.send(encode_body(array, out_of_band=True, threshold_bytes=threshold_bytes).frames)
                decode_body(_arrived(hub), Any)
                return time.perf_counter() - began

            return send

        return crossing(sizes, *_medians(sizes, rounds, trip(2 * sizes[-1]), trip(1)))


def _arrived(hub: ZmqHub) -> Frames:
    poller = zmq.Poller()
    for pollable in hub.pollables:
        poller.register(pollable, zmq.POLLIN)
    while (arrived := hub.receive()) is None:
        if not poller.poll(_POLL_MS):
            raise TimeoutError("a message over the loopback did not arrive")
    return arrived[1] or []


def _medians(sizes: Sequence[int], rounds: int, *trips: _Trip) -> list[list[float]]:
    """Of each trip, its median seconds per size. The trips take turns, so that what disturbs one disturbs all."""
    columns: list[list[float]] = [[] for _ in trips]
    for size in sizes:
        array = np.zeros(size, np.uint8)
        taken = [[trip(array) for trip in trips] for _ in range(rounds)]
        for column, seconds in zip(columns, zip(*taken, strict=True), strict=True):
            column.append(statistics.median(seconds))
    return columns


def crossing(sizes: Sequence[int], inline: Sequence[float], other: Sequence[float]) -> int:
    """The smallest size from which, there and at all larger ones, the other way is not slower than inline.

    Where it is slower even at the largest size: twice that.
    """
    found = 2 * sizes[-1]
    for size, inside, outside in reversed(list(zip(sizes, inline, other, strict=True))):
        if outside > inside:
            break
        found = size
    return found
