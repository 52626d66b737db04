from __future__ import annotations

import pytest
import torch

from lib_lycoris.functional.blocks import add_blocks_to_columns, add_blocks_to_rows, multiply_blocks

SHAPES = [((6,), 0), ((6, 5), 0), ((6, 5, 3, 3), 0), ((4, 6), -1), ((2, 3, 6), -1), ((2, 6, 4, 5), 1), ((1, 6, 4), 1), ((0, 6), 1)]


@pytest.mark.parametrize(("shape", "dim"), SHAPES)
@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_blocks_along_any_axis_are_the_whole_matrix_along_it(shape, dim, count):
    x, blocks = torch.randn(shape), torch.randn(count, 6 // count, 6 // count)
    whole = torch.block_diag(*blocks)
    torch.testing.assert_close(multiply_blocks(blocks, x, dim), (whole @ x.movedim(dim, 0).reshape(6, -1)).reshape(x.movedim(dim, 0).shape).movedim(0, dim))


def test_blocks_are_added_in_place():
    total, weight, blocks = torch.randn(6, 4, 3), torch.randn(6, 4, 3), torch.randn(3, 2, 2)
    expected = total + 0.5 * (torch.block_diag(*blocks) @ weight.flatten(1)).reshape(6, 4, 3)
    add_blocks_to_rows(total, blocks, weight, 0.5)
    torch.testing.assert_close(total, expected)
    expected = total + 0.5 * (weight.flatten(1) @ torch.block_diag(*blocks, *blocks)).reshape(6, 4, 3)
    add_blocks_to_columns(total, torch.cat([blocks, blocks]), weight, 0.5)
    torch.testing.assert_close(total, expected)
