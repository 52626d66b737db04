"""The formulas of LoRA and LoCon: ΔW = up · down, and what it adds to a layer's output. None of them knows a scale: that has one owner, the layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


def low_rank_delta(up: Tensor, down: Tensor, shape: Sequence[int]) -> Tensor:
    """ΔW float32 in `shape`, from up [O,R,…] and down [R,I,…]; trailing 1s and a kernel's sides count as part of the columns.

    Source: Hu et al. 2021, "LoRA", equation 3, without its scale.
    """
    return (up.float().flatten(1) @ down.float().flatten(1)).reshape(tuple(shape))


def tucker_delta(up: Tensor, mid: Tensor, down: Tensor, shape: Sequence[int]) -> Tensor:
    """ΔW float32 in `shape`, from up [O,R,…], mid [R,R,K,K] and down [R,I,…]; mid's first axis meets up, its second down.

    Source: LyCORIS, docs/Algo-Details.md, "Tucker decomposition" of a convolution.
    """
    return torch.einsum("np...,on,pi->oi...", mid.float(), up.float().flatten(1), down.float().flatten(1)).reshape(tuple(shape))


def fold_core(core: Tensor, down: Tensor) -> Tensor:
    """core [R,S,K,K] and down [S,I] as one right factor [R,I·K·K] float32, with which a Tucker form is a plain product.

    Source: as `tucker_delta`, its core and down contracted first.
    """
    return torch.einsum("rs...,si->ri...", core.float(), down.float()).flatten(1)


def linear_output(x: Tensor, down: Tensor, up: Tensor, values: Tensor | None = None) -> Tensor:
    """What ΔW adds to a linear layer's output: x [...,I], down [R,I], up [O,R] → [...,O], as two small products; `values` [R] go between them."""
    inner = F.linear(x, down)
    return F.linear(inner if values is None else inner * values, up)


def conv_output(x: Tensor, down: Tensor, up: Tensor, stride=1, padding=0, dilation=1, groups: int = 1, values: Tensor | None = None) -> Tensor:
    """What ΔW adds to a convolution's output: x [B,I,H,W], down [R,I/groups,K,K], up [O,R,1,1] → [B,O,H',W']; `values` [R] go between the two."""
    convolution = _CONVOLUTIONS[down.ndim]
    inner = convolution(_groups_into_batch(x, groups), down, None, stride, padding, dilation)
    if values is not None:
        inner = inner * values.reshape(-1, *(1 for _ in down.shape[2:]))
    return convolution(_groups_into_channels(inner, groups), up, groups=groups)


def tucker_output(x: Tensor, down: Tensor, mid: Tensor, up: Tensor, stride=1, padding=0, dilation=1, groups: int = 1) -> Tensor:
    """What a Tucker ΔW adds to a convolution's output: x [B,I,H,W], down [R,I/groups,1,1], mid [R,R,K,K], up [O,R,1,1] → [B,O,H',W']."""
    convolution = _CONVOLUTIONS[mid.ndim]
    inner = convolution(convolution(_groups_into_batch(x, groups), down), mid, None, stride, padding, dilation)
    return convolution(_groups_into_channels(inner, groups), up, groups=groups)


def _groups_into_batch(x: Tensor, groups: int) -> Tensor:
    # every group of a grouped convolution sees the same `down`, so the groups become rows of the batch
    return x if groups == 1 else x.reshape(x.shape[0] * groups, -1, *x.shape[2:])


def _groups_into_channels(x: Tensor, groups: int) -> Tensor:
    return x if groups == 1 else x.reshape(x.shape[0] // groups, -1, *x.shape[2:])
