"""The number of workers follows the load: soon up, slowly down, never to and fro, and never out of its bounds."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tensoryard as ty
from tensoryard.errors import ConfigError
from tensoryard.workers.autoscale import STALE_S, Scaler, Window
from tensoryard.workers.fleet import Announce, Drain, Fleet, Kill, Launch

from .support import deployment_of


def policy(**changes):
    return ty.Autoscale(**{"min": 1, "max": 10, "upscale_delay_s": 3.0, "downscale_delay_s": 30.0, **changes})


def run(scaler, loads, at=0.0, step_s=1.0):
    """The targets that follow a row of loads, one a second."""
    return [scaler.observe(ongoing=load, peak=load, at=at + step_s * n) for n, load in enumerate(loads)]


def directions(targets):
    """How often the number changed its direction: up then down is once."""
    signs = [1 if after > before else -1 for before, after in itertools.pairwise(targets) if after != before]
    return sum(one != other for one, other in itertools.pairwise(signs))


def test_a_step_of_load_is_followed_up_and_down_once():
    """1, then 16 requests at once, then 1: from one worker to eight and back, with one change of direction."""
    targets = run(Scaler(policy()), [1] * 20 + [16] * 60 + [1] * 90)
    assert (targets[0], max(targets), targets[-1]) == (1, 8, 1)
    assert directions(targets) == 1
    assert targets.index(8) - 20 == 3
    assert len(targets) - targets[::-1].index(8) - 80 == 30


@pytest.mark.parametrize("seed", range(20))
def test_noise_does_not_flap(seed):
    """The same step under noise of a third: still one change of direction, and few changes."""
    rng = random.Random(seed)
    loads = [max(0, round(load * rng.uniform(0.67, 1.33))) for load in [2] * 60 + [16] * 120 + [2] * 120]
    targets = run(Scaler(policy()), loads)
    assert directions(targets) <= 1
    assert 6 <= max(targets) <= 10
    assert targets[-1] <= 2


@pytest.mark.parametrize("period", [2, 5, 10, 20])
def test_a_load_that_goes_to_and_fro_changes_nothing_more(period):
    """Faster than the downscale delay: what it needs at its height stays."""
    loads = [16 if (n // period) % 2 else 1 for n in range(400)]
    assert directions(run(Scaler(policy()), loads)) == 0


def test_a_burst_shorter_than_the_delay_is_not_followed():
    """Two seconds of much do not start workers that take longer than that."""
    assert run(Scaler(policy()), [1] * 5 + [20] * 3 + [1] * 10) == [1] * 18


def test_from_none_to_one_at_once_and_back_when_nothing_came():
    """Scale to zero: the first request starts a worker; requests between two reports count by their peak."""
    scaler = Scaler(policy(min=0))
    assert scaler.target == 0
    assert run(scaler, [0, 1, 0]) == [0, 1, 1]
    for at in range(3, 60):
        assert scaler.observe(ongoing=0, peak=at % 20 == 0, at=float(at)) == 1
    assert run(scaler, [0] * 32, at=60.0)[-1] == 0


def test_small_deviations_change_nothing():
    """Within the tolerance of the target per worker, the number stays."""
    scaler = Scaler(policy(tolerance=0.2), 5)
    assert run(scaler, [12] * 100 + [9] * 100) == [5] * 200
    assert run(scaler, [13] * 5, at=200.0)[-1] == 7


def test_silence_begins_the_watch_anew():
    """After a gap nothing of before counts: not the lull, not the load."""
    scaler = Scaler(policy(), 8)
    run(scaler, [0] * 29)
    assert scaler.observe(ongoing=0, peak=0, at=29.0 + STALE_S) == 8
    scaler.forget()
    assert run(scaler, [0] * 30, at=60.0)[-1] == 8
    assert run(scaler, [0] * 3, at=90.0)[-1] == 1


@given(st.lists(st.tuples(st.floats(0.01, 20), st.integers(0, 500), st.integers(0, 500)), max_size=80), st.data())
def test_it_never_leaves_its_bounds_and_moves_towards_the_load(steps, data):
    """Whatever is reported whenever: within min and max, and a change is towards what the report asks for."""
    least = data.draw(st.integers(0, 5))
    scaler = Scaler(policy(min=least, max=least + 5, upscale_delay_s=data.draw(st.sampled_from([0.0, 3.0, 50.0]))))
    at = 0.0
    for gap, ongoing, more in steps:
        at += gap
        before, asked = scaler.target, scaler.asked(ongoing)
        target = scaler.observe(ongoing=ongoing, peak=ongoing + more, at=at)
        assert least <= target <= least + 5
        if target > before:
            assert asked >= target or before == 0
        if target < before:
            assert asked <= target


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(-9, 9)), min_size=1, max_size=60), st.floats(0, 10))
def test_a_window_knows_the_largest(steps, span_s):
    """What a list of everything says, in less room."""
    window, everything, at = Window(span_s), [], 0.0
    for gap, value in steps:
        at += gap
        window.add(value, at)
        everything.append((at, value))
        held = [entered for since, entered in everything if since >= at - span_s]
        found = window.largest(at)
        assert found == (max(held) if at - everything[0][0] >= span_s else None)


# -- what a user may say ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"max": 0}, "`replicas.max` must be at least 1"),
        ({"min": 3, "max": 2}, r"at least `min` \(3\), not 2"),
        ({"min": -1, "max": 2}, "`replicas.min` must be a whole number"),
        ({"min": True, "max": 2}, "`replicas.min` must be a whole number"),
        ({"max": 1.5}, "`replicas.max` must be a whole number"),
        ({"max": 2, "target_ongoing_requests": 0}, "`replicas.target_ongoing_requests` must be a number"),
        ({"max": 2, "upscale_delay_s": float("nan")}, "`replicas.upscale_delay_s`"),
        ({"max": 2, "downscale_delay_s": -1}, "`replicas.downscale_delay_s`"),
        ({"max": 2, "tolerance": "much"}, "`replicas.tolerance`"),
    ],
)
def test_bad_values_are_named(values, words):
    """With the key and what is allowed."""
    with pytest.raises(ConfigError, match=words):
        ty.Autoscale(**values)


# -- in the fleet -----------------------------------------------------------------------------------------------------


def scaled(**changes):
    return deployment_of("mod:create", replicas=policy(**changes))


def names(effects, kind):
    return [effect.name for effect in effects if isinstance(effect, kind)]


def replicas(effects):
    return [entry.replicas for effect in effects if isinstance(effect, Announce) for entry in effect.expected]


def test_a_fleet_launches_and_drains_by_load():
    """More workers when the load asks for more, told to the coordinator; fewer later, the newest drained."""
    fleet = Fleet()
    effects = fleet.deploy([scaled()], 0.0)
    [first] = names(effects, Launch)
    assert replicas(effects) == [1]
    fleet.worker_ready(first, 0.0)
    steps = [fleet.loads({"m": (8, 8), "stranger": (1, 1)}, float(at)) for at in range(4)]
    assert [replicas(effects) for effects in steps] == [[], [], [], [4]]
    more = names(steps[-1], Launch)
    assert len(more) == 3
    for name in more:
        fleet.worker_ready(name, 5.0)
    steps = [fleet.loads({"m": (0, 0)}, 5.0 + at) for at in range(40)]
    assert sorted(name for effects in steps for name in names(effects, Drain)) == sorted(more)
    fleet.check_invariants()


def test_a_change_of_the_rules_goes_on_from_the_number_that_there_is():
    """Within the new bounds; a plain number is that number."""
    fleet = Fleet()
    for name in names(fleet.deploy([scaled(min=4)], 0.0), Launch):
        fleet.worker_ready(name, 0.0)
    assert names(fleet.deploy([scaled(min=1)], 1.0), Drain) == []
    assert len(names(fleet.deploy([scaled(min=1, max=3)], 2.0), Drain)) == 1
    assert len(names(fleet.deploy([scaled(min=6)], 3.0), Launch)) == 3
    assert len(names(fleet.deploy([deployment_of("mod:create", replicas=2)], 4.0), Kill)) == 3
    assert fleet.loads({"m": (100, 100)}, 10.0) == []


def test_a_silent_coordinator_ends_what_was_known_of_the_load():
    """The next one begins with no clients: that is no lull."""
    fleet = Fleet()
    for name in names(fleet.deploy([scaled(min=1)], 0.0), Launch):
        fleet.worker_ready(name, 0.0)
    for at in range(4):
        for name in names(fleet.loads({"m": (8, 8)}, float(at)), Launch):
            fleet.worker_ready(name, float(at))
    for at in range(4, 30):
        fleet.loads({"m": (0, 0)}, float(at))
    fleet.coordinator_silent()
    assert all(fleet.loads({"m": (0, 0)}, float(at)) == [] for at in range(30, 60))
