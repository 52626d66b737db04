"""Which network files there are, and which of them a name means."""

from __future__ import annotations

import difflib
import os
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lib_lycoris.errors import NetworkFileError, UnknownNetworkError, shown
from lib_lycoris.files.hashes import model_hash
from lib_lycoris.files.safetensors import read_header

EXTENSIONS = (".safetensors", ".pt", ".ckpt", ".bin")
_HASH = re.compile(r"[0-9a-f]{8,64}")


@dataclass(frozen=True)
class _Entry:
    path: Path
    name: str
    """Path below its folder, without the extension, with "/"."""

    @property
    def spellings(self) -> tuple[str, ...]:
        """Every way to call it that its place on the disk gives."""
        stem = self.name.rpartition("/")[2]
        # the files of PEFT folders are all called adapter_model: the folder's name is the network's
        folder = (self.name.removesuffix("/adapter_model"),) if self.name.endswith("/adapter_model") else ()
        return (self.name, self.name + self.path.suffix, stem, stem + self.path.suffix, *folder)


class Catalogue:
    """The network files below some folders, by name. Folders are read at the first question, and again when a name is not found and something changed."""

    def __init__(self, folders: Sequence[str | os.PathLike[str]]):
        """A catalogue of these folders; where two files have one name, the earlier folder's wins, and within a folder the first in alphabetical order."""
        self._folders = tuple(Path(folder) for folder in folders)
        self._entries: list[_Entry] | None = None
        self._by_spelling: dict[str, _Entry] = {}
        self._seen: dict[str, int | None] = {}
        self._facts: dict[tuple[Path, str], tuple[tuple[int, int], str | None]] = {}
        self._lock = threading.RLock()

    def scan(self) -> None:
        """Reads the folders anew. Missing and unreadable ones are passed over; links to folders are followed, each folder once."""
        with self._lock:
            self._seen = {str(folder): _changed_at(folder) for folder in self._folders}
            self._entries = [entry for folder in self._folders for entry in self._scan_folder(folder)]
            self._by_spelling = {}
            for position in range(5):  # a whole path outranks a bare stem, whichever folder it is in
                for entry in self._entries:
                    if position < len(entry.spellings):
                        self._by_spelling.setdefault(entry.spellings[position], entry)

    def names(self) -> list[str]:
        """The shortest name of every file that has one of its own, in alphabetical order."""
        with self._lock:
            if self._entries is None:
                self.scan()
            shortest = {}
            for entry in self._entries or []:
                candidates = [name for name in entry.spellings if self._by_spelling[name] is entry and not name.endswith(EXTENSIONS)]
                if candidates:
                    shortest[entry] = min(candidates, key=len)
            return sorted(shortest.values())

    def find(self, name: str) -> Path:
        """The file that `name` means: its path below a folder, or its stem, each with or without extension; else its metadata's ss_output_name; else its hash.

        Args:
            name: as typed; a hash is at least the first 8 of the digits that files.hashes.model_hash or the metadata's sshs_model_hash gives.

        Raises:
            UnknownNetworkError: no file has this name; the message names near ones and where they were looked for.
        """
        wanted = name.strip().replace("\\", "/")
        with self._lock:
            fresh = self._entries is None
            if fresh:
                self.scan()
            found = self._look_up(wanted)
            if found is None and not fresh and self._has_changed():
                self.scan()
                found = self._look_up(wanted)
            if found is None:
                raise UnknownNetworkError(self._unknown(wanted))
            return found.path

    def _look_up(self, wanted: str) -> _Entry | None:
        entry = self._by_spelling.get(wanted)
        if entry is not None and entry.path.is_file():
            return entry
        entries = [entry for entry in self._entries or [] if entry.path.is_file()]
        found = next((entry for entry in entries if self._fact(entry, "ss_output_name") == wanted), None)
        if found is not None or not _HASH.fullmatch(wanted.lower()):
            return found
        for fact in ("sshs_model_hash", "computed"):  # what the file says costs a header; only then everything is read
            for entry in entries:
                if (self._fact(entry, fact) or "").startswith(wanted.lower()):
                    return entry
        return None

    def _fact(self, entry: _Entry, fact: str) -> str | None:
        """One of a file's own facts, remembered until the file changes; None for a file that has none or can't be read."""
        try:
            status = entry.path.stat()
        except OSError:
            return None
        stamp = (status.st_mtime_ns, status.st_size)
        known = self._facts.get((entry.path, fact))
        if known is None or known[0] != stamp:
            known = self._facts[entry.path, fact] = (stamp, _read_fact(entry.path, fact))
        return known[1]

    def _scan_folder(self, root: Path) -> Iterator[_Entry]:
        visited = set()
        for folder, subfolders, files in os.walk(root, followlinks=True):
            real = os.path.realpath(folder)
            subfolders[:] = [] if real in visited else sorted(name for name in subfolders if not name.startswith("."))
            if real in visited:
                continue
            visited.add(real)
            self._seen[folder] = _changed_at(folder)
            for file in sorted(files):
                path = Path(folder, file)
                if path.suffix.lower() in EXTENSIONS and not file.startswith(".") and path.is_file():
                    yield _Entry(path, path.relative_to(root).with_suffix("").as_posix())

    def _has_changed(self) -> bool:
        return any(_changed_at(folder) != then for folder, then in self._seen.items())

    def _unknown(self, wanted: str) -> str:
        names = self.names()
        near = difflib.get_close_matches(wanted, names, 3, 0.5) or [name for name in names if wanted.lower() in name.lower()][:3]
        places = ", ".join(shown(folder) for folder in self._folders) or "no folder"
        hint = f"near: {', '.join(shown(name, 60) for name in near)}" if near else f"{len(names)} others are there"
        return f"no network is called {shown(wanted)!r} in {places} ({hint}); check the name or put the file there"


def _read_fact(path: Path, fact: str) -> str | None:
    try:
        if fact == "computed":
            return model_hash(path)
        return read_header(path).metadata.get(fact) if path.suffix.lower() == ".safetensors" else None
    except NetworkFileError:
        return None


def _changed_at(folder: str | os.PathLike[str]) -> int | None:
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return None
