from __future__ import annotations

import pytest
import torch

from lib_lycoris.functional import blocks, hadamard
from lib_lycoris.functional.hadamard import add_hadamard, hadamard_delta, khatri_rao_factors, khatri_rao_with_gradients


def halves(out=5, into=6, ranks=(3, 2)):
    return [torch.randn(size) for rank in ranks for size in ((out, rank), (rank, into))]


def test_every_entry_is_the_product_of_two_sums():
    left1, right1, left2, right2 = halves()
    delta = hadamard_delta(left1, right1, left2, right2, (5, 2, 3))
    assert delta.shape == (5, 2, 3)
    for row in range(5):
        for column in range(6):
            first = sum(left1[row, rank] * right1[rank, column] for rank in range(3))
            second = sum(left2[row, rank] * right2[rank, column] for rank in range(2))
            torch.testing.assert_close(delta.flatten(1)[row, column], first * second, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("ranks", [(1, 1), (3, 3), (3, 2)])
def test_the_khatri_rao_factors_multiply_to_the_same(ranks):
    parts = halves(ranks=ranks)
    left, right = khatri_rao_factors(*parts)
    assert left.shape == (5, ranks[0] * ranks[1]) and right.shape == (ranks[0] * ranks[1], 6)
    torch.testing.assert_close(left @ right, hadamard_delta(*parts, (5, 6)), atol=1e-5, rtol=1e-5)


def test_half_precision_is_multiplied_in_float32():
    parts = [part.half() for part in halves(ranks=(40, 40))]
    exact = hadamard_delta(*(part.double().float() for part in parts), (5, 6))
    assert torch.equal(hadamard_delta(*parts, (5, 6)), exact)
    assert all(factor.dtype == torch.float32 for factor in khatri_rao_factors(*parts))


@pytest.mark.parametrize("near", [1 << 17, 24, 1])
def test_sums_and_gradients_are_the_same_in_one_part_and_in_many(near, monkeypatch):
    monkeypatch.setattr(blocks, "NEAR", near)
    monkeypatch.setattr(hadamard, "NEAR", near)
    parts = [part.double().requires_grad_(True) for part in halves(7, 6, (3, 3))]
    left1, right1, left2, right2 = parts
    base, seed = torch.randn(7, 6, dtype=torch.float64), torch.randn(7, 6, dtype=torch.float64)
    wanted = base - 0.3 * (left1 @ right1) * (left2 @ right2)
    expected = torch.autograd.grad(wanted, parts, seed)
    with torch.no_grad():
        total, pull = add_hadamard(base, parts, -0.3)
        gradients = pull(seed)
        (up, down), pull_factors = khatri_rao_with_gradients(parts)
        through_factors = pull_factors(-0.3 * seed @ down.t(), up.t() @ seed * -0.3)
    torch.testing.assert_close(total, wanted)
    torch.testing.assert_close(up @ down * -0.3, wanted.detach() - base)
    for own, other, exact in zip(gradients, through_factors, expected, strict=True):
        torch.testing.assert_close(own, exact)
        torch.testing.assert_close(other, exact)
