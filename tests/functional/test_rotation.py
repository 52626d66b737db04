from __future__ import annotations

import pytest
import torch

from lib_lycoris.functional.rotation import cayley_change, constrained, neumann_change, shortened, skew_from_upper, skew_of


def test_a_skew_matrix_gives_a_rotation_and_its_negative_the_way_back():
    skew = skew_of(torch.randn(3, 5, 5))
    rotation = cayley_change(skew) + torch.eye(5)
    torch.testing.assert_close(rotation @ rotation.transpose(1, 2), torch.eye(5).expand(3, -1, -1), atol=1e-5, rtol=0)
    torch.testing.assert_close(cayley_change(-skew) + torch.eye(5), rotation.transpose(1, 2), atol=1e-5, rtol=1e-4)


def test_more_terms_of_the_sum_come_nearer_to_the_rotation():
    skew = skew_of(0.05 * torch.randn(3, 4, 4).double()).double()
    errors = [(neumann_change(skew, terms) - cayley_change(skew)).norm().item() for terms in (1, 2, 4, 5, 6, 8)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-3 * errors[0]


def test_the_upper_triangle_is_filled_row_by_row():
    expected = torch.tensor([[0.0, 1, 2], [-1, 0, 3], [-2, -3, 0]])
    assert torch.equal(skew_from_upper(torch.tensor([[1.0, 2, 3]]), 3)[0], expected)


@pytest.mark.parametrize(("limit", "norm"), [(0.5, 0.5), (1e9, None), (0.0, None), (-1.0, None)])
def test_a_limit_holds_for_all_blocks_together(limit, norm):
    skew = skew_of(torch.randn(3, 4, 4))
    assert constrained(skew, limit).norm().item() == pytest.approx(skew.norm().item() if norm is None else norm, rel=1e-5)


def test_a_shortened_block_has_its_share_of_the_limit_and_a_short_one_stays():
    skew = skew_of(torch.randn(4, 3, 3))
    skew[0] *= 1e-6
    skew[1] = 0
    short = shortened(skew, 0.5)
    assert torch.equal(short[:2], skew[:2])
    torch.testing.assert_close(short[2:].norm(dim=(1, 2)), torch.full((2,), 0.25))
