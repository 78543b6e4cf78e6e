"""The tensor pool: this process's shared memory, allocated here and read elsewhere.

Blocks come from pre-faulted segments (`segment.py`) and are reused; `blocks.py` knows who holds which, `server.py`
serves the readers of other processes (`reader.py`). Only the owner allocates, so no lock crosses a process.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import math
import os
import secrets
import select
import threading
import time
import weakref
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from .. import faults
from ..errors import PoolExhausted, SegmentGone, StaleHandle
from .blocks import Block, BlockTable
from .copying import copy_into
from .dtypes import dtype_name
from .handle import SharedMemoryArray
from .leases import GrantedLeases, fence
from .ledger import PAGE_BLOCKS, LiveBlock, Page, PoolStatistics
from .os_memory import create_sealed, host_name, total_memory_bytes
from .segment import Create, OwnedSegment, segment_bytes
from .server import PoolServer
from .size_classes import block_bytes

#: A waiter looks again after this long even if no one woke it, so a lost wake-up costs this much and no more.
_RECHECK_S = 0.05
#: The use of memory that was copied into the pool for its one reader: nobody ever writes to it again.
_ONLY_USE = 1


def default_budget_bytes() -> int:
    """An eighth of the machine's memory: room for several processes with a pool each."""
    return total_memory_bytes() // 8


class Loan:
    """Keeps a block while it lives: the base of a view's memory, or a request's hold on its input.

    `use`: loans of one block with one number stand for the same bytes, since the block was lent all the time between
    them, and who lends does not write. 0: the loan of a view.
    """

    __slots__ = ("__weakref__", "_pool", "generation", "handle", "use")

    def __init__(self, pool: Pool, generation: int, handle: SharedMemoryArray | None = None, use: int = 0) -> None:
        self._pool: Pool | None = pool
        self.generation = generation
        self.handle = handle
        self.use = use

    def release(self) -> None:
        """Give the block back now; again is harmless."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool._drop(self.generation, self.use)  # noqa: SLF001 - a loan is the pool's own

    def __del__(self) -> None:
        self.release()


class Pool:
    """Shared memory of one process, with a budget in bytes. Thread-safe.

    Arrays and loans may be let go of anywhere, in finalizers too; the methods take a lock, and a finalizer may not.

    `idle_s`: a segment without a used block goes back to the system after this many seconds.
    `claim_timeout_s`: a published block that no reader claims within this time is reused.
    `owner`: what this process is, for people who look at its memory: "worker NAME".
    `clock` (monotonic seconds), `create` (memory) and `serve` (the door for readers) are the world around it.
    """

    def __init__(
        self,
        *,
        budget_bytes: int | None = None,
        idle_s: float = 30.0,
        claim_timeout_s: float = 60.0,
        owner: str = "",
        clock: Callable[[], float] = time.monotonic,
        create: Create = create_sealed,
        serve: Callable[[Pool], PoolServer] = PoolServer,
    ) -> None:
        self.name = secrets.token_hex(8)
        self.owner = owner
        self.host = host_name()
        self.budget_bytes = default_budget_bytes() if budget_bytes is None else budget_bytes
        self._idle_s = idle_s
        self._claim_timeout_s = claim_timeout_s
        self._clock = clock
        self._create_memory = create
        self._lock = threading.Lock()
        self._closed = False
        self._blocks = BlockTable()
        #: Free blocks per class as (segment, index), last in first out: the warmest memory is reused first.
        self._free: defaultdict[int, list[tuple[OwnedSegment, int]]] = defaultdict(list)
        self._segments: dict[int, OwnedSegment] = {}
        self._used_in: defaultdict[int, int] = defaultdict(int)
        self._idle_since: dict[int, float] = {}
        self._by_address: list[tuple[int, int]] = []
        self._reserved_bytes = 0
        self._generations = itertools.count(1)
        self._segment_numbers = itertools.count(1)
        self._taken_total = 0
        self._created_total = 0
        #: Why the machine gave no memory when a segment was last wanted; empty when it did, or was not asked.
        self._refusal = ""
        #: Generations whose local holder is gone; filled by finalizers, which may not take the lock.
        self._dropped: deque[int] = deque()
        #: Of blocks that are lent: the number of this use and how many loans it has, by generation; and generations of
        #: loans that have ended since, filled like `_dropped`.
        self._uses: dict[int, tuple[int, int]] = {}
        self._use_numbers = itertools.count(_ONLY_USE + 1)
        self._returned: deque[int] = deque()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        weakref.finalize(self, os.close, self._wake_fd).atexit = False
        self._waiters = 0
        self._server = serve(self)
        self._server.start()
        _pools.add(self)

    # -- taking memory ------------------------------------------------------------------------------------------------

    def empty(
        self,
        shape: int | tuple[int, ...],
        dtype: npt.DTypeLike = np.float32,
        *,
        timeout_s: float = 0.0,
        tag: str = "",
    ) -> npt.NDArray[Any]:
        """A writable, uninitialised array; its block is reused once no view of it lives and no request holds it.

        Waits up to `timeout_s` for memory. Raises PoolExhausted, UnsupportedArray, or ValueError for a bad shape.
        """
        sides = (shape,) if isinstance(shape, int) else shape
        resolved = np.dtype(dtype)
        dtype_name(resolved)
        size_bytes = math.prod(sides) * resolved.itemsize
        if size_bytes <= 0 or min(sides, default=1) < 0:
            return np.empty(sides, resolved)
        block = self._take(size_bytes, timeout_s, tag)
        return _memory(block, size_bytes, Loan(self, block.generation)).view(resolved).reshape(sides)

    def place(self, array: npt.NDArray[Any], *, timeout_s: float = 0.0, tag: str = "") -> Loan:
        """Copy an array into the pool: one copy. The loan holds the block and carries the handle.

        Waits up to `timeout_s` for memory. Raises PoolExhausted or UnsupportedArray.
        """
        dtype_name(array.dtype)
        block = self._take(max(array.nbytes, 1), timeout_s, tag)
        loan = Loan(self, block.generation, use=_ONLY_USE)
        loan.handle = self._handle(block, block.segment.offset_of(block.index), array)
        copy_into(_memory(block, array.nbytes, loan).view(array.dtype).reshape(array.shape), array)
        return loan

    def lend(self, array: npt.NDArray[Any], *, tag: str = "") -> Loan | None:
        """Hold the block an array already lies in: no copy. None when it lies elsewhere, is empty or not C-ordered.

        With `tag`, the block is known by that RequestID from now on.
        """
        if array.base is None or not array.flags.c_contiguous or not array.flags.aligned or not array.nbytes:
            return None  # without a base the memory is its own: ours is always a view
        with self._lock:
            found = self._find(array)
            if found is None:
                return None
            block, offset = found
            handle = self._handle(block, offset, array)
            self._blocks.hold(block.generation)
            block.tag = tag or block.tag
            use = self._begin_use(block.generation)
        return Loan(self, block.generation, handle, use)

    def _begin_use(self, generation: int) -> int:
        """One loan more; under the lock. Its number is a new one if none of that block was left."""
        while self._returned:
            ended = self._returned.popleft()
            number, loans = self._uses.pop(ended)
            if loans > 1:
                self._uses[ended] = (number, loans - 1)
        number, loans = self._uses.get(generation) or (next(self._use_numbers), 0)
        self._uses[generation] = (number, loans + 1)
        return number

    def view(self, loan: Loan) -> npt.NDArray[Any]:
        """The array that a loan's handle names, as bytes lie now; keeps the loan. StaleHandle when the loan is over."""
        handle = loan.handle
        with self._lock:
            self._check_open()
            block = self._blocks.used.get(loan.generation)
            if loan._pool is not self or block is None or handle is None:  # noqa: SLF001 - a loan is the pool's own
                raise StaleHandle("the loan is over, and its memory may have been reused: lend the array again")
            memory = block.segment.mapping.bytes_at(handle.offset, handle.nbytes, loan)
        return memory.view(handle.numpy_dtype).reshape(handle.shape)

    def publish(self, array: npt.NDArray[Any], *, timeout_s: float = 0.0, tag: str = "") -> tuple[Loan, bool]:
        """Make an array ready for a reader: a loan with the handle, and whether it had to be copied.

        Call `send` with the loan when the handle leaves; the block then waits for the reader's claim.
        """
        loan = self.lend(array, tag=tag)
        if loan is not None:
            return loan, False
        return self.place(array, timeout_s=timeout_s, tag=tag), True

    def send(self, loan: Loan) -> None:
        """The loan's handle is about to leave: the block now waits for a reader's claim, and the loan is over.

        Call it before the message goes, or the reader's claim may be counted first and the block wait for a second
        one. Raises StaleHandle when the loan is over already (or another pool's), SegmentGone when the pool is closed.
        """
        with self._lock:
            self._check_open()
            if loan._pool is not self:  # noqa: SLF001 - a loan is the pool's own
                raise StaleHandle("the loan is over, and its memory may have been reused: lend the array again")
            self._blocks.publish(loan.generation, self._clock() + self._claim_timeout_s)
        if faults.ARMED:
            faults.reach("shm.sent")
        loan.release()

    def discard(self, generation: int) -> None:
        """One handle that left will not be claimed: reuse the block, unless another is on its way or was claimed."""
        with self._lock:
            self._reclaim()
            self._blocks.unpublish(generation)
            self._reclaim()
        self.wake()

    def _take(self, size_bytes: int, timeout_s: float, tag: str) -> Block:
        size = block_bytes(size_bytes)
        block = self._try_take(size, tag)
        if block is not None:
            return block
        if timeout_s <= 0 or segment_bytes(size) > self.budget_bytes:
            raise self._exhausted(size_bytes, 0)
        give_up = self._clock() + timeout_s
        with self._waiting():
            while True:  # look first: a release may have come before we said that we wait
                block = self._try_take(size, tag)
                if block is not None:
                    return block
                left = give_up - self._clock()
                if left <= 0:
                    raise self._exhausted(size_bytes, timeout_s)
                self._sleep(min(left, _RECHECK_S))

    def _check_open(self) -> None:
        if self._closed:
            raise SegmentGone("the tensor pool is closed (a forked process has none of its parent's)")

    def _try_take(self, size: int, tag: str) -> Block | None:
        with self._lock:
            self._check_open()
            if not self._free[size]:
                self._reclaim()
            if not self._free[size] and not self._grow(size):
                return None
            return self._pop_free(size, tag)

    def _pop_free(self, size: int, tag: str) -> Block:
        segment, index = self._free[size].pop()
        block = Block(segment, index, next(self._generations), self._clock(), tag)
        segment.generations[index] = block.generation
        self._blocks.add(block)
        self._used_in[segment.number] += 1
        self._idle_since.pop(segment.number, None)
        self._taken_total += 1
        if faults.ARMED:
            faults.reach("shm.allocated")
        return block

    def _grow(self, size: int) -> bool:
        """One more segment of a class, if the budget allows; idle segments of other classes make room first."""
        self._refusal = ""
        needed = segment_bytes(size)
        if self._reserved_bytes + needed > self.budget_bytes:
            self._return_idle(before=math.inf, needed=needed)
        if self._reserved_bytes + needed > self.budget_bytes:
            return False
        segment = self._create(size)
        if segment is None and self._idle_since:
            self._return_idle(before=math.inf)
            segment = self._create(size)
        if segment is None:
            return False
        self._segments[segment.number] = segment
        self._created_total += 1
        self._reserved_bytes += segment.mapping.size_bytes
        bisect.insort(self._by_address, (segment.mapping.address, segment.number))
        self._free[size].extend((segment, index) for index in reversed(range(segment.block_count)))
        self._idle_since[segment.number] = self._clock()
        return True

    def _create(self, size: int) -> OwnedSegment | None:
        try:
            return OwnedSegment(next(self._segment_numbers), size, self._create_memory)
        except PoolExhausted as error:
            self._refusal = error.text
            return None

    def _exhausted(self, size_bytes: int, waited_s: float) -> PoolExhausted:
        now = self.statistics()
        refusal = f" ({self._refusal})" if self._refusal else ""
        return PoolExhausted(
            f"no room for {size_bytes} bytes{refusal}: the pool's budget is {now.budget_bytes} bytes, {now.used_bytes} "
            f"are in use by {now.used_blocks} arrays ({waited_s:.1f} s waited). Drop results you no longer need, wait "
            "with timeout_s, or raise pool_budget_bytes (TENSORYARD_POOL_BUDGET_BYTES)",
        )

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        """While a thread waits for memory, every release wakes it, here and in the readers."""
        with self._lock:
            self._waiters += 1
            self._server.set_waiting(True)
        try:
            yield
        finally:
            with self._lock:
                self._waiters -= 1
                if not self._waiters:
                    self._server.set_waiting(False)

    def _sleep(self, timeout_s: float) -> None:
        """Sleep until something is released, at most `timeout_s`."""
        released = select.poll()  # not select(), which refuses descriptors from 1024 on
        released.register(self._wake_fd, select.POLLIN)
        if released.poll(math.ceil(timeout_s * 1000)):
            with contextlib.suppress(BlockingIOError):  # another waiter was first
                os.eventfd_read(self._wake_fd)

    def wake(self) -> None:
        """Something was released: let waiters look again. Safe in finalizers."""
        if self._waiters:
            os.eventfd_write(self._wake_fd, 1)

    # -- giving it back -----------------------------------------------------------------------------------------------

    def _drop(self, generation: int, use: int) -> None:
        if use > _ONLY_USE:
            self._returned.append(generation)
        self._dropped.append(generation)
        self.wake()

    def _reclaim(self) -> None:
        """Apply every release that has happened since: ours, the readers', and claims that never came."""
        self._server.read_leases(self._blocks)
        while self._dropped:
            self._blocks.unhold(self._dropped.popleft())
        self._blocks.expire(self._clock())
        while blocks := self._blocks.take_free():
            self._free_unclaimed(blocks)

    def _free_unclaimed(self, blocks: list[Block]) -> None:
        """Free blocks that no one is known to need.

        The readers see the generations vanish first, then we look for late claims: whichever order a reader's claim
        falls in, either it sees the handle stale or we see its claim.
        """
        for block in blocks:
            block.segment.generations[block.index] = 0
        fence()
        self._server.read_leases(self._blocks)
        for block in blocks:
            if block.is_free:
                self._free_block(block)
            else:
                block.segment.generations[block.index] = block.generation

    def _free_block(self, block: Block) -> None:
        self._blocks.remove(block)
        segment = block.segment
        self._used_in[segment.number] -= 1
        if not self._used_in[segment.number]:
            self._idle_since[segment.number] = self._clock()
        self._free[segment.block_size].append((segment, block.index))

    def _return_idle(self, *, before: float, needed: float = math.inf) -> None:
        """Give segments unused since `before` back to the system, until `needed` bytes fit the budget."""
        for number, since in sorted(self._idle_since.items(), key=lambda item: item[1]):
            if since >= before or self._reserved_bytes + needed <= self.budget_bytes:
                return
            self._retire(self._segments.pop(number))

    def _retire(self, segment: OwnedSegment) -> None:
        del self._idle_since[segment.number]
        self._used_in.pop(segment.number, None)
        self._by_address.remove((segment.mapping.address, segment.number))
        free = self._free[segment.block_size]
        free[:] = [entry for entry in free if entry[0] is not segment]
        self._reserved_bytes -= segment.mapping.size_bytes
        segment.retire()

    def housekeep(self) -> None:
        """Apply releases and return idle segments; the server's thread calls it about once a second."""
        with self._lock:
            if not self._closed:
                self._reclaim()
                self._return_idle(before=self._clock() - self._idle_s)

    # -- looking ------------------------------------------------------------------------------------------------------

    def _find(self, array: npt.NDArray[Any]) -> tuple[Block, int] | None:
        """The used block an array lies in, and its offset in the segment."""
        address: int = array.__array_interface__["data"][0]
        position = bisect.bisect_right(self._by_address, (address, math.inf)) - 1
        if position < 0:
            return None
        start, number = self._by_address[position]
        segment, offset = self._segments[number], address - start
        index, within = divmod(offset - segment.data_offset, segment.block_size)
        if not 0 <= index < segment.block_count or within + array.nbytes > segment.block_size:
            return None
        block = self._blocks.used.get(int(segment.generations[index]))
        return (block, offset) if block else None

    def _handle(self, block: Block, offset: int, array: npt.NDArray[Any]) -> SharedMemoryArray:
        name = f"{self.name}.{block.segment.number}"
        return SharedMemoryArray.of_own(name, array.shape, dtype_name(array.dtype), offset, block.generation, self.host)

    def reader_gone(self, reader: int, leases: GrantedLeases) -> None:
        """A reader's connection ended: its claims are over, seen or not. Called by the server, under the lock."""
        leases.enter_changes(self._blocks, reader)
        self._blocks.forget_reader(reader)

    def reader_copied(self, generation: int) -> None:
        """A reader came for a block and took a copy instead of a claim. Called by the server."""
        with self._lock:
            self._blocks.unpublish(generation)
        self.wake()

    def segment_fd(self, number: int) -> int | None:
        """A duplicate of a segment's descriptor for the server to hand over and close; None when there is none."""
        with self._lock:
            segment = self._segments.get(number)
            return os.dup(segment.fd) if segment else None

    def statistics(self) -> PoolStatistics:
        """The pool's figures, after applying what has been released."""
        with self._lock:
            self._reclaim()
            return self._statistics()

    def _statistics(self) -> PoolStatistics:
        used = list(self._blocks.used.values())
        return PoolStatistics(
            budget_bytes=self.budget_bytes,
            reserved_bytes=self._reserved_bytes,
            used_bytes=sum(block.segment.block_size for block in used),
            used_blocks=len(used),
            published_blocks=sum(block.pending > 0 for block in used),
            segments=len(self._segments),
            readers=self._server.reader_count,
            taken_total=self._taken_total,
            segments_created_total=self._created_total,
        )

    def live_blocks(self) -> list[LiveBlock]:
        """Every block in use, oldest first."""
        with self._lock:
            self._reclaim()
            now = self._clock()
            return [self._live_block(block, now) for block in self._blocks.used.values()]

    def page(self, after: int) -> Page:
        """A part of the leak ledger: the live blocks behind generation `after`, oldest first; with 0, the figures."""
        with self._lock:
            self._reclaim()
            now = self._clock()
            behind = (block for generation, block in self._blocks.used.items() if generation > after)
            found = list(itertools.islice(behind, PAGE_BLOCKS + 1))
            return Page(
                after=after,
                owner=self.owner,
                statistics=None if after else self._statistics(),
                blocks=tuple(self._live_block(block, now) for block in found[:PAGE_BLOCKS]),
                more=len(found) > PAGE_BLOCKS,
            )

    def _live_block(self, block: Block, now: float) -> LiveBlock:
        return LiveBlock(
            generation=block.generation,
            size_bytes=block.segment.block_size,
            request_id=block.tag,
            age_s=now - block.since,
            holds=block.holds,
            readers=len(block.claims),
            reader_pids=tuple(self._server.pid_of(reader) for reader in block.claims),
            sent_s=now - (block.publish_deadline - self._claim_timeout_s) if block.pending else None,
        )

    def check_invariants(self) -> None:
        """Raise AssertionError when the books do not balance."""
        with self._lock:
            self._blocks.check_invariants()
            reserved = sum(segment.mapping.size_bytes for segment in self._segments.values())
            assert reserved == self._reserved_bytes, "reserved bytes do not match the segments"
            idle = {number for number in self._segments if not self._used_in.get(number)}
            assert idle == self._idle_since.keys(), "idle segments are not those without a used block"
            assert len(self._by_address) == len(self._segments), (
                "a segment cannot be found by address, or lingers there"
            )
            used = Counter(block.segment.number for block in self._blocks.used.values())
            free = Counter(segment.number for entries in self._free.values() for segment, _ in entries)
            assert used.keys() | free.keys() <= self._segments.keys(), "a block lies in a segment that is gone"
            for number, segment in self._segments.items():
                assert used[number] == self._used_in.get(number, 0), f"segment {number} miscounts its used blocks"
                assert used[number] + free[number] == segment.block_count, f"segment {number} has lost a block"

    def close(self) -> None:
        """Stop serving readers and give all memory back; views that still live keep theirs until they are gone."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._server.close()
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        """Let go of every segment; only views keep their memory from now on."""
        for segment in self._segments.values():
            segment.close()
        self._segments.clear()
        self._blocks.clear()
        self._uses.clear()
        self._returned.clear()
        self._free.clear()
        self._used_in.clear()
        self._idle_since.clear()
        self._by_address.clear()
        self._reserved_bytes = 0

    def _abandon(self) -> None:
        """In a forked child, where the lock may be held for ever by a thread that is not here."""
        self._lock = threading.Lock()
        self._closed = True
        self._server.abandon()
        self._forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def _memory(block: Block, size_bytes: int, loan: Loan) -> npt.NDArray[np.uint8]:
    """The first bytes of a block, as an array whose life keeps the loan."""
    return block.segment.mapping.bytes_at(block.segment.offset_of(block.index), size_bytes, loan)


#: Pools of this process, for the fork handler.
_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """A forked child must not keep its parent's readers connected, nor answer them, nor write in shared headers."""
    for pool in list(_pools):
        pool._abandon()  # noqa: SLF001 - this module's own class


os.register_at_fork(after_in_child=_after_fork_in_child)
