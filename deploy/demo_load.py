"""One client process of the demo: sends its share of the mixed requests, checks every answer, and tells what happened.

Started by `demo.py` as `python -m tensoryard.deploy.demo_load ADDRESS NUMBER REQUESTS LIFE_FD`; writes one JSON object
(a `Report`) to stdout. Ends at once when the other end of the pipe LIFE_FD is closed: then the demo has ended.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import os
import random
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from ..client import Client, Reply, connect
from ..errors import ConfigError, TensoryardError
from ..proto.audio import AudioGenerationRequest
from ..proto.embeddings import EmbeddingsRequest
from ..proto.pixels import PixelGenerationRequest
from .answers import array_of, is_like

TEXT_MODEL = "all-MiniLM-L6-v2"
PHOTO_MODEL = "photo-edit"
SPEECH_MODEL = "espeak"

#: Requests that one client keeps under way.
IN_FLIGHT = 6
#: Of ten requests, how many of each kind.
MIX = ("texts",) * 5 + ("photo",) * 3 + ("speech",) * 2
#: How long an answer is waited for before it counts as a problem.
PATIENCE_S = 120.0
#: Vectors are floating point, computed in batches that differ from ours.
VECTOR_TOLERANCE = 1e-4
#: A GPU may round a sample of an image otherwise than the CPU does; where there is none, images agree to the bit.
LEVEL_TOLERANCE = 1

EDITS: dict[str, list[dict[str, Any]]] = {
    "half": [{"op": "resize", "scale": 0.5}, {"op": "sharpen", "amount": 0.8}],
    "double": [{"op": "resize", "scale": 2.0, "order": 1}],
    "vivid": [{"op": "colour", "saturation": 1.6, "contrast": 1.2}, {"op": "sharpen"}],
    "soft": [{"op": "denoise", "method": "gaussian", "sigma": 1.5}, {"op": "colour", "brightness": 1.1}],
    "turned": [{"op": "rotate", "degrees": 90}, {"op": "flip", "direction": "vertical"}],
}

TEXTS = (
    "Requests move, tensors stay.",
    "A worker that dies is replaced, and its requests run elsewhere.",
    "The quick brown fox jumps over the lazy dog.",
    "How do I compress a folder of files?",
    "Shared memory has no name here, so nothing can be left behind.",
    "Bread needs flour, water, salt and time.",
    "The coordinator decides; it never touches a tensor.",
    "Photographs are large, and the handles that stand for them are small.",
)

SENTENCES = (
    "Requests move, and tensors stay.",
    "This sentence was spoken in one process, and heard in another.",
    "One worker speaks while the other one listens. Neither of them waits for long.",
    "A handle is a name, a shape and a place. The samples themselves stay where they were made.",
)


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One request: what it was, who served it, how long it took, and what became of its bytes."""

    kind: str
    worker: str
    round_trip_s: float
    shared_bytes: int
    socket_bytes: int
    copies_in: int
    copies_out: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What one client process did. `right` of its answers are what a local call gives; `problems` are for people.

    `took_s`: from its first request to its last answer, without the checks that follow.
    """

    records: list[Record] = []
    took_s: float = 0.0
    right: int = 0
    problems: list[str] = []


@dataclass(frozen=True, kw_only=True)
class Job:
    """One request, and how to make the same answer here. Jobs of one `key` have the same answer."""

    kind: str
    key: str
    request: Any
    locally: Callable[[], npt.NDArray[Any]]


@dataclass(kw_only=True)
class Answers:
    """All answers to the jobs of one key: the first of them, and how many were the same to the byte, or not."""

    job: Job
    first: npt.NDArray[Any]
    digest: bytes
    same: int = 0
    #: Answers that differ from the first one; vectors are compared by value instead, and never end up here.
    others: int = 0


def main(arguments: list[str]) -> int:
    """Run one client; 0 unless a request failed or an answer was wrong, 130 when it was told to end."""
    address, number, requests, life_fd = arguments
    threading.Thread(target=_end_with, args=(int(life_fd),), daemon=True).start()
    try:
        report = run(address, number=int(number), requests=int(requests))
    except KeyboardInterrupt:
        return 130
    sys.stdout.buffer.write(msgspec.json.encode(report))
    sys.stdout.flush()
    return 1 if report.problems else 0


def _end_with(life_fd: int) -> None:
    """Interrupt this process when the demo's has ended: its client then says goodbye and takes its memory along."""
    os.read(life_fd, 1)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def run(address: str, *, number: int, requests: int) -> Report:
    """Send `requests` requests, then compare every answer with what a local call gives."""
    records: list[Record] = []
    problems: list[str] = []
    answers: dict[str, Answers] = {}
    started = time.monotonic()
    with connect(address) as client:
        for job, reply in _under_way(client, make_jobs(client, number=number, requests=requests)):
            try:
                array = array_of(reply.result(PATIENCE_S))
            except TensoryardError as error:
                problems.append(f"client {number}: {job.key}: {type(error).__name__}: {error}")
                continue
            _remember(answers, job, array)
            records.append(_record(job, reply))
    took_s = time.monotonic() - started
    right = sum(_count_right(found, problems) for found in answers.values())
    return Report(records=records, took_s=took_s, right=right, problems=problems)


def make_jobs(client: Client, *, number: int, requests: int) -> Iterator[Job]:
    """A mix that depends on the client's number alone."""
    rng = random.Random(number)  # noqa: S311 - a demo's mix is no secret
    photos = load_photos()
    # The same photographs lie in shared memory once for all requests that use them, and as plain arrays.
    lent = {name: _in_shared_memory(client, photo) for name, photo in photos.items()}
    for place in range(requests):
        kind = MIX[place % len(MIX)] if place < len(MIX) else rng.choice(MIX)
        if kind == "texts":
            yield _texts_job(tuple(rng.sample(TEXTS, rng.randint(1, 4))))
        elif kind == "photo":
            name = rng.choice(sorted(photos))
            yield _photo_job(name, rng.choice([lent, photos])[name], rng.choice(sorted(EDITS)))
        else:
            yield _speech_job(rng.choice(SENTENCES))


def _in_shared_memory(client: Client, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    lent = client.empty(array.shape, array.dtype)
    lent[...] = array
    return lent


def _texts_job(texts: tuple[str, ...]) -> Job:
    request = EmbeddingsRequest(model=TEXT_MODEL, input=list(texts))
    return Job(kind="texts", key=f"texts {texts}", request=request, locally=lambda: _encoder().embed(texts))


def _photo_job(name: str, photo: npt.NDArray[Any], edit: str) -> Job:
    from ..workers.pipelines.photo_edit import edit as edit_here

    request = PixelGenerationRequest(model=PHOTO_MODEL, images=[photo], options={"operations": EDITS[edit]})
    local = functools.partial(edit_here, load_photos()[name], EDITS[edit])
    return Job(kind="photo", key=f"photo {name} {edit}", request=request, locally=local)


def _speech_job(text: str) -> Job:
    from ..workers.pipelines.espeak import speak

    request = AudioGenerationRequest(model=SPEECH_MODEL, input=text)
    return Job(kind="speech", key=f"speech {text!r}", request=request, locally=lambda: speak(text)[0])


@functools.cache
def _encoder() -> Any:
    from ..workers.pipelines.minilm import create

    return create(device="cpu")


@functools.cache
def load_photos() -> dict[str, npt.NDArray[np.uint8]]:
    """The two photographs that come with scikit-learn, which is not imported for it: uint8 (427, 640, 3)."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("the demo's photographs come with scikit-learn: pip install 'tensoryard[demo]'")
    images = importlib.import_module("PIL.Image")
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "images"
    return {path.stem: np.asarray(images.open(path).convert("RGB")) for path in sorted(folder.glob("*.jpg"))}


def _under_way(client: Client, jobs: Iterable[Job]) -> Iterator[tuple[Job, Reply]]:
    """Every job with its reply, oldest first, `IN_FLIGHT` of them under way at a time."""
    window: deque[tuple[Job, Reply]] = deque()
    for job in jobs:
        window.append((job, client.submit(job.request)))
        if len(window) >= IN_FLIGHT:
            yield window.popleft()
    yield from window


def _remember(answers: dict[str, Answers], job: Job, array: npt.NDArray[Any]) -> None:
    digest = b"" if job.kind == "texts" else hashlib.blake2b(np.ascontiguousarray(array).data).digest()
    found = answers.get(job.key)
    if found is None:
        # A copy: a view would keep the worker's memory leased for as long as this process lives.
        found = answers[job.key] = Answers(job=job, first=array.copy(), digest=digest)
    alike = found.digest == digest and (job.kind != "texts" or np.allclose(found.first, array, atol=VECTOR_TOLERANCE))
    found.same += alike
    found.others += not alike


def _record(job: Job, reply: Reply) -> Record:
    ledger = reply.ledger
    return Record(
        kind=job.kind,
        worker=ledger.worker,
        round_trip_s=ledger.round_trip_s,
        shared_bytes=ledger.shared_bytes_in + ledger.shared_bytes_out,
        socket_bytes=ledger.socket_bytes,
        copies_in=ledger.copies_in,
        copies_out=ledger.copies_out,
    )


def _count_right(found: Answers, problems: list[str]) -> int:
    """How many answers of one key are right; adds to `problems` what is not."""
    expected = found.job.locally()
    if found.others:
        problems.append(f"{found.job.key}: {found.others} answers differ from the other {found.same}")
    if not is_same(found.job.kind, found.first, expected):
        problems.append(f"{found.job.key}: the answer is not what a local call gives")
        return 0
    return found.same


def is_same(kind: str, found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> bool:
    """Whether an answer is what a local call gave."""
    if kind == "texts":
        return is_like(found, expected, tolerance=VECTOR_TOLERANCE)
    on_gpu = kind == "photo" and _computes_on_gpu()
    return is_like(found, expected, tolerance=LEVEL_TOLERANCE if on_gpu else 0)


def _computes_on_gpu() -> bool:
    from ..workers.device import gpu_problem

    return gpu_problem() is None


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
