"""What a pipeline is: tasks, the abstract class and its protocols, and the status of a request."""

from __future__ import annotations

import pickle

import pytest

from tensoryard.proto.context import BaseContext, GenerationStatus
from tensoryard.proto.embeddings import EmbeddingsGenerationOutput
from tensoryard.proto.pipeline import (
    InputModality,
    Pipeline,
    PipelineInputs,
    PipelineOutput,
    PipelineTask,
    PipelineTokenizer,
)
from tensoryard.proto.request import RequestID


class Whole(Pipeline):
    def execute(self, inputs):
        return {}

    def release(self, request_id):
        pass


def test_enum_values():
    """Names and values are the documented ones, and members equal their strings."""
    assert {member.name: member.value for member in PipelineTask} == {
        "TEXT_GENERATION": "text_generation",
        "EMBEDDINGS_GENERATION": "embeddings_generation",
        "AUDIO_GENERATION": "audio_generation",
        "SPEECH_TOKEN_GENERATION": "speech_token_generation",
        "PIXEL_GENERATION": "pixel_generation",
        "UNDEFINED": "undefined",
    }
    assert [member.value for member in InputModality] == ["text", "image", "video"]
    assert {member.value: member.is_done for member in GenerationStatus} == {
        "active": False,
        "end_of_sequence": True,
        "maximum_length": True,
        "cancelled": True,
    }
    assert PipelineTask.PIXEL_GENERATION == "pixel_generation"
    assert GenerationStatus.CANCELLED == "cancelled"


@pytest.mark.parametrize("missing", ["execute", "release"])
def test_a_pipeline_must_execute_and_release(missing):
    """A pipeline without one of the two cannot be made."""
    methods = {name: getattr(Whole, name) for name in ("execute", "release") if name != missing}
    with pytest.raises(TypeError, match=missing):
        type("Half", (Pipeline,), methods)()


def test_one_request_per_batch_unless_told():
    """The batch limit is 1 by default; a subclass sets a plain attribute or a property."""
    assert Whole().max_batch_size == 1
    assert type("Attribute", (Whole,), {"max_batch_size": 8})().max_batch_size == 8
    assert type("Property", (Whole,), {"max_batch_size": property(lambda self: 4)})().max_batch_size == 4
    assert Whole.options_type is None


def test_outputs_are_known_by_is_done():
    """Anything that says whether it is done is an output, Structs included."""
    import numpy as np

    assert isinstance(EmbeddingsGenerationOutput(np.zeros(2)), PipelineOutput)
    assert not isinstance(PipelineInputs(), PipelineOutput)


def test_contexts_are_known_by_id_and_status():
    """An object with an id, a status and `is_done` is a context; a class that inherits gets `is_done` for nothing."""

    class Mine(BaseContext):
        def __init__(self, status):
            self.status = status

        @property
        def request_id(self):
            return RequestID("a")

    assert isinstance(Mine(GenerationStatus.ACTIVE), BaseContext)
    assert not Mine(GenerationStatus.ACTIVE).is_done
    assert Mine(GenerationStatus.MAXIMUM_LENGTH).is_done
    assert not isinstance(object(), BaseContext)


def test_tokenizers_are_known_by_their_members():
    """A class with the five members is a tokenizer; one without `decode` is none."""

    class Tokenizer:
        eos_token_ids = {2}
        expects_content_wrapping = False

        async def new_context(self, request): ...

        async def encode(self, prompt, add_special_tokens): ...

        async def decode(self, encoded, **kwargs): ...

    assert isinstance(Tokenizer(), PipelineTokenizer)
    del Tokenizer.decode
    assert not isinstance(Tokenizer(), PipelineTokenizer)


@pytest.mark.parametrize("member", [PipelineTask.PIXEL_GENERATION, GenerationStatus.ACTIVE, InputModality.IMAGE])
def test_enums_pickle_as_themselves(member):
    """A member is the same object after a pickle."""
    assert pickle.loads(pickle.dumps(member)) is member
