"""What the operating system is asked about memory: sealed memfds, free memory, the host's name.

`mapping.py` maps the memfds made here, and nothing else in the project maps memory; `segment.py` lays blocks out in
them, `server.py` and `reader.py` pass the descriptors.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

from ..errors import ForgedHandle, PoolExhausted
from .mapping import PAGE_BYTES, Mapping, prefault, take_huge_pages

#: A Linux constant that Python 3.11's fcntl module does not name.
_F_SEAL_FUTURE_WRITE = 0x0010
#: What a reader relies on: the memory can neither shrink under its mapping (SIGBUS) nor be mapped writable by it.
_SIZE_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_SEGMENT_SEALS = _SIZE_SEALS | _F_SEAL_FUTURE_WRITE
#: Memory left to the rest of the machine when a segment is reserved: an allocation error is better than the OOM killer.
_HEADROOM_BYTES = 64 << 20
#: Where the kernel tells what the machine and the control group have.
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
#: There, of version 2 and of version 1: the limit, what is used of it, and of what kinds.
_GROUP_FILES = (
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def create_sealed(size_bytes: int) -> tuple[int, Mapping]:
    """A new memfd and its writable mapping: reserved, pre-faulted, then sealed so that no one else can write to it.

    Raises PoolExhausted when the machine has no memory for it.
    """
    available = available_memory_bytes()
    if size_bytes + _HEADROOM_BYTES > available:
        raise PoolExhausted(
            f"{size_bytes} bytes of shared memory were asked for and the machine has {available} left; "
            "free memory, or lower the pool's budget so that callers wait instead",
        )
    with _new_memfd("tensoryard", size_bytes) as fd:
        os.ftruncate(fd, size_bytes)
        mapping = Mapping(fd, size_bytes, writable=True, populate=False)
        take_huge_pages(fd, mapping)
        _reserve(fd, size_bytes)
        prefault(mapping)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEGMENT_SEALS | fcntl.F_SEAL_SEAL)
    return fd, mapping


def create_table(size_bytes: int) -> tuple[int, Mapping]:
    """A new memfd of fixed size that both sides may write to: a lease table. Raises PoolExhausted."""
    with _new_memfd("tensoryard-leases", size_bytes) as fd:
        _reserve(fd, size_bytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SIZE_SEALS | fcntl.F_SEAL_SEAL)
        mapping = Mapping(fd, size_bytes, writable=True)
    return fd, mapping


def attach(fd: int, *, writable: bool = False) -> Mapping:
    """Map a descriptor that another process handed over; ForgedHandle when it lacks the seals a reader relies on."""
    wanted = _SIZE_SEALS if writable else _SEGMENT_SEALS
    try:
        sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        sealed = 0
    size_bytes = os.fstat(fd).st_size
    if sealed & wanted != wanted or size_bytes < PAGE_BYTES:
        raise ForgedHandle("the descriptor received is not a sealed segment of Tensoryard")
    return Mapping(fd, size_bytes, writable=writable)


@contextlib.contextmanager
def _new_memfd(name: str, size_bytes: int) -> Iterator[int]:
    """A memfd of no size yet; what the system refuses inside is PoolExhausted."""
    try:
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            yield fd
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        raise PoolExhausted(
            f"the system refused {size_bytes} bytes of shared memory ({error.strerror}); free memory, or lower the "
            "pool's budget so that callers wait instead; for too many open files, raise the limit (ulimit -n)",
        ) from error


def _reserve(fd: int, size_bytes: int) -> None:
    """Back every page now, so that a full memory is an error here, not a SIGBUS at a later write."""
    os.posix_fallocate(fd, 0, size_bytes)


def available_memory_bytes() -> int:
    """What the machine, or the control group we run in, can still give."""
    available = _field(_MEMINFO, r"MemAvailable:\s+(\d+)", default=1 << 50) * 1024
    limit, used = _group_limit_and_use()
    return min(available, max(limit - used, 0)) if limit else available


def total_memory_bytes() -> int:
    """The machine's memory, or the control group's limit if that is lower."""
    total = _field(_MEMINFO, r"MemTotal:\s+(\d+)", default=1 << 20) * 1024
    limit, _ = _group_limit_and_use()
    return min(total, limit) if limit else total


def _group_limit_and_use() -> tuple[int, int]:
    """Of the control group we run in, in bytes; (0, 0) where it has no limit."""
    for limit_file, used_file, kinds_file in _GROUP_FILES:
        if limit := _field(_CGROUP / limit_file, r"(\d+)", default=0):
            used = _field(_CGROUP / used_file, r"(\d+)", default=0)
            # The cache of files counts as used there, and is given up when memory is wanted: large models fill it.
            kinds = (rf"\b{kind}_file (\d+)" for kind in ("active", "inactive"))
            return limit, used - sum(_field(_CGROUP / kinds_file, kind, default=0) for kind in kinds)
    return 0, 0


def _field(path: Path, pattern: str, *, default: int) -> int:
    try:
        found = re.search(pattern, path.read_text())
    except OSError:
        return default
    return int(found[1]) if found else default


def host_name() -> str:
    """What identifies this host: handles are good only where they were made.

    16 hex digits of the kernel's boot id and the host's name (containers and namespaces that share a kernel differ in
    the latter); $TENSORYARD_HOST overrides it.
    """
    return os.environ.get("TENSORYARD_HOST") or _kernel_and_name()


@functools.cache  # it is asked for with every request that has its arrays in shared memory
def _kernel_and_name() -> str:
    try:
        boot = _BOOT_ID.read_text()
    except OSError:
        boot = ""
    return hashlib.blake2b(f"{boot}{socket.gethostname()}".encode(), digest_size=8).hexdigest()
