"""Images as a model of `transformers` wants them, by the processor in its folder: pixels in, encoder's input out.

`images.py` has checked the pixels; `models/hf_images.py` gives what is made here to the encoder. Thread-safe, since
requests are read beside the running step.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import ConfigError, InvalidRequest, TensoryardError
from ..torch_arrays import library
from .images import PreparedImage, content_words

#: Where a processor says how an image is divided: into frames, rows and columns of patches.
_GRID = "image_grid_thw"


class HfProcessor:
    """The processor of a model's folder; ConfigError where it has none that tells how many tokens an image has.

    `encode`: the tokenizer's, without special tokens added.
    """

    def __init__(
        self, folder: Path, model: Any, encode: Callable[[str], list[int]], *, trust_remote_code: bool
    ) -> None:
        how = {"local_files_only": True, "trust_remote_code": trust_remote_code}
        self.placeholder = _placeholder(model, folder)
        self._encode = encode
        self._encoder_takes = inspect.signature(model.get_image_features).parameters
        transformers = library("transformers")
        try:
            self._images = transformers.AutoImageProcessor.from_pretrained(folder, **how)
            # A processor with a grid may have one for videos too, which needs torchvision; the grid tells all.
            gridded = _GRID in self._images.model_input_names
            self._whole = None if gridded else transformers.AutoProcessor.from_pretrained(folder, **how)
        except Exception as error:
            raise ConfigError(f"transformers cannot load an image processor from {folder}: {error!s:.400}") from error
        if self._whole is not None and not hasattr(self._whole, "replace_image_token"):
            raise ConfigError(f"{folder}: {type(self._whole).__name__} does not tell which tokens stand for an image")

    def prepare(self, pixels: npt.NDArray[np.uint8], *, number: int = 0) -> PreparedImage:
        """One image, uint8 `(height, width, 3)`, for the encoder; InvalidRequest for one that the processor refuses."""
        try:
            made = self._images(images=[pixels], return_tensors="np", input_data_format="channels_last")
            tokens = self._tokens(made)
        except TensoryardError:
            raise
        except Exception as error:  # a side that is too short, an aspect that is too wide: each library has its own
            raise InvalidRequest(f"images[{number}] cannot be prepared for this model: {error!s:.200}") from error
        values = np.ascontiguousarray(made["pixel_values"], np.float32)
        extra = {name: made[name] for name in made if name != "pixel_values" and name in self._encoder_takes}
        return PreparedImage(tokens, values, extra, content_words(pixels))

    def _tokens(self, made: Any) -> list[int]:
        """What stands for the image in a prompt."""
        if self._whole is not None:
            return self._encode(self._whole.replace_image_token(made, 0))
        rows = int(np.prod(made[_GRID][0])) // self._images.merge_size**2
        return [self.placeholder] * rows


def _placeholder(model: Any, folder: Path) -> int:
    found = getattr(model.config, "image_token_id", None)
    if found is None or not hasattr(model, "get_image_features"):
        raise ConfigError(f"{folder}: {type(model).__name__} does not tell how images go into its prompts")
    return int(found)
