"""The studio's T2I-Adapters for page, routes and pictures: which there are, control maps to look at, and what stays from one picture to the next."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, LycoError, shown
from .units import make_seeing, requested_units

_SIDES = ("width", "height")
_LARGEST_SIDE = 4096


class Adapters:
    """The adapters in some folders.

    Args:
        folders: looked through whenever they are listed.
        fits: gives (base model, channels) of the loaded checkpoint, or None where none is loaded.
        samples: files by name that are listed too.
        clip_vision: CLIP's picture encoder, a file or a folder with one; None: looked for in the folders.
    """

    def __init__(self, folders: Sequence[str | Path], fits: Callable[[], tuple[str, tuple[int, ...]] | None],
                 samples: Mapping[str, Path] | None = None, clip_vision: str | None = None) -> None:
        from ..control.preparing import Preparation
        from ..library.adapters import AdapterShelf

        self._fits = fits
        shelf = AdapterShelf(folders, samples=samples)
        self.preparation = Preparation(shelf, make_seeing(shelf, clip_vision))

    def rows(self) -> list[dict[str, Any]]:
        """Every adapter file as plain values, with the preprocessor that belongs to it and whether it fits the loaded checkpoint."""
        from ..control.telling import own_preprocessor

        shelf, fitting = self.preparation.shelf, set(self.names())
        return [{**row, "recommended": own_preprocessor(row["name"], shelf.facts(row["name"]) if row["kind"] else None), "fits": row["name"] in fitting}
                for row in shelf.rows()]

    def names(self) -> list[str]:
        """Adapters that fit the loaded checkpoint, or all where none is loaded yet."""
        return self.preparation.shelf.names(*(self._fits() or ()))

    def fusers(self) -> list[str]:
        """CoAdapter fusers that fit the loaded checkpoint, or all where none is loaded yet."""
        return self.preparation.shelf.names(*(self._fits() or ()), kinds=("fuser",))

    def describe(self, name: str) -> dict[str, Any]:
        """What `control.telling.tell_adapter` says of an adapter: {"words": one line, "preprocessor", "resolution", "values"}.

        Raises:
            LycoError: there is none of that name, or it can't be used.
        """
        from ..control.telling import tell_adapter

        facts, loaded = self.preparation.shelf.facts(name), self._fits()
        seeing = self.preparation.see.describe(facts.width) if facts.kind == "style" else ""
        fits = loaded is None or facts.fits(loaded[0], None if facts.kind == "style" else loaded[1])
        return tell_adapter(name, facts, fits, seeing)

    def preview(self, values: Mapping[str, Any], size: tuple[int, int]) -> Any:
        """The control map [H,W,3] uint8 of a unit that is given as a mapping, pictures among it, for a picture of that size (width, height).

        Raises:
            LycoError: a bad value, or no picture where one is needed.
        """
        from ..control.making import make_map

        (asked,) = requested_units([values])
        facts = self.preparation.shelf.facts(asked.unit.adapter) if asked.unit.adapter else None
        return make_map(asked.unit, facts, next(iter(asked.pictures), None), size)

    def control_map(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """{"map": PNG in base64, "width", "height"} of {"picture": base64, "width", "height", and a unit's fields}.

        Raises:
            LycoError: a bad value, or no picture where one is needed.
        """
        from PIL import Image

        from ..control.making import make_map

        (asked,) = requested_units([{name: value for name, value in values.items() if name not in _SIDES}])
        picture = next(iter(asked.pictures), None)
        size = tuple(_side(values, name, 512 if picture is None else picture.shape[1 - place]) for place, name in enumerate(_SIDES))
        facts = None
        if asked.unit.adapter:
            facts = self.preparation.shelf.facts(asked.unit.adapter)
        made = make_map(asked.unit, facts, picture, size)
        file = io.BytesIO()
        Image.fromarray(made).save(file, "PNG")
        return {"map": base64.b64encode(file.getvalue()).decode("ascii"), "width": made.shape[1], "height": made.shape[0]}

    @staticmethod
    def preprocessors() -> list[dict[str, Any]]:
        """Every preprocessor as plain values."""
        from ..preprocess.table import preprocessor_rows

        return preprocessor_rows()


def channels_of(model: Any) -> tuple[str, tuple[int, ...]] | None:
    """(base model, channels of the maps) that a studio model takes; None where it takes none."""
    from ..patching.places import feature_channels

    try:
        return None if model is None else (model.base_model, feature_channels(model.unet))
    except LycoError:
        return None


def _side(values: Mapping[str, Any], name: str, default: int) -> int:
    side = values.get(name, default)
    if isinstance(side, bool) or not isinstance(side, int) or not 8 <= side <= _LARGEST_SIDE:
        raise ConfigError(f"{name} = {shown(side)}: expected a whole number from 8 to {_LARGEST_SIDE}")
    return side
