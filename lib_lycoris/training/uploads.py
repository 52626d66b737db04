"""Pictures and captions that a page hands over, put into dataset folders of ours: counted, weighed, decoded once, never outside of the folder."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

from ..errors import ConfigError, DatasetError, LycoError, shown
from .captions import CAPTIONS
from .pictures import PICTURES, open_image

MOST_FILES = 1000
"""Files in one dataset folder."""
LARGEST_FILE = 50_000_000
LARGEST_FOLDER = 2_000_000_000
"""Bytes of a picture, and of a dataset folder."""
LARGEST_CAPTION = 20_000

_NAME = re.compile(r"[\w(][\w .()+-]{0,79}")
_ODD = re.compile(r"[^\w .()+-]+")


def dataset_folder(home: Path, name: str) -> Path:
    """The folder of the dataset with that name among ours; not made.

    Raises:
        ConfigError: the name can't be a folder's.
    """
    name = name.strip() if isinstance(name, str) else ""
    if not _NAME.fullmatch(name) or name.endswith("."):
        raise ConfigError(f"the dataset's name {shown(name)!r}: expected letters, digits and blanks, at most 80")
    return home / name


def add_files(folder: Path, files: Iterable[tuple[str, bytes]]) -> tuple[list[Path], list[str]]:
    """(files written, problems in words): pictures and their captions, put into the folder under their own names; another picture of one name gets a number.

    Args:
        folder: one of ours; made where it is missing.
        files: (name, content) of each.

    Raises:
        DatasetError: the folder can't be written to.
    """
    written, problems = [], []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        room = LARGEST_FOLDER - sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
        places = MOST_FILES - sum(1 for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise DatasetError(f"dataset folder {folder} can't be written to ({error.strerror or error})") from error
    for name, content in files:
        try:
            if places <= 0 or len(content) > room:
                problems.append(f"{shown(name, 60)} and what came after it were left out: a dataset folder holds {MOST_FILES} files and "
                                f"{LARGEST_FOLDER // 1_000_000_000} GB at most")
                break
            path = _add(folder, name, content)
        except LycoError as error:
            problems.append(str(error))
            continue
        if path is not None:
            written.append(path)
            places, room = places - 1, room - len(content)
    return written, problems


def _add(folder: Path, name: str, content: bytes) -> Path | None:
    """The file that was written; None where the same is there already."""
    plain = Path(name.replace("\\", "/")).name
    stem, ending = os.path.splitext(plain)
    stem = _ODD.sub("_", stem).strip(" .")[:80] or "picture"
    ending = ending.lower()
    if ending in CAPTIONS:
        return _add_caption(folder / f"{stem}{ending}", plain, content)
    if ending not in PICTURES:
        raise DatasetError(f"{shown(plain, 60)} is left out: expected a picture ({', '.join(one[1:] for one in PICTURES)}) or a caption (txt)")
    if len(content) > LARGEST_FILE:
        raise DatasetError(f"{shown(plain, 60)} is left out: it has more than {LARGEST_FILE // 1_000_000} MB")
    try:
        open_image(Path(plain), content)
    except DatasetError as error:
        raise DatasetError(f"{shown(plain, 60)} is left out: {str(error).partition('(')[2].rpartition(')')[0] or 'no picture'}") from error
    path = folder / f"{stem}{ending}"
    for number in range(2, MOST_FILES + 2):
        if not path.exists():
            break
        if path.is_file() and path.read_bytes() == content:
            return None
        path = folder / f"{stem}-{number}{ending}"
    _write(path, content)
    return path


def _add_caption(path: Path, name: str, content: bytes) -> Path:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{shown(name, 60)} is left out: no UTF-8 text (byte {error.start})") from error
    if len(text) > LARGEST_CAPTION:
        raise DatasetError(f"{shown(name, 60)} is left out: a caption has at most {LARGEST_CAPTION} letters")
    _write(path, text.encode())
    return path


def write_caption(picture: Path, text: str, ending: str = CAPTIONS[0]) -> Path | None:
    """The caption file written beside a picture, whole or not at all; an empty text removes it, and gives None.

    Raises:
        DatasetError: the picture is none, the text is too long, or the folder can't be written to.
    """
    if picture.suffix.lower() not in PICTURES or not picture.is_file():
        raise DatasetError(f"caption of {shown(picture)}: there is no such picture; look at the folder again")
    if not isinstance(text, str) or len(text) > LARGEST_CAPTION:
        raise DatasetError(f"caption of {shown(picture)}: expected a text of at most {LARGEST_CAPTION} letters")
    there = next((picture.with_suffix(known) for known in CAPTIONS if picture.with_suffix(known).exists()), picture.with_suffix(ending))
    if not text.strip():
        with contextlib.suppress(FileNotFoundError):
            there.unlink()
        return None
    _write(there, (text.strip() + "\n").encode())
    return there


def _write(path: Path, content: bytes) -> None:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        draft.write_bytes(content)
        os.replace(draft, path)
    except OSError as error:
        raise DatasetError(f"{path} could not be written: {error.strerror or error}; check the folder") from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()
