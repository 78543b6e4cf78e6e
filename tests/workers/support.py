"""What the tests of the worker runtime share: requests, pipelines that do as told, and a real worker process."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

import tensoryard as ty
from tensoryard.links.calibration import DEFAULT
from tensoryard.proto import wire
from tensoryard.proto.codec import encode_body
from tensoryard.proto.one_shot import new_context
from tensoryard.proto.pipeline import Pipeline
from tensoryard.proto.text_batch import TextGenerationInputs
from tensoryard.proto.text_context import TextContext
from tensoryard.proto.tokens import TokenBuffer
from tensoryard.settings import Settings
from tensoryard.shm import Pool
from tensoryard.workers.answers import Answer
from tensoryard.workers.batcher import Batcher, Work
from tensoryard.workers.engine import Engine
from tensoryard.workers.inbox import Inbox
from tensoryard.workers.launchers import Order

DEADLINE_S = 30.0
EMBED = ty.PipelineTask.EMBEDDINGS_GENERATION
AUDIO = ty.PipelineTask.AUDIO_GENERATION
#: Beats often, and loses nobody on a slow machine.
CALM = Settings(heartbeat_s=0.1, liveness_s=60.0, orphan_s=120.0, pool_budget_bytes=32 << 20)


def until(condition: Callable[[], object], what: str) -> None:
    """Poll until a condition holds; fail loudly, saying what was waited for."""
    give_up = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < give_up, f"not within {DEADLINE_S:.0f} s: {what}"
        time.sleep(0.005)


def embed_request(request_id: str, value: Any = "text", **fields: Any) -> ty.EmbeddingsRequest:
    return ty.EmbeddingsRequest(request_id=ty.RequestID(request_id), model="m", input=value, **fields)


def audio_request(request_id: str) -> ty.AudioGenerationRequest:
    return ty.AudioGenerationRequest(request_id=ty.RequestID(request_id), model="m", input="say")


def text_request(request_id: str) -> ty.TextGenerationRequest:
    return ty.TextGenerationRequest(request_id=ty.RequestID(request_id), model_name="m", prompt=[1, 2])


def text_context(request: ty.TextGenerationRequest) -> TextContext:
    """As a pipeline's `new_context` makes it."""
    tokens = TokenBuffer(np.array(request.prompt))
    return TextContext(request_id=request.request_id, tokens=tokens, max_length=100)


def work_of(request: Any, attempt: int = 1, *, arrived: float = 0.0, pool: Pool | None = None) -> Work:
    if isinstance(request, ty.TextGenerationRequest):
        return Work(str(request.request_id), attempt, text_context(request), arrived)
    allocate = pool.empty if pool is not None else np.empty
    context = new_context(request, options={}, allocate=allocate)
    return Work(str(request.request_id), attempt, context, arrived)


def plain_work(request_id: str, attempt: int = 1, arrived: float = 0.0) -> Work:
    return work_of(embed_request(request_id), attempt, arrived=arrived)


def embedding(array: Any) -> ty.EmbeddingsGenerationOutput:
    return ty.EmbeddingsGenerationOutput(embeddings=np.asarray(array))


def audio(status: ty.GenerationStatus, samples: int = 2) -> ty.AudioGenerationOutput:
    return ty.AudioGenerationOutput(final_status=status, steps_executed=1, audio_data=np.zeros(samples, np.float32))


class Told(Pipeline[Any, Any]):
    """A pipeline that does what a function says with the batch, and remembers what it was asked."""

    max_batch_size = 8

    def __init__(self, act: Callable[[dict[Any, Any]], Any]) -> None:
        self.act = act
        self.batches: list[list[str]] = []
        self.released: list[str] = []

    def execute(self, inputs: Any) -> Any:
        texts = isinstance(inputs, TextGenerationInputs)
        batch = {context.request_id: context for context in inputs.flat_batch} if texts else inputs.batch
        self.batches.append([str(request_id) for request_id in batch])
        return self.act(batch)

    def release(self, request_id: ty.RequestID) -> None:
        self.released.append(str(request_id))


class Bench:
    """An engine with its inbox and pool, and what it answered."""

    def __init__(
        self,
        act: Callable[[dict[Any, Any]], Any],
        pool: Pool,
        *,
        task: ty.PipelineTask = EMBED,
        settings: Settings = CALM,
        max_batch_size: int = 8,
        unread_s: float = math.inf,
    ) -> None:
        self.pipeline = Told(act)
        self.pool = pool
        self.inbox = Inbox(Batcher(max_batch_size=max_batch_size, max_wait_s=0.0, unread_s=unread_s))
        self.answers: list[Answer] = []
        self.on_send: Callable[[list[Answer]], None] = lambda _: None
        self.engine = Engine(
            pipeline=self.pipeline,
            task=task,
            inbox=self.inbox,
            pool=pool,
            send=self._send,
            limits=settings,
            settings=settings,
            threshold_bytes=DEFAULT.handle_bytes,
            worker="w-1",
        )

    def _send(self, answers: list[Answer]) -> None:
        self.answers += answers
        self.on_send(answers)

    def put(self, *requests: Any) -> list[Work]:
        works = [work_of(request, pool=self.pool) for request in requests]
        for work in works:
            self.inbox.put(work)
        return works

    def run(self) -> None:
        """Work off what was put."""
        self.inbox.drain()
        self.engine.run()

    def run_until_idle(self) -> None:
        """Work until there is nothing that can go on."""
        while batch := self.inbox.poll()[0]:
            self.engine.answer(self.engine.execute(batch))

    def answer(self, *requests: Any) -> dict[str, Answer]:
        """What each of these requests is answered, when they come together."""
        self.put(*requests)
        self.run()
        return {answer[0].request_id: answer for answer in self.answers}

    def errors(self) -> dict[str, tuple[str, str]]:
        return {output.request_id: (output.code, output.text) for output, _, _ in self.answers if output.code}


@contextlib.contextmanager
def in_thread(function: Callable[[], object]) -> Iterator[threading.Thread]:
    """Run a function beside the test; it has ended when this has."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    yield thread
    thread.join(DEADLINE_S)
    assert not thread.is_alive(), "a test's thread did not end"


def body_of(request: Any, pool: Pool | None = None) -> list[Any]:
    """A request as a client sends it; arrays in `pool` where there is one, which holds them as long as it lives."""
    if pool is None:
        return encode_body(request).frames
    encoded = encode_body(request, place=pool.publish)
    vars(pool).setdefault("kept", []).extend(encoded.loans)
    return encoded.frames


def dispatch(request: Any, attempt: int = 1, **fields: Any) -> wire.Dispatch:
    return wire.Dispatch(request_id=str(request.request_id), attempt=attempt, **fields)


def deployment_of(pipeline: str, **fields: Any) -> ty.Deployment:
    return ty.Deployment(**{"model": "m", "task": EMBED, "pipeline": pipeline, "max_wait_ms": 0.0, **fields})


def write_pipeline(folder: Path, execute: str = "return {r: output() for r in batch}", start: str = "pass") -> str:
    """A pipeline file whose factory and `execute` run this code; returns the text that names its factory."""
    file = folder / f"pipeline_{len(list(folder.iterdir()))}.py"
    indented = "\n        ".join(execute.splitlines())
    file.write_text(f"""
import ctypes, os, signal, subprocess, sys, threading, time
import numpy as np
import tensoryard as ty

def output(size=4):
    return ty.EmbeddingsGenerationOutput(embeddings=np.full(size, 7, np.float32))

class Ours(ty.Pipeline):
    max_batch_size = 2
    def execute(self, inputs):
        batch = inputs.batch
        {indented}
    def release(self, request_id):
        pass

def create(**options):
    {start}
    return Ours()
""")
    return f"{file}:create"


class WorkerProcess:
    """`python -m tensoryard.workers`, as the launcher starts it."""

    def __init__(
        self, address: str, deployment: ty.Deployment, settings: Settings = CALM, *, name: str = "w-1"
    ) -> None:
        self.life_read, self.life_write = os.pipe()
        order = os.memfd_create("order")
        os.write(order, msgspec.msgpack.encode(Order(deployment, settings)))
        os.lseek(order, 0, os.SEEK_SET)
        command = [sys.executable, "-P", "-m", "tensoryard.workers", "--connect", address, "--name", name]
        self.process = subprocess.Popen(
            [*command, "--order-fd", str(order), "--life-fd", str(self.life_read)],
            pass_fds=[order, self.life_read],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        os.close(order)
        os.close(self.life_read)
        self.pid = self.process.pid

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        return self.process.wait(DEADLINE_S)

    def end_life(self) -> None:
        """Close the pipe's other end, as the death of the starter does."""
        if self.life_write >= 0:
            os.close(self.life_write)
            self.life_write = -1

    def close(self) -> None:
        """End it and what it started, and read what it complained of. Again is harmless."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        assert self.process.stderr is not None
        if not self.process.stderr.closed:
            self.complaints = self.process.stderr.read()
            self.process.stderr.close()
        self.process.wait(DEADLINE_S)
        self.end_life()
