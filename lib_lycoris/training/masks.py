"""Weights of the loss from a picture's transparency or a grey picture beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import DatasetError
from .buckets import Box
from .pictures import PICTURES, has_alpha, open_image, to_grey

MARK = "-masklabel"
"""Ends the name of a mask beside its picture: NAME-masklabel.png."""
CELL = 8
_TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
          6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90}


def find_mask(picture: Path) -> Path | None:
    """The mask of a picture, NAME-masklabel.* beside it or mask/NAME.*; None where it has none."""
    for ending in PICTURES:
        for path in (picture.with_name(f"{picture.stem}{MARK}{ending}"), picture.parent / "mask" / f"{picture.stem}{ending}"):
            if path.is_file():
                return path
    return None


def is_mask(path: Path, names: set[str]) -> bool:
    """Whether a file is the mask of one of the pictures with these names (without endings)."""
    return path.stem.endswith(MARK) and path.stem.removesuffix(MARK) in names


def alpha_mask(image: Image.Image) -> Image.Image | None:
    """A picture's opacity in 8-bit grey; None where all of it is opaque."""
    return image.convert("RGBA").getchannel("A") if has_alpha(image) else None


def read_mask(path: Path, size: tuple[int, int], turned: int = 1) -> Image.Image:
    """A mask file in 8-bit grey, as large as its picture is after EXIF's turn.

    Args:
        size: of the picture, (width, height), after the turn.
        turned: the picture's own EXIF orientation; a mask that lies as the picture's bytes do, and says nothing itself, is turned with it.

    Raises:
        DatasetError: it can't be read, or has another shape than its picture.
    """
    mask = turned_with(to_grey(open_image(path)), path, size, turned, "mask")
    return mask if mask.size == size else mask.resize(size, Image.Resampling.BILINEAR)


def turned_with(image: Image.Image, path: Path, size: tuple[int, int], turned: int, what: str) -> Image.Image:
    """A picture that goes with another one, lying as that does after EXIF's turn.

    Args:
        size: of the other picture, (width, height), after its turn.
        turned: the other picture's EXIF orientation; this one is turned with it where it lies as the other's bytes do.
        what: it is, for the error.

    Raises:
        DatasetError: it has another shape than the other picture.
    """
    if turned in (5, 6, 7, 8) and not same_shape(image.size, size) and same_shape(image.size, (size[1], size[0])):
        image = image.transpose(_TURNS[turned])
    if not same_shape(image.size, size):
        raise DatasetError(f"{what} {path} has {image.size[0]}×{image.size[1]} pixels, its picture {size[0]}×{size[1]}: make it of the same shape")
    return image


def to_cells(mask: Image.Image, box: Box, size: tuple[int, int], floor: float) -> Tensor:
    """The mask [1,h,w] float32 of the part within the box: each latent cell has the mean over its pixels, between `floor` and 1."""
    cells = mask.resize((size[0] // CELL, size[1] // CELL), Image.Resampling.BOX, box=box)
    values = torch.from_numpy(np.array(cells, dtype=np.uint8)).float()[None] / 255
    return floor + (1 - floor) * values


def same_shape(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes differ by no more than rounding, when one is scaled to the other."""
    return abs(one[0] * other[1] - one[1] * other[0]) <= max(*one, *other)
