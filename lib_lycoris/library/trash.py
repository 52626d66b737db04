"""Deleted files, kept where they can be brought back: in a folder of their own below the folder that they lay in."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib_lycoris.errors import ConfigError, LycoError, shown

FOLDER = ".lyco-trash"
_RECORD = "entry.json"
_ENTRY = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}")
_LONGEST = 100_000  # bytes of a record


@dataclass(frozen=True)
class Entry:
    """What was deleted at once.

    Attributes:
        id: names it.
        name: what it was called in its list.
        kind: the list it was in: "networks", "embeddings", "adapters".
        deleted: seconds since 1970.
        files: paths below the root, with "/", in the order in which they are stored.
        bytes: size of all files together.
        root: the folder that they lay below.
    """

    id: str
    name: str
    kind: str
    deleted: float
    files: tuple[str, ...]
    bytes: int
    root: Path

    def to_dict(self) -> dict[str, Any]:
        """The entry in plain values."""
        return {"entry": self.id, "name": self.name, "kind": self.kind, "deleted": self.deleted, "files": list(self.files), "bytes": self.bytes}

    @property
    def folder(self) -> Path:
        """Where it is kept."""
        return self.root / FOLDER / self.id

    def stored(self, place: int) -> Path:
        """The file of that place; its own name says nothing, so that no program lists it as a network."""
        return self.folder / f"{place:03}.deleted"


class Trash:
    """The deleted files of some folders. Each folder has its own, so that nothing is copied from disk to disk.

    Args:
        folders: gives the folders of now.
    """

    def __init__(self, folders: Callable[[], Sequence[Path]]) -> None:
        self._folders = folders

    def put(self, files: Sequence[Path], name: str, kind: str) -> Entry:
        """Moves files of one folder into its trash, all or none; gives the entry. A link is moved itself, not what it points to.

        Raises:
            LycoError: they lie in none of the folders, or can't be moved.
        """
        root = self._root_of(files[0])
        entry = Entry(f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}", name, kind, time.time(),
                      tuple(_below(root, each) for each in files), sum(_size(each) for each in files), root)
        moved: list[tuple[Path, Path]] = []
        try:
            if (root / FOLDER).is_symlink():
                raise LycoError(f"{shown(root / FOLDER)} is a link: remove it, the trash has to lie where the files are")
            entry.folder.mkdir(parents=True)
            record = {"name": entry.name, "kind": entry.kind, "deleted": entry.deleted, "files": list(entry.files), "bytes": entry.bytes}
            (entry.folder / _RECORD).write_text(json.dumps(record, ensure_ascii=False, indent=1), encoding="utf-8")
            for place, path in enumerate(files):
                shutil.move(str(path), str(entry.stored(place)))
                moved.append((entry.stored(place), path))
        except (OSError, LycoError) as error:
            for here, there in reversed(moved):
                with contextlib.suppress(OSError):
                    shutil.move(str(here), str(there))
            shutil.rmtree(entry.folder, ignore_errors=True)
            if isinstance(error, LycoError):
                raise
            raise LycoError(f"{shown(files[0])} could not be moved to the trash: {error.strerror or error}; everything is where it was") from error
        return entry

    def entries(self) -> list[Entry]:
        """What lies in the trash, newest first; what is no entry of ours is passed over."""
        found = [entry for root in dict.fromkeys(map(Path, self._folders())) for entry in _entries_of(root)]
        return sorted(found, key=lambda entry: entry.deleted, reverse=True)

    def find(self, entry_id: str) -> Entry:
        """The entry of that id.

        Raises:
            ConfigError: there is none.
        """
        found = next((entry for entry in self.entries() if entry.id == entry_id), None)
        if found is None:
            raise ConfigError(f"nothing in the trash is called {shown(entry_id)!r}: look into the trash again")
        return found

    def restore(self, entry_id: str) -> list[Path]:
        """Brings an entry's files back to where they were; gives their paths.

        Raises:
            LycoError: there is no such entry, another file lies in a place, or it can't be written there.
        """
        entry = self.find(entry_id)
        goals = [entry.root / name for name in entry.files]
        for goal in goals:
            _check_inside(entry.root, goal)
            if os.path.lexists(goal):
                raise LycoError(f"{shown(goal)} is there again: rename or delete it first, then restore")
        back: list[tuple[Path, Path]] = []
        try:
            for place, goal in enumerate(goals):
                goal.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(str(entry.stored(place)), str(goal))
                back.append((goal, entry.stored(place)))
        except OSError as error:
            for here, there in reversed(back):
                with contextlib.suppress(OSError):
                    shutil.move(str(here), str(there))
            raise LycoError(f"{shown(goal)} could not be restored: {error.strerror or error}; it is still in the trash") from error
        shutil.rmtree(entry.folder, ignore_errors=True)
        return goals

    def empty(self, entry_id: str | None = None) -> list[str]:
        """Deletes an entry, or all of them, for good; gives their ids.

        Raises:
            LycoError: there is no such entry, or it can't be deleted.
        """
        gone = []
        for entry in [self.find(entry_id)] if entry_id else self.entries():
            try:
                shutil.rmtree(entry.folder)
            except OSError as error:
                raise LycoError(f"{shown(entry.folder)} could not be deleted: {error.strerror or error}") from error
            gone.append(entry.id)
        return gone

    def _root_of(self, path: Path) -> Path:
        home = os.path.realpath(path.parent)
        roots = [Path(folder) for folder in self._folders() if _inside(os.path.realpath(folder), home)]
        if not roots:
            raise LycoError(f"{shown(path)} lies outside of the folders whose files may be deleted: delete it there yourself")
        return max(roots, key=lambda root: len(os.path.realpath(root)))


def _entries_of(root: Path) -> list[Entry]:
    folder = root / FOLDER
    try:
        names = [] if folder.is_symlink() else sorted(os.listdir(folder))
    except OSError:
        return []
    return [entry for name in names if _ENTRY.fullmatch(name) and (entry := _read(root, name)) is not None]


def _read(root: Path, name: str) -> Entry | None:
    """The entry of a folder in the trash; None where its record can't be believed."""
    record = root / FOLDER / name / _RECORD
    try:
        if record.stat().st_size > _LONGEST:
            return None
        held = json.loads(record.read_text(encoding="utf-8"))
        files = tuple(str(each) for each in held["files"])
        if not files or any(os.path.isabs(each) or ".." in each.replace("\\", "/").split("/") for each in files):
            return None
        return Entry(name, str(held["name"]), str(held["kind"]), float(held["deleted"]), files, int(held["bytes"]), root)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _below(root: Path, path: Path) -> str:
    return Path(os.path.relpath(os.path.join(os.path.realpath(path.parent), path.name), os.path.realpath(root))).as_posix()


def _size(path: Path) -> int:
    return path.lstat().st_size if path.is_symlink() else path.stat().st_size


def _inside(root: str, path: str) -> bool:
    return path == root or path.startswith(os.path.join(root, ""))


def _check_inside(root: Path, goal: Path) -> None:
    if not _inside(os.path.realpath(root), os.path.realpath(goal.parent)):
        raise LycoError(f"{shown(goal)} would lie outside of {shown(root)}: move the file out of {FOLDER} yourself")
