"""Photo editing: photographs in, the same photographs resized, denoised, sharpened or recoloured out.

The operations and their fields are in `_photo_operations.py`. `edit` does in the calling process exactly what the
pipeline does in a worker, to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from ...errors import InvalidRequest, RequestCancelled
from ...proto.generation import GenerationOutput
from ...proto.one_shot import Allocate, PixelContext
from ...proto.pipeline import Pipeline
from ...proto.pixels import PixelGenerationInputs
from ...proto.request import RequestID
from ..device import Device, select_device
from ._options import read_options, require_batch_size, require_within
from ._photo_operations import (
    AnyOperation,
    Blur,
    Colour,
    Crop,
    Denoise,
    Flip,
    Operation,
    Resize,
    Rotate,
    Sharpen,
    Studio,
)

__all__ = [
    "Blur",
    "Colour",
    "Crop",
    "Denoise",
    "DeploymentOptions",
    "Flip",
    "PhotoEdit",
    "PhotoEditor",
    "Resize",
    "Rotate",
    "Sharpen",
    "create",
    "edit",
]

#: What white is in each dtype that is edited; black is 0.
WHITE: dict[np.dtype[Any], int] = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535, np.dtype(np.float32): 1}

#: Most operations in one request.
MAX_OPERATIONS = 64

#: Largest image, in and out, unless a deployment says otherwise: 64 megapixels take 0.8 GB while they are worked on,
#: and an operation holds two or three such.
MAX_MEGAPIXELS = 64.0


class PhotoEdit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one request may ask for: operations, applied in order to each of its images."""

    operations: list[AnyOperation] = []

    def __post_init__(self) -> None:
        if len(self.operations) > MAX_OPERATIONS:
            raise ValueError(f"`operations` has {len(self.operations)} entries, at most {MAX_OPERATIONS} are taken")


class DeploymentOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a deployment may set."""

    #: Most requests in one batch. Images are edited one after another, so more only saves messages.
    max_batch_size: int = 4
    #: "auto", "cpu" or "gpu".
    device: str = "auto"
    #: Largest image that is taken or made, in millions of pixels.
    max_megapixels: float = MAX_MEGAPIXELS

    def __post_init__(self) -> None:
        require_batch_size(self.max_batch_size)
        require_within("max_megapixels", self.max_megapixels, 0.001, 100_000)


class PhotoEditor(Pipeline[PixelGenerationInputs[PixelContext], GenerationOutput]):
    """The pipeline: each request's images, each edited by its operations, then brought to its height and width."""

    options_type = PhotoEdit

    def __init__(self, device: Device, *, max_batch_size: int = 4, max_megapixels: float = MAX_MEGAPIXELS) -> None:
        self._studio = Studio(device, round(max_megapixels * 1e6))
        self._max_batch_size = max_batch_size

    @property
    def max_batch_size(self) -> int:
        """Most requests accepted in one batch."""
        return self._max_batch_size

    def execute(self, inputs: PixelGenerationInputs[PixelContext]) -> dict[RequestID, Any]:
        """The edited images of each request, or the exception that it alone fails with."""
        outputs: dict[RequestID, Any] = {}
        for request_id, context in inputs.batch.items():
            try:
                outputs[request_id] = GenerationOutput.of_images(request_id, self._images(context))
            except Exception as error:
                outputs[request_id] = error
        return outputs

    def release(self, request_id: RequestID) -> None:
        """Nothing is kept between steps."""

    def _images(self, context: PixelContext) -> list[npt.NDArray[Any]]:
        if not context.arrays:
            raise InvalidRequest("this model edits images and makes none: the request needs at least one in `images`")
        if context.num_images_per_prompt != 1:
            raise InvalidRequest("an edit gives one image per input: `num_images_per_prompt` must be 1")
        options: Any = context.options
        operations = _with_size(options.operations, context.request.height, context.request.width)
        results = []
        for image in context.arrays:
            if context.cancelled:
                raise RequestCancelled("cancelled between two images")
            results.append(_edited(image, operations, self._studio, context.allocate))
        return results


def create(**options: Any) -> PhotoEditor:
    """The pipeline of a deployment; see `DeploymentOptions`. Raises ConfigError for a wrong option."""
    chosen = read_options(DeploymentOptions, options, pipeline="photo-edit")
    device = select_device(chosen.device)
    return PhotoEditor(device, max_batch_size=chosen.max_batch_size, max_megapixels=chosen.max_megapixels)


def edit(
    image: npt.NDArray[Any],
    operations: Sequence[Operation | Mapping[str, Any]] = (),
    *,
    height: int | None = None,
    width: int | None = None,
    device: str = "cpu",
) -> npt.NDArray[Any]:
    """`image` after `operations`, resized to `height` and `width` pixels at the end; the given array is not changed.

    An image is uint8, uint16 or float32 (in [0, 1]) of shape `(height, width)` or `(height, width, 1 or 3)`; the result
    has the same dtype and as many channels. An operation is a struct of this module, or the dict that stands for it in
    a request. Raises InvalidRequest naming the operation and field that is wrong.
    """
    try:
        asked = msgspec.convert({"operations": list(operations)}, PhotoEdit)
    except msgspec.ValidationError as error:
        raise InvalidRequest(str(error)) from error
    studio = Studio(select_device(device), round(MAX_MEGAPIXELS * 1e6))
    return _edited(image, _with_size(asked.operations, height, width), studio, np.empty)


def _with_size(operations: Sequence[Operation], height: int | None, width: int | None) -> list[Operation]:
    """The operations, with the size that the request itself names as the last."""
    if height is None and width is None:
        return list(operations)
    return [*operations, Resize(height=height, width=width)]


def _edited(
    image: npt.NDArray[Any],
    operations: Sequence[Operation],
    studio: Studio,
    allocate: Allocate,
) -> npt.NDArray[Any]:
    """The edited image in an array of `allocate`, written there once and directly."""
    _require_image(image, studio)
    xp = studio.device.xp
    planes = _planes(image, studio.device)
    for operation in operations:
        planes = operation.apply(planes, studio)
        # Splines, sharpening and colours overshoot. After each step an image is an image again.
        xp.clip(planes, 0, 1, out=planes)
    result = allocate((*planes.shape[1:], *image.shape[2:]), image.dtype)
    target = studio.device.mirror(result)
    planes *= WHITE[image.dtype]
    if image.dtype.kind == "u":
        xp.rint(planes, out=planes)
    target[...] = planes[0] if image.ndim == 2 else xp.moveaxis(planes, 0, 2)
    return studio.device.to_host(target, result)


def _require_image(image: npt.NDArray[Any], studio: Studio) -> None:
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)) or image.size == 0:
        raise InvalidRequest(f"an image has shape (height, width) or (height, width, 1 or 3), not {image.shape}")
    if image.dtype not in WHITE:
        raise InvalidRequest(f"an image is {', '.join(dtype.name for dtype in WHITE)}; this one is {image.dtype}")
    studio.require_room("image", *image.shape[:2])
    if image.dtype.kind == "f" and not (image.min() >= 0 and image.max() <= 1):
        raise InvalidRequest("the values of a float32 image lie in [0, 1]; these do not: divide by their maximum first")


def _planes(image: npt.NDArray[Any], device: Device) -> Any:
    """`(channels, height, width)` float32 in [0, 1] on the device, in memory of its own: filters want planes."""
    uploaded = device.to_device(image).reshape(*image.shape[:2], -1)
    planes = device.xp.empty((uploaded.shape[2], *image.shape[:2]), np.float32)
    planes[...] = device.xp.moveaxis(uploaded, 2, 0)
    planes /= WHITE[image.dtype]
    return planes
