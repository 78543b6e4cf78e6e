"""A porter: lends arrays of this host to the porters of others, and lands theirs here, once for all who ask.

`shelf.py` decides what is kept; a carrier (`ray_porter.py`: Ray's object store) moves the bytes; `porter_door.py` lets
processes of this host in. What has landed lies in a pool like any other, so that its readers' leases are ordinary ones.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import OutOfReach, PoolExhausted, StaleHandle, TensoryardError
from ..logs import logger
from ..settings import Settings
from ..shm import Pool, Reader, SharedMemoryArray
from ..shm.courier import FETCH_S
from .shelf import Shelf, Turn

log = logger(__name__)

#: What nobody uses at the moment is kept for so long: for the next request with the same array.
_KEEP_S = 10.0
#: A porter that has borrowed for longer than this has died, or its answer got lost. If not, nothing is lost but its
#: chance to ask again: the store has a copy, which lives as long as anybody refers to it.
_HOLD_S = 30.0
#: Of a pool's budget, what may be kept for nobody in particular.
_KEPT_SHARE = 2
#: Hosts that are counted one by one; the others together.
_MAX_HOSTS = 1024

Bytes = npt.NDArray[np.uint8]


class Parcel(NamedTuple):
    """Which bytes are meant: where they lie, and the use of that memory or the one question that they are for."""

    #: As bytes, whatever array they are to whoever asks.
    handle: SharedMemoryArray
    use: int
    word: str

    @classmethod
    def of(cls, handle: SharedMemoryArray, use: int, word: str) -> Parcel:
        """The bytes of an array."""
        at = (handle.offset, handle.generation, handle.host)
        return cls(SharedMemoryArray(handle.name, (handle.nbytes,), "|u1", *at), use, word)

    @property
    def shared(self) -> bool:
        """Whether others may mean the same."""
        return self.use > 0


class Carrier(Protocol):
    """How bytes get from host to host."""

    def put(self, data: Bytes) -> Any:
        """Take a copy of bytes of this host; returns a reference, which is what `lend` gives to other porters."""

    def bring(self, parcel: Parcel) -> Bytes:
        """Have the porter of the parcel's host `lend` it, and bring the bytes here.

        Raises what `lend` raises; OutOfReach when there is no porter, or they do not come in time.
        """

    def give_back(self, parcel: Parcel) -> None:
        """Tell that porter that they have landed. Returns at once; it may get lost."""


class Counters:
    """What a porter has done since it began; bytes that were fetched by where they came from."""

    def __init__(self) -> None:
        self.puts = 0
        self.put_bytes = 0
        self.lent = 0
        self.fetched = 0
        self.fetched_bytes: dict[str, int] = {}
        self.shared = 0
        self.failed = 0

    def fetch(self, host: str, size_bytes: int) -> None:
        """So much has come from there."""
        known = host in self.fetched_bytes or len(self.fetched_bytes) < _MAX_HOSTS
        self.fetched += 1
        self.fetched_bytes[host if known else ""] = self.fetched_bytes.get(host if known else "", 0) + size_bytes


class Porter:
    """The porter of one host. Thread-safe; `lend` and `fetch` wait, so each call wants a thread of its own."""

    def __init__(self, carrier: Carrier, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._carrier = carrier
        self._settings = settings
        self._clock = clock
        self._reader = Reader()
        self._pool = Pool(
            budget_bytes=settings.pool_budget_bytes,
            idle_s=settings.pool_idle_s,
            claim_timeout_s=settings.claim_timeout_s,
            owner="porter",
        )
        self.host = self._pool.host
        self._lock = threading.Lock()
        kept = self._pool.budget_bytes // _KEPT_SHARE
        self._lent = Shelf(budget_bytes=kept, keep_s=_KEEP_S, hold_s=_HOLD_S)
        self._landed = Shelf(budget_bytes=kept, keep_s=_KEEP_S, hold_s=_HOLD_S)
        #: What is on the shelves, or about to be: references of ours, and arrays in our pool.
        self._references: dict[Hashable, Future[Any]] = {}
        self._arrays: dict[Hashable, Future[Bytes]] = {}
        #: Arrays of this host that are on their way: their owners wait until they have landed.
        self._leases: dict[Hashable, Bytes] = {}
        #: Hosts that have borrowed and not given back, by what.
        self._borrowers: dict[Hashable, set[str]] = {}
        self.counters = Counters()

    # -- for the porters of other hosts -------------------------------------------------------------------------------

    def lend(self, parcel: Parcel, borrower: str) -> Any:
        """A reference to the bytes of an array of this host, which were put into the store once for all who ask.

        `borrower`: the host that asks. Raises StaleHandle, SegmentGone or ForgedHandle.
        """
        with self._lock:
            turn = self._lent.ask(parcel, parcel.handle.nbytes, shared=parcel.shared, at=self._clock())
            if turn is Turn.BRING:
                self._references[parcel] = Future()
            # Whoever brings it does not look at this: by it the error of a failure would keep itself, and what came.
            coming = None if turn is Turn.BRING else self._references[parcel]
            borrowers = self._borrowers.setdefault(parcel, set())
            if borrower in borrowers:  # it did not hear our answer
                self._lent.done(parcel, self._clock())
            borrowers.add(borrower)
            self.counters.lent += 1
        if coming is not None:
            return self._await(self._lent, coming, parcel)
        return self._bring(self._lent, self._references, parcel, self._put)

    def _put(self, parcel: Parcel) -> Any:
        data = self._reader.claim(parcel.handle)
        reference = self._carrier.put(data)
        with self._lock:
            self._leases[parcel] = data
            self.counters.puts += 1
            self.counters.put_bytes += data.nbytes
        return reference

    def take_back(self, parcel: Parcel, borrower: str) -> None:
        """Whoever borrowed it has it: its owner need not wait any more."""
        with self._lock:
            lease = self._leases.pop(parcel, None)
            known = borrower in self._borrowers.get(parcel, ())
            if known:
                self._borrowers[parcel].remove(borrower)
        del lease
        if known:
            self._done(self._lent, parcel)

    def borrower_died(self, borrower: str) -> None:
        """That host has another porter now: what the one before had borrowed is not given back, but asked for again."""
        with self._lock:
            for parcel, hosts in self._borrowers.items():
                if borrower in hosts:
                    hosts.remove(borrower)
                    self._lent.lost(parcel, self._clock())
            dropped = self._take_dropped()
        del dropped

    # -- for processes of this host -----------------------------------------------------------------------------------

    def fetch(self, handle: SharedMemoryArray, use: int, word: str) -> SharedMemoryArray:
        """A handle of this host to an array of another, to be claimed once; `withdraw` it if it is lost.

        `use` and `word`: see `shm/courier.py`. Raises StaleHandle or SegmentGone when it is gone, OutOfReach when it
        cannot be brought.
        """
        if handle.host == self.host:
            raise OutOfReach("the array lies on this very host: read it from its owner")
        parcel = Parcel.of(handle, use, word)
        with self._lock:
            turn = self._landed.ask(parcel, parcel.handle.nbytes, shared=parcel.shared, at=self._clock())
            if turn is Turn.BRING:
                self._arrays[parcel] = Future()
            else:
                self.counters.shared += 1
            coming = None if turn is Turn.BRING else self._arrays[parcel]  # see `lend`
        if coming is None:
            landed = self._bring(self._landed, self._arrays, parcel, self._land)
        else:
            landed = self._await(self._landed, coming, parcel)
        try:
            return self._hand_out(handle, landed)
        finally:
            self._done(self._landed, parcel)

    def _hand_out(self, asked: SharedMemoryArray, landed: Bytes) -> SharedMemoryArray:
        """The array that was asked for, where it lies now; it waits there for its reader's claim."""
        loan = self._pool.lend(landed)
        assert loan is not None, "what has landed lies in our pool"
        assert loan.handle is not None, "and so has a handle"
        here = loan.handle
        self._pool.send(loan)
        return SharedMemoryArray(here.name, asked.shape, asked.dtype, here.offset, here.generation, here.host)

    def withdraw(self, handle: SharedMemoryArray) -> None:
        """Whoever asked for it is gone."""
        self._pool.discard(handle.generation)

    def _land(self, parcel: Parcel) -> Bytes:
        data = self._carrier.bring(parcel)
        try:
            if data.nbytes != parcel.handle.nbytes:
                raise StaleHandle(f"{data.nbytes} bytes came for an array of {parcel.handle.nbytes}")
            landed = self._room(data.nbytes, tag=f"from {parcel.handle.host}")
            landed[:] = data
        finally:
            self._carrier.give_back(parcel)
        with self._lock:
            self.counters.fetch(parcel.handle.host, data.nbytes)
        return landed

    def _room(self, size_bytes: int, tag: str) -> Bytes:
        """Memory for what lands; what is kept for nobody makes room first."""
        try:
            return self._pool.empty(size_bytes, np.uint8, tag=tag)
        except PoolExhausted:
            with self._lock:
                self._landed.clear_unused()
                dropped = self._take_dropped()
            del dropped
        try:
            return self._pool.empty(size_bytes, np.uint8, timeout_s=self._settings.allocate_timeout_s, tag=tag)
        except PoolExhausted as error:
            raise OutOfReach(f"no room to land an array of another host: {error.text}") from error

    # -- both ---------------------------------------------------------------------------------------------------------

    def _bring(
        self,
        shelf: Shelf,
        things: dict[Hashable, Future[Any]],
        parcel: Parcel,
        bring: Callable[[Parcel], Any],
    ) -> Any:
        """Bring something to a shelf, and tell those who wait for it."""
        with self._lock:
            coming = things[parcel]
        try:
            thing = bring(parcel)
        except BaseException as error:
            with self._lock:
                shelf.failed(parcel)
                del things[parcel]
                if shelf is self._lent:
                    del self._borrowers[parcel]
                self.counters.failed += 1
            coming.set_exception(error)
            del coming  # by which the error would keep itself, its frames, and what came
            raise
        with self._lock:
            shelf.arrived(parcel, self._clock())
            dropped = self._take_dropped()
        coming.set_result(thing)
        del dropped
        return thing

    def _await(self, shelf: Shelf, coming: Future[Any], parcel: Parcel) -> Any:
        """Wait for what somebody else brings; where that fails, nobody is its user any more."""
        try:
            return coming.result(FETCH_S)
        except TimeoutError as error:
            self._done(shelf, parcel)
            raise OutOfReach(f"an array was not brought within {FETCH_S:.0f} s") from error

    def _done(self, shelf: Shelf, parcel: Parcel) -> None:
        with self._lock:
            shelf.done(parcel, self._clock())
            dropped = self._take_dropped()
        del dropped

    def _take_dropped(self) -> list[Any]:
        """Let go of what the shelves have dropped; under the lock, and the last references die outside of it."""
        gone: list[Any] = []
        for key in self._lent.take_dropped():
            gone += [self._references.pop(key), self._leases.pop(key, None), self._borrowers.pop(key, None)]
        return gone + [self._arrays.pop(key) for key in self._landed.take_dropped()]

    def housekeep(self) -> None:
        """About once a second: let go of what nobody has used for a while, and of owners that are gone."""
        self._reader.housekeep()
        with self._lock:
            now = self._clock()
            self._lent.tick(now)
            self._landed.tick(now)
            dropped = self._take_dropped()
        del dropped

    def report(self) -> dict[str, Any]:
        """What it has done and what it holds, for people and tests."""
        with self._lock:
            kept = {"lent_now": len(self._lent), "landed_now": len(self._landed), "leases_now": len(self._leases)}
            done = vars(self.counters) | {"fetched_bytes": dict(self.counters.fetched_bytes)}
        used = self._pool.statistics()
        return {"host": self.host, **done, **kept, "used_blocks": used.used_blocks, "used_bytes": used.used_bytes}

    def check_invariants(self) -> None:
        """Raise AssertionError when the books do not balance; for tests."""
        with self._lock:
            self._lent.check_invariants()
            self._landed.check_invariants()
            assert len(self._references) == len(self._lent), "references and their books differ"
            assert len(self._arrays) == len(self._landed), "arrays and their books differ"
            assert self._borrowers.keys() == self._references.keys(), "borrowers of what is not there"
            assert all(key in self._lent for key in self._leases), "an owner waits for nothing"
        self._pool.check_invariants()

    def close(self) -> None:
        """Let go of everything; what readers have claimed stays theirs."""
        self._reader.close()
        self._pool.close()


def told(error: BaseException) -> TensoryardError:
    """An error as whoever asked is to have it: what is not ours means that the bytes do not come."""
    if isinstance(error, TensoryardError):
        return error
    return OutOfReach(f"the porter could not bring it: {type(error).__name__}: {error!s:.400}")
