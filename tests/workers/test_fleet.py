"""The fleet: as many workers as wanted, no more, whatever ends, fails, hangs, changes or is told twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import tensoryard as ty
from tensoryard.workers.fleet import (
    MAX_START_FAILURES,
    QUICK_DEATH_S,
    Announce,
    Drain,
    Effect,
    Finished,
    Fleet,
    Kill,
    Launch,
    MemberState,
)
from tensoryard.workers.squad import CRAMPED_S

from .support import deployment_of


def wanted(model: str = "m", replicas: int = 1, **fields: Any) -> ty.Deployment:
    return deployment_of("mod:create", model=model, replicas=replicas, **fields)


def launched(effects: Sequence[Effect]) -> list[str]:
    return [effect.name for effect in effects if isinstance(effect, Launch)]


def killed(effects: Sequence[Effect]) -> list[str]:
    return [effect.name for effect in effects if isinstance(effect, Kill)]


def drained(effects: Sequence[Effect]) -> list[str]:
    return [effect.name for effect in effects if isinstance(effect, Drain)]


def announced(effects: Sequence[Effect]) -> dict[str, str]:
    """Model to trouble, of the last list told."""
    told = [effect for effect in effects if isinstance(effect, Announce)]
    return {entry.deployment.model: entry.unhealthy for entry in told[-1].expected} if told else {}


def started(replicas: int = 1, **fields: Any) -> tuple[Fleet, list[str]]:
    """A fleet at time 0 whose workers are all ready."""
    fleet = Fleet(**fields)
    names = launched(fleet.deploy([wanted(replicas=replicas)], 0.0))
    for name in names:
        assert fleet.worker_ready(name, 0.0) == []
    return fleet, names


def fail(fleet: Fleet, name: str, at: float, text: str = "ValueError: no weights") -> list[Effect]:
    """A worker that told why it cannot start, and ended."""
    assert fleet.start_failed(name, text) == []
    return fleet.worker_ended(name, "its process ended with code 3", at)


# -- numbers ----------------------------------------------------------------------------------------------------------


def test_a_deployment_gets_its_workers():
    """As many launches as replicas, each under a name of its own; the coordinator is told what to expect."""
    fleet = Fleet()
    effects = fleet.deploy([wanted("a", 3), wanted("b", 0)], 0.0)
    assert announced(effects) == {"a": "", "b": ""}
    assert len(set(launched(effects))) == 3
    assert [effect.deployment.model for effect in effects if isinstance(effect, Launch)] == ["a"] * 3
    assert fleet.tick(1.0) == []
    assert fleet.expected() == effects[0]


def test_what_ends_is_replaced():
    """A worker that served for a while and died is replaced at once, under a new name."""
    fleet, [name, _] = started(2)
    effects = fleet.worker_ended(name, "killed by signal 9", QUICK_DEATH_S)
    assert len(launched(effects)) == 1
    assert launched(effects) != [name]
    assert fleet.worker_ended(name, "again", QUICK_DEATH_S) == []


def test_growing_and_shrinking_leave_the_others_alone():
    """More replicas: only what is missing starts. Fewer: the newest are drained, those that do not serve yet first."""
    fleet, [first] = started(1)
    [second] = launched(fleet.deploy([wanted(replicas=2)], 1.0))
    fleet.worker_ready(second, 2.0)
    [third, fourth] = launched(fleet.deploy([wanted(replicas=4)], 3.0))
    effects = fleet.deploy([wanted(replicas=1)], 4.0)
    assert set(killed(effects)) == {third, fourth}
    assert drained(effects) == [second]
    for name in (second, third, fourth):
        assert launched(fleet.worker_ended(name, "gone", 5.0)) == []
    assert [member.name for member in fleet.members] == [first]


def test_one_that_starts_goes_before_one_that_serves():
    """Shrinking takes a worker that is still loading, even if it was launched before the one that serves."""
    fleet = Fleet()
    slow, quick = launched(fleet.deploy([wanted(replicas=2)], 0.0))
    fleet.worker_ready(quick, 5.0)
    effects = fleet.deploy([wanted(replicas=1)], 6.0)
    assert (killed(effects), drained(effects)) == ([slow], [])


def roll(fleet: Fleet, effects: list[Effect], at: float) -> list[list[Effect]]:
    """Processes that do as told, until nothing is to be done: what followed, step by step."""
    steps = []
    while effects:
        steps.append(effects)
        following: list[Effect] = []
        for effect in effects:
            match effect:
                case Launch(name=name):
                    following += fleet.worker_ready(name, at)
                case Drain(name=name) | Kill(name=name):
                    following += fleet.worker_ended(name, "as told", at)
        fleet.check_invariants()
        effects = following
    return steps


def test_changed_options_replace_the_workers_one_after_the_other():
    """A new one starts beside the old ones; when it serves, the oldest is let go; nothing is counted as a failure."""
    fleet, old = started(2)
    changed = wanted(replicas=2, options={"a": 1})
    effects = fleet.deploy([changed], 1.0)
    [first] = launched(effects)
    assert drained(effects) == []
    effects = fleet.worker_ready(first, 2.0)
    assert drained(effects) == [old[0]]
    [second] = launched(effects)
    assert fleet.worker_ended(old[0], "drained", 3.0) == []
    assert pending(effects) == ["workers yet to be replaced: 1"]
    assert not any(entry.is_settled for entry in fleet.expected().expected)
    effects = fleet.worker_ready(second, 4.0)
    assert drained(effects) == [old[1]]
    assert pending(effects) == [""]
    assert fleet.worker_ended(old[1], "drained", 5.0) == []
    assert all(entry.is_settled for entry in fleet.expected().expected)
    assert [(member.name, member.deployment) for member in fleet.members] == [(first, changed), (second, changed)]


@pytest.mark.parametrize("replicas", [1, 2, 3, 8, 17])
def test_as_many_as_wanted_serve_at_any_moment_of_a_change(replicas):
    """However many there are: at most a quarter more at once, and never fewer that serve than wanted."""
    fleet, old = started(replicas)
    serving, most = set(old), 0
    effects = fleet.deploy([wanted(replicas=replicas, options={"a": 1})], 1.0)
    while effects:
        effect, *effects = effects
        match effect:
            case Launch(name=name):
                most = max(most, len([member for member in fleet.members if member.state is not MemberState.DRAINING]))
                effects += fleet.worker_ready(name, 2.0)
                serving.add(name)
            case Drain(name=name):
                serving.remove(name)
                effects += fleet.worker_ended(name, "drained", 2.0)
        assert len(serving) >= replicas
    assert serving.isdisjoint(old)
    assert len(serving) == replicas
    assert most <= replicas + max(1, replicas // 4)


def test_a_change_that_does_not_start_leaves_the_old_ones_serving():
    """Three failures: the new options are given up and said to be unhealthy; what served goes on, to the last."""
    fleet, old = started(2)
    effects = fleet.deploy([wanted(replicas=2, options={"a": 1})], 0.0)
    for number in range(MAX_START_FAILURES):
        [name] = launched(effects)
        effects = fail(fleet, name, 100.0 * number)
        told = announced(effects)
        effects = fleet.tick(100.0 * number + 50.0)
    assert "no weights" in told["m"]
    assert effects == []
    assert [member.name for member in fleet.members] == old


def test_a_change_back_keeps_those_that_are_still_there():
    """The old options again in mid-change: old workers are the right ones again, the new one goes, the gone return."""
    fleet, old = started(2)
    [new] = launched(fleet.deploy([wanted(replicas=2, options={"a": 1})], 1.0))
    [newer] = launched(fleet.worker_ready(new, 2.0))
    fleet.worker_ended(old[0], "drained", 3.0)
    effects = fleet.deploy([wanted(replicas=2)], 4.0)
    assert killed(effects) == [newer]
    [back] = launched(effects)
    assert drained(fleet.worker_ready(back, 5.0)) == [new]
    assert {m.name for m in fleet.members if m.state is MemberState.READY} == {old[1], back}


def test_a_change_during_a_change_ends_with_the_last():
    """Workers of both earlier versions go, those that serve only when there is one in their place."""
    fleet, _ = started(4)
    effects = fleet.deploy([wanted(replicas=4, options={"v": 2})], 1.0)
    effects = fleet.worker_ready(launched(effects)[0], 2.0)
    last = wanted(replicas=3, options={"v": 3})
    roll(fleet, [*effects, *fleet.deploy([last], 3.0)], 4.0)
    assert [member.deployment for member in fleet.members] == [last] * 3


def test_a_change_of_numbers_for_the_queue_leaves_the_workers_alone():
    """What only the coordinator goes by is told to it, and nothing restarts."""
    fleet, names = started(2)
    effects = fleet.deploy([wanted(replicas=2, max_queued=5)], 1.0)
    assert effects == [fleet.expected()]
    assert [member.name for member in fleet.members] == names


def test_another_revision_replaces_all_workers():
    """The same deployment in another environment: rolled over; the same revision again changes nothing."""
    fleet, old = started(2)
    roll(fleet, fleet.deploy([wanted(replicas=2)], 1.0, revision="b"), 2.0)
    new = [member.name for member in fleet.members]
    assert len(new) == 2
    assert set(new).isdisjoint(old)
    assert launched(fleet.deploy([wanted(replicas=2)], 3.0, revision="b")) == []


def test_another_task_under_the_same_name_is_another_deployment():
    """No request is served by both: the old workers go at once, the new ones come."""
    fleet, old = started(2)
    other = wanted(replicas=2, task=ty.PipelineTask.AUDIO_GENERATION)
    effects = fleet.deploy([other], 1.0)
    assert drained(effects) == old
    assert len(launched(effects)) == 2


def test_where_there_is_no_place_for_one_more_an_old_one_makes_room():
    """The new worker waits for a place: after a while one old worker is let go before it serves, and only one."""
    fleet, old = started(2)
    [new] = launched(fleet.deploy([wanted(replicas=2, options={"a": 1})], 0.0))
    fleet.unplaced({new: "no free GPU"}, 1.0)
    assert fleet.tick(CRAMPED_S) == []
    effects = fleet.tick(CRAMPED_S + 0.1)
    assert (drained(effects), launched(effects)) == ([old[0]], [])
    assert fleet.tick(CRAMPED_S + 5.0) == []
    assert fleet.worker_ended(old[0], "drained", 20.0) == []
    [newer] = launched(fleet.unplaced({}, 21.0))
    assert fleet.tick(100.0) == []
    assert fleet.worker_ready(new, 101.0) == []
    assert drained(fleet.unplaced({newer: "no free GPU"}, 102.0)) == [old[1]]


# -- places -----------------------------------------------------------------------------------------------------------


def pending(effects: Sequence[Effect]) -> list[str]:
    return [entry.pending for effect in effects if isinstance(effect, Announce) for entry in effect.expected]


def test_workers_without_a_place_are_told_of_and_not_counted_as_failures():
    """What is missing is announced when it changes; the limit for a start begins when there is a place."""
    fleet = Fleet(start_limit_s=50.0)
    one, two = launched(fleet.deploy([wanted(replicas=2)], 0.0))
    why = {one: "no node has 2 GPUs", two: "no node has 2 GPUs"}
    assert pending(fleet.unplaced(why, 5.0)) == ["2 of 2 workers wait for a place: no node has 2 GPUs"]
    assert fleet.unplaced(why, 6.0) == []
    assert fleet.tick(1000.0) == []
    assert pending(fleet.unplaced({two: "no node has 2 GPUs"}, 1000.0)) == [
        "1 of 2 workers wait for a place: no node has 2 GPUs"
    ]
    assert killed(fleet.tick(1051.0)) == [one]
    assert pending(fleet.worker_ready(two, 1052.0)) == [""]


def test_a_worker_whose_node_is_about_to_go_is_replaced_before():
    """Another starts beside it, and it is let go when that one serves; a node that stays after all keeps its worker."""
    fleet, old = started(2)
    [new] = launched(fleet.doomed({old[0]}, 1.0))
    assert fleet.tick(5.0) == []
    assert drained(fleet.worker_ready(new, 6.0)) == [old[0]]
    assert fleet.worker_ended(old[0], "drained", 7.0) == []
    [newer] = launched(fleet.doomed({old[1]}, 8.0))
    assert killed(fleet.doomed((), 9.0)) == [newer]


def test_where_there_is_no_place_but_on_the_node_that_goes_its_worker_serves_to_the_end():
    """Unlike a change, for which one makes room: its place would be nobody's."""
    fleet, [old] = started(1)
    [new] = launched(fleet.doomed({old}, 0.0))
    fleet.unplaced({new: "no free GPU"}, 1.0)
    assert fleet.tick(CRAMPED_S + 100.0) == []


def test_a_deployment_that_is_gone_ends():
    """Its workers are drained, those still loading killed, and none comes back."""
    fleet, [ready] = started(1)
    [starting] = launched(fleet.deploy([wanted(replicas=2)], 1.0))
    effects = fleet.deploy([wanted("other", 0)], 2.0)
    assert (drained(effects), killed(effects)) == ([ready], [starting])
    assert announced(effects) == {"other": ""}
    for name in (ready, starting):
        assert fleet.worker_ended(name, "gone", 3.0) == []
    assert fleet.members == []


def test_the_same_list_again_changes_nothing():
    """Deploying what is deployed only tells the coordinator again."""
    fleet, _ = started(2)
    effects = fleet.deploy([wanted(replicas=2)], 1.0)
    assert effects == [fleet.expected()]


@pytest.mark.parametrize("name", ["stranger", ""])
def test_strangers_change_nothing(name):
    """Word about workers that are not the fleet's is ignored."""
    fleet, _ = started(1)
    assert fleet.worker_ready(name, 1.0) == []
    assert fleet.start_failed(name, "x") == []
    assert fleet.worker_lost(name, "x") == []
    assert fleet.worker_ended(name, "x", 1.0) == []
    assert len(fleet.members) == 1


# -- trouble ----------------------------------------------------------------------------------------------------------


def test_a_failed_start_is_tried_again_later_and_later():
    """Half a second, then a second; never while the delay lasts."""
    fleet = Fleet()
    [name] = launched(fleet.deploy([wanted()], 0.0))
    assert fail(fleet, name, 10.0) == []
    assert fleet.tick(10.4) == []
    [name] = launched(fleet.tick(10.5))
    assert fail(fleet, name, 20.0) == []
    assert fleet.tick(20.9) == []
    assert len(launched(fleet.tick(21.0))) == 1


def given_up() -> Fleet:
    """A fleet whose one deployment is unhealthy, at time 100."""
    fleet = Fleet()
    fleet.deploy([wanted()], 0.0)
    for failure in range(MAX_START_FAILURES):
        [member] = fleet.members
        effects = fail(fleet, member.name, 10.0 * failure, f"Traceback ...\nValueError: number {failure}")
        fleet.tick(10.0 * failure + 5.0)
    assert list(announced(effects)) == ["m"]
    return fleet


def test_a_deployment_that_never_starts_is_given_up():
    """After three failures in a row: the coordinator is told the traceback, and nothing more is launched."""
    fleet = given_up()
    assert fleet.members == []
    assert fleet.tick(1e9) == []
    [entry] = fleet.expected().expected
    assert entry.unhealthy == "3 workers in a row failed to start; the last: Traceback ...\nValueError: number 2"


def test_a_changed_deployment_gets_a_fresh_start():
    """New options: healthy again, and launched at once."""
    effects = given_up().deploy([wanted(options={"a": 1})], 100.0)
    assert announced(effects) == {"m": ""}
    assert len(launched(effects)) == 1


def test_deploying_again_gives_another_chance():
    """The same deployment, when what it lacked is there now: healthy until it has failed three times again."""
    fleet = given_up()
    effects = fleet.deploy([wanted()], 100.0)
    assert announced(effects) == {"m": ""}
    [name] = launched(effects)
    assert announced(fail(fleet, name, 101.0)) == {}


def test_more_replicas_of_what_is_given_up_are_another_chance_too():
    """Scaling is deploying."""
    assert len(launched(given_up().deploy([wanted(replicas=3)], 100.0))) == 3


def test_one_that_starts_at_last_makes_its_deployment_healthy():
    """Of several that started together, one was slow: it serves, the coordinator hears so, the rest is tried again."""
    fleet = Fleet()
    names = launched(fleet.deploy([wanted(replicas=4)], 0.0))
    for name in names[:3]:
        effects = fail(fleet, name, 1.0)
    assert "no weights" in announced(effects)["m"]
    assert announced(fleet.worker_ready(names[3], 2.0)) == {"m": ""}
    assert len(launched(fleet.tick(100.0))) == 3


def test_failures_are_counted_in_a_row():
    """A start that succeeds makes up for those before."""
    fleet = Fleet()
    fleet.deploy([wanted()], 0.0)
    at = 0.0
    for _ in range(2 * MAX_START_FAILURES):
        for _ in range(MAX_START_FAILURES - 1):
            at += 100.0
            assert announced(fail(fleet, fleet.members[0].name, at)) == {}
            at += 100.0
            fleet.tick(at)
        fleet.worker_ready(fleet.members[0].name, at)
        fleet.worker_ended(fleet.members[0].name, "killed", at + 50.0)


def test_a_traceback_that_comes_after_the_end_of_its_process_is_not_lost():
    """The news of a process's end may be faster than the coordinator's notice: the next failure tells it."""
    fleet = Fleet()
    fleet.deploy([wanted()], 0.0)
    for number in range(3):
        [member] = fleet.members
        effects = fleet.worker_ended(member.name, "its process ended with code 3", 10.0 * number)
        assert fleet.start_failed(member.name, "ValueError: no weights") == []
        fleet.tick(10.0 * number + 5.0)
    assert announced(effects)["m"].endswith("the last: ValueError: no weights")


def test_a_death_without_a_word_while_starting_is_a_failure_too():
    """Killed by the system while it loads: three times, and the process's end is the reason told."""
    fleet = Fleet()
    fleet.deploy([wanted()], 0.0)
    for number in range(3):
        effects = fleet.worker_ended(fleet.members[0].name, "its process was killed by signal 9", 10.0 * number)
        fleet.tick(10.0 * number + 5.0)
    assert "the last: its process was killed by signal 9" in announced(effects)["m"]


def test_workers_that_end_while_no_coordinator_is_heard_are_no_failed_starts():
    """They had nobody to work for: they are replaced, later and later when they live short, and nothing is given up."""
    fleet = Fleet()
    names = launched(fleet.deploy([wanted(replicas=MAX_START_FAILURES + 1)], 0.0))
    assert fleet.coordinator_silent() == []
    effects = [effect for name in names for effect in fleet.worker_ended(name, "its process ended with code 4", 40.0)]
    assert announced(effects) == {}
    again = launched(effects)
    assert len(again) == len(names)
    for name in again[:-1]:
        fleet.worker_ended(name, "heard a coordinator, and failed", 50.0)
    [entry] = fleet.expected().expected
    assert "3 workers in a row failed to start" in entry.unhealthy


def test_a_start_that_fails_in_words_counts_even_then():
    """A traceback that arrived says something of the pipeline, whoever was heard; and no loop runs without a pause."""
    fleet = Fleet()
    (name,) = launched(fleet.deploy([wanted()], 0.0))
    for number in range(MAX_START_FAILURES):
        fleet.coordinator_silent()
        fleet.start_failed(name, f"Traceback {number}")
        effects = [*fleet.worker_ended(name, "code 3", 100.0 * number), *fleet.tick(100.0 * number + 50.0)]
        name = "".join(launched(effects))
    assert announced(effects)["m"].endswith("Traceback 2")


def test_ends_without_a_coordinator_are_no_tight_loop():
    """What ends at once, again and again, is started again later and later."""
    fleet = Fleet()
    (name,) = launched(fleet.deploy([wanted()], 0.0))
    at, pauses = 0.0, []
    for _ in range(4):
        fleet.coordinator_silent()
        effects, ended = fleet.worker_ended(name, "code 3", at), at
        while not launched(effects):
            at += 0.25
            effects = fleet.tick(at)
        (name,) = launched(effects)
        pauses.append(at - ended)
    assert pauses == [0.0, 0.5, 1.0, 2.0]


def test_workers_that_die_young_are_replaced_with_growing_delay():
    """The first at once, the next ones later and later, up to a bound; one long life, and all is well again."""
    fleet, [name] = started(1)
    at, delays = 0.0, []
    for _ in range(9):
        at += 1.0
        effects = fleet.worker_ended(name, "killed", at)
        died = at
        while not launched(effects):
            at += 0.5
            effects = fleet.tick(at)
        delays.append(at - died)
        [name] = launched(effects)
        fleet.worker_ready(name, at)
    assert delays == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]
    assert launched(fleet.worker_ended(name, "killed", at + QUICK_DEATH_S)) != []


def test_a_long_life_does_not_shorten_the_wait_of_others():
    """A delay that failing starts have earned outlasts the death of an old worker."""
    fleet, [old] = started(1)
    [new] = launched(fleet.deploy([wanted(replicas=2)], 100.0))
    assert fail(fleet, new, 100.0) == []
    assert fleet.worker_ended(old, "killed", 100.1) == []
    assert len(launched(fleet.tick(100.5))) == 2


@pytest.mark.parametrize("state", [MemberState.STARTING, MemberState.READY])
def test_a_worker_that_the_coordinator_lost_is_killed(state):
    """Hung or silent, it may still run: it must go, and its end counts once."""
    fleet = Fleet()
    [name] = launched(fleet.deploy([wanted()], 0.0))
    if state is MemberState.READY:
        fleet.worker_ready(name, 1.0)
    assert fleet.worker_lost(name, "worker m-1 made no progress for 300 s") == [Kill(name=name)]
    assert len(fleet.members) == 1
    fleet.worker_ended(name, "its process was killed by signal 9", 50.0)
    assert len(launched(fleet.tick(100.0)) + fleet.members) >= 1
    assert name not in [member.name for member in fleet.members]


def test_a_worker_that_never_gets_ready_is_killed():
    """After the limit, once per limit; then its death is a failed start with that reason."""
    fleet = Fleet(start_limit_s=300.0)
    [name] = launched(fleet.deploy([wanted()], 0.0))
    assert fleet.tick(300.0) == []
    assert killed(fleet.tick(301.0)) == [name]
    assert fleet.tick(302.0) == []
    fleet.worker_ended(name, "its process was killed by signal 9", 303.0)
    for number in range(2):
        [member] = fleet.members or [fleet.tick(400.0 * (number + 1))[0]]
        effects = fleet.worker_ended(member.name, "x", 500.0 * (number + 1))
    assert announced(effects)["m"].startswith("3 workers in a row failed to start")


def test_a_worker_that_does_not_drain_is_killed():
    """After the limit; nobody takes its place, since nobody wants one."""
    fleet, [name] = started(1, drain_s=30.0)
    assert drained(fleet.deploy([wanted(replicas=0)], 10.0)) == [name]
    assert fleet.worker_lost(name, "left") == []
    assert fleet.tick(40.0) == []
    assert killed(fleet.tick(40.1)) == [name]
    assert fleet.worker_ended(name, "killed", 41.0) == []
    assert fleet.members == []


# -- the end ----------------------------------------------------------------------------------------------------------


def test_stopping_drains_all_and_tells_once_when_all_have_ended():
    """Workers that serve are drained, those that load killed; `Finished` comes after the last, and only once."""
    fleet, [ready] = started(1)
    [starting] = launched(fleet.deploy([wanted(replicas=2)], 1.0))
    effects = fleet.stop(2.0)
    assert (drained(effects), killed(effects)) == ([ready], [starting])
    assert fleet.worker_ended(starting, "killed", 3.0) == []
    assert fleet.worker_ended(ready, "drained", 4.0) == [Finished()]
    assert fleet.tick(5.0) == []
    assert fleet.stop(6.0) == []


def test_stopping_with_nobody_there_is_finished_at_once():
    """An empty fleet has nothing to wait for."""
    fleet = Fleet()
    assert fleet.stop(0.0) == [Finished()]
    assert fleet.stop(1.0) == []


def test_nothing_is_deployed_after_the_end():
    """A late order starts no worker that nobody would end."""
    fleet, [name] = started(1)
    fleet.stop(1.0)
    assert fleet.deploy([wanted(replicas=5)], 2.0) == []
    assert fleet.worker_ended(name, "drained", 3.0) == [Finished()]
    assert fleet.deploy([wanted(replicas=5)], 4.0) == []
    assert fleet.members == []


def test_a_worker_that_gets_ready_while_it_is_dismissed_stays_dismissed():
    """READY crosses the order to end: it is killed or drained all the same."""
    fleet = Fleet()
    [name] = launched(fleet.deploy([wanted()], 0.0))
    fleet.stop(1.0)
    assert fleet.worker_ready(name, 2.0) == [Drain(name=name)]
    assert [member.state for member in fleet.members] == [MemberState.DRAINING]


def test_a_coordinator_that_has_not_heard_who_is_to_leave_is_told():
    """The order went to one that died of it: its successor says that the worker serves, and gets the order again."""
    fleet, [name] = started(1)
    assert fleet.stop(1.0) == [Drain(name=name)]
    assert fleet.worker_ready(name, 2.0) == [Drain(name=name)]
    assert fleet.tick(3.0) == []
    assert fleet.worker_ended(name, "drained", 4.0) == [Finished()]


# -- anything at any time ---------------------------------------------------------------------------------------------

models = st.sampled_from(["a", "b", "a-1"])
deployments = st.lists(
    st.builds(
        lambda model, replicas, version: wanted(model, replicas, options={"v": version}),
        models,
        st.integers(0, 4),
        st.integers(0, 2),
    ),
    max_size=4,
).map(lambda many: list({deployment.model: deployment for deployment in many}.values()))


class AnyCourse(RuleBasedStateMachine):
    """A world of processes that start, serve, fail, die and are killed, in any order, around one fleet."""

    @initialize()
    def begin(self) -> None:
        self.fleet = Fleet(start_limit_s=50.0, drain_s=20.0)
        self.at = 0.0
        #: Processes that run and what they were launched with; those told to finish, and those killed.
        self.alive: dict[str, ty.Deployment] = {}
        self.drained: set[str] = set()
        self.killed: set[str] = set()
        #: Those whose node is about to go.
        self.uprooted: set[str] = set()
        self.ever: set[str] = set()
        self.wanted: dict[str, ty.Deployment] = {}
        self.stopping = False
        self.finished = 0

    def see(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Launch(name=name, deployment=deployment):
                    assert name not in self.ever, "a name is used twice"
                    assert not self.stopping, "launched after the end"
                    assert deployment == self.wanted[deployment.name]
                    self.ever.add(name)
                    self.alive[name] = deployment
                case Drain(name=name):
                    assert name in self.alive
                    assert name not in self.drained, "told to finish twice"
                    self.drained.add(name)
                case Kill(name=name):
                    assert name in self.alive, "killed what does not run"
                    self.killed.add(name)
                case Announce(expected=expected):
                    assert {entry.deployment.name: entry.deployment for entry in expected} == self.wanted
                case Finished():
                    assert self.stopping
                    assert not self.alive, "finished while workers run"
                    self.finished += 1

    @rule()
    def no_coordinator(self) -> None:
        self.see(self.fleet.coordinator_silent())

    @rule(many=deployments)
    def deploy(self, many: list[ty.Deployment]) -> None:
        if not self.stopping:
            self.wanted = {deployment.name: deployment for deployment in many}
        self.see(self.fleet.deploy(many, self.at))

    @rule(seconds=st.sampled_from([0.0, 0.1, 0.6, 3.0, 25.0, 60.0]))
    def tick(self, seconds: float) -> None:
        self.at += seconds
        self.see(self.fleet.tick(self.at))

    def any_name(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from([*sorted(self.ever), "stranger"]))

    @rule(data=st.data())
    def ready(self, data: st.DataObject) -> None:
        """Whoever says so of one that is to leave has not heard that it is."""
        name = self.any_name(data)
        leaving = name in self.drained and name in self.alive
        self.drained.discard(name)
        self.see(self.fleet.worker_ready(name, self.at))
        assert name in self.drained or not leaving

    @rule(data=st.data())
    def start_failed(self, data: st.DataObject) -> None:
        self.see(self.fleet.start_failed(self.any_name(data), "Traceback"))

    @rule(data=st.data())
    def unplaced(self, data: st.DataObject) -> None:
        names = data.draw(st.sets(st.sampled_from([*sorted(self.alive), "stranger"])))
        self.see(self.fleet.unplaced(dict.fromkeys(names, "no room"), self.at))

    @rule(data=st.data())
    def uproot(self, data: st.DataObject) -> None:
        self.uprooted = data.draw(st.sets(st.sampled_from([*sorted(self.alive), "stranger"])))
        self.see(self.fleet.doomed(self.uprooted, self.at))

    @rule(data=st.data())
    def lost(self, data: st.DataObject) -> None:
        self.see(self.fleet.worker_lost(self.any_name(data), "it hung"))

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def ended(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.alive)))
        self.end(name)
        self.see(self.fleet.worker_ended(name, "again", self.at))

    def end(self, name: str) -> None:
        del self.alive[name]
        self.see(self.fleet.worker_ended(name, "its process ended", self.at))

    @property
    def doomed(self) -> list[str]:
        return [name for name in sorted(self.alive) if name in self.drained | self.killed]

    @precondition(lambda self: len(self.ever) > 3)
    @rule()
    def stop(self) -> None:
        self.stopping, self.wanted = True, {}
        self.see(self.fleet.stop(self.at))

    @invariant()
    def holds(self) -> None:
        self.fleet.check_invariants()
        assert sorted(member.name for member in self.fleet.members) == sorted(self.alive)
        assert self.finished <= 1
        for name, deployment in self.wanted.items():
            serving = {n: d for n, d in self.alive.items() if d.name == name and n not in self.doomed}
            rolling = any(d.options != deployment.options or n in self.uprooted for n, d in serving.items())
            assert len(serving) <= deployment.replicas + rolling * max(1, deployment.replicas // 4)

    def teardown(self) -> None:
        """Left in peace, with every process doing as it is told, the fleet gets to what is wanted."""
        if not hasattr(self, "fleet"):
            return
        self.uprooted = set()
        self.see(self.fleet.doomed((), self.at))
        for _ in range(12):
            for name in self.doomed:
                self.end(name)
            self.see(self.fleet.deploy(list(self.wanted.values()), self.at))
            for name in sorted(self.alive):
                self.see(self.fleet.worker_ready(name, self.at))
            self.tick(16.0)
            self.holds()
        counts = {name: sum(d.name == name for d in self.alive.values()) for name in self.wanted}
        assert counts == {name: deployment.replicas for name, deployment in self.wanted.items()}
        assert len(self.alive) == sum(counts.values())
        assert all(d.options == self.wanted[d.name].options for d in self.alive.values())
        assert self.finished == self.stopping


TestAnyCourse = AnyCourse.TestCase
TestAnyCourse.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
