from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lib_lycoris.functional.kronecker import add_kronecker, factor_pair, kronecker_conv_output, kronecker_delta, kronecker_output


def test_every_block_is_the_large_factor_times_an_entry_of_the_small_one():
    w1, w2 = torch.randn(2, 3), torch.randn(4, 5)
    delta = kronecker_delta(w1, w2, (8, 15))
    for row in range(2):
        for column in range(3):
            torch.testing.assert_close(delta[4 * row : 4 * row + 4, 5 * column : 5 * column + 5], w1[row, column] * w2)
    torch.testing.assert_close(delta, torch.kron(w1, w2))


def test_a_flat_large_factor_of_a_convolution_means_the_same():
    w1, w2 = torch.randn(2, 3), torch.randn(4, 5, 3, 3)
    expected = torch.kron(w1[:, :, None, None], w2)
    for form in (w2, w2.flatten(1)):
        torch.testing.assert_close(kronecker_delta(w1, form, (8, 15, 3, 3)), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adding_in_place_adds_the_product(dtype):
    w1, w2, total = torch.randn(2, 3, dtype=dtype), torch.randn(4, 5, 3, 3, dtype=dtype), torch.randn(8, 15, 3, 3, dtype=dtype)
    expected = total + 0.3 * torch.kron(w1[:, :, None, None], w2)
    add_kronecker(total, w1, w2, 0.3)
    torch.testing.assert_close(total, expected)


def test_two_small_products_give_the_output_of_the_large_one():
    w1, w2 = torch.randn(2, 3), torch.randn(4, 5)
    x = torch.randn(2, 7, 15)
    torch.testing.assert_close(kronecker_output(x, w1, w2), F.linear(x, torch.kron(w1, w2)), atol=1e-4, rtol=1e-4)
    kernel = torch.randn(4, 5, 3, 2)
    x = torch.randn(2, 15, 9, 8)
    expected = F.conv2d(x, torch.kron(w1[:, :, None, None], kernel), None, 2, (1, 0), 2)
    torch.testing.assert_close(kronecker_conv_output(x, w1, kernel, 2, (1, 0), 2), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("factor", [-1, 1, 2, 3, 4, 8, 10, 16, 100])
def test_the_two_sizes_are_those_that_lycoris_takes(factor):
    factorization = pytest.importorskip("lycoris.functional.general").factorization
    for dimension in (1, 2, 7, 12, 127, 128, 250, 320, 360, 640, 768, 1280, 10240):
        assert factor_pair(dimension, factor) == tuple(factorization(dimension, factor)), dimension
