"""The connection file: one coordinator per name, found while it lives, known for dead when it is."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import subprocess
import sys
import threading

import msgspec
import pytest

from tensoryard.coordinator.connection import (
    Connection,
    ConnectionFile,
    check_name,
    connections,
    read_connection,
    sweep,
)
from tensoryard.errors import ConfigError, NotConnected
from tensoryard.shm import runtime_dir

from ..baseline import Baseline
from ..scripted import DEADLINE_S


@pytest.fixture
def name():
    return f"n-{secrets.token_hex(4)}"


@pytest.fixture
def claim():
    files = []

    def make(name):
        files.append(ConnectionFile(name))
        return files[-1]

    yield make
    for file in files:
        file.close()


def files_of(name):
    return sorted(path.name for path in runtime_dir().iterdir() if path.stem == name)


@contextlib.contextmanager
def holder(name):
    """Another process that holds a name and has published an address; it is killed at the end."""
    code = """
import sys
from tensoryard.coordinator.connection import ConnectionFile
file = ConnectionFile(sys.argv[1])
file.publish(file.hub_address, "1.0")
print("published", flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-P", "-c", code, name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"published\n"
            yield process
        finally:
            process.kill()
            process.communicate(timeout=DEADLINE_S)


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["default", "a", "A-b_9", "x" * 24, "7"])
def test_names_of_letters_and_digits_are_taken(name):
    """1 to 24 letters, digits, `-` and `_`, beginning with a letter or digit."""
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "x" * 25, "-a", "_a", "a/b", "../a", "a.b", "a b", "ä", "a\n", "a\0", "."])
def test_other_names_are_refused(name):
    """What could leave the folder, be too long for a socket, or confuse a shell, is a ConfigError that quotes it."""
    for use in (check_name, ConnectionFile, read_connection):
        with pytest.raises(ConfigError, match="a cluster's name is"):
            use(name)


# -- claim and publish ------------------------------------------------------------------------------------------------


def test_a_published_address_is_found(claim, name):
    """What the coordinator publishes, anybody on this host reads: name, address, process and version."""
    claim(name).publish("ipc:///somewhere", "1.2.3")
    expected = Connection(name=name, address="ipc:///somewhere", pid=os.getpid(), version="1.2.3")
    assert read_connection(name) == expected
    assert expected in connections()


def test_a_claim_alone_is_no_connection(claim, name):
    """Between claiming its name and publishing, a coordinator is not found."""
    claim(name)
    with pytest.raises(NotConnected, match=f"no coordinator named '{name}' runs"):
        read_connection(name)


def test_a_name_is_claimed_once(claim, name):
    """A second coordinator of a name is a ConfigError with advice, and harms the first in nothing."""
    claim(name).publish("ipc:///first", "1")
    before = Baseline()
    with pytest.raises(ConfigError, match=f"already runs on this host; stop it .`tensoryard down --name {name}`"):
        ConnectionFile(name)
    before.assert_nothing_new()
    assert read_connection(name).address == "ipc:///first"


def test_a_name_is_free_again_after_close(claim, name):
    """After `close`, again harmless, no file is left, nobody is found, and the name can be claimed anew."""
    before = Baseline()
    file = claim(name)
    file.publish("ipc:///first", "1")
    file.close()
    file.close()
    before.assert_nothing_new()
    assert files_of(name) == []
    with pytest.raises(NotConnected):
        read_connection(name)
    claim(name).publish("ipc:///second", "1")
    file.close()  # the first no longer owns what is the second's
    assert read_connection(name).address == "ipc:///second"


def test_the_hubs_address_fits_a_socket(claim):
    """The longest name gives an address within the 107 bytes of a UNIX socket's path."""
    address = claim("x" * 24).hub_address
    assert address.startswith("unix:///")
    assert len(address.removeprefix("unix://").encode()) <= 106  # one more while it is being made


def test_a_reader_sees_a_whole_file_or_none(claim, name):
    """While an address is published 300 times, long and short, no reader ever sees a part of one."""
    file = claim(name)
    addresses = {"ipc:///short", "ipc:///" + "long" * 2000}
    file.publish("ipc:///short", "1")
    over = threading.Event()

    def publish():
        for _ in range(150):
            for address in addresses:
                file.publish(address, "1")
        over.set()

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        while not over.is_set():
            assert read_connection(name).address in addresses
    finally:
        thread.join(DEADLINE_S)


def test_a_lock_on_a_file_that_was_removed_is_none(claim, name, monkeypatch):
    """When the last holder removes the lock file between our opening and our locking it, we lock the next one."""
    path = runtime_dir() / f"{name}.lock"
    lock = fcntl.flock
    removed = []

    def remove_first(fd, operation):
        # Locks that other clusters have left are swept on the way.
        if not removed and path.exists() and os.path.samestat(os.fstat(fd), path.stat()):
            path.unlink()
            removed.append(fd)
        return lock(fd, operation)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", remove_first)
        claim(name)
    assert removed
    with pytest.raises(ConfigError, match="already runs"):
        ConnectionFile(name)


def test_only_one_of_many_gets_a_name(name):
    """Of 8 threads that claim a name at once, and again when it is given back, never two hold it."""
    held, most, won = [], [], []

    def claim_and_release():
        for _ in range(5):
            try:
                file = ConnectionFile(name)
            except ConfigError:
                continue
            held.append(1)
            most.append(len(held))
            held.pop()
            won.append(1)
            file.close()

    threads = [threading.Thread(target=claim_and_release) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert won
    assert max(most) == 1
    assert files_of(name) == []


# -- the dead ---------------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_a_file_of_the_dead_is_known_for_what_it_is(name):
    """After SIGKILL the file is still there, and yet nobody is found."""
    with holder(name) as process:
        assert read_connection(name).pid == process.pid
        process.kill()
        process.wait(DEADLINE_S)
        assert f"{name}.json" in files_of(name)
        with pytest.raises(NotConnected, match="no coordinator named"):
            read_connection(name)
        assert name not in [found.name for found in connections()]


@pytest.mark.process
def test_a_dead_coordinators_name_can_be_claimed(claim, name):
    """A name whose owner was killed is free; the successor's address is found, not the dead one's."""
    with holder(name) as process:
        process.kill()
        process.wait(DEADLINE_S)
        claim(name).publish("ipc:///successor", "1")
        assert read_connection(name) == Connection(name=name, address="ipc:///successor", pid=os.getpid(), version="1")


@pytest.mark.process
def test_the_dead_default_does_not_confuse_the_hint(claim, name):
    """With a dead coordinator named default, the error says so and names those that run."""
    claim(name).publish("ipc:///alive", "1")
    with holder("default") as process:
        process.kill()
        process.wait(DEADLINE_S)
        with pytest.raises(NotConnected, match=f"running are .*'{name}'") as raised:
            read_connection()
    assert "tensoryard up" in str(raised.value)
    assert sweep(runtime_dir()) == ["default"]


@pytest.mark.case(13)
@pytest.mark.process
def test_the_next_coordinator_sweeps_up(claim, name):
    """What killed coordinators left is removed when another starts; the living keep theirs."""
    with holder(f"{name}-dead") as dead, holder(f"{name}-live"):
        (runtime_dir() / f"{name}-dead.hub").touch()
        dead.kill()
        dead.wait(DEADLINE_S)
        before = files_of(f"{name}-live")
        claim(name)
        assert files_of(f"{name}-dead") == []
        assert files_of(f"{name}-live") == before
        assert read_connection(f"{name}-live").version == "1.0"


def test_a_name_that_is_looked_at_can_be_claimed(claim, name):
    """A reader that holds the lock for a moment does not make a name seem taken."""
    path = runtime_dir() / f"{name}.lock"
    fd = os.open(path, os.O_RDONLY | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_SH)
    looked = threading.Timer(0.1, os.close, [fd])
    looked.start()
    try:
        claim(name).publish("ipc:///x", "1")
        assert read_connection(name).address == "ipc:///x"
    finally:
        looked.join(DEADLINE_S)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe\x00", b"[]", b'{"name": 1}', msgspec.json.encode({"name": "n", "address": "a"})],
    ids=["empty", "cut", "no text", "a list", "another type", "incomplete"],
)
def test_a_file_that_is_none_is_no_connection(claim, name, content):
    """A connection file with anything else in it is as good as none."""
    claim(name)
    (runtime_dir() / f"{name}.json").write_bytes(content)
    with pytest.raises(NotConnected):
        read_connection(name)
    assert name not in [found.name for found in connections()]


def test_foreign_files_are_no_connections(claim, name):
    """A file whose name cannot be a cluster's is passed over."""
    claim(name).publish("ipc:///x", "1")
    strange = runtime_dir() / "not a name.json"
    strange.write_bytes(b"{}")
    try:
        assert name in [found.name for found in connections()]
    finally:
        strange.unlink()
