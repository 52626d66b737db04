"""The networks on disk as their users see them: listed, looked into, remarked on, deleted. The same for the WebUI's page, the studio and the routes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib_lycoris.errors import LycoError, NetworkFileError, UnknownNetworkError, shown
from lib_lycoris.files.safetensors import read_header
from lib_lycoris.files.sidecar import find_sidecars, read_remarks, write_remarks
from lib_lycoris.library.catalogue import EXTENSIONS, Catalogue
from lib_lycoris.library.facts import COVERS, Facts, FactsCache


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
    """

    def __init__(self, catalogue: Callable[[], Catalogue], folders: Callable[[], Sequence[Path]], facts: FactsCache | None = None,
                 leave_out: Callable[[Path], bool] = lambda path: False, inspect: Callable[[Path], dict[str, Any]] | None = None) -> None:
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
        own = next((each for each in self.networks() if each.path == path), None)
        return own or self._shelved(name, path)

    def look_into(self, name: str) -> dict[str, Any]:
        """A row, the file's metadata (pictures in it left out), the user's remarks, and the inspection of its tensors, which may be only an error.

        Raises:
            UnknownNetworkError: there is no such network.
        """
        found = self.find(name)
        seen = {**found.to_dict(), "metadata": read_metadata(found.path), "remarks": read_remarks(found.path)}
        if self._inspect is not None:
            try:
                seen["inspection"] = {key: value for key, value in self._inspect(found.path).items() if key not in ("metadata", "file", "bytes")}
            except LycoError as error:
                seen["inspection"] = {"error": str(error)}
        return seen

    def remark(self, name: str, changes: dict[str, Any]) -> dict[str, Any]:
        """The remarks on a network after these changes.

        Raises:
            LycoError: no such network, a key or value that no remark can have, a file that may not be written.
        """
        path = self._own_file(name)
        return {"name": name, "remarks": write_remarks(path, changes)}

    def delete(self, name: str) -> dict[str, Any]:
        """The names of the files that are gone now: the network and what belongs to it alone. A link is deleted, not what it points to.

        Raises:
            LycoError: no such network, it lies outside of the folders, or it may not be deleted.
        """
        path = self._own_file(name)
        gone = []
        for each in (*find_sidecars(path, EXTENSIONS), path):
            try:
                each.unlink()
            except OSError as error:
                raise LycoError(f"{shown(each)} could not be deleted: {error.strerror or error}; deleted before it: {gone or 'nothing'}") from error
            gone.append(each.name)
        self.scan()
        return {"name": name, "deleted": gone}

    def _own_file(self, name: str) -> Path:
        """The file that is called so and lies in one of the folders; an alias or a hash is not enough to change or delete one.

        Raises:
            LycoError: there is none, or it lies behind a link to elsewhere.
        """
        path = self._catalogue().find(name)
        last = name.strip().replace("\\", "/").rpartition("/")[2]
        if last not in (path.stem, path.name) and not (path.stem == "adapter_model" and last == path.parent.name):
            raise UnknownNetworkError(f"{shown(name)!r} is no file's name but an alias or hash of {shown(path.stem)!r}: name the file")
        home = os.path.realpath(path.parent)
        for folder in self._folders():
            root = os.path.realpath(folder)
            if home == root or home.startswith(os.path.join(root, "")):
                return path
        raise LycoError(f"{shown(path)} lies behind a link, outside of the networks' folders ({shown(home)}): change it there yourself")

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
