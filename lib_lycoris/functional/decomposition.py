"""DoRA's split of a weight into length and direction."""

from __future__ import annotations

import torch
from torch import Tensor


def lengths(weight: Tensor, axis: int) -> Tensor:
    """The norms float32 of the weight's slices along `axis`, over all its other axes, kept as axes of 1: [O,1,…] for axis 0, [1,I,…] for axis 1.

    Summed in float64 where the device has it: a long sum in float32 is wrong in the sixth digit, which is where a fine-tuning has its own.
    """
    others = tuple(other for other in range(weight.ndim) if other != axis)
    exact = torch.float32 if weight.device.type == "mps" else torch.float64
    squares = weight.float().square().sum(others, keepdim=True, dtype=exact)
    return squares.clamp(min=torch.finfo(torch.float32).tiny).sqrt().float()  # the root has no slope at zero


def relative_gain(magnitude: Tensor, length: Tensor) -> Tensor:
    """g − 1 for the gain g = magnitude / length: exactly zero where both are equal, and finite where a slice has no length.

    Source: Liu et al. 2024, "DoRA", equation 5.
    """
    return (magnitude.float() - length) / length.clamp(min=torch.finfo(torch.float32).eps)
