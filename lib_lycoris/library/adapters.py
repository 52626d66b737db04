"""From a file, or a name in a list, to an adapter; and back to a file."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from lib_lycoris.errors import NetworkFileError, UnknownNetworkError, shown
from lib_lycoris.files.adapters import AdapterFacts, diffusers_config, make_adapter_metadata, open_adapter_file, read_adapter_facts, to_diffusers
from lib_lycoris.files.safetensors import write_tensors
from lib_lycoris.library.walk import walk_folders
from lib_lycoris.networks.adapters.kinds import build_adapter
from lib_lycoris.networks.adapters.parts import Adapter

EXTENSIONS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")


def open_adapter(path: str | os.PathLike[str]) -> Adapter:
    """The T2I-Adapter at `path`, in float32 on the CPU: a file of TencentARC's or diffusers' making, or a folder of diffusers'.

    `.kind` is "full", "light", "style" or "fuser". A full or light one maps pictures [N,3,H,W] in 0…1 to four feature maps, a style one CLIP's picture
    tokens [N,257,D] to [tokens].

    Raises:
        NetworkFileError: the file can't be read, is damaged, not finite, something else (which is named), or a pickle that would run code.
    """
    arranged = open_adapter_file(path)
    values = arranged.file.read(arranged.keys.values(), check=True)
    missing = [key for key in arranged.keys.values() if key not in values]
    if missing:
        raise NetworkFileError(f"{shown(arranged.path)} has no {shown(missing[0])} any more: it changed since it was opened; open it again")
    try:
        return build_adapter(arranged.facts, {name: values[key] for name, key in arranged.keys.items()}, arranged.file.metadata)
    except NetworkFileError as error:
        raise NetworkFileError(f"{shown(arranged.path)}: {error}") from error


def facts_of(adapter: Adapter, **told: Any) -> AdapterFacts:
    """The facts of an adapter, also of one that was created; `told` are those that no tensor tells: base_model, preprocessor, …"""
    held = {each.name for each in fields(AdapterFacts)}
    own = adapter.facts or AdapterFacts(**{name: getattr(adapter, name) for name in held if hasattr(adapter, name)})
    return replace(own, **told)


def write_adapter(path: str | os.PathLike[str], adapter: Adapter, metadata: Mapping[str, str] | None = None, spelling: str = "tencent", dtype: Any = None,
                  **told: Any) -> None:
    """Writes a .safetensors that says in its metadata what its tensors leave open; diffusers' spelling with the config.json that it needs beside it.

    Args:
        path: the file to write, at once or not at all.
        adapter: any kind.
        metadata: more of it, for example files.metadata.make_metadata's.
        spelling: "tencent" or "diffusers".
        dtype: of the tensors in the file; None: as they are.
        told: base_model, preprocessor, resolution, task; what is left out is what the adapter's own file said.

    Raises:
        NetworkFileError: diffusers knows no such adapter, or the file can't be written.
    """
    facts = facts_of(adapter, **told)
    tensors = {name: value.to(dtype) if dtype is not None else value for name, value in adapter.tensors().items()}
    if spelling == "diffusers":
        names = to_diffusers(tensors, facts)
        tensors = {names[name]: value for name, value in tensors.items()}
    write_tensors(path, tensors, {**(metadata or {}), **make_adapter_metadata(facts)})
    if spelling == "diffusers":
        Path(path).with_name("config.json").write_text(json.dumps(diffusers_config(facts), indent=2) + "\n", encoding="utf-8")


class AdapterShelf:
    """The adapter files below some folders.

    Args:
        folders: read anew whenever they are listed.
        keep: how many loaded adapters stay in memory.
        outside: whether a path to a file elsewhere is a name too; not for those who ask over a network.
        samples: files by name that are listed too, wherever they lie; a file of that name in a folder takes its place.
    """

    def __init__(self, folders: Iterable[str | os.PathLike[str]], keep: int = 3, outside: bool = False, samples: Mapping[str, Path] | None = None) -> None:
        self.folders = [Path(folder) for folder in folders]
        self._samples = dict(samples or {})
        self._keep, self._outside = keep, outside
        self._facts: dict[Path, tuple[tuple[int, int], AdapterFacts | None, str | None]] = {}
        self._loaded: OrderedDict[Path, tuple[tuple[int, int], Adapter]] = OrderedDict()

    def rows(self, base_model: str | None = None, channels: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Every adapter as plain values, by name; with `base_model` (and a UNet's `channels`) only what fits it. Files that are no adapters are left out.

        Only headers are read, and each once until the file changes. Damaged files have a "problem" in words and no kind.
        """
        rows = []
        for name, path in self._files().items():
            facts, problem = self._look_at(path)
            if facts is not None and facts.fits(base_model, None if facts.kind == "style" else channels):
                rows.append({"name": name, "file": str(path), **facts.to_dict(), "problem": None})
            elif problem is not None and _is_damaged(problem):
                rows.append({"name": name, "file": str(path), "kind": None, "problem": problem})
        return rows

    def names(self, base_model: str | None = None, channels: Sequence[int] | None = None, kinds: Sequence[str] = ("full", "light", "style")) -> list[str]:
        """The names of the usable ones of these kinds, for a list to choose from."""
        return [row["name"] for row in self.rows(base_model, channels) if row["kind"] in kinds]

    def find(self, name: str) -> Path:
        """The file that is called so: by its name in the list, its path, or (if it is the only one) its file name or its name without folders.

        Raises:
            UnknownNetworkError: there is none, or several.
        """
        files = self._files()
        wanted = name.strip()
        if wanted in files:
            return files[wanted]
        found = [path for path in files.values() if wanted == str(path)]
        found = found or [path for each, path in files.items() if wanted in (path.name, path.stem, f"{each}{path.suffix}", each.rpartition("/")[2])]
        found = found or [path for path in files.values() if wanted and path.stem.lower() == wanted.lower()]
        if len(found) == 1:
            return found[0]
        if not found and self._outside and Path(wanted).suffix.lower() in EXTENSIONS and Path(wanted).is_file():
            return Path(wanted)
        places = ", ".join(shown(folder) for folder in self.folders) or "no folder"
        if found:
            raise UnknownNetworkError(f"{shown(name)!r} may mean {len(found)} adapters: {', '.join(shown(path) for path in found[:4])}; name its folder too")
        raise UnknownNetworkError(f"no adapter is called {shown(name)!r} in {places}; choose one from the list, or put the file there")

    def facts(self, name: str) -> AdapterFacts:
        """What the adapter of that name is.

        Raises:
            UnknownNetworkError: there is none.
            NetworkFileError: its file is of no use.
        """
        path = self.find(name)
        facts, problem = self._look_at(path)
        if facts is None:
            raise NetworkFileError(problem or f"{shown(path)} can't be read; get it again")
        return facts

    def load(self, name: str) -> Adapter:
        """The adapter of that name, from memory where its file is still the one that was read.

        Raises:
            UnknownNetworkError: there is none.
            NetworkFileError: as `open_adapter`.
        """
        path = self.find(name)
        stamp = _stamp(path)
        kept = self._loaded.pop(path, None)
        if kept is None or kept[0] != stamp:
            kept = (stamp, open_adapter(path))
        self._loaded[path] = kept
        while len(self._loaded) > self._keep:
            self._loaded.popitem(last=False)
        return kept[1]

    def forget(self) -> None:
        """Lets go of all loaded adapters."""
        self._loaded.clear()

    def _files(self) -> dict[str, Path]:
        """Every file that may be an adapter, by its path below its folder without the ending; a diffusers folder goes by its own name."""
        files: dict[str, Path] = {}
        for folder in self.folders:
            found = (Path(below, file) for below, files in walk_folders(folder) for file in files)
            for path in sorted(path for path in found if path.suffix.lower() in EXTENSIONS and path.is_file()):
                inner = path.relative_to(folder)
                own = inner.parent if path.stem.startswith("diffusion_pytorch_model") and inner.parent != Path(".") else inner.with_suffix("")
                name = own.as_posix() if own.as_posix() not in files else inner.as_posix()
                files.setdefault(name, path)
        files = {**self._samples, **files}
        return dict(sorted(files.items(), key=lambda item: item[0].lower()))

    def _look_at(self, path: Path) -> tuple[AdapterFacts | None, str | None]:
        try:
            stamp = _stamp(path)
        except NetworkFileError as error:
            return None, str(error)
        known = self._facts.get(path)
        if known is None or known[0] != stamp:
            try:
                known = (stamp, read_adapter_facts(path), None)
            except NetworkFileError as error:
                known = (stamp, None, str(error))
            self._facts[path] = known
        return known[1], known[2]


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise NetworkFileError(f"{shown(path)} can't be read: {shown(error.strerror or error)}; check the path") from error
    return status.st_mtime_ns, status.st_size


def _is_damaged(problem: str) -> bool:
    """Whether a file is told of in the list: not if it is something else."""
    return "is no T2I-Adapter" not in problem
