"""Finds markers in a stream, symbol by symbol, and knows how much of its end could still begin one.

Symbols are characters (tool parsers) or token ids (reasoning parsers); this module knows neither formats nor buffers.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence
from typing import Generic, TypeVar

S = TypeVar("S", bound=Hashable)


class Markers(Generic[S]):
    """Several markers as one automaton (Aho and Corasick); node 0 is the start.

    `depth[node]`: how many of the last symbols could begin a marker. `found[node]`: the marker that ends here, or None.
    Where one marker is the beginning of another, the shorter is found. Raises ValueError for an empty marker.
    """

    __slots__ = ("_back", "_next", "depth", "found", "markers", "plain")

    #: The markers, in the order given.
    markers: tuple[Sequence[S], ...]
    #: Per node: symbols at the end of the input that are the beginning of a marker.
    depth: list[int]
    #: Per node: the marker that the input ends with.
    found: list[Sequence[S] | None]
    #: For markers of characters: a run that holds no first character of any, so that plain text is not walked through.
    plain: re.Pattern[str]

    def __init__(self, markers: Iterable[Sequence[S]]) -> None:
        self.markers = tuple(markers)
        self._next: list[dict[S, int]] = [{}]
        self._back = [0]
        self.depth = [0]
        self.found = [None]
        for marker in self.markers:
            self._add(marker)
        self._link()
        first = "".join(re.escape(marker[0]) for marker in self.markers if isinstance(marker, str))
        self.plain = re.compile(f"[^{first}]+" if first else r"[\s\S]+")

    def _add(self, marker: Sequence[S]) -> None:
        if not marker:
            raise ValueError("a marker has at least one symbol")
        node = 0
        for symbol in marker:
            if symbol not in self._next[node]:
                self._next[node][symbol] = len(self._next)
                self._next.append({})
                self._back.append(0)
                self.depth.append(self.depth[node] + 1)
                self.found.append(None)
            node = self._next[node][symbol]
        self.found[node] = marker

    def _link(self) -> None:
        """Point each node back to the longest other beginning that the input ends with; shallow nodes first."""
        level = list(self._next[0].values())
        for node in level:  # grows while it is walked
            for symbol, deeper in self._next[node].items():
                back = self.step(self._back[node], symbol)
                self._back[deeper] = back
                self.found[deeper] = self.found[deeper] or self.found[back]
                level.append(deeper)

    def step(self, node: int, symbol: S) -> int:
        """The node after one more symbol; on average one look."""
        while node and symbol not in self._next[node]:
            node = self._back[node]
        return self._next[node].get(symbol, 0)
