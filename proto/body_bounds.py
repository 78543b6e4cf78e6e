"""How much may be made of a body: its lists and maps are counted before it is decoded.

`codec.py` asks here first. How large a body's frame is, the link bounds; an empty list takes a byte of it and 64 bytes
of memory, so that the frames that are allowed would be too many lists.
"""

from __future__ import annotations

import re
from typing import Any

from ..errors import DecodeError

#: Most lists and maps in one body: a quarter of a gigabyte, if each is a map of one entry.
MAX_CONTAINERS = 1 << 20
#: Most texts, bytes and arrays that are looked at one by one, in a body that may hold too many containers.
MAX_TEXTS = 4 << 20

_CHUNK_BYTES = 1 << 20
#: A body of so few parts, in all, is counted at once.
_SHORT = 256
#: First bytes of lists and maps.
_CONTAINERS = bytes([*range(0x80, 0xA0), 0xDC, 0xDD, 0xDE, 0xDF])
#: Numbers, booleans and nil, as many as follow each other.
_SCALARS = re.compile(
    rb"(?:[\x00-\x7f\xc0\xc2\xc3\xe0-\xff]++|[\xcc\xd0].|[\xcd\xd1]..|[\xca\xce\xd2].{4}|[\xcb\xcf\xd3].{8})++",
    re.DOTALL,
)
#: Texts, bytes and extensions: bytes of the length behind the first byte, and of the type behind that.
_LENGTHS = {
    0xD9: (1, 0),
    0xDA: (2, 0),
    0xDB: (4, 0),
    0xC4: (1, 0),
    0xC5: (2, 0),
    0xC6: (4, 0),
    0xC7: (1, 1),
    0xC8: (2, 1),
    0xC9: (4, 1),
}
#: Bytes of what has a fixed size other than 1: headers of lists and maps, extensions, numbers. 0: no value at all.
_FIXED = {
    0xDC: 3,
    0xDD: 5,
    0xDE: 3,
    0xDF: 5,
    0xD4: 3,
    0xD5: 4,
    0xD6: 6,
    0xD7: 10,
    0xD8: 18,
    0xCC: 2,
    0xCD: 3,
    0xCE: 5,
    0xCF: 9,
    0xD0: 2,
    0xD1: 3,
    0xD2: 5,
    0xD3: 9,
    0xCA: 5,
    0xCB: 9,
    0xC1: 0,
}


def require_few_containers(body: Any) -> None:
    """DecodeError for a body of more than `MAX_CONTAINERS` lists and maps; a broken one is the decoder's to refuse."""
    if len(body) <= MAX_CONTAINERS:
        return
    view = memoryview(body)
    if _is_short(view) or _possible(view) <= MAX_CONTAINERS:
        return
    containers, texts = _counted(view)
    if containers > MAX_CONTAINERS or texts > MAX_TEXTS:
        raise DecodeError(
            f"a body holds at most {MAX_CONTAINERS} lists and maps, and where that is close {MAX_TEXTS} texts and "
            "arrays: send many numbers as one array",
        )


def _is_short(view: memoryview) -> bool:
    """Whether it has few parts, however large: the most frequent kind of large body, and the quickest to tell."""
    at = 0
    for _ in range(_SHORT):
        if at >= len(view):
            return True
        step = _step(view, at, view[at])
        if not step:
            return False
        at += step
    return False


def _possible(view: memoryview) -> int:
    """How many there can be, or some number above the bound: those bytes in texts and numbers too that could be one."""
    found = 0
    for at in range(0, len(view), _CHUNK_BYTES):
        chunk = bytes(view[at : at + _CHUNK_BYTES])
        found += len(chunk) - len(chunk.translate(None, _CONTAINERS))
        if found > MAX_CONTAINERS:
            break
    return found


def _counted(view: memoryview) -> tuple[int, int]:
    """How many containers and texts there are, at most one of either more than allowed."""
    containers = texts = at = 0
    while at < len(view) and containers <= MAX_CONTAINERS and texts <= MAX_TEXTS:
        if run := _SCALARS.match(view, at):
            at = run.end()
            continue
        first = view[at]
        step = _step(view, at, first)
        if not step:
            break
        at += step
        if 0x80 <= first <= 0x9F or 0xDC <= first <= 0xDF:
            containers += 1
        else:
            texts += 1
    return containers, texts


def _step(view: memoryview, at: int, first: int) -> int:
    """Bytes of the value at a place, of a list or map those of its header: what it holds comes next. 0 for none."""
    if 0xA0 <= first <= 0xBF:
        return 1 + (first & 0x1F)
    if first in _LENGTHS:
        width, kind = _LENGTHS[first]
        return 1 + width + kind + int.from_bytes(view[at + 1 : at + 1 + width], "big")
    return _FIXED.get(first, 1)
