"""Small pipelines for the cluster tests, named by file as a user's own would be."""

import os
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np

import tensoryard as ty
from tensoryard import faults
from tensoryard.proto import OneShotContext


class PlusOne(ty.Pipeline):
    """Adds one to each image, writing into memory lent by the worker; refuses memory that it could write to."""

    max_batch_size = 4

    def execute(self, inputs):
        return {rid: self._one(rid, ctx) for rid, ctx in inputs.batch.items()}

    def _one(self, rid: ty.RequestID, ctx: OneShotContext):
        if word_of(ctx) == "state":
            return answer_of(rid, ctx, [0, ctx._allocate.func.__self__.statistics().used_blocks])
        source = ctx.arrays[0]
        assert not source.flags.writeable, "a worker can write to its caller's memory"
        if source.nbytes >= 64 << 10:
            require_read_only(source)
        out = ctx.allocate(source.shape, source.dtype)
        np.add(source, 1, out=out, casting="unsafe")
        return ty.GenerationOutput.of_images(rid, [out])

    def release(self, request_id):
        pass


def require_read_only(shared: np.ndarray) -> None:
    """Shared memory cannot be made writable either."""
    try:
        shared.flags.writeable = True
    except ValueError:
        return
    raise AssertionError("a worker could make its caller's memory writable")


class Echo(ty.Pipeline):
    """Adds one to each array of numbers, whatever its size; a fault point is inside."""

    max_batch_size = 4

    def execute(self, inputs):
        faults.reach("worker.inside") if faults.ARMED else None
        return {rid: self._one(ctx) for rid, ctx in inputs.batch.items()}

    def _one(self, ctx):
        (source,) = ctx.arrays
        out = ctx.allocate(source.shape, source.dtype)
        np.add(source, 1, out=out)
        return ty.EmbeddingsGenerationOutput(embeddings=out)

    def release(self, request_id):
        pass


def echo():
    return Echo()


class Moody(ty.Pipeline):
    """Embeds texts as their length, and does what some of them say: raise, fail, sleep, die, answer nonsense."""

    max_batch_size = 8

    def __init__(self, folder=""):
        self.folder = folder

    def execute(self, inputs):
        return {rid: self._one(ctx) for rid, ctx in inputs.batch.items() if ctx.texts != ("nothing",)}

    def _one(self, ctx):
        text = ctx.texts[0]
        match text.split(":")[0]:
            case "raise":
                raise RuntimeError("the whole batch is lost")
            case "fail":
                return ValueError("this one alone")
            case "wrong":
                return "not an output"
            case "objects":
                return ty.EmbeddingsGenerationOutput(embeddings=np.array([object()]))
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "oom":  # oom:GROUP:FLAG takes more memory than that control group allows, if the flag is not there yet
                spend_all_memory(*text.split(":")[1:])
            case "fork":  # fork:PATH leaves a child that lives until a file is there, and says its number
                child = fork(text.split(":", 1)[1])
                return ty.EmbeddingsGenerationOutput(embeddings=np.full((1, 1), child, np.float64))
            case "stopped":  # stopped:GO:STOPPED waits for one file, or until it is told to stop, and leaves the other
                go, stopped = text.split(":")[1:]
                while not os.path.exists(go) and not ctx.cancelled:
                    time.sleep(0.01)
                Path(stopped).touch() if ctx.cancelled else None
            case "until":  # until:PATH waits for a file, looking at `cancelled`
                while not os.path.exists(text.split(":", 1)[1]) and not ctx.cancelled:
                    time.sleep(0.01)
        return ty.EmbeddingsGenerationOutput(embeddings=np.full((1, 4), len(text), np.float32))

    def release(self, request_id):
        pass


def spend_all_memory(group, flag):
    if os.path.exists(flag):
        return
    Path(flag).touch()
    Path(group, "cgroup.procs").write_text(str(os.getpid()))
    hoard = [np.ones(1 << 20) for _ in range(1 << 8)]
    raise AssertionError(f"{len(hoard)} blocks fit into the control group")


def fork(path):
    pid = os.fork()
    if not pid:
        os.setsid()  # out of reach of whoever ends its parent's group
        while not os.path.exists(path):
            time.sleep(0.01)
        os._exit(0)
    return pid


class Gate(ty.Pipeline):
    """Takes a block of memory for each request, and waits until every one of its batch is cancelled.

    One that asks for "state" is answered with how many requests are begun and not released, and how many blocks of
    this worker's memory are in use.
    """

    max_batch_size = 2

    def __init__(self):
        self.begun = {}

    def execute(self, inputs):
        batch = inputs.batch
        asked = {rid: self._state(rid, ctx) for rid, ctx in batch.items() if word_of(ctx) == "state"}
        if asked:  # the others are in the next batch again, and nobody waits for them
            return {rid: asked.get(rid) or RuntimeError("in the way") for rid in batch}
        for rid, ctx in batch.items():
            self.begun[rid] = ctx.allocate(100_000, np.uint8)
        while not all(ctx.cancelled for ctx in batch.values()):
            time.sleep(0.002)
        return {rid: RuntimeError("cancelled") for rid in batch}

    def _state(self, rid, ctx):
        return answer_of(rid, ctx, [len(self.begun), ctx._allocate.func.__self__.statistics().used_blocks])

    def release(self, request_id):
        self.begun.pop(request_id, None)


def word_of(ctx):
    """What a request of any task says: its options' word."""
    return ctx.options.get("word", "")


def answer_of(rid, ctx, numbers):
    """Numbers as the output of whatever task."""
    match type(ctx).__name__:
        case "EmbeddingsRequestContext":
            return ty.EmbeddingsGenerationOutput(embeddings=np.array([numbers], np.float32))
        case "PixelContext":
            return ty.GenerationOutput.of_images(rid, [np.array(numbers, np.float32).reshape(1, -1, 1)])
        case _:
            samples = np.array(numbers, np.float32)
            status = ty.GenerationStatus.END_OF_SEQUENCE
            return ty.AudioGenerationOutput(final_status=status, steps_executed=1, audio_data=samples)


def gate():
    return Gate()


class Drip(ty.Pipeline):
    """Speaks in chunks that say their own number: as many as the text asks for, else without end.

    "steps:ID" tells how many chunks a request has got so far, "memory" how many blocks of this worker are in use,
    "held" how many requests the pipeline has begun and not released.
    """

    max_batch_size = 2

    def __init__(self, samples=4):
        self.samples = samples
        self.steps = Counter()
        self.held = set()

    def execute(self, inputs):
        faults.reach("worker.inside") if faults.ARMED else None
        return {rid: self._one(rid, ctx) for rid, ctx in inputs.batch.items()}

    def _one(self, rid, ctx):
        verb, _, number = ctx.text.partition(":")
        match verb:
            case "steps":
                return spoken(self.steps[number])
            case "memory":
                return spoken(ctx._allocate.func.__self__.statistics().used_blocks)
            case "held":
                return spoken(len(self.held))
            case "wait":  # wait:PATH is silent until a file is there, one short step after the other
                time.sleep(0.002)
                return spoken(0, last=os.path.exists(number))
        self.held.add(rid)
        self.steps[str(rid)] += 1
        return spoken(ctx.chunks_sent, self.samples, last=bool(number) and ctx.chunks_sent == int(number) - 1)

    def release(self, request_id):
        self.held.discard(request_id)


def spoken(value, samples=1, *, last=True):
    status = ty.GenerationStatus.END_OF_SEQUENCE if last else ty.GenerationStatus.ACTIVE
    data = np.full(samples, value, np.float32)
    return ty.AudioGenerationOutput(final_status=status, steps_executed=1, audio_data=data)


def drip(**options):
    return Drip(**options)


def plus_one():
    return PlusOne()


def moody(**options):
    return Moody(**options)


def broken():
    raise RuntimeError("the weights are not where they should be")
