"""Schedules of the simulation, and that it is what it says: it replays, and the faults it names really happen."""

from __future__ import annotations

import pytest

from tensoryard.tests.simulation import __main__ as command
from tensoryard.tests.simulation.figures import Figures
from tensoryard.tests.simulation.plan import FAULTS, make_plan
from tensoryard.tests.simulation.run import run_plan, run_seed
from tensoryard.tests.simulation.story import tell
from tensoryard.tests.simulation.world import Violation

#: How every accepted request can end, and how some are refused.
OUTCOMES = {
    "finished", "pipeline_error", "poison_request", "worker_lost", "cancelled", "expired", "invalid_request",
    "overloaded", "duplicate_request", "unknown_model", "wrong_task", "pool_exhausted", "deployment_unhealthy",
}  # fmt: skip


@pytest.fixture(scope="module")
def figures():
    """Of some hundred schedules, told once."""
    figures = Figures()
    for seed in range(200):
        result = run_seed(seed)
        figures.enter(result)
        assert result.violation is None, "\n".join(tell(result))
    return figures


def test_every_schedule_holds(figures):
    """Each accepted request has one end, which may be, and nothing is left of any."""
    assert figures.failed is None
    assert figures.schedules == 200


def test_every_fault_happens(figures):
    """None of those that the plan can name is there in name only."""
    assert figures.faults.keys() >= FAULTS.keys() | {"kill reader", "kill sender", "freeze reader", "reset sender"}
    assert figures.messages.keys() >= {"sent", "delayed", "lost", "broken connections"}


def test_every_end_happens(figures):
    """No rule about how requests may end is idle."""
    assert figures.outcomes.keys() >= OUTCOMES
    assert figures.outcomes["finished"] > figures.outcomes.total() / 4, "faults leave nothing to be seen"


@pytest.mark.parametrize("seed", range(300, 320))
def test_a_hostile_network_breaks_no_machine(seed):
    """Messages that are lost, doubled or overtaken may cost answers: nothing else, and no wrong one is given."""
    result = run_seed(seed, hostile=True)
    assert result.violation is None, "\n".join(tell(result))


def test_a_seed_replays():
    """The same seed gives the same events, to the last one; another does not."""
    hashes = [run_seed(seed).trace_hash for seed in (7, 7, 8)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_start_that_was_cut_off_with_its_host_has_failed():
    """Two fail and a third is cut off: reason enough to give a deployment up. Other plans need another seed."""
    result = run_seed(22211)
    assert result.violation is None, "\n".join(tell(result))
    assert result.faults["lose host"]
    assert result.outcomes["deployment_unhealthy"]


def test_a_plan_without_a_part_is_a_plan():
    """Which is how a failing one is made smaller."""
    plan = make_plan(7)
    result = run_plan(plan.without(faults=range(len(plan.faults)), asks=(0, 1)))
    assert result.violation is None
    assert not result.faults


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_the_command_says_what_it_ran(jobs, capsys):
    """In one process or in several: how many schedules, what went wrong in them, how requests ended."""
    assert command.main(["100:160", "--jobs", jobs]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("60 schedules in ")
    assert told[0].endswith(" 0 violations")
    assert "kill worker" in told[1]
    assert "finished" in told[3]


def test_a_failure_is_told_with_the_command_that_shows_it_again(monkeypatch, capsys):
    """The first failing seed, its story, and how to see it again."""

    def fail(_asked, _error):
        raise Violation("made up", "r1")

    monkeypatch.setattr("tensoryard.tests.simulation.checks.Asked.end", fail)
    assert command.main(["3:5"]) == 1
    told = capsys.readouterr().out
    assert "make simulate SEEDS=3:4" in told
    assert "seed 3: made up" in told
