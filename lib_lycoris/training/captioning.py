"""Captions for pictures that have none, by whatever can look at a picture: the host's interrogators, or a program's own function."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from ..errors import DatasetError
from .captions import CAPTIONS
from .masks import is_mask
from .pictures import PICTURES

Captioner = Callable[[Path], str]
"""A picture's path → what it shows, one text; raises whatever it likes for a picture that it can't do."""


def uncaptioned(folder: Path) -> list[Path]:
    """The pictures directly in a folder that have no caption file, by name.

    Raises:
        DatasetError: it is no folder, or can't be read.
    """
    try:
        files = [path for path in folder.iterdir() if path.suffix.lower() in PICTURES and not path.name.startswith(".") and path.is_file()]
    except OSError as error:
        raise DatasetError(f"folder {folder} can't be read ({error.strerror or error}): check it") from error
    names = {path.stem for path in files}
    return sorted(path for path in files if not is_mask(path, names) and not any(path.with_suffix(ending).exists() for ending in CAPTIONS))


def write_captions(
    folder: Path, caption: Captioner, tell: Callable[[int, int], None] = lambda done, total: None, should_stop: Callable[[], bool] = lambda: False
) -> tuple[list[Path], list[str]]:
    """(caption files written, problems in words): a .txt beside each picture of the folder that had no caption; one that is there is never touched.

    Args:
        folder: of pictures.
        caption: says what a picture shows.
        tell: told (done, all) before each.
        should_stop: asked before each.

    Raises:
        DatasetError: the folder can't be read or written to.
    """
    written, problems = [], []
    pictures = uncaptioned(folder)
    for number, picture in enumerate(pictures):
        if should_stop():
            break
        tell(number, len(pictures))
        try:
            text = " ".join(str(caption(picture)).split())
        except Exception as error:  # somebody else's model: one picture that it fails on shall not lose the others
            problems.append(f"{picture} got no caption: {type(error).__name__}: {' '.join(str(error).split())[:160]}")
            continue
        if not text:
            problems.append(f"{picture} got no caption: nothing was said about it")
        elif _write_new(picture.with_suffix(".txt"), text):
            written.append(picture.with_suffix(".txt"))
    return written, problems


def _write_new(path: Path, text: str) -> bool:
    """Whether the file was written: whole, and only where none was there, also not one made in the meantime.

    Raises:
        DatasetError: the disk is full or the folder not writable.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        draft.write_text(text + "\n", encoding="utf-8")
        with contextlib.suppress(FileExistsError):
            try:
                os.link(draft, path)  # fails where there is one, which a rename would not
            except FileExistsError:
                raise
            except OSError:  # a disk without hard links
                with path.open("x", encoding="utf-8") as file:
                    file.write(text + "\n")
            return True
        return False
    except OSError as error:
        raise DatasetError(f"caption {path} could not be written: {error.strerror or error}; check the folder") from error
    finally:
        draft.unlink(missing_ok=True)
