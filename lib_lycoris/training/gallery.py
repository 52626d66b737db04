"""The pictures of a dataset as a page shows them before a training: each with its caption, its size, and what of it would be cut off."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from ..errors import DatasetError
from .captions import CAPTIONS, read_text
from .config import DataSettings
from .dataset import find_subsets
from .pictures import measure, open_image, read_bytes, to_rgb

MOST = 2000
"""Pictures that are listed; a page shows some of them at a time."""
_SHADE = (0, 0, 0, 150)
_FRAME = (255, 140, 0, 255)


@dataclass(frozen=True)
class Shown:
    """One picture of a dataset.

    Attributes:
        path: of the file; name: its own.
        caption: what stands in the file beside it; empty where there is none.
        size: (width, height) in pixels, and `trained` the size at which it is trained.
        box: what is kept of it, in its own pixels: left, top, right, bottom.
        scale: by what it is scaled; cropped: the share that is cut off.
        repeats: how often it counts.
        problem: why it can't be used, in words; None where it can.
    """

    path: str
    name: str
    caption: str = ""
    size: tuple[int, int] = (0, 0)
    trained: tuple[int, int] = (0, 0)
    box: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    scale: float = 1.0
    cropped: float = 0.0
    repeats: int = 1
    problem: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The picture as values that JSON can hold."""
        plain = asdict(self)
        return {**plain, **{name: list(plain[name]) for name in ("size", "trained", "box")}}


def list_pictures(settings: DataSettings) -> tuple[list[Shown], list[str]]:
    """(pictures, what was odd, in words); one that can't be read is listed with its problem.

    Raises:
        DatasetError: no folder is named, or one is missing or without pictures.
    """
    subsets, _, problems = find_subsets(settings)
    found = [_look(path, subset) for subset in subsets for path in subset.pictures()[:MOST]]
    without = sum(not one.caption and one.problem is None for one in found)
    if without:
        problems = [*problems, f"{without} of {len(found)} pictures have no caption"]
    return found[:MOST], problems


def _look(path: Path, subset: Any) -> Shown:
    try:
        size = measure(path, read_bytes(path))
        frame = subset.sizes.frame(*size)
        caption = "\n".join(read_text(path, CAPTIONS) or ())
        return Shown(str(path), path.name, caption, size, frame.size, frame.box(), frame.scale, frame.cropped, subset.repeats)
    except DatasetError as error:
        return Shown(str(path), path.name, problem=str(error))


def draw_picture(one: Shown, side: int) -> Image.Image:
    """The picture with its longer side at most `side` pixels; what would be cut off is dark, with a line around what stays.

    Raises:
        DatasetError: it can't be read.
    """
    image = to_rgb(open_image(Path(one.path)))
    scale = min(1.0, side / max(image.size))
    small = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BILINEAR)
    if one.cropped <= 0 or one.problem is not None:
        return small
    left, top, right, bottom = (round(edge * scale) for edge in one.box)
    veil = Image.new("RGBA", small.size, _SHADE)
    pen = ImageDraw.Draw(veil)
    pen.rectangle((left, top, right - 1, bottom - 1), fill=(0, 0, 0, 0), outline=_FRAME, width=max(1, side // 160))
    return Image.alpha_composite(small.convert("RGBA"), veil).convert("RGB")


def small_jpeg(path: Path, side: int) -> bytes:
    """The picture as a JPEG whose longer side has at most that many pixels.

    Raises:
        DatasetError: it can't be read.
    """
    image = to_rgb(open_image(path))
    image.thumbnail((side, side), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()
