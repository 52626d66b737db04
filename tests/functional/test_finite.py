from __future__ import annotations

import pytest
import torch

from lib_lycoris.functional.finite import is_finite

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_nan_among_many_values_is_found(dtype):
    values = torch.ones(1000)
    assert is_finite(values.to(dtype))
    values[700] = float("nan")
    assert not is_finite(values.to(dtype))


@pytest.mark.parametrize("pair", [(float("inf"), 0.0), (float("inf"), float("-inf"))])
def test_infinities_are_found_even_where_they_cancel(pair):
    assert not is_finite(torch.tensor(pair))


def test_large_finite_values_whose_sum_overflows_are_finite():
    assert is_finite(torch.full((10,), torch.finfo(torch.float32).max))


def test_whole_numbers_are_finite():
    assert is_finite(torch.tensor([2**62, 2**62]))
