"""A picture or control map brought to another size, without making up shades that it has not."""

from __future__ import annotations

from typing import Any

from ..errors import ConfigError

RESIZE_MODES = ("just resize", "crop and resize", "resize and fill")
FEW_COLOURS = 64
"""A map with no more colours than this is a drawing in flat colours (a segmentation, a colour grid), whose colours mean something."""


def resize(picture: Any, width: int, height: int) -> Any:
    """The picture [H,W,C] uint8 at that size; two-valued ones stay two-valued, flat colours stay the same colours, others are averaged or interpolated."""
    import cv2
    import numpy as np

    if picture.shape[:2] == (height, width):
        return picture
    colours = _count_colours(picture)
    if colours <= 2:
        low, high = picture.min(axis=(0, 1)), picture.max(axis=(0, 1))
        share = _interpolate(np.ascontiguousarray((picture != low).any(axis=-1), dtype=np.float32), width, height)
        # Thin lines are kept where a picture gets smaller: a quarter of a line in a pixel is enough.
        limit = 0.25 if height < picture.shape[0] else 0.5
        return np.where((share > limit)[..., None], high, low).astype(np.uint8)
    if colours <= FEW_COLOURS:
        return cv2.resize(picture, (width, height), interpolation=cv2.INTER_NEAREST_EXACT).reshape(height, width, -1)
    return _interpolate(picture, width, height).reshape(height, width, -1)


def fit(picture: Any, width: int, height: int, mode: str) -> Any:
    """The picture [H,W,C] at that size by a resize mode: stretched, filling it with the rest cut off, or inside it with its border's colour around.

    Raises:
        ConfigError: an unknown mode.
    """
    import numpy as np

    old_height, old_width = picture.shape[:2]
    if mode not in RESIZE_MODES:
        raise ConfigError(f"resize mode {mode!r}: expected one of {', '.join(RESIZE_MODES)}")
    if mode == "just resize" or (old_height, old_width) == (height, width):
        return resize(picture, width, height)
    choose = max if mode == "crop and resize" else min
    scale = choose(width / old_width, height / old_height)
    inner = _scaled(old_width, scale), _scaled(old_height, scale)
    left, top = (inner[0] - width) // 2, (inner[1] - height) // 2
    scaled = resize(picture, *inner)
    if mode == "crop and resize":
        return scaled[top : top + height, left : left + width]
    filled = np.empty((height, width, picture.shape[2]), np.uint8)
    filled[:] = border_colour(picture)
    filled[-top : -top + inner[1], -left : -left + inner[0]] = scaled
    return filled


def shrink_or_grow(picture: Any, shorter: int) -> Any:
    """The picture with its shorter side of that many pixels, the other one in proportion."""
    height, width = picture.shape[:2]
    scale = shorter / min(height, width)
    return resize(picture, _scaled(width, scale), _scaled(height, scale))


def border_colour(picture: Any) -> Any:
    """The colour [C] that is met most on the picture's outermost pixels."""
    import numpy as np

    edges = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    colours, counts = np.unique(edges, axis=0, return_counts=True)
    return colours[counts.argmax()]


def _scaled(length: int, scale: float) -> int:
    return max(1, round(length * scale))


def _interpolate(picture: Any, width: int, height: int) -> Any:
    import cv2

    smaller = width * height < picture.shape[0] * picture.shape[1]
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)


def _count_colours(picture: Any) -> int:
    """How many colours there are; those of a large picture are first looked for in a part of it, as photographs have many everywhere."""
    import numpy as np

    packed = picture.astype(np.uint32) @ (1 << np.arange(0, 8 * picture.shape[2], 8, dtype=np.uint32))
    some = len(np.unique(packed[:: max(1, len(packed) // 32)]))
    return some if some > FEW_COLOURS else len(np.unique(packed))
