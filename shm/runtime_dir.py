"""The private folder in which the processes of one user on one host find each other's sockets.

`server.py` puts each pool's socket there, the coordinator its connection file; memory itself has no name anywhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import time
from pathlib import Path

from ..errors import ConfigError

#: AF_UNIX paths end at 107 bytes; the longest name we add is "pool-" + 16 + ".sock.new".
_MAX_DIR_BYTES = 107 - 32
#: How long a socket may take from its file to its name; one that is older and dead was left behind.
_START_S = 10.0


def runtime_dir() -> Path:
    """$TENSORYARD_RUNTIME_DIR, else $XDG_RUNTIME_DIR/tensoryard, else /tmp/tensoryard-UID; made with mode 0700.

    Raises ConfigError when it belongs to somebody else, is open to others, or is too long for a socket's path.
    """
    path = _chosen_path()
    if len(os.fsencode(path)) > _MAX_DIR_BYTES:
        raise ConfigError(f"{path} is too long for UNIX sockets; set TENSORYARD_RUNTIME_DIR to a shorter folder")
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise ConfigError(f"{path} cannot be made ({error.strerror}); set TENSORYARD_RUNTIME_DIR") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise ConfigError(
            f"{path} must be a folder of user {os.geteuid()} with mode 0700; "
            "remove it, or set TENSORYARD_RUNTIME_DIR to another folder",
        )
    return path


def _chosen_path() -> Path:
    if own := os.environ.get("TENSORYARD_RUNTIME_DIR"):
        return Path(own).absolute()
    if xdg := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(xdg) / "tensoryard"
    return Path(f"/tmp/tensoryard-{os.geteuid()}")  # noqa: S108 - mode and owner are checked


def listen(path: Path) -> socket.socket:
    """A listening SOCK_SEQPACKET socket that appears at `path` only once it accepts.

    It is bound under another name and renamed when it listens, so that a socket file which refuses is always dead.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    fresh = path.with_name(f"{path.name}.new")
    try:
        listener.bind(str(fresh))
        listener.listen(128)
        fresh.rename(path)
    except BaseException:
        listener.close()
        raise
    return listener


def sweep(folder: Path) -> list[Path]:
    """Remove the sockets that dead processes left behind; returns what was removed."""
    removed = []
    for path in folder.glob("pool-*.sock*"):
        with contextlib.suppress(FileNotFoundError):  # somebody else swept it, or it has just got its name
            if is_dead(path) and (path.suffix == ".sock" or time.time() - path.lstat().st_mtime > _START_S):
                path.unlink()
                removed.append(path)
    return removed


def is_dead(path: Path) -> bool:
    """Whether no process has the socket.

    A probe of another type cannot connect, and so disturbs no live one: the kernel answers "wrong type" when one is
    there, "refused" when none is.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(str(path))
        except OSError as error:
            return error.errno == errno.ECONNREFUSED
    return False
