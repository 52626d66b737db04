"""What the studio's backbones have in common: pictures to latents, and the words of captions."""
from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from .bpe import tokenize
from .words import Vectors, word_rows, word_statistics


class Encoders:
    """The part of training.backbone.Backbone that is the same for SD 1.x, SD 2.x and SDXL; who builds on it sets `model`, a StudioModel or SDXLModel."""

    model: Any

    @torch.no_grad()
    def encode_pictures(self, pictures: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Latents [B,4,h,w] drawn from the autoencoder's posterior, scaled, for pictures [B,3,H,W] in -1..1."""
        vae = self.model.vae
        return vae.encode(pictures.to(vae.device, vae.dtype)).latent_dist.sample(generator) * self.model.latent_scale

    def count_tokens(self, caption: str) -> int:
        """How many tokens a caption has, without those that open and end a chunk."""
        return len(tokenize(self.model.tokenizer, caption))

    def words(self, vectors: Mapping[str, Vectors]) -> AbstractContextManager[None]:
        """Within it captions and previews' prompts that name one of these words get its vectors, into which gradients flow.

        Args:
            vectors: {word: {text encoder: float32 [n,D]}}, looked into whenever a text names the word.

        Raises:
            ConfigError: a word without letters; and when a text names it, vectors of other text encoders or widths.
        """
        return self.model.words.given(vectors)

    def word_rows(self, text: str) -> dict[str, Tensor]:
        """For each text encoder the token table's rows float32 [k,D] of a text's tokens, copied; [0,D] for an empty text."""
        return word_rows(self.model.tokenizer, self.model.encoders, text)

    def word_statistics(self) -> dict[str, tuple[Tensor, Tensor, float]]:
        """For each text encoder mean [D] and standard deviation [D] of the token table, and the median length of its rows."""
        return word_statistics(self.model.encoders)
