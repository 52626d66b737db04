"""The preprocessors by name: what makes a control map out of a picture, out of chosen colours, or out of key points. None of them needs weights."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, shown
from ..setting import Section, Setting, section_settings
from . import lines, tones
from .sizes import RESIZE_MODES, fit, shrink_or_grow
from .skeleton import SkeletonValues, canvas_of, skeleton

PICTURE, PALETTE, KEYPOINTS = "picture", "palette", "keypoints"
LARGEST_SIDE = 8192
"""Pixels of a picture's longer side that a preprocessor takes."""


@dataclass(frozen=True)
class Preprocessor:
    """What makes a control map.

    Attributes:
        name: as units and infotexts have it.
        label: as a person reads it.
        help: one sentence on what it makes.
        values: the record of its values; the first two numbers are a unit's threshold_a and threshold_b.
        work: (picture [H,W,3] uint8, values) -> map [H,W,3] uint8.
        source: what it looks at: a "picture", a "palette" (and a picture, if there is one), or "keypoints" (and no picture).
    """

    name: str
    label: str
    help: str
    values: type[Section]
    work: Callable[[Any, Any], Any]
    source: str = PICTURE

    @property
    def parameters(self) -> tuple[Setting, ...]:
        """The numbers that can be set, in the order of threshold_a and threshold_b."""
        return tuple(setting for setting in section_settings(self.values) if setting.kind in ("number", "whole number"))

    def make_values(self, threshold_a: float | None = None, threshold_b: float | None = None, palette: str = "", keypoints: str = "") -> Section:
        """The record of values; None and empty texts leave defaults.

        Raises:
            ConfigError: a value out of its range.
        """
        given: dict[str, Any] = {setting.name: value for setting, value in zip(self.parameters, (threshold_a, threshold_b), strict=False) if value is not None}
        names = {setting.name for setting in section_settings(self.values)}
        given |= {name: text for name, text in (("palette", palette), ("keypoints", keypoints)) if name in names and text}
        return self.values(**given)

    def run(self, picture: Any = None, resolution: int | None = None, values: Section | None = None, size: tuple[int, int] = (512, 512)) -> Any:
        """The control map [h,w,3] uint8 of a picture [H,W,3] uint8.

        Args:
            picture: what is looked at; None where the preprocessor needs none.
            resolution: length of the map's shorter side, in pixels; None: the picture's own.
            values: this preprocessor's record; None: its defaults.
            size: (width, height) of the map where there is no picture, before it is brought to `resolution`.

        Raises:
            ConfigError: a picture is missing, or is none.
        """
        values = self.values() if values is None else values
        if self.source == KEYPOINTS:
            picture, size = None, canvas_of(values.keypoints) or size
        if picture is None:
            if self.source == PICTURE:
                raise ConfigError(f"the preprocessor {self.name} needs a picture: give one, or choose palette or skeleton")
            return self.work(_blank(size, resolution), values)
        picture = as_picture(picture)
        picture = picture if resolution is None else shrink_or_grow(picture, resolution)
        return tones.palette_of_picture(picture, values) if self.source == PALETTE else self.work(picture, values)


def as_picture(picture: Any) -> Any:
    """The picture as [H,W,3] uint8: gray is repeated, transparency put on black.

    Raises:
        ConfigError: no uint8 array of such a shape, or one that is too large.
    """
    import numpy as np

    shape = getattr(picture, "shape", ())
    if getattr(picture, "dtype", None) != np.uint8 or len(shape) not in (2, 3) or 0 in shape or (len(shape) == 3 and shape[2] not in (1, 3, 4)):
        raise ConfigError(f"a picture of {getattr(picture, 'dtype', type(picture).__name__)} {list(shape)}: expected uint8 [H,W,3]")
    if max(shape[:2]) > LARGEST_SIDE:
        raise ConfigError(f"a picture of {shape[1]}×{shape[0]} pixels: {LARGEST_SIDE} a side is the most; make it smaller")
    if len(shape) == 2 or shape[2] == 1:
        return np.repeat(picture.reshape(*shape[:2], 1), 3, axis=-1)
    if shape[2] == 4:
        return ((picture[..., :3].astype(np.uint16) * picture[..., 3:] + 127) // 255).astype(np.uint8)
    return np.ascontiguousarray(picture)


def _blank(size: tuple[int, int], resolution: int | None) -> Any:
    import numpy as np

    scale = 1.0 if resolution is None else resolution / min(size)
    width, height = (max(1, round(side * scale)) for side in size)
    if max(width, height) > LARGEST_SIDE:
        raise ConfigError(f"a map of {width}×{height} pixels: {LARGEST_SIDE} a side is the most")
    return np.zeros((height, width, 3), np.uint8)


TABLE = (
    Preprocessor("none", "None", "Leaves the picture as it is: choose this for a finished control map.", tones.NoValues, tones.unchanged),
    Preprocessor("invert", "Invert", "Makes white lines on black out of a drawing on white paper.", tones.NoValues, tones.invert),
    Preprocessor("threshold", "Threshold", "White where it is bright, black elsewhere.", tones.ThresholdValues, tones.threshold),
    Preprocessor("threshold_otsu", "Threshold by Otsu", "The same, with a level that it finds itself.", tones.NoValues, tones.threshold_otsu),
    Preprocessor("canny", "Canny edges", "Thin lines where the brightness changes.", lines.CannyValues, lines.canny),
    Preprocessor("lineart", "Lineart", "Lines where the picture is darker than its surroundings.", lines.LineartValues, lines.lineart),
    Preprocessor("xdog", "Sketch (XDoG)", "Black-and-white strokes, as for sketch adapters.", lines.SketchValues, lines.xdog),
    Preprocessor("softedge", "Soft edges", "Edges by how strong they are.", lines.SoftEdgeValues, lines.softedge),
    Preprocessor("color_grid", "Color grid", "The picture in cells of one colour, as for color adapters.", tones.GridValues, tones.color_grid),
    Preprocessor("palette", "Palette", "Cells in colours that you choose; a picture's cells in the nearest of them.", tones.PaletteValues, tones.palette,
                 PALETTE),
    Preprocessor("blur", "Blur", "The picture blurred.", tones.BlurValues, tones.blur),
    Preprocessor("skeleton", "Skeleton from key points", "People as OpenPose draws them, out of its JSON.", SkeletonValues, skeleton, KEYPOINTS),
)


def preprocessor_rows() -> list[dict[str, Any]]:
    """Every preprocessor of the table as plain values, for lists and routes."""
    return [{"name": each.name, "label": each.label, "help": each.help, "source": each.source, "parameters": [
        {"name": setting.name, "help": setting.help, "minimum": setting.minimum, "maximum": setting.maximum, "default": setting.default,
         "whole": setting.kind == "whole number"} for setting in each.parameters]} for each in TABLE]


def find_preprocessor(name: str, more: Mapping[str, Preprocessor] | None = None) -> Preprocessor:
    """The preprocessor of that name, of the table or of a host's own.

    Raises:
        ConfigError: there is none; the nearest is named.
    """
    known = {each.name: each for each in TABLE} | dict(more or {})
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    raise ConfigError(f"no preprocessor is named {shown(name)!r}" + (f"; did you mean {near[0]}?" if near else f": known are {', '.join(known)}"))


def control_map(
    preprocessor: Preprocessor, values: Section, size: tuple[int, int], picture: Any = None, resolution: int | None = None,
    resize_mode: str = RESIZE_MODES[1],
) -> Any:
    """The map [H,W,3] uint8 for a picture that is to be made at `size` (width, height).

    Args:
        preprocessor: what makes it.
        values: its record.
        size: (width, height) in pixels.
        picture: what is looked at [h,w,3] uint8; None where nothing is.
        resolution: length of the shorter side at which the preprocessor works, in pixels; None: that of `size`.
        resize_mode: how another shape gets to `size`.

    Raises:
        ConfigError: no picture, or a value that will not do.
    """
    if picture is not None:
        picture = as_picture(picture)
    if preprocessor.name == "none":
        return fit(preprocessor.run(picture, None, values, size), *size, resize_mode)
    if picture is not None and preprocessor.source != KEYPOINTS:
        picture = fit(picture, *size, resize_mode)
    return fit(preprocessor.run(picture, min(size) if resolution is None else resolution, values, size), *size, resize_mode)
