"""Butterfly products: several block-diagonal rotations, each over places that lie twice as far apart as the one before."""

from __future__ import annotations

import torch
from torch import Tensor


def butterfly_change(x: Tensor, stages: Tensor) -> Tensor:
    """What the stages' product changes of x [N,…]: B_M · … · B_1 · x − x, where stage i's blocks `stages[i]` [k,b,b] hold R − I.

    Stage i meets runs of 2ⁱ·b places; its block number j there takes the j-th half block (b/2 places) of the run's first half and that of its second half.

    Source: Liu et al. 2024, "Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization".
    """
    flat = x.reshape(x.shape[0], -1)
    change = torch.zeros_like(flat)
    for index, blocks in enumerate(stages):
        change = change + _stage(flat + change, blocks, 2**index)
    return change.reshape(x.shape)


def paired_by_halves(stages: Tensor) -> Tensor:
    """Blocks [M,k,b,b] over pairs (place, half), as LyCORIS has them, in the order (half, place) of `butterfly_change`."""
    count, k, b = stages.shape[:3]
    return stages.reshape(count, k, b // 2, 2, b // 2, 2).permute(0, 1, 3, 2, 5, 4).reshape(stages.shape)


def _stage(x: Tensor, blocks: Tensor, width: int) -> Tensor:
    k, b = blocks.shape[:2]
    if width == 1:
        return torch.bmm(blocks, x.reshape(k, b, -1)).reshape(x.shape)
    halves = x.reshape(k // width, 2, width, b // 2, -1).transpose(1, 2).reshape(k, b, -1)
    return torch.bmm(blocks, halves).reshape(k // width, width, 2, b // 2, -1).transpose(1, 2).reshape(x.shape)
