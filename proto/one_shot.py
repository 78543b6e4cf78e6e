"""The contexts that embeddings, pixel and audio pipelines receive, one per request.

The worker runtime builds them from the request types of `embeddings.py`, `pixels.py` and `audio.py` with
`new_context`; pipelines read them and know nothing of pools, links or coordinators.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import InvalidRequest, WrongTask
from .audio import AudioGenerationRequest
from .context import GenerationStatus
from .embeddings import EmbeddingsRequest, input_kind
from .pixels import PixelGenerationRequest
from .request import RequestID
from .tokens import TokenBuffer

if TYPE_CHECKING:
    from .context import BaseContext
    from .embeddings import EmbeddingsContext
    from .pixels import PixelGenerationContext

Allocate = Callable[[tuple[int, ...], npt.DTypeLike], npt.NDArray[Any]]
Tokenize = Callable[[str], Sequence[int]]

#: What a pixel request that leaves them open gets: pixels, pixels and denoising steps.
DEFAULT_HEIGHT = DEFAULT_WIDTH = 1024
DEFAULT_INFERENCE_STEPS = 50

#: The latents of Stable Diffusion's autoencoders: so many channels, and one value for 8 x 8 pixels.
LATENT_CHANNELS = 4
LATENT_SCALE = 8
#: Most values that latents may have (256 MiB): sizes come from callers.
MAX_LATENT_VALUES = 64 << 20


class _NoTokensError(InvalidRequest, AttributeError):
    """A context without tokens; an AttributeError too, so that `hasattr` says so."""


class OneShotContext:
    """What a one-shot pipeline knows of one request.

    `arrays`: the request's tensors, read-only views of the caller's memory, valid until the request has ended.
    `options`: the request's options, as the pipeline's `options_type` where it has one, else a dict.
    `cancelled`: True once nobody waits for the answer; long steps may look at it and stop early.
    `tokenize`: the pipeline's own, for `tokens`; None where it has none.
    """

    def __init__(
        self,
        *,
        request_id: RequestID,
        model_name: str,
        arrays: tuple[npt.NDArray[Any], ...] = (),
        options: Any = None,
        allocate: Allocate = np.empty,
        tokenize: Tokenize | None = None,
    ) -> None:
        self.request_id = request_id
        self.model_name = model_name
        self.arrays = arrays
        self.options = {} if options is None else options
        self.status = GenerationStatus.ACTIVE
        self._allocate = allocate
        self._tokenize = tokenize

    @property
    def is_done(self) -> bool:
        """Whether the request has ended."""
        return self.status.is_done

    @property
    def cancelled(self) -> bool:
        """Whether the caller cancelled, or the deadline passed."""
        return self.status is GenerationStatus.CANCELLED

    @cached_property
    def tokens(self) -> TokenBuffer:
        """The input's token ids: those the request gives, else what the pipeline's `tokenize` makes of its text.

        Made when first asked for, and kept with its state; of several inputs the first. InvalidRequest (a ValueError,
        and an AttributeError) when there is neither.
        """
        source = self._token_source()
        if isinstance(source, str) and self._tokenize is not None:
            source = self._tokenize(source)
        if source is None or isinstance(source, str) or not len(source):
            raise _NoTokensError(
                f"request {self.request_id} has no token ids, nor a text that its pipeline's `tokenize` takes",
            )
        return TokenBuffer(np.array(source, np.int64))

    def _token_source(self) -> str | Sequence[int] | None:
        """The text or the ids that `tokens` are made of."""
        return None

    def allocate(self, shape: tuple[int, ...] | int, dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
        """A writable, uninitialised array in the worker's tensor pool: returned as output, it travels uncopied.

        Raises PoolExhausted when the pool is at its budget.
        """
        return self._allocate((shape,) if isinstance(shape, int) else tuple(shape), dtype)


class EmbeddingsRequestContext(OneShotContext):
    """One embeddings request: `texts`, `token_ids` or `arrays` hold the input, the other two are empty."""

    def __init__(
        self,
        *,
        request_id: RequestID,
        model_name: str,
        texts: tuple[str, ...] = (),
        token_ids: tuple[tuple[int, ...], ...] = (),
        arrays: tuple[npt.NDArray[Any], ...] = (),
        options: Any = None,
        allocate: Allocate = np.empty,
        tokenize: Tokenize | None = None,
    ) -> None:
        super().__init__(
            request_id=request_id,
            model_name=model_name,
            arrays=arrays,
            options=options,
            allocate=allocate,
            tokenize=tokenize,
        )
        self.texts = texts
        self.token_ids = token_ids

    def _token_source(self) -> str | Sequence[int] | None:
        if self.token_ids:
            return self.token_ids[0]
        return self.texts[0] if self.texts else None


class PixelContext(OneShotContext):
    """One pixel request: input images in `arrays`, and what to make; satisfies `PixelGenerationContext`.

    `height` and `width` (pixels) and `num_inference_steps` are always numbers: 1024, 1024 and 50 where the caller said
    nothing. A pipeline with a choice of its own looks at `request`, where what was left open is None.
    """

    def __init__(self, *, request: PixelGenerationRequest, **common: Any) -> None:
        super().__init__(**common)
        self.request = request
        self.prompt = request.prompt
        self.negative_prompt = request.negative_prompt
        self.height = int(request.height or DEFAULT_HEIGHT)
        self.width = int(request.width or DEFAULT_WIDTH)
        self.num_inference_steps = int(request.num_inference_steps or DEFAULT_INFERENCE_STEPS)
        self.guidance_scale = float(request.guidance_scale)
        self.num_images_per_prompt = int(request.num_images_per_prompt)
        self.seed = request.seed

    def _token_source(self) -> str | Sequence[int] | None:
        return self.prompt

    @cached_property
    def latents(self) -> npt.NDArray[np.float32]:
        """The starting noise, `(images, 4, height / 8, width / 8)`: see `noise`. Drawn when first asked for, and kept.

        A pipeline whose autoencoder has another shape assigns its own. InvalidRequest for sizes that need over 256 MiB.
        """
        rows, columns = -(-self.height // LATENT_SCALE), -(-self.width // LATENT_SCALE)
        shape = (self.num_images_per_prompt, LATENT_CHANNELS, rows, columns)
        if self.num_images_per_prompt * LATENT_CHANNELS * rows * columns > MAX_LATENT_VALUES:
            raise InvalidRequest(f"latents of shape {shape} have over {MAX_LATENT_VALUES} values: ask for less")
        return self.noise(shape)

    def noise(self, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """Values of the normal distribution, the same each time, by the request's seed.

        Without a seed it is the RequestID's, so that a second attempt on another worker makes the same images.
        """
        seed = list(str(self.request_id).encode()) if self.seed is None else int(self.seed) % (1 << 64)
        return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


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

    def _token_source(self) -> str | Sequence[int] | None:
        return self.text


OneShotRequest = EmbeddingsRequest | PixelGenerationRequest | AudioGenerationRequest


def new_context(
    request: OneShotRequest,
    *,
    options: Any,
    allocate: Allocate,
    tokenize: Tokenize | None = None,
) -> OneShotContext:
    """The context of a request; WrongTask for anything else."""
    if not isinstance(request, (EmbeddingsRequest, PixelGenerationRequest, AudioGenerationRequest)):
        raise WrongTask(f"no one-shot context for a {type(request).__name__}")
    common: dict[str, Any] = {
        "request_id": request.request_id,
        "model_name": request.model,
        "options": options,
        "allocate": allocate,
        "tokenize": tokenize,
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


if TYPE_CHECKING:

    def _conforms(
        embeddings: EmbeddingsRequestContext,
        pixels: PixelContext,
        audio: AudioContext,
    ) -> tuple[EmbeddingsContext, PixelGenerationContext, BaseContext]:
        return embeddings, pixels, audio
