"""CLIP's picture encoder, as far as style adapters need it: up to its last hidden states.

Source: A. Radford et al., "Learning transferable visual models from natural language supervision", 2021; parameters as Hugging Face's CLIPVisionModel
spells them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD = 64
"""Width of an attention head in every CLIP."""
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the colours of CLIP's training pictures."""


class ClipVision(nn.Module):
    """encoder(pictures [N,3,H,W] in 0…1) → hidden states [N,1+(side/patch)²,D] behind the last layer, before the final norm."""

    def __init__(self, width: int, layers: int, patch: int, side: int, inner: int):
        """An encoder with empty parameters.

        Args:
            width: D.
            layers: how many.
            patch: pixels of a patch's side.
            side: pixels of a picture's side.
            inner: width within a layer's perceptron.
        """
        super().__init__()
        self.side = side
        self.embeddings = nn.Module()
        self.embeddings.class_embedding = nn.Parameter(torch.empty(width))
        self.embeddings.patch_embedding = nn.Conv2d(3, width, patch, patch, bias=False)
        self.embeddings.position_embedding = nn.Embedding((side // patch) ** 2 + 1, width)
        self.pre_layrnorm = nn.LayerNorm(width)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(_Layer(width, inner) for _ in range(layers))

    def forward(self, pictures: Tensor) -> Tensor:
        """The hidden states; pictures are brought to the encoder's size: their shorter side is scaled, the longer one cut."""
        patches = self.embeddings.patch_embedding(self._settled(pictures)).flatten(2).transpose(1, 2)
        first = self.embeddings.class_embedding.expand(len(patches), 1, -1)
        x = self.pre_layrnorm(torch.cat([first, patches], dim=1) + self.embeddings.position_embedding.weight)
        for layer in self.encoder.layers:
            x = layer(x)
        return x

    def _settled(self, pictures: Tensor) -> Tensor:
        height, width = pictures.shape[-2:]
        scale = self.side / min(height, width)
        size = max(self.side, round(height * scale)), max(self.side, round(width * scale))
        scaled = F.interpolate(pictures, size=size, mode="bicubic", antialias=True).clamp(0, 1) if size != (height, width) else pictures
        top, left = (size[0] - self.side) // 2, (size[1] - self.side) // 2
        mean, deviation = (pictures.new_tensor(each)[:, None, None] for each in (MEAN, DEVIATION))
        return (scaled[..., top : top + self.side, left : left + self.side] - mean) / deviation


class _Layer(nn.Module):
    def __init__(self, width: int, inner: int):
        super().__init__()
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_attn = nn.Module()
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self.self_attn, name, nn.Linear(width, width))
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        y, attention = self.layer_norm1(x), self.self_attn
        count, length, width = y.shape
        q, k, v = (layer(y).reshape(count, length, width // HEAD, HEAD).transpose(1, 2) for layer in (attention.q_proj, attention.k_proj, attention.v_proj))
        x = x + attention.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(y.shape))
        hidden = self.mlp.fc1(self.layer_norm2(x))
        return x + self.mlp.fc2(hidden * torch.sigmoid(1.702 * hidden))
