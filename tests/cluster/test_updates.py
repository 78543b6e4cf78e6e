"""What runs is changed under load, on real processes: not one request fails, and the change arrives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import pytest

import tensoryard as ty
from tensoryard import errors

from .conftest import PIPELINES, small_deployments
from .load import Load

pytestmark = pytest.mark.process


def moody(**changes: object) -> ty.Deployment:
    return msgspec.structs.replace(small_deployments()[1], **changes)


def workers(client: ty.Client) -> set[str]:
    return {worker.name for model in client.status().models for worker in model.workers if model.model == "moody"}


def test_options_and_numbers_change_under_load(eventually: Callable[..., None]) -> None:
    """Other options, more workers, fewer workers, a model that comes and goes: every request is answered, rightly."""
    wanted = moody()
    with ty.local([wanted], runtime="process") as yard, yard.connect() as client:
        yard.wait_ready()
        with Load(client) as load:
            for change in ({"options": {"folder": "a"}}, {"replicas": 3}, {"replicas": 1}, {"max_wait_ms": 0.0}):
                before, answered = workers(client), load.answered
                wanted = msgspec.structs.replace(wanted, **change)
                yard.deploy([wanted, small_deployments(1)[0]])
                yard.wait_ready()
                assert bool(workers(client) & before) == ("replicas" in change)
                # One worker less is there at once: an answer may take longer than the change.
                eventually(partial(load.has_answered_more_than, answered), "the changed cluster answers")
            yard.deploy([wanted])
            yard.wait_ready()
        # Known until its last worker has left.
        eventually(lambda: "plus-one" not in {model.model for model in client.status().models}, "the model has gone")
        with pytest.raises(errors.UnknownModel):
            client.embed("four", model="plus-one")


def test_a_single_worker_is_replaced_only_when_another_serves(tmp_path: Path, eventually: Callable[..., None]) -> None:
    """The new one cannot start before a file is there: until then the old one serves, alone."""
    gate = tmp_path / "gate"
    waiting = tmp_path / "waiting.py"
    waiting.write_text(
        f"import os, time, runpy\n"
        f"def create():\n"
        f"    while not os.path.exists({str(gate)!r}):\n"
        f"        time.sleep(0.01)\n"
        f"    return runpy.run_path({str(PIPELINES)!r})['Moody']()\n"
    )
    with ty.local([moody(replicas=1)], runtime="process") as yard, yard.connect() as client:
        yard.wait_ready()
        with Load(client) as load:
            yard.deploy([moody(replicas=1, pipeline=f"{waiting}:create")])
            with pytest.raises(TimeoutError, match="workers yet to be replaced: 1"):
                yard.wait_ready(1.0)
            assert workers(client) >= {"moody-1"}
            assert client.status().models[0].pending == "workers yet to be replaced: 1"
            answered = load.answered
            gate.touch()
            yard.wait_ready()
            assert workers(client) == {"moody-2"}
            eventually(partial(load.has_answered_more_than, answered), "requests are answered by the new worker")


def test_two_deployments_of_one_model_are_refused() -> None:
    """And what runs goes on."""
    with ty.local([moody(replicas=1)], runtime="process") as yard, yard.connect() as client:
        with pytest.raises(errors.ConfigError, match="more than one deployment serves model moody"):
            yard.deploy([moody(), moody()])
        assert (client.embed("four", model="moody") == 4).all()
