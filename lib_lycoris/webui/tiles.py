"""UNet calls that hold tiles of a picture, as the extension Tiled Diffusion makes them: which rows are which part of which picture.

Source: pkuliyi2015/multidiffusion-upscaler-for-automatic1111, commit 22798f6, tile_methods/multidiffusion.py (sample_one_step), scripts/tilediffusion.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from lib_lycoris.patching.features import Row

TITLE = "tiled diffusion"


class Batch(NamedTuple):
    """The tiles of one UNet call, each (top, left, bottom, right) as parts of the picture, and the rows and columns of cells that a tile has."""

    boxes: tuple[tuple[float, float, float, float], ...]
    size: tuple[int, int]


class Tiles:
    """Counts a step's UNet calls through the tiles and rows.

    Args:
        p: the host's picture, among whose scripts the extension is.
        latent: (height, width) of the whole picture's latents, in cells.
    """

    def __init__(self, p: Any, latent: tuple[int, int]):
        self._batches = read_batches(p, latent)
        self._rows: Sequence[int] = ()
        self._call = 0
        self._first = 0

    def begin_step(self, rows: Sequence[int]) -> None:
        """The next call is a step's first; `rows` are the pictures of its rows."""
        self._rows, self._call, self._first = rows, 0, 0

    def rows(self, count: int, size: tuple[int, int]) -> list[Row] | None:
        """The rows of a call of so many, whose cells are `size` (height, width); None where they can't be told."""
        if not self._batches:
            return None
        boxes, known = self._batches[self._call % len(self._batches)]
        each = count // len(boxes)
        if known != size or count % len(boxes) or self._first + each > len(self._rows):
            return None
        pictures = self._rows[self._first : self._first + each]
        self._call += 1
        if self._call % len(self._batches) == 0:  # the host's next call has the rows behind these, tile by tile again
            self._first += each
        return [Row(picture, box) for box in boxes for picture in pictures]


def telling_rows(p: Any, latent: tuple[int, int], count: int) -> Callable[[Tensor], list[int] | None] | None:
    """Tells which of a step's `count` rows a UNet call holds, for its first tensor, as `patching.rows.Telling`; None where the extension is off.

    Where regions with prompts of their own are drawn, rows can't be told.
    """
    if _find_delegate(p) is None:
        return None
    tiles = Tiles(p, latent)
    tiles.begin_step(range(count))

    def tell(x: Tensor) -> list[int] | None:
        if tuple(x.shape[-2:]) == latent:
            return None
        return [row.picture for row in tiles.rows(len(x), tuple(x.shape[-2:])) or ()]

    return tell


def read_batches(p: Any, latent: tuple[int, int]) -> list[Batch]:
    """The tiles of each UNet call as the extension planned them; none where it is off, or regions with prompts of their own are drawn."""
    delegate = _find_delegate(p)
    if delegate is None or getattr(delegate, "custom_bboxes", None):
        return []
    return [Batch(tuple(_box(tile, latent) for tile in tiles), (tiles[0].h, tiles[0].w)) for tiles in getattr(delegate, "batched_bboxes", ()) if tiles]


def region_tags(p: Any, kind: str) -> list[Any]:
    """The tags of this kind in the prompts of all regions that are drawn, as the host parses them."""
    regions = getattr(_find_delegate(p), "custom_bboxes", None) or ()
    return [params for region in regions for params in (getattr(region, "extra_network_data", None) or {}).get(kind, ())]


def _find_delegate(p: Any) -> Any:
    """What the extension has planned for this picture, or None."""
    found = (script for script in getattr(getattr(p, "scripts", None), "alwayson_scripts", None) or () if script.title().lower() == TITLE)
    return next((script.delegate for script in found if getattr(script, "delegate", None) is not None), None)


def _box(tile: Any, latent: tuple[int, int]) -> tuple[float, float, float, float]:
    height, width = latent
    return tile.y / height, tile.x / width, (tile.y + tile.h) / height, (tile.x + tile.w) / width
