"""T2I-Adapters as the page, the routes and the plot see them: which there are, what each is, and control maps to look at. No picture is made here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lib_lycoris.control.making import make_map, settled_unit
from lib_lycoris.control.preparing import Preparation
from lib_lycoris.control.telling import own_preprocessor, tell_adapter
from lib_lycoris.errors import LycoError, UnknownNetworkError, shown
from lib_lycoris.library.adapters import AdapterShelf
from lib_lycoris.preprocess.table import preprocessor_rows
from lib_lycoris.prompt.unit import Unit
from lib_lycoris.prompt.unit_values import split_unit

from . import clip_vision, host, settings
from .adapter_pictures import answer, read_picture


class Adapters:
    """The adapters on disk and the preprocessors, for whoever asks in this start of the user interface.

    Attributes:
        shelf: the files; its folders follow the settings.
        preparation: what stays of them from one picture to the next.
    """

    def __init__(self) -> None:
        self.shelf = AdapterShelf(settings.adapter_folders())
        self.seeing = clip_vision.make_seeing()
        self.preparation = Preparation(self.shelf, self.seeing)

    def look_into_folders(self) -> None:
        """Looks where the settings say now."""
        self.shelf.folders = settings.adapter_folders()
        self.shelf.forget()

    def names(self) -> list[str]:
        """Adapters that fit the loaded checkpoint, or all where none is loaded yet."""
        return self.shelf.names(host.base_model(host.loaded_model()), host.feature_channels(host.loaded_model()))

    def all_names(self) -> list[str]:
        """Every adapter that can be chosen, whatever it is for."""
        return self.shelf.names()

    def fusers(self) -> list[str]:
        """CoAdapter fusers that fit the loaded checkpoint, or all where none is loaded yet."""
        return self.shelf.names(channels=host.feature_channels(host.loaded_model()), kinds=("fuser",))

    def rows(self) -> list[dict[str, Any]]:
        """Every adapter file as plain values, with the preprocessor that belongs to it and whether it fits the loaded checkpoint."""
        fitting = set(self.names())
        return [{**row, "recommended": self.preprocessor_of(row["name"]), "fits": row["name"] in fitting} for row in self.shelf.rows()]

    def describe(self, name: str) -> dict[str, Any]:
        """What is known of an adapter: {"words": one line, "preprocessor": the one that belongs to it, "resolution": pixels or None,
        "values": those of the preprocessor's numbers that it was trained with, None for the preprocessor's own}.

        Raises:
            LycoError: there is none of that name, or it can't be used.
        """
        facts = self.shelf.facts(name)
        seeing = self.seeing.describe(facts.width) if facts.kind == "style" else ""
        return tell_adapter(name, facts, facts.fits(host.base_model(host.loaded_model())), seeing)

    def preprocessor_of(self, name: str) -> str:
        """The preprocessor that belongs to an adapter, by its metadata or its name; "none" where neither tells."""
        try:
            return own_preprocessor(name, self.shelf.facts(name))
        except LycoError:
            return "none"

    def settle(self, unit: Unit) -> Unit:
        """The unit with the preprocessor, resolution and values that "auto" means.

        Raises:
            ConfigError: no preprocessor has that name.
        """
        return settled_unit(unit, self._facts(unit))

    def make_map(self, unit: Unit, picture: Any, size: tuple[int, int]) -> Any:
        """The control map [H,W,3] uint8 of a unit for a picture of `size` (width, height) that is to be made.

        Args:
            unit: whose preprocessor works.
            picture: what it looks at [h,w,3 or 4] uint8, or None.
            size: in pixels.

        Raises:
            ConfigError: no picture, or a value that will not do.
        """
        return make_map(unit, self._facts(unit), picture, size)

    def _facts(self, unit: Unit) -> Any:
        """The adapter's; None where there is none, or it is of no use: whoever loads it says so."""
        try:
            return self.shelf.facts(unit.adapter) if unit.adapter else None
        except LycoError:
            return None

    def preview(self, values: Mapping[str, Any], size: tuple[int, int]) -> Any:
        """The control map of a unit that is given as a mapping, pictures among it.

        Raises:
            LycoError: the unit can't be read, or has no picture.
        """
        unit, pictures = split_unit(values)
        first = pictures.get("picture", next(iter(pictures.get("pictures", ())), None))
        return self.make_map(unit, None if first is None else read_picture(first), size)

    def preprocess(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The route's answer: a map as a PNG in base64, of {"picture": base64, "width", "height", and a unit's fields}.

        Raises:
            LycoError: the body is wrong, or the picture too large.
        """
        return answer(values, self.preview)

    @staticmethod
    def preprocessors() -> Sequence[Mapping[str, Any]]:
        """Every preprocessor as plain values."""
        return preprocessor_rows()

    def path_of(self, name: str) -> Path:
        """The file of an adapter, one of those that the folders hold.

        Raises:
            UnknownNetworkError: there is none.
        """
        path = self.shelf.find(name)
        if not any(folder in path.parents for folder in self.shelf.folders):
            raise UnknownNetworkError(f"{shown(name)!r} lies in none of the folders for adapters: put it there")
        return path
