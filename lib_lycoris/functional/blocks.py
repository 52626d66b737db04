"""Products with block-diagonal matrices, never built whole: blocks [k,b,b] times the k runs of b values along one axis of a tensor."""

from __future__ import annotations

import math

import torch
from torch import Tensor

NEAR = 1 << 17
"""So many values stay in a processor's own cache, and their memory is not asked of the system anew each time."""


def rows_at_once(weight: Tensor, tensors: int = 1) -> int:
    """How many rows of `weight` [O,…], or of so many tensors like it, a processor does best to work through at once, at least one; other devices: all."""
    rows = weight.shape[0]
    return max(1, rows * NEAR // max(tensors * weight.numel(), 1)) if weight.device.type == "cpu" else max(rows, 1)


def multiply_blocks(blocks: Tensor, x: Tensor, dim: int) -> Tensor:
    """diag(blocks) · x along axis `dim` of x, which has k·b places, in x's shape; blocks [k,b,b]."""
    k, b = blocks.shape[:2]
    dim %= x.ndim
    before, after = math.prod(x.shape[:dim]), math.prod(x.shape[dim + 1 :])
    if after == 1:
        runs = x.reshape(before, k, b).transpose(0, 1)
        return torch.bmm(runs, blocks.transpose(1, 2)).transpose(0, 1).reshape(x.shape)
    if before == 1:
        return torch.bmm(blocks, x.reshape(k, b, after)).reshape(x.shape)
    return torch.einsum("kij,nkjp->nkip", blocks, x.reshape(before, k, b, after)).reshape(x.shape)


def add_blocks_to_rows(total: Tensor, blocks: Tensor, weight: Tensor, strength: float) -> None:
    """Adds strength · diag(blocks) · weight to `total` [k·b,…] in place, in one pass; `total` lies in memory row by row and is of the others' dtype."""
    k, b = blocks.shape[:2]
    total.view(k, b, -1).baddbmm_(blocks, weight.reshape(k, b, -1), alpha=strength)


def add_blocks_to_columns(total: Tensor, blocks: Tensor, weight: Tensor, strength: float) -> None:
    """Adds strength · weight · diag(blocks) to `total` [O,…] of k·b columns in place, in one pass; `total` lies in memory row by row."""
    k, b = blocks.shape[:2]
    rows = total.shape[0]
    total.view(rows, k, b).transpose(0, 1).baddbmm_(weight.reshape(rows, k, b).transpose(0, 1), blocks, alpha=strength)
