"""The formulas of LoHa: ΔW = (left1 · right1) ⊙ (left2 · right2), and the one product that equals it. None of them knows a scale."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def hadamard_delta(left1: Tensor, right1: Tensor, left2: Tensor, right2: Tensor, shape: Sequence[int]) -> Tensor:
    """ΔW float32 in `shape`, from left [O,R,…] and right [R,I,…] of both halves; trailing 1s and a kernel's sides count as part of the columns.

    Source: Hyeon-Woo et al. 2022, "FedPara", equation 2, without its scale.
    """
    first, second = (left.float().flatten(1) @ right.float().flatten(1) for left, right in ((left1, right1), (left2, right2)))
    return (first * second).reshape(tuple(shape))


def khatri_rao_factors(left1: Tensor, right1: Tensor, left2: Tensor, right2: Tensor) -> tuple[Tensor, Tensor]:
    """Factors [O,R²] and [R²,I] float32 whose product is (left1 · right1) ⊙ (left2 · right2): from left [O,R] and right [R,I].

    The rows of the first are the Kronecker products of the rows of both lefts, the columns of the second those of the columns of both rights.

    Source: Slyusar 1999, "A family of face products of matrices": (A·B) ⊙ (C·D) = (A • C)(B ∗ D).
    """
    left = torch.einsum("or,os->ors", left1.float(), left2.float()).flatten(1)
    right = torch.einsum("ri,si->rsi", right1.float(), right2.float()).flatten(0, 1)
    return left, right
