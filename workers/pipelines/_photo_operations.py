"""The operations of photo editing: what each may be asked for, and what it does to an image.

`photo_edit.py` reads images and requests, and applies these in order. Here an image is planes: a float32 array of shape
`(channels, height, width)` with values in [0, 1], on the device. An operation gives a new image, or changes the one
that it is given and that nobody else holds.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import msgspec

from ...errors import InvalidRequest
from ..device import Device
from ._options import require_within

#: Share of each of red, green and blue in how bright a colour looks. Source: ITU-R BT.601, section 2.5.1.
LUMA = (0.299, 0.587, 0.114)

#: Larger sigmas (in pixels) take time and blur nothing more that anybody could see.
MAX_SIGMA = 100.0

#: Shrinking by more than this many times averages boxes: a bell curve takes more time the wider it is, a box does not.
MAX_SMOOTH_SHRINK = 16

#: Most pixels along one side that a request may ask for.
MAX_SIDE = 65_535


class Studio(NamedTuple):
    """What operations work with: the device, and the largest image (in pixels) that may be made."""

    device: Device
    max_pixels: int

    def require_room(self, operation: str, height: int, width: int) -> None:
        """An image of this size may be made; InvalidRequest otherwise."""
        if height * width > self.max_pixels:
            raise InvalidRequest(
                f"{operation}: an image of {height} x {width} pixels is over the limit of {self.max_pixels} pixels",
            )


class Operation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="op"):
    """Base of all operations; `op` is the name of one in a request."""

    @property
    def name(self) -> str:
        """The operation's name in a request."""
        return str(self.__struct_config__.tag)

    def require(self, field: str, least: float, most: float) -> None:
        """A field that is set lies between two numbers; ValueError naming operation and field otherwise."""
        value = getattr(self, field)
        if value is not None:
            try:
                require_within(field, value, least, most)
            except ValueError as error:
                raise ValueError(f"{self.name}: {error}") from None

    def apply(self, image: Any, studio: Studio) -> Any:
        """The image after the operation."""
        raise NotImplementedError


class Resize(Operation, frozen=True, kw_only=True, tag="resize"):
    """Another size: `scale` times the present one, or `height` and `width` pixels; of those one may be left out.

    `order` is that of the interpolating spline: 0 nearest, 1 linear, 3 cubic. `antialias` blurs before shrinking, so
    that fine patterns do not turn into coarse ones.
    """

    scale: float | None = None
    height: int | None = None
    width: int | None = None
    order: int = 3
    antialias: bool = True

    def __post_init__(self) -> None:
        if (self.scale is None) == (self.height is None and self.width is None):
            raise ValueError("resize: give either `scale`, or `height` and/or `width`")
        self.require("scale", 1e-4, 100)
        self.require("height", 1, MAX_SIDE)
        self.require("width", 1, MAX_SIDE)
        self.require("order", 0, 5)

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Height and width, in pixels, of the result for an image of `height` and `width`."""
        if self.scale is not None:
            return _scaled(height, self.scale), _scaled(width, self.scale)
        if self.height is None:
            assert self.width is not None
            return _scaled(height, self.width / width), self.width
        return self.height, _scaled(width, self.height / height) if self.width is None else self.width

    def apply(self, image: Any, studio: Studio) -> Any:
        """Each plane by itself, since a spline over the channels too would cost four times as much for nothing."""
        channels, *size = image.shape
        target = self.size_of(*size)
        if target == tuple(size):
            return image
        studio.require_room("resize", *target)
        if self.antialias:
            image = _antialiased(image, [before / after for before, after in zip(size, target, strict=True)], studio)
        result = studio.device.xp.empty((channels, *target), image.dtype)
        zoom = [after / before for before, after in zip(size, target, strict=True)]
        for plane, output in zip(image, result, strict=True):
            # Pixels are areas, not points: the outer edges of both images meet (grid_mode). Borders are continued, not
            # mirrored: SciPy's mirrored splines are off by up to 3 % on images of fewer than 8 pixels.
            studio.device.ndimage.zoom(plane, zoom, output=output, order=self.order, mode="nearest", grid_mode=True)
        return result


class Crop(Operation, frozen=True, kw_only=True, tag="crop"):
    """The part `height` x `width` pixels from `top` and `left` on; sizes left out reach to the border."""

    top: int = 0
    left: int = 0
    height: int | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        for field, least in (("top", 0), ("left", 0), ("height", 1), ("width", 1)):
            self.require(field, least, MAX_SIDE)

    def apply(self, image: Any, studio: Studio) -> Any:  # noqa: ARG002 - the same for every operation
        """A view of the image."""
        rows = self._range("top", self.top, "height", self.height, image.shape[1])
        columns = self._range("left", self.left, "width", self.width, image.shape[2])
        return image[:, rows, columns]

    def _range(self, start_field: str, start: int, size_field: str, size: int | None, present: int) -> slice:
        stop = max(present, start + 1) if size is None else start + size
        if stop > present:
            raise InvalidRequest(
                f"crop: `{start_field}` and `{size_field}` reach to pixel {stop}, "
                f"but the image's {size_field} is {present}",
            )
        return slice(start, stop)


class Flip(Operation, frozen=True, kw_only=True, tag="flip"):
    """Mirrored: `horizontal` swaps left and right, `vertical` top and bottom."""

    direction: Literal["horizontal", "vertical"] = "horizontal"

    def apply(self, image: Any, studio: Studio) -> Any:  # noqa: ARG002 - the same for every operation
        """A view of the image."""
        return image[:, :, ::-1] if self.direction == "horizontal" else image[:, ::-1]


class Rotate(Operation, frozen=True, kw_only=True, tag="rotate"):
    """Turned anticlockwise by `degrees`; right angles are exact.

    `expand` makes room for the corners; without it the size stays and they are lost. What the photograph does not cover
    becomes `fill` (0 black, 1 white). `order` as in resize.
    """

    degrees: float
    expand: bool = True
    fill: float = 0.0
    order: int = 3

    def __post_init__(self) -> None:
        self.require("degrees", -360, 360)
        self.require("fill", 0, 1)
        self.require("order", 0, 5)

    def apply(self, image: Any, studio: Studio) -> Any:
        """Exact quarter turns where they are asked for and the size may follow, splines otherwise."""
        xp = studio.device.xp
        quarters, rest = divmod(self.degrees, 90)
        if rest == 0 and (self.expand or quarters % 2 == 0 or image.shape[1] == image.shape[2]):
            return xp.rot90(image, int(quarters) % 4, axes=(1, 2))
        studio.require_room("rotate", *self._size_of(*image.shape[1:]))
        settings = {"reshape": self.expand, "order": self.order, "mode": "constant", "cval": self.fill}
        return xp.stack([studio.device.ndimage.rotate(plane, self.degrees, **settings) for plane in image])

    def _size_of(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the box around the turned image."""
        if not self.expand:
            return height, width
        cosine, sine = (abs(part(math.radians(self.degrees))) for part in (math.cos, math.sin))
        return math.ceil(height * cosine + width * sine), math.ceil(height * sine + width * cosine)


class Blur(Operation, frozen=True, kw_only=True, tag="blur"):
    """Gaussian blur; `sigma` in pixels."""

    sigma: float = 1.0

    def __post_init__(self) -> None:
        self.require("sigma", 0, MAX_SIGMA)

    def apply(self, image: Any, studio: Studio) -> Any:
        """The blurred image."""
        return _gaussian(image, (self.sigma, self.sigma), studio)


class Denoise(Operation, frozen=True, kw_only=True, tag="denoise"):
    """Less noise: `median` of a square of `size` pixels (odd), or `gaussian` of `sigma` pixels."""

    method: Literal["median", "gaussian"] = "median"
    size: int = 3
    sigma: float = 1.0

    def __post_init__(self) -> None:
        self.require("size", 1, 15)
        self.require("sigma", 0, MAX_SIGMA)
        if self.size % 2 == 0:
            raise ValueError(f"denoise: `size` must be odd, not {self.size}")

    def apply(self, image: Any, studio: Studio) -> Any:
        """The image with less noise."""
        if self.method == "gaussian":
            return _gaussian(image, (self.sigma, self.sigma), studio)
        result = studio.device.xp.empty_like(image)
        for plane, output in zip(image, result, strict=True):
            studio.device.ndimage.median_filter(plane, size=self.size, output=output)
        return result


class Sharpen(Operation, frozen=True, kw_only=True, tag="sharpen"):
    """Unsharp mask: `amount` times the difference to a copy blurred by `radius` (sigma, in pixels) is added."""

    radius: float = 1.5
    amount: float = 1.0

    def __post_init__(self) -> None:
        self.require("radius", 0, MAX_SIGMA)
        self.require("amount", 0, 20)

    def apply(self, image: Any, studio: Studio) -> Any:
        """The sharper image; overshoot is cut at black and white."""
        detail = _gaussian(image, (self.radius, self.radius), studio)
        studio.device.xp.subtract(image, detail, out=detail)
        detail *= self.amount
        return image + detail


class Colour(Operation, frozen=True, kw_only=True, tag="colour"):
    """Saturation, then brightness, contrast and gamma; 1 leaves each as it is, 0 takes it away.

    `saturation` moves colours from (0) or away from grey, `grayscale` is a saturation of 0. `brightness` multiplies,
    `contrast` spreads around middle grey, `gamma` above 1 lightens the dark parts. An image of one channel has no
    saturation to change.
    """

    saturation: float = 1.0
    brightness: float = 1.0
    contrast: float = 1.0
    gamma: float = 1.0
    grayscale: bool = False

    def __post_init__(self) -> None:
        for field in ("saturation", "brightness", "contrast"):
            self.require(field, 0, 20)
        self.require("gamma", 0.05, 20)

    def apply(self, image: Any, studio: Studio) -> Any:
        """The image in other colours, changed in place."""
        saturation = 0.0 if self.grayscale else self.saturation
        if saturation != 1 and image.shape[0] == len(LUMA):
            grey = sum(share * plane for share, plane in zip(LUMA, image, strict=True))
            image -= grey
            image *= saturation
            image += grey
        if self.brightness != 1:
            image *= self.brightness
        if self.contrast != 1:
            image -= 0.5
            image *= self.contrast
            image += 0.5
        if self.gamma != 1:
            xp = studio.device.xp
            xp.clip(image, 0, 1, out=image)
            xp.power(image, 1 / self.gamma, out=image)
        return image


AnyOperation = Resize | Crop | Flip | Rotate | Blur | Denoise | Sharpen | Colour


def _scaled(size: int, factor: float) -> int:
    return max(1, round(size * factor))


def _gaussian(image: Any, sigmas: Any, studio: Studio) -> Any:
    """A blurred copy; `sigmas` (in pixels) down and across, borders mirrored."""
    return studio.device.ndimage.gaussian_filter(image, (0, *sigmas), mode="reflect")


def _antialiased(image: Any, shrinks: list[float], studio: Studio) -> Any:
    """A copy without what is too fine to survive shrinking `shrinks` times, down and across."""
    # Half of what is left out, on each side of a sample that stays.
    image = _gaussian(
        image, [max(0.0, (each - 1) / 2) if each <= MAX_SMOOTH_SHRINK else 0.0 for each in shrinks], studio
    )
    for axis, shrink in enumerate(shrinks, start=1):
        if shrink > MAX_SMOOTH_SHRINK:
            image = studio.device.ndimage.uniform_filter1d(image, round(shrink), axis=axis, mode="reflect")
    return image
