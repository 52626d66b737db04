from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_lycoris.functional.low_rank import conv_output, linear_output, low_rank_delta, tucker_delta, tucker_output

SMALL = st.integers(1, 5)


def by_hand(up, mid, down):
    """ΔW of a Tucker form, one sum after the other."""
    out, into, (height, width) = up.shape[0], down.shape[1], mid.shape[2:]
    weight = torch.zeros(out, into, height, width)
    for n in range(mid.shape[0]):
        for p in range(mid.shape[1]):
            weight += up[:, n, None, None, None] * down[None, p, :, None, None] * mid[n, p]
    return weight


@settings(max_examples=20, deadline=None)
@given(out=SMALL, into=SMALL, rank=SMALL)
def test_the_delta_is_the_sum_of_outer_products(out, into, rank):
    up, down = torch.randn(out, rank), torch.randn(rank, into)
    expected = sum(torch.outer(up[:, r], down[r]) for r in range(rank))
    torch.testing.assert_close(low_rank_delta(up, down, (out, into)), expected)
    torch.testing.assert_close(linear_output(torch.eye(into), down, up), expected.T)


@settings(max_examples=20, deadline=None)
@given(out=SMALL, into=SMALL, rank=SMALL, other=SMALL, kernel=st.sampled_from([(1, 1), (3, 3), (1, 3)]))
def test_the_tucker_delta_is_its_sum_written_out(out, into, rank, other, kernel):
    up, mid, down = torch.randn(out, rank), torch.randn(rank, other, *kernel), torch.randn(other, into)
    torch.testing.assert_close(tucker_delta(up, mid, down, (out, into, *kernel)), by_hand(up, mid, down), atol=1e-5, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(out=SMALL, into=SMALL, rank=SMALL, groups=st.integers(1, 3), stride=st.integers(1, 2), padding=st.integers(0, 2), dilation=st.integers(1, 2))
def test_a_convolution_beside_gives_what_the_delta_in_the_weight_gives(out, into, rank, groups, stride, padding, dilation):
    x = torch.randn(2, into * groups, 7, 6)
    down, up = torch.randn(rank, into, 3, 3), torch.randn(out * groups, rank, 1, 1)
    weight = low_rank_delta(up, down, (out * groups, into, 3, 3))
    expected = F.conv2d(x, weight, None, stride, padding, dilation, groups)
    torch.testing.assert_close(conv_output(x, down, up, stride, padding, dilation, groups), expected, atol=1e-4, rtol=1e-4)


@settings(max_examples=20, deadline=None)
@given(out=SMALL, into=SMALL, rank=SMALL, groups=st.integers(1, 2), stride=st.integers(1, 2))
def test_a_tucker_convolution_beside_gives_what_the_delta_in_the_weight_gives(out, into, rank, groups, stride):
    x = torch.randn(2, into * groups, 6, 7)
    down, mid, up = torch.randn(rank, into, 1, 1), torch.randn(rank, rank, 3, 3), torch.randn(out * groups, rank, 1, 1)
    weight = tucker_delta(up, mid, down, (out * groups, into, 3, 3))
    expected = F.conv2d(x, weight, None, stride, 1, 1, groups)
    torch.testing.assert_close(tucker_output(x, down, mid, up, stride, 1, 1, groups), expected, atol=1e-4, rtol=1e-4)
