"""UNIX sockets as the links need them: addresses, listening and connecting, and who is at the other end.

`seqpacket_hub.py` and `seqpacket_peer.py` make theirs here. All system calls that are not sending or receiving.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import weakref
from pathlib import Path
from typing import Any, Protocol

from ..errors import ConfigError
from .framing import PACKET_BYTES

SCHEME = "unix://"
#: Asked of the kernel for each direction of a connection, which doubles it and counts its own bookkeeping: some four
#: full packets, or several hundred small ones, may be under way.
_SEND_BUFFER_BYTES = 256 << 10
#: Connections that may wait to be accepted; the kernel lowers it to its own limit.
_BACKLOG = 4096
#: AF_UNIX paths end at 107 bytes; while it begins, a hub's has one more.
_MAX_PATH_BYTES = 106
_PEER_CREDENTIALS = struct.Struct("3i")


def path_of(address: str) -> Path:
    """The path in `unix:///path`; ConfigError for what is none."""
    if not _is_address(address):
        text = f"it is unix:// and an absolute path of at most {_MAX_PATH_BYTES} bytes"
        raise ConfigError(f"{address!r} is no address: {text}")
    return Path(address.removeprefix(SCHEME))


def _is_address(address: object) -> bool:
    if not isinstance(address, str) or not address.startswith(f"{SCHEME}/") or address.endswith("/"):
        return False
    try:
        path = os.fsencode(address.removeprefix(SCHEME))
    except UnicodeEncodeError:
        return False
    return b"\0" not in path and len(path) <= _MAX_PATH_BYTES


def listen(path: Path) -> socket.socket:
    """A listening socket that appears at `path`, with mode 0600, only once it accepts.

    OSError when that cannot be, also where another lives, and where the kernel lets no packet of ours through.

    It is bound under another name and renamed when it listens, so that a socket file which refuses is always dead.
    """
    fresh = path.with_name(f"{path.name}~")
    for old in (path, fresh):
        if os.path.lexists(old) and not _is_dead(old):
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), str(old))
    listener = _socket()
    try:
        _require_room(listener)
        fresh.unlink(missing_ok=True)
        listener.bind(str(fresh))
        fresh.chmod(0o600)
        listener.listen(_BACKLOG)
        fresh.rename(path)
    except BaseException:
        listener.close()
        raise
    return listener


def connect(path: Path, greeting: bytes) -> socket.socket:
    """A connection to the hub at `path` that begins with a greeting; OSError when there is none, or not this user's."""
    sock = _socket()
    try:
        sock.connect(str(path))
        _require_same_user(sock, path)
        sock.send(greeting, socket.MSG_NOSIGNAL)
        return prepared(sock)
    except BaseException:
        sock.close()
        raise


def prepared(sock: socket.socket) -> socket.socket:
    """A connected socket that waits for nothing and has room for what is under way."""
    sock.setblocking(False)
    _set_room(sock)
    return sock


def _set_room(sock: socket.socket) -> int:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)


def _require_room(sock: socket.socket) -> None:
    """The kernel gives every socket of a host as much room as this one."""
    room = _set_room(sock)
    if room < 2 * PACKET_BYTES:
        raise OSError(errno.ENOBUFS, f"sockets may send {room} bytes at once; net.core.wmem_max must be {PACKET_BYTES}")


def is_same_user(sock: socket.socket) -> bool:
    """Whether the process at the other end is one of this user's; the kernel says so."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
    _pid, uid, _gid = _PEER_CREDENTIALS.unpack(raw)
    return bool(uid == os.geteuid())


def _require_same_user(sock: socket.socket, path: Path) -> None:
    if not is_same_user(sock):
        raise PermissionError(f"who listens at {path} is another user")


def _socket() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    sock.setblocking(False)
    return sock


def _is_dead(path: Path) -> bool:
    """Whether a path is that of a socket which no process has.

    A probe of another type cannot connect, and so disturbs no live one: the kernel answers "wrong type" when one is
    there, "refused" when none is.
    """
    if not path.is_socket():
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(str(path))
        except OSError as error:
            return error.errno in (errno.ECONNREFUSED, errno.ENOENT)
    return False


class Abandonable(Protocol):
    """Something with sockets."""

    def abandon(self) -> None:
        """In a forked child: close our copies of them, without touching what they share with the parent."""


#: Links of this process, for the fork handler.
_links: weakref.WeakSet[Any] = weakref.WeakSet()


def abandon_in_children(link: Abandonable) -> None:
    """See that a forked child keeps no copy of a link's sockets.

    With one, it could speak in its parent's name, and nobody would see the parent's end.
    """
    _links.add(link)


def _after_fork_in_child() -> None:
    for link in list(_links):
        with contextlib.suppress(OSError):
            link.abandon()


os.register_at_fork(after_in_child=_after_fork_in_child)
