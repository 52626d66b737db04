"""Names what a picture of the world shows: which shape, which colour, how large, where, on what background.

Nothing here is learned: the background is what most of the border shows, the shape is the largest area that differs from it, and its name is that of the
template which covers it best.
"""
from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from .scenes import BACKGROUNDS, COLOURS, CONCEPT_SHAPE, POSITIONS, SHAPES, SIZES, signed_distance

FIT = 0.66
"""A shape is named only where its template and the area agree to this intersection over union: softened corners cost up to a fifth, and what is none of the
shapes (noise, a bar, a blob with a bite) stays below."""
_GRID = 64


@dataclass(frozen=True)
class Reading:
    """What a picture shows; None where the measure finds nothing it can name.

    Attributes:
        shape, colour, size, position, background: names from the world's tables.
        fit: intersection over union of the area and the best template, 0..1.
    """

    shape: str | None
    colour: str | None
    size: str | None
    position: str | None
    background: str | None
    fit: float


def _nearest(rgb: np.ndarray, table: dict) -> str:
    names = list(table)
    return names[int(np.argmin([np.linalg.norm(rgb - np.array(table[n], dtype=float)) for n in names]))]


def shape_mask(picture: np.ndarray) -> np.ndarray:
    """Where the shape is: bool [H,W] for a uint8 picture [H,W,3]; all False where nothing stands out."""
    pixels = picture.astype(float)
    edge = max(1, picture.shape[0] // 32)
    border = np.concatenate([pixels[:edge].reshape(-1, 3), pixels[-edge:].reshape(-1, 3), pixels[:, :edge].reshape(-1, 3), pixels[:, -edge:].reshape(-1, 3)])
    background = np.median(border, axis=0)
    distance = np.linalg.norm(pixels - background, axis=-1)
    strong = distance > 60
    if strong.sum() < 0.01 * strong.size:
        return np.zeros(strong.shape, dtype=bool)
    front = np.median(pixels[distance >= np.quantile(distance[strong], 0.3)], axis=0)
    span = front - background
    along = (pixels - background) @ span / (span @ span)
    return _largest_part(along > 0.5)


def _largest_part(mask: np.ndarray) -> np.ndarray:
    """The largest 8-connected part of a mask, by spreading the highest label until nothing changes."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        padded = np.pad(labels, 1)
        spread = labels
        for dy in range(3):
            for dx in range(3):
                spread = np.maximum(spread, padded[dy:dy + mask.shape[0], dx:dx + mask.shape[1]])
        spread = np.where(mask, spread, 0)
        if np.array_equal(spread, labels):
            break
        labels = spread
    if not labels.any():
        return mask & False
    values, counts = np.unique(labels[labels > 0], return_counts=True)
    return labels == values[np.argmax(counts)]


@cache
def _template(shape: str) -> np.ndarray:
    return _normalise(_dense(shape))


def _dense(shape: str) -> np.ndarray:
    axis = (np.arange(192) + 0.5) / 96 - 1
    x, y = np.meshgrid(axis * 1.4, axis * 1.4)
    return signed_distance(shape, x, y) < 0


def _normalise(mask: np.ndarray) -> np.ndarray:
    """A mask moved and scaled so that its centre of mass is the grid's centre and its area a fifth of the grid's: bool [_GRID,_GRID].

    Area and centre of mass change little where a soft picture has lost a shape's thin tips; a bounding box would change a lot.
    """
    ys, xs = np.nonzero(mask)
    step = np.sqrt(5 * len(ys)) / _GRID
    offsets = (np.arange(_GRID) + 0.5 - _GRID / 2) * step
    rows, columns = np.floor(ys.mean() + 0.5 + offsets).astype(int), np.floor(xs.mean() + 0.5 + offsets).astype(int)
    inside = ((rows >= 0) & (rows < mask.shape[0]))[:, None] & ((columns >= 0) & (columns < mask.shape[1]))[None, :]
    return mask[np.clip(rows, 0, mask.shape[0] - 1)][:, np.clip(columns, 0, mask.shape[1] - 1)] & inside


def read_picture(picture: np.ndarray) -> Reading:
    """What a picture shows.

    Args:
        picture: uint8 [H,W,3].
    """
    mask = shape_mask(picture)
    background = _nearest(np.median(picture[~mask].reshape(-1, 3), axis=0), BACKGROUNDS) if not mask.all() else None
    share = mask.mean()
    if share < 0.02 or share > 0.8:
        return Reading(None, None, None, None, background, 0.0)
    colour = _nearest(np.median(picture[mask].astype(float), axis=0), COLOURS)

    normal = _normalise(mask)
    fits = {shape: (normal & _template(shape)).sum() / (normal | _template(shape)).sum() for shape in (*SHAPES, CONCEPT_SHAPE)}
    best = max(fits, key=fits.get)

    side = mask.shape[0]
    radius = np.sqrt(mask.sum() / _area(best)) / side
    size = min(SIZES, key=lambda name: abs(SIZES[name] - radius))
    ys, xs = np.nonzero(mask)
    off_x, off_y = _centre_of_mass(best)
    x, y = (xs.mean() + 0.5) / side - radius * off_x - 0.5, (ys.mean() + 0.5) / side - radius * off_y - 0.5
    reach = min(0.21, 0.475 - SIZES[size])
    position = min(POSITIONS, key=lambda name: np.hypot(x - reach * POSITIONS[name][0], y - reach * POSITIONS[name][1]))
    return Reading(best if fits[best] >= FIT else None, colour, size, position, background, float(fits[best]))


@cache
def _area(shape: str) -> float:
    """Area of a shape of radius 1."""
    return _dense(shape).mean() * 2.8 ** 2


@cache
def _centre_of_mass(shape: str) -> tuple[float, float]:
    """(x, y) of the centre of mass of a shape of radius 1, from its own origin."""
    ys, xs = np.nonzero(_dense(shape))
    return (xs.mean() + 0.5) * 2.8 / 192 - 1.4, (ys.mean() + 0.5) * 2.8 / 192 - 1.4
