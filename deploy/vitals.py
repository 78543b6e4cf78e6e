"""What /proc tells of one process: whether it is the one that is meant, and what it has open and mapped.

Read by `shm_report.py` for people and by the commands of `chaos`, which compare before with after. Every function
answers for a process that is gone, or that may not be looked at, with an empty value; none raises.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
#: A segment of shared memory, or a lease table, as /proc names it among descriptors and mappings.
_SEGMENT = re.compile(r"/memfd:tensoryard(-leases)? \(deleted\)$")
_MAX_COMMAND_CHARS = 60

_Found = TypeVar("_Found")


@dataclass(frozen=True, kw_only=True)
class Vitals:
    """One moment of a process. `memory_descriptors` and `memory_mappings` are those of shared memory of ours.

    `private_bytes`: memory of its own, without files and shared memory, which come and go with the load.

    `kinds`: how many of its descriptors are a socket, a pipe, an eventfd, a file, ...
    """

    private_bytes: int
    threads: int
    descriptors: int
    kinds: Mapping[str, int]
    memory_descriptors: int
    mappings: int
    memory_mappings: int


def vitals(pid: int) -> Vitals | None:
    """What a process has now; None when it has ended or belongs to somebody else."""
    return None if state_of(pid) in ("", "Z") else _tried(lambda: _vitals(Path(f"/proc/{pid}")), None)


def _vitals(folder: Path) -> Vitals:
    targets = [_target(entry) for entry in (folder / "fd").iterdir()]
    _, resident, shared, *_ = (folder / "statm").read_text().split()
    maps = (folder / "maps").read_text(errors="replace").splitlines()
    return Vitals(
        private_bytes=(int(resident) - int(shared)) * _PAGE_BYTES,
        threads=int(_stat(folder)[17]),
        descriptors=len(targets),
        kinds=Counter(map(_kind, targets)),
        memory_descriptors=sum(_SEGMENT.search(target) is not None for target in targets),
        mappings=len(maps),
        memory_mappings=sum(_SEGMENT.search(line) is not None for line in maps),
    )


def _target(entry: Path) -> str:
    """What a descriptor is of; "" when it has been closed meanwhile."""
    return _tried(lambda: str(entry.readlink()), "")


def _kind(target: str) -> str:
    """What a descriptor is: socket, pipe, eventfd, ...; whatever has a path is a file."""
    if target.startswith("/"):
        return "shared memory" if _SEGMENT.search(target) else "file"
    return target.removeprefix("anon_inode:").partition(":")[0].strip("[]") or "closed"


def _stat(folder: Path) -> list[str]:
    """The fields of `stat` behind the command's name, which may hold anything: the first is the state."""
    return (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()


def started_ticks(pid: int) -> int:
    """When a process began, in clock ticks since boot: with its id, this names it for ever. 0: it is gone."""
    return _tried(lambda: int(_stat(Path(f"/proc/{pid}"))[19]), 0)


def state_of(pid: int) -> str:
    """The letter that `ps` shows: R, S, D, T (stopped), Z (ended, not yet buried), ...; "" when it is gone."""
    return _tried(lambda: _stat(Path(f"/proc/{pid}"))[0], "")


def user_of(pid: int) -> int:
    """Its user's id; -1 when it is gone."""
    return _tried(lambda: Path(f"/proc/{pid}").stat().st_uid, -1)


def command_of(pid: int) -> str:
    """How it was started, cut to a line's length."""
    words = _tried(lambda: Path(f"/proc/{pid}/cmdline").read_bytes(), b"").decode(errors="replace").split("\0")
    text = " ".join([os.path.basename(words[0]), *words[1:]]).strip()  # noqa: PTH119 - a text, and perhaps no path
    shown = "".join(char if char.isprintable() else " " for char in text)
    return shown if len(shown) <= _MAX_COMMAND_CHARS else f"{shown[: _MAX_COMMAND_CHARS - 3]}..."


def _tried(look: Callable[[], _Found], otherwise: _Found) -> _Found:
    try:
        return look()
    except (OSError, ValueError, IndexError):
        return otherwise
