"""A second, slow implementation of every adapter, on plain dicts of tensors in TencentARC's spelling, in float64; and random files of every kind."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

NARROW = (8, 12, 16, 16)


def conv(tensors, name, x, stride=1):
    weight = tensors[f"{name}.weight"].double()
    return F.conv2d(x, weight, tensors[f"{name}.bias"].double(), stride=stride, padding=weight.shape[-1] // 2)


def unshuffle(picture, factor):
    """Pixels of a cell as channels, by indexing; only for sides that divide."""
    n, c, h, w = picture.shape
    rows = [picture[:, channel, y::factor, x::factor] for channel in range(c) for y in range(factor) for x in range(factor)]
    return torch.stack(rows, dim=1).reshape(n, c * factor ** 2, h // factor, w // factor)


def pool(x):
    """Means over 2 × 2, rounding down: TencentARC's, at sizes that divide."""
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


def full(tensors, picture, factor, blocks, halved):
    """`halved`: the levels before which the map is halved."""
    x = conv(tensors, "conv_in", unshuffle(picture.double(), factor))
    count = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("body."))
    maps = []
    for number in range(count):
        name = f"body.{number}"
        if number % blocks == 0 and number // blocks in halved:
            x = conv(tensors, f"{name}.down_opt.op", x, 2) if f"{name}.down_opt.op.weight" in tensors else pool(x)
        if f"{name}.in_conv.weight" in tensors:
            x = conv(tensors, f"{name}.in_conv", x)
        inner = conv(tensors, f"{name}.block2", conv(tensors, f"{name}.block1", x).clamp(min=0))
        x = inner + (conv(tensors, f"{name}.skep", x) if f"{name}.skep.weight" in tensors else x)
        if number % blocks == blocks - 1:
            maps.append(x)
    return maps


def light(tensors, picture, factor, halved):
    x = unshuffle(picture.double(), factor)
    maps = []
    for level in range(1 + max(int(name.split(".")[1]) for name in tensors)):
        x = conv(tensors, f"body.{level}.in_conv", pool(x) if level in halved else x)
        for number in range(sum(name.startswith(f"body.{level}.body.") and name.endswith("block1.weight") for name in tensors)):
            name = f"body.{level}.body.{number}"
            x = x + conv(tensors, f"{name}.block2", conv(tensors, f"{name}.block1", x).clamp(min=0))
        x = conv(tensors, f"body.{level}.out_conv", x)
        maps.append(x)
    return maps


def norm(tensors, name, x):
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * tensors[f"{name}.weight"].double() + tensors[f"{name}.bias"].double()


def linear(tensors, name, x):
    return x @ tensors[f"{name}.weight"].double().T + tensors[f"{name}.bias"].double()


def transformer(tensors, x, heads=8):
    """[N,T,D], one head after the other."""
    for layer in range(1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("transformer_layes."))):
        name = f"transformer_layes.{layer}"
        mixed = norm(tensors, f"{name}.ln_1", x) @ tensors[f"{name}.attn.in_proj_weight"].double().T + tensors[f"{name}.attn.in_proj_bias"].double()
        q, k, v = mixed.chunk(3, -1)
        width = q.shape[-1] // heads
        heard = []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            attention = (q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(width)).softmax(-1)
            heard.append(attention @ v[..., part])
        x = x + linear(tensors, f"{name}.attn.out_proj", torch.cat(heard, -1))
        inner = linear(tensors, f"{name}.mlp.c_fc", norm(tensors, f"{name}.ln_2", x))
        x = x + linear(tensors, f"{name}.mlp.c_proj", inner / (1 + torch.exp(-1.702 * inner)))
    return x


def style(tensors, tokens):
    asking = tensors["style_embedding"].double().expand(len(tokens), -1, -1)
    x = transformer(tensors, norm(tensors, "ln_pre", torch.cat([tokens.double(), asking], 1)))
    return norm(tensors, "ln_post", x[:, -asking.shape[1]:]) @ tensors["proj"].double()


def fuser(tensors, parts):
    """`parts`: [(row of the table of tasks, maps or one tensor of tokens)]; gives (summed maps, joined tokens)."""
    words = []
    for row, features in parts:
        if not isinstance(features, list):
            words.append(features.double() + tensors["task_embedding"][row].double())
            continue
        for level, feature in enumerate(features):
            mean = feature.double().flatten(2).mean(-1)
            word = linear(tensors, f"spatial_feat_mapping.{level}.1", mean / (1 + torch.exp(-mean)))
            words.append((word + tensors["task_embedding"][row].double() + tensors["positional_embedding"][level].double())[:, None])
    heard = norm(tensors, "ln_post", transformer(tensors, norm(tensors, "ln_pre", torch.cat(words, 1))))
    maps, tokens, place = None, [], 0
    for _, features in parts:
        if not isinstance(features, list):
            count = features.shape[1]
            tokens.append(features.double() * (1 + heard[:, place:place + count] @ tensors["seq_proj"].double()))
            place += count
            continue
        scaled = [feature.double() * (1 + linear(tensors, f"spatial_ch_projs.{level}", heard[:, place + level]))[:, :, None, None]
                  for level, feature in enumerate(features)]
        place += len(features)
        maps = scaled if maps is None else [a + b for a, b in zip(maps, scaled, strict=True)]
    return maps, torch.cat(tokens, 1) if tokens else None


def random_tensors(adapter, seed=0):
    """Values for every parameter of an adapter, such that signals neither die nor grow."""
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for name, value in adapter.tensors().items():
        noise = torch.randn(value.shape, generator=generator)
        fan = max(1, math.prod(value.shape[1:]))
        values[name] = 1 + 0.1 * noise if ".ln_" in f".{name}" and name.endswith("weight") else noise * (0.1 if name.endswith("bias") else fan ** -0.5)
    return values
