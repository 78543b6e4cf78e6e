"""Thresholds are measured once, remembered, and never the reason that something does not start."""

from __future__ import annotations

import secrets
import subprocess
import sys

import msgspec
import pytest

from tensoryard.links import calibration
from tensoryard.links.calibration import DEFAULT, FILE, Thresholds, crossing, thresholds, thresholds_of
from tensoryard.settings import Settings
from tensoryard.shm import runtime_dir

from ..baseline import Baseline

SIZES = (8, 16, 32, 64)


@pytest.fixture
def nothing_known(monkeypatch, runtime_folder):
    """A runtime folder in which nobody has measured."""
    monkeypatch.setenv("TENSORYARD_RUNTIME_DIR", str(runtime_folder / secrets.token_hex(4)))
    return runtime_dir() / FILE


@pytest.fixture
def measured(monkeypatch):
    """Counts measurements, each of which finds more."""
    made = []

    def measure():
        made.append(Thresholds(1000 + len(made), 2000 + len(made)))
        return made[-1]

    monkeypatch.setattr(calibration, "_measured", measure)
    return made


@pytest.mark.parametrize(
    ("inline", "other", "found"),
    [
        ([1, 2, 4, 8], [3, 3, 3, 3], 32),
        ([1, 2, 3, 8], [3, 3, 3, 3], 32),  # as fast is fast enough: it spares the sockets
        ([5, 5, 5, 5], [3, 3, 3, 3], 8),
        ([1, 1, 1, 1], [3, 3, 3, 3], 128),
        ([5, 1, 5, 5], [3, 3, 3, 3], 32),  # one lucky small size does not count
        ([1, 1, 1, 5], [3, 3, 3, 3], 64),
    ],
)
def test_the_crossing_holds_for_all_larger_sizes(inline, other, found):
    """The size from which the other way stays ahead."""
    assert crossing(SIZES, inline, other) == found


def test_what_is_measured_lies_between_the_sizes_tried():
    """Real measurements, over real sockets and a real pool, leave nothing open."""
    sizes = (1 << 13, 1 << 15, 1 << 17)
    allowed = {*sizes, 1 << 18}
    calibration.measure_out_of_band(sizes, 1)  # at its first large frame pyzmq starts a thread that stays
    before = Baseline()
    assert calibration.measure_handle(sizes, 3) in allowed
    assert calibration.measure_out_of_band(sizes, 3) in allowed
    before.assert_nothing_new()


def test_it_is_measured_once(nothing_known, measured):
    """The first asks, the others remember."""
    assert [thresholds() for _ in range(3)] == measured * 3
    assert len(measured) == 1
    assert nothing_known.stat().st_mode & 0o077 == 0 or nothing_known.parent.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1,2]",
        b'{"handle_bytes":"x","out_of_band_bytes":1}',
    ],
)
def test_what_cannot_be_used_is_measured_anew(nothing_known, measured, content):
    """A broken file is replaced."""
    nothing_known.write_bytes(content)
    assert thresholds() == measured[0]
    assert msgspec.json.decode(nothing_known.read_bytes(), type=Thresholds) == measured[0]


def test_another_version_keeps_what_it_has_found(nothing_known, measured, monkeypatch):
    """While workers are rolled over to a new version, those of the old one go on as they were."""
    old = thresholds()
    monkeypatch.setattr(calibration, "FILE", f"{FILE}-of-the-next")
    assert thresholds() == measured[1]
    monkeypatch.setattr(calibration, "FILE", FILE)
    assert (thresholds(), len(measured)) == (old, 2)


def test_nonsense_in_the_file_is_not_believed(nothing_known, measured):
    """A size of 0 or less is none."""
    nothing_known.write_bytes(msgspec.json.encode(Thresholds(0, 5)))
    assert thresholds() == measured[0]


def test_settings_go_before_measurements(nothing_known, measured):
    """What is set is not measured, nor overridden."""
    assert thresholds_of(Settings(threshold_bytes=7, out_of_band_bytes=8)) == Thresholds(7, 8)
    assert not measured
    assert thresholds_of(Settings(threshold_bytes=7)) == Thresholds(7, 2000)
    assert thresholds_of(Settings()) == measured[0]


def test_a_machine_on_which_it_cannot_be_measured_gets_the_default(nothing_known, monkeypatch, caplog):
    """A failed measurement is a warning."""

    def fail():
        raise OSError("no memory")

    monkeypatch.setattr(calibration, "measure_handle", fail)
    assert thresholds() == DEFAULT
    assert "could not be measured" in caplog.text


@pytest.mark.process
def test_of_many_processes_one_measures(nothing_known):
    """Five that start at once find the same: what the first has measured."""
    code = "from tensoryard.links.calibration import thresholds; print(thresholds())"
    asking = [subprocess.Popen([sys.executable, "-P", "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(5)]
    answers = {process.communicate(timeout=60)[0] for process in asking}
    assert answers == {f"{msgspec.json.decode(nothing_known.read_bytes(), type=Thresholds)}\n"}
