"""Text generation by any causal language model of `transformers`, and by such that see images, computed by torch.

The same pipeline as `llama.py`, loop, sampler, tokenizer and all, around another model (`..text.models.hf`) and with
images among the prompt's tokens (`..text.images`, `..text.hf_processor`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ConfigError, InvalidRequest
from ...proto.text_request import TextGenerationRequest
from ...proto.tokens import TokenBuffer
from ...proto.vision import TextAndVisionContext
from ..device import Device
from ..text.hf_processor import HfProcessor
from ..text.images import PreparedImage, hash_overrides, pixels_of, placed
from ..text.models.base import Model, ModelCache
from ..text.models.hf import DTYPES, HfModel, load, longest
from ..text.models.hf_check import require_same
from ..text.models.hf_images import HfImage
from ..text.reading import ReadContext
from ..torch_arrays import library, select_devices
from ._options import read_options, require_within
from .llama import DeploymentOptions, Llama, Prompt, cache_blocks


class HfOptions(DeploymentOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a deployment may set, beside what `DeploymentOptions` has; `model_dir` it must."""

    #: How the model computes: "auto" (as its files say), "float32", "bfloat16" or "float16".
    dtype: str = "auto"
    #: Whether Python code in the model's folder may run here: only for folders whose every file you trust.
    trust_remote_code: bool = False
    #: Whether sequences of a step are computed in the same products: much faster on a GPU, but then an answer depends,
    #: where two tokens are as good as equally likely, on who else was there.
    together: bool = False
    #: Threads that torch computes with on a CPU; None: one for each core, which is too many beside other workers.
    threads: int | None = None
    #: Longest sequence in tokens; None: as many as the model was made for.
    max_length: int | None = None
    #: Most images in a request, and most pixels of one.
    max_images: int = 8
    max_image_pixels: int = 1 << 24

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype not in DTYPES:
            raise ValueError(f"`dtype` must be one of {', '.join(DTYPES)}, not {self.dtype!r}")
        if self.model_dir is None:
            raise ValueError("`model_dir` must name the model's folder")
        require_within("threads", self.threads or 1, 1, 1024)
        require_within("max_length", self.max_length or 1, 1, 1 << 30)
        require_within("max_images", self.max_images, 0, 1024)
        require_within("max_image_pixels", self.max_image_pixels, 1, 1 << 30)
        require_within("max_chunk_tokens", self.max_chunk_tokens, self.block_size, 1 << 20)
        require_within("max_step_tokens", self.max_step_tokens, self.max_batch_size + self.block_size, 1 << 20)


@dataclass(kw_only=True, eq=False)
class SeeingContext(TextAndVisionContext, ReadContext):
    """A request with images, together with who reads its answer."""


class HuggingFace(Llama):
    """The pipeline."""

    decoder: HfModel
    _options: HfOptions

    def __init__(self, folder: Path, torch_device: str, device: Device, options: HfOptions) -> None:
        self._torch_device = torch_device
        self._options = options
        self.whole_blocks = not options.together
        super().__init__(folder, device, options)
        self.defaults = replace(self.defaults, eos_token_ids=self.defaults.eos_token_ids | _ends(self.decoder.model))
        self.processor = self._processor(folder)

    def _load(self, folder: Path, device: Device, options: DeploymentOptions) -> tuple[Model[Any], ModelCache]:
        how, place = self._options, self._torch_device
        model = load(folder, dtype=how.dtype, torch_device=place, trust_remote_code=how.trust_remote_code)
        known = [length for length in (how.max_length, longest(model)) if length is not None]
        if not known:
            raise ConfigError(f"{folder} does not say how long its sequences may be: set the option `max_length`")
        wrapped = HfModel(model, torch_device=place, device=device, positions=min(known), together=how.together)
        require_same(wrapped)
        size = wrapped.config.token_bytes(wrapped.dtype.itemsize) * options.block_size
        blocks = cache_blocks(options, size=size, positions=min(known))
        return wrapped, wrapped.cache(blocks=blocks, block_size=options.block_size)

    def _adapters(self, options: DeploymentOptions) -> None:
        """None: adapters act inside our own decoders."""
        if options.adapters:
            raise ConfigError("`adapters` belong to the pipeline 'llama'; this one takes none")

    def _processor(self, folder: Path) -> HfProcessor | None:
        """What prepares images, tried with one; None where the model has no eyes, or is to have none."""
        model, how = self.decoder.model, self._options
        if not hasattr(model.config, "vision_config") or not how.max_images:
            return None
        processor = HfProcessor(folder, model, self._encode, trust_remote_code=how.trust_remote_code)
        noise = np.random.default_rng(0).integers(0, 256, (56, 84, 3), np.uint8)
        prompt = _with_images([1, processor.placeholder, 2, 3], processor.placeholder, [processor.prepare(noise)])
        tokens = TokenBuffer(np.array(prompt.tokens, np.int64))
        context = prompt.context_type(tokens=tokens, max_length=len(tokens) + 1, **prompt.fields)
        require_same(self.decoder, context)
        return processor

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _prompt(self, request: TextGenerationRequest) -> Prompt:
        if self.processor is None:
            return super()._prompt(request)
        if request.videos:
            raise InvalidRequest("this model reads text and images, no videos")
        if len(request.images) > self._options.max_images:
            raise InvalidRequest(f"{len(request.images)} images; this deployment takes {self._options.max_images}")
        ids = self._tokens(request)
        most = self._options.max_image_pixels
        images = []
        for number, image in enumerate(request.images):
            images.append(self.processor.prepare(pixels_of(image, number=number, most=most), number=number))
        return _with_images(ids, self.processor.placeholder, images)

    def _render(self, request: TextGenerationRequest) -> str:
        return self.tokenizer.render(
            request.messages,
            tools=request.tools,
            options=request.chat_template_options,
            in_parts=self.processor is not None,
        )

    def is_slow_to_read(self, request: TextGenerationRequest) -> bool:
        """Whether there are images to prepare, or a grammar to compile."""
        return bool(request.images) or super().is_slow_to_read(request)

    def _encode_chat(self, text: str) -> list[int]:
        # Templates of processors leave the first token to the tokenizer, unless they begin with it.
        begun = bool(self.tokenizer.bos_token) and text.startswith(self.tokenizer.bos_token)
        return self.tokenizer.encode(text, add_special_tokens=self.processor is not None and not begun)


def create(**options: Any) -> HuggingFace:
    """The pipeline of a deployment; see `HfOptions`.

    Raises ConfigError for a wrong option, a model that cannot be served, and where a library is missing.
    """
    chosen = read_options(HfOptions, options, pipeline="hf")
    torch, _ = library("torch"), library("transformers")
    if chosen.threads is not None:
        torch.set_num_threads(chosen.threads)
    torch_device, device = select_devices(chosen.device)
    return HuggingFace(Path(chosen.model_dir or "").expanduser(), torch_device, device, chosen)


def _ends(model: Any) -> frozenset[int]:
    """Tokens that end a text, where the library's own defaults name them."""
    found = model.generation_config.eos_token_id
    return frozenset([found] if isinstance(found, int) else found or ())


def _with_images(ids: Sequence[int], placeholder: int, images: Sequence[PreparedImage]) -> Prompt:
    """A prompt whose placeholders are replaced by the tokens of images."""
    tokens, spans = placed(ids, placeholder, images)
    if not images:
        return Prompt(tokens)
    found = []
    for (start, end), image in zip(spans, images, strict=True):
        rows = image.tokens.count(placeholder)
        held = HfImage(start_idx=start, end_idx=end, pixel_values=image.pixel_values, extra=image.extra)
        held.image_hash = int(image.words[0])
        held.num_embedding_rows = rows if rows < end - start else None
        found.append(held)
    edges = sorted({image.tokens[0] for image in images} | {image.tokens[-1] for image in images})
    fields = {"images": found, "vision_token_ids": edges, "token_hash_overrides": hash_overrides(spans, images)}
    return Prompt(tokens, SeeingContext, fields)
