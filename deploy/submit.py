"""`tensoryard submit`: one request from the command line, of whatever task its model serves.

Texts become embeddings, image files become image files, a text becomes a WAV or more text; and it tells what happened
on the way.
Called by `cli.py`.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..client import Client, CopyLedger, Reply
from ..client.text import text_request
from ..errors import InvalidRequest, UnknownModel
from ..proto.audio import AudioGenerationRequest
from ..proto.embeddings import EmbeddingsRequest
from ..proto.pipeline import PipelineTask
from ..proto.pixels import PixelGenerationRequest
from ..proto.text_output import TextGenerationOutput
from .text import duration, say, several, size

#: Texts of one embeddings request; longer lists are sent as several, so that several workers share them.
TEXTS_PER_REQUEST = 64
#: Requests of one command under way at a time.
MAX_IN_FLIGHT = 64
#: Numbers of a vector that are shown to people.
SHOWN_NUMBERS = 6

_Content = TypeVar("_Content")
_Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line asked for."""

    model: str
    inputs: Sequence[str] = ()
    file: str | None = None
    array: str | None = None
    prompt: str = ""
    out: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    deadline_s: float | None = None
    priority: int = 0
    as_json: bool = False


def submit(client: Client, asked: Asked) -> int:
    """Send it, wait, write the result where it belongs, and say what happened on stderr."""
    task = _task_of(client, asked.model)
    started = time.monotonic()
    replies = _SENDERS[task](client, asked)
    say(_summary(replies, time.monotonic() - started), error=True)
    return 0


def _task_of(client: Client, model: str) -> PipelineTask:
    served = client.status().models
    models = {adapter.name: found.task for found in served for adapter in found.adapters}
    models |= {found.model: found.task for found in served}
    if model not in models:
        raise UnknownModel(f"no model {model!r} is served here; served are {', '.join(sorted(models)) or 'none'}")
    try:
        task = PipelineTask(models[model])
    except ValueError:
        task = PipelineTask.UNDEFINED
    if task not in _SENDERS:
        raise InvalidRequest(f"model {model!r} serves the task {models[model]!r}, which `submit` cannot ask for")
    return task


# -- embeddings -------------------------------------------------------------------------------------------------------


def _embed(client: Client, asked: Asked) -> list[Reply]:
    _refuse(asked, "prompt")
    if asked.array is not None:
        _refuse(asked, "inputs", "file")
        requests = [_embedding(asked, read_image(asked.array))]
        labels = [asked.array]
    else:
        labels = _texts(asked)
        parts = [labels[start : start + TEXTS_PER_REQUEST] for start in range(0, len(labels), TEXTS_PER_REQUEST)]
        requests = [_embedding(asked, part) for part in parts]
    replies = _send(client, asked, requests)
    vectors = np.concatenate([np.atleast_2d(reply.result().embeddings) for reply in replies])
    if asked.out is not None:
        np.save(_writable(asked.out, (".npy",)), vectors)
        say(f"{asked.out}: {vectors.dtype} {vectors.shape}")
    elif len(labels) == len(vectors):
        _show_vectors(labels, vectors, as_json=asked.as_json)
    else:
        _show_vectors([asked.model] * len(vectors), vectors, as_json=asked.as_json)
    return replies


def _embedding(asked: Asked, value: Any) -> EmbeddingsRequest:
    return EmbeddingsRequest(model=asked.model, input=value, options=asked.options)


def _show_vectors(labels: Sequence[str], vectors: _Array, *, as_json: bool) -> None:
    for label, vector in zip(labels, vectors, strict=True):
        if as_json:
            say(json.dumps({"input": label, "embedding": [float(number) for number in vector.ravel()]}))
            continue
        flat = vector.ravel()
        numbers = " ".join(f"{number:.4f}" for number in flat[:SHOWN_NUMBERS])
        more = f" ... ({flat.size} numbers)" if flat.size > SHOWN_NUMBERS else ""
        say(f"[{numbers}{more}]  {label if len(label) <= 60 else label[:57] + '...'}")


def _texts(asked: Asked) -> list[str]:
    """The texts on the command line; of a file, or of stdin, each line that is not blank."""
    if asked.inputs and asked.file is not None:
        raise InvalidRequest("give texts or --file, not both")
    if asked.inputs and list(asked.inputs) != ["-"]:
        return list(asked.inputs)
    texts = [line.strip() for line in _read_text(asked).splitlines() if line.strip()]
    if not texts:
        raise InvalidRequest("there is no text to embed: give texts, --file FILE, or lines on stdin")
    return texts


def _read_text(asked: Asked) -> str:
    if asked.file not in (None, "-"):
        assert asked.file is not None
        return _read(asked.file, lambda path: path.read_text(encoding="utf-8-sig"))
    if sys.stdin is None or sys.stdin.isatty():
        raise InvalidRequest(f"model {asked.model!r} needs a text: give it, or --file FILE, or pipe it to stdin")
    return sys.stdin.read()


# -- pixels -----------------------------------------------------------------------------------------------------------


def _paint(client: Client, asked: Asked) -> list[Reply]:
    _refuse(asked, "file", "array")
    if not asked.inputs and not asked.prompt:
        raise InvalidRequest(f"model {asked.model!r} makes images: give image files, or --prompt")
    out = _writable(asked.out, IMAGE_SUFFIXES)
    request = PixelGenerationRequest(
        model=asked.model,
        prompt=asked.prompt,
        images=[read_image(path) for path in asked.inputs],
        options=asked.options,
    )
    (reply,) = replies = _send(client, asked, [request])
    images = reply.result().images
    for place, image in enumerate(images):
        path = out if len(images) == 1 else out.with_stem(f"{out.stem}-{place + 1}")
        write_image(path, image)
        say(f"{path}: {image.dtype} {image.shape}")
    return replies


#: Files that `read_image` and `write_image` take; all but .npy need pillow.
IMAGE_SUFFIXES = (".npy", ".png", ".jpg", ".jpeg")


def read_image(path: str | Path) -> _Array:
    """An array from a .npy file, or the pixels of an image file: `(height, width)` grey or `(height, width, 3)`."""
    path = Path(path)
    if path.suffix.lower() == ".npy":
        return _read(str(path), _saved_array)
    return _read(str(path), _pixels)


def _saved_array(path: Path) -> _Array:
    array = np.load(path, allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise InvalidRequest(f"{path} holds no single array")
    return array


def _pixels(path: Path) -> _Array:
    images, turned = _pillow("Image"), _pillow("ImageOps").exif_transpose
    with images.open(path) as image:
        upright = turned(image)
        return np.asarray(upright if upright.mode in ("L", "RGB") else upright.convert("RGB"))


def write_image(path: Path, image: _Array) -> None:
    """Write .npy as it is; other files through pillow, as 8 bits per sample."""
    if path.suffix.lower() == ".npy":
        np.save(path, image)
        return
    whole = np.rint(image * 255).astype(np.uint8) if image.dtype.kind == "f" else image
    whole = (whole >> 8).astype(np.uint8) if whole.dtype == np.uint16 else whole
    picture = _pillow("Image").fromarray(whole.squeeze(axis=2) if whole.shape[2:] == (1,) else whole)
    picture.save(path, **({"quality": 92} if path.suffix.lower() != ".png" else {}))


def _pillow(module: str) -> Any:
    try:
        return importlib.import_module(f"PIL.{module}")
    except ImportError as error:
        raise InvalidRequest("reading and writing images needs pillow: pip install pillow; .npy works as is") from error


# -- audio ------------------------------------------------------------------------------------------------------------


def _speak(client: Client, asked: Asked) -> list[Reply]:
    from ..workers.pipelines.espeak import write_wav

    _refuse(asked, "array", "prompt")
    if asked.inputs and asked.file is not None:
        raise InvalidRequest("give a text or --file, not both")
    text = " ".join(asked.inputs) if asked.inputs and list(asked.inputs) != ["-"] else _read_text(asked)
    out = _writable(asked.out, (".wav",))
    request = AudioGenerationRequest(model=asked.model, input=text, options=asked.options)
    started = time.monotonic()
    (reply,) = replies = _send(client, asked, [request], wait=False)
    chunks, first_s = [], 0.0
    for chunk in reply:
        first_s = first_s or time.monotonic() - started
        chunks.append(chunk)
    rate = next((chunk.metadata.sample_rate for chunk in chunks if chunk.metadata.sample_rate), None)
    if rate is None:
        raise InvalidRequest(f"model {asked.model!r} does not tell the sample rate of its audio")
    samples = np.concatenate([chunk.audio_data for chunk in chunks], axis=-1)
    write_wav(out, samples, rate)
    say(f"{out}: {samples.shape[-1] / rate:.1f} s of sound at {rate} Hz")
    say(f"first of {several(len(chunks), 'chunk')} after {duration(first_s)}", error=True)
    return replies


# -- text -------------------------------------------------------------------------------------------------------------


def _write(client: Client, asked: Asked) -> list[Reply]:
    """Show text as its tokens come; with --json tokens, text and how it ended, whole."""
    _refuse(asked, "array", "prompt")
    if asked.inputs and asked.file is not None:
        raise InvalidRequest("give a prompt or --file, not both")
    prompt = " ".join(asked.inputs) if asked.inputs and list(asked.inputs) != ["-"] else _read_text(asked)
    request = text_request(prompt, asked.model, asked.options)
    (reply,) = replies = _send(client, asked, [request], wait=False)
    pieces = []
    for piece in reply:
        pieces.append(piece)
        if not asked.as_json:
            say(piece.text or "", end="")
    whole = TextGenerationOutput.merge(pieces)
    told = {"text": whole.text, "tokens": whole.tokens, "status": whole.final_status.value}
    say(json.dumps(told) if asked.as_json else "")
    say(f"{several(len(whole.tokens), 'token')}, {whole.final_status.value}", error=True)
    return replies


# -- common -----------------------------------------------------------------------------------------------------------

_SENDERS: dict[PipelineTask, Callable[[Client, Asked], list[Reply]]] = {
    PipelineTask.EMBEDDINGS_GENERATION: _embed,
    PipelineTask.PIXEL_GENERATION: _paint,
    PipelineTask.AUDIO_GENERATION: _speak,
    PipelineTask.TEXT_GENERATION: _write,
}


def _send(client: Client, asked: Asked, requests: Iterable[Any], *, wait: bool = True) -> list[Reply]:
    """Submit with a bound on what is under way; with `wait`, until all are answered. The first error ends it."""
    replies: list[Reply] = []
    under_way: deque[Reply] = deque()
    try:
        for request in requests:
            if len(under_way) >= MAX_IN_FLIGHT:
                under_way.popleft().result()
            replies.append(client.submit(request, deadline_s=asked.deadline_s, priority=asked.priority))
            under_way.append(replies[-1])
        while under_way and wait:
            under_way.popleft().result()
    except BaseException:
        for reply in under_way:
            reply.cancel()
        raise
    return replies


def _summary(replies: Sequence[Reply], took_s: float) -> str:
    """What happened: time, worker, bytes by handle and through sockets, copies."""
    ledgers = [reply.ledger for reply in replies]
    workers = sorted({ledger.worker for ledger in ledgers if ledger.worker})
    parts = [
        f"{several(len(replies), 'request')} in {duration(took_s)}",
        f"by {', '.join(workers) or 'an unnamed worker'}",
        f"{size(total(ledgers, 'shared_bytes_in'))} in and {size(total(ledgers, 'shared_bytes_out'))} out by handle",
        f"{size(total(ledgers, 'socket_bytes'))} through sockets",
        f"copies: {total(ledgers, 'copies_in')} in, {total(ledgers, 'copies_out')} out",
    ]
    return "; ".join(parts)


def total(ledgers: Iterable[CopyLedger], name: str) -> int:
    """The sum of one field over many ledgers."""
    return sum(getattr(ledger, name) for ledger in ledgers)


def _refuse(asked: Asked, *names: str) -> None:
    """Arguments that this task has no use for are errors, not silence."""
    flags = {"inputs": "arguments", "file": "--file", "array": "--array", "prompt": "--prompt"}
    for name in names:
        if getattr(asked, name):
            raise InvalidRequest(f"model {asked.model!r} has no use for {flags[name]}")


def _writable(out: str | None, suffixes: Sequence[str]) -> Path:
    """The path to write to, looked at before anything is computed; the result is never lost to a wrong name."""
    if out is None:
        raise InvalidRequest(f"say where the result goes: --out FILE, ending in {', '.join(suffixes)}")
    path = Path(out)
    if path.suffix.lower() not in suffixes:
        raise InvalidRequest(f"--out must end in {', '.join(suffixes)}, not {path.name!r}")
    if not path.absolute().parent.is_dir():
        raise InvalidRequest(f"--out {out}: there is no folder {path.absolute().parent}")
    if path.suffix.lower() in IMAGE_SUFFIXES[1:]:
        _pillow("Image")
    return path


def _read(path: str, how: Callable[[Path], _Content]) -> _Content:
    try:
        return how(Path(path))
    except InvalidRequest:
        raise
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise InvalidRequest(f"{path} cannot be read: {error}") from error
