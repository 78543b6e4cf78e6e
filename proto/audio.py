"""Audio: the request, the batch input and the streamed output of `PipelineTask.AUDIO_GENERATION`.

The context a pipeline receives for each request is `AudioContext` in `one_shot.py`.

Source: `max.interfaces.pipeline_variants.audio_generation` (26.3).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from ..errors import InvalidRequest
from .context import BaseContext, GenerationStatus
from .pipeline import PipelineInputs
from .request import RequestID
from .sampling import SamplingParams
from .validation import is_token, require_id, require_model, require_options, require_text

#: Longest text of one request, in characters: the limit the reference documents, and here enforced.
MAX_AUDIO_INPUT_CHARS = 4096


@dataclass(frozen=True)
class AudioGenerationRequest:
    """Ask for speech or other sound.

    `input` is the text to speak (at most 4096 characters); `prompt` (text or token ids) bypasses it. With `streaming`
    the audio arrives in chunks while it is made. `buffer_speech_tokens` is the tail of a previous request. `options`
    are the pipeline's own (for speech: voice, rate).

    Raises InvalidRequest (a ValueError) when there is neither `input` nor `prompt`, a text is too long, or a field has
    another type.
    """

    request_id: RequestID = field(default_factory=RequestID)
    model: str = ""
    input: str | None = None
    audio_prompt_tokens: list[int] = field(default_factory=list)
    audio_prompt_transcription: str = ""
    sampling_params: SamplingParams = field(default_factory=SamplingParams)
    _assistant_message_override: str | None = None
    prompt: list[int] | str | None = None
    streaming: bool = True
    buffer_speech_tokens: npt.NDArray[np.integer[Any]] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_id(self.request_id)
        require_model(self.model)
        require_options(self.options)
        if self.input is None and self.prompt is None:
            raise InvalidRequest("an AudioGenerationRequest needs `input` (a text) or `prompt` (a text or token ids)")
        if self.input is not None:
            _require_speakable("input", self.input)
        if self.prompt is not None and not isinstance(self.prompt, list | tuple):
            _require_speakable("prompt", self.prompt)
        for name in ("prompt", "audio_prompt_tokens"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                _require_tokens(name, value)
        require_text("audio_prompt_transcription", self.audio_prompt_transcription)
        if not isinstance(self.sampling_params, SamplingParams):
            raise InvalidRequest("`sampling_params` must be a SamplingParams")
        tail = self.buffer_speech_tokens
        if tail is not None and not (isinstance(tail, np.ndarray) and tail.dtype.kind in "iu"):
            raise InvalidRequest("`buffer_speech_tokens` must be an array of integers")

    def __str__(self) -> str:
        return str(self.request_id)


def _require_speakable(name: str, text: object) -> None:
    require_text(name, text)
    if isinstance(text, str) and len(text) > MAX_AUDIO_INPUT_CHARS:
        raise InvalidRequest(
            f"`{name}` has {len(text)} characters, at most {MAX_AUDIO_INPUT_CHARS} are taken; split the text",
        )


def _require_tokens(name: str, value: object) -> None:
    if not isinstance(value, list | tuple) or not all(is_token(token) for token in value):
        raise InvalidRequest(f"`{name}` must be a list of token ids")


AudioGenerationContextType = TypeVar("AudioGenerationContextType", bound=BaseContext)
_ContextType = TypeVar("_ContextType")


@dataclass(frozen=True)
class AudioGenerationInputs(PipelineInputs, Generic[_ContextType]):
    """A batch: RequestID to context."""

    batch: dict[RequestID, _ContextType]


class AudioGenerationMetadata(msgspec.Struct, tag=True, omit_defaults=True, kw_only=True):
    """What is known about a piece of audio; every field may be absent (None)."""

    #: Hz.
    sample_rate: int | None = None
    #: Seconds.
    duration: float | None = None
    #: Position of this chunk in the stream, from 0.
    chunk_id: int | None = None
    timestamp: str | None = None
    final_chunk: bool | None = None
    model_name: str | None = None
    request_id: RequestID | None = None
    tokens_generated: int | None = None
    #: Seconds.
    processing_time: float | None = None
    echo: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields that are set; 0, False and "" count as set, `request_id` becomes its string."""
        fields = {name: getattr(self, name) for name in self.__struct_fields__}
        return {name: str(v) if isinstance(v, RequestID) else v for name, v in fields.items() if v is not None}


def _no_audio() -> npt.NDArray[np.float32]:
    return np.empty(0, np.float32)


class AudioGenerationOutput(msgspec.Struct, tag=True, omit_defaults=True):
    """One chunk of audio, or the whole: float32 samples in [-1, 1], `(samples,)` or `(channels, samples)`.

    `is_done` follows `final_status`: ACTIVE means that more chunks come.
    """

    final_status: GenerationStatus
    steps_executed: int
    audio_data: npt.NDArray[np.float32] = msgspec.field(default_factory=_no_audio)
    buffer_speech_tokens: npt.NDArray[np.integer[Any]] | None = None
    metadata: AudioGenerationMetadata = msgspec.field(default_factory=AudioGenerationMetadata)

    @property
    def is_done(self) -> bool:
        """Whether this is the last chunk."""
        return self.final_status.is_done
