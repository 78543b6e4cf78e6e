"""`python -m tensoryard.coordinator`: tells where it listens, or why not, and ends when it should."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys

import msgspec
import pytest

from tensoryard.coordinator import read_connection
from tensoryard.errors import NotConnected
from tensoryard.proto import wire
from tensoryard.shm import runtime_dir

from ..scripted import CALM, DEADLINE_S, Peer, Serving, closing

pytestmark = pytest.mark.process

SETTINGS = ["--settings", msgspec.json.encode(CALM).decode()]


@pytest.fixture
def name():
    return f"m-{secrets.token_hex(4)}"


@contextlib.contextmanager
def running(name, *options, environment=None, fds=()):
    """The process, and the line that it wrote to its ready-fd."""
    read, write = os.pipe()
    command = [sys.executable, "-P", "-m", "tensoryard.coordinator", "--name", name, "--ready-fd", str(write), *options]
    with subprocess.Popen(
        command, pass_fds=[write, *fds], env={**os.environ, **(environment or {})}, stderr=subprocess.PIPE
    ) as process:
        os.close(write)
        try:
            with os.fdopen(read) as told:
                yield process, told.read()
        finally:
            process.kill()
            process.communicate(timeout=DEADLINE_S)


def test_it_tells_its_address_when_it_can_be_found(name):
    """One line, "address …", and by then the connection file is there and peers are served."""
    with running(name, *SETTINGS) as (process, line):
        word, address = line.split()
        assert line.endswith("\n")
        assert word == "address"
        assert read_connection(name).address == address
        assert read_connection(name).pid == process.pid
        with closing(Peer(address)) as (peer,):
            assert peer.status().name == name


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_well(name, number):
    """SIGTERM or SIGINT, twice even: goodbye to the peers, exit code 0, no files left, nothing on stderr."""
    with running(name, *SETTINGS) as (process, line), closing(Peer(line.split()[1])) as (peer,):
        process.send_signal(number)
        process.send_signal(number)
        peer.take(wire.Disconnect)
        assert process.wait(DEADLINE_S) == 0
        assert process.stderr.read() == b""
    assert not list(runtime_dir().glob(f"{name}.*"))


def test_it_ends_with_whoever_started_it(name):
    """When the other end of --life-fd is closed, it ends by itself, well."""
    read, write = os.pipe()
    with running(name, *SETTINGS, "--life-fd", str(read), fds=[read]) as (process, _line):
        os.close(read)
        assert process.poll() is None
        os.close(write)
        assert process.wait(DEADLINE_S) == 0
    with pytest.raises(NotConnected):
        read_connection(name)


def test_a_taken_name_is_told(name):
    """When the name is taken, the line is "error …" with the reason, and the exit code 2."""
    with Serving(name=name), running(name, *SETTINGS) as (process, line):
        assert line.startswith("error ")
        assert "already runs on this host" in line
        assert process.wait(DEADLINE_S) == 2


def test_a_wrong_environment_is_told(name):
    """A setting in the environment that cannot be is told by the same line, naming the variable."""
    with running(name, environment={"TENSORYARD_HEARTBEAT_S": "often"}) as (process, line):
        assert line.startswith("error ")
        assert "TENSORYARD_HEARTBEAT_S" in line
        assert process.wait(DEADLINE_S) == 2


def test_settings_come_from_the_environment(name):
    """Without --settings, the environment's hold."""
    with running(name, environment={"TENSORYARD_MAX_IN_FLIGHT": "17"}) as (_process, line):
        with closing(Peer(line.split()[1])) as (peer,):
            assert peer.welcome.max_in_flight == 17


def test_after_sigkill_a_successor_takes_over(name):
    """Killed, its files are stale and known for it; the next of the name listens at the same address."""
    with running(name, *SETTINGS) as (process, first), closing(Peer(first.split()[1])) as (peer,):
        process.kill()
        process.wait(DEADLINE_S)
        with pytest.raises(NotConnected):
            read_connection(name)
        with running(name, *SETTINGS) as (_successor, second):
            assert second == first
            peer.meanwhile = peer.beat
            peer.take(wire.Rejoin)


def test_requests_wait_for_the_fleet_that_is_expected(name):
    """--expects-fleet reaches the coordinator: a request for a model nobody has named yet is not refused."""
    with running(name, *SETTINGS, "--expects-fleet") as (_process, line), closing(Peer(line.split()[1])) as (peer,):
        peer.send(wire.Submit(request_id="r", task="embeddings_generation", model="m"), b"body")
        assert peer.status().live_requests == 0


def test_it_needs_no_ready_fd(name, eventually):
    """Started by hand, it serves all the same."""
    command = [sys.executable, "-P", "-m", "tensoryard.coordinator", "--name", name, *SETTINGS]
    with subprocess.Popen(command) as process:
        try:
            eventually((runtime_dir() / f"{name}.json").exists, "it listens")
            assert read_connection(name).pid == process.pid
        finally:
            process.terminate()
            # Before it has its own handler, SIGTERM ends it as it ends any process.
            assert process.wait(DEADLINE_S) in (0, -signal.SIGTERM)


@pytest.mark.parametrize("options", [[], ["--name"], ["--name", "x", "--nonsense"]])
def test_wrong_options_are_refused(options):
    """What it does not understand it refuses, naming itself."""
    command = [sys.executable, "-P", "-m", "tensoryard.coordinator", *options]
    done = subprocess.run(command, capture_output=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 2
    assert b"tensoryard.coordinator" in done.stderr
