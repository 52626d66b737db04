"""What the kinds that rotate share: checks of their blocks and of the factors beside them."""

from __future__ import annotations

import math

from torch import Tensor

from lib_lycoris.errors import NetworkFileError, shown
from lib_lycoris.networks import parts

LIMIT = 1e4
"""The largest value of a block: a rotation's are of the order of 1 and below, and up to here I − Q is solved in float32 to three digits."""


def check_blocks(name: str, part: str, blocks: Tensor, dimensions: int) -> None:
    """Raises NetworkFileError unless `blocks` are as high as wide, of so many dimensions, and no value is beyond any rotation."""
    parts.check_values(name, {part: blocks}, (dimensions,))
    if blocks.shape[-1] != blocks.shape[-2]:
        raise parts.misfit(name, f"{part} {list(blocks.shape)}: blocks as high as wide are needed")
    check_size(name, part, blocks)


def check_size(name: str, part: str, values: Tensor) -> None:
    """Raises NetworkFileError where a value is beyond any rotation."""
    values = values.float() if values.element_size() == 1 else values  # torch has no largest of 8-bit floats
    largest = max(abs(value) for value in (values.max().item(), values.min().item()))
    if largest > LIMIT:
        raise NetworkFileError(f"layer {shown(name)}: {part} holds {largest:g}, which no rotation needs; the file is damaged, get it again")


def check_factors(name: str, part: str, factors: Tensor | None, size: int | None = None) -> None:
    """Raises NetworkFileError unless `factors`, where there are any, are a vector ([N], [N,1,…] or [1,N,…]), of so many values where `size` says it."""
    if factors is None:
        return
    parts.check_values(name, {part: factors}, range(1, 6))
    long = max(factors.shape)
    if factors.numel() != long or math.prod(factors.shape[:2]) != long or size not in (None, long):
        raise parts.misfit(name, f"{part} {list(factors.shape)}: a vector{'' if size is None else f' of {size} values'} is needed")
