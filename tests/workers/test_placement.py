"""Where workers go, and what is said where there is no place for them."""

from __future__ import annotations

import pytest

from tensoryard.errors import ConfigError
from tensoryard.workers.placement import Node, Pin, missing, needs, pin, room

from .support import deployment_of


def node(name, total, free=None, **labels):
    return Node(id=name, total=total, free=total if free is None else free, labels=labels)


def wanted(**fields):
    return deployment_of("mod:create", **fields)


def test_needs_are_what_ray_reserves():
    """CPUs, GPUs and resources of the user's own; what is zero is not asked for."""
    assert needs(wanted(num_gpus=0.5, num_cpus=0, resources={"disk": 2, "none": 0})) == {"GPU": 0.5, "disk": 2}
    assert room(wanted(num_gpus=0.1, num_cpus=0), {"GPU": 1}) == 10
    assert room(wanted(num_cpus=0), {}) > 1000


@pytest.mark.parametrize("placement", ["", "SPREAD"])
def test_ray_chooses_where_it_may(placement):
    """No node is named."""
    assert pin(wanted(placement=placement), 2, ["a"], [node("a", {"CPU": 4})]) is None


def test_packed_workers_go_where_the_others_are():
    """Where most of them are, and only to a node that can hold one."""
    nodes = [node("a", {"CPU": 4}), node("b", {"CPU": 4}, {"CPU": 0}), node("c", {"CPU": 0.5})]
    assert pin(wanted(placement="PACK"), 4, ["a", "b", "b"], nodes) == Pin(node="b", soft=True)
    assert pin(wanted(placement="STRICT_PACK"), 4, ["c", "c", "a"], nodes) == Pin(node="a", soft=False)
    assert pin(wanted(placement="STRICT_PACK"), 4, ["gone"], nodes) == Pin(node="a", soft=False)
    assert pin(wanted(placement="PACK", num_gpus=1), 4, [], nodes) is None


def test_the_first_goes_where_there_is_room_for_all():
    """Of such nodes to the fullest; where there is none, to the one with room for most."""
    nodes = [node("small", {"CPU": 2}), node("fit", {"CPU": 4}), node("huge", {"CPU": 64})]
    assert pin(wanted(placement="STRICT_PACK"), 4, [], nodes) == Pin(node="fit", soft=False)
    assert pin(wanted(placement="STRICT_PACK"), 3, [], nodes) == Pin(node="fit", soft=False)
    assert pin(wanted(placement="STRICT_PACK"), 500, [], nodes) == Pin(node="huge", soft=False)


def test_labels_choose_among_nodes():
    """Packed workers too."""
    nodes = [node("a", {"CPU": 64}, zone="x"), node("b", {"CPU": 4}, zone="y")]
    assert pin(wanted(placement="PACK", node_labels={"zone": "y"}), 1, ["a"], nodes) == Pin(node="b", soft=True)


@pytest.mark.parametrize(
    ("fields", "nodes", "text"),
    [
        (
            {"num_gpus": 2},
            [node("a", {"CPU": 4, "GPU": 1}), node("b", {"CPU": 8})],
            "each needs 1 CPU, 2 GPU; the most that a node has is 1 GPU",
        ),
        (
            {"num_gpus": 1},
            [node("a", {"CPU": 4, "GPU": 1}, {"CPU": 3, "GPU": 0}), node("b", {"CPU": 8})],
            "each needs 1 CPU, 1 GPU; every node that is large enough is taken: free are 3 CPU, 0 GPU of 4 CPU, 1 GPU",
        ),
        (
            {"num_gpus": 1, "num_cpus": 8},
            [node("a", {"CPU": 4, "GPU": 1}), node("b", {"CPU": 8})],
            "each needs 8 CPU, 1 GPU; no node has all of it together",
        ),
        (
            {"node_labels": {"zone": "z", "arch": "arm"}},
            [node("a", {"CPU": 4}, zone="z")],
            "each needs 1 CPU on a node labelled arch=arm, zone=z; no node is",
        ),
        (
            {"resources": {"disk": 1}},
            [node("a", {"CPU": 4})],
            "each needs 1 CPU, 1 disk; the most that a node has is 0 disk",
        ),
        ({}, [node("a", {"CPU": 4})], ""),
        ({}, [], "each needs 1 CPU; there is no node"),
    ],
)  # fmt: skip
def test_what_is_missing_is_said(fields, nodes, text):
    """What one worker needs, and what there is of it."""
    assert missing(wanted(**fields), nodes) == text


def test_one_that_must_be_with_the_others_says_so():
    """The others' node is full, or gone."""
    nodes = [node("a", {"CPU": 1}, {"CPU": 0}), node("b", {"CPU": 1})]
    assert "the node of the others is taken: free are 0 CPU of 1 CPU" in missing(wanted(), nodes, "a")
    assert "the node of the others (c) is gone" in missing(wanted(), nodes, "c")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"placement": "ANYWHERE"}, "one of SPREAD, PACK, STRICT_PACK, or empty"),
        ({"num_gpus": 1.5}, "a fraction of one, or a whole number"),
        ({"node_labels": {"zone": 1}}, "a dict of names to values, all texts"),
        ({"node_labels": ["zone"]}, "a dict of names to values, all texts"),
    ],
)
def test_what_cannot_be_placed_is_refused_at_once(fields, words):
    """Before anything starts."""
    with pytest.raises(ConfigError, match=words):
        wanted(**fields)
