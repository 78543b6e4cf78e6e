"""A wish: held back while it would be refused, for as long as its policy and its deadline let it be."""

from __future__ import annotations

import types

import pytest

from tensoryard.client.retry import Retry
from tensoryard.client.wish import Wish
from tensoryard.errors import Overloaded
from tensoryard.proto import PipelineTask


class Full:
    """A conversation that refuses until a time."""

    def __init__(self, until):
        self.until = until

    def overload(self, model, at):
        assert model == "m"
        return Overloaded("full", retry_after_s=self.until - at) if at < self.until else None

    def chance(self):
        return 1.0


def wish(**fields):
    request = types.SimpleNamespace(model="m")
    defaults = {"deadline_s": None, "priority": 0, "retry": None, "began": 10.0}
    return Wish(request=request, task=PipelineTask.EMBEDDINGS_GENERATION, **{**defaults, **fields})


def test_without_a_policy_the_refusal_is_the_answer():
    """At once, and where there is room there is none."""
    wanted = wish()
    assert wanted.wait_s(Full(20.0), 10.0) == 0.0
    assert wanted.refusal.retry_after_s == 10.0
    assert wanted.wait_s(Full(20.0), 20.0) == 0.0
    assert wanted.refusal is None


def test_with_a_policy_it_waits_until_there_is_room():
    """And its deadline runs on meanwhile."""
    wanted = wish(deadline_s=30.0, retry=Retry(first_s=1.0))
    assert wanted.left_s() == 30.0
    assert wanted.wait_s(Full(20.0), 10.0) == 11.0
    assert wanted.wait_s(Full(20.0), 21.0) == 0.0
    assert wanted.refusal is None
    assert wanted.left_s() == 19.0


@pytest.mark.parametrize("how", [{"deadline_s": 5.0}, {"retry": Retry(total_s=5.0)}], ids=["deadline", "policy"])
def test_what_would_come_too_late_is_not_waited_for(how):
    """Then the refusal is the answer."""
    wanted = wish(**{"retry": Retry(), **how})
    assert wanted.wait_s(Full(20.0), 10.0) == 0.0
    assert wanted.refusal is not None
