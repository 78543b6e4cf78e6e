"""Addresses, listening and connecting: what is none is refused, what lives is left alone, what is dead is replaced."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tensoryard.errors import ConfigError
from tensoryard.links.unix_socket import connect, is_same_user, listen, path_of, prepared

from ..baseline import Baseline
from ..scripted import DEADLINE_S


@pytest.fixture
def path():
    return Path(os.environ["TENSORYARD_RUNTIME_DIR"]) / f"s{os.urandom(4).hex()}"


@pytest.mark.parametrize("address", ["unix:///a", "unix:///" + "x" * 105, "unix:///with space/ä"])
def test_an_absolute_path_is_an_address(address):
    """`unix://` and an absolute path of at most 106 bytes."""
    assert path_of(address) == Path(address.removeprefix("unix://"))


NONE = ["", "unix", "unix://", "unix:///", "unix://a", "unix:///a/", "ipc:///a", "unix:///" + "x" * 106, "unix:///a\0b"]


@pytest.mark.parametrize("address", [*NONE, "unix:///\ud800", "/a", 7, None, b"unix:///a"])
def test_anything_else_is_none(address):
    """What is no such address is a ConfigError that quotes it."""
    with pytest.raises(ConfigError, match="is no address") as raised:
        path_of(address)
    assert repr(address) in str(raised.value)


def test_a_socket_is_for_its_user_alone(path):
    """The file has mode 0600, under its own name and no other."""
    with listen(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.is_socket()
        assert [name for name in os.listdir(path.parent) if name.startswith(path.name)] == [path.name]


def test_one_that_lives_is_left_alone(path):
    """Where somebody listens, or is about to, nobody else can; the first goes on."""
    with listen(path) as first:
        with pytest.raises(OSError, match="in use"):
            listen(path)
        connect(path, b"hello").close()
        first.accept()[0].close()
    path.unlink()
    fresh = path.with_name(f"{path.name}~")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as beginning:
        beginning.bind(str(fresh))
        with pytest.raises(OSError, match="in use"):
            listen(path)
    fresh.unlink()


@pytest.mark.case(23)
def test_one_that_is_dead_is_replaced(path):
    """The files of processes that were killed, while they listened or before, are no hindrance."""
    for name in (path, path.with_name(f"{path.name}~")):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
            dead.bind(str(name))
        assert name.exists()
    with listen(path), connect(path, b"hello") as sock:
        assert is_same_user(sock)


def test_other_files_are_not_touched(path):
    """Where something else than a socket is, nobody listens, and it stays."""
    path.write_text("notes")
    before = Baseline()
    with pytest.raises(OSError, match="in use"):
        listen(path)
    assert path.read_text() == "notes"
    before.assert_nothing_new()
    path.unlink()


def test_too_little_room_is_said_at_once(path, monkeypatch):
    """On a host whose sockets cannot send one packet, nobody listens, and the error says what to set."""
    monkeypatch.setattr("tensoryard.links.unix_socket._SEND_BUFFER_BYTES", 10_000)
    before = Baseline()
    with pytest.raises(OSError, match=r"sockets may send 20000 bytes at once; net\.core\.wmem_max must be 131072"):
        listen(path)
    before.assert_nothing_new()
    assert not path.exists()


def test_nobody_there_is_an_error_at_once(path):
    """No file, a dead file, or a socket of another kind: OSError, and nothing is left open."""
    before = Baseline()
    with pytest.raises(FileNotFoundError):
        connect(path, b"hello")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(path))
    with pytest.raises(ConnectionRefusedError):
        connect(path, b"hello")
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(OSError, match="wrong type"):
            connect(path, b"hello")
    path.unlink()
    before.assert_nothing_new()


def test_a_connection_begins_with_its_greeting(path):
    """What `connect` is given is the first packet."""
    with listen(path) as listener, connect(path, b"hello") as sock:
        there, _ = listener.accept()
        with prepared(there):
            assert there.recv(100) == b"hello"
            assert not sock.getblocking()
            assert not there.getblocking()


_STRANGER = """
import os, socket, sys
from pathlib import Path
from tensoryard.links.unix_socket import connect, listen
os.setuid(65534)
if sys.argv[1] == "connect":
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(sys.argv[2])
        print("connected", flush=True)
        sys.stdin.read()
else:
    with listen(Path(sys.argv[2])):
        Path(sys.argv[2]).chmod(0o666)
        print("listening", flush=True)
        sys.stdin.read()
"""


@pytest.mark.process
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may be another user")
@pytest.mark.parametrize("side", ["connect", "listen"])
def test_w_43_another_user_is_known_for_one(side):
    """The kernel tells each side who the other is: neither talks to another user, whatever the file allows."""
    folder = Path("/tmp") / f"ty-{os.urandom(4).hex()}"
    folder.mkdir()
    folder.chmod(0o777)
    path = folder / "s"
    command = [sys.executable, "-P", "-c", _STRANGER, side, str(path)]
    listener = listen(path) if side == "connect" else None
    try:
        if listener:
            path.chmod(0o666)
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout.readline()
            if listener:
                sock, _ = listener.accept()
                with sock:
                    assert not is_same_user(sock)
            else:
                with pytest.raises(PermissionError, match="another user"):
                    connect(path, b"hello")
            process.communicate(timeout=DEADLINE_S)
    finally:
        if listener:
            listener.close()
        path.unlink(missing_ok=True)
        folder.rmdir()
