"""Style adapters: a picture, as CLIP sees it, becomes words that are appended to the prompt.

Source: TencentARC/T2I-Adapter, branch SD, StyleAdapter; Mou et al. 2023 (arXiv:2302.08453).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lib_lycoris.errors import ConfigError

from .parts import Adapter, TransformerLayer

HEADS = 8
"""Of every released file; no file says it."""


class StyleAdapter(Adapter):
    """adapter(tokens [N,257,D]) → [tokens [N,K,context]]: K words from the last hidden states of CLIP's picture encoder (before its final norm)."""

    kind = "style"

    def __init__(self, width: int = 1024, context: int = 768, layers: int = 3, tokens: int = 8, heads: int = HEADS):
        """An adapter with a random start.

        Raises:
            ConfigError: the width can't be shared out to the heads.
        """
        super().__init__()
        if width % heads:
            raise ConfigError(f"a style adapter's width {width} is no multiple of its {heads} heads")
        self.width, self.context = width, context
        self.transformer_layes = nn.Sequential(*(TransformerLayer(width, heads) for _ in range(layers)))
        self.style_embedding = nn.Parameter(torch.randn(1, tokens, width) * width ** -0.5)
        self.ln_post = nn.LayerNorm(width)
        self.ln_pre = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.randn(width, context) * width ** -0.5)

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """[tokens [N,K,context]].

        Raises:
            ConfigError: these are no picture tokens of the adapter's width.
        """
        if tokens.ndim != 3 or tokens.shape[-1] != self.width:
            raise ConfigError(f"a style adapter takes CLIP's picture tokens [N,257,{self.width}], not {list(tokens.shape)}; use clip-vit-large-patch14's")
        asking = self.style_embedding.expand(len(tokens), -1, -1)
        x = self.transformer_layes(self.ln_pre(torch.cat([tokens.to(asking.dtype), asking], dim=1)))
        return [self.ln_post(x[:, -asking.shape[1]:]) @ self.proj]
