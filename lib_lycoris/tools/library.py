"""The library as its users work with it: the actions of tools.actions on what lies on the shelves, long ones in the background."""

from __future__ import annotations

import base64
import binascii
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lib_lycoris.errors import ConfigError, LycoError, UnknownNetworkError, shown
from lib_lycoris.library.adapter_files import AdapterFiles
from lib_lycoris.library.embedding_shelf import EmbeddingShelf
from lib_lycoris.library.renaming import checked_name
from lib_lycoris.library.shelf import Shelf
from lib_lycoris.library.walk import Kept
from lib_lycoris.tools import actions
from lib_lycoris.tools.actions import ACTIONS
from lib_lycoris.tools.jobs import Jobs, OnStep

# The tools themselves are imported where they are used: a WebUI's start does not wait for them.

OnShelf = Shelf | EmbeddingShelf | AdapterFiles

_MEASURED = 32
"""How many files' figures are kept."""

_SPECTRUM = 512
"""The most singular values of a block that are told."""

_DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


class Library:
    """Does the actions; plain values in and out.

    Args:
        shelves: what is on disk, by kind: "networks", and "embeddings", "adapters" where the host has them.
    """

    def __init__(self, shelves: Mapping[str, OnShelf]) -> None:
        self._shelves = dict(shelves)
        self._rows = {name: Kept(shelf.folders, shelf.rows) for name, shelf in shelves.items()}
        self._measured: OrderedDict[tuple[str, int, int], dict[str, Any]] = OrderedDict()
        self.jobs = Jobs()
        self._work: dict[str, Callable[[Any], Mapping[str, Any]]] = {
            "measure": self._measure, "compare": self._compare, "remark": self._remark, "preview": self._preview, "rename": self._rename,
            "convert": self._convert, "resize": self._resize, "merge": self._merge, "delete": self._delete, "restore": self._restore, "empty": self._empty,
        }

    @property
    def shelves(self) -> list[str]:
        """The kinds that there are."""
        return list(self._shelves)

    def run(self, action: str, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the action gives; of a long one its job: {"job": JobState}.

        Raises:
            LycoError: an unknown action, a bad value, or it can't be done.
        """
        found = next((each for each in ACTIONS if each.name == action), None)
        if found is None:
            raise ConfigError(f"no action is called {shown(action)!r}; known are {', '.join(each.name for each in ACTIONS)}")
        wanted = found.make(values)
        try:
            return self._work[action](wanted)
        finally:
            self.refresh()

    def refresh(self) -> None:
        """Has the folders read anew when `rows` is asked next."""
        for kept in self._rows.values():
            kept.forget()

    def rows(self, shelf: str = "networks") -> list[dict[str, Any]]:
        """What is on that shelf, read anew where a folder changed. Shelves may share folders: a file stands on the one that knows what it is.

        What no shelf knows stands on the first that lists it, so that a damaged file is told of once.
        """
        self._shelf(shelf)
        rows = self._rows[shelf].rows()
        if all(row["kind"] for row in rows):
            return rows
        names = list(self._shelves)
        known = {row["file"] for name in names if name != shelf for row in self._rows[name].rows() if row["kind"]}
        earlier = {row["file"] for name in names[: names.index(shelf)] for row in self._rows[name].rows()}
        return [row for row in rows if row["kind"] or row["file"] not in known | earlier]

    def describe(self, name: str, shelf: str = "networks") -> dict[str, Any]:
        """What is known of one file without its tensors being read; "measured" holds its figures where they were measured before."""
        seen = self._shelf(shelf).describe(name)
        try:
            measured = self._measured.get(_stamp(Path(seen["file"])))
        except OSError as error:
            raise UnknownNetworkError(f"{shown(name)!r} is not there any more: read the folders again") from error
        return {**seen, "measured": measured}

    def picture(self, name: str, shelf: str = "networks") -> Any:
        """The preview (PIL) of one file, or None."""
        return self._shelf(shelf).picture(name)

    def trash(self) -> list[dict[str, Any]]:
        """What lies in the trash, newest first."""
        entries = {entry.id: entry for shelf in self._shelves.values() for entry in shelf.trash.entries()}  # shelves may share folders, and so their trash
        return [entry.to_dict() for entry in sorted(entries.values(), key=lambda entry: entry.deleted, reverse=True)]

    def _shelf(self, name: str) -> Any:
        if name not in self._shelves:
            raise ConfigError(f"there is no list of {shown(name)} here; known are {', '.join(self._shelves)}")
        return self._shelves[name]

    # ---------------------------------------------------------------- at once

    def _remark(self, wanted: actions.RemarkSettings) -> Mapping[str, Any]:
        given = {name.replace("_", " "): value for name, value in asdict(wanted).items() if name not in ("name", "shelf") and value is not None}
        return self._shelf(wanted.shelf).remark(wanted.name, given)

    def _preview(self, wanted: actions.PreviewSettings) -> Mapping[str, Any]:
        try:
            data = base64.b64decode(wanted.image.partition("base64,")[2] or wanted.image, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ConfigError(f"preview.image is not base64 ({error}): send a picture's bytes") from error
        if not data:
            raise ConfigError('preview.image = "": choose a picture')
        return self._shelf(wanted.shelf).set_preview(wanted.name, data)

    def _rename(self, wanted: actions.RenameSettings) -> Mapping[str, Any]:
        return self._shelf(wanted.shelf).rename(wanted.name, wanted.new)

    def _delete(self, wanted: actions.DeleteSettings) -> Mapping[str, Any]:
        return self._shelf(wanted.shelf).delete(wanted.name)

    def _restore(self, wanted: actions.RestoreSettings) -> Mapping[str, Any]:
        return self._holding(wanted.entry).restore(wanted.entry)

    def _empty(self, wanted: actions.EmptySettings) -> Mapping[str, Any]:
        shelves = [self._holding(wanted.entry)] if wanted.entry else list(self._shelves.values())
        return {"gone": [gone for shelf in shelves for gone in shelf.trash.empty(wanted.entry)]}

    def _holding(self, entry: str) -> OnShelf:
        """The shelf whose trash has that entry; of its own kind where several do."""
        found = [(shelf, each) for shelf in self._shelves.values() for each in shelf.trash.entries() if each.id == entry]
        if not found:
            raise ConfigError(f"nothing in the trash is called {shown(entry)!r}: look into the trash again")
        return next((shelf for shelf, each in found if shelf.kind == each.kind), found[0][0])

    # ---------------------------------------------------------------- in the background

    def _start(self, title: str, work: Callable[[OnStep], Mapping[str, Any]]) -> Mapping[str, Any]:
        return {"job": asdict(self.jobs.start(title, work))}

    def _measure(self, wanted: actions.MeasureSettings) -> Mapping[str, Any]:
        path = self._shelf("networks").find(wanted.name).path

        def work(on_step: OnStep) -> Mapping[str, Any]:
            stamp = _stamp(path)
            if stamp not in self._measured:
                self._measured[stamp] = measure(path, on_step)
                while len(self._measured) > _MEASURED:
                    self._measured.popitem(last=False)
            return {"name": wanted.name, **self._measured[stamp]}

        return self._start(f"Measuring {wanted.name}", work)

    def _compare(self, wanted: actions.CompareSettings) -> Mapping[str, Any]:
        from lib_lycoris.tools.compare import compare

        paths = [self._shelf("networks").find(name).path for name in (wanted.name, wanted.other)]
        return self._start(f"Comparing {wanted.name} with {wanted.other}",
                           lambda on_step: {"name": wanted.name, "other": wanted.other, **compare(*paths, on_step).as_json()})

    def _convert(self, wanted: actions.ConvertSettings) -> Mapping[str, Any]:
        from lib_lycoris.tools.convert import convert

        path = self._source(wanted.name)
        out = self._goal(path, wanted.out or f"{_called(path)}-{wanted.to}", folder=wanted.to == "peft")
        return self._start(f"Converting {wanted.name} to {wanted.to}", lambda on_step: self._made(convert(_whole(path), out, wanted.to, on_step)))

    def _resize(self, wanted: actions.ResizeSettings) -> Mapping[str, Any]:
        from lib_lycoris.tools.resize import resize

        path = self._source(wanted.name)
        energy = wanted.energy if wanted.rank is not None or wanted.energy is not None else actions.DEFAULT_ENERGY
        size = f"{wanted.rank}" if wanted.rank is not None else f"{energy:g}"
        out = self._goal(path, wanted.out or f"{_called(path)}-{size}")

        def work(on_step: OnStep) -> Mapping[str, Any]:
            done = resize(_whole(path), out, wanted.rank, None if wanted.rank is not None else energy, _dtype(wanted.dtype), on_step)
            done.notes.insert(0, f"{done.kept.line()}; {done.nbytes / 1e6:.1f} MB of {done.bytes_before / 1e6:.1f} MB")
            return self._made(done)

        return self._start(f"Resizing {wanted.name} to {size}", work)

    def _merge(self, wanted: actions.MergeSettings) -> Mapping[str, Any]:
        from lib_lycoris.tools.merge import Part, merge, read_part

        named = [read_part(text) for text in wanted.parts]
        paths = [self._source(part.path) for part in named]
        parts = [Part(str(_whole(path)), part.te, part.unet) for part, path in zip(named, paths, strict=True)]
        out = self._goal(paths[0], wanted.out or "-".join(["merged", *dict.fromkeys(map(_called, paths))])[:100])
        return self._start(f"Merging {' '.join(wanted.parts)}", lambda on_step: self._made(merge(parts, out, wanted.rank, _dtype(wanted.dtype), on_step)))

    def _source(self, name: str) -> Path:
        """The file of that name in the library; a name alone leads to one, never a path."""
        return self._shelf("networks").find(name).path

    def _goal(self, source: Path, name: str, folder: bool = False) -> Path:
        """Where a new file of that name is written: beside its source, in a folder of the library.

        Raises:
            LycoError: the name can't be a file's, or is taken.
        """
        ending = "" if folder else ".safetensors"
        beside = source.parent.parent if source.stem == "adapter_model" else source.parent
        goal = self._shelf("networks").writable(beside) / (checked_name(name.strip().removesuffix(".safetensors")) + ending)
        if os.path.lexists(goal):
            raise LycoError(f"{shown(goal.name)!r} is there already in {shown(goal.parent)}: choose another name")
        return goal

    def _made(self, done: Any) -> Mapping[str, Any]:
        """What came of a tool, in plain values."""
        shelf = self._shelf("networks")
        shelf.scan()
        name = next((each.name for each in shelf.networks() if done.path in (each.path, each.path.parent)), done.path.stem)
        return {"name": name, "file": str(done.path), "bytes": done.nbytes, "notes": list(done.notes)}


def measure(path: Path, on_step: OnStep | None = None) -> dict[str, Any]:
    """The figures of a network that only its tensors tell: the report without its metadata, and each block's singular values, largest first.

    Raises:
        NetworkFileError: it can't be used.
    """
    from lib_lycoris.tools.inspect import report_on
    from lib_lycoris.tools.plot import block_spectra
    from lib_lycoris.tools.source import layers_by_target, open_source

    network = open_source(_whole(path))
    layers = layers_by_target(network)

    def second_half(done: int, total: int) -> None:
        if on_step is not None:
            on_step(total + done, 2 * total)

    report = report_on(network, None if on_step is None else lambda done, total: on_step(done, 2 * total))
    spectra = block_spectra(layers, second_half)
    figures = {key: value for key, value in report.as_json().items() if key not in ("metadata", "file", "bytes")}
    return {**figures, "spectra": {block: [float(f"{value:.5g}") for value in values[:_SPECTRUM].tolist()] for block, values in spectra.items()}}


def _dtype(name: str | None) -> Any:
    """The torch dtype of that name; None for None."""
    import torch

    return None if name is None else getattr(torch, _DTYPES[name])


def _whole(path: Path) -> Path:
    """The folder of a PEFT adapter, whose config stands beside it; else the file."""
    return path.parent if path.stem == "adapter_model" else path


def _called(path: Path) -> str:
    return _whole(path).stem if path.stem == "adapter_model" else path.stem


def _stamp(path: Path) -> tuple[str, int, int]:
    status = path.stat()
    return str(path), status.st_mtime_ns, status.st_size
