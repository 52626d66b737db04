"""What a model made of pictures and captions, kept on the disk under names that say of what: another picture, crop or model has another name.

A file is in safetensors' format, with an ending that no list of networks looks for. It is written whole or not at all, and checked when it is read, so that
several trainings may share a folder, and a damaged file is only made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import LycoError, NetworkFileError
from ..files.hashes import tensor_hash
from ..files.safetensors import read_header, read_tensors, write_tensors

_log = logging.getLogger(__name__)

_VERSION = 1
_CHECKSUM = "lyco_checksum"
_NOTE = "lyco_note"
_SEEN = "pictures"


def key_of(*parts: object) -> str:
    """A name for whatever follows from these parts: 64 hexadecimal digits."""
    return hashlib.sha256("\n".join([str(_VERSION), *map(str, parts)]).encode()).hexdigest()


def mark_of(values: Sequence[Tensor]) -> str:
    """What a model's answer looks like, in a few digits: the same where it differs by rounding alone, so that it names the model by what it does."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(f"{tuple(value.shape)}".encode())
        digest.update((value.detach().float().cpu() * 100).round().to(torch.int32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


class DiskCache:
    """A folder of tensors by key.

    Attributes:
        problems: in words, what was damaged or could not be written; the training goes on without.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.problems: list[str] = []
        self._writes = True

    def read(self, kind: str, key: str) -> tuple[dict[str, Tensor], Any] | None:
        """(tensors, note) that were written under that key; None where there are none, or damaged ones, which are removed."""
        path = self._path(kind, key)
        if not path.is_file() and not self._adopt(path):
            return None
        try:
            about = read_header(path).metadata
            tensors = read_tensors(path)
            if about.get(_CHECKSUM) == _checksum(tensors, about[_NOTE]):
                return tensors, json.loads(about[_NOTE])
        except (NetworkFileError, OSError, KeyError, ValueError):
            pass  # whatever is wrong with it, it is made anew
        self._tell(f"{path} in the cache is damaged; it is made anew")
        with contextlib.suppress(OSError):
            path.unlink()
        return None

    def write(self, kind: str, key: str, tensors: Mapping[str, Tensor], note: Any = None) -> None:
        """Keeps the tensors, with a note of plain values; a disk that can't be written to is told once, then nothing more is tried."""
        if not self._writes:
            return
        path, text = self._path(kind, key), json.dumps(note)
        plain = {name: value.detach().cpu() for name, value in tensors.items()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_tensors(path, plain, {_NOTE: text, _CHECKSUM: _checksum(plain, text)})
        except (LycoError, OSError) as error:
            self._give_up(error)

    def knows(self, content: str) -> bool:
        """Whether the picture with that content was decoded before, and found good."""
        return self._path(_SEEN, content, "").is_file()

    def note(self, content: str) -> None:
        """Remembers that the picture with that content is good."""
        path = self._path(_SEEN, content, "")
        if self._writes and not path.is_file():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            except OSError as error:
                self._give_up(error)

    def _path(self, kind: str, key: str, ending: str = ".cached") -> Path:
        return self.folder / kind / key[:2] / f"{key}{ending}"

    def _adopt(self, path: Path) -> bool:
        """Whether it is there under the ending that the first files had; then it is given today's."""
        try:
            os.replace(path.with_suffix(".safetensors"), path)
        except OSError:
            return False
        return True

    def _give_up(self, error: Exception) -> None:
        self._writes = False
        self._tell(f"the cache {self.folder} can't be written to ({error}); the next training encodes again what is missing there")

    def _tell(self, problem: str) -> None:
        self.problems.append(problem)
        _log.warning("%s", problem)


def _checksum(tensors: Mapping[str, Tensor], note: str) -> str:
    return hashlib.sha256((tensor_hash(tensors) + note).encode()).hexdigest()
