"""The pool's bookkeeping, pure: which block is used, by how many holders, and when it is free again.

`pool.py` drives it under its lock and owns the memory; nothing here touches memory, sockets or clocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .segment import OwnedSegment


@dataclass(slots=True, eq=False)
class Block:
    """One block in use."""

    segment: OwnedSegment
    index: int
    #: Names this use of the block, in its segment's header and in every handle to it.
    generation: int
    #: When it was taken, in monotonic seconds.
    since: float
    #: RequestID it serves, for people.
    tag: str = ""
    #: Local holders: live views and requests under way.
    holds: int = 1
    #: Readers that have claimed it, by reader key, as far as their tables have been read.
    claims: dict[int, int] = field(default_factory=dict)
    #: Handles that left and that no reader has claimed yet.
    pending: int = 0
    #: Until when the block waits for those claims (monotonic seconds); means nothing while none is pending.
    publish_deadline: float = 0.0

    @property
    def is_free(self) -> bool:
        """Nobody holds it, claims it or is about to."""
        return not self.holds and not self.claims and not self.pending


class BlockTable:
    """Every block in use, by generation.

    A block that nobody is known to need stays in use until the pool removes it, since a reader may have claimed it
    after its table was read (`Pool._free_unclaimed`).
    """

    def __init__(self) -> None:
        self.used: dict[int, Block] = {}
        #: Blocks that may have become free since `take_free`, by generation; each is in `used` too.
        self._settled: dict[int, Block] = {}

    def add(self, block: Block) -> None:
        """A block has been taken."""
        self.used[block.generation] = block

    def hold(self, generation: int) -> None:
        """One local holder more; the block is in use, else KeyError."""
        self.used[generation].holds += 1

    def unhold(self, generation: int) -> None:
        """One local holder less; holders of blocks that are gone are ignored."""
        if block := self.used.get(generation):
            block.holds -= 1
            self._settled[generation] = block

    def publish(self, generation: int, deadline: float) -> None:
        """A handle of the block is on its way to a reader."""
        block = self.used[generation]
        block.pending += 1
        block.publish_deadline = deadline

    def claim(self, generation: int, reader: int) -> None:
        """A reader has begun to read the block."""
        if block := self.used.get(generation):
            block.claims[reader] = block.claims.get(reader, 0) + 1
            block.pending = max(block.pending - 1, 0)

    def release(self, generation: int, reader: int) -> None:
        """A reader has finished with one of its claims."""
        block = self.used.get(generation)
        if block is None or reader not in block.claims:
            return
        if block.claims[reader] > 1:
            block.claims[reader] -= 1
        else:
            del block.claims[reader]
            self._settled[generation] = block

    def forget_reader(self, reader: int) -> None:
        """A reader is gone, and its claims with it."""
        for generation, block in self.used.items():
            if block.claims.pop(reader, None):
                self._settled[generation] = block

    def unpublish(self, generation: int) -> None:
        """One handle that left will not be claimed."""
        block = self.used.get(generation)
        if block is not None and block.pending:
            block.pending -= 1
            self._settled[generation] = block

    def expire(self, at: float) -> None:
        """Nobody came in time for the handles that left."""
        for generation, block in self.used.items():
            if block.pending and block.publish_deadline <= at:
                block.pending = 0
                self._settled[generation] = block

    def take_free(self) -> list[Block]:
        """The blocks that have become free; they stay in use until `remove`."""
        settled, self._settled = self._settled, {}
        return [block for block in settled.values() if block.is_free]

    def remove(self, block: Block) -> None:
        """The block is in use no longer."""
        del self.used[block.generation]
        self._settled.pop(block.generation, None)

    def clear(self) -> None:
        """Forget every block."""
        self.used.clear()
        self._settled.clear()

    def check_invariants(self) -> None:
        """Raise AssertionError when a block in use is free, over-released or counted under a wrong name."""
        for generation, block in self.used.items():
            assert block.generation == generation, "a block is filed under another's generation"
            assert block.holds >= 0, f"block {generation} was released more often than held"
            assert all(count > 0 for count in block.claims.values()), f"block {generation} has an empty claim"
            assert not block.is_free or generation in self._settled, (
                f"block {generation} is free and nobody will notice"
            )
        assert self._settled.keys() <= self.used.keys(), "a block that is gone waits to be freed again"
