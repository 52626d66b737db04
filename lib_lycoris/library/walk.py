"""The files below a folder, as every list of the library looks for them; and rows of such a list that are kept until a folder changes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

_STATES = "-states"
"""Ends the names of folders in which trainings keep what they resume from."""
_SETTLED = 2_000_000_000  # nanoseconds: so coarse is the clock of some file systems


def walk_folders(root: str | os.PathLike[str], seen: dict[str, int | None] | None = None) -> Iterator[tuple[str, list[str]]]:
    """(folder, names of its files) for a folder and those below it, in alphabetical order; hidden ones and trainings' states are passed over.

    Links to folders are followed, and each folder is visited once, so that a link to a folder above itself ends nowhere. What can't be read is passed over,
    and so is a file whose name no text can hold.

    Args:
        root: missing is empty.
        seen: gets for each folder when it last changed.
    """
    visited = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        fresh = real not in visited
        subfolders[:] = sorted(name for name in subfolders if _is_listed(name) and not name.endswith(_STATES)) if fresh else []
        if fresh:
            visited.add(real)
            if seen is not None:
                seen[folder] = changed_at(folder)
            yield folder, [name for name in files if _is_listed(name)]


def changed_at(folder: str | os.PathLike[str]) -> int | None:
    """When a folder last changed, in nanoseconds; None where it can't be told."""
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return None


def _is_listed(name: str) -> bool:
    return not name.startswith(".") and not any("\ud800" <= letter <= "\udfff" for letter in name)


class Kept:
    """The rows of a list, made anew only where one of its folders changed; a file that was overwritten in its place is seen after `forget`.

    Args:
        folders: gives the folders of now.
        make: makes the rows.
    """

    def __init__(self, folders: Callable[[], Sequence[Path]], make: Callable[[], list[dict[str, Any]]]) -> None:
        self._folders, self._make = folders, make
        self._kept: tuple[list[Path], dict[str, int | None], bool, list[dict[str, Any]]] | None = None

    def rows(self) -> list[dict[str, Any]]:
        """The rows; nobody may change them."""
        folders = list(self._folders())
        if self._kept is not None:
            known, seen, settled, rows = self._kept
            if settled and known == folders and all(changed_at(folder) == then for folder, then in seen.items()):
                return rows
        # The folders before the files: what comes in between is seen next time.
        now, seen = time.time_ns(), {}
        for folder in folders:
            seen[str(folder)] = changed_at(folder)
            for _ in walk_folders(folder, seen):
                pass
        rows = self._make()
        # A folder that changed just now may change again without its time becoming another.
        settled = all(then is None or then < now - _SETTLED for then in seen.values())
        self._kept = folders, seen, settled, rows
        return rows

    def forget(self) -> None:
        """Has the rows made anew when they are asked for next."""
        self._kept = None
