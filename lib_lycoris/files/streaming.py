"""Checkpoints one tensor at a time: read where it is needed, written as it is made, so that a model of many gigabytes never stands in memory whole."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lib_lycoris.errors import CheckpointError, LycoError, NetworkFileError, shown
from lib_lycoris.files.atomic import write_whole
from lib_lycoris.files.reader import open_tensor_file
from lib_lycoris.files.regular import open_regular
from lib_lycoris.files.safetensors import read_header, serialise

Shapes = Mapping[str, "tuple[torch.dtype, tuple[int, ...]]"]


@dataclass(frozen=True)
class TensorStore:
    """A file of tensors: what it holds, and `read` for one tensor by name, fresh from the disk (a pickle is read whole, once)."""

    tensors: Shapes
    metadata: dict[str, str]
    read: Callable[[str], Tensor]


def open_store(path: str | os.PathLike[str]) -> TensorStore:
    """The tensors of a checkpoint, safetensors or a pickle of torch's; nothing but the header of a safetensors file is read yet.

    Raises:
        CheckpointError: there is no such file, or it can't be read as either.
    """
    try:
        return _open_safetensors(path)
    except NetworkFileError:
        pass  # whatever else it is, or what is wrong with it, the door to every form says
    try:
        tensors = open_tensor_file(path).read()
    except NetworkFileError as error:
        raise CheckpointError(str(error)) from error
    return TensorStore({name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}, {}, tensors.__getitem__)


def write_stream(path: str | os.PathLike[str], tensors: Shapes, metadata: Mapping[str, str], make: Callable[[str], Tensor]) -> None:
    """Writes a safetensors file of these dtypes and shapes; `make` is asked for each tensor when its turn comes. The file appears whole or not at all.

    Raises:
        LycoError: the folder is missing, full or not writable; an older file is unchanged.
    """
    # The header knows the order; tensors on "meta" have a dtype and a shape and no bytes.
    header = next(serialise({name: torch.empty(shape, dtype=dtype, device="meta") for name, (dtype, shape) in tensors.items()}, metadata))
    order = [name for name in json.loads(bytes(header)[8:]) if name != "__metadata__"]

    def pieces() -> Iterator[bytes | memoryview]:
        yield header
        for name in order:
            tensor = make(name)
            if (tensor.dtype, tuple(tensor.shape)) != tensors[name]:
                raise LycoError(f"{shown(path)} was not written: {shown(name)} became {tensor.dtype} {list(tensor.shape)} in place of {tensors[name]}")
            yield memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())

    write_whole(path, pieces())


def _open_safetensors(path: str | os.PathLike[str]) -> TensorStore:
    header = read_header(path)

    def read(name: str) -> Tensor:
        dtype, shape = header.tensors[name]
        begin, end = header.spans[name]
        data = torch.empty(end - begin, dtype=torch.uint8)
        with open_regular(path) as file:
            file.seek(header.data_start + begin)
            count = file.readinto(memoryview(data.numpy())) if end > begin else 0
        if count != end - begin:
            raise CheckpointError(f"{shown(path)} was cut off while it was read: {shown(name)} has {count} of {end - begin} bytes; get it again")
        return data.view(dtype).reshape(shape)

    return TensorStore(header.tensors, header.metadata, read)
