"""The pictures that adapters looked at, kept so that a finished picture's units can be set up again: each once, under a name made of what it holds."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..control.preparing import Asked
from ..files.atomic import write_whole
from ..preprocess.table import as_picture
from ..prompt.unit_values import INFOTEXT

DIGITS = 12
_ID = re.compile(rf"[0-9a-f]{{{DIGITS}}}")
_PARTS = ("picture", "mask", "keypoints")


def picture_id(picture: Any) -> str:
    """Twelve hexadecimal digits that stand for a picture uint8: the same for what adapters see alike, whatever file it came from."""
    plain = as_picture(picture)
    return hashlib.sha256(f"{plain.shape}".encode() + plain.tobytes()).hexdigest()[:DIGITS]


def text_id(text: str) -> str:
    """The same of a text."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:DIGITS]


def unit_fields(asked: Sequence[Asked], numbers: Sequence[int]) -> dict[str, str]:
    """What an infotext says of the pictures of units: "Lyco adapter 1 picture": their ids, one for each of a batch; also "mask" and "keypoints".

    Args:
        asked: all units, in their order.
        numbers: those that act, from 1.
    """
    fields = {}
    for number in numbers:
        each = asked[number - 1]
        ids = {"picture": " ".join(picture_id(picture) for picture in each.pictures), "mask": "" if each.region is None else picture_id(each.region),
               "keypoints": text_id(each.unit.keypoints) if each.unit.keypoints else ""}
        fields |= {f"{INFOTEXT.format(number)} {part}": ids[part] for part in _PARTS if ids[part]}
    return fields


class Kept:
    """A folder of them.

    Args:
        folder: made when the first is kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, asked: Sequence[Asked], fields: Mapping[str, str]) -> None:
        """Writes what is not there yet of the units that acted.

        Args:
            asked: all units, in their order.
            fields: of the picture's infotext.

        Raises:
            LycoError: it can't be written.
        """
        for each in (each for number, each in enumerate(asked, start=1) if INFOTEXT.format(number) in fields):
            for picture in (*each.pictures, *(() if each.region is None else (each.region,))):
                self._write(f"{picture_id(picture)}.png", lambda picture=picture: _png(picture))
            if each.unit.keypoints:
                self._write(f"{text_id(each.unit.keypoints)}.json", each.unit.keypoints.encode)

    def find(self, fields: Mapping[str, str], number: int) -> tuple[dict[str, Any], list[str]]:
        """(the pictures of a unit: {"picture" or "pictures": paths, "mask": path, "keypoints": text}, which of them are gone: "its control picture").

        Args:
            fields: of an infotext.
            number: the unit's, from 1.
        """
        found: dict[str, Any] = {}
        ids = {part: fields.get(f"{INFOTEXT.format(number)} {part}", "").split() for part in _PARTS}
        pictures = [self._path(each, "png") for each in ids["picture"]]
        gone = ["its control picture" if len(pictures) == 1 else "its control pictures"] if None in pictures else []
        if pictures and not gone:
            found |= {"picture": pictures[0]} if len(pictures) == 1 else {"pictures": pictures}
        if ids["mask"]:
            found["mask"] = self._path(ids["mask"][0], "png")
            gone += ["its region mask"] if found["mask"] is None else []
        if ids["keypoints"]:
            path = self._path(ids["keypoints"][0], "json")
            found["keypoints"] = path and path.read_text(encoding="utf-8")
            gone += ["its key points"] if path is None else []
        return {name: value for name, value in found.items() if value is not None}, gone

    def _path(self, digits: str, ending: str) -> Path | None:
        """The file of an id; an infotext may say anything, and nothing else is ever a file here."""
        path = self._folder / f"{digits}.{ending}"
        return path if _ID.fullmatch(digits) and path.is_file() else None

    def _write(self, name: str, content: Callable[[], bytes]) -> None:
        if not (self._folder / name).is_file():
            self._folder.mkdir(parents=True, exist_ok=True)
            write_whole(self._folder / name, [content()])


def _png(picture: Any) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(as_picture(picture)).save(file, format="PNG", compress_level=1)
    return file.getvalue()
