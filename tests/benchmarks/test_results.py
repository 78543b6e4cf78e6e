"""Results as files, and the refusal to compare those of two runs."""

from __future__ import annotations

import json

import pytest

from tensoryard.benchmarks import machine, results
from tensoryard.benchmarks.__main__ import main


@pytest.fixture(autouse=True)
def _no_new_start(monkeypatch):
    """The command would start its Python anew without the working folder on its path: here that would end the tests."""
    monkeypatch.setattr("tensoryard.benchmarks.__main__._require_safe_path", lambda: None)


def test_results_come_back_as_they_were(made_up, tmp_path):
    """What was written is what is read."""
    found = made_up({"small": {"tensoryard": 0.25}})
    results.write(found, tmp_path / "folder" / "results.json")
    assert results.read(tmp_path / "folder" / "results.json") == found


def test_another_file_is_no_result(tmp_path):
    """A file of another format is refused by name."""
    (tmp_path / "x.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match=r"x\.json holds no results of format 1"):
        results.read(tmp_path / "x.json")


def test_two_runs_are_not_compared(made_up, tmp_path, capsys):
    """`compare` of two runs' files is an error that says why, and what to do instead."""
    for run in ("one", "two"):
        results.write(made_up({"small": {"tensoryard": 0.25}}, run=run), tmp_path / f"{run}.json")
    assert main(["compare", str(tmp_path / "one.json"), str(tmp_path / "two.json")]) == 2
    told = capsys.readouterr().err
    assert "not comparable" in told
    assert "Only ratios within one run" in told


def test_a_run_may_be_compared_with_itself(made_up, tmp_path):
    """Two copies of one file are of one run."""
    results.write(made_up({"small": {"tensoryard": 0.25}}), tmp_path / "one.json")
    assert main(["compare", str(tmp_path / "one.json"), str(tmp_path / "one.json")]) == 0


def test_other_machines_are_named_as_another_reason(made_up):
    """Where even the machine differs, the refusal says so."""
    with pytest.raises(results.NotComparableError, match="machines"):
        results.require_one_run(made_up({}), made_up({}, run="two", machine={"cores": 64}))


def test_ratios_need_both(made_up):
    """None where one of them was not measured."""
    found = made_up({"small": {"tensoryard": 0.5, "mosec": 0.25}})
    assert results.ratio(found, "small", "tensoryard", "mosec").median == 2
    assert results.ratio(found, "small", "tensoryard", "ray-actor") is None
    assert results.ratio(found, "flight", "tensoryard", "mosec") is None


def test_the_machine_is_described_without_its_name():
    """Cores, kernel and versions are told; neither the host's name nor a path."""
    import os

    told = machine.describe()
    assert told["cores"] >= 1
    assert told["versions"]["numpy"]
    text = json.dumps(told)
    assert os.uname().nodename not in text
    assert str(os.getcwd()) not in text
    assert f"{told['cores']} " in machine.sentence(told)


@pytest.mark.parametrize("given", [["--only", "nothing"], ["--peers", "nobody"], ["--rounds", "0"], ["compare", "one"]])
def test_unknown_words_are_refused(given, capsys):
    """The command line names what is allowed."""
    with pytest.raises(SystemExit):
        main(given)
    assert capsys.readouterr().err
