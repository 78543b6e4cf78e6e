"""Adapters through real processes: loaded and unloaded while requests run, several at once, and across deaths."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import tensoryard as ty
from tensoryard import errors, faults
from tensoryard.deploy import cli
from tensoryard.proto import LoRAStatus
from tensoryard.proto.status import AdapterStatus
from tensoryard.workers.device import select_device
from tensoryard.workers.pipelines.llama import SMALL_MODEL
from tensoryard.workers.text.models.decoder import Decoder

pytestmark = pytest.mark.process
safetensors = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")

PROMPT = "# shelf.open(self)\n"
DEPLOYMENT = ty.Deployment(
    model="small",
    task=ty.PipelineTask.TEXT_GENERATION,
    pipeline="tensoryard.workers.pipelines.llama:create",
    options={"device": "cpu", "max_batch_size": 8, "max_adapters": 4},
    replicas=2,
    max_wait_ms=0.0,
)


def write_adapter(folder: Path, seed: int, **config: Any) -> Path:
    """A PEFT folder of random weights for the model that comes with the package."""
    random, tensors = np.random.default_rng(seed), {}
    for layer, (outputs, inputs) in Decoder.load(SMALL_MODEL, select_device("cpu")).adaptable.items():
        tensors[f"base_model.model.{layer}.lora_A.weight"] = random.normal(0, 0.1, (4, inputs)).astype(np.float32)
        tensors[f"base_model.model.{layer}.lora_B.weight"] = random.normal(0, 0.1, (outputs, 4)).astype(np.float32)
    folder.mkdir(exist_ok=True)
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": "all-linear", **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    safetensors.save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {name: write_adapter(root / name, seed) for seed, name in enumerate(("one", "two", "three"))}


@pytest.fixture(scope="module")
def yard(runtime_folder: Path) -> Iterator[ty.Yard]:
    with ty.local([DEPLOYMENT], runtime="process") as yard:
        yard.wait_ready()
        yield yard


@pytest.fixture
def client(yard: ty.Yard, eventually: Callable[..., None]) -> Iterator[ty.Client]:
    """Two workers are ready, and no adapter is there, before and after."""
    with yard.connect() as client:
        eventually(lambda: client.status().models[0].is_ready, "both workers are ready")
        yield client
        for name in adapters(client):
            assert client.unload_lora(name).status is LoRAStatus.SUCCESS


def adapters(client: ty.Client) -> dict[str, AdapterStatus]:
    return {adapter.name: adapter for adapter in client.status().models[0].adapters}


def load(client: ty.Client, folders: dict[str, Path], *names: str) -> None:
    for name in names:
        answer = client.load_lora(name, folders[name], model="small")
        assert answer.status is LoRAStatus.SUCCESS, answer.message


def request(model: str, number: int, new: int = 60) -> ty.TextGenerationRequest:
    chance = {"temperature": 0} if number % 2 else {"temperature": 0.8, "top_p": 0.9}
    params = ty.SamplingParams(**chance, seed=number, max_new_tokens=new, ignore_eos=True)
    return ty.TextGenerationRequest(model_name=model, prompt=f"# number {number}\n", sampling_params=params)


def tokens(client: ty.Client, model: str, number: int, new: int = 60) -> list[int]:
    found: list[int] = client.submit(request(model, number, new)).result(60).tokens
    return found


def test_three_adapters_at_once_are_as_if_alone(client: ty.Client, folders: dict[str, Path]) -> None:
    """With the base model among them, over two workers: each answers what it answers alone, and none like another."""
    load(client, folders, "one", "two", "three")
    names = ["one", "two", "three", "small"]
    replies = [client.submit(request(names[number % 4], number)) for number in range(24)]
    together = [reply.result(60).tokens for reply in replies]
    assert together == [tokens(client, names[number % 4], number) for number in range(24)]
    assert len({tuple(tokens(client, name, 1)) for name in names}) == 4
    found = adapters(client)
    assert sorted(found) == ["one", "three", "two"]
    assert {(adapter.state, adapter.workers) for adapter in found.values()} == {("loaded", 2)}


def test_loaded_and_unloaded_under_traffic(client: ty.Client, folders: dict[str, Path]) -> None:
    """While the base model streams, an adapter comes and goes; who has begun with it ends with it."""
    expected = tokens(client, "small", 1)
    stop, wrong = threading.Event(), []

    def traffic() -> None:
        while not stop.is_set():
            if tokens(client, "small", 1) != expected:
                wrong.append("another answer")

    thread = threading.Thread(target=traffic)
    thread.start()
    try:
        with pytest.raises(errors.UnknownModel, match="no adapter is called so"):
            tokens(client, "one", 1)
        load(client, folders, "one")
        alone = tokens(client, "one", 2, 120)
        assert alone != tokens(client, "small", 2, 120)
        stream = iter(client.submit(request("one", 2, 120)))
        begun = [next(stream) for _ in range(3)]
        late = client.unload_lora("one", timeout_s=0.001)
        assert late.status is LoRAStatus.UNSPECIFIED_ERROR
        assert "1 requests still run with the adapter 'one'" in late.message
        with pytest.raises(errors.UnknownModel, match="is draining, and takes no requests"):
            tokens(client, "one", 3)
        assert client.load_lora("one", folders["one"], model="small").status is LoRAStatus.LOAD_NAME_EXISTS
        assert [token for piece in [*begun, *stream] for token in piece.tokens] == alone
        done = client.unload_lora("one").status
        assert done in (LoRAStatus.SUCCESS, LoRAStatus.UNLOAD_NAME_NONEXISTENT)  # it may be gone by itself already
        assert adapters(client) == {}
    finally:
        stop.set()
        thread.join(60)
    assert not wrong


def test_each_outcome(client: ty.Client, folders: dict[str, Path], tmp_path: Path) -> None:
    """Over the whole way from a client to two workers and back, each is told apart and says what is wrong."""

    def answer(name: str, path: Path, model: str = "small") -> tuple[LoRAStatus, str]:
        found = client.load_lora(name, path, model=model)
        return found.status, str(found.message)

    load(client, folders, "one")
    assert answer("one", folders["one"])[0] is LoRAStatus.SUCCESS
    status, text = answer("one", folders["two"])
    assert status is LoRAStatus.LOAD_NAME_EXISTS
    assert str(folders["one"]) in text
    assert answer("small", folders["two"]) == (LoRAStatus.LOAD_NAME_EXISTS, "'small' is the name of a model")
    status, text = answer("x", tmp_path / "nowhere")
    assert status is LoRAStatus.LOAD_INVALID_PATH
    assert "nowhere has no adapter_config.json" in text
    status, text = answer("x", write_adapter(tmp_path / "dora", 1, use_dora=True))
    assert status is LoRAStatus.LOAD_INVALID_ADAPTER
    assert "`use_dora` is True" in text
    status, text = answer("x", write_adapter(tmp_path / "rank", 1, r=5))
    assert status is LoRAStatus.LOAD_INVALID_ADAPTER
    assert "with a rank of 1 to 512" in text
    assert answer("x", folders["two"], "strange")[0] is LoRAStatus.LOAD_ERROR
    for number in range(3):
        assert answer(f"more {number}", folders["two"])[0] is LoRAStatus.SUCCESS
    status, text = answer("x", folders["three"])
    assert status is LoRAStatus.LOAD_ERROR
    assert "4 adapters are loaded, which is the most (`max_adapters`)" in text
    assert client.unload_lora("x").status is LoRAStatus.UNLOAD_NAME_NONEXISTENT
    assert client.unload_lora("one", model="another").status is LoRAStatus.UNLOAD_NAME_NONEXISTENT
    assert sorted(adapters(client)) == ["more 0", "more 1", "more 2", "one"], "what failed has left nothing behind"
    with pytest.raises(errors.InvalidRequest, match="lora_path"):
        client.load_lora("x", "", model="small")


def test_a_change_of_what_runs_keeps_the_adapters(folders: dict[str, Path], eventually: Callable[..., None]) -> None:
    """All workers are replaced under load: each request with the adapter is answered, and as before."""
    with ty.local([DEPLOYMENT], runtime="process") as yard, yard.connect() as client:
        yard.wait_ready()
        load(client, folders, "one")
        expected, found = tokens(client, "one", 1), []
        stop = threading.Event()

        def traffic() -> None:
            while not stop.is_set():
                try:
                    found.append(tokens(client, "one", 1))
                except errors.TensoryardError as error:
                    found.append(error)

        thread = threading.Thread(target=traffic)
        thread.start()
        try:
            yard.deploy([msgspec.structs.replace(DEPLOYMENT, max_wait_ms=0.5)])
            yard.wait_ready()
            eventually(lambda: adapters(client)["one"].workers == 2, "the new ones have it, the old ones are gone")
            answered = len(found)
            eventually(lambda: len(found) > answered + 2, "some more are answered")
        finally:
            stop.set()
            thread.join(60)
        assert [answer for answer in found if answer != expected] == []


def test_by_the_command_line(
    client: ty.Client, folders: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loaded, listed, shown by `status`, asked, unloaded; and a failure is one line and an exit code."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main([*arguments, "--address", client.address])
        seen = capsys.readouterr()
        return code, seen.out, seen.err

    monkeypatch.chdir(folders["one"].parent)
    code, out, _ = run("lora", "load", "tone", "one", "--model", "small")
    assert (code, out) == (0, "the adapter 'tone' is loaded on 2 workers of model 'small'\n")
    code, out, _ = run("lora", "ls")
    assert code == 0
    assert out.splitlines()[-1].split() == ["tone", "small", "loaded", "2", "0", str(folders["one"])]
    assert out.splitlines()[-1] in run("status")[1]
    assert json.loads(run("lora", "ls", "--model", "small", "--json")[1])["small"][0]["name"] == "tone"
    code, out, _ = run("submit", "tone", PROMPT, "--option", "max_new_tokens=5")
    assert code == 0
    code, _, err = run("lora", "load", "tone", "two", "--model", "small")
    assert code == 1
    assert err.startswith("tensoryard: error: load_name_exists: the adapter 'tone'")
    assert run("lora", "unload", "tone")[:2] == (0, "the adapter 'tone' is unloaded\n")
    assert run("lora", "ls")[1] == "no adapter is loaded\n"


def test_in_an_event_loop(client: ty.Client, folders: dict[str, Path]) -> None:
    """The same verbs to await."""

    async def both() -> list[LoRAStatus]:
        async with await ty.connect_async(client.address) as other:
            loaded = await other.load_lora("one", folders["one"], model="small")
            answer = await other.generate(PROMPT, model="one", max_new_tokens=5)
            assert answer.tokens
            return [loaded.status, (await other.unload_lora("one", model="small")).status]

    assert asyncio.run(both()) == [LoRAStatus.SUCCESS] * 2


def test_a_killed_worker_breaks_no_stream_and_its_successor_loads(
    client: ty.Client, folders: dict[str, Path], eventually: Callable[..., None]
) -> None:
    """Streams with adapters go on elsewhere with the same tokens; whoever takes the dead one's place has them too."""
    load(client, folders, "one", "two")
    names = ["one", "two", "small", "one"]
    wanted = [tokens(client, name, number, 90) for number, name in enumerate(names)]
    streams = [iter(client.submit(request(name, number, 90))) for number, name in enumerate(names)]
    begun = [[next(stream) for _ in range(3)] for stream in streams]
    victim = max(client.status().models[0].workers, key=lambda worker: worker.in_flight)
    assert victim.in_flight
    os.kill(victim.pid, signal.SIGKILL)
    found = [
        [token for piece in [*begin, *rest] for token in piece.tokens]
        for begin, rest in zip(begun, streams, strict=True)
    ]
    assert found == wanted
    eventually(
        lambda: client.status().models[0].is_ready and all(a.workers == 2 for a in adapters(client).values()),
        "the successor has both adapters",
    )
    assert [tokens(client, name, number, 90) for number, name in enumerate(names)] == wanted


@pytest.fixture
def armed(tmp_path: Path, runtime_folder: Path) -> Iterator[tuple[ty.Yard, faults.Orders]]:
    """A cluster of its own, whose processes obey orders to die or freeze."""
    folder = tmp_path / "orders"
    folder.mkdir()
    orders = faults.Orders(folder)
    settings = ty.Settings(heartbeat_s=0.2, liveness_s=2.0)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in orders.environment.items():
            patch.setenv(name, value)
        with ty.local([DEPLOYMENT], runtime="process", settings=settings) as yard:
            yard.wait_ready()
            yield yard, orders


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_worker_lost_while_it_loads_hangs_nobody(
    armed: tuple[ty.Yard, faults.Orders], how: Any, folders: dict[str, Path], eventually: Callable[..., None]
) -> None:
    """One of two dies, or freezes, with the order in its hands: the answer is a success, its successor loads too."""
    yard, orders = armed
    with yard.connect() as client:
        orders.give("worker.on_lora_work", how)
        load(client, folders, "one")
        assert orders.reached("worker.on_lora_work")
        expected = tokens(client, "one", 1)
        eventually(lambda: client.status().models[0].is_ready, "the lost one is replaced")
        eventually(lambda: adapters(client)["one"].workers == 2, "its successor has the adapter")
        assert [tokens(client, "one", 1) for _ in range(4)] == [expected] * 4


def test_a_new_coordinator_knows_the_adapters(
    armed: tuple[ty.Yard, faults.Orders], folders: dict[str, Path], eventually: Callable[..., None]
) -> None:
    """Killed with streams under way: those go on, later requests find their adapter, and it can be unloaded."""
    yard, _ = armed
    with yard.connect() as client:
        load(client, folders, "one")
        wanted = [tokens(client, "one", number, 90) for number in range(4)]
        streams = [iter(client.submit(request("one", number, 90))) for number in range(4)]
        begun = [[next(stream) for _ in range(3)] for stream in streams]
        os.kill(yard._runtime.coordinator_pid, signal.SIGKILL)  # type: ignore[attr-defined]
        after = client.submit(request("one", 0, 90))
        found = [
            [token for piece in [*begin, *rest] for token in piece.tokens]
            for begin, rest in zip(begun, streams, strict=True)
        ]
        assert found == wanted
        assert after.result(60).tokens == wanted[0]
        eventually(lambda: adapters(client)["one"].workers == 2, "both workers have told of it")
        assert client.unload_lora("one").status is LoRAStatus.SUCCESS
        with pytest.raises(errors.UnknownModel):
            tokens(client, "one", 1)


@pytest.mark.parametrize("point", ["on_lora", "on_lora_done", "before_report"])
def test_a_coordinator_killed_in_the_midst_of_it_hangs_nobody(
    armed: tuple[ty.Yard, faults.Orders], point: str, folders: dict[str, Path], eventually: Callable[..., None]
) -> None:
    """The wish goes to its successor as well, and is fulfilled once: loading, then unloading."""
    yard, orders = armed
    with yard.connect() as client:
        orders.give(f"coordinator.{point}", "kill")
        load(client, folders, "one")
        assert orders.reached(f"coordinator.{point}")
        assert tokens(client, "one", 1)
        eventually(lambda: adapters(client)["one"].workers == 2, "both workers have it")
        orders.give(f"coordinator.{point}", "kill")
        done = client.unload_lora("one")
        assert done.status in (LoRAStatus.SUCCESS, LoRAStatus.UNLOAD_NAME_NONEXISTENT), done.message
        with pytest.raises(errors.UnknownModel):
            tokens(client, "one", 1)
