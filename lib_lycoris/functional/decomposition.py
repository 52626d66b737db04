"""DoRA's split of a weight into length and direction."""

from __future__ import annotations

import torch
from torch import Tensor

from lib_lycoris.functional.blocks import rows_at_once


def lengths(weight: Tensor, axis: int) -> Tensor:
    """The norms of the weight's slices along `axis`, over all its other axes, kept as axes of 1: [O,1,…] for axis 0, [1,I,…] for axis 1.

    In float64 where the device has it: a long sum in float32 is wrong in the sixth digit, which is where a fine-tuning has its own.
    """
    others = tuple(other for other in range(weight.ndim) if other != axis)
    exact = torch.float32 if weight.device.type == "mps" else torch.float64
    sums = [rows.float().square().sum(others, keepdim=True, dtype=exact) for rows in weight.split(rows_at_once(weight))]
    squares = torch.cat(sums) if axis == 0 else sum(sums)
    return squares.clamp(min=torch.finfo(torch.float32).tiny).sqrt()  # the root has no slope at zero


def relative_gain(magnitude: Tensor, length: Tensor) -> Tensor:
    """g − 1 float32 for the gain g = magnitude / length, where the length may be of more digits than the magnitude.

    Exactly zero where the magnitude is the length as rounded to float32, so that a fresh magnitude changes nothing; finite where a slice has no length.

    Source: Liu et al. 2024, "DoRA", equation 5.
    """
    gain = (magnitude.to(length) - length) / length.clamp(min=torch.finfo(torch.float32).eps)
    fresh = magnitude.float() == length.float()
    return (gain - torch.where(fresh, gain, 0.0).detach()).float()  # its gradient stays
