"""Pictures side by side with words beside them."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_GAP, _INK, _PAPER = 6, (30, 30, 30), (255, 255, 255)


def make_grid(rows: Sequence[tuple[str, Sequence[np.ndarray]]], titles: Sequence[str] = (), tile: int = 128) -> Image.Image:
    """Rows of pictures, each with its name at the left.

    Args:
        rows: (name, pictures uint8 [H,W,3]); rows may differ in length.
        titles: over the columns; long ones are wrapped.
        tile: side in pixels that every picture is scaled to; small pictures get hard pixels, large ones are smoothed.

    Raises:
        ValueError: no row has a picture.
    """
    columns = max((len(pictures) for _, pictures in rows), default=0)
    if columns == 0:
        raise ValueError("a picture grid needs at least one picture")
    font = _font()
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    left = max(_width(draw, font, line) for name, _ in rows for line in name.split("\n")) + 2 * _GAP
    wrapped = [_wrap(draw, font, title, tile) for title in titles]
    top = _GAP + max((len(lines) for lines in wrapped), default=0) * 16
    grid = Image.new("RGB", (left + columns * (tile + _GAP), top + len(rows) * (tile + _GAP)), _PAPER)
    draw = ImageDraw.Draw(grid)
    for column, lines in enumerate(wrapped):
        draw.multiline_text((left + column * (tile + _GAP), _GAP // 2), "\n".join(lines), fill=_INK, font=font, spacing=2)
    for row, (name, pictures) in enumerate(rows):
        y = top + row * (tile + _GAP)
        draw.multiline_text((_GAP, y + _GAP), name, fill=_INK, font=font)
        for column, picture in enumerate(pictures):
            way = Image.Resampling.NEAREST if picture.shape[0] < tile else Image.Resampling.LANCZOS
            grid.paste(Image.fromarray(picture).resize((tile, tile), way), (left + column * (tile + _GAP), y))
    return grid


def _font() -> ImageFont.ImageFont:
    try:
        return ImageFont.load_default(13)
    except TypeError:  # Pillow below 10.1, the WebUI's, has one size
        return ImageFont.load_default()


def _width(draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont, text: str) -> int:
    return int(draw.textlength(text, font=font)) + 1


def _wrap(draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont, text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if _width(draw, font, longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
