from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib_lycoris.files.numbers import PIECE, find_infinite, is_finite

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2, torch.float8_e4m3fn]
WHOLE = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]


def every_pattern(dtype):
    """All values of a type of one or two bytes; of a wider one those around zero, the largest, infinity and NaN, of both signs."""
    size = torch.empty((), dtype=dtype).element_size()
    if size <= 2:
        return torch.arange(256**size, dtype=torch.int32).to({1: torch.uint8, 2: torch.int16}[size]).view(dtype)
    info = torch.finfo(dtype)
    numbers = torch.tensor([0.0, -0.0, 1.0, -1.0, info.max, info.min, info.tiny, -info.tiny, float("inf"), float("-inf"), float("nan")], dtype=dtype)
    quiet = numbers.view({4: torch.int32, 8: torch.int64}[size])
    return torch.cat([quiet, quiet[-3:] + 1, quiet[-1:] | torch.iinfo(quiet.dtype).min, quiet[4:6] - 1]).view(dtype)


@pytest.mark.parametrize("dtype", FLOATS)
def test_each_value_is_told_as_torch_tells_it(dtype):
    values = every_pattern(dtype)
    expected = torch.isfinite(values.to(torch.float64))
    told = [is_finite(value.reshape(1)) for value in values[:: max(1, len(values) // 3000)]]
    assert told == expected[:: max(1, len(values) // 3000)].tolist()
    assert is_finite(values[expected]) and not is_finite(values)
    bits = values.view(torch.uint8).reshape(len(values), -1)
    assert find_infinite(bits.reshape(-1).numpy(), dtype) == int((~expected).int().argmax()) * values.element_size()


@pytest.mark.parametrize("dtype", WHOLE)
def test_whole_numbers_are_always_finite(dtype):
    assert is_finite(torch.full((3,), 1, dtype=dtype)) and find_infinite(torch.full((16,), 255, dtype=torch.uint8).numpy(), dtype) is None


@given(st.integers(0, 3 * PIECE // 4), st.sampled_from([float("nan"), float("inf"), float("-inf")]))
def test_one_bad_value_is_found_wherever_it_stands(place, value):
    values = torch.zeros(3 * PIECE // 4 + 1)
    values[place] = value
    assert find_infinite(values.view(torch.uint8).numpy(), torch.float32) == 4 * place


def test_nothing_is_finite():
    assert is_finite(torch.empty(0, 3)) and find_infinite(torch.empty(0, dtype=torch.uint8).numpy(), torch.float32) is None
