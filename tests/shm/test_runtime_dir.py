"""The runtime folder: private, short, and swept of what the dead left."""

import os
import socket
import stat
from pathlib import Path

import pytest

from tensoryard.errors import ConfigError
from tensoryard.shm.runtime_dir import _chosen_path, listen, runtime_dir, sweep

from ..baseline import Baseline


@pytest.fixture
def chosen(monkeypatch, runtime_folder):
    """Sets TENSORYARD_RUNTIME_DIR to a path within this run's folder."""

    def choose(name):
        path = runtime_folder / name
        monkeypatch.setenv("TENSORYARD_RUNTIME_DIR", str(path))
        return path

    return choose


@pytest.fixture
def folder(chosen):
    """A runtime folder of this test alone."""
    chosen(f"t{os.urandom(3).hex()}")
    return runtime_dir()


def test_it_is_made_private_with_its_parents(chosen):
    """A folder that is not there is made, with mode 0700, and found again."""
    path = chosen("a/b/c")
    assert runtime_dir() == path == runtime_dir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_it_follows_the_environment(monkeypatch, runtime_folder):
    """TENSORYARD_RUNTIME_DIR comes first, then XDG_RUNTIME_DIR/tensoryard, then a folder of the user in /tmp."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime_folder / "xdg"))
    assert runtime_dir() == runtime_folder
    monkeypatch.delenv("TENSORYARD_RUNTIME_DIR")
    assert runtime_dir() == runtime_folder / "xdg" / "tensoryard"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert _chosen_path() == Path(f"/tmp/tensoryard-{os.geteuid()}")  # not made here: it is the user's own


def test_a_relative_folder_stays_where_it_is(monkeypatch, runtime_folder):
    """A relative setting is made absolute, so that a later change of folder does not lose the sockets."""
    monkeypatch.chdir(runtime_folder)
    monkeypatch.setenv("TENSORYARD_RUNTIME_DIR", "relative")
    assert runtime_dir() == runtime_folder / "relative"


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_a_folder_open_to_others_is_refused(chosen, mode):
    """A folder that group or others can enter is a ConfigError that names the folder and the setting."""
    path = chosen(f"open-{mode:o}")
    path.mkdir()
    path.chmod(mode)
    with pytest.raises(ConfigError, match=rf"{path}.*0700.*TENSORYARD_RUNTIME_DIR"):
        runtime_dir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_is_refused(chosen):
    """A folder that belongs to another user is a ConfigError."""
    path = chosen("theirs")
    path.mkdir(mode=0o700)
    os.chown(path, 65534, -1)
    with pytest.raises(ConfigError):
        runtime_dir()


def test_what_is_no_folder_is_refused(chosen):
    """A file, a link to a folder, a link to nothing and a folder that cannot be made are ConfigError."""
    chosen("file").write_text("")
    with pytest.raises(ConfigError):
        runtime_dir()
    target = chosen("target")
    target.mkdir(mode=0o700)
    chosen("link").symlink_to(target)
    with pytest.raises(ConfigError):
        runtime_dir()
    chosen("dangling").symlink_to(target / "none")
    with pytest.raises(ConfigError):
        runtime_dir()
    chosen("file/below")
    with pytest.raises(ConfigError, match="TENSORYARD_RUNTIME_DIR"):
        runtime_dir()


@pytest.mark.case(23)
def test_a_path_too_long_for_sockets_is_refused(chosen):
    """A folder whose sockets would exceed 107 bytes is a ConfigError before it is made."""
    path = chosen("x" * 70)
    with pytest.raises(ConfigError, match="too long"):
        runtime_dir()
    assert not path.exists()


def test_the_longest_folder_allowed_holds_a_pools_socket(chosen, runtime_folder):
    """At the limit, a pool's socket can still be bound."""
    chosen("x" * (75 - len(os.fsencode(runtime_folder)) - 1))
    listen(runtime_dir() / f"pool-{'f' * 16}.sock").close()


def test_a_socket_appears_under_its_name_only_when_it_accepts(folder):
    """After `listen` the socket accepts at its name, and its first name is gone."""
    path = folder / "pool-1.sock"
    with listen(path), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
        assert [entry.name for entry in folder.iterdir()] == ["pool-1.sock"]
        peer.connect(str(path))


def test_listening_where_one_cannot_is_an_error_that_leaves_nothing(folder):
    """A socket that cannot be bound is closed."""
    before = Baseline()
    with pytest.raises(OSError, match="No such file"):
        listen(folder / "none" / "pool-1.sock")
    before.assert_nothing_new()


@pytest.mark.case(13, 23)
def test_dead_sockets_are_swept_and_live_ones_never(folder):
    """Sockets without a process are removed; live ones, and what is no pool's socket, stay, and are not disturbed."""
    listen(folder / "pool-dead.sock").close()
    (folder / "connection.json").write_text("{}")
    with listen(folder / "pool-live.sock") as live:
        live.setblocking(False)
        assert sweep(folder) == [folder / "pool-dead.sock"]
        assert sweep(folder) == []
        with pytest.raises(BlockingIOError):  # nobody has knocked
            live.accept()
    assert {entry.name for entry in folder.iterdir()} == {"connection.json", "pool-live.sock"}


def test_a_live_socket_whose_queue_is_full_is_not_swept(folder):
    """A live socket that could take no more connections stays."""
    path = folder / "pool-busy.sock"
    with listen(path) as busy:
        busy.listen(0)
        peers = []
        for _ in range(3):
            peers.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            peers[-1].setblocking(False)
            peers[-1].connect_ex(str(path))
        assert sweep(folder) == []
        for peer in peers:
            peer.close()


def test_a_live_socket_of_another_kind_is_not_swept(folder):
    """Whatever somebody listens on stays, even what no pool would make."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(folder / "pool-other.sock"))
        assert sweep(folder) == []


def test_a_socket_that_never_got_its_name_is_swept_once_it_is_old(folder):
    """What a process killed while it started left behind is removed, but not while it may still be starting."""
    fresh = folder / "pool-0.sock.new"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.bind(str(fresh))
        os.utime(fresh, (0, 0))
        assert sweep(folder) == []
    os.utime(fresh)
    assert sweep(folder) == []
    os.utime(fresh, (0, 0))
    assert sweep(folder) == [fresh]
