"""The formulas of LoHa: ΔW = (left1 · right1) ⊙ (left2 · right2), and the one product that equals it. None of them knows a scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor

from .blocks import NEAR, rows_at_once


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


def add_hadamard(base: Tensor, halves: Sequence[Tensor], scale: float) -> tuple[Tensor, Callable[[Tensor], list[Tensor]]]:
    """base + scale · (left1 · right1) ⊙ (left2 · right2) as a matrix [O,I], and what gives the four gradients out of that of the sum.

    In parts whose products stay in a processor's cache: to make them a second time takes less time than to have the memory for them.

    Source: Yeh et al. 2024, "Navigating Text-To-Image Customization" (LyCORIS), appendix B: ∂left1 = (G ⊙ W2) · right1ᵀ, and the others likewise.
    """
    left1, right1, left2, right2 = halves
    step = rows_at_once(base, 2)
    parts = [slice(start, start + step) for start in range(0, len(base), step)]
    known = None
    if len(parts) == 1:
        known = left1 @ right1, left2 @ right2
        total = torch.addcmul(base, *known, value=scale)
    else:
        total = torch.empty_like(base)
        for rows in parts:
            torch.addcmul(base[rows], left1[rows] @ right1, left2[rows] @ right2, value=scale, out=total[rows])

    def pull(gradient: Tensor) -> list[Tensor]:
        given = [_part_gradients(gradient[rows], (left1[rows], right1, left2[rows], right2), known) for rows in parts]
        by_left1, by_right1, by_left2, by_right2 = zip(*given, strict=True)
        joined = [torch.cat(by_left1), reduce(Tensor.add_, by_right1), torch.cat(by_left2), reduce(Tensor.add_, by_right2)]
        return [own if scale == 1 else own.mul_(scale) for own in joined]

    return total, pull


def _part_gradients(gradient: Tensor, halves: Sequence[Tensor], known: tuple[Tensor, Tensor] | None) -> tuple[Tensor, ...]:
    left1, right1, left2, right2 = halves
    first, second = known or (left1 @ right1, left2 @ right2)
    by_first, by_second = second.mul_(gradient), first.mul_(gradient)  # in their memory: the next time they are made anew anyway
    return by_first @ right1.t(), left1.t() @ by_first, by_second @ right2.t(), left2.t() @ by_second


def khatri_rao_with_gradients(halves: Sequence[Tensor]) -> tuple[tuple[Tensor, Tensor], Callable[[Tensor, Tensor], list[Tensor]]]:
    """`khatri_rao_factors`, and what gives the four gradients out of those of the two factors."""
    left1, right1, left2, right2 = halves
    rows, ranks1, ranks2, columns = left1.shape[0], left1.shape[1], left2.shape[1], right1.shape[1]
    up = (left1[:, :, None] * left2[:, None, :]).view(rows, -1)
    down = (right1[:, None, :] * right2[None, :, :]).view(-1, columns)

    def pull(by_up: Tensor, by_down: Tensor) -> list[Tensor]:
        by_up, by_down = by_up.reshape(rows, ranks1, ranks2), by_down.reshape(ranks1, ranks2, columns)
        return [
            torch.bmm(by_up, left2[:, :, None]).squeeze(2), _weighted_sum(by_down, right2, 1),
            torch.bmm(left1[:, None, :], by_up).squeeze(1), _weighted_sum(by_down, right1, 0),
        ]

    return (up, down), pull


def _weighted_sum(tensor: Tensor, weights: Tensor, axis: int) -> Tensor:
    """Σ over n of tensor[…n…] · weights[n], each [N]; where memory for all products would cost more, with a pass for each."""
    if tensor.numel() <= NEAR or tensor.device.type != "cpu":
        return (tensor * weights.unsqueeze(1 - axis)).sum(axis)
    parts = tensor.unbind(axis)
    total = parts[0] * weights[0]
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        total.addcmul_(part, weight)
    return total
