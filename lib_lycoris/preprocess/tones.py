"""Control maps by single pixels or by areas: inverted, thresholded, blurred, in cells of colour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, shown
from ..setting import Section, setting

CELL = 64
"""Pixels of a cell of the colour adapters' own training."""


@dataclass(frozen=True)
class NoValues(Section):
    """A preprocessor without values."""

    section = "preprocessor"


@dataclass(frozen=True)
class ThresholdValues(Section):
    """Values of `threshold`."""

    section = "threshold"
    level: float = setting(128.0, "Brightness from which a pixel becomes white.", minimum=0, maximum=255)


@dataclass(frozen=True)
class BlurValues(Section):
    """Values of `blur`."""

    section = "blur"
    sigma: float = setting(4.0, "Width of the blur in pixels, as the standard deviation of a Gaussian.", minimum=0.1, maximum=64)


@dataclass(frozen=True)
class GridValues(Section):
    """Values of `color_grid`."""

    section = "color_grid"
    cell: int = setting(CELL, "Pixels of a cell's side; the released color adapter knows 64.", minimum=8, maximum=256)


@dataclass(frozen=True)
class PaletteValues(Section):
    """Values of `palette`."""

    section = "palette"
    shuffle: int = setting(1, "Number of an arrangement: 0 puts the colours in bands, in their order; any other shuffles the cells.", minimum=0, maximum=9999)
    cell: int = setting(CELL, "Pixels of a cell's side; the released color adapter knows 64.", minimum=8, maximum=256)
    palette: str = setting("#b03020:2 #e0c080 #204060", "The colours, as #rrggbb with a share behind a colon.")

    def _check_together(self) -> None:
        parse_palette(self.palette)


def brightness(picture: Any) -> Any:
    """The brightness [H,W] uint8 of a picture [H,W,3] (ITU-R BT.601)."""
    import cv2

    return cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)


def three(gray: Any) -> Any:
    """A gray map [H,W] as [H,W,3]."""
    import numpy as np

    return np.repeat(gray[..., None], 3, axis=-1)


def unchanged(picture: Any, values: NoValues) -> Any:
    """The picture as it is: it is a control map already."""
    return picture


def invert(picture: Any, values: NoValues) -> Any:
    """Black for white: most adapters want white lines on black."""
    return 255 - picture


def threshold(picture: Any, values: ThresholdValues) -> Any:
    """White where the picture is at least so bright, black elsewhere."""
    import numpy as np

    return three(np.where(brightness(picture) >= values.level, 255, 0).astype(np.uint8))


def threshold_otsu(picture: Any, values: NoValues) -> Any:
    """White and black, parted where the two groups of brightness differ most.

    Source: N. Otsu, "A threshold selection method from gray-level histograms", 1979.
    """
    import cv2

    return three(cv2.threshold(brightness(picture), 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[1])


def blur(picture: Any, values: BlurValues) -> Any:
    """The picture blurred by a Gaussian."""
    import cv2

    return cv2.GaussianBlur(picture, (0, 0), values.sigma)


def color_grid(picture: Any, values: GridValues) -> Any:
    """The picture in cells of one colour each, as the color adapter was trained.

    Source: TencentARC/T2I-Adapter, ldm/modules/extra_condition/api.py, commit c408b05: to a 64th by bicubic interpolation, and back by the nearest cell.
    """
    import cv2

    height, width = picture.shape[:2]
    cells = cv2.resize(picture, _cells(width, height, values.cell), interpolation=cv2.INTER_CUBIC)
    return cv2.resize(cells, (width, height), interpolation=cv2.INTER_NEAREST)


def palette(picture: Any, values: PaletteValues) -> Any:
    """Cells in the chosen colours by their shares, in bands or shuffled; `palette_of_picture` where there is a picture to go by."""
    import cv2
    import numpy as np

    height, width = picture.shape[:2]
    columns, rows = _cells(width, height, values.cell)
    colours, shares = zip(*parse_palette(values.palette), strict=True)
    ends = np.cumsum(shares) / sum(shares) * columns * rows
    chosen = np.searchsorted(ends, np.arange(columns * rows) + 0.5, side="right").clip(max=len(colours) - 1)
    if values.shuffle:
        chosen = np.random.Generator(np.random.PCG64(values.shuffle)).permutation(chosen)
    cells = np.array(colours, np.uint8)[chosen].reshape(rows, columns, 3)
    return cv2.resize(cells, (width, height), interpolation=cv2.INTER_NEAREST)


def palette_of_picture(picture: Any, values: PaletteValues) -> Any:
    """The picture's cells, each in the nearest of the chosen colours; shares and arrangement count for nothing."""
    import numpy as np

    colours = np.array([colour for colour, _ in parse_palette(values.palette)], np.int32)
    grid = color_grid(picture, GridValues(cell=values.cell))
    near = ((grid[:, :, None].astype(np.int32) - colours) ** 2).sum(axis=-1).argmin(axis=-1)
    return colours[near].astype(np.uint8)


def parse_palette(text: str) -> list[tuple[tuple[int, int, int], float]]:
    """Colours (red, green, blue in 0…255) and shares of "#aa3300:2 #ffffff".

    Raises:
        ConfigError: no colour, or something that is none.
    """
    found = []
    for word in text.replace(",", " ").split():
        colour, _, share = word.partition(":")
        digits = colour.removeprefix("#")
        try:
            if len(digits) == 3:
                digits = "".join(2 * digit for digit in digits)
            if len(digits) != 6 or not colour.startswith("#"):
                raise ValueError
            number = float(share or 1)
            if not 0 < number <= 1000:
                raise ValueError
            found.append(((int(digits[:2], 16), int(digits[2:4], 16), int(digits[4:], 16)), number))
        except ValueError:
            raise ConfigError(f"palette: {shown(word)!r} is no colour: write #rrggbb, or #rrggbb:2 for twice the share") from None
    if not found:
        raise ConfigError("palette: no colour is given: write some, as #b03020:2 #e0c080 #204060")
    return found


def _cells(width: int, height: int, cell: int) -> tuple[int, int]:
    return max(1, width // cell), max(1, height // cell)
