"""Results to judge, made up: three rounds, of which the second was twice as slow for everybody."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tensoryard.benchmarks import results
from tensoryard.benchmarks.rounds import Found
from tensoryard.benchmarks.works import WORKS

MACHINE = {
    "processor": "a processor",
    "cores": 2,
    "memory_gib": 24,
    "virtual": True,
    "kernel": "6.1.0",
    "python": "3.11.7",
    "versions": {"numpy": "2.4.0"},
}


@pytest.fixture
def made_up() -> Callable[..., dict[str, Any]]:
    """Results in which each contender needs, or reaches, so much at each work."""

    def make(figures: dict[str, dict[str, float]], *, run: str = "one", **more: Any) -> dict[str, Any]:
        found = Found(3)
        for work, by_name in figures.items():
            for name, value in by_name.items():
                for number, noise in enumerate((1.0, 2.0, 1.0)):
                    scaled = value * noise if WORKS[work].less_is_better else value / noise
                    found.enter(work, name, number, [scaled] * 3)
        told = results.results_of(found, run=run, machine=MACHINE, options={})
        return {**told, **more}

    return make
