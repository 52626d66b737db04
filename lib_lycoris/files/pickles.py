"""torch's pickled files (.pt, .ckpt, .bin) → named tensors, read without executing anything that the file says.

A pickle is a program. Here its opcodes are checked against a list before it runs, the only names it may mention are those of tensors and plain containers, and
each of them stands for a function of this module: not even torch's own code is called. Storages are bytes that are read afterwards.

Source: torch/serialization.py, both formats: the zip archive (since torch 1.6) and the row of pickles followed by raw storages before it.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import pickletools
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import BinaryIO

import torch
from torch import Tensor

from lib_lycoris.errors import NetworkFileError, shown
from lib_lycoris.files.numbers import is_finite, not_finite
from lib_lycoris.files.regular import open_regular

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LONGEST_PICKLE = 50_000_000  # bytes of structure without tensors, and
_MOST_OPCODES = 1_000_000  # steps: far more than any state dict has (a whole checkpoint's takes 50 000), and few enough to be checked in seconds
# What containers, numbers, text and calls of allowed names need. Not there: BYTEARRAY8 and NEXT_BUFFER (allocate what they claim), EXT*, INST, OBJ, DUP.
_OPCODES = frozenset(
    re.findall(
        r"\w+",
        """PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE INT LONG BININT BININT1 BININT2 LONG1 LONG4 FLOAT BINFLOAT
        STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES
        EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS
        GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE NEWOBJ BUILD BINPERSID""",
    )
)
_LONGEST_NAME = 1000
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
_FAILURES = (pickle.UnpicklingError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, OverflowError, RecursionError, NotImplementedError)
_FAILURES += (zipfile.BadZipFile, AssertionError)


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype
    nbytes: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that was described and not read yet."""

    storage: _Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class PickleFile:
    """A pickled file whose structure was read: `tensors` by name, `remarks` (its texts and numbers by name), and `read` for the tensors' values."""

    def __init__(self, path: str | os.PathLike[str], named: dict[str, StoredTensor | str | int | float], places: Mapping[str, tuple[int, int]]):
        self.tensors = {name: value for name, value in named.items() if isinstance(value, StoredTensor)}
        self.remarks = {name: value for name, value in named.items() if isinstance(value, (str, int, float))}
        self._path = path
        self._places = places

    def read(self, names: Iterable[str] | None = None, check: bool = False, mapped: bool = False) -> dict[str, Tensor]:
        """The named tensors (None: all), on the CPU, contiguous; `mapped` changes nothing, a pickle is always copied.

        Raises:
            NetworkFileError: a storage is missing or shorter than its tensors say, or (with `check`) a value is not finite.
        """
        buffers: dict[str, Tensor] = {}
        values = {}
        with open_regular(self._path) as file:
            for name in self.tensors if names is None else names:
                if name in self.tensors:
                    stored = self.tensors[name]
                    key = stored.storage.key
                    if key not in buffers:
                        buffers[key] = self._read_storage(file, stored.storage)
                    values[name] = _rebuild(buffers[key], stored)
                    if check and not is_finite(values[name]):
                        raise not_finite(self._path, name)
        return values

    def _read_storage(self, file: BinaryIO, storage: _Storage) -> Tensor:
        start, length = self._places.get(storage.key, (0, -1))
        size = os.fstat(file.fileno()).st_size
        if length == storage.nbytes and start + length <= size:  # only now is anything allocated
            data = torch.empty(length, dtype=torch.uint8)
            file.seek(start)
            if not length or file.readinto(memoryview(data.numpy())) == length:
                return data
        raise _damaged(self._path, f"the data of storage {shown(storage.key)} is missing or cut off")


def open_pickle(path: str | os.PathLike[str]) -> PickleFile:
    """The structure of a pickled state dict; a dict in it called "state_dict" counts as the content, and what is no tensor is left out.

    Raises:
        NetworkFileError: the file is no pickle of torch's, is damaged, or asks for anything but tensors and plain containers.
    """
    with open_regular(path) as file:
        try:
            content, places = (_read_zip if file.peek(2)[:2] == b"PK" else _read_legacy)(file)
            return PickleFile(path, _named(content), places)
        except _Forbidden as error:
            advice = "nothing was run; do not use it, or ask for a .safetensors"
            raise NetworkFileError(f"{shown(path)} is a pickle that would run code ({shown(error)}): {advice}") from error
        except _FAILURES as error:
            raise _damaged(path, shown(error)) from error


class _Forbidden(Exception):
    """The pickle mentions what it may not."""


class _Unpickler(pickle.Unpickler):
    """Runs a checked pickle; every name resolves to one of this module's own functions."""

    def __init__(self, text: bytes):
        super().__init__(io.BytesIO(text), encoding="utf-8")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> object:
        allowed = _ALLOWED.get((module, name))
        if allowed is None and module in ("torch", "torch.storage") and name in _STORAGES:
            return _STORAGES[name]
        if allowed is None and module == "torch" and isinstance(dtype := vars(torch).get(name), torch.dtype):
            return dtype
        if allowed is None:
            raise _Forbidden(f"{module}.{name}")
        return allowed

    def persistent_load(self, pid: object) -> object:
        if pid[0] == "module":  # the old format tells a module's source beside its class
            return pid[1]
        kind, dtype, key, _, count = pid[:5]
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, (str, int)) or type(count) is not int or count < 0:
            raise ValueError("a storage is described in a way that torch does not use")
        if len(pid) > 5 and pid[5] is not None:
            raise ValueError("it has views of storages, which only torch before 0.4 wrote")
        return self.storages.setdefault(str(key), _Storage(str(key), dtype, count * _size(dtype)))


def _stored_tensor(storage: _Storage, offset: int, shape: tuple, stride: tuple, *rest: object) -> StoredTensor:
    """Stands for torch._utils._rebuild_tensor_v2 (hooks and gradient flags are left out) and, with a dtype as the last but metadata, _rebuild_tensor_v3."""
    dtype = next((value for value in rest if isinstance(value, torch.dtype)), storage.dtype)
    shape, stride = tuple(shape), tuple(stride)
    if not all(type(number) is int and number >= 0 for number in (offset, *shape, *stride)) or len(shape) != len(stride) or len(shape) > 16:
        raise ValueError("a tensor's shape is no list of numbers")
    last = offset + sum((length - 1) * step for length, step in zip(shape, stride, strict=True)) if math.prod(shape) else -1
    # the second part: an expanded tensor must not grow beyond what the file holds
    if (last + 1) * _size(dtype) > storage.nbytes or math.prod(shape) * _size(dtype) > storage.nbytes:
        raise ValueError(f"a tensor of shape {list(shape)} is larger than its data")
    return StoredTensor(storage, dtype, offset, shape, stride)


def _parameter(data: StoredTensor, *rest: object) -> StoredTensor:
    """Stands for torch._utils._rebuild_parameter."""
    return data


def _ordered(*pairs: object) -> dict:
    """Stands for collections.OrderedDict and dict, the first of which may get attributes (torch's _metadata) that are of no use here."""
    return _Ordered(*pairs)


class _Ordered(OrderedDict):
    def __setstate__(self, state: object) -> None:
        """Takes and drops what BUILD would set."""


class _Container:
    """Stands for torch's containers of parameters, modules of which only what they hold is kept."""

    parameters: Mapping[object, object] = MappingProxyType({})

    def __setstate__(self, state: object) -> None:
        """Takes the parameters out of a module's attributes, which is all that BUILD sets."""
        held = state.get("_parameters") if isinstance(state, dict) else None
        self.parameters = dict(held) if isinstance(held, dict) else {}


def _nothing(*values: object) -> tuple:
    """Stands for set, which a module's attributes have."""
    return ()


_ALLOWED: dict[tuple[str, str], Callable] = {
    ("collections", "OrderedDict"): _ordered,
    ("torch._utils", "_rebuild_tensor_v2"): _stored_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _stored_tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch.nn.modules.container", "ParameterDict"): _Container,
    ("torch.nn.modules.container", "ParameterList"): _Container,
    ("builtins", "set"): _nothing,
    ("__builtin__", "set"): _nothing,
    ("torch", "Size"): tuple,
    ("torch.serialization", "_get_layout"): str,
}


class _Bounded:
    """A file of which nobody can ask for more bytes at once than a pickle may have: a length that was damaged must not be allocated."""

    def __init__(self, file: BinaryIO):
        self.tell, self.readline, self._read = file.tell, file.readline, file.read

    def read(self, count: int) -> bytes:
        """So many bytes, fewer at the end."""
        if count > _LONGEST_PICKLE:
            raise ValueError(f"it claims {count} bytes in one piece")
        return self._read(count)


def _load(file: BinaryIO) -> tuple[object, dict[str, _Storage]]:
    """The value and the storages of the pickle that begins at the file's position; the file stands behind it afterwards."""
    start = file.tell()
    for count, (opcode, argument, place) in enumerate(pickletools.genops(_Bounded(file))):
        if opcode.name not in _OPCODES:
            raise _Forbidden(f"pickle opcode {opcode.name}")
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > count:
            raise ValueError("its memo has holes")  # the C unpickler would allocate up to the number named
        if place - start > _LONGEST_PICKLE or count > _MOST_OPCODES:
            raise ValueError("its structure has no end")
    end = file.tell()
    file.seek(start)
    unpickler = _Unpickler(file.read(end - start))
    return unpickler.load(), unpickler.storages


def _read_zip(file: BinaryIO) -> tuple[object, dict[str, tuple[int, int]]]:
    size = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or entry.file_size != entry.compress_size for entry in entries):
            raise ValueError("its archive is compressed, which torch never does")
        main = next((entry for entry in entries if entry.filename.endswith("/data.pkl") or entry.filename == "data.pkl"), None)
        if main is None or main.file_size > min(_LONGEST_PICKLE, size):
            raise ValueError("the archive has no data.pkl: not written by torch.save")
        root = main.filename[: -len("data.pkl")]
        order = next((entry for entry in entries if entry.filename == f"{root}byteorder"), None)
        if order is not None and order.file_size < 16 and archive.read(order) != b"little":
            raise ValueError("it was written on a big-endian machine")
        content, _ = _load(io.BytesIO(archive.read(main)))
    prefix = f"{root}data/"
    places = {entry.filename[len(prefix) :]: (_zip_data_start(file, entry), entry.file_size) for entry in entries if entry.filename.startswith(prefix)}
    if sum(length for _, length in places.values()) > size:
        raise ValueError("its archive claims more data than the file has")
    return content, places


def _zip_data_start(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    file.seek(entry.header_offset)
    local = file.read(30)  # a local header; its last four bytes are the lengths of name and extra field
    if local[:4] != b"PK\x03\x04" or len(local) < 30:
        raise ValueError("its archive's directory does not fit its data")
    return entry.header_offset + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")


def _read_legacy(file: BinaryIO) -> tuple[object, dict[str, tuple[int, int]]]:
    if _load(file)[0] != _LEGACY_MAGIC:
        raise ValueError("it was not written by torch.save")
    if _load(file)[0] != 1001 or not _load(file)[0].get("little_endian", True):
        raise ValueError("it has another version or was written on a big-endian machine")
    content, storages = _load(file)
    places = {}
    size = os.fstat(file.fileno()).st_size
    for key in _load(file)[0]:
        count = int.from_bytes(file.read(8), "little")
        storage = storages[str(key)]
        if count * _size(storage.dtype) != storage.nbytes or file.tell() + storage.nbytes > size:
            raise ValueError(f"the data of storage {shown(key)} is cut off")
        places[str(key)] = (file.tell(), storage.nbytes)
        file.seek(storage.nbytes, os.SEEK_CUR)
    return content, places


def _named(content: object) -> dict[str, StoredTensor | str | int | float]:
    if isinstance(content, StoredTensor):
        content = {"tensor": content}
    if isinstance(content, list) and content and all(isinstance(value, StoredTensor) for value in content):  # cloneofsimo's, whose order says what is what
        content = dict(enumerate(content))
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise ValueError("it holds no dict of tensors")
    flat = {}
    for name, value in content.items():  # one level of dicts inside, as embeddings have it: "string_to_param.*"
        if isinstance(name, (str, int)):
            value = value.parameters if isinstance(value, _Container) else value
            inner = {f"{name}.{key}": each for key, each in value.items() if isinstance(key, (str, int))} if isinstance(value, dict) else {str(name): value}
            flat.update({key[:_LONGEST_NAME]: each for key, each in inner.items() if isinstance(each, (StoredTensor, str, int, float))})
    return flat


def _rebuild(data: Tensor, stored: StoredTensor) -> Tensor:
    values = data[: data.numel() // _size(stored.dtype) * _size(stored.dtype)].view(stored.dtype)
    return values.as_strided(stored.shape, stored.stride, stored.offset).contiguous()


def _size(dtype: torch.dtype) -> int:
    return torch.empty((), dtype=dtype).element_size()


def _damaged(path: str | os.PathLike[str], what: str) -> NetworkFileError:
    return NetworkFileError(f"{shown(path)} is damaged or no file of torch's: {what}; get it again, or as .safetensors")
