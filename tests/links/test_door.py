"""A hub's door: lets in who may come in, turns away who may not, and leaves a clean doorstep."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tensoryard.errors import ConfigError
from tensoryard.links.door import Door
from tensoryard.links.unix_socket import connect

from ..baseline import Baseline
from ..scripted import DEADLINE_S, fresh_address


@pytest.fixture
def address():
    return fresh_address()


@pytest.fixture
def door(address):
    door = Door(address)
    yield door
    door.close()


def path_of(address):
    return Path(address.removeprefix("unix://"))


def test_it_lets_in_all_who_wait(address, door):
    """Everybody who has connected is let in, some at a time; with nobody outside, nobody comes."""
    outside = [connect(path_of(address), b"%d" % number) for number in range(100)]
    inside = [*door.let_in(), *door.let_in()]
    try:
        assert [sock.recv(10) for sock in inside] == [b"%d" % number for number in range(100)]
        assert door.let_in() == []
    finally:
        for sock in outside + inside:
            sock.close()


def test_an_address_that_is_taken_is_named(address, door):
    """A door where there is one already is a ConfigError that says where and why, and leaves nothing open."""
    before = Baseline()
    with pytest.raises(ConfigError, match=f"cannot listen on {address}.*in use"):
        Door(address)
    with pytest.raises(ConfigError, match=r"cannot listen on unix:///no/such/folder/x.*No such file"):
        Door("unix:///no/such/folder/x")
    with pytest.raises(ConfigError, match="is no address"):
        Door("unix://relative")
    before.assert_nothing_new()


def test_it_takes_its_file_away(address):
    """After `close`, again harmless, no file is there; a successor's file stays."""
    door = Door(address)
    door.close()
    door.close()
    assert not path_of(address).exists()
    first = Door(address)
    path_of(address).unlink()
    second = Door(address)
    first.close()
    assert path_of(address).exists()
    second.close()


_CROWDED = """
import os, resource, sys
from pathlib import Path
from tensoryard.links.door import Door
from tensoryard.links.unix_socket import connect
address = sys.argv[1]
door = Door(address)
outside = [connect(Path(address.removeprefix("unix://")), b"x") for _ in range(3)]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
hold = []
try:
    while True:
        hold.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
for _ in range(3):
    assert door.let_in() == []
for sock in outside:
    sock.setblocking(True)
    try:
        print(sock.recv(10), flush=True)
    except ConnectionResetError:  # with its greeting unread
        print("turned away", flush=True)
    sock.close()
again = connect(Path(address.removeprefix("unix://")), b"y")
for fd in hold[:5]:
    os.close(fd)
(sock,) = door.let_in()
print(sock.recv(10).decode())
"""


@pytest.mark.process
def test_without_descriptors_peers_are_turned_away(address):
    """Where no file can be opened any more, who waits outside is refused rather than left; later ones come in."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", _CROWDED, address], capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert done.stdout.split("\n")[:4] == ["turned away"] * 3 + ["y"], done.stderr
    assert "may open no more files" in done.stderr


_STRANGER = """
import os, socket, sys
from tensoryard.links.unix_socket import connect
os.setuid(65534)
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.connect(sys.argv[1])
print("connected", flush=True)
print(sock.recv(10), flush=True)
"""


@pytest.mark.process
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may be another user")
def test_w_43_another_user_is_turned_away(caplog):
    """Though the file lets it connect, a process of another user is not let in, and finds its connection ended."""
    folder = Path("/tmp") / f"ty-{os.urandom(4).hex()}"
    folder.mkdir()
    door = Door(f"unix://{folder}/s")
    try:
        folder.chmod(0o755)
        (folder / "s").chmod(0o666)
        command = [sys.executable, "-P", "-c", _STRANGER, f"{folder}/s"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout.readline() == b"connected\n"
            assert door.let_in() == []
            assert process.stdout.readline() == b"b''\n"
            assert process.wait(DEADLINE_S) == 0
        assert "it belongs to another user" in caplog.text
    finally:
        door.close()
        folder.rmdir()
