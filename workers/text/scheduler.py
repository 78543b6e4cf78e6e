"""Whose tokens the next step computes: continuous batching as a pure machine.

`engine.py` tells it of requests and tokens and computes what it plans; `blocks.py` knows what room there is. Prompts
and generated tokens are the same thing here: a request has tokens, of which the model has computed some.

A step computes at most `max_tokens`. Requests that only await their newest token go first, so that no stream stutters
while a long prompt is read in; prompts share what is left, in chunks, in order of arrival. A request is let in when
there are blocks for all the tokens it has. When one that runs needs a block and there is none, the one that came last,
or one that stands still, gives its blocks back and is computed again later: its tokens stay with the engine, so none is
lost, and what the cache still holds of it is found.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ...errors import InvalidRequest
from .blocks import BlockManager

Tokens = npt.NDArray[np.int64]


@dataclass(slots=True, eq=False)
class Sequence:
    """One request here."""

    key: Hashable
    #: All its tokens, as blocks are told apart by them; the engine hands in a longer array as they come.
    tokens: Tokens
    salt: str = ""
    #: So many of them, at the beginning, may be found in the cache and left there for others.
    shared: int | None = None
    #: Its tokens before this are computed, and in its blocks.
    computed: int = 0
    running: bool = False
    #: Its blocks have room for so many tokens.
    room: int = 0
    #: Of its tokens so many were found in the cache when it was first let in; None before.
    cached: int | None = None


class Work(NamedTuple):
    """The tokens `[start, start + size)` of a request are to be computed; `last`: no token of it is left then."""

    sequence: Sequence
    start: int
    size: int
    last: bool


@dataclass(slots=True)
class Plan:
    """A step: what is computed, and who lost its blocks for it."""

    works: list[Work] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)
    #: Let in by this plan.
    admitted: list[Sequence] = field(default_factory=list)
    tokens: int = 0


class Scheduler:
    """At most `max_tokens` in a step, of a prompt at most `max_chunk`, and at most `max_running` requests at once.

    `whole_blocks`: chunks end where blocks do, and prompts alone are shared. For models whose bits depend on the pieces
    in which they compute: the load then does not move a border, nor is what came token by token taken for a prompt.
    """

    def __init__(
        self, blocks: BlockManager, *, max_tokens: int, max_chunk: int, max_running: int, whole_blocks: bool = False
    ) -> None:
        assert 0 < max_running <= max_tokens, "each request that runs can have its token in every step"
        if whole_blocks:
            least = blocks.block_size
            assert max_chunk >= least, "a chunk has room for a block"
            assert max_tokens >= max_running + least, "and so has a step in which all others have their token"
        self._whole_blocks = whole_blocks
        self.blocks = blocks
        self._max_tokens = max_tokens
        self._max_chunk = max_chunk
        self._max_running = max_running
        #: In order of arrival, whether they run or wait.
        self._sequences: dict[Hashable, Sequence] = {}
        self._running = 0

    def __len__(self) -> int:
        return len(self._sequences)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._sequences

    @property
    def capacity(self) -> int:
        """Tokens of the longest request that can ever run."""
        return self.blocks.blocks * self.blocks.block_size

    def add(self, key: Hashable, tokens: Tokens, *, most: int, salt: str = "", prompt: int | None = None) -> Sequence:
        """A request comes, with its prompt; it will never have more than `most` tokens.

        `prompt`: how many of them were never generated, where that is not all.

        Raises InvalidRequest when even alone it could not be computed.
        """
        if most > self.capacity:
            raise InvalidRequest(
                f"up to {most} tokens do not fit into the cache, which holds {self.capacity} (`cache_blocks` of "
                f"{self.blocks.block_size}); ask for a lower `max_new_tokens`",
            )
        shared = (len(tokens) if prompt is None else prompt) if self._whole_blocks else None
        sequence = self._sequences[key] = Sequence(key, tokens, salt, shared)
        return sequence

    def remove(self, key: Hashable) -> None:
        """A request has ended, or nobody wants it any more: its blocks are free at once. Unknown ones are passed by."""
        sequence = self._sequences.pop(key, None)
        if sequence is not None and sequence.running:
            self._stop(sequence)

    def plan(self, still: Collection[Hashable] = ()) -> Plan:
        """The next step. Those in `still` are not to be computed: their readers do not keep up."""
        plan = Plan()
        for sequence in self._by_urgency(still):
            if plan.tokens < self._max_tokens and sequence.running:
                self._continue(sequence, plan, still)
        # Whoever has just lost its blocks would else take them again.
        if not plan.preempted:
            self._admit(plan, still)
        return plan

    def computed(self, plan: Plan) -> None:
        """The plan has been carried out."""
        for sequence, start, size, _ in plan.works:
            sequence.computed = start + size
            if sequence.computed // self.blocks.block_size > start // self.blocks.block_size:
                self.blocks.computed(sequence.key, _shared(sequence)[: sequence.computed])

    def reserve(self, plan: Plan, work: Work, drafts: int) -> int:
        """Room in a plan for drafts behind a request's newest token: for how many there is.

        Nobody loses blocks for a guess, nor the block that it may soon need.
        """
        sequence = work.sequence
        drafts = min(drafts, self._max_tokens - plan.tokens)
        wanted = sequence.computed + 1 + drafts
        if wanted > sequence.room:
            needed = self.blocks.needed(wanted)
            if self.blocks.free - needed + len(self.blocks.table(sequence.key)) >= self._running:
                self.blocks.grow(sequence.key, wanted)
                sequence.room = needed * self.blocks.block_size
            drafts = min(drafts, sequence.room - sequence.computed - 1)
        plan.tokens += drafts
        return drafts

    def append(self, sequence: Sequence, tokens: Tokens) -> None:
        """A request has got tokens more: `tokens` is all it has now.

        Of several the first ones were drafts, computed in the step that confirmed them. What drafts were refused left
        in the blocks is written over.
        """
        sequence.tokens = tokens
        start, end = sequence.computed, len(tokens) - 1
        if end > start:
            sequence.computed = end
            if end // self.blocks.block_size > start // self.blocks.block_size:
                self.blocks.computed(sequence.key, _shared(sequence)[:end])

    def _by_urgency(self, still: Collection[Hashable]) -> list[Sequence]:
        """Those that run and may go on: first who awaits one token, then who is read in."""
        running = [item for item in self._sequences.values() if item.running and item.key not in still]
        reading = [item for item in running if len(item.tokens) - item.computed > 1]
        if not reading:
            return running
        return [item for item in running if len(item.tokens) - item.computed <= 1] + reading

    def _continue(self, sequence: Sequence, plan: Plan, still: Collection[Hashable]) -> None:
        left = len(sequence.tokens) - sequence.computed
        if left == 1 and sequence.computed < sequence.room:  # as it mostly is, and there is room in the budget
            plan.works.append(Work(sequence, sequence.computed, 1, True))
            plan.tokens += 1
            return
        count = min(left, self._max_chunk, self._max_tokens - plan.tokens)
        if self._whole_blocks and count < left:
            count -= (sequence.computed + count) % self.blocks.block_size
        if count > 0 and self._make_room(sequence, sequence.computed + count, plan, still):
            plan.works.append(Work(sequence, sequence.computed, count, count == left))
            plan.tokens += count

    def _make_room(self, sequence: Sequence, tokens: int, plan: Plan, still: Collection[Hashable]) -> bool:
        """Blocks for so many tokens, at others' cost if need be; False when it has come to its own."""
        while tokens > sequence.room:
            if self.blocks.grow(sequence.key, tokens):
                sequence.room = self.blocks.needed(tokens) * self.blocks.block_size
                break
            victim = self._victim(still)
            self._preempt(victim, plan)
            if victim is sequence:
                return False
        return True

    def _victim(self, still: Collection[Hashable]) -> Sequence:
        """Who stands still anyway, else who came last."""
        running = [item for item in self._sequences.values() if item.running]
        return next((item for item in reversed(running) if item.key in still), running[-1])

    def _preempt(self, sequence: Sequence, plan: Plan) -> None:
        planned = next((work for work in plan.works if work.sequence is sequence), None)
        if planned is not None:
            plan.works.remove(planned)
            plan.tokens -= planned.size
        self._stop(sequence)
        plan.preempted.append(sequence)

    def _stop(self, sequence: Sequence) -> None:
        self.blocks.close(sequence.key)
        self._running -= 1
        sequence.running = False
        sequence.computed = sequence.room = 0

    def _admit(self, plan: Plan, still: Collection[Hashable]) -> None:
        """Let in who waits, in order, as long as there is room; nobody passes who came before."""
        if self._running == len(self._sequences):
            return
        for sequence in [item for item in self._sequences.values() if not item.running and item.key not in still]:
            if plan.tokens >= self._max_tokens or self._running >= self._max_running or not self._open(sequence):
                return
            plan.admitted.append(sequence)
            self._continue(sequence, plan, still)

    def _open(self, sequence: Sequence) -> bool:
        # Each that runs may soon need one block more; who takes the last ones would be put out again.
        needed = self.blocks.needed(len(sequence.tokens))
        if (
            self._running
            and needed - self.blocks.find(_shared(sequence), sequence.salt) + self._running > self.blocks.free
        ):
            return False
        cached = self.blocks.open(sequence.key, sequence.tokens, sequence.salt, shared=sequence.shared)
        if cached is None:
            return False
        sequence.running = True
        sequence.computed = cached
        sequence.room = needed * self.blocks.block_size
        if sequence.cached is None:
            sequence.cached = cached
        self._running += 1
        return True

    def check_invariants(self) -> None:
        """Who runs has blocks for what is computed; who waits has none."""
        self.blocks.check_invariants()
        running = [item for item in self._sequences.values() if item.running]
        assert len(running) == self._running <= self._max_running
        for item in self._sequences.values():
            assert 0 <= item.computed <= item.room if item.running else item.computed == item.room == 0
            assert item.computed <= len(item.tokens)
            if item.running:
                assert len(self.blocks.table(item.key)) * self.blocks.block_size == item.room


def _shared(sequence: Sequence) -> Tokens:
    """The tokens that may be found, or left to be found."""
    return sequence.tokens[: sequence.shared]
