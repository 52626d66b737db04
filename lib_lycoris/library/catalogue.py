"""Which network files there are, and which of them a name means."""

from __future__ import annotations

import difflib
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lib_lycoris.errors import NetworkFileError, UnknownNetworkError, shown
from lib_lycoris.files.hashes import file_hash, model_hash
from lib_lycoris.files.safetensors import read_metadata
from lib_lycoris.library.walk import changed_at, walk_folders

EXTENSIONS = (".safetensors", ".pt", ".ckpt", ".bin")
_HASH = re.compile(r"[0-9a-f]{6,64}")
_SHORTEST_COMPUTED = 10  # digits; for less no file is read whole, as words like "facade" look like that
_LISTED = 5


@dataclass(frozen=True)
class _Entry:
    path: Path
    name: str
    """Path below its folder, without the extension, with "/"."""

    @property
    def paths(self) -> tuple[str, ...]:
        """The ways to call it that name its folders."""
        # the files of PEFT folders are all called adapter_model: the folder's name is the network's
        folder = (self.name.removesuffix("/adapter_model"),) if self.name.endswith("/adapter_model") else ()
        return (self.name, *folder, self.name + self.path.suffix)

    @property
    def stems(self) -> tuple[str, ...]:
        """The ways to call it that leave the folders out."""
        return tuple(path.rpartition("/")[2] for path in self.paths)


class Catalogue:
    """The network files below some folders, by name. Folders are read at the first question, and again when a name is not found and something changed."""

    def __init__(self, folders: Sequence[str | os.PathLike[str]]):
        """A catalogue of these folders.

        Where two files have one path below their folders, the earlier folder's wins, and of two that differ in the extension alone the first in the order of
        EXTENSIONS; all others are told apart by their path.
        """
        self._folders = tuple(Path(folder) for folder in folders)
        self._entries: list[_Entry] | None = None
        self._by_path: dict[str, _Entry] = {}
        self._by_stem: dict[str, list[_Entry]] = {}
        self._seen: dict[str, int | None] = {}
        self._facts: dict[tuple[Path, str], tuple[tuple[int, int], object]] = {}
        self._lock = threading.RLock()

    def scan(self) -> None:
        """Reads the folders anew, but no file. Missing and unreadable ones are passed over; links to folders are followed, each folder once."""
        with self._lock:
            self._seen = {str(folder): changed_at(folder) for folder in self._folders}
            self._entries = [entry for folder in self._folders for entry in self._scan_folder(folder)]
            self._by_path, self._by_stem = {}, {}
            for position in range(3):
                for entry in self._entries:
                    if position < len(entry.paths):
                        self._by_path.setdefault(entry.paths[position], entry)
            for entry in dict.fromkeys(self._by_path.values()):
                for stem in dict.fromkeys(entry.stems):
                    self._by_stem.setdefault(stem, []).append(entry)

    def names(self) -> list[str]:
        """The shortest name of every file that has one of its own, in alphabetical order; the extension belongs to it only where it has to."""
        with self._lock:
            if self._entries is None:
                self.scan()
            return sorted(name for entry in self._entries or [] if (name := self._shortest(entry)) is not None)

    def name_of(self, path: Path) -> str | None:
        """The shortest name of the file at that path; None where it has none of its own, or lies in none of the folders."""
        with self._lock:
            return next((self._shortest(entry) for entry in self._entries or [] if entry.path == path), None)

    def _shortest(self, entry: _Entry) -> str | None:
        candidates = [name for name in (*entry.stems, *entry.paths) if self._meant(name) == [entry]]
        return min(candidates, key=lambda name: (name.endswith(EXTENSIONS), len(name))) if candidates else None

    def find(self, name: str) -> Path:
        """The file that `name` means: its path below a folder, or its stem, each with or without extension; else its metadata's ss_output_name; else its hash.

        Args:
            name: as typed; a hash as `find_by_hash` takes it.

        Raises:
            UnknownNetworkError: no file has this name, or several have; the message names near ones, or those several, and where they were looked for.
        """
        wanted = name.strip().replace("\\", "/")
        return self._find(wanted, self._look_up, lambda: self._unknown(wanted))

    def find_by_hash(self, digits: str) -> Path:
        """The file with this hash, as infotexts and download sites have it.

        Args:
            digits: the first 6 or more of the metadata's sshs_model_hash; 10 or more may also be of what files.hashes computes over tensors or whole file.

        Raises:
            UnknownNetworkError: no file has it, or several different ones have.
        """
        wanted = digits.strip().lower()
        return self._find(wanted, self._look_up_hash, lambda: f"no network's hash begins with {shown(wanted)!r} in {self._places()}; put the file there")

    def _find(self, wanted: str, look_up: Callable[[str], list[_Entry]], missing: Callable[[], str]) -> Path:
        with self._lock:
            fresh = self._entries is None
            if fresh:
                self.scan()
            found = look_up(wanted)
            if not found and not fresh and self._has_changed():
                self.scan()
                found = look_up(wanted)
            if not found:
                raise UnknownNetworkError(missing())
            if len(found) > 1:
                raise UnknownNetworkError(self._ambiguous(wanted, found))
            return found[0].path

    def _look_up(self, wanted: str) -> list[_Entry]:
        meant = [entry for entry in self._meant(wanted) if entry.path.is_file()]
        return meant or self._with_fact("ss_output_name", lambda alias: alias == wanted) or self._look_up_hash(wanted.lower())

    def _meant(self, wanted: str) -> list[_Entry]:
        """The entries that a path or stem means: one, or none, or all of those that share a stem."""
        return [self._by_path[wanted]] if wanted in self._by_path else self._by_stem.get(wanted, [])

    def _look_up_hash(self, wanted: str) -> list[_Entry]:
        if not _HASH.fullmatch(wanted):
            return []
        facts = ("sshs_model_hash", "computed", "whole") if len(wanted) >= _SHORTEST_COMPUTED else ("sshs_model_hash",)
        for fact in facts:  # what the file says costs a header; only then everything is read
            found = self._with_fact(fact, lambda digits: isinstance(digits, str) and digits.lower().startswith(wanted))
            if found:
                same = len({str(self._fact(entry, fact)).lower() for entry in found}) == 1
                return found[:1] if same else found
        return []

    def _with_fact(self, fact: str, fits: Callable[[object], bool]) -> list[_Entry]:
        return [entry for entry in self._entries or [] if fits(self._fact(entry, fact))]

    def _fact(self, entry: _Entry, fact: str) -> object:
        """One of a file's own facts, remembered until the file changes; None for a file that has none or can't be read."""
        try:
            status = entry.path.stat()
        except OSError:
            return None
        stamp = (status.st_mtime_ns, status.st_size)
        reader = fact if fact in _READERS else "metadata"
        known = self._facts.get((entry.path, reader))
        if known is None or known[0] != stamp:
            known = self._facts[entry.path, reader] = (stamp, _read(entry.path, reader))
        return known[1].get(fact) if isinstance(known[1], dict) else known[1] if fact == reader else None

    def _scan_folder(self, root: Path) -> Iterator[_Entry]:
        for folder, files in walk_folders(root, self._seen):
            paths = [Path(folder, file) for file in files if file.lower().endswith(EXTENSIONS)]
            for path in sorted(paths, key=lambda path: (path.stem, EXTENSIONS.index(path.suffix.lower()), path.suffix)):
                if path.is_file():
                    yield _Entry(path, path.relative_to(root).with_suffix("").as_posix())

    def _has_changed(self) -> bool:
        return any(changed_at(folder) != then for folder, then in self._seen.items())

    def _unknown(self, wanted: str) -> str:
        names = self.names()
        near = near_names(wanted, names) or [name for name in names if wanted.casefold() in name.casefold()][:3]
        hint = f"near: {', '.join(shown(name, 60) for name in near)}" if near else f"{len(names)} others are there"
        return f"no network is called {shown(wanted)!r} in {self._places()} ({hint}); check the name or put the file there"

    def _ambiguous(self, wanted: str, found: Sequence[_Entry]) -> str:
        names = [next((path for path in entry.paths if self._by_path.get(path) is entry), str(entry.path)) for entry in found]
        listed = ", ".join(shown(name, 100) for name in names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
        return f"{shown(wanted)!r} may mean {len(names)} networks: {listed}; write the one you mean"

    def _places(self) -> str:
        return ", ".join(shown(folder) for folder in self._folders) or "no folder"


def near_names(wanted: str, names: Iterable[str]) -> list[str]:
    """Up to three names that are like one, the likest first; capitals make no difference."""
    known: dict[str, list[str]] = {}
    for name in names:
        known.setdefault(name.casefold(), []).append(name)
    return [name for near in difflib.get_close_matches(wanted.casefold(), known, 3, 0.5) for name in known[near]][:3]


def _metadata(path: Path) -> dict[str, str]:
    """What names and hashes are found by; a whole metadata is too much to remember for thousands of files."""
    if path.suffix.lower() != ".safetensors":
        return {}
    metadata = read_metadata(path)
    return {key: metadata[key] for key in ("ss_output_name", "sshs_model_hash") if key in metadata}


_READERS: dict[str, Callable[[Path], object]] = {"metadata": _metadata, "computed": model_hash, "whole": file_hash}


def _read(path: Path, reader: str) -> object:
    try:
        return _READERS[reader](path)
    except NetworkFileError:
        return None

