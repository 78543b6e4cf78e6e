"""Many workers: each serves, all is answered, and the number follows the load. Speed: `benchmarks/scaling.py`."""

from __future__ import annotations

import dataclasses
import math

import pytest

import tensoryard as ty
from tensoryard.benchmarks import scaling

pytestmark = [pytest.mark.scaling, pytest.mark.process, pytest.mark.timeout(900)]


@pytest.mark.parametrize(
    ("counts", "seconds"),
    [((1, 2, 4, 8), (0.05,)), ((1, 8), (0.02,) * 9 + (0.2,)), ((1, 64), (0.15,))],
    ids=["equal", "skewed", "64"],
)
def test_work_reaches_every_worker(counts, seconds):
    """However many there are, none is left out and none is given most of the work; memory and times are measured."""
    stops = scaling.measure(counts, lasts_s=4.0, seconds=seconds)
    assert [stop.workers for stop in stops] == list(counts)
    for stop in stops:
        assert stop.per_s > 0
        assert 0 < stop.least <= 1 <= stop.most < max(2, stop.workers / 2)
        assert stop.worker_mib > 1
        assert all(math.isfinite(value) for value in dataclasses.astuple(stop))
    assert len(scaling.table(stops).splitlines()) == 2 + len(counts)


def test_a_step_of_load_is_followed_without_a_loss():
    """1, then 4 workers, then 1: every request is answered, and the number changes its direction at most once."""
    policy = ty.Autoscale(min=1, max=4, target_ongoing_requests=2, upscale_delay_s=1, downscale_delay_s=4)
    followed = scaling.follow(policy, high=8, step_s=6.0)
    assert followed.sent == followed.answered > 0
    assert followed.turns <= 1
    assert followed.targets[0] == 1
    assert max(followed.targets) == 4
