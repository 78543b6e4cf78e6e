"""The connection file: how processes on this host find a coordinator without being told an address.

Written by `process.py` into the runtime folder, read by clients and the CLI. The coordinator holds a lock on a file
beside it for as long as it lives, so a file left by a dead coordinator is known for what it is.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ..errors import ConfigError, NotConnected
from ..shm import runtime_dir

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,23}")
#: A reader holds the lock for microseconds while it looks; a starting coordinator tries again for this long.
_LOCK_PATIENCE_S = 0.5


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """Where a running coordinator is."""

    name: str
    address: str
    pid: int
    version: str


def check_name(name: str) -> str:
    """The name of a cluster: at most 24 letters, digits, `-` and `_`; ConfigError otherwise."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"a cluster's name is 1 to 24 letters, digits, '-' and '_', not {name!r}")
    return name


class ConnectionFile:
    """Claims a cluster's name on this host, and tells others the address once there is one."""

    def __init__(self, name: str) -> None:
        self.name = check_name(name)
        folder = runtime_dir()
        sweep(folder)
        self._path = folder / f"{name}.json"
        self._lock_fd = _claim(folder / f"{name}.lock", _LOCK_PATIENCE_S)
        if self._lock_fd < 0:
            raise ConfigError(
                f"a coordinator named {name!r} already runs on this host; stop it (`tensoryard down --name {name}`) "
                "or choose another name",
            )

    @property
    def hub_address(self) -> str:
        """The address in the runtime folder that goes with the name."""
        return f"unix://{self._path.with_suffix('.hub')}"

    def publish(self, address: str, version: str) -> None:
        """Write the file, whole or not at all."""
        connection = Connection(name=self.name, address=address, pid=os.getpid(), version=version)
        fresh = self._path.with_suffix(".json.new")
        fresh.write_bytes(msgspec.json.encode(connection))
        fresh.replace(self._path)

    def close(self) -> None:
        """Take the files away and let go of the name; again is harmless."""
        if self._lock_fd >= 0:
            _remove(self._path)
            os.close(self._lock_fd)
            self._lock_fd = -1


def sweep(folder: Path) -> list[str]:
    """Remove what dead coordinators left behind; returns their names."""
    removed = []
    for lock in sorted(folder.glob("*.lock")):
        fd = _claim(lock, 0.0)
        if fd >= 0:
            _remove(lock)
            os.close(fd)
            removed.append(lock.stem)
    return removed


def _remove(path: Path) -> None:
    """The files that go with a name, the lock last. Only while its lock is held."""
    for suffix in (".json", ".json.new", ".hub", ".hub~", ".lock"):
        path.with_suffix(suffix).unlink(missing_ok=True)


def _claim(path: Path, patience_s: float) -> int:
    """A descriptor that holds the lock; -1 when somebody else holds it.

    A lock file may be removed by its last holder between our opening and our locking it: then the lock is on a file
    that nobody else will see, and we begin again.
    """
    give_up = time.monotonic() + patience_s
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(fd), path.stat()):
                return fd
        except BlockingIOError:
            if time.monotonic() >= give_up:
                os.close(fd)
                return -1
            time.sleep(0.02)
        except FileNotFoundError:
            pass
        os.close(fd)


def read_connection(name: str = "default") -> Connection:
    """The running coordinator of that name; NotConnected when there is none."""
    connection = _live(check_name(name))
    if connection is None:
        raise NotConnected(_none_text(name))
    return connection


def reachable(addresses: Sequence[str]) -> str:
    """Of a coordinator's addresses the one for this process: the UNIX socket on its host, else the first of a network.

    Where there is neither, the first: whoever connects to it will wait, or be told.
    """
    for address in addresses:
        if not address.startswith("unix://") or Path(address.removeprefix("unix://")).exists():
            return address
    return addresses[0]


def read_address_file(path: str | Path) -> str:
    """The address for this process in a file with one address a line, as `tensoryard up --address-file` writes it."""
    try:
        addresses = Path(path).read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise NotConnected(f"the address file {path} cannot be read: {error}") from error
    if not addresses:
        raise NotConnected(f"the address file {path} is empty")
    return reachable(addresses)


def connections() -> list[Connection]:
    """Every coordinator that runs on this host under this user."""
    found = (_live(path.stem) for path in sorted(runtime_dir().glob("*.json")))
    return [connection for connection in found if connection is not None]


def _live(name: str) -> Connection | None:
    """What the file of a name says, if its coordinator lives."""
    folder = runtime_dir()
    try:
        connection = msgspec.json.decode((folder / f"{name}.json").read_bytes(), type=Connection)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    return connection if _is_locked(folder / f"{name}.lock") else None


def _none_text(name: str) -> str:
    others = [repr(connection.name) for connection in connections()]
    hint = f"; running are {', '.join(others)}" if others else ""
    return (
        f"no coordinator named {name!r} runs on this host{hint}; start one with `tensoryard up FILE`, "
        "or give an address (or set TENSORYARD_ADDRESS)"
    )


def _is_locked(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
