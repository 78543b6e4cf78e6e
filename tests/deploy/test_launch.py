"""`launch.py` finds the package wherever it lies, and says so when there is none; options that go together are told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tensoryard
from tensoryard.coordinator.connection import reachable
from tensoryard.deploy import cli, launch, launching
from tensoryard.errors import ConfigError

LAUNCH = Path(launch.__file__)
#: A Python that does not see what is installed for this one.
BARE = [sys.executable, "-S"]


def run(folder: Path, *arguments: str, path: str = "/nonexistent") -> tuple[int, str]:
    """Exit code and output of a copy of `launch.py`, alone in a folder, under a Python without the package."""
    copy = folder / "launch.py"
    copy.write_bytes(LAUNCH.read_bytes())
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "RAY_ADDRESS")}
    done = subprocess.run(
        [*BARE, str(copy), *arguments],
        env={**environment, "PATH": path},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_without_the_package_it_says_what_to_do(tmp_path):
    """No Python that has it, and none that runs `ray`: one clear line."""
    code, said = run(tmp_path, "yard.toml")
    assert code == 1
    assert said.startswith("tensoryard is not installed for ")
    assert "install it on every node" in said


@pytest.mark.parametrize("tool", ["ray", "tensoryard"])
def test_the_python_of_ray_takes_over(tmp_path, tool):
    """`python` on a node may be any; the one in the first line of `ray` has what Ray's processes have."""
    interpreter, tools = tmp_path / "python", tmp_path / "bin"
    tools.mkdir()
    above = Path(tensoryard.__file__).resolve().parents[1]
    path = os.pathsep.join([str(above), *filter(None, [os.environ.get("PYTHONPATH")])])
    interpreter.write_text(f'#!/bin/sh\nPYTHONPATH={path} exec {sys.executable} "$@"\n')
    (tools / tool).write_text(f"#!{interpreter}\n")
    for file in (interpreter, tools / tool):
        file.chmod(0o755)
    (tmp_path / "proto.py").write_text("raise SystemExit('a stranger was imported')")
    code, said = run(tmp_path, "status", "--ray-address", "127.0.0.1:1", "--help", path=f"{tools}:/bin:/usr/bin")
    assert (code, "usage: tensoryard status" in said) == (0, True), said


def test_one_that_has_no_package_takes_over_only_once(tmp_path):
    """No endless change of interpreters."""
    interpreter, tools = tmp_path / "python", tmp_path / "bin"
    tools.mkdir()
    interpreter.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    (tools / "ray").write_text(f"#!{interpreter}\n")
    for file in (interpreter, tools / "ray"):
        file.chmod(0o755)
    code, said = run(tmp_path, path=f"{tools}:/bin:/usr/bin")
    assert (code, said.count("tensoryard is not installed for ")) == (1, 1)


def test_a_tool_that_is_no_script_names_no_interpreter(tmp_path):
    """A binary, a script of an interpreter that is gone, nothing at all."""
    (tmp_path / "binary").write_bytes(b"\x7fELF\xff\n")
    (tmp_path / "gone").write_text("#!/no/such/python\n")
    assert launch.interpreter_of(None) is None
    assert launch.interpreter_of(str(tmp_path / "binary")) is None
    assert launch.interpreter_of(str(tmp_path / "gone")) is None


@pytest.mark.parametrize("flag", ["--stay", "--restart", "--address-file=x", "--listen=tcp://127.0.0.1:1"])
def test_what_goes_with_a_running_ray_is_refused_without(flag, capsys):
    """Named, not ignored."""
    mean = ["--model", "m", "--task", "embeddings_generation", "--pipeline", "minilm"]
    assert cli.main(["up", *mean, flag]) == cli.EXIT_USAGE
    assert "goes with --ray-address" in capsys.readouterr().err


def test_detach_is_for_a_cluster_of_this_machine(capsys):
    """A launched cluster stays by itself."""
    mean = ["--model", "m", "--task", "embeddings_generation", "--pipeline", "minilm"]
    assert cli.main(["up", *mean, "--ray-address", "auto", "--detach"]) == cli.EXIT_USAGE
    assert "--detach is for a cluster of this machine" in capsys.readouterr().err


def test_an_address_file_is_written_whole_and_read_for_this_host(tmp_path):
    """The socket where it is, else the network's address."""
    path = tmp_path / "address"
    launching.write_address(str(path), [f"unix://{tmp_path}/none", "tcp://10.0.0.1:7"])
    assert path.read_text().splitlines() == [f"unix://{tmp_path}/none", "tcp://10.0.0.1:7"]
    assert os.listdir(tmp_path) == ["address"]
    assert reachable(path.read_text().split()) == "tcp://10.0.0.1:7"
    (tmp_path / "none").touch()
    assert reachable(path.read_text().split()) == f"unix://{tmp_path}/none"
    assert reachable(["unix:///nowhere"]) == "unix:///nowhere"


def test_config_errors_are_config_errors():
    """`ConfigError` is what the flags raise."""
    with pytest.raises(ConfigError):
        cli._refuse_launch_flags(cli._parse(["up", "yard.toml", "--stay"]))
