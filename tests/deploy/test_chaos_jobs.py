"""What chaos asks: jobs that know their right answer, examples of other people's models, and inputs from files."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pytest

from tensoryard.deploy import chaos_pipelines as ours
from tensoryard.deploy.answers import array_of, difference, is_like
from tensoryard.deploy.chaos_jobs import (
    DEADLY,
    LARGE,
    SMALL,
    Blob,
    Example,
    OwnJobs,
    TheirJobs,
    deadly,
    learn,
    read_examples,
    write_examples,
)
from tensoryard.errors import InvalidRequest, PipelineError, PoolExhausted
from tensoryard.proto import (
    AudioGenerationOutput,
    EmbeddingsGenerationOutput,
    GenerationOutput,
    GenerationStatus,
    PipelineTask,
    RequestID,
)


class Lender:
    """A client's memory; every third time it has none."""

    def __init__(self):
        self.asked = 0

    def empty(self, shape, dtype):
        self.asked += 1
        if self.asked % 3 == 0:
            raise PoolExhausted("full")
        return np.zeros(shape, dtype)


def answer(request, spoil=lambda array: array):
    """What our pipelines answer, spoilt or not."""
    if hasattr(request, "images"):
        return GenerationOutput.of_images(request.request_id, [spoil(ours.mirrored(request.images[0]))])
    if request.model == ours.SOUND:
        return AudioGenerationOutput(
            final_status=GenerationStatus.END_OF_SEQUENCE,
            steps_executed=1,
            audio_data=spoil(np.concatenate(ours.sound(request.input))),
        )
    inputs = request.input if isinstance(request.input, list) else [request.input]
    return EmbeddingsGenerationOutput(embeddings=spoil(ours.vectors(inputs)))


def one_value_off(array):
    """The same array but for its last value."""
    spoilt = array.copy()
    spoilt.reshape(-1)[-1] = -spoilt.reshape(-1)[-1] if array.dtype.kind == "f" else spoilt.reshape(-1)[-1] ^ 1
    return spoilt


def test_every_kind_of_job_knows_its_answer():
    """Right answers are right; one value that differs, another shape or another request's answer is wrong."""
    jobs = OwnJobs(Lender(), random.Random(1))
    made = [jobs.make(RequestID(f"r-{number}")) for number in range(120)]
    assert {job.kind for job in made} == {"image", "text", "texts", "array", "sound"}
    for job, other in itertools.pairwise(made):
        assert job.problem(answer(job.request)) == ""
        assert "values differ" in job.problem(answer(job.request, one_value_off))
        assert "was due" in job.problem(answer(job.request, lambda array: array[:-1]))
        if job.kind == other.kind:
            assert job.problem(answer(other.request)) != "", "two requests must not have the same answer"


def test_jobs_depend_on_the_seed_alone():
    """The same seed asks the same; another one asks something else."""
    jobs = [OwnJobs(Lender(), random.Random(seed)) for seed in (1, 1, 2)]
    asked = [[part.make(RequestID("r")).kind for _ in range(50)] for part in jobs]
    assert asked[0] == asked[1] != asked[2]


def test_arrays_travel_both_ways():
    """Some inputs go inside the message, others by handle."""
    jobs = OwnJobs(Lender(), random.Random(3))
    shapes = {
        job.request.images[0].shape for job in (jobs.make(RequestID("r")) for _ in range(100)) if job.kind == "image"
    }
    assert shapes == {SMALL, LARGE}
    assert np.prod(SMALL) < 64 << 10 < np.prod(LARGE)


@pytest.mark.parametrize("kind", DEADLY)
def test_nothing_answers_what_is_deadly(kind):
    """Whatever comes is wrong; only its worker's death is right."""
    job = deadly(kind, RequestID("r"))
    assert (job.kind, job.manner) == (kind, "poison")
    assert job.problem(answer(job.request)) != ""


@pytest.mark.parametrize(
    ("found", "expected", "tolerance", "told"),
    [
        (np.zeros(3), np.zeros(3), 0, ""),
        (np.zeros(3), np.zeros(4), 0, "float64(3,) where float64(4,) was due"),
        (np.zeros(3, "f4"), np.zeros(3), 0, "float32(3,) where float64(3,) was due"),
        (np.array([1, 2, 3]), np.array([1, 2, 4]), 0, "1 of 3 values differ, the first at [2]: 3, not 4"),
        (np.array([1, 2, 3]), np.array([1, 2, 4]), 1, ""),
        (np.array([0, 255], "u1"), np.array([255, 0], "u1"), 1, "2 of 2 values differ, the first at [0]: 0, not 255"),
        (np.array([1.0]), np.array([1.0005]), 1e-3, ""),
        (np.array([[1.0], [np.nan]]), np.array([[1.0], [1.0]]), 1e-3, "1 of 2 values differ, the first at [1, 0]: nan"),
        (np.zeros(0), np.zeros(0), 0, ""),
    ],
)
def test_differences_are_told(found, expected, tolerance, told):
    """Shape, dtype, or how many values differ by more than is tolerated, and the first of them."""
    assert difference(found, expected, tolerance=tolerance).startswith(told)
    assert is_like(found, expected, tolerance=tolerance) == (told == "")


# -- other people's models --------------------------------------------------------------------------------------------


class Model:
    """A client whose one model answers as it is told to."""

    def __init__(self, reply):
        self.reply, self.asked = reply, []

    def submit(self, request):
        self.asked.append(request)
        return self

    def result(self, timeout_s):
        return self.reply(self.asked[-1])


def embedding(value):
    """An output."""
    return EmbeddingsGenerationOutput(embeddings=np.asarray(value, np.float32))


EMBED = PipelineTask.EMBEDDINGS_GENERATION


def test_a_model_is_learnt_in_calm():
    """Each made-up input is asked twice; the answer is the yardstick, within what batches may change."""
    model = Model(lambda request: embedding([len(request.input)]))
    examples = learn(model, "m", EMBED, None)
    assert len(model.asked) == 2 * len(examples) >= 4
    assert all(example.steady for example in examples)
    job = TheirJobs(examples, random.Random(1)).make(RequestID("r-1"))
    assert str(job.request.request_id) == "r-1"
    right = len(job.request.input)
    assert job.problem(embedding([right + 1e-4])) == ""
    assert "1 of 1 values differ" in job.problem(embedding([right + 1]))


def test_a_model_that_changes_its_mind():
    """Only what kind of array comes is compared then."""
    chance = random.Random(1)
    examples = learn(Model(lambda _: embedding([chance.random()])), "m", EMBED, None)
    assert not any(example.steady for example in examples)
    assert examples[0].problem(embedding([5.0])) == ""
    assert "was due" in examples[0].problem(embedding([[5.0]]))


def test_a_model_that_takes_no_texts_is_given_arrays():
    """What is likely first, then what is left; each kind of refusal counts."""

    def reply(request):
        if isinstance(request.input, str):
            raise PipelineError("no arrays in it")
        return embedding([request.input.mean()])

    examples = learn(Model(reply), "m", EMBED, None)
    assert examples[0].array.array.shape == LARGE


def test_a_model_that_takes_nothing_is_said():
    """The error names the model and the way out."""

    def refuse(_request):
        raise InvalidRequest("not that")

    with pytest.raises(InvalidRequest, match=r"'m' refuses what chaos would send .*not that.*--inputs FILE"):
        learn(Model(refuse), "m", EMBED, None)


def test_inputs_from_files(tmp_path: Path):
    """Texts one a line, an array; each kind where the task can take it."""
    texts, array = tmp_path / "texts.txt", tmp_path / "array.npy"
    texts.write_text("one\n\n  two \n")
    np.save(array, np.arange(6).reshape(2, 3))
    model = Model(lambda _: embedding([1]))
    assert [example.text for example in learn(model, "m", EMBED, str(texts))] == ["one", "two"]
    (example,) = learn(model, "m", EMBED, str(array))
    assert np.array_equal(example.request().input, np.arange(6).reshape(2, 3))
    pixels = Model(lambda request: GenerationOutput.of_images(request.request_id, [np.zeros((2, 2, 3), "u1")]))
    assert learn(pixels, "m", PipelineTask.PIXEL_GENERATION, str(array))[0].request().images[0].shape == (2, 3)
    assert learn(pixels, "m", PipelineTask.PIXEL_GENERATION, str(texts))[0].request().prompt == "one"


@pytest.mark.parametrize("content", [None, "", "\n\n"])
def test_inputs_that_are_none(tmp_path: Path, content):
    """A file that is missing or empty is an error that names it."""
    path = tmp_path / "texts.txt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InvalidRequest, match=r"texts\.txt"):
        learn(Model(lambda _: embedding([1])), "m", EMBED, str(path))
    with pytest.raises(InvalidRequest, match=r"gone\.npy"):
        learn(Model(lambda _: embedding([1])), "m", EMBED, str(tmp_path / "gone.npy"))


def test_examples_survive_their_file(tmp_path: Path):
    """What clients read is what was written."""
    examples = [
        Example(model="m", task=EMBED, text="one", answer=Blob.of(np.arange(3.0))),
        Example(model="m", task=EMBED, array=Blob.of(np.ones((2, 2), "<i2")), answer=Blob.of(np.ones(1)), steady=False),
    ]
    write_examples(tmp_path / "x", examples)
    assert read_examples(tmp_path / "x") == examples
    assert array_of(embedding([1])).shape == (1,)
