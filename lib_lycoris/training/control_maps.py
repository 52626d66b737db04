"""Control pictures as an adapter takes them, cut and scaled as the pictures they belong to."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import ConfigError, DatasetError, shown
from ..preprocess.sizes import resize
from ..preprocess.table import Preprocessor, control_map, find_preprocessor
from ..setting import Section, section_settings
from .buckets import Box
from .config import DataSettings, split_value
from .controls import read_control
from .dataset import Picture
from .latents import Variant
from .pictures import open_image, orientation, read_bytes, to_pixels, to_rgb

MOST_BYTES = 1 << 30
"""Of compressed maps that are kept in memory; what is beyond is made again for each draw."""


class ControlMaps:
    """The control pictures of a training, by picture and crop.

    Args:
        settings: the preprocessor, where one makes them.
        most_bytes: that are kept.

    Raises:
        ConfigError: an unknown preprocessor, or a value that it does not take.
    """

    def __init__(self, settings: DataSettings, most_bytes: int = MOST_BYTES):
        self._preprocessor, self._values = find_values(settings)
        self._resolution, self._most_bytes = settings.preprocessor_resolution, most_bytes
        self._held: dict[tuple[str, int | None], tuple[bytes, tuple[int, ...]]] = {}
        self._bytes = 0

    def prepare(self, pictures: Sequence[Picture], tell: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Makes all that a draw of these pictures may want; `tell` is told (done, all) before each.

        Raises:
            DatasetError: a picture or control picture can't be read, or has another shape than its picture.
        """
        for number, picture in enumerate(pictures):
            tell(number, len(pictures))
            places = range(picture.frame.places) if picture.subset.random_crop and picture.frame.places > 1 else (None,)
            for place in places:
                self._keep(picture, place, self._make(picture, place))

    def get(self, picture: Picture, variant: Variant) -> Tensor:
        """The control picture [3,H,W] in 0..1, at the size at which the picture is trained, mirrored where it is."""
        held = self._held.get(_key(picture, variant.place))
        pixels = self._make(picture, variant.place) if held is None else np.frombuffer(zlib.decompress(held[0]), np.uint8).reshape(held[1])
        found = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
        found = found.expand(3, -1, -1)
        return found.flip(-1) if variant.mirrored else found

    def _keep(self, picture: Picture, place: int | None, pixels: np.ndarray) -> None:
        grey = bool((pixels == pixels[..., :1]).all())
        pixels = np.ascontiguousarray(pixels[..., :1] if grey else pixels)
        packed = zlib.compress(pixels.tobytes(), 1)
        if self._bytes + len(packed) <= self._most_bytes:
            self._bytes += len(packed)
            self._held[_key(picture, place)] = packed, pixels.shape

    def _make(self, picture: Picture, place: int | None) -> np.ndarray:
        """The control picture [H,W,3] uint8 of that crop."""
        box, size = picture.frame.box(place), picture.frame.size
        data = read_bytes(picture.path)
        if self._preprocessor is not None:
            pixels = (to_pixels(to_rgb(open_image(picture.path, data)), box, size) + 1) * 127.5
            seen = pixels.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
            try:
                return control_map(self._preprocessor, self._values, size, seen, self._resolution)
            except ConfigError as error:
                raise DatasetError(f"picture {shown(picture.path)}: {error}") from error
        control = read_control(picture.control, picture.frame.original, orientation(picture.path, data))
        return _cut(control, box, picture.frame.original, size)


def find_values(settings: DataSettings) -> tuple[Preprocessor, Section] | tuple[None, None]:
    """The preprocessor that [data] names, with its values; None twice where it names none.

    Raises:
        ConfigError: an unknown one, one that looks at no picture, or a value that it does not take.
    """
    if settings.preprocessor is None:
        return None, None
    preprocessor = find_preprocessor(settings.preprocessor)
    known = {item.name: item for item in section_settings(preprocessor.values)}
    given = {}
    for name, text in map(split_value, settings.preprocessor_values):
        if name not in known:
            what = f"it has {', '.join(known)}" if known else "it has none"
            raise ConfigError(f"data.preprocessor_values: the preprocessor {preprocessor.name} knows no {shown(name)!r}; {what}")
        given[name] = known[name].parse(text)
    return preprocessor, preprocessor.values(**given)


def _cut(control: Image.Image, box: Box, original: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """The part of a control picture [H,W,3] uint8 that belongs to the box of its picture, at `size`: lines stay lines, flat colours the same colours."""
    across, down = (own / side for own, side in zip(control.size, original, strict=True))
    left, top, right, bottom = (round(place * scale) for place, scale in zip(box, (across, down, across, down), strict=True))
    pixels = np.array(control.crop((left, top, max(right, left + 1), max(bottom, top + 1))), dtype=np.uint8)
    return pixels if pixels.shape[:2] == (size[1], size[0]) else resize(pixels, *size)


def _key(picture: Picture, place: int | None) -> tuple[str, int | None]:
    return f"{picture.path}/{picture.control}/{picture.frame}", place
