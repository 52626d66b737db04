"""Light adapters: the same maps as a full adapter's, through blocks of a quarter of the width.

Source: TencentARC/T2I-Adapter, branch SD, Adapter_light; Mou et al. 2023 (arXiv:2302.08453), section 4.4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib_lycoris.functional.feature_maps import halve

from .full import CHANNELS
from .parts import PictureAdapter, check_make


class LightAdapter(PictureAdapter):
    """adapter(picture [N,3,H,W] in 0…1) → four maps of the sizes that the UNet has there, for any H and W."""

    kind = "light"

    def __init__(self, channels: Sequence[int] = CHANNELS, in_channels: int = 3, layout: str = "sd", downscale: int = 0, blocks: int = 4):
        """An adapter with torch's own random start; the arguments are FullAdapter's.

        Raises:
            ConfigError: no adapter can be like that.
        """
        super().__init__()
        check_make(layout, tuple(channels), in_channels, blocks)
        self.layout, self.in_channels, self.channels, self.blocks = layout, in_channels, tuple(channels), blocks
        self.downscale = downscale or (16 if layout == "sdxl" else 8)
        widths = (in_channels * self.downscale ** 2, *self.channels)
        self.body = nn.ModuleList(_Level(widths[level], outer, blocks, self.halves(level)) for level, outer in enumerate(self.channels))

    @classmethod
    def create(cls, zero: bool = True, **make: object) -> LightAdapter:
        """A fresh one to be trained; its arguments are the constructor's.

        Args:
            zero: it adds exactly zero at first, and learns from there; else its start is random, as the authors' is.
        """
        adapter = cls(**make)
        if zero:
            with torch.no_grad():
                for level in adapter.body:
                    level.out_conv.weight.zero_()
                    level.out_conv.bias.zero_()
        return adapter

    def forward(self, picture: Tensor) -> list[Tensor]:
        """One map [N,C,h,w] for each level."""
        x = self.enter(picture).to(self.body[0].in_conv.weight.dtype)
        maps = []
        for level in self.body:
            x = level(x)
            maps.append(x)
        return maps


class _Level(nn.Module):
    """[N,C,h,w] → [N,C',h',w']: halved, narrowed, blocks, widened."""

    def __init__(self, inner: int, outer: int, blocks: int, down: bool):
        super().__init__()
        self.down = down
        self.in_conv = nn.Conv2d(inner, outer // 4, 1)
        self.body = nn.Sequential(*(_Block(outer // 4) for _ in range(blocks)))
        self.out_conv = nn.Conv2d(outer // 4, outer, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_conv(self.body(self.in_conv(halve(x) if self.down else x)))


class _Block(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.block1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.block2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block2(F.relu(self.block1(x)))
