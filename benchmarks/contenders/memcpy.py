"""The floor of every array: one memcpy of it, in one process, into memory that is there already."""

from __future__ import annotations

import numpy as np

from ..works import Array, fill, touched
from .base import Contender


class Memcpy(Contender):
    """Copies, and that is all; the copy is read outside the timed part."""

    name = "memcpy"
    largest_bytes = 1 << 30

    def __init__(self) -> None:
        self._targets: dict[int, Array] = {}
        self._sources: dict[int, Array] = {}

    def _target(self, nbytes: int) -> Array:
        if nbytes not in self._targets:
            self._targets[nbytes] = self.borrow(nbytes)
        return self._targets[nbytes]

    def read(self, array: Array) -> Array:
        """The copy itself."""
        target = self._target(array.nbytes)
        np.copyto(target, array)
        return target

    def make(self, nbytes: int, seed: int) -> Array:
        """What a maker writes, without going anywhere."""
        if nbytes not in self._sources:
            self._sources[nbytes] = touched(nbytes)
        return fill(self._target(nbytes), seed, self._sources[nbytes])


def make() -> list[Contender]:
    """The one here."""
    return [Memcpy()]
