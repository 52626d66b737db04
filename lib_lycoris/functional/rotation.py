"""Rotations from skew matrices, each as its difference R − I from doing nothing: near the identity R itself would round most of that difference away."""

from __future__ import annotations

import torch
from torch import Tensor


def skew_of(blocks: Tensor) -> Tensor:
    """Q = B − Bᵀ float32 for each block B of [...,b,b]."""
    blocks = blocks.float()
    return blocks - blocks.transpose(-1, -2)


def skew_from_upper(values: Tensor, size: int) -> Tensor:
    """Q float32 [k,b,b] whose upper triangle holds `values` [k,b(b−1)/2] row by row, and whose lower one their negatives; b is `size`."""
    rows, columns = torch.triu_indices(size, size, 1, device=values.device)
    upper = torch.zeros(values.shape[0], size, size, device=values.device)
    upper = upper.index_put((torch.arange(values.shape[0], device=values.device)[:, None], rows, columns), values.float())
    return upper - upper.transpose(-1, -2)


def constrained(skew: Tensor, limit: float) -> Tensor:
    """`skew` shrunk to a norm of `limit` over all its blocks together where it is longer; a limit of 0 or less is none.

    Source: Qiu et al. 2023, "Controlling Text-to-Image Diffusion by Orthogonal Finetuning" (COFT), in the form of LyCORIS 4.1.3,
    lycoris/functional/diag_oft.py; kohya's networks/oft.py differs from it by 1e-8 of a norm.
    """
    if limit <= 0:
        return skew
    return skew * (limit / (torch.linalg.vector_norm(skew) + 1e-8)).clamp(max=1)


def shortened(skew: Tensor, limit: float) -> Tensor:
    """Each block of `skew` [k,b,b] shrunk to a norm of limit / √k where it is longer.

    Source: PEFT 0.21.2, tuners/oft/layer.py (`_project_batch`).
    """
    norms = torch.linalg.vector_norm(skew, dim=(1, 2), keepdim=True)
    return skew * (limit / skew.shape[0] ** 0.5 / norms.clamp(min=torch.finfo(norms.dtype).tiny)).clamp(max=1)


def cayley_change(skew: Tensor) -> Tensor:
    """R − I for R = (I + Q)(I − Q)⁻¹ and each skew Q of [...,b,b], solved as 2·(I − Q)⁻¹·Q; of −Q it gives the transpose.

    I − Q has no eigenvalue shorter than 1, so it can always be solved.

    Source: Qiu et al. 2023, "Controlling Text-to-Image Diffusion by Orthogonal Finetuning" (Cayley parameterisation).
    """
    identity = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
    return torch.linalg.solve(identity - skew, 2 * skew)


def neumann_change(skew: Tensor, terms: int = 5) -> Tensor:
    """R − I for the first terms of the sum I + 2Q + 2Q² + … of `cayley_change`'s rotation, for each Q of [k,b,b].

    As in PEFT the last term counts once instead of twice, so that five terms are I + 2Q + 2Q² + 2Q³ + Q⁴, and three terms are what four are.

    Source: Qiu et al. 2025, "Orthogonal Finetuning Made Scalable"; PEFT 0.21.2, tuners/oft/layer.py (`_cayley_batch`).
    """
    if terms < 3:
        return 2 * max(terms - 1, 0) * skew
    change = torch.baddbmm(2 * skew, skew, skew)  # 2Q + Q², from the last term to the first: each step multiplies by Q and adds another 2Q
    for _ in range(max(terms, 4) - 3):
        change = torch.baddbmm(2 * skew, skew, change)
    return change
