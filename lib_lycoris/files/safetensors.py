"""safetensors files ↔ named tensors: headers that can't be trusted, one read of the data, and writing that never leaves half a file.

Source: the format as huggingface/safetensors' README describes it: 8 bytes of length, a JSON header, the tensors' bytes. The reader is ours because a header is
checked here before anything is allocated and every tensor is a view of one buffer; the writer because equal input must give equal bytes (the library's order of
metadata changes from run to run).
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from lib_lycoris.errors import NetworkFileError, shown
from lib_lycoris.files import memory
from lib_lycoris.files.atomic import write_whole
from lib_lycoris.files.numbers import PIECE, find_infinite, not_finite
from lib_lycoris.files.regular import open_regular, unreadable

# The library's own order of dtypes, widest first: files hold their tensors so, and other tools' hashes of the data depend on it.
_DTYPES = {
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I16": torch.int16,
    **{name: getattr(torch, dtype) for name, dtype in (("F8_E4M3", "float8_e4m3fn"), ("F8_E5M2", "float8_e5m2")) if hasattr(torch, dtype)},
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_SIZES = {dtype: torch.empty((), dtype=dtype).element_size() for dtype in _DTYPES.values()}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LONGEST_HEADER = 100_000_000  # the format's own limit, bytes
_METADATA_FIRST = re.compile(rb'\s*\{\s*"__metadata__"\s*:\s*')
_LONGEST_NAME = 1000  # no model's module path comes near it


@dataclass(frozen=True)
class Header:
    """What a file says before its tensors: metadata, and per tensor its dtype and shape."""

    metadata: dict[str, str]
    tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]]
    spans: dict[str, tuple[int, int]]
    """Per tensor where its bytes begin and end, counted from the end of the header."""
    data_start: int
    """Bytes before the tensors' data: 8 and the header's length."""


def read_header(path: str | os.PathLike[str]) -> Header:
    """The header of the safetensors file at `path`, checked against the file's size; nothing else is read.

    Raises:
        NetworkFileError: the file can't be read, is empty or truncated, or its header is not what the format demands.
    """
    text, size = _read_header_text(path)
    return _parse_header(path, text, size - 8 - len(text))


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The metadata of the safetensors file at `path`, of which nothing else is checked: what a list of thousands of files needs.

    Raises:
        NetworkFileError: the file can't be read, is empty or truncated within its header, or the header is no JSON object.
    """
    text, _ = _read_header_text(path)
    start = _METADATA_FIRST.match(text)
    try:
        # most writers put the metadata first: what follows, which is longer, need not be parsed
        found = json.JSONDecoder().raw_decode(text.decode("utf-8"), start.end())[0] if start else json.loads(text).get("__metadata__")
        return {str(key): value if isinstance(value, str) else json.dumps(value) for key, value in (found or {}).items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise _damaged(path, f"its header is not safetensors' ({shown(error)})") from error


def _read_header_text(path: str | os.PathLike[str]) -> tuple[bytes, int]:
    """The header's JSON, and how many bytes the file has."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            length = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))[0]
            if size < 10 or length > size - 8:
                raise _damaged(path, f"it has {size} bytes, too few for what it says it holds: empty or cut off")
            if length > _LONGEST_HEADER:
                raise _damaged(path, f"its header claims {length} bytes")
            return file.read(length), size
    except OSError as error:
        raise unreadable(path, error) from error


def read_tensors(
    path: str | os.PathLike[str], header: Header | None = None, names: Iterable[str] | None = None, check: bool = False, mapped: bool = False
) -> dict[str, Tensor]:
    """Tensors of the safetensors file at `path` by name, on the CPU, in the file's dtypes, as views of one buffer.

    Args:
        path: the file.
        header: what `read_header` gave for it, if it was read before.
        names: which tensors; all when None. The bytes of others are not touched.
        check: refuse values that are not finite; they are looked at while they are in the processor's cache.
        mapped: a large file may be mapped rather than copied: files/memory.py says what is won and what is risked. A copy is nobody else's: a program that
            overwrites the file later (a trainer does) can't change or crash what was loaded.

    Raises:
        NetworkFileError: as `read_header`, or the file changed in between, or (with `check`) a tensor holds NaN or infinity.
    """
    header = header or read_header(path)
    runs = _runs(header, header.tensors if names is None else [name for name in names if name in header.tensors])
    try:
        with open_regular(path) as file:
            size, whole = os.fstat(file.fileno()).st_size, header.data_start + max((run.end for run in runs), default=0)
            if size < whole:
                raise _damaged(path, f"only {size} of {whole} bytes are there: cut off")
            if mapped and memory.can_map(sum(run.nbytes for run in runs)):
                pieces = _map(file, header, runs)
            else:
                pieces = _copy(file, header, runs)
            values = {}
            for run, piece, parts in pieces:
                for start, part in parts:
                    if check and (place := find_infinite(part, run.dtype)) is not None:
                        raise not_finite(path, next(name for name in run.names if header.spans[name][1] > run.begin + start + place))
                values.update(_cut(header, run, piece))
            return values
    except OSError as error:
        raise unreadable(path, error) from error


@dataclass
class _Run:
    """Tensors of one dtype that stand one after another in the file, from byte `begin` of the data to `end`."""

    names: list[str]
    dtype: torch.dtype
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


# A run, its bytes, and the same bytes in pieces, each with its place; a piece is there when it is asked for.
_Pieces = Iterator["tuple[_Run, np.ndarray, Iterator[tuple[int, np.ndarray]]]"]


def _runs(header: Header, names: Iterable[str]) -> list[_Run]:
    runs: list[_Run] = []
    for (begin, end), name in sorted((header.spans[name], name) for name in names):
        dtype = header.tensors[name][0]
        if runs and runs[-1].dtype == dtype and runs[-1].end == begin:
            runs[-1].names.append(name)
            runs[-1].end = end
        else:
            runs.append(_Run([name], dtype, begin, end))
    return runs


def _map(file: BinaryIO, header: Header, runs: list[_Run]) -> _Pieces:
    data = memory.mapped(file, header.data_start + runs[-1].end)
    for run in runs:
        piece = data[header.data_start + run.begin : header.data_start + run.end]
        yield run, piece, ((start, piece[start : start + PIECE]) for start in range(0, len(piece), PIECE))


def _copy(file: BinaryIO, header: Header, runs: list[_Run]) -> _Pieces:
    data, place = memory.fresh(sum(run.nbytes + 7 for run in runs)), 0
    for run in runs:
        piece = data[place : place + run.nbytes]
        place += (run.nbytes + 7) // 8 * 8  # every run begins at a whole number of values, whatever the file's writer did
        file.seek(header.data_start + run.begin)
        yield run, piece, _fill(file, piece)


def _fill(file: BinaryIO, piece: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(piece), PIECE):
        part = piece[start : start + PIECE]
        count = file.readinto(memoryview(part))
        if count != len(part):
            raise OSError(f"the file was cut off while it was read, {count} of {len(part)} bytes came")
        yield start, part


def _cut(header: Header, run: _Run, piece: np.ndarray) -> Iterator[tuple[str, Tensor]]:
    """The run's tensors by name, as views of its bytes."""
    values = torch.from_numpy(piece).view(run.dtype)
    if values.data_ptr() % _SIZES[run.dtype]:  # a mapped file whose writer did not align its tensors
        values = values.clone()
    shapes = [header.tensors[name][1] for name in run.names]
    for name, shape, flat in zip(run.names, shapes, values.split([math.prod(shape) for shape in shapes]), strict=True):
        yield name, flat.view(shape)


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file; equal input gives equal bytes. The file appears whole or not at all: an older one stays until the new one is on the disk.

    Raises:
        LycoError: the folder is missing, full or not writable; the older file is unchanged.
    """
    write_whole(path, serialise(tensors, metadata))


def serialise(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Iterator[memoryview | bytes]:
    """The bytes of a safetensors file in pieces: length and header first, then one piece per tensor, by dtype and name."""
    ranks = {dtype: rank for rank, dtype in enumerate(_SIZES)}
    order = sorted(tensors, key=lambda name: (ranks[tensors[name].dtype], name))
    header: dict[str, object] = {"__metadata__": {key: str(metadata[key]) for key in sorted(metadata)}} if metadata else {}
    end = 0
    for name in order:
        tensor = tensors[name]
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for name in order:
        yield memoryview(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _parse_header(path: str | os.PathLike[str], text: bytes, size: int) -> Header:
    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
        metadata = content.pop("__metadata__", None) or {}
        entries = {name: _entry(name, fields) for name, fields in content.items()}
        metadata = {str(key): value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(path, f"its header is not safetensors' ({shown(error)})") from error
    end = max((end for _, (_, end) in entries.values()), default=0)
    if end != size:
        raise _damaged(path, f"its header speaks of {end} bytes of tensors, {size} are there: {'cut off' if end > size else 'something was added'}")
    last = 0
    for name, (_, (begin, past)) in sorted(entries.items(), key=lambda item: item[1][1]):
        if begin != last:
            raise _damaged(path, f"its header lets tensor {shown(name)} begin at byte {begin}, where {last} was to come: tensors overlap or leave a gap")
        last = past
    return Header(metadata, {name: about for name, (about, _) in entries.items()}, {name: span for name, (_, span) in entries.items()}, 8 + len(text))


def _entry(name: str, fields: Mapping) -> tuple[tuple[torch.dtype, tuple[int, ...]], tuple[int, int]]:
    """((dtype, shape), (begin, end)) of one tensor; ValueError where they contradict each other."""
    shape, (begin, end) = tuple(fields["shape"]), fields["data_offsets"]
    if len(name) > _LONGEST_NAME or fields["dtype"] not in _DTYPES:
        raise ValueError(f"tensor {shown(name)} has dtype {shown(fields['dtype'])}")
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)) or len(shape) > 16:
        raise ValueError(f"tensor {shown(name)} has a shape or place that is no list of numbers")
    dtype = _DTYPES[fields["dtype"]]
    if end - begin != math.prod(shape) * _SIZES[dtype]:
        raise ValueError(f"tensor {shown(name)} of shape {shown(list(shape))} does not take {end - begin} bytes")
    return (dtype, shape), (begin, end)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a name stands in it twice")
    return content


def _damaged(path: str | os.PathLike[str], what: str) -> NetworkFileError:
    return NetworkFileError(f"{shown(path)} is damaged or no safetensors file: {what}; get it again")
