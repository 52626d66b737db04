"""Folders of pictures as people have them, each with what is said of its pictures: how often they count, how they are cut, how their captions are made."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from ..errors import DatasetError
from .buckets import Sizes
from .captions import CAPTIONS, Words, name_as_text, read_text
from .config import DataSettings
from .controls import is_control
from .masks import is_mask
from .pictures import NOT_READ, PICTURES
from .templates import read_templates

_REPEATS = re.compile(r"(\d+)_(.+)")
_PRIOR = "reg"
"""A folder of this name, as kohya's trainers lay it out, holds class pictures."""
_TRAINED = "img"


@dataclass(frozen=True)
class Subset:
    """One folder's pictures, and all that is the same for them.

    Attributes:
        repeats: how often each counts in an epoch.
        concept: the word of a folder named 10_word; the caption of a picture that has none.
        prior: whether they are class pictures for prior preservation.
        endings: of caption files, the first that is there counts.
        from_name: whether a picture without a caption file has its own name as caption.
        masks: "none", "alpha" or "files".
        control_suffix: of the names of control pictures beside their pictures, which are not themselves learned from.
        control_folder: of control pictures, where they lie in one of their own.
        listed: the pictures and their captions, where a file lists them in place of the folder.
    """

    folder: Path
    words: Words
    sizes: Sizes
    repeats: int = 1
    concept: str | None = None
    prior: bool = False
    endings: tuple[str, ...] = CAPTIONS
    from_name: bool = False
    flip: bool = False
    random_crop: bool = False
    masks: str = "none"
    listed: tuple[tuple[Path, tuple[str, ...]], ...] | None = None
    control_suffix: str = ".cond"
    control_folder: str | None = None

    def __post_init__(self) -> None:
        if self.prior:  # class pictures show what is known already, not the new thing
            object.__setattr__(self, "words", replace(self.words, trigger=None, templates=()))

    def pictures(self) -> list[Path]:
        """The picture files, by name.

        Raises:
            DatasetError: the folder can't be read.
        """
        return [path for path, _ in self.listed] if self.listed is not None else _files(self.folder, PICTURES, self.control_suffix)

    @cached_property
    def _by_path(self) -> dict[Path, tuple[str, ...]]:
        return dict(self.listed or ())

    def texts(self, picture: Path) -> tuple[tuple[str, ...], str]:
        """(lines of the picture's caption, where they are from: "file", "name", "concept" or "nowhere").

        Raises:
            DatasetError: its caption file can't be read.
        """
        written = self._by_path.get(picture) if self.listed is not None else read_text(picture, self.endings)
        if written is not None:
            return written, "file"
        named = name_as_text(picture) if self.from_name else ()
        if named:
            return named, "name"
        return ((self.concept,), "concept") if self.concept else ((), "nowhere")


def make_words(settings: DataSettings) -> Words:
    """How [data] wants captions made; the dropout of whole captions is the trainer's.

    Raises:
        DatasetError: the file of templates can't be used.
    """
    return Words(template=settings.caption_template, lines=settings.captions, shuffle=settings.shuffle_tags, keep=settings.keep_tags,
                 tag_dropout=settings.tag_dropout, trigger=settings.trigger, templates=() if settings.templates is None else read_templates(settings.templates))


def make_subset(folder: Path, settings: DataSettings) -> Subset:
    """The folder with what [data] says; without a look at it."""
    return Subset(folder, make_words(settings), Sizes.from_settings(settings), settings.repeats, from_name=settings.caption_from_name, flip=settings.flip,
                  random_crop=settings.random_crop, masks=settings.masks, control_suffix=settings.control_suffix,
                  control_folder=settings.control_folder)


def scan_folder(folder: Path, settings: DataSettings, key: str = "data.folders") -> list[Subset]:
    """The folder and those in it that are named 10_word, or img and reg with such folders; only those with pictures.

    Args:
        key: the setting that names the folder, for messages.

    Raises:
        DatasetError: it is missing, can't be read, or holds no picture.
    """
    try:
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "does not exist"
            raise DatasetError(f"dataset folder {folder} {what}: check {key}, a folder of pictures is expected")
        found = list(_subsets(make_subset(folder, settings)))
        inner = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise unreadable_folder(folder, error) from error
    if not found:
        endings = ", ".join(ending[1:] for ending in PICTURES)
        where = "in data.folders" if key == "data.folders" else f"as {key}"
        advice = f"; its folders ({', '.join(inner[:3])}{', …' if len(inner) > 3 else ''}) are not looked into, name them {where}" if inner else ""
        raise DatasetError(f"dataset folder {folder} holds no picture: put {endings} files there, with a .txt beside each{advice}")
    return found


def other_files(folder: Path) -> list[Path]:
    """The folder's pictures of kinds that are not read."""
    return _files(folder, NOT_READ)


def passed_folders(folder: Path) -> list[Path]:
    """The folders in it that hold pictures."""
    try:
        inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:  # told where its pictures are read
        return []
    return [path for path in inner if _has_pictures(path)]


def _has_pictures(folder: Path) -> bool:
    try:
        return bool(_files(folder, PICTURES))
    except DatasetError:
        return False


def unreadable_folder(folder: Path, error: OSError) -> DatasetError:
    """The error for a folder that the system does not let us read."""
    return DatasetError(f"dataset folder {folder} can't be read ({error.strerror or error}): check its permissions")


def _subsets(outer: Subset, deep: bool = True) -> Iterator[Subset]:
    """The outer folder, then those inside that its name or theirs make part of the dataset."""
    name = outer.folder.resolve().name
    match = _REPEATS.fullmatch(name)
    own = replace(outer, repeats=max(int(match[1]), 1), concept=match[2]) if match else outer
    own = replace(own, prior=own.prior or name == _PRIOR)
    if own.pictures():
        yield own
    for inner in sorted(path for path in outer.folder.iterdir() if path.is_dir()):
        if _REPEATS.fullmatch(inner.name):
            yield from _subsets(replace(outer, folder=inner, prior=own.prior), deep=False)
        elif deep and inner.name in (_TRAINED, _PRIOR):
            yield from _subsets(replace(outer, folder=inner), deep=False)


def _files(folder: Path, endings: tuple[str, ...], control_suffix: str = ".cond") -> list[Path]:
    """Files with these endings by name, without masks, control pictures and without the notes ("._x.png") that other systems leave behind."""
    try:
        files = [path for path in folder.iterdir() if path.suffix.lower() in endings and not path.name.startswith(".") and path.is_file()]
    except OSError as error:
        raise unreadable_folder(folder, error) from error
    names = {path.stem for path in files}
    return sorted((path for path in files if not is_mask(path, names) and not is_control(path, names, control_suffix)), key=lambda path: path.name)
