"""The networks on disk as their users see them: listed, looked into, remarked on, renamed, deleted. The same for page, routes and command line."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib_lycoris.errors import LycoError, NetworkFileError, UnknownNetworkError, shown
from lib_lycoris.files.preview import find_preview, preview_goal, read_picture, write_preview
from lib_lycoris.files.safetensors import read_header
from lib_lycoris.files.sidecar import find_sidecars, read_remarks, write_remarks
from lib_lycoris.library.catalogue import EXTENSIONS, Catalogue
from lib_lycoris.library.facts import COVERS, Facts, FactsCache
from lib_lycoris.library.keeping import Keeper
from lib_lycoris.library.renaming import checked_name, move_all
from lib_lycoris.library.trash import Trash

_PEFT = "adapter_model"


@dataclass(frozen=True)
class Shelved:
    """One network file.

    Attributes:
        name: the shortest that means this file alone.
        path: the file.
        bytes: its size.
        modified: seconds since 1970.
        facts: what its header says.
    """

    name: str
    path: Path
    bytes: int
    modified: float
    facts: Facts

    @property
    def tag_name(self) -> str | None:
        """What stands for it in a tag: its name, else (a name with '>' can't stand there) its hash; None where it has none either."""
        fits = self.name == self.name.strip() and self.name.isprintable() and ">" not in self.name
        if fits:
            return '"' + self.name.replace('"', '""') + '"' if ":" in self.name or self.name.startswith('"') else self.name
        return self.facts.hash and self.facts.hash[:12]

    def to_dict(self) -> dict[str, Any]:
        """A row of the list, in plain values."""
        facts = {key: value for key, value in self.facts.to_dict().items() if key not in ("has_metadata", "has_cover", "description")}
        tag = f"<lyco:{self.tag_name}:1>" if self.tag_name else None
        return {"name": self.name, "tag": tag, "file": str(self.path), "bytes": self.bytes, "modified": self.modified, **facts}


class Shelf:
    """The networks of a catalogue.

    Args:
        catalogue: gives the catalogue of now; a host may put another in its place.
        folders: gives the catalogue's folders; outside of them nothing is written or deleted.
        facts: what is known of the files.
        leave_out: says of which files nothing is to be seen.
        inspect: gives, in plain values, what only the tensors tell.
        kind: what is on it, as the trash remembers: "networks", "embeddings", "adapters".
        extensions: the endings of its files, by which it is told whether a sidecar belongs to one file alone.
    """

    def __init__(self, catalogue: Callable[[], Catalogue], folders: Callable[[], Sequence[Path]], facts: FactsCache | None = None,
                 leave_out: Callable[[Path], bool] = lambda path: False, inspect: Callable[[Path], dict[str, Any]] | None = None,
                 kind: str = "networks", extensions: Sequence[str] = EXTENSIONS) -> None:
        self.kind, self.trash = kind, Trash(folders)
        self._extensions = tuple(extensions)
        self._catalogue, self._folders, self._leave_out, self._inspect = catalogue, folders, leave_out, inspect
        self._facts = facts or FactsCache()

    def scan(self) -> None:
        """Reads the folders anew."""
        self._catalogue().scan()

    def networks(self) -> list[Shelved]:
        """Every network, by name."""
        found = (self._look_at(name) for name in self._catalogue().names())
        return [each for each in found if each is not None and not self._leave_out(each.path)]

    def rows(self) -> list[dict[str, Any]]:
        """Every network on disk now, in plain values."""
        self.scan()
        return [each.to_dict() for each in self.networks()]

    def find(self, name: str) -> Shelved:
        """The network that a name, alias or hash means.

        Raises:
            UnknownNetworkError: there is none.
        """
        path = self._catalogue().find(name)
        try:
            return self._shelved(self._catalogue().name_of(path) or name, path)
        except OSError as error:
            raise UnknownNetworkError(f"{shown(name)!r} is not there any more: read the folders again") from error

    def look_into(self, name: str) -> dict[str, Any]:
        """A row, the file's metadata (pictures in it left out), the user's remarks, and the inspection of its tensors, which may be only an error.

        Raises:
            UnknownNetworkError: there is no such network.
        """
        seen = self.describe(name)
        if self._inspect is not None:
            try:
                seen["inspection"] = {key: value for key, value in self._inspect(Path(seen["file"])).items() if key not in ("metadata", "file", "bytes")}
            except LycoError as error:
                seen["inspection"] = {"error": str(error)}
        return seen

    def describe(self, name: str) -> dict[str, Any]:
        """What `look_into` gives but for the tensors' inspection, which may take long; also the path of the preview, or None.

        Raises:
            UnknownNetworkError: there is no such network.
        """
        found = self.find(name)
        preview = find_preview(found.path)
        return {**found.to_dict(), "description": found.facts.description, "metadata": read_metadata(found.path), "remarks": read_remarks(found.path),
                "preview": preview and str(preview)}

    def picture(self, name: str) -> Any:
        """The preview (PIL, RGB) of a network; None where it has none that can be read."""
        return Keeper.picture(lambda: self.find(name).path)

    def remark(self, name: str, changes: dict[str, Any]) -> dict[str, Any]:
        """The remarks on a network after these changes.

        Raises:
            LycoError: no such network, a key or value that no remark can have, a file that may not be written.
        """
        path = self.own_file(name)
        return {"name": name, "remarks": write_remarks(path, changes)}

    def set_preview(self, name: str, data: bytes) -> dict[str, Any]:
        """Makes a picture (a file's bytes) the network's preview; an older one goes to the trash.

        Raises:
            LycoError: no such network, no picture that can be read, or it can't be written.
        """
        path = self.own_file(name)
        picture, goal = read_picture(data), preview_goal(path)
        if os.path.lexists(goal):
            self.trash.put([goal], f"{name} (preview)", self.kind)
        return {"name": name, "preview": str(write_preview(path, picture))}

    def rename(self, name: str, new: str) -> dict[str, Any]:
        """Gives a network's file another name, and what belongs to it alone with it: remarks, previews. Its folder and ending stay.

        Returns:
            {"name": what it is called now, "renamed": {old file name: new one}}

        Raises:
            LycoError: no such network, a name that can't be or is taken, or it can't be renamed.
        """
        path = self.own_file(name)
        stem = checked_name(new.strip().removesuffix(path.suffix))
        if path.stem == _PEFT and path.parent not in self.folders():
            moves = [(path.parent, path.parent.with_name(stem))]
            path = moves[0][1] / path.name
        else:
            moves = [(each, each.with_name(stem + each.name[len(path.stem):])) for each in self._belonging(path)]
            path = moves[-1][1]
        move_all(moves)
        self.scan()
        return {"name": self._catalogue().name_of(path) or stem, "renamed": {old.name: goal.name for old, goal in moves}}

    def delete(self, name: str) -> dict[str, Any]:
        """Moves the network, and what belongs to it alone, to the trash: {"deleted": file names, "entry": what `restore` takes}. A link goes there itself.

        Raises:
            LycoError: no such network, it lies outside of the folders, or it may not be deleted.
        """
        path = self.own_file(name)
        files = self._belonging(path)
        entry = self.trash.put(files, name, self.kind)
        self.scan()
        return {"name": name, "deleted": [each.name for each in files], "entry": entry.id}

    def restore(self, entry: str) -> dict[str, Any]:
        """Brings back what was deleted.

        Raises:
            LycoError: there is no such entry, or another file lies in its place.
        """
        name = self.trash.find(entry).name
        files = self.trash.restore(entry)
        self.scan()
        return {"name": name, "restored": [each.name for each in files]}

    def _belonging(self, path: Path) -> list[Path]:
        """The file, last, and before it what belongs to it alone."""
        config = path.with_name("adapter_config.json")
        beside = [config] if path.stem == _PEFT and config.is_file() else []
        return [*find_sidecars(path, self._extensions), *beside, path]

    def own_file(self, name: str) -> Path:
        """The file that is called so and lies in one of the folders; an alias or a hash is not enough to change or delete one.

        Raises:
            LycoError: there is none, or it lies behind a link to elsewhere.
        """
        path = self._catalogue().find(name)
        last = name.strip().replace("\\", "/").rpartition("/")[2]
        if last not in (path.stem, path.name) and not (path.stem == _PEFT and last == path.parent.name):
            raise UnknownNetworkError(f"{shown(name)!r} is no file's name but an alias or hash of {shown(path.stem)!r}: name the file")
        home = os.path.realpath(path.parent)
        if not self._is_inside(home):
            raise LycoError(f"{shown(path)} lies behind a link, outside of the networks' folders ({shown(home)}): change it there yourself")
        return path

    def folders(self) -> list[Path]:
        """The folders that it looks into."""
        return [Path(folder) for folder in self._folders()]

    def writable(self, folder: Path) -> Path:
        """That folder where new files may be written there; where it lies behind a link to elsewhere, the first of the shelf's own.

        Raises:
            LycoError: there is no folder at all.
        """
        if self._is_inside(os.path.realpath(folder)):
            return folder
        if not self.folders():
            raise LycoError("there is no folder for new files: name one")
        return self.folders()[0]

    def _is_inside(self, real: str) -> bool:
        roots = (os.path.realpath(folder) for folder in self._folders())
        return any(real == root or real.startswith(os.path.join(root, "")) for root in roots)

    def _look_at(self, name: str) -> Shelved | None:
        try:
            return self._shelved(name, self._catalogue().find(name))
        except (UnknownNetworkError, OSError):  # deleted between the two looks
            return None

    def _shelved(self, name: str, path: Path) -> Shelved:
        status = path.stat()
        return Shelved(name, path, status.st_size, status.st_mtime, self._facts.find(path))


def read_metadata(path: Path) -> dict[str, str]:
    """What the file at `path` says about itself, without the pictures in it; nothing where it can't be read or is no safetensors file."""
    if path.suffix.lower() != ".safetensors":
        return {}
    try:
        return {key: value for key, value in read_header(path).metadata.items() if key not in COVERS}
    except NetworkFileError:
        return {}
