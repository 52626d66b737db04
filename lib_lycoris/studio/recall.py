"""From a finished picture back to the settings that made it, and the pictures of a folder as a history."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError, LycoError, shown
from ..library.keeping import size_of
from ..preprocess.table import find_preprocessor
from ..prompt.infotext import parse_infotext
from ..prompt.unit import parse_unit, unit_to_dict
from ..prompt.unit_values import AUTO_FUSER, INFOTEXT, UNITS, told_fuser
from ..setting import section_settings
from .generate import GenerateSettings
from .kept import Kept
from .sampler import find_sampler

LARGEST_FILE = 50_000_000
"""Bytes of a picture that is read."""

_LONGEST = 100_000
_SCHEDULES = ("automatic", "uniform", "karras", "exponential")
_PLAIN: dict[str, tuple[str, Callable[[str], Any]]] = {
    "Steps": ("steps", int), "CFG scale": ("cfg", float), "Seed": ("seed", int), "Clip skip": ("clip_skip", int),
}
_KNOWN = re.compile(r"Steps|CFG scale|Seed|Clip skip|Size|Sampler|Schedule type|Model|(Model|VAE) hash|VAE|RNG|Version|Lyco adapter .*|"
                    r"(Lyco|Lora|TI) hashes|Lyco problems|Created Date|User|Emphasis")
"""What is taken over, and what tells nothing that could be."""

_WITHOUT_PICTURE = ("palette", "keypoints")
_SIZE = re.compile(r"(\d+)x(\d+)")


@dataclass(frozen=True)
class Recalled:
    """What a picture tells of how it was made.

    Attributes:
        infotext: the text in it.
        settings: values of GenerateSettings, each one that it takes.
        problems: what could not be taken over, in words.
        units: the adapters by their fields, with "picture" or "pictures" and "mask" as paths; one that is not enabled fills the place of one that was not used.
        fuser: "auto", "none" or a name.
    """

    infotext: str
    settings: dict[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    units: tuple[dict[str, Any], ...] = ()
    fuser: str = AUTO_FUSER

    def to_dict(self) -> dict[str, Any]:
        """The same in plain values, but for the paths of the units' pictures."""
        return {"infotext": self.infotext, "settings": dict(self.settings), "units": [dict(unit) for unit in self.units], "fuser": self.fuser,
                "problems": list(self.problems)}


def recall(infotext: str, checkpoint: str | None = None, kept: Kept | None = None, find: Callable[[str], Any] | None = None) -> Recalled:
    """The settings that an infotext tells.

    Args:
        infotext: as the studio and the WebUI write it.
        checkpoint: the name of the one that is loaded; where the text names another, the problems say so.
        kept: where the pictures lie that adapters looked at.
        find: raises a LycoError for an adapter that is not here.
    """
    parts = parse_infotext(infotext)
    wanted: dict[str, Any] = {"prompt": parts.prompt, "negative": parts.negative, "clip_skip": 1, "batch": 1}
    problems = []
    for name, (key, read) in _PLAIN.items():
        if name in parts.fields:
            try:
                wanted[key] = read(parts.fields[name])
            except ValueError:
                problems.append(f"{name}: {shown(parts.fields[name])} is not understood; the field keeps its value")
    if size := _SIZE.fullmatch(parts.fields.get("Size", "")):
        wanted["width"], wanted["height"] = int(size[1]), int(size[2])
    if "Sampler" in parts.fields:
        try:
            wanted["sampler"], wanted["scheduler"] = find_sampler(parts.fields["Sampler"], _schedule(parts.fields.get("Schedule type", "automatic")))
        except ConfigError as error:
            problems.append(str(error))
    model = parts.fields.get("Model")
    if model and checkpoint and model != checkpoint:
        problems.append(f"made with the checkpoint {shown(model)}; this studio works with {shown(checkpoint)}, so that the picture will be another")
    units = recall_units(parts.fields, kept, find, problems)
    others = [name for name in parts.fields if not _KNOWN.fullmatch(name)]
    if others:
        problems.append(f"not taken over, as the studio has no such settings: {shown(', '.join(others))}")
    return Recalled(infotext, _taken(wanted, problems), tuple(problems), units, told_fuser(parts.fields))


def recall_units(fields: Mapping[str, str], kept: Kept | None, find: Callable[[str], Any] | None, problems: list[str]) -> tuple[dict[str, Any], ...]:
    """The adapters that an infotext's fields tell; what can't be had again is added to the problems. The other arguments are `recall`'s."""
    units: list[dict[str, Any]] = []
    for number in range(1, UNITS + 1):
        text = fields.get(INFOTEXT.format(number))
        units.append({"enabled": False})
        if text:
            try:
                unit = parse_unit(text)
                name = f"adapter {number} ({shown(unit.adapter)})"
                pictures, gone = kept.find(fields, number) if kept is not None else ({}, [])
                units[-1] = {**unit_to_dict(unit), **pictures}
                problems += [f"{name}: {each} is not kept here any more: give it again" for each in gone]
                if not gone and not pictures and find_preprocessor(unit.preprocessor).source not in _WITHOUT_PICTURE:
                    problems.append(f"{name}: its control picture was not kept with this picture: give it again")
                if find is not None:
                    find(unit.adapter)
            except LycoError as error:
                problems.append(f"adapter {number}: {error}")
    while units and units[-1] == {"enabled": False}:
        units.pop()
    return tuple(units)


def read_infotext(source: bytes | Path) -> str:
    """The text on its making in a PNG.

    Raises:
        ConfigError: it is too large, no PNG, or holds no such text.
    """
    from PIL import Image

    size = source.stat().st_size if isinstance(source, Path) else len(source)
    if size > LARGEST_FILE:
        raise ConfigError(f"the picture has {size / 1e6:.0f} MB: choose one of at most {LARGEST_FILE / 1e6:.0f} MB")
    try:
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source), formats=("PNG",)) as picture:
            held = picture.info.get("parameters")
            if held is None:  # a PNG may have its text behind its pixels
                picture.load()
                held = picture.info.get("parameters")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ConfigError(f"that is no PNG that can be read ({shown(error)}): choose one that the studio or the WebUI wrote") from error
    if not isinstance(held, str) or not held.strip():
        raise ConfigError("this PNG holds no settings: choose one that the studio or the WebUI wrote, not a copy that a program has stripped")
    return held[:_LONGEST]


class PictureFolder:
    """The pictures that were made, as a history.

    Args:
        folder: where they lie; no picture elsewhere is ever read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def rows(self, count: int = 24) -> list[dict[str, Any]]:
        """The newest so many, newest first: {"name", "file", "modified"}."""
        found = sorted(((size_of(path)["modified"] or 0.0, path) for path in self._folder.glob("*.png") if not path.name.startswith(".")), reverse=True)
        return [{"name": path.name, "file": str(path.resolve()), "modified": modified} for modified, path in found[:max(0, count)]]

    def find(self, name: str) -> Path:
        """The picture of that name.

        Raises:
            ConfigError: there is none in this folder.
        """
        path = self._folder / name
        if name != path.name or path.suffix.lower() != ".png" or path.is_symlink() or not path.is_file():
            raise ConfigError(f"no picture is called {shown(name)!r} in {shown(self._folder)}: look into the history again")
        return path


def _schedule(name: str) -> str:
    plain = name.strip().lower()
    return plain if plain in _SCHEDULES else "automatic"


def _taken(wanted: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """The values that the record takes; of the others the problems tell."""
    taken = {}
    for setting in section_settings(GenerateSettings):
        if setting.name in wanted:
            try:
                taken[setting.name] = setting.check(wanted[setting.name])
            except ConfigError as error:
                problems.append(str(error))
    return taken
