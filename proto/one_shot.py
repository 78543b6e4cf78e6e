"""The contexts that embeddings, pixel and audio pipelines receive, one per request.

The worker runtime builds them from the request types of `embeddings.py`, `pixels.py` and `audio.py` with
`new_context`; pipelines read them and know nothing of pools, links or coordinators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InvalidRequest, WrongTask
from .audio import AudioGenerationRequest
from .context import GenerationStatus
from .embeddings import EmbeddingsRequest, input_kind
from .pixels import PixelGenerationRequest
from .request import RequestID
from .tokens import TokenBuffer

Allocate = Callable[[tuple[int, ...], npt.DTypeLike], npt.NDArray[Any]]


class OneShotContext:
    """What a one-shot pipeline knows of one request.

    `arrays`: the request's tensors, read-only views of the caller's memory, valid until the request has ended.
    `options`: the request's options, as the pipeline's `options_type` where it has one, else a dict.
    `cancelled`: True once nobody waits for the answer; long steps may look at it and stop early.
    """

    def __init__(
        self,
        *,
        request_id: RequestID,
        model_name: str,
        arrays: tuple[npt.NDArray[Any], ...] = (),
        options: Any = None,
        allocate: Allocate = np.empty,
    ) -> None:
        self.request_id = request_id
        self.model_name = model_name
        self.arrays = arrays
        self.options = {} if options is None else options
        self.status = GenerationStatus.ACTIVE
        self._allocate = allocate

    @property
    def is_done(self) -> bool:
        """Whether the request has ended."""
        return self.status.is_done

    @property
    def cancelled(self) -> bool:
        """Whether the caller cancelled, or the deadline passed."""
        return self.status is GenerationStatus.CANCELLED

    def allocate(self, shape: tuple[int, ...] | int, dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
        """A writable, uninitialised array in the worker's tensor pool: returned as output, it travels uncopied.

        Raises PoolExhausted when the pool is at its budget.
        """
        return self._allocate((shape,) if isinstance(shape, int) else tuple(shape), dtype)


class _NoTokensError(InvalidRequest, AttributeError):
    """A context without tokens. An AttributeError too: `isinstance` with a protocol reads properties (Python 3.11)."""


class EmbeddingsRequestContext(OneShotContext):
    """One embeddings request: `texts`, `token_ids` or `arrays` hold the input, the other two are empty."""

    def __init__(
        self,
        *,
        texts: tuple[str, ...] = (),
        token_ids: tuple[tuple[int, ...], ...] = (),
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.texts = texts
        self.token_ids = token_ids

    @property
    def tokens(self) -> TokenBuffer:
        """The first list of token ids; InvalidRequest (a ValueError, and an AttributeError) when there is none."""
        if not self.token_ids:
            raise _NoTokensError("the pipeline needs token ids as `input`, and the request carries texts or arrays")
        return TokenBuffer(np.array(self.token_ids[0], np.int64))


class PixelContext(OneShotContext):
    """One pixel request: input images in `arrays`, sizes in pixels (None: the pipeline's choice)."""

    def __init__(self, *, request: PixelGenerationRequest, **common: Any) -> None:
        super().__init__(**common)
        self.prompt = request.prompt
        self.negative_prompt = request.negative_prompt
        self.height = request.height
        self.width = request.width
        self.num_inference_steps = request.num_inference_steps
        self.guidance_scale = request.guidance_scale
        self.num_images_per_prompt = request.num_images_per_prompt
        self.seed = request.seed


class AudioContext(OneShotContext):
    """One audio request: `text` is its prompt (a text or token ids) where it has one, else the text to speak.

    `streaming` asks for chunks; `chunks_sent` counts the outputs already streamed: 0 in the first step. The voice to
    imitate is in `audio_prompt_tokens` and `audio_prompt_transcription`.
    """

    def __init__(self, *, request: AudioGenerationRequest, **common: Any) -> None:
        super().__init__(**common)
        self.text = request.prompt if request.prompt is not None else request.input
        self.streaming = request.streaming
        self.sampling_params = request.sampling_params
        self.audio_prompt_tokens = tuple(request.audio_prompt_tokens)
        self.audio_prompt_transcription = request.audio_prompt_transcription
        self.buffer_speech_tokens = request.buffer_speech_tokens
        self.chunks_sent = 0


OneShotRequest = EmbeddingsRequest | PixelGenerationRequest | AudioGenerationRequest


def new_context(request: OneShotRequest, *, options: Any, allocate: Allocate) -> OneShotContext:
    """The context of a request; WrongTask for anything else."""
    if not isinstance(request, EmbeddingsRequest | PixelGenerationRequest | AudioGenerationRequest):
        raise WrongTask(f"no one-shot context for a {type(request).__name__}")
    common: dict[str, Any] = {
        "request_id": request.request_id,
        "model_name": request.model,
        "options": options,
        "allocate": allocate,
    }
    if isinstance(request, EmbeddingsRequest):
        return _embeddings_context(request, common)
    if isinstance(request, PixelGenerationRequest):
        return PixelContext(request=request, arrays=tuple(request.images), **common)
    return AudioContext(request=request, **common)


def _embeddings_context(request: EmbeddingsRequest, common: dict[str, Any]) -> EmbeddingsRequestContext:
    value = request.input
    match input_kind(value):
        case "text":
            return EmbeddingsRequestContext(texts=(value,), **common)
        case "texts":
            return EmbeddingsRequestContext(texts=tuple(value), **common)
        case "tokens":
            return EmbeddingsRequestContext(token_ids=(tuple(value),), **common)
        case "token_lists":
            return EmbeddingsRequestContext(token_ids=tuple(tuple(ids) for ids in value), **common)
        case "array":
            return EmbeddingsRequestContext(arrays=(value,), **common)
        case _:
            return EmbeddingsRequestContext(arrays=tuple(value), **common)
