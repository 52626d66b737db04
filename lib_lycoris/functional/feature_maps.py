"""Feature maps of pictures: sizes that follow a UNet's, and parts of pictures."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def pad_to_multiple(picture: Tensor, factor: int) -> Tensor:
    """[N,C,H,W] with its right and lower edge repeated until both sides are multiples of `factor`; itself where they are."""
    height, width = picture.shape[-2:]
    right, below = -width % factor, -height % factor
    return F.pad(picture, (0, right, 0, below), mode="replicate") if right or below else picture


def halve(x: Tensor) -> Tensor:
    """The means over 2 × 2 cells [N,C,⌈H/2⌉,⌈W/2⌉]; an odd edge is the mean of what is there. A UNet's strided convolutions round up too."""
    return F.avg_pool2d(x, 2, 2, ceil_mode=True)


def resize_map(feature: Tensor, size: tuple[int, int]) -> Tensor:
    """[N,C,*size]: means where it shrinks, bilinear where it grows; itself where the size is that already."""
    if tuple(feature.shape[-2:]) == tuple(size):
        return feature
    if feature.shape[-2] >= size[0] and feature.shape[-1] >= size[1]:
        return F.interpolate(feature, size=tuple(size), mode="area")
    return F.interpolate(feature, size=tuple(size), mode="bilinear", align_corners=False)


def mask_map(feature: Tensor, mask: Tensor) -> Tensor:
    """[N,C,h,w] times a region's mask [N or 1,1,H,W] of 0…1, which is brought to its size."""
    return feature * resize_map(mask.to(feature.device, feature.dtype), tuple(feature.shape[-2:]))


def pick_channels(picture: Tensor, channels: int) -> Tensor:
    """[N,channels,H,W]: a gray picture is its first channel, and one channel stands for all where more are wanted."""
    if channels == 1:
        return picture[:, :1]
    return picture.expand(-1, channels, -1, -1) if picture.shape[1] == 1 else picture


def weighted_sum(maps: Sequence[Sequence[Tensor]], weights: Sequence[Sequence[float]]) -> list[Tensor]:
    """Σ weight · map over several adapters for each place, each map [N or 1,C,h,w].

    Args:
        maps: for each adapter its maps.
        weights: for each adapter a weight for each map.

    Source: Mou et al. 2023 (arXiv:2302.08453), equation 4.
    """
    total = [feature * weight for feature, weight in zip(maps[0], weights[0], strict=True)]
    for features, factors in zip(maps[1:], weights[1:], strict=True):
        total = [so_far + feature * weight for so_far, feature, weight in zip(total, features, factors, strict=True)]
    return total
