"""The T2I-Adapters on disk as their users see them: listed, looked into, remarked on, renamed, deleted. The same for page, routes and command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lib_lycoris.errors import NetworkFileError
from lib_lycoris.library.adapters import EXTENSIONS, AdapterShelf
from lib_lycoris.library.keeping import Keeper, size_of
from lib_lycoris.library.shelf import read_metadata

_DIFFUSERS = "diffusion_pytorch_model"
"""What the file in a folder of diffusers' is called: the folder's name is the adapter's."""


class AdapterFiles:
    """What is done with the files of an `AdapterShelf`.

    Args:
        shelf: gives the shelf of now.
    """

    def __init__(self, shelf: Callable[[], AdapterShelf]) -> None:
        self._shelf = shelf
        self._keeper = Keeper("adapters", lambda: shelf().folders, EXTENSIONS)
        self.kind, self.trash, self.folders, self.restore = self._keeper.kind, self._keeper.trash, self._keeper.folders, self._keeper.restore

    def rows(self) -> list[dict[str, Any]]:
        """Every adapter on disk now, in plain values; "kind" is in words: "light adapter"."""
        return [_row(row) for row in self._shelf().rows()]

    def describe(self, name: str) -> dict[str, Any]:
        """A row, the file's metadata, the user's remarks, the path of the preview or None.

        Raises:
            UnknownNetworkError: there is no such adapter.
        """
        path = self._shelf().find(name)
        try:
            row = _row({"name": name, "file": str(path), **self._shelf().facts(name).to_dict(), "problem": None})
        except NetworkFileError as error:
            row = _row({"name": name, "file": str(path), "kind": None, "problem": str(error)})
        return {**row, "metadata": read_metadata(path), **self._keeper.about(path)}

    def picture(self, name: str) -> Any:
        """The preview (PIL, RGB) of an adapter; None where it has none that can be read."""
        return self._keeper.picture(lambda: self._shelf().find(name))

    def remark(self, name: str, changes: dict[str, Any]) -> dict[str, Any]:
        """The remarks on an adapter after these changes.

        Raises:
            LycoError: no such adapter, a key or value that no remark can have, a file that may not be written.
        """
        return {"name": name, "remarks": self._keeper.remark(self._shelf().find(name), changes)}

    def set_preview(self, name: str, data: bytes) -> dict[str, Any]:
        """Makes a picture (a file's bytes) the adapter's preview; an older one goes to the trash.

        Raises:
            LycoError: no such adapter, no picture that can be read, or it can't be written.
        """
        return {"name": name, "preview": str(self._keeper.set_preview(self._shelf().find(name), name, data))}

    def rename(self, name: str, new: str) -> dict[str, Any]:
        """{"name": what it is called now, "renamed": {old file name: new one}}; of a folder of diffusers' the folder is renamed.

        Raises:
            LycoError: no such adapter, a name that can't be or is taken, or it can't be renamed.
        """
        path = self._shelf().find(name)
        now, renamed = self._keeper.rename(path, new, folder=self._goes_by_folder(path))
        called = next((row["name"] for row in self._shelf().rows() if Path(row["file"]) == now), now.stem)
        return {"name": called, "renamed": renamed}

    def delete(self, name: str) -> dict[str, Any]:
        """Moves the adapter, and what belongs to it alone, to the trash: {"deleted": file names, "entry": what `restore` takes}.

        Raises:
            LycoError: no such adapter, it lies outside of the folders, or it may not be deleted.
        """
        path = self._shelf().find(name)
        config = path.with_name("config.json")
        return self._keeper.delete(path, name, [config] if self._goes_by_folder(path) and config.is_file() else [])

    def _goes_by_folder(self, path: Path) -> bool:
        return path.stem == _DIFFUSERS and path.parent not in self._keeper.folders()


def _row(row: dict[str, Any]) -> dict[str, Any]:
    """A shelf's row with what every list shows."""
    kind = f"{row['kind']} adapter" if row["kind"] and row["kind"] != "fuser" else "CoAdapter fuser" if row["kind"] else None
    return {"base_model": None, **row, "kind": kind, **size_of(Path(row["file"]))}
