"""Which size each picture is trained at, and what of it is scaled away or cut off; numbers alone, no picture is touched."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from ..errors import DatasetError
from .config import DataSettings
from .material import Framing

PLACES = 4
"""How many crops of a picture a random crop chooses among: spread evenly over what is too much, its ends included."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


@dataclass(frozen=True)
class Sizes:
    """The sizes (buckets) that pictures may come to, all as (width, height) in pixels.

    Attributes:
        width: with `height`, of the size whose area no bucket exceeds; the only size where there are no buckets.
        step: the sides are multiples of it.
        low: shortest side, `high`: longest.
        upscale: whether a picture smaller than every bucket is scaled up; otherwise it gets a size of its own.

    Raises:
        DatasetError: no size fits these numbers.
    """

    width: int
    height: int
    buckets: bool = True
    step: int = 64
    low: int = 256
    high: int = 1024
    upscale: bool = True

    def __post_init__(self) -> None:
        if self.buckets and (self.step < 8 or self.step % 8):
            raise DatasetError(f"bucket steps of {self.step} pixels: latents have cells of 8 pixels, use a multiple of 8")
        if not self.buckets and (self.width % 8 or self.height % 8 or not self.width or not self.height):
            raise DatasetError(f"a size of {self.width}×{self.height} pixels: latents have cells of 8 pixels, use multiples of 8")
        if not self.all:
            raise DatasetError(f"no size has sides of {self.low} to {self.high} pixels in steps of {self.step} and at most the area of "
                               f"{self.width}×{self.height}: lower the shortest side or the step")

    @classmethod
    def from_settings(cls, settings: DataSettings) -> Sizes:
        """What [data] says."""
        low, high = settings.bucket_sides
        return cls(settings.resolution, settings.resolution, settings.buckets, settings.bucket_step, low, high, settings.upscale)

    @cached_property
    def all(self) -> tuple[tuple[int, int], ...]:
        """Every bucket: for each width the tallest whose area is not too large, the same lying on its side, and the largest square."""
        if not self.buckets:
            return ((self.width, self.height),)
        area, found = self.width * self.height, set()
        for width in range(-(-self.low // self.step) * self.step, self.high + 1, self.step):
            height = min(self.high, area // width) // self.step * self.step
            if height >= self.low:
                found |= {(width, height), (height, width)}
        square = min(self.high, math.isqrt(area)) // self.step * self.step
        if square >= self.low:
            found.add((square, square))
        return tuple(sorted(found))

    def frame(self, width: int, height: int) -> Frame:
        """How a picture of that size is trained: in the bucket whose shape is nearest, the largest of equally near ones."""
        fitting = [size for size in self.all if self.upscale or not self.buckets or (size[0] <= width and size[1] <= height)]
        if not fitting:
            return Frame((width, height), self._own(width, height))
        shape = math.log(width / height)
        return Frame((width, height), min(fitting, key=lambda size: (abs(math.log(size[0] / size[1]) - shape), -size[0] * size[1])))

    def _own(self, width: int, height: int) -> tuple[int, int]:
        """The multiples of the step just below a picture that no bucket fits into; at least one step, at most the area and the longest side."""
        scale = min(1.0, math.sqrt(self.width * self.height / (width * height)), self.high / max(width, height))
        return tuple(max(self.step, int(side * scale + 1e-6) // self.step * self.step) for side in (width, height))


@dataclass(frozen=True)
class Frame:
    """A picture of the size `original` on its way to `size`, both (width, height): scaled until it covers it, then cut."""

    original: tuple[int, int]
    size: tuple[int, int]

    @property
    def scale(self) -> float:
        """By what both sides are multiplied."""
        return max(self.size[0] / self.original[0], self.size[1] / self.original[1])

    @property
    def spare(self) -> tuple[int, int]:
        """How many pixels of the scaled picture are cut off, in width and height."""
        return tuple(max(0, round(side * self.scale) - goal) for side, goal in zip(self.original, self.size, strict=True))

    @property
    def cropped(self) -> float:
        """The share of the picture that is cut off."""
        return 1 - math.prod(self.size) / (math.prod(self.original) * self.scale**2)

    @property
    def places(self) -> int:
        """How many crops there are to choose from: one where nothing is cut off."""
        return PLACES if any(self.spare) else 1

    def box(self, place: int | None = None) -> Box:
        """What stays, in the original's pixels; place counts crops from the upper left end, None is the middle."""
        share = _share(place)
        kept = [min(goal / self.scale, side) for goal, side in zip(self.size, self.original, strict=True)]
        left, top = ((side - part) * share for side, part in zip(self.original, kept, strict=True))
        return left, top, left + kept[0], top + kept[1]

    def framing(self, place: int | None = None, mirrored: bool = False) -> Framing:
        """The same as a model is told that asks for it (SDXL); a mirrored picture's crop is counted from its other side."""
        left, top = (round(spare * _share(place)) for spare in self.spare)
        left = self.spare[0] - left if mirrored else left
        return Framing((self.original[1], self.original[0]), (top, left), (self.size[1], self.size[0]))


def _share(place: int | None) -> float:
    return 0.5 if place is None else place / (PLACES - 1)
