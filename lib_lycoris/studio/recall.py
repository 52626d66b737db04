"""From a finished picture back to the settings that made it, and the pictures of a folder as a history."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError, shown
from ..prompt.infotext import parse_infotext
from ..setting import section_settings
from .generate import GenerateSettings
from .sampler import find_sampler

LARGEST_FILE = 50_000_000
"""Bytes of a picture that is read."""

_LONGEST = 100_000
_SCHEDULES = ("automatic", "uniform", "karras", "exponential")
_PLAIN: dict[str, tuple[str, Callable[[str], Any]]] = {
    "Steps": ("steps", int), "CFG scale": ("cfg", float), "Seed": ("seed", int), "Clip skip": ("clip_skip", int),
}
_SIZE = re.compile(r"(\d+)x(\d+)")


@dataclass(frozen=True)
class Recalled:
    """What a picture tells of how it was made.

    Attributes:
        infotext: the text in it.
        settings: values of GenerateSettings, each one that it takes.
        problems: what could not be taken over, in words.
    """

    infotext: str
    settings: dict[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The same in plain values."""
        return {"infotext": self.infotext, "settings": dict(self.settings), "problems": list(self.problems)}


def recall(infotext: str, checkpoint: str | None = None) -> Recalled:
    """The settings that an infotext tells.

    Args:
        infotext: as the studio and the WebUI write it.
        checkpoint: the name of the one that is loaded; where the text names another, the problems say so.
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
    return Recalled(infotext, _taken(wanted, problems), tuple(problems))


def read_settings(data: bytes, checkpoint: str | None = None) -> Recalled:
    """The settings in a picture file's bytes.

    Raises:
        ConfigError: it is too large, no PNG, or holds no settings.
    """
    return recall(read_infotext(data), checkpoint)


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
        found = sorted(((path.stat().st_mtime, path) for path in self._folder.glob("*.png") if not path.name.startswith(".")), reverse=True)
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
