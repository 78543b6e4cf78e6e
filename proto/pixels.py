"""Pixels: the request and the batch input of `PipelineTask.PIXEL_GENERATION`, images in and images out.

The answer is a `GenerationOutput` (`generation.py`); a pipeline receives a `PixelContext` per request (`one_shot.py`).

Source: `max.interfaces.pipeline_variants.pixel_generation` (26.3), its like under `max.pipelines` (26.7).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt

from ..errors import InvalidRequest
from .context import BaseContext
from .pipeline import PipelineInputs
from .request import RequestID
from .tokens import TokenBuffer
from .validation import require_at_least, require_id, require_model, require_options, require_text, require_whole


@dataclass(frozen=True, kw_only=True)
class PixelGenerationRequest:
    """Ask for images made from a prompt, from input images, or from both.

    `images` are arrays, usually uint8 `(height, width, channels)`; those of 64 KiB and more travel by shared-memory
    handle. `height` and `width` (pixels) default to the pipeline's choice. `options` are the pipeline's own.

    Raises InvalidRequest (a ValueError) when there is neither prompt nor image, or a number is out of range.
    """

    request_id: RequestID = field(default_factory=RequestID)
    model: str = ""
    prompt: str = ""
    images: list[npt.NDArray[Any]] = field(default_factory=list)
    negative_prompt: str = ""
    height: int | None = None
    width: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float = 3.5
    num_images_per_prompt: int = 1
    seed: int | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_id(self.request_id)
        require_model(self.model)
        require_options(self.options)
        require_text("prompt", self.prompt)
        require_text("negative_prompt", self.negative_prompt)
        if not isinstance(self.images, list) or not all(isinstance(image, np.ndarray) for image in self.images):
            raise InvalidRequest("`images` must be a list of numpy arrays")
        if not self.prompt and not self.images:
            raise InvalidRequest("a PixelGenerationRequest needs a prompt or at least one image")
        for name in ("height", "width", "num_inference_steps", "num_images_per_prompt"):
            require_whole(name, getattr(self, name), 1)
        require_whole("seed", self.seed, -math.inf)
        require_at_least("guidance_scale", self.guidance_scale, 0)

    def __str__(self) -> str:
        return str(self.request_id)


@runtime_checkable
class PixelGenerationContext(BaseContext, Protocol):
    """A `BaseContext` with what diffusion pipelines read; sizes in pixels, `guidance_scale` 1.0 turns guidance off."""

    @property
    def tokens(self) -> TokenBuffer:
        """The prompt's tokens."""
        ...

    @property
    def latents(self) -> npt.NDArray[np.float32]:
        """The starting noise."""
        ...

    @property
    def height(self) -> int:
        """Pixels."""
        ...

    @property
    def width(self) -> int:
        """Pixels."""
        ...

    @property
    def num_inference_steps(self) -> int:
        """Denoising steps."""
        ...

    @property
    def guidance_scale(self) -> float:
        """Classifier-free guidance; 1.0 disables it."""
        ...

    @property
    def num_images_per_prompt(self) -> int:
        """Images to make."""
        ...


PixelGenerationContextType = TypeVar("PixelGenerationContextType", bound=PixelGenerationContext)
_ContextType = TypeVar("_ContextType")


@dataclass(frozen=True)
class PixelGenerationInputs(PipelineInputs, Generic[_ContextType]):
    """A batch: RequestID to context."""

    batch: dict[RequestID, _ContextType]
