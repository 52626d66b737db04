"""Full adapters: a picture's features at the four depths of a UNet's encoder, at its widths.

Source: Mou et al. 2023 (arXiv:2302.08453), section 3.3; TencentARC/T2I-Adapter, Adapter (branch SD) and Adapter_XL (main).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib_lycoris.functional.feature_maps import halve

from .parts import PictureAdapter, check_make

CHANNELS = (320, 640, 1280, 1280)
"""Widths of SD 1, SD 2 and SDXL alike."""


class FullAdapter(PictureAdapter):
    """adapter(picture [N,3,H,W] in 0…1) → four maps of the sizes that the UNet has there, for any H and W."""

    kind = "full"

    def __init__(self, channels: Sequence[int] = CHANNELS, in_channels: int = 3, layout: str = "sd", downscale: int = 0, blocks: int = 2, ksize: int = 1,
                 sk: bool = True, use_conv: bool = False):
        """An adapter with torch's own random start.

        Args:
            channels: of each map.
            in_channels: 1 for gray pictures, 3 for RGB.
            layout: "sd" or "sdxl".
            downscale: pixels for a cell of the first map; 0: 8 for SD, 16 for SDXL.
            blocks: residual blocks for each map.
            ksize: the smaller convolutions' kernel.
            sk: residuals go past a block as they are, instead of through a convolution.
            use_conv: maps are halved by a convolution instead of means.

        Raises:
            ConfigError: no adapter can be like that.
        """
        super().__init__()
        check_make(layout, tuple(channels), in_channels, blocks)
        self.layout, self.in_channels, self.channels, self.blocks = layout, in_channels, tuple(channels), blocks
        self.downscale = downscale or (16 if layout == "sdxl" else 8)
        self.ksize, self.sk, self.use_conv = ksize, sk, use_conv
        self.conv_in = nn.Conv2d(in_channels * self.downscale ** 2, self.channels[0], 3, padding=1)
        self.body = nn.ModuleList()
        for level, outer in enumerate(self.channels):
            for place in range(blocks):
                inner = self.channels[level - 1] if level and not place else outer
                down = ("convolution" if use_conv else "mean") if self.halves(level) and not place else None
                self.body.append(_Block(inner, outer, ksize, sk, down))

    @classmethod
    def create(cls, zero: bool = True, **make: object) -> FullAdapter:
        """A fresh one to be trained; its arguments are the constructor's.

        Args:
            zero: it adds exactly zero at first, and learns from there; else its start is random, as the authors' is.
        """
        adapter = cls(**make)
        if zero:
            adapter._silence()
        return adapter

    def forward(self, picture: Tensor) -> list[Tensor]:
        """One map [N,C,h,w] for each level."""
        x = self.conv_in(self.enter(picture).to(self.conv_in.weight.dtype))
        maps = []
        for number, block in enumerate(self.body, start=1):
            x = block(x)
            if number % self.blocks == 0:
                maps.append(x)
        return maps

    @torch.no_grad()
    def _silence(self) -> None:
        """All that leads into the maps starts at zero, but for what is multiplied by nothing else: so that gradients arrive."""
        for module in (self.conv_in, *(block.block2 for block in self.body)):
            module.weight.zero_()
            module.bias.zero_()
        for block in self.body:
            for module in (block.in_conv, block.skep, getattr(block.down_opt, "op", None)):
                if module is not None:
                    module.bias.zero_()


class _Block(nn.Module):
    """[N,C,h,w] → [N,C',h',w']: halved, brought to another width, and a residual added."""

    def __init__(self, inner: int, outer: int, ksize: int, sk: bool, down: str | None):
        super().__init__()
        padding = ksize // 2
        self.down = down
        self.down_opt = _Down(inner) if down == "convolution" else None
        self.in_conv = nn.Conv2d(inner, outer, ksize, padding=padding) if inner != outer or not sk else None
        self.block1 = nn.Conv2d(outer, outer, 3, padding=1)
        self.block2 = nn.Conv2d(outer, outer, ksize, padding=padding)
        self.skep = None if sk else nn.Conv2d(outer, outer, ksize, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        if self.down is not None:
            x = halve(x) if self.down_opt is None else self.down_opt.op(x)
        if self.in_conv is not None:
            x = self.in_conv(x)
        added = self.block2(F.relu(self.block1(x)))
        return added + (x if self.skep is None else self.skep(x))


class _Down(nn.Module):
    """Halves by a convolution; rounds up, as the UNet does."""

    def __init__(self, channels: int):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
