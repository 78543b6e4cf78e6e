"""Who owns which block of the cache of keys and values: tables, shared prefixes, and what is evicted. A pure machine.

`scheduler.py` asks it before anything is computed; the arrays are in `models/cache.py`, which knows only numbers.

A block that is full and computed is known by a hash of its tokens and of all before them, so that a prompt which begins
alike finds it: such blocks are shared, never written again, and stay findable after their last owner has gone, until
their room is needed. Blocks that are not full belong to one request.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int64]

#: Bytes of a hash: with 16, blocks of different tokens are taken for equal by nobody's doing, chance or intent.
HASH_BYTES = 16


@dataclass(slots=True)
class Table:
    """The blocks of one request."""

    #: In order of its tokens.
    blocks: list[int]
    #: The hashes of its first blocks: those that are full and computed.
    hashes: list[bytes] = field(default_factory=list)
    #: What the first hash stands on.
    root: bytes = b""


class BlockManager:
    """`blocks` blocks of `block_size` tokens. With `caching` off nothing is ever found again."""

    def __init__(self, *, blocks: int, block_size: int, caching: bool = True) -> None:
        self.blocks = blocks
        self.block_size = block_size
        self._caching = caching
        #: Blocks that nobody owns and no hash leads to. The last one freed is taken first: it may still be in a cache.
        self._empty = list(range(blocks - 1, -1, -1))
        #: Blocks that nobody owns but a hash leads to, the longest unused first.
        self._idle: OrderedDict[int, None] = OrderedDict()
        #: Owners of each block.
        self._owners = [0] * blocks
        self._by_hash: dict[bytes, int] = {}
        #: The hash that leads to a block, where one does.
        self._hash_of: dict[int, bytes] = {}
        self._tables: dict[Hashable, Table] = {}

    @property
    def free(self) -> int:
        """Blocks that could be given out now, those kept for their content included."""
        return len(self._empty) + len(self._idle)

    def needed(self, tokens: int) -> int:
        """Blocks that so many tokens take."""
        return -(-tokens // self.block_size)

    def table(self, key: Hashable) -> list[int]:
        """The blocks of a request, in order; not to be changed."""
        return self._tables[key].blocks

    def find(self, tokens: Tokens, salt: str = "") -> int:
        """How many blocks at the beginning of `tokens` are there already; never the one with the last token.

        One token at least is left to be computed, for without it there would be no logits.
        """
        return len(self._known(tokens, _root(salt)))

    def open(self, key: Hashable, tokens: Tokens, salt: str = "", *, shared: int | None = None) -> int | None:
        """Give a request its blocks for all of `tokens`; how many tokens of them are there already.

        None, and no change, when there are too few blocks. `salt` keeps requests apart that must not share;
        `shared`: only so many of the tokens are looked for.
        """
        assert key not in self._tables, "a request is opened once"
        root = _root(salt)
        hashes = self._known(tokens[:shared], root)
        found = [self._by_hash[name] for name in hashes]
        wanted = self.needed(len(tokens)) - len(found)
        if wanted > self.free - sum(block in self._idle for block in found):
            return None
        for block in found:
            self._own(block)
        self._tables[key] = Table(found + [self._take() for _ in range(wanted)], hashes, root)
        return len(found) * self.block_size

    def grow(self, key: Hashable, tokens: int) -> bool:
        """See to it that a request has room for so many tokens in all. False, and no change, when there is none."""
        table = self._tables[key].blocks
        wanted = self.needed(tokens) - len(table)
        if wanted > self.free:
            return False
        table.extend(self._take() for _ in range(wanted))
        return True

    def computed(self, key: Hashable, tokens: Tokens) -> None:
        """The keys and values of these first tokens of a request are in its blocks: the full ones may be shared."""
        table = self._tables[key]
        full = len(tokens) // self.block_size
        while self._caching and len(table.hashes) < full:
            number = len(table.hashes)
            before = table.hashes[-1] if table.hashes else table.root
            name = self._name(before, tokens, number)
            table.hashes.append(name)
            block = table.blocks[number]
            # Where two requests computed the same at the same time, the first one's stays the one that is found.
            if name not in self._by_hash:
                self._by_hash[name] = block
                self._hash_of[block] = name

    def close(self, key: Hashable) -> None:
        """A request needs its blocks no more. The last are evicted first, since the first serve more prompts."""
        for block in reversed(self._tables.pop(key).blocks):
            self._owners[block] -= 1
            if not self._owners[block]:
                if block in self._hash_of:
                    self._idle[block] = None
                else:
                    self._empty.append(block)

    def forget(self, key: Hashable) -> list[int]:
        """What a request computed is not to be found again; the blocks that it alone owns."""
        own = [block for block in self._tables[key].blocks if self._owners[block] == 1]
        for block in own:
            self._unname(block)
        return own

    def _known(self, tokens: Tokens, root: bytes) -> list[bytes]:
        hashes: list[bytes] = []
        if self._caching:
            for number in range((len(tokens) - 1) // self.block_size):
                name = self._name(hashes[-1] if hashes else root, tokens, number)
                if name not in self._by_hash:
                    break
                hashes.append(name)
        return hashes

    def _name(self, before: bytes, tokens: Tokens, number: int) -> bytes:
        part = tokens[number * self.block_size : (number + 1) * self.block_size]
        return hashlib.blake2b(before + np.ascontiguousarray(part, np.int64).tobytes(), digest_size=HASH_BYTES).digest()

    def _own(self, block: int) -> None:
        if not self._owners[block]:
            del self._idle[block]
        self._owners[block] += 1

    def _take(self) -> int:
        if self._empty:
            block = self._empty.pop()
        else:
            block, _ = self._idle.popitem(last=False)
            self._unname(block)
        self._owners[block] = 1
        return block

    def _unname(self, block: int) -> None:
        name = self._hash_of.pop(block, None)
        if name is not None:
            del self._by_hash[name]

    def check_invariants(self) -> None:
        """Each block is empty, idle or owned, as often as tables name it, and hashes lead to blocks that stay as is."""
        owned = Counter(block for table in self._tables.values() for block in table.blocks)
        assert [owned[block] for block in range(self.blocks)] == self._owners
        states = [*self._empty, *self._idle, *owned]
        assert sorted(states) == list(range(self.blocks))
        assert {name: block for block, name in self._hash_of.items()} == self._by_hash
        assert set(self._idle) <= set(self._hash_of)
        assert not set(self._empty) & set(self._hash_of)
        for table in self._tables.values():
            assert len(set(table.blocks)) == len(table.blocks)
            assert len(table.hashes) <= len(table.blocks)
            # What more than one owns is full and computed.
            assert all(owned[block] == 1 for block in table.blocks[len(table.hashes) :])


def _root(salt: str) -> bytes:
    return hashlib.blake2b(salt.encode("utf-8", "surrogatepass"), digest_size=HASH_BYTES).digest()
