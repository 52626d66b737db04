"""One door to every form of network file: first what it holds, then its tensors."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from torch import Tensor

from lib_lycoris.errors import NetworkFileError, shown
from lib_lycoris.files.pickles import open_pickle
from lib_lycoris.files.regular import open_regular
from lib_lycoris.files.safetensors import read_header, read_tensors

# What downloads turn into when they fail, by their first bytes.
_NO_MODELS = (
    (b"<", "a web page, what a failed download leaves"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
    (b"\x89PNG", "a picture (open_embedding reads the embedding that one may hold)"),
    (b"\xff\xd8\xff", "a picture (open_embedding reads the embedding that one may hold)"),
    (b"GGUF", "a GGUF file, which holds quantised models"),
    (b"Rar!", "a RAR archive; unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it first"),
)


class Read(Protocol):
    """Gives a file's tensors by name."""

    def __call__(self, names: Iterable[str] | None = None, check: bool = False, mapped: bool = False) -> dict[str, Tensor]:
        """The named tensors (None: all) on the CPU; with `check` NaN and infinity are refused; with `mapped` a large file may be mapped (files/memory.py)."""


@dataclass(frozen=True)
class TensorFile:
    """A file whose structure was read: the tensors' names, its metadata, their shapes, and `read` for the tensors themselves.

    `remarks` are the texts and numbers that stand beside the tensors in a pickle.
    """

    names: tuple[str, ...]
    metadata: dict[str, str]
    read: Read
    shapes: dict[str, tuple[int, ...]]
    remarks: Mapping[str, str | int | float] = field(default_factory=dict)


def open_tensor_file(path: str | os.PathLike[str]) -> TensorFile:
    """What the file at `path` holds, told by its first bytes rather than by its name: safetensors, or a pickle of torch's in either format.

    Raises:
        NetworkFileError: there is no such file, it is empty, damaged, something else, or a pickle that would run code.
    """
    with open_regular(path) as file:
        start = file.read(64)
    if not start:
        raise NetworkFileError(f"{shown(path)} is empty; get it again")
    if start[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04") and start[8:9] != b"{":  # 0x80 may also be the length of a safetensors header
        pickled = open_pickle(path)
        shapes = {name: stored.shape for name, stored in pickled.tensors.items()}
        return TensorFile(tuple(pickled.tensors), {}, pickled.read, shapes, pickled.remarks)
    for magic, what in _NO_MODELS:
        if start.lstrip().startswith(magic) and start[8:9] != b"{":
            raise NetworkFileError(f"{shown(path)} is {what}: no network file; get it again from where it is offered")
    header = read_header(path)
    shapes = {name: shape for name, (_, shape) in header.tensors.items()}
    return TensorFile(tuple(header.tensors), header.metadata, partial(read_tensors, path, header), shapes)
