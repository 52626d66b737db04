"""The formulas of LoKr: ΔW = w1 ⊗ w2, and what it adds to a layer's output by two small products. None of them knows a scale."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


def kronecker_delta(w1: Tensor, w2: Tensor, shape: Sequence[int]) -> Tensor:
    """ΔW float32 in `shape`, from w1 [A,C] and w2 [B,D,…]: its rows are A·B, its columns C·D·…; a kernel's sides in w2 count as part of the columns.

    Source: Yeh et al. 2024, "Navigating Text-To-Image Customization" (LyCORIS), equation of LoKr, without its scale.
    """
    return (w1.float()[:, None, :, None] * w2.float().flatten(1)[None, :, None, :]).reshape(tuple(shape))


def add_kronecker(total: Tensor, w1: Tensor, w2: Tensor, strength: float) -> None:
    """Adds strength · w1 ⊗ w2 to `total` [A·B,C·D·…], contiguous and of the factors' dtype, in one pass and without memory for the product."""
    w2 = w2.flatten(1)
    parts = total.view(w1.shape[0], w2.shape[0], w1.shape[1], w2.shape[1])
    parts.addcmul_(w1[:, None, :, None], w2[None, :, None, :], value=strength)


def kronecker_output(x: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    """What w1 [A,C] ⊗ w2 [B,D] adds to a linear layer's output: x [...,C·D] → [...,A·B]."""
    inner = F.linear(x.unflatten(-1, (w1.shape[1], w2.shape[1])), w2)
    return torch.matmul(w1, inner).flatten(-2)


def kronecker_conv_output(x: Tensor, w1: Tensor, w2: Tensor, stride=1, padding=0, dilation=1) -> Tensor:
    """What w1 [A,C] ⊗ w2 [B,D,K,K] adds to a convolution's output: x [N,C·D,H,W] → [N,A·B,H',W']."""
    count, places = x.shape[0], x.shape[2:]
    inner = _CONVOLUTIONS[w2.ndim](x.reshape(count * w1.shape[1], w2.shape[1], *places), w2, None, stride, padding, dilation)
    mixed = torch.matmul(w1, inner.reshape(count, w1.shape[1], -1))
    return mixed.reshape(count, w1.shape[0] * w2.shape[0], *inner.shape[2:])


def factor_pair(dimension: int, factor: int = -1) -> tuple[int, int]:
    """Two whole numbers (small, large) whose product is `dimension`; `factor` is one of them where it divides.

    Else small is the largest divisor that is neither above `factor` nor above √dimension.

    Source: LyCORIS f49d30d, lycoris/functional/general.py, `factorization`, whose sizes files have; -1 sets no bound.
    """
    if factor > 0 and dimension % factor == 0:
        return min(factor, dimension // factor), max(factor, dimension // factor)
    largest = math.isqrt(dimension) if factor < 0 else min(factor, math.isqrt(dimension))
    small = next(divisor for divisor in range(largest, 0, -1) if dimension % divisor == 0)
    return small, dimension // small
