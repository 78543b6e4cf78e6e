"""Reading other processes' tensors: attach once, then every handle becomes a read-only view without a copy.

The owner's side is `server.py`. Two ways to read: `open` for inputs, whose owner keeps them until the request has
ended, and `claim` for results, which live until the last view made here is gone.
"""

from __future__ import annotations

import functools
import os
import socket
import struct
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec

import numpy as np
import numpy.typing as npt

from .. import faults
from ..errors import ForgedHandle, MemoryProblem, OutOfReach, SegmentGone, StaleHandle
from . import messages
from .courier import Courier
from .handle import SharedMemoryArray
from .leases import HeldLeases, fence
from .os_memory import attach, host_name
from .runtime_dir import runtime_dir
from .segment import SegmentLayout

#: Pools one process stays connected to; beyond, the one used longest ago is let go (its live views keep it).
MAX_OWNERS = 512
#: How long an owner may take to answer an ATTACH, in seconds: its thread only competes with its own Python code.
_ATTACH_TIMEOUT_S = 10
_TIME_LIMIT = struct.pack("@ll", _ATTACH_TIMEOUT_S, 0)
_P = ParamSpec("_P")


class _Owner:
    """The connection to one pool, its lease table and the segments mapped so far."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.segments: dict[int, SegmentLayout] = {}
        #: Our lease table; None in a forked child, which shares its parent's and must not write to it.
        self.leases: HeldLeases | None = None
        #: One question at a time on the socket.
        self._lock = threading.Lock()
        path = str(runtime_dir() / f"pool-{name}.sock")
        try:
            self.sock = _socket()
            _owners.add(self)
            self.sock.connect(path)
            self.leases = self._welcome()
        except OSError as error:
            self.close()
            raise self._gone(error) from error

    def _welcome(self) -> HeldLeases:
        packet, fds = messages.receive(self.sock)
        try:
            if packet != messages.WELCOME or len(fds) != 1:
                raise ConnectionResetError("the pool refused this process")
            return HeldLeases(attach(fds[0], writable=True))
        finally:
            for fd in fds:
                os.close(fd)

    def segment(self, number: int) -> SegmentLayout:
        """The mapped segment, attached on first use. StaleHandle when the owner has given it back."""
        found = self.segments.get(number)
        if found is not None:
            return found
        with self._lock:
            self.drop_retired()
            found = self.segments.get(number)
            if found is None:
                found = self.segments[number] = self._attach(number)
            return found

    def drop_retired(self) -> None:
        """Unmap what the owner has given back to the system, so that its memory really goes."""
        for number, layout in list(self.segments.items()):
            if layout.is_retired:
                self.segments.pop(number, None)

    def _attach(self, number: int) -> SegmentLayout:
        try:
            self.sock.sendall(messages.pack(messages.ATTACH, number))
            while True:
                packet, fds = messages.receive(self.sock)
                kind, answered = messages.unpack(packet)
                try:
                    if kind == b"" or answered == number:  # else the late answer to a question given up
                        return self._map(number, kind, fds)
                finally:
                    for fd in fds:
                        os.close(fd)
        except OSError as error:
            raise self._gone(error) from error

    def _map(self, number: int, kind: bytes, fds: list[int]) -> SegmentLayout:
        if kind == messages.NO_SEGMENT:
            raise StaleHandle(f"segment {self.name}.{number} was given back; send the request again")
        if kind != messages.SEGMENT:
            raise ConnectionResetError("it has closed the connection")
        if len(fds) != 1:
            raise OSError("no descriptor came: this process may have too many open files")
        layout = SegmentLayout(attach(fds[0]))
        if layout.number != number:
            raise ForgedHandle(f"pool {self.name} answered segment {layout.number} for {number}")
        return layout

    def _gone(self, error: OSError) -> SegmentGone:
        return SegmentGone(f"pool {self.name} is gone, or out of reach: has its process ended? ({error})")

    def is_alive(self) -> bool:
        """Whether the owner has not closed the connection, by ending or otherwise."""
        try:
            return bool(self.sock.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def release(self, slot: int, generation: int) -> None:
        """End a claim; safe in finalizers."""
        if self.leases is not None and self.leases.release(slot, generation):
            messages.send_quietly(self.sock, messages.pack(messages.WAKE))

    def copied(self, generation: int) -> None:
        """Tell the owner that a block was copied out instead of claimed."""
        messages.send_quietly(self.sock, messages.pack(messages.COPIED, generation))

    def abandon(self) -> None:
        """In a forked child: let go of the socket, and never write to the table that the parent uses."""
        self.leases = None
        self.close()

    def close(self) -> None:
        """Close the connection; the owner ends our leases."""
        if hasattr(self, "sock"):  # else there was no descriptor for one
            self.sock.close()

    def __del__(self) -> None:
        self.close()


def _socket() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    # The kernel's own time limits, not settimeout(): with that, Python waits even under MSG_DONTWAIT.
    sock.settimeout(None)
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        sock.setsockopt(socket.SOL_SOCKET, option, _TIME_LIMIT)
    return sock


class _Claim:
    """Lives as long as the views of one result, and releases its block when they are gone."""

    __slots__ = ("__weakref__", "_generation", "_owner", "_slot")

    def __init__(self, owner: _Owner, slot: int, generation: int) -> None:
        self._owner = owner
        self._slot = slot
        self._generation = generation

    def __del__(self) -> None:
        if faults.ARMED:
            faults.reach("shm.before_release")
        self._owner.release(self._slot, self._generation)


def _bare(
    method: Callable[Concatenate[Reader, _P], npt.NDArray[Any]],
) -> Callable[Concatenate[Reader, _P], npt.NDArray[Any]]:
    """Let errors of a method leave without our frames.

    Those would keep a segment mapped, though its owner has given it back, for as long as somebody keeps the error.
    """

    @functools.wraps(method)
    def call(self: Reader, /, *args: _P.args, **kwargs: _P.kwargs) -> npt.NDArray[Any]:
        try:
            return method(self, *args, **kwargs)
        except MemoryProblem as error:
            for inner in (error.__cause__, error.__context__):
                if inner is not None:
                    inner.__traceback__ = None
            raise error.with_traceback(None)  # noqa: B904 - it is the same error

    return call


class Reader:
    """Turns handles into read-only arrays. Thread-safe; one per process is enough.

    `connect` opens the connection to a pool of that name; `courier` brings arrays of other hosts, which takes its time.
    """

    def __init__(self, connect: Callable[[str], _Owner] = _Owner, courier: Courier | None = None) -> None:
        self.host = host_name()
        self._connect = connect
        self._courier = courier
        self._lock = threading.Lock()
        self._owners: OrderedDict[str, _Owner] = OrderedDict()
        _readers.add(self)

    @_bare
    def open(self, handle: SharedMemoryArray, use: int = 0) -> npt.NDArray[Any]:
        """A read-only view of memory that its owner keeps for us. `use`: see `Loan.use`, for arrays of other hosts.

        Raises StaleHandle, SegmentGone, OutOfReach or ForgedHandle.
        """
        if handle.host != self.host:
            return self._fetch(handle, use)
        segment = self._owner(handle).segment(handle.segment_number)
        segment.check_generation(handle)
        return _view(segment, handle, None)

    @_bare
    def claim(self, handle: SharedMemoryArray) -> npt.NDArray[Any]:
        """A read-only view that keeps its block from being reused while it, or a view of it, lives.

        Raises StaleHandle, SegmentGone, OutOfReach or ForgedHandle.
        """
        if handle.host != self.host:
            return self._fetch(handle, 0)
        owner = self._owner(handle)
        segment = owner.segment(handle.segment_number)
        segment.check_generation(handle)  # before, so that a handle which names nothing uses up no one's claim
        assert owner.leases is not None, "a forked child forgets the owners of its parent"
        slot = owner.leases.claim(handle.generation)
        if slot is None:
            return self._copy_out(owner, segment, handle)
        claim = _Claim(owner, slot, handle.generation)
        if faults.ARMED:
            faults.reach("shm.claimed")
        segment.check_generation(handle)
        return _view(segment, handle, claim)

    def _fetch(self, handle: SharedMemoryArray, use: int) -> npt.NDArray[Any]:
        """A view of what the porter has landed here: it lives as long as the view does, whatever becomes of ours."""
        if self._courier is None or not self._courier.is_there:
            raise OutOfReach(
                f"the array lies in shared memory of host {handle.host}; this process runs on host {self.host}, "
                "which has no porter"
            )
        landed = self._courier.fetch(handle, use)
        if landed.host != self.host:
            raise ForgedHandle(f"a porter of host {landed.host} answered on host {self.host}")
        return self.claim(landed)

    def release(self, handle: SharedMemoryArray) -> None:
        """Let go of a result that nobody here wants, without looking at it."""
        if handle.host != self.host:  # not worth its way: its owner waits for a claim for a while, and no longer
            return
        try:
            self.claim(handle)
        except (StaleHandle, SegmentGone, ForgedHandle):
            return

    def _copy_out(self, owner: _Owner, segment: SegmentLayout, handle: SharedMemoryArray) -> npt.NDArray[Any]:
        """More live views than the table has slots: an own copy, the generation checked again after it."""
        copy = _view(segment, handle, None).copy()
        fence()
        segment.check_generation(handle)
        owner.copied(handle.generation)
        copy.flags.writeable = False
        return copy

    def _owner(self, handle: SharedMemoryArray) -> _Owner:
        name = handle.pool_name
        with self._lock:
            owner = self._owners.get(name)
            if owner is not None:
                self._owners.move_to_end(name)
                return owner
        self.housekeep()
        owner = self._connect(
            name
        )  # not under the lock: an owner that is frozen must not hold up the readers of others
        with self._lock:
            owner = self._owners.setdefault(name, owner)
            self._owners.move_to_end(name)
            if len(self._owners) > MAX_OWNERS:
                self._owners.popitem(last=False)
            return owner

    def housekeep(self) -> None:
        """Unmap what owners have given back and forget owners that are gone; call about once a second."""
        with self._lock:
            for name, owner in list(self._owners.items()):
                owner.drop_retired()
                if not owner.is_alive():
                    del self._owners[name]

    def close(self) -> None:
        """Let go of every owner; views that still live keep their memory and their lease."""
        with self._lock:
            self._owners.clear()
        if self._courier is not None:
            self._courier.forget()

    def _begin_anew(self) -> None:
        self._lock = threading.Lock()
        self._owners = OrderedDict()
        if self._courier is not None:
            self._courier.begin_anew()

    @property
    def mapped_segments(self) -> int:
        """Segments mapped at present, over all owners."""
        with self._lock:
            return sum(len(owner.segments) for owner in self._owners.values())


def _view(segment: SegmentLayout, handle: SharedMemoryArray, claim: _Claim | None) -> npt.NDArray[np.generic]:
    memory = segment.mapping.bytes_at(handle.offset, handle.nbytes, claim)
    return memory.view(handle.numpy_dtype).reshape(handle.shape)


#: Readers and connections of this process, for the fork handler.
_readers: weakref.WeakSet[Reader] = weakref.WeakSet()
_owners: weakref.WeakSet[_Owner] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """A forked child must not keep leases of its parent alive, nor end them; its readers begin anew."""
    for owner in list(_owners):
        owner.abandon()
    for reader in list(_readers):
        reader._begin_anew()  # noqa: SLF001 - this module's own class


os.register_at_fork(after_in_child=_after_fork_in_child)
