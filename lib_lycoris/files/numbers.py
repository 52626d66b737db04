"""Whether a file's bytes are numbers: NaN and infinity found at the speed of memory, without a mask, a cast or a copy."""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import Tensor

from lib_lycoris.errors import NetworkFileError, shown

PIECE = 1 << 19
"""Bytes that are looked at in one go: few enough for a second look to find them in the processor's cache."""

# Infinity's bits, sign aside. Read as whole numbers, a format's finite values stay below them: those with the sign as unsigned numbers, the others as signed.
# (e4m3fn has no infinity; its one NaN stands there.)
_INFINITIES = {
    torch.float64: 0x7FF << 52,
    torch.float32: 0xFF << 23,
    torch.bfloat16: 0xFF << 7,
    torch.float16: 0x1F << 10,
    **{getattr(torch, name): bits for name, bits in (("float8_e5m2", 0x7C), ("float8_e4m3fn", 0x7F)) if hasattr(torch, name)},
}


def find_infinite(data: np.ndarray, dtype: torch.dtype) -> int | None:
    """Where in these bytes [N] (uint8) the first value of `dtype` begins that is NaN or infinite, in bytes; None when all are finite, as whole numbers are."""
    infinity = _INFINITIES.get(dtype)
    if infinity is None or not len(data):
        return None
    size = torch.empty((), dtype=dtype).element_size()
    sign = 1 << (8 * size - 1)
    for start in range(0, len(data), PIECE):
        bits = data[start : start + PIECE].view(f"<u{size}")
        if bits.max() >= infinity | sign or bits.view(f"<i{size}").max() >= infinity:
            return start + size * int(np.argmax((bits & (sign - 1)) >= infinity))
    return None


def is_finite(tensor: Tensor) -> bool:
    """Whether a contiguous tensor on the CPU holds no NaN and no infinity."""
    return tensor.numel() == 0 or find_infinite(tensor.detach().reshape(-1).view(torch.uint8).numpy(), tensor.dtype) is None


def not_finite(path: str | os.PathLike[str], name: str) -> NetworkFileError:
    """The error for a file whose tensor `name` holds NaN or infinity."""
    advice = "the file is damaged or its training failed; get it again, or train at a lower rate"
    return NetworkFileError(f"{shown(path)}: tensor {shown(name)} holds values that are not finite (NaN or infinite): {advice}")
