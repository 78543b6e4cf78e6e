"""Mapped memory: where a memfd lies in this process, in pages of which size, and arrays in it.

`os_memory.py` makes and checks the memfds. Python's own mmap cannot say where a mapping is to lie, and holds a
descriptor for each, so the calls are made to the C library.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ForgedHandle

PAGE_BYTES = mmap.PAGESIZE
#: A huge page: where offset in the memfd and address agree modulo this, one entry of the page table maps so much.
HUGE_PAGE_BYTES = 2 << 20
#: Linux constants that Python 3.11's mmap module does not name.
_PROT_NONE = 0
_MADV_POPULATE_WRITE = 23
_MADV_COLLAPSE = 25
_MAP_FIXED = 0x10
_MAP_FAILED = ctypes.c_void_p(-1).value
#: A huge page that takes the kernel longer to find is the last that is asked for: memory is too much in pieces.
_PATIENCE_S = 0.02

#: Keeps the interpreter's lock: who lets go of it for each short call waits 5 ms each time for a thread that computes.
_libc = ctypes.PyDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.posix_fallocate.argtypes = (ctypes.c_int, ctypes.c_long, ctypes.c_long)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class _Pages:
    """Mapped pages; unmapped when this is gone."""

    __slots__ = ("address", "size_bytes")

    def __init__(self, address: int, size_bytes: int) -> None:
        self.address = address
        self.size_bytes = size_bytes

    def __del__(self, unmap: Callable[[int, int], int] = _libc.munmap) -> None:
        unmap(self.address, self.size_bytes)


class Mapping:
    """One mapped memfd. Arrays made by `bytes_at` keep it mapped; it is unmapped when the last of them is gone.

    With `populate` every page that the memfd has is entered into our page table now, and no access faults later.
    Raises OSError.
    """

    __slots__ = ("__weakref__", "_pages", "address", "size_bytes", "writable")

    def __init__(self, fd: int, size_bytes: int, *, writable: bool, populate: bool = True) -> None:
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        flags = mmap.MAP_SHARED | (mmap.MAP_POPULATE if populate else 0)
        self._pages = _mapped(fd, size_bytes, protection, flags)
        self.size_bytes = size_bytes
        self.writable = writable
        self.address: int = self._pages.address

    def words(self, count: int) -> npt.NDArray[np.uint64]:
        """The first `count` 8-byte words as an array."""
        return self.bytes_at(0, 8 * count).view(np.uint64)

    def bytes_at(self, offset: int, size_bytes: int, owner: Any = None) -> npt.NDArray[np.uint8]:
        """`size_bytes` bytes from `offset`, as an array whose life keeps the mapping, and `owner`, alive."""
        return np.asarray(_Span(self, offset, size_bytes, owner))


class _Span:
    """A stretch of a mapping, presented to numpy by address; numpy keeps it as the base of every view made from it."""

    __slots__ = ("__array_interface__", "__weakref__", "_mapping", "_owner")

    def __init__(self, mapping: Mapping, offset: int, size_bytes: int, owner: Any) -> None:
        if offset < 0 or size_bytes < 0 or offset + size_bytes > mapping.size_bytes:
            raise ForgedHandle(f"bytes {offset}..{offset + size_bytes} lie outside a segment of {mapping.size_bytes}")
        self._mapping = mapping
        self._owner = owner
        self.__array_interface__ = {
            "version": 3,
            "shape": (size_bytes,),
            "typestr": "|u1",
            "data": (mapping.address + offset, not mapping.writable),
        }


def _mapped(fd: int, size_bytes: int, protection: int, flags: int) -> _Pages:
    """A memfd's pages, at an address that huge pages can begin at if it has room for one."""
    if size_bytes < HUGE_PAGE_BYTES:
        return _Pages(_mmap(None, size_bytes, protection, flags, fd), size_bytes)
    anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    begin = _mmap(None, size_bytes + HUGE_PAGE_BYTES, _PROT_NONE, anonymous, -1)
    address = -(-begin // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
    end = address + -(-size_bytes // PAGE_BYTES) * PAGE_BYTES
    around = [(begin, address), (end, begin + size_bytes + HUGE_PAGE_BYTES)]
    try:
        _mmap(address, size_bytes, protection, flags | _MAP_FIXED, fd)
    except OSError:
        around = [(begin, begin + size_bytes + HUGE_PAGE_BYTES)]
        raise
    finally:
        for first, last in around:
            if last > first:
                _libc.munmap(first, last - first)
    return _Pages(address, size_bytes)


def _mmap(address: int | None, size_bytes: int, protection: int, flags: int, fd: int) -> int:
    found: int | None = _libc.mmap(address, size_bytes, protection, flags, fd, 0)
    if found is None or found == _MAP_FAILED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return found


def take_huge_pages(fd: int, mapping: Mapping) -> None:
    """Fill a memfd that has no pages yet with huge ones, as far as it has room for whole ones and the kernel has them.

    Takes not a byte more than without. What is left, the caller has to fill.
    """
    for offset in range(0, mapping.size_bytes - HUGE_PAGE_BYTES + 1, HUGE_PAGE_BYTES):
        began = time.monotonic()
        if _libc.posix_fallocate(fd, offset, PAGE_BYTES):  # the kernel makes no huge page where there is no small one
            return
        if _libc.madvise(mapping.address + offset, HUGE_PAGE_BYTES, _MADV_COLLAPSE):
            return  # before Linux 6.1, forbidden here, or none left
        if time.monotonic() - began > _PATIENCE_S:
            return


def prefault(mapping: Mapping) -> None:
    """Enter every page into our page table, so that the first write runs at memory speed (docs/performance.md)."""
    if _libc.madvise(mapping.address, mapping.size_bytes, _MADV_POPULATE_WRITE):  # before Linux 5.14
        mapping.bytes_at(0, mapping.size_bytes)[::PAGE_BYTES] = 0
