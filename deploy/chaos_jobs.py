"""What the clients of `tensoryard chaos` ask, and how they know a right answer from a wrong one.

Of the built-in models (`chaos_pipelines.py`) the right answer is made again here, and no two requests have the same, so
that an answer that went to the wrong request is seen. Of anybody else's model it is what the model said in calm.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from ..client import Client
from ..errors import Failed, InvalidRequest, PoolExhausted, TensoryardError
from ..proto.audio import AudioGenerationRequest
from ..proto.embeddings import EmbeddingsRequest
from ..proto.pipeline import PipelineTask
from ..proto.pixels import PixelGenerationRequest
from ..proto.request import RequestID
from . import chaos_pipelines as ours
from .answers import array_of, difference, is_like
from .submit import read_image

_Array = npt.NDArray[Any]

#: Sides of the images: below the threshold, and above it.
SMALL, LARGE = (48, 48, 3), (320, 400, 3)
#: Floating-point answers of one model to one input may differ by this, since they come out of different batches.
TOLERANCE = 1e-3
#: Inputs of somebody else's model, if not said otherwise, and most of those taken from a file.
EXAMPLES = 4
MAX_EXAMPLES = 64
#: How long an answer in calm is waited for, in seconds.
CALM_PATIENCE_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """One request, and what is wrong with an output that answers it ("" if nothing is).

    `manner`: a key of `chaos_books.MAY_END`.
    """

    kind: str
    request: Any
    problem: Callable[[Any], str]
    manner: str = "plain"


#: Requests that cost every worker that they meet its life, by their kind.
DEADLY = {"poison": ours.POISON, "hang": ours.HANG}


def deadly(kind: str, request_id: RequestID) -> Job:
    """One of them: it ends as `PoisonRequest`, or is wrong."""
    request = EmbeddingsRequest(request_id=request_id, model=ours.VECTORS, input=DEADLY[kind])
    return Job(kind=kind, request=request, problem=lambda _output: "its worker was to die of it", manner="poison")


# -- our own models ---------------------------------------------------------------------------------------------------


class OwnJobs:
    """A mix of all tasks: arrays by message and by handle, copied and in place, texts, streams."""

    def __init__(self, client: Client, rng: random.Random) -> None:
        self._client = client
        self._rng = rng
        noise = np.random.default_rng(rng.randrange(1 << 32))
        self._images: dict[tuple[int, ...], _Array] = {
            sides: noise.integers(0, 256, sides, np.uint8) for sides in (SMALL, LARGE)
        }
        self._kinds: tuple[Callable[[RequestID], Job], ...] = (self._image, self._image, self._text, self._array)
        self._kinds += (self._texts, self._speech)

    def make(self, request_id: RequestID) -> Job:
        """The next request."""
        return self._rng.choice(self._kinds)(request_id)

    def _image(self, request_id: RequestID) -> Job:
        sides = self._rng.choice((SMALL, LARGE, LARGE))
        image = self._lent(sides) if self._rng.random() < 0.5 else np.empty(sides, np.uint8)
        image[...] = self._stamped(sides)
        request = PixelGenerationRequest(request_id=request_id, model=ours.PIXELS, images=[image])
        expected = ours.mirrored(image)
        return Job(kind="image", request=request, problem=lambda output: difference(array_of(output), expected))

    def _lent(self, sides: tuple[int, ...]) -> _Array:
        """Shared memory to write in place; ordinary memory while the pool is full."""
        try:
            return self._client.empty(sides, np.uint8)
        except PoolExhausted:
            return np.empty(sides, np.uint8)

    def _stamped(self, sides: tuple[int, ...]) -> _Array:
        """An image unlike every other one."""
        image = self._images[sides]
        image.reshape(-1)[:8] = np.frombuffer(self._rng.randbytes(8), np.uint8)
        return image

    def _embedding(self, kind: str, request_id: RequestID, value: Any, inputs: Sequence[Any]) -> Job:
        request = EmbeddingsRequest(request_id=request_id, model=ours.VECTORS, input=value)
        expected = ours.vectors(inputs)
        return Job(kind=kind, request=request, problem=lambda output: difference(array_of(output), expected))

    def _text(self, request_id: RequestID) -> Job:
        text = f"{self._rng.choice((ours.LONG, ''))}{request_id}"
        return self._embedding("text", request_id, text, [text])

    def _texts(self, request_id: RequestID) -> Job:
        texts = [f"{number} {request_id}" for number in range(self._rng.randint(2, 9))]
        return self._embedding("texts", request_id, texts, texts)

    def _array(self, request_id: RequestID) -> Job:
        array = self._stamped(self._rng.choice((SMALL, LARGE))).copy()
        return self._embedding("array", request_id, array, [array])

    def _speech(self, request_id: RequestID) -> Job:
        text = f"speak {request_id}"
        request = AudioGenerationRequest(request_id=request_id, model=ours.SOUND, input=text)
        expected = np.concatenate(ours.sound(text))
        return Job(kind="sound", request=request, problem=lambda output: difference(array_of(output), expected))


# -- somebody else's --------------------------------------------------------------------------------------------------


class Blob(msgspec.Struct, frozen=True):
    """An array in a file of ours."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def of(cls, array: _Array) -> Blob:
        """As it is written."""
        return cls(array.dtype.str, array.shape, np.ascontiguousarray(array).tobytes())

    @property
    def array(self) -> _Array:
        """As it was."""
        return np.frombuffer(self.data, np.dtype(self.dtype)).reshape(self.shape)


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """One input of a model (a text or an array) and what the model answered in calm.

    `steady`: it answered the same when it was asked again; else only shape and dtype of its answers are compared.
    """

    model: str
    task: PipelineTask
    text: str = ""
    array: Blob | None = None
    answer: Blob | None = None
    steady: bool = True

    def request(self, request_id: RequestID | None = None) -> Any:
        """A fresh request."""
        common: dict[str, Any] = {"request_id": request_id or RequestID(), "model": self.model}
        value: Any = self.array.array if self.array is not None else self.text
        match self.task:
            case PipelineTask.EMBEDDINGS_GENERATION:
                return EmbeddingsRequest(input=value, **common)
            case PipelineTask.AUDIO_GENERATION:
                return AudioGenerationRequest(input=self.text, **common)
            case _ if self.array is not None:
                return PixelGenerationRequest(images=[value], **common)
        return PixelGenerationRequest(prompt=self.text, **common)

    def problem(self, output: Any) -> str:
        """How an output differs from what the model said before; "" where it does not."""
        assert self.answer is not None, "an example is learnt before it is used"
        found, expected = array_of(output), self.answer.array
        if self.steady:
            return difference(found, expected, tolerance=TOLERANCE if expected.dtype.kind == "f" else 0)
        alike = found.dtype == expected.dtype and found.ndim == expected.ndim
        return "" if alike else f"{found.dtype}{found.shape} where something like {expected.shape} was due"


class TheirJobs:
    """Requests for somebody else's models, from examples."""

    def __init__(self, examples: Sequence[Example], rng: random.Random) -> None:
        self._examples = examples
        self._rng = rng

    def make(self, request_id: RequestID) -> Job:
        """The next request."""
        example = self._rng.choice(self._examples)
        return Job(kind=example.model, request=example.request(request_id), problem=example.problem)


def learn(client: Client, model: str, task: PipelineTask, path: str | None) -> list[Example]:
    """Examples of a model with their answers in calm: each input is asked twice.

    Inputs come from the file (texts, one a line, an array or an image) or are made up by the task. Raises
    InvalidRequest when the model takes none of them.
    """
    refusal: Exception | None = None
    for inputs in [_inputs_of(path)] if path else _made_up(task):
        try:
            return [_learnt(client, _example(model, task, item)) for item in inputs]
        except (InvalidRequest, Failed) as error:
            refusal = error
    raise InvalidRequest(
        f"model {model!r} refuses what chaos would send ({refusal}); give it inputs with --inputs FILE"
    )


def _example(model: str, task: PipelineTask, item: str | _Array) -> Example:
    if isinstance(item, str):
        return Example(model=model, task=task, text=item)
    if task is PipelineTask.AUDIO_GENERATION:
        raise InvalidRequest("it makes audio of texts, not of arrays")
    return Example(model=model, task=task, array=Blob.of(item))


def _learnt(client: Client, example: Example) -> Example:
    try:
        first, again = (array_of(client.submit(example.request()).result(CALM_PATIENCE_S)).copy() for _ in range(2))
    except TensoryardError:
        raise
    except ValueError as error:
        raise InvalidRequest(f"its answer is not one array: {error}") from error
    tolerance = TOLERANCE if first.dtype.kind == "f" else 0
    return msgspec.structs.replace(example, answer=Blob.of(first), steady=is_like(again, first, tolerance=tolerance))


def _inputs_of(path: str) -> list[str | _Array]:
    """Texts, one a line; or the array in a .npy or an image file."""
    if Path(path).suffix.lower() != ".txt":
        return [read_image(path)]
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"--inputs {path} cannot be read: {error}") from error
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise InvalidRequest(f"--inputs {path} holds no text")
    return list(texts[:MAX_EXAMPLES])


def _made_up(task: PipelineTask) -> Iterator[list[str | _Array]]:
    """Inputs that a model of a task may take, the likeliest first."""
    texts: list[str | _Array] = [f"Sentence number {number}, for whoever reads it." for number in range(EXAMPLES)]
    noise = np.random.default_rng(0)
    images: list[str | _Array] = [noise.integers(0, 256, LARGE, np.uint8) for _ in range(EXAMPLES)]
    kinds = {PipelineTask.PIXEL_GENERATION: (images, texts), PipelineTask.AUDIO_GENERATION: (texts,)}
    yield from kinds.get(task, (texts, images))


def write_examples(path: Path, examples: Sequence[Example]) -> None:
    """Into a file, for the client processes."""
    path.write_bytes(msgspec.msgpack.encode(examples))


def read_examples(path: Path) -> list[Example]:
    """Out of it."""
    return msgspec.msgpack.decode(path.read_bytes(), type=list[Example])


def ids(prefix: str) -> Iterator[RequestID]:
    """RequestIDs of one client, numbered from 0."""
    return (RequestID(f"{prefix}{number}") for number in itertools.count())
