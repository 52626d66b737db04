"""Small stand-ins for the module trees that patching meets: LDM's UNet (the attributes' names alone are the original's), open_clip's text model."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

SD1 = {"widths": (4, 8, 8, 8), "depths": (1, 1, 1, 0)}
SDXL = {"widths": (4, 8, 8), "depths": (0, 2, 3), "linear": True, "vector": 12}
CONTEXT = 6


def as_tokens(picture):
    return picture.flatten(2).transpose(1, 2)


class ResBlock(nn.Module):
    def __init__(self, inner, outer, embedding):
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(2, inner), nn.SiLU(), nn.Conv2d(inner, outer, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, outer))
        self.out_layers = nn.Sequential(nn.GroupNorm(2, outer), nn.SiLU(), nn.Dropout(0.0), nn.Conv2d(outer, outer, 3, padding=1))
        self.skip_connection = nn.Identity() if inner == outer else nn.Conv2d(inner, outer, 1)

    def forward(self, x, emb, context):
        h = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class CrossAttention(nn.Module):
    def __init__(self, width, context):
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(size, width, bias=False) for size in (width, context, context))
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(0.0))

    def forward(self, x, context=None):
        context = x if context is None else context
        return self.to_out(F.scaled_dot_product_attention(self.to_q(x)[:, None], self.to_k(context)[:, None], self.to_v(context)[:, None])[:, 0])


class GEGLU(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.proj = nn.Linear(width, width * 8)

    def forward(self, x):
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.net = nn.Sequential(GEGLU(width), nn.Dropout(0.0), nn.Linear(width * 4, width))

    def forward(self, x):
        return self.net(x)


class TransformerBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.attn1, self.attn2, self.ff = CrossAttention(width, width), CrossAttention(width, CONTEXT), FeedForward(width)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x, context):
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    def __init__(self, width, depth, linear):
        super().__init__()
        self.norm = nn.GroupNorm(2, width)
        self.proj_in = nn.Linear(width, width) if linear else nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList(TransformerBlock(width) for _ in range(depth))
        self.proj_out = nn.Linear(width, width) if linear else nn.Conv2d(width, width, 1)

    def forward(self, x, emb, context):
        batch, width, height, side = x.shape
        h = self.norm(x)
        linear = isinstance(self.proj_in, nn.Linear)
        h = self.proj_in(as_tokens(h)) if linear else as_tokens(self.proj_in(h))
        for block in self.transformer_blocks:
            h = block(h, context)
        picture = (self.proj_out(h) if linear else h).transpose(1, 2).reshape(batch, width, height, side)
        return x + (picture if linear else self.proj_out(picture))


class Downsample(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x, emb, context):
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x, emb, context):
        return self.conv(F.interpolate(x, scale_factor=2))


class First(nn.Conv2d):
    def forward(self, x, emb=None, context=None):
        return super().forward(x)


class Block(nn.ModuleList):
    """Called as a whole, as LDM's TimestepEmbedSequential is."""

    def forward(self, x, emb, context):
        for part in self:
            x = part(x, emb, context)
        return x


class LdmUNet(nn.Module):
    """Two residual blocks a level down, three up, attention where `depths` says so; the middle as deep as the last level that has any."""

    def __init__(self, widths=(4, 8), depths=(1, 0), linear=False, vector=None):
        super().__init__()
        embedding = 4 * widths[0]
        self.time_embed = nn.Sequential(nn.Linear(widths[0], embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        if vector:
            self.label_emb = nn.Sequential(nn.Sequential(nn.Linear(vector, embedding), nn.SiLU(), nn.Linear(embedding, embedding)))
        width, skips = widths[0], [widths[0]]
        self.input_blocks = nn.ModuleList([Block([First(4, width, 3, padding=1)])])
        for level, (outer, depth) in enumerate(zip(widths, depths, strict=True)):
            for _ in range(2):
                attention = [SpatialTransformer(outer, depth, linear)] if depth else []
                self.input_blocks.append(Block([ResBlock(width, outer, embedding), *attention]))
                width = outer
                skips.append(width)
            if level < len(widths) - 1:
                self.input_blocks.append(Block([Downsample(width)]))
                skips.append(width)
        deepest = depths[-1] or max(depths)
        self.middle_block = Block(
            [ResBlock(width, width, embedding), SpatialTransformer(width, deepest, linear), ResBlock(width, width, embedding)])
        self.output_blocks = nn.ModuleList()
        for level in reversed(range(len(widths))):
            outer, depth = widths[level], depths[level]
            for number in range(3):
                block = [ResBlock(width + skips.pop(), outer, embedding), *([SpatialTransformer(outer, depth, linear)] if depth else [])]
                width = outer
                self.output_blocks.append(Block([*block, *([Upsample(width)] if level and number == 2 else [])]))
        self.out = nn.Sequential(nn.GroupNorm(2, width), nn.SiLU(), nn.Conv2d(width, 4, 3, padding=1))

    def forward(self, x, t, context, y=None):
        emb = self.time_embed(torch.cos(t[:, None] * torch.arange(1, self.time_embed[0].in_features + 1)))
        emb = emb if y is None else emb + self.label_emb(y)
        skips = []
        for block in self.input_blocks:
            x = block(x, emb, context)
            skips.append(x)
        x = self.middle_block(x, emb, context)
        for block in self.output_blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), emb, context)
        return self.out(x)


class ResidualAttentionBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(width), nn.MultiheadAttention(width, 2), nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        for name, module in (("c_fc", nn.Linear(width, 4 * width)), ("gelu", nn.GELU()), ("c_proj", nn.Linear(4 * width, width))):
            self.mlp.add_module(name, module)

    def forward(self, x):
        h = self.ln_1(x)
        x = x + self.attn(h, h, h, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class OpenClipText(nn.Module):
    def __init__(self, width=8, depth=2):
        super().__init__()
        self.token_embedding = nn.Embedding(20, width)
        self.positional_embedding = nn.Parameter(torch.randn(5, width))
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(ResidualAttentionBlock(width) for _ in range(depth))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, width))

    def forward(self, tokens):
        x = (self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]).transpose(0, 1)
        for block in self.transformer.resblocks:
            x = block(x)
        return self.ln_final(x).transpose(0, 1)


class Holder(nn.Module):
    """A module that holds others under these names, as a host's wrappers do."""

    def __init__(self, **modules):
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)


def clip_text(width=8, depth=2):
    from transformers import CLIPTextConfig, CLIPTextModel

    model = CLIPTextModel(CLIPTextConfig(hidden_size=width, intermediate_size=2 * width, num_hidden_layers=depth, num_attention_heads=2, vocab_size=20,
                                         max_position_embeddings=5, bos_token_id=0, eos_token_id=1, pad_token_id=1))
    return getattr(model, "text_model", model)  # the level that transformers 5 has no more


def diffusers_unet(kind):
    UNet2DConditionModel = pytest.importorskip("diffusers", reason="diffusers is not installed here: its own trees can't be compared").UNet2DConditionModel
    if kind == "sd1":
        return UNet2DConditionModel(block_out_channels=SD1["widths"], norm_num_groups=2, cross_attention_dim=CONTEXT, attention_head_dim=2)
    return UNet2DConditionModel(
        block_out_channels=SDXL["widths"], norm_num_groups=2, cross_attention_dim=CONTEXT, attention_head_dim=2, use_linear_projection=True,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 2, 3),
        addition_embed_type="text_time", addition_time_embed_dim=2, projection_class_embeddings_input_dim=SDXL["vector"])
