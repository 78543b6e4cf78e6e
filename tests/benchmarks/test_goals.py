"""Goals are judged by the ratios of a run: at the border, beyond it, and where something is missing."""

from __future__ import annotations

import pytest

from tensoryard.benchmarks import goals


def judged(results, words):
    """The verdict of the one goal whose text has these words."""
    (goal,) = [goal for goal in goals.goals(results) if words in goal.text]
    return goal


# By goal: a work, our figure, who else, theirs; as they are when it is reached, and when it is missed.
RATIOS = {
    "at most 1.15 x one memcpy": ("read-64MiB", "memcpy", 8.0, 9.2, 9.3),
    "not slower than Ray's compiled graph": ("small", "ray-graph", 0.1, 0.1, 0.11),
    "at least 10 x Ray actor calls": ("flight", "ray-actor", 1000, 10_000, 9990),
    "at least 3 x ZeroMQ through a Python broker": ("flight", "zeromq-broker", 1000, 3000, 2990),
    "more than ZeroMQ with no broker": ("flight", "zeromq-direct", 1000, 1000, 990),
}


@pytest.mark.parametrize("words", RATIOS)
def test_ratios_are_judged_at_their_border(made_up, words):
    """Each is reached at its number and missed beyond, whatever the noise of a round that both met."""
    work, other, theirs, reached, missed = RATIOS[words]
    assert judged(made_up({work: {"tensoryard": reached, other: theirs}}), words).verdict == "reached"
    assert judged(made_up({work: {"tensoryard": missed, other: theirs}}), words).verdict == "missed"


def test_size_must_not_matter(made_up):
    """What is lent and not read may take 1.2 times as long at 256 MiB as at 64 KiB."""
    for large, verdict in ((1.19, "reached"), (1.21, "missed")):
        found = made_up({"shape-64KiB": {"tensoryard-lent": 1.0}, "shape-256MiB": {"tensoryard-lent": large}})
        assert judged(found, "256 MiB at most").verdict == verdict


@pytest.mark.parametrize(
    ("copies", "through", "verdict"), [(0, 600, "reached"), (1, 600, "missed"), (0, 1 << 26, "missed")]
)
def test_an_output_is_not_copied(made_up, copies, through, verdict):
    """The ledger decides: no copy, and nothing large through a socket."""
    notes = {"make-64MiB": {"tensoryard": {"copies": copies, "socket bytes": through}}}
    assert judged(made_up({}, notes=notes), "64 MiB out: no copy").verdict == verdict


def test_to_be_ahead_is_to_be_ahead_of_everybody(made_up):
    """One peer that is faster is enough to miss it, and is named; floors are no peers."""
    small = {"tensoryard": 0.2, "mosec": 0.3, "ray-actor": 0.9, "seqpacket": 0.01}
    goal = judged(made_up({"small": small}), "ahead of every peer: small")
    assert (goal.verdict, goal.note) == ("reached", "ahead of 2 of 2")
    goal = judged(made_up({"small": {**small, "mosec": 0.1}}), "ahead of every peer: small")
    assert (goal.verdict, goal.note) == ("missed", "ahead of 1 of 2")
    assert goal.figure.endswith("x mosec")


def test_to_be_ahead_in_a_rate_is_to_have_more(made_up):
    """Where more is better the least ratio is the worst."""
    goal = judged(made_up({"flight": {"tensoryard": 5000, "mosec": 4000, "litserve": 6000}}), "peer: 64 in flight")
    assert goal.verdict == "missed"
    assert goal.figure.endswith("x litserve")


def test_tokens_per_second(made_up):
    """The median of the rounds decides."""
    assert judged(made_up({"streams": {"tensoryard": 200_000}}), "tokens/s").verdict == "reached"
    assert judged(made_up({"streams": {"tensoryard": 199_000}}), "tokens/s").verdict == "missed"


def test_the_worst_kind_of_event_decides_for_the_router(made_up):
    """One kind that grows too much is enough, and a walk that was cut short proves nothing."""
    part = {
        "complete": True,
        "growth_queued": {"submit": [1.1, 1.2, 1.1], "cancel": [2.1, 2.2, 1.0]},
        "growth_workers": {"submit": [1.0], "cancel": [1.9]},
    }
    found = made_up({}, parts={"router": part})
    assert judged(found, "1,000,000 waiting").verdict == "missed"
    assert "cancel" in judged(found, "1,000,000 waiting").figure
    assert judged(found, "1,000 workers").verdict == "reached"
    cut = made_up({}, parts={"router": {**part, "complete": False}})
    assert judged(cut, "1,000 workers").verdict == "not measured"


def test_idle_and_detection_and_the_end(made_up):
    """Every process counts when idle; the median of the kills; nothing left behind."""
    parts = {"idle": {"seconds": 20.0, "percent": {"coordinator": 0.2, "w": 1.01}}, "detection": {"ms": [5, 9, 400]}}
    found = made_up({}, parts=parts, left_behind=1)
    assert judged(found, "idle cluster").verdict == "missed"
    assert judged(found, "100 ms").verdict == "reached"
    assert judged(found, "clean end").verdict == "missed"


def test_what_was_not_measured_is_said_so(made_up):
    """Without figures no goal is reached or missed, and none is left out; an absent peer's reason is told."""
    found = made_up({}, absent={"ray-graph": "not installed"})
    told = goals.goals(found)
    assert {goal.verdict for goal in told} == {"not measured"}
    assert len(told) == len(goals.goals(made_up({"small": {"tensoryard": 1.0, "mosec": 1.0}})))
    assert judged(found, "compiled graph").note == "not installed"


def test_goals_are_printed_one_a_line(made_up):
    """Each with its verdict."""
    found = goals.goals(made_up({"streams": {"tensoryard": 250_000}}))
    lines = goals.as_text(found).splitlines()
    assert len(lines) == len(found)
    assert [line for line in lines if line.startswith("PASS") and "250,000 tokens/s" in line]
    assert len(goals.as_markdown(found).splitlines()) == len(found) + 2
