"""Shared memory without shared memory: pools and readers of production on buffers of this process.

The books, the lease tables and their protocol are the real ones (`shm/pool.py`, `blocks.py`, `leases.py`, `reader.py`);
replaced are the system's memory, the owners' sockets and threads, and waiting for room, which nobody does here. A block
that is freed is scribbled over, so that whoever still reads it reads nonsense.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import weakref

import numpy as np

from tensoryard.errors import SegmentGone, StaleHandle
from tensoryard.shm import Pool, Reader, size_classes
from tensoryard.shm.leases import GrantedLeases, HeldLeases
from tensoryard.shm.mapping import Mapping
from tensoryard.shm.reader import _Owner
from tensoryard.shm.segment import SegmentLayout

#: Blocks of up to 2 KiB share slabs of 8 KiB, so that small pools fill up and segments come and go.
_SIZES = {"SLAB_BYTES": 8192, "MAX_SLAB_BLOCK_BYTES": 2048}
#: So many live views of one pool, and further results are copied out.
_SLOTS = 6
_SCRIBBLE = 0xEE
#: How long an owner may take to answer, and how soon it hears of a reader, in seconds.
ATTACH_TIMEOUT_S = 10.0
_NOTICE_S = 0.01
#: How often a pool looks what has become free by itself.
_HOUSEKEEP_S = 4.0


@contextlib.contextmanager
def small_segments():
    """While inside, segments are small."""
    before = {name: getattr(size_classes, name) for name in _SIZES}
    for name, value in _SIZES.items():
        setattr(size_classes, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(size_classes, name, value)


class Waits(BaseException):
    """What this thread asked for is not to be had before another process comes to itself, or `ATTACH_TIMEOUT_S`."""


class _Buffer(Mapping):
    """Memory of this process in place of a mapped descriptor."""

    __slots__ = ()

    def __init__(self, memory, *, writable):
        self._pages = memory
        self.size_bytes = len(memory)
        self.writable = writable
        self.address = np.frombuffer(memory, np.uint8).__array_interface__["data"][0]


def _create(size_bytes):
    return -1, _Buffer(bytearray(size_bytes), writable=True)


class _LocalPool(Pool):
    """A pool in which nobody waits, and what is freed is lost."""

    def _take(self, size_bytes, _timeout_s, tag):
        return super()._take(size_bytes, 0.0, tag)

    def _free_block(self, block):
        segment = block.segment
        segment.mapping.bytes_at(segment.offset_of(block.index), segment.block_size)[...] = _SCRIBBLE
        super()._free_block(block)


class _Door:
    """What `PoolServer` is to a pool: knows its readers and looks into their tables."""

    def __init__(self, _pool):
        self._readers = {}
        self._keys = itertools.count(1)

    def start(self):
        """There is no thread."""

    @property
    def reader_count(self):
        return len(self._readers)

    def read_leases(self, blocks):
        for key, leases in self._readers.items():
            leases.enter_changes(blocks, key)

    def admit(self, table):
        key = next(self._keys)
        self._readers[key] = GrantedLeases(table)
        return key

    def pid_of(self, _key):
        """No process of this machine."""
        return 0

    def drop(self, pool, key):
        """A reader's connection has ended."""
        leases = self._readers.pop(key, None)
        if leases is not None:
            pool.reader_gone(key, leases)

    def close(self):
        self._readers.clear()


class _Landlord:
    """A pool, and the process that owns it."""

    def __init__(self, pool, process):
        self.pool = pool
        self.process = process


class _Tenancy(_Owner):
    """A reader's connection to a pool."""

    def __init__(self, name, memory, process):
        self.name = name
        self.segments = {}
        self.leases = None
        self._lock = threading.Lock()
        self._memory = memory
        self._process = process
        self._landlord = memory.reach(name, process)
        table = _Buffer(bytearray((_SLOTS + 1) * 8), writable=True)
        self.leases = HeldLeases(table)
        self._key = self._landlord.pool._server.admit(table)
        process.tenancies[name, self._key] = weakref.ref(self)

    def _attach(self, number):
        pool = self._memory.reach(self.name, self._process).pool
        segment = pool._segments.get(number)
        if segment is None:
            raise StaleHandle(f"segment {self.name}.{number} was given back; send the request again")
        return SegmentLayout(_Buffer(segment.mapping._pages, writable=False))

    def is_alive(self):
        return self._landlord.process.alive

    def copied(self, generation):
        self._landlord.process.later(_NOTICE_S, self._landlord.pool.reader_copied, generation)

    def close(self):
        """The owner hears of it soon."""
        if self.leases is not None:
            self.leases = None
            pool = self._landlord.pool
            self._landlord.process.later(_NOTICE_S, pool._server.drop, pool, self._key)
            self._process.tenancies.pop((self.name, self._key), None)


class Memory:
    """The pools of one world by name."""

    def __init__(self, world):
        self._world = world
        self._landlords = {}
        #: While set, a process that does not answer is not waited for any longer.
        self.impatient = False

    def make_pool(self, process, *, budget_bytes, settings):
        """A process's pool."""
        pool = _LocalPool(
            budget_bytes=budget_bytes,
            idle_s=settings.pool_idle_s,
            claim_timeout_s=settings.claim_timeout_s,
            clock=process.clock,
            create=_create,
            serve=_Door,
        )
        pool.name, pool.host = f"{len(self._landlords) + 1:016x}", process.host
        self._landlords[pool.name] = _Landlord(pool, process)
        process.later(_HOUSEKEEP_S, self._housekeep, process, pool)
        return pool

    def _housekeep(self, process, pool):
        pool.housekeep()
        process.later(_HOUSEKEEP_S, self._housekeep, process, pool)

    def make_reader(self, process):
        """A process's reader."""
        reader = Reader(connect=lambda name: _Tenancy(name, self, process))
        reader.host = process.host
        return reader

    def owner_of(self, pool_name):
        """The process that owns a pool."""
        return self._landlords[pool_name].process

    def reach(self, name, _process):
        """The owner of a pool, if it answers."""
        landlord = self._landlords.get(name)
        if landlord is None or not landlord.process.alive:
            raise SegmentGone(f"pool {name} is gone, or out of reach: has its process ended?")
        if landlord.process.frozen:
            if self.impatient:
                raise SegmentGone(f"pool {name} is out of reach: it did not answer for {ATTACH_TIMEOUT_S} s")
            raise Waits
        return landlord

    def pools(self):
        """Each pool whose process lives, with that."""
        return [(lord.pool, lord.process) for lord in self._landlords.values() if lord.process.alive]


def end_tenancies(process):
    """A process has ended: its connections end, and it releases nothing any more."""
    for reference in list(process.tenancies.values()):
        tenancy = reference()
        if tenancy is not None:
            tenancy.close()
