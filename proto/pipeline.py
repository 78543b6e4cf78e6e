"""What a pipeline is: the tasks, the abstract `Pipeline` and the shapes of its inputs and outputs.

The concrete inputs and outputs live beside their task (`embeddings.py`, `pixels.py`, `audio.py`); the worker runtime
calls pipelines and knows nothing more about them than this module says.

Source: `max.interfaces.pipeline`, `.task` and `.tokenizer` (26.3), `max.pipelines.modeling.types` (26.7).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from .lora import LoRARequest, LoRAResponse
from .request import RequestID
from .scheduler_result import SchedulerResult


class InputModality(str, Enum):
    """What an architecture accepts; declarative only."""

    TEXT = "text"
    IMAGE = "image"
    VIDEO = "video"


class PipelineTask(str, Enum):
    """The kind of work a request asks for; the coordinator routes by it and by the model's name.

    `UNDEFINED` means "find out later" and is never routed. `task_types` of `outputs.py` maps a task to its types.
    """

    TEXT_GENERATION = "text_generation"
    EMBEDDINGS_GENERATION = "embeddings_generation"
    AUDIO_GENERATION = "audio_generation"
    SPEECH_TOKEN_GENERATION = "speech_token_generation"  # noqa: S105 - a task, not a secret
    PIXEL_GENERATION = "pixel_generation"
    UNDEFINED = "undefined"

    @property
    def output_type(self) -> type[dict[RequestID, SchedulerResult[Any]]]:
        """What a step's outputs by RequestID decode to, by the one table of `outputs.py`; ValueError for UNDEFINED."""
        from .outputs import task_types  # which names the types of every task, and they this module

        output: Any = task_types(self).output
        return dict[RequestID, SchedulerResult[output]]


class PipelineInputs:
    """Marker base of every batch input; has no fields."""


@runtime_checkable
class PipelineOutput(Protocol):
    """What a pipeline answers for one request in one step."""

    @property
    def is_done(self) -> bool:
        """Whether this output ends its request."""
        ...


PipelineInputsType = TypeVar("PipelineInputsType", bound=PipelineInputs)
PipelineOutputType = TypeVar("PipelineOutputType", bound=PipelineOutput)

#: One entry per request that produced something this step. A value may also be an Exception: it fails that one alone.
PipelineOutputsDict = dict[RequestID, PipelineOutputType]


class LoRAAdapters(Protocol):
    """The adapters of a pipeline, which requests ask for by naming one where others name the model."""

    @property
    def loaded(self) -> dict[str, str]:
        """The names of those that are there, and where each came from."""

    def handle(self, request: LoRARequest) -> LoRAResponse:
        """Load or unload one; never raises. In a thread of its own, while `execute` and `new_context` run."""


class Pipeline(ABC, Generic[PipelineInputsType, PipelineOutputType]):
    """A model at work: `execute` runs one step over a batch, in the worker's main thread.

    A class of your own may set `max_batch_size` as a plain attribute. `options_type`, when set to a msgspec.Struct
    type, makes the worker read each request's `options` into it, so that a wrong key is an error naming the key.
    `tokenize`, when it is a method, makes a context's `tokens` of its text: token ids, special ones included.
    `new_context`, which text pipelines have, makes the context of a request. It is called as requests arrive, in
    another thread than `execute`; what it raises is that request's answer. `is_slow_to_read`, when it is a method, says
    of a request whether that may take long, so that no other waits for it: it is then read in a thread of its own,
    perhaps beside another's `new_context`.
    `lora`, when it has any, loads and unloads adapters while requests run.
    """

    options_type: type[Any] | None = None
    lora: LoRAAdapters | None = None
    tokenize: Callable[[str], Sequence[int]] | None = None
    new_context: Callable[[Any], Any] | None = None
    is_slow_to_read: Callable[[Any], bool] | None = None

    @property
    def max_batch_size(self) -> int:
        """Most requests accepted in one batch; a deployment may lower it. 1 unless overridden."""
        return 1

    @abstractmethod
    def execute(self, inputs: PipelineInputsType) -> PipelineOutputsDict[PipelineOutputType]:
        """Run one step, synchronously.

        An output whose `is_done` is False is streamed to the caller, and the request is in the next step's batch again,
        unless its caller does not keep up with reading: then it stays out until he does, and others take its place.
        So more requests than `max_batch_size` may have begun and not been released (`max_ongoing_requests` bounds it).
        Raising fails every request of the batch; an Exception as a value fails that request alone. A text pipeline may
        leave requests out of its answer: they got nothing in this step, and are in the next one's batch again. It may
        also answer a list of outputs, each a part of the stream of its own: parts are counted when a request runs again
        after its worker died, so what is in one must not depend on how far a step got.
        """

    @abstractmethod
    def release(self, request_id: RequestID) -> None:
        """Free all state of a request; called once when it has ended or was cancelled."""


PipelinesFactory = Callable[[], Pipeline[PipelineInputsType, PipelineOutputType]]

TokenizerEncoded = TypeVar("TokenizerEncoded")
UnboundContextType = TypeVar("UnboundContextType", covariant=True)
_RequestType = TypeVar("_RequestType", contravariant=True)


@runtime_checkable
class PipelineTokenizer(Protocol[UnboundContextType, TokenizerEncoded, _RequestType]):  # type: ignore[misc]
    """Builds contexts from requests, and turns text into tokens and back."""

    @property
    def eos_token_ids(self) -> set[int]:
        """Every token id that ends generation."""
        ...

    @property
    def expects_content_wrapping(self) -> bool:
        """True: the template takes each text message as a list of typed parts; False: as a bare string."""
        ...

    async def new_context(self, request: _RequestType) -> UnboundContextType:
        """The per-request context, built once and shipped to the worker."""
        ...

    async def encode(self, prompt: str, add_special_tokens: bool) -> TokenizerEncoded:
        """Tokens of `prompt`; ValueError when it is longer than the model takes."""
        ...

    async def decode(self, encoded: Any, **kwargs: Any) -> str:
        """Text of token ids (an array, a sequence or one int); `skip_special_tokens` is a recognised keyword."""
        ...
