"""Matrices as sums of rank-one parts, strongest first: singular values of a product without the product, and how many parts keep a share of the energy.

The energy of a matrix is the sum of its squared singular values, which is its squared Frobenius norm.
"""

from __future__ import annotations

import torch
from torch import Tensor

_DIRECT = 320
"""Up to this smaller side LAPACK's own SVD is used; above it the eigenvectors of the Gram matrix."""


def matrix_svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(U [O,R], σ [R], Vᵀ [R,N]) float32 of a matrix [O,N], largest first; R is the smaller side.

    Small matrices take LAPACK's SVD. Larger ones take the eigenvectors of the smaller Gram matrix in float64, several times faster for the shapes of
    convolutions: singular values below 1e-7 of the largest, what float32 holds beside it, are set to zero.
    """
    matrix = matrix.float()
    return torch.linalg.svd(matrix, full_matrices=False) if min(matrix.shape) <= _DIRECT else _by_gram(matrix)


def product_svd(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(U [O,R], σ [R], Vᵀ [R,N]) float32 of up [O,R] · down [R,N], exact up to rounding.

    Where R is less than both sides the product is never formed: QR of both factors, then the SVD of an R×R matrix.
    """
    if up.shape[1] >= min(up.shape[0], down.shape[1]):
        return matrix_svd((up.double() @ down.double()).float())
    left, left_core = torch.linalg.qr(up.double())
    right, right_core = torch.linalg.qr(down.double().T)
    u, values, vt = torch.linalg.svd(left_core @ right_core.T, full_matrices=False)
    return (left @ u).float(), values.float(), (vt @ right.T).float()


def rank_for_energy(values: Tensor, energy: float, total: float | None = None) -> int:
    """How many leading parts have at least the share `energy` (0..1) of the whole energy `total` (None: that of all `values`); 0 for a matrix of zeros."""
    squares = values.double().square()
    total = squares.sum().item() if total is None else total
    if total <= 0:  # also where there is no value at all
        return 0
    # a share of 1 asks for everything that rounding leaves: the last digits of the sums must not ask for a part more
    enough = torch.nonzero(squares.cumsum(0) >= energy * total * (1 - 1e-12))
    return len(values) if len(enough) == 0 else int(enough[0]) + 1


def balanced_factors(u: Tensor, values: Tensor, vt: Tensor) -> tuple[Tensor, Tensor]:
    """up [O,R] and down [R,N] with up · down = U diag(σ) Vᵀ and √σ in each, so that neither runs out of half precision's range."""
    root = values.clamp(min=0).sqrt()
    return u * root, root[:, None] * vt


def product_energy(up: Tensor, down: Tensor) -> float:
    """‖up · down‖² (Frobenius) of up [O,R] and down [R,N], from their R×R Gram matrices where R is small."""
    if up.shape[1] >= min(up.shape[0], down.shape[1]):
        return (up.double() @ down.double()).square().sum().item()
    up, down = up.double(), down.double()
    return max(((up.T @ up) * (down @ down.T)).sum().item(), 0.0)


def _by_gram(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if matrix.shape[0] > matrix.shape[1]:
        u, values, vt = _by_gram(matrix.T)
        return vt.T, values, u.T
    wide = matrix.double()
    squares, u = torch.linalg.eigh(wide @ wide.T)
    squares, u = squares.flip(0).clamp(min=0), u.flip(1)
    values = squares.sqrt()
    faint = values <= values[:1] * 1e-7  # the Gram matrix's own rounding: what stands there is noise
    values = torch.where(faint, torch.zeros_like(values), values)
    vt = torch.where(faint[:, None], torch.zeros((), dtype=torch.float64), (u.T @ wide) / values.clamp(min=torch.finfo(torch.float64).tiny)[:, None])
    return u.float(), values.float(), vt.float()
