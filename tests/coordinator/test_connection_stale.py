"""Connection files that a killed coordinator left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tensoryard.coordinator.connection import ConnectionFile, connections, read_connection
from tensoryard.errors import NotConnected

KILLED = """
import os, signal, sys
from tensoryard.coordinator.connection import ConnectionFile
ConnectionFile(sys.argv[1]).publish("ipc:///nowhere", "1")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime folder of this test alone."""
    path = tmp_path_factory.mktemp("r")
    path.chmod(0o700)
    monkeypatch.setenv("TENSORYARD_RUNTIME_DIR", str(path))
    return path


def test_the_file_of_a_killed_coordinator_is_known_for_what_it_is(folder: Path) -> None:
    """After kill -9 nobody connects to what is left, the error says what to do, and the next start sweeps it."""
    for name in ("default", "other"):
        subprocess.run([sys.executable, "-P", "-c", KILLED, name], check=False)
        assert (folder / f"{name}.json").exists()
        with pytest.raises(NotConnected, match=f"no coordinator named '{name}'.*tensoryard up"):
            read_connection(name)
    assert connections() == []
    living = ConnectionFile("living")
    living.publish("ipc:///somewhere", "1")
    assert {path.name for path in folder.iterdir()} == {"living.json", "living.lock"}
    with pytest.raises(NotConnected, match="running are 'living'"):
        read_connection("default")
    assert read_connection("living").address == "ipc:///somewhere"
    living.close()
    assert not list(folder.iterdir())
