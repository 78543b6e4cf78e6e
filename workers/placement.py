"""Where workers go, pure: which node to ask Ray for, and what is missing where there is no place.

`ray_launcher.py` sees the nodes and asks; a deployment says in `placement` how its workers lie towards each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..proto.deployment import Deployment

_ROUNDING = 1e-6


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node of a cluster: what it has in all and what of it is free, and its labels."""

    id: str
    total: Mapping[str, float]
    free: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Pin:
    """The node that a worker is to run on; `soft`: on another one where that has no room."""

    node: str
    soft: bool


def needs(deployment: Deployment) -> dict[str, float]:
    """What one worker takes of a node, in Ray's words."""
    wanted = {"CPU": deployment.num_cpus, "GPU": deployment.num_gpus, **deployment.resources}
    return {name: amount for name, amount in wanted.items() if amount}


def pin(deployment: Deployment, count: int, siblings: Sequence[str], nodes: Sequence[Node]) -> Pin | None:
    """The node for one more of `count` workers, when `siblings` are the nodes of the others; None: let Ray choose.

    Packed workers go where most of the others are, the first of them to the node with room for most.
    """
    if deployment.placement not in ("PACK", "STRICT_PACK"):
        return None
    soft = deployment.placement == "PACK"
    able = {node.id: node for node in nodes if fits(deployment, node.total) and has_labels(deployment, node)}
    there = [node for node, _ in Counter(siblings).most_common() if node in able]
    if there:
        return Pin(node=there[0], soft=soft)
    if not able:
        return None
    # Of those with room for all the fullest, so that large nodes stay free for what needs them.
    best = min(able.values(), key=lambda node: (-min(room(deployment, node.free), count), room(deployment, node.free)))
    return Pin(node=best.id, soft=soft)


def fits(deployment: Deployment, amounts: Mapping[str, float]) -> bool:
    """Whether one worker finds what it takes in these amounts."""
    return all(amounts.get(name, 0.0) + _ROUNDING >= amount for name, amount in needs(deployment).items())


def room(deployment: Deployment, amounts: Mapping[str, float]) -> int:
    """How many workers fit into these amounts."""
    shares = [int(amounts.get(name, 0.0) / amount + _ROUNDING) for name, amount in needs(deployment).items()]
    return min(shares, default=1 << 30)


def has_labels(deployment: Deployment, node: Node) -> bool:
    """Whether a node has the labels that a deployment asks for."""
    return all(node.labels.get(name) == value for name, value in deployment.node_labels.items())


def missing(deployment: Deployment, nodes: Sequence[Node], pinned: str = "") -> str:
    """Why a worker has no place, in one line: what it needs, and what there is. `pinned`: the only node it may have.

    "" where a node has all of it free: then its process is just being started.
    """
    wanted = f"each needs {_amounts(needs(deployment))}"
    if not nodes:
        return f"{wanted}; there is no node"
    labelled = [node for node in nodes if has_labels(deployment, node)]
    if not labelled:
        return f"{wanted} on a node labelled {_labels(deployment.node_labels)}; no node is"
    if not any(fits(deployment, node.total) for node in labelled):
        return f"{wanted}; {_too_small(deployment, labelled)}"
    able = [node for node in labelled if fits(deployment, node.total) and pinned in ("", node.id)]
    if any(fits(deployment, node.free) for node in able):
        return ""
    most = max(able, key=lambda node: room(deployment, node.total), default=None)
    if most is None:
        return f"{wanted}; the node of the others ({pinned[:8]}) is gone"
    taken = "the node of the others is taken" if pinned else "every node that is large enough is taken"
    return (
        f"{wanted}; {taken}: free are {_amounts(_of(deployment, most.free))} of {_amounts(_of(deployment, most.total))}"
    )


def _too_small(deployment: Deployment, nodes: Sequence[Node]) -> str:
    short = {}
    for name, amount in needs(deployment).items():
        most = max(node.total.get(name, 0.0) for node in nodes)
        if most + _ROUNDING < amount:
            short[name] = most
    if not short:
        return "no node has all of it together"
    return f"the most that a node has is {_amounts(short)}"


def _of(deployment: Deployment, amounts: Mapping[str, float]) -> dict[str, float]:
    return {name: amounts.get(name, 0.0) for name in needs(deployment)}


def _amounts(amounts: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in sorted(amounts.items())) or "nothing"


def _labels(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(labels.items()))
