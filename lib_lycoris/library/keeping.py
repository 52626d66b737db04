"""What a user does with one file of a list, whatever it holds: remarks on it, a preview for it, another name, the trash and back."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lib_lycoris.errors import LycoError, shown
from lib_lycoris.files.preview import find_preview, preview_goal, read_picture, write_preview
from lib_lycoris.files.sidecar import find_sidecars, read_remarks, write_remarks
from lib_lycoris.library.renaming import checked_name, move_all
from lib_lycoris.library.trash import Trash


class Keeper:
    """Changes files below some folders, and nothing outside of them.

    Args:
        kind: what they are, as the trash remembers: "embeddings", "adapters".
        folders: gives the folders of now.
        extensions: the endings of such files, by which it is told whether a sidecar belongs to one file alone.
    """

    def __init__(self, kind: str, folders: Callable[[], Sequence[Path]], extensions: Sequence[str]) -> None:
        self.kind, self.trash = kind, Trash(folders)
        self._folders, self._extensions = folders, tuple(extensions)

    def folders(self) -> list[Path]:
        """The folders of now."""
        return [Path(folder) for folder in self._folders()]

    def own(self, path: Path) -> Path:
        """The same path, of a file that may be changed.

        Raises:
            LycoError: it lies outside of the folders, or behind a link to elsewhere.
        """
        home = os.path.realpath(path.parent)
        for folder in self._folders():
            root = os.path.realpath(folder)
            if home == root or home.startswith(os.path.join(root, "")):
                return path
        raise LycoError(f"{shown(path)} lies behind a link, outside of the {self.kind}' folders ({shown(home)}): change it there yourself")

    def about(self, path: Path) -> dict[str, Any]:
        """{"remarks": the user's own, "preview": the picture's path or None}."""
        preview = find_preview(path)
        return {"remarks": read_remarks(path), "preview": preview and str(preview)}

    @staticmethod
    def picture(find: Callable[[], Path]) -> Any:
        """The preview (PIL, RGB) of the file that is found so; None where it is gone, or has none that can be read."""
        try:
            found = find_preview(find())
            return found and read_picture(found)
        except (LycoError, OSError):
            return None

    def remark(self, path: Path, changes: dict[str, Any]) -> dict[str, Any]:
        """The remarks on a file after these changes.

        Raises:
            LycoError: a key or value that no remark can have, or it may not be written.
        """
        return write_remarks(self.own(path), changes)

    def set_preview(self, path: Path, name: str, data: bytes) -> Path:
        """Makes a picture (a file's bytes) the preview of the file that is called `name`; an older one goes to the trash.

        Raises:
            LycoError: no picture that can be read, or it can't be written.
        """
        goal = preview_goal(self.own(path))
        picture = read_picture(data)
        if os.path.lexists(goal):
            self.trash.put([goal], f"{name} (preview)", self.kind)
        return write_preview(path, picture)

    def rename(self, path: Path, new: str, folder: bool = False) -> tuple[Path, dict[str, str]]:
        """Gives a file another name, and what belongs to it alone with it; gives its path, and {old file name: new one}.

        Args:
            path: the file; its folder and ending stay.
            new: without its ending, or with it.
            folder: whether it goes by its folder's name, so that this is what is renamed.

        Raises:
            LycoError: a name that can't be or is taken, or it can't be renamed.
        """
        stem = checked_name(new.strip().removesuffix(self.own(path).suffix))
        if folder:
            moves = [(self.own(path).parent, path.parent.with_name(stem))]
            now = moves[0][1] / path.name
        else:
            moves = [(each, each.with_name(stem + each.name[len(path.stem):])) for each in self._belonging(path)]
            now = moves[-1][1]
        move_all(moves)
        return now, {old.name: goal.name for old, goal in moves}

    def delete(self, path: Path, name: str, beside: Sequence[Path] = ()) -> dict[str, Any]:
        """Moves a file, and what belongs to it alone, to the trash: {"deleted": file names, "entry": what the trash knows it by}.

        Args:
            path: the file.
            name: what it is called.
            beside: more that belongs to it.

        Raises:
            LycoError: it lies outside of the folders, or may not be deleted.
        """
        files = [*beside, *self._belonging(self.own(path))]
        entry = self.trash.put(files, name, self.kind)
        return {"name": name, "deleted": [each.name for each in files], "entry": entry.id}

    def restore(self, entry: str) -> dict[str, Any]:
        """Brings back what was deleted.

        Raises:
            LycoError: there is no such entry, or another file lies in its place.
        """
        name = self.trash.find(entry).name
        return {"name": name, "restored": [each.name for each in self.trash.restore(entry)]}

    def _belonging(self, path: Path) -> list[Path]:
        """The file, last, and before it what belongs to it alone; a picture may itself be an embedding."""
        return [*(each for each in find_sidecars(path, self._extensions) if each != path), path]


def size_of(path: Path) -> dict[str, Any]:
    """{"bytes", "modified": seconds since 1970} of a file; of one that is gone 0 and None."""
    try:
        status = path.stat()
    except OSError:
        return {"bytes": 0, "modified": None}
    return {"bytes": status.st_size, "modified": status.st_mtime}
