"""Loaded by every Python that `allocations.py` starts: counts its allocations and collections into a file of its own.

The file, named by the process's number, holds five numbers of 64 bits: blocks taken from Python's allocators, their
bytes, blocks given back, garbage collections, and nanoseconds that they took.
"""

import ctypes
import gc
import mmap
import os
import time


def _probe(folder: str, library: str) -> None:
    file = os.open(f"{folder}/{os.getpid()}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.ftruncate(file, mmap.PAGESIZE)
    page = mmap.mmap(file, mmap.PAGESIZE)
    numbers = (ctypes.c_uint64 * 5).from_buffer(page)
    began = 0

    def collected(phase: str, _info: dict) -> None:
        nonlocal began
        if phase == "start":
            began = time.perf_counter_ns()
        else:
            numbers[3] += 1
            numbers[4] += time.perf_counter_ns() - began

    gc.callbacks.append(collected)
    ctypes.PyDLL(library).count_into(numbers)
    globals()["_kept"] = page, numbers


if "TYBENCH_PROBE" in os.environ:
    _probe(*os.environ["TYBENCH_PROBE"].split(":"))
