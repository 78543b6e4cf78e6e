"""The desk where a worker's adapters come and go: in order, beside the session, and for no earlier coordinator."""

from __future__ import annotations

import pytest

from tensoryard.proto import wire
from tensoryard.proto.lora import LoRAOperation, LoRAResponse, LoRAStatus
from tensoryard.workers.adapters import AdapterDesk


class Registry:
    """Adapters that are names alone; `during` is called while one is being loaded."""

    def __init__(self):
        self.loaded = {}
        self.seen = []
        self.during = lambda: None

    def handle(self, request):
        self.seen.append((request.operation.value, request.lora_name))
        if request.operation is LoRAOperation.LOAD:
            self.during()
            self.loaded[request.lora_name] = request.lora_path
        elif self.loaded.pop(request.lora_name, None) is None:
            return LoRAResponse(LoRAStatus.UNLOAD_NAME_NONEXISTENT, "none of that name")
        return LoRAResponse(LoRAStatus.SUCCESS, ["done", "well"])


class Scene:
    def __init__(self):
        self.posted, self.spawned = [], []
        self.registry = Registry()
        self.desk = AdapterDesk(self.posted.append, self.spawned.append)
        self.desk.begin(self.registry)

    def ask(self, number, operation="load", name="x", path="/x"):
        self.desk.take(wire.LoraWork(number=number, operation=operation, lora_name=name, lora_path=path))

    def run(self):
        while self.spawned:
            self.spawned.pop(0)()

    def said(self):
        return [(each.number, each.status) for each in self.posted]


@pytest.fixture
def scene():
    return Scene()


def test_w_61_everything_is_done_in_order(scene):
    """One thread works off what comes, also what comes meanwhile; each gets an answer of its number."""
    scene.ask(1)
    scene.ask(2, "unload", path="")
    scene.ask(3, "unload", path="")
    assert len(scene.spawned) == 1
    assert scene.posted == []
    scene.run()
    scene.ask(4)
    scene.run()
    missing = LoRAStatus.UNLOAD_NAME_NONEXISTENT.value
    assert scene.said() == [(1, "success"), (2, "success"), (3, missing), (4, "success")]
    assert scene.posted[0] == wire.LoraDone(number=1, lora_name="x", status="success", text="done; well")
    assert scene.desk.announce() == [wire.LoadedAdapter(lora_name="x", lora_path="/x")]


def test_w_61_what_an_earlier_coordinator_asked_for_is_not_done(scene):
    """What waits when READY leaves is dropped without an answer."""
    scene.ask(1)
    assert scene.desk.announce() == []
    scene.run()
    assert scene.registry.seen == []
    assert scene.posted == []


def test_w_61_what_was_being_loaded_meanwhile_is_undone(scene):
    """READY could not name it; an adapter that it did name stays, whoever asks for it again."""
    scene.registry.during = scene.desk.announce
    scene.ask(1)
    scene.run()
    assert scene.registry.loaded == {}
    assert scene.posted == []
    scene.registry.loaded["y"] = "/y"
    scene.ask(2, name="y", path="/y")
    scene.run()
    assert scene.registry.loaded == {"y": "/y"}
    assert scene.posted == []


def test_what_cannot_be_done_is_said():
    """A pipeline without adapters, and an operation that is none."""
    scene = Scene()
    scene.ask(1, "sing")
    scene.run()
    scene.desk.begin(None)
    scene.ask(2)
    scene.run()
    assert scene.said() == [(1, "unspecified_error"), (2, "load_error")]
    assert "takes no adapters" in scene.posted[1].text
    assert scene.desk.announce() == []
