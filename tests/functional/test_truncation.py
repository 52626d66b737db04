"""Singular values of products and of large matrices, and how many of them hold how much."""

from __future__ import annotations

import pytest
import torch

from lib_lycoris.functional.truncation import balanced_factors, matrix_svd, product_energy, product_svd, rank_for_energy


def rand(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (330, 400), (420, 330)], ids=str)
def test_a_matrix_is_its_parts_also_where_the_gram_matrix_is_used(shape):
    matrix = rand(0, *shape)
    u, values, vt = matrix_svd(matrix)
    assert torch.allclose((u * values) @ vt, matrix, atol=1e-4)
    assert torch.allclose(values, torch.linalg.svdvals(matrix.double()).float(), rtol=1e-5)
    assert torch.allclose(u.T @ u, torch.eye(len(values)), atol=1e-4)


def test_a_large_matrix_of_low_rank_has_exact_zeros_beyond_it_and_nothing_that_is_not_finite():
    matrix = rand(0, 400, 3) @ rand(1, 3, 500)
    u, values, vt = matrix_svd(matrix)
    assert (values[:3] > 0).all()
    assert not values[3:].any()
    assert torch.isfinite(vt).all()
    assert torch.allclose((u[:, :3] * values[:3]) @ vt[:3], matrix, atol=1e-4)


@pytest.mark.parametrize(("rows", "rank", "columns"), [(20, 3, 30), (20, 25, 30), (6, 40, 7), (8, 8, 8)])
def test_a_product_has_the_singular_values_of_the_matrix_that_it_is(rows, rank, columns):
    up, down = rand(0, rows, rank), rand(1, rank, columns)
    u, values, vt = product_svd(up, down)
    assert torch.allclose((u * values) @ vt, up @ down, atol=1e-4)
    count = min(rows, columns, rank)
    assert torch.allclose(values[:count], torch.linalg.svdvals((up @ down).double())[:count].float(), rtol=1e-4, atol=1e-4)
    assert product_energy(up, down) == pytest.approx((up.double() @ down.double()).square().sum().item(), rel=1e-9)


def test_the_rank_for_an_energy_is_the_smallest_that_reaches_it():
    values = torch.tensor([3.0, 2.0, 1.0, 0.0])  # energies 9, 4, 1, 0 of 14
    assert [rank_for_energy(values, share) for share in (0.1, 9 / 14, 0.65, 13 / 14, 0.93, 1.0)] == [1, 1, 2, 2, 3, 3]
    assert rank_for_energy(torch.zeros(4), 1.0) == 0
    assert rank_for_energy(torch.zeros(0), 0.5) == 0
    assert rank_for_energy(values, 0.9, total=100.0) == 4


def test_balanced_factors_multiply_to_the_matrix_and_share_its_size():
    u, values, vt = matrix_svd(rand(0, 6, 8) * 1e4)
    up, down = balanced_factors(u, values, vt)
    assert torch.allclose(up @ down, (u * values) @ vt, rtol=1e-4, atol=1e-1)
    assert up.norm().item() == pytest.approx(down.norm().item(), rel=1e-4)
