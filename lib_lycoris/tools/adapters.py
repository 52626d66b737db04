"""T2I-Adapters as the command line looks into them and rewrites them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lib_lycoris.errors import ConfigError, NetworkFileError, shown
from lib_lycoris.files.adapters import open_adapter_file
from lib_lycoris.library.adapters import open_adapter, write_adapter

FORMATS = {"tencent": "tencent", "diffusers": "diffusers"}


def inspect_adapter(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What an adapter's file is, in plain values, its numbers checked; None where the file is something else.

    Raises:
        NetworkFileError: it is an adapter and of no use.
    """
    if not _is_adapter(path):
        return None
    arranged = open_adapter_file(path)
    values = arranged.file.read(arranged.keys.values(), check=True)
    return {
        "file": str(arranged.path), **arranged.facts.to_dict(), "algorithms": [], "layers": len(arranged.keys), "ranks": {}, "norms": {},
        "parameters": sum(value.numel() for value in values.values()), "bytes": sum(value.numel() * value.element_size() for value in values.values()),
        "dtypes": sorted({str(value.dtype).removeprefix("torch.") for value in values.values()}), "metadata": arranged.file.metadata,
    }


def convert_adapter(path: str | os.PathLike[str], out: str | os.PathLike[str], to: str) -> Path | None:
    """Where an adapter was written in another spelling, its numbers and their dtype unchanged; None where the file is something else.

    Args:
        path: the file, or a folder of diffusers'.
        out: the .safetensors file to write; for diffusers its config.json is written beside it.
        to: "tencent" or "diffusers".

    Raises:
        ConfigError: an adapter has no such form, or `out` is no .safetensors or the file itself.
        NetworkFileError: it is an adapter and of no use, or diffusers knows none like it.
    """
    if not _is_adapter(path):
        if to == "tencent":
            raise ConfigError(f"{shown(path)} is no T2I-Adapter, and only those have TencentARC's form; choose kohya, diffusers, peft or locon")
        return None
    if to not in FORMATS:
        raise ConfigError(f"{shown(path)} is a T2I-Adapter, which has no {to} form; choose diffusers or tencent")
    target, arranged = Path(out), open_adapter_file(path)
    if target.suffix.lower() != ".safetensors":
        raise ConfigError(f"{shown(target)}: expected a name that ends in .safetensors")
    if target.exists() and target.samefile(arranged.path):
        raise ConfigError(f"{shown(target)} is the file itself; write to another name")
    dtypes = {value.dtype for value in arranged.file.read(arranged.keys.values()).values()}
    write_adapter(target, open_adapter(path), arranged.file.metadata, FORMATS[to], dtype=dtypes.pop() if len(dtypes) == 1 else None)
    return target


def _is_adapter(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a T2I-Adapter, if perhaps a damaged one."""
    try:
        open_adapter_file(path)
    except NetworkFileError as error:
        return "the adapter's" in str(error) or "residual blocks" in str(error)
    return True
