"""The CoAdapter fuser: several adapters hear of each other, and each map's channels and each style word are scaled for the company they are in.

Source: TencentARC/T2I-Adapter, branch SD, CoAdapterFuser and docs/coadapter.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lib_lycoris.errors import ConfigError

from .full import CHANNELS
from .parts import Adapter, TransformerLayer
from .style import HEADS

TASKS = ("sketch", "keypose", "seg", "depth", "canny", "style", "color", "openpose")
"""The rows of its table that have names; it was trained with sketch, depth, canny, style and color."""


class CoAdapterFuser(Adapter):
    """fuser([(task, maps or [tokens]), …]) → the same, scaled; nothing is added up."""

    kind = "fuser"

    def __init__(self, channels: Sequence[int] = CHANNELS, width: int = 768, layers: int = 3, heads: int = HEADS, tasks: int = 16):
        """A fuser that changes nothing at first.

        Raises:
            ConfigError: the width can't be shared out to the heads.
        """
        super().__init__()
        if width % heads:
            raise ConfigError(f"a fuser's width {width} is no multiple of its {heads} heads")
        self.channels = tuple(channels)
        self.task_embedding = nn.Parameter(torch.randn(tasks, width) * width ** 0.5)
        self.positional_embedding = nn.Parameter(torch.randn(len(self.channels), width) * width ** 0.5)
        self.spatial_feat_mapping = nn.ModuleList(nn.Sequential(nn.SiLU(), nn.Linear(channel, width)) for channel in self.channels)
        self.transformer_layes = nn.Sequential(*(TransformerLayer(width, heads) for _ in range(layers)))
        self.ln_post = nn.LayerNorm(width)
        self.ln_pre = nn.LayerNorm(width)
        self.spatial_ch_projs = nn.ModuleList(nn.Linear(width, channel) for channel in self.channels)
        for projection in self.spatial_ch_projs:
            nn.init.zeros_(projection.weight)
            nn.init.zeros_(projection.bias)
        self.seq_proj = nn.Parameter(torch.zeros(width, width))

    def forward(self, parts: Sequence[tuple[str, Sequence[Tensor]]]) -> list[list[Tensor]]:
        """For each part its maps, or its style tokens, as this company has them; already multiplied by their weights when they come in.

        Args:
            parts: (one of TASKS, four maps [N or 1,C,h,w], or for "style" one [N or 1,K,D]).

        Raises:
            ConfigError: a task is not known.
        """
        words = [self._words(task, features) for task, features in parts]
        batch = max((len(each) for each in words), default=1)
        heard = torch.cat([each.expand(batch, -1, -1) for each in words], dim=1)
        heard = self.ln_post(self.transformer_layes(self.ln_pre(heard)))
        told = heard.split([each.shape[1] for each in words], dim=1)
        return [self._scaled(features, own) for (_, features), own in zip(parts, told, strict=True)]

    def _words(self, task: str, features: Sequence[Tensor]) -> Tensor:
        """What the others hear of a part: [N,4,D], or [N,K,D] of style."""
        if task not in TASKS:
            raise ConfigError(f"the fuser does not know {task!r} adapters; it knows {', '.join(TASKS)}")
        own = self.task_embedding[TASKS.index(task)]
        if features[0].ndim == 3:
            return features[0].to(own.dtype) + own
        means = [mapping(feature.to(own.dtype).mean(dim=(2, 3))) for mapping, feature in zip(self.spatial_feat_mapping, features, strict=True)]
        return torch.stack(means, dim=1) + own + self.positional_embedding

    def _scaled(self, features: Sequence[Tensor], told: Tensor) -> list[Tensor]:
        if features[0].ndim == 3:
            return [features[0] * (1 + told @ self.seq_proj)]
        factors = [1 + projection(told[:, level]) for level, projection in enumerate(self.spatial_ch_projs)]
        return [feature * factor[:, :, None, None] for feature, factor in zip(features, factors, strict=True)]
