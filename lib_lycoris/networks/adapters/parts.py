"""What adapters of several kinds are made of. Names of submodules are TencentARC's, so that a module's state is its file."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib_lycoris.errors import ConfigError
from lib_lycoris.functional.feature_maps import pad_to_multiple, pick_channels


class Adapter(nn.Module):
    """What all kinds of adapters have in common.

    Attributes:
        kind: "full", "light", "style" or "fuser".
        facts: what its file said of it (files.adapters.AdapterFacts), or None for one that was created.
        metadata: of its file.
    """

    kind: str
    facts: object | None = None

    def __init__(self) -> None:
        super().__init__()
        self.metadata: dict[str, str] = {}

    def tensors(self) -> dict[str, Tensor]:
        """The parameters as TencentARC's files spell them; detached."""
        return {name: value.detach() for name, value in self.state_dict().items()}

    def fill(self, tensors: Mapping[str, Tensor]) -> Adapter:
        """This adapter, with these values in the place of its parameters', in float32; also where it was made on the device "meta"."""
        self.load_state_dict({name: value.float() for name, value in tensors.items()}, assign=True)
        return self.requires_grad_(False).eval()


class PictureAdapter(Adapter):
    """An adapter that takes pictures and gives maps.

    Attributes:
        layout: "sd" or "sdxl".
        in_channels: 1 (gray) or 3 (RGB).
        channels: of each map.
        downscale: pixels on a side for a cell of the first map.
        blocks: residual blocks for each map.
    """

    layout: str
    in_channels: int
    channels: tuple[int, ...]
    downscale: int
    blocks: int

    def enter(self, picture: Tensor) -> Tensor:
        """The picture's pixels as the channels [N,C·f²,⌈H/f⌉,⌈W/f⌉] of cells of f × f pixels, its edge repeated where it does not fill the last ones.

        Raises:
            ConfigError: it is no picture [N,3,H,W] or [N,1,H,W].
        """
        if picture.ndim != 4 or picture.shape[1] not in {1, 3, self.in_channels}:
            raise ConfigError(f"a picture of shape {list(picture.shape)} can't go into this adapter; give [N,{max(3, self.in_channels)},H,W] with values 0…1")
        picked = pick_channels(picture, self.in_channels)
        if picked.shape[1] != self.in_channels:
            raise ConfigError(f"the adapter takes pictures of {self.in_channels} channels, this one has {picture.shape[1]}")
        return F.pixel_unshuffle(pad_to_multiple(picked, self.downscale), self.downscale)

    def halves(self, level: int) -> bool:
        """Whether the map of this level has half the size of the one before."""
        return level == 2 if self.layout == "sdxl" else level > 0


def check_make(layout: str, channels: tuple[int, ...], in_channels: int, blocks: int) -> None:
    """Refuses an adapter that can't be made.

    Raises:
        ConfigError: names the value.
    """
    if layout not in ("sd", "sdxl"):
        raise ConfigError(f"adapter layout {layout!r} is neither sd nor sdxl")
    if not channels or min(channels) < 4:
        raise ConfigError(f"adapter channels {list(channels)}: give the width of each map, at least 4")
    if in_channels < 1 or blocks < 1:
        raise ConfigError(f"an adapter has at least one channel and one block, not {in_channels} and {blocks}")


class TransformerLayer(nn.Module):
    """[N,T,D] → [N,T,D]: attention of all to all and a perceptron, both on normalised input, as in CLIP."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attn = _Attention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = _Perceptron(width)
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """[N,T,D]."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class _Attention(nn.Module):
    """Self-attention with the parameters of nn.MultiheadAttention."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.randn(3 * width, width) * width ** -0.5)
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = F.linear(x, self.in_proj_weight, self.in_proj_bias).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _Perceptron(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.c_fc(x)
        return self.c_proj(inner * torch.sigmoid(1.702 * inner))
