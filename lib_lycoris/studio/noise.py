"""Random numbers as the WebUI draws them on a CPU: one generator a picture, so that a batch gives the pictures that single runs give."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class PictureNoise:
    """Noise for a batch; the first draw is the starting point, later ones are for samplers that add noise.

    Args:
        seeds: one a picture.
        shape: of one picture's latent, [4,h,w].
        device: where the noise is put after it was drawn on the CPU.
    """

    def __init__(self, seeds: Sequence[int], shape: tuple[int, ...], device: torch.device | str = "cpu"):
        self._generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        self._shape, self._device = shape, device

    def draw(self) -> Tensor:
        """The next noise of every picture, [B,4,h,w] float32."""
        return torch.stack([torch.randn(self._shape, generator=generator) for generator in self._generators]).to(self._device)
