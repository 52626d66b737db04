"""safetensors files ↔ named tensors: headers that can't be trusted, one read of the data, and writing that never leaves half a file.

Source: the format as huggingface/safetensors' README describes it: 8 bytes of length, a JSON header, the tensors' bytes. The reader is ours because a header is
checked here before anything is allocated and every tensor is a view of one buffer; the writer because equal input must give equal bytes (the library's order of
metadata changes from run to run).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lib_lycoris.errors import LycoError, NetworkFileError, shown
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
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            length = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))[0]
            if size < 10 or length > size - 8:
                raise _damaged(path, f"it has {size} bytes, too few for what it says it holds: empty or cut off")
            if length > _LONGEST_HEADER:
                raise _damaged(path, f"its header claims {length} bytes")
            text = file.read(length)
    except OSError as error:
        raise unreadable(path, error) from error
    return _parse_header(path, text, size - 8 - length)


def read_tensors(path: str | os.PathLike[str], header: Header | None = None) -> dict[str, Tensor]:
    """All tensors of the safetensors file at `path` by name, on the CPU, in the file's dtypes; they share one buffer that nothing else holds.

    The file is read, not mapped: a program that overwrites it later (a trainer does) can't change or crash what was loaded, and Windows may replace it.

    Raises:
        NetworkFileError: as `read_header`, or the file changed in between.
    """
    header = header or read_header(path)
    size = max((end for _, end in header.spans.values()), default=0)
    data = torch.empty(size, dtype=torch.uint8)
    try:
        with open_regular(path) as file:
            file.seek(header.data_start)
            count = file.readinto(memoryview(data.numpy())) if size else 0
    except OSError as error:
        raise unreadable(path, error) from error
    if count != size:
        raise _damaged(path, f"only {count} of {size} bytes of data could be read: cut off")
    return {name: _view(data, *header.spans[name], *header.tensors[name]) for name in header.tensors}


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file; equal input gives equal bytes. The file appears whole or not at all: an older one stays until the new one is on the disk.

    Raises:
        LycoError: the folder is missing, full or not writable; the older file is unchanged.
    """
    goal = Path(os.path.realpath(path))
    draft = goal.with_name(f".{goal.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(draft, "xb") as file:
            file.writelines(serialise(tensors, metadata))
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, goal)
    except OSError as error:
        advice = "free some space or choose another folder; what was there before is unchanged"
        raise LycoError(f"{shown(path)} could not be written: {error.strerror or error}; {advice}") from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


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


def _view(data: Tensor, begin: int, end: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    part = data[begin:end]
    # a writer that does not align its tensors: torch can't view such bytes
    part = part.clone() if begin % _SIZES[dtype] else part
    return part.view(dtype).reshape(shape)


def _damaged(path: str | os.PathLike[str], what: str) -> NetworkFileError:
    return NetworkFileError(f"{shown(path)} is damaged or no safetensors file: {what}; get it again")
