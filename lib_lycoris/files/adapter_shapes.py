"""An adapter's construction read from its parameters' shapes, and the shapes that go with a construction. Names are TencentARC's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lib_lycoris.errors import NetworkFileError

Shapes = Mapping[str, "tuple[int, ...]"]
_BODY = re.compile(r"body\.(\d+)\.")
_LAYER = re.compile(r"transformer_layes\.(\d+)\.")
_LARGEST = 256  # blocks or layers: more is no adapter
FUSER_TASKS = 16
"""Rows of the fuser's table of tasks, of which eight have names."""


def read_shape(shapes: Shapes) -> dict[str, Any]:
    """AdapterFacts' fields that shapes tell.

    Raises:
        NetworkFileError: they are no adapter's, or too few of them are there.
    """
    if "spatial_ch_projs.0.weight" in shapes:
        return _read_fuser(shapes)
    if "style_embedding" in shapes:
        return _read_style(shapes)
    if "body.0.out_conv.weight" in shapes or "body.0.body.0.block1.weight" in shapes:
        return _read_light(shapes)
    return _read_full(shapes)


def expected_shapes(facts: Any) -> dict[str, tuple[int, ...]]:
    """Every parameter of such an adapter and its shape; `facts` is an AdapterFacts."""
    return {"full": _full, "light": _light, "style": _style, "fuser": _fuser}[facts.kind](facts)


def _read_full(shapes: Shapes) -> dict[str, Any]:
    count = _count(shapes, _BODY)
    sk = not any(".skep." in name for name in shapes)
    downs = sorted({int(match[1]) for name in shapes if ".down_opt.op." in name and (match := _BODY.match(name))})
    blocks = _blocks_a_level(count, downs)
    cin = _side(shapes, "conv_in.weight", 1)
    layout, downscale = _layout_of(cin)
    if downs:
        layout = "sdxl" if len(downs) == 1 and count > 2 * blocks else "sd"
    return {"kind": "full", "layout": layout, "downscale": downscale, "in_channels": cin // downscale ** 2, "blocks": blocks, "sk": sk, "use_conv": bool(downs),
            "channels": tuple(_side(shapes, f"body.{number}.block1.weight", 0) for number in range(0, count, blocks)),
            "ksize": _side(shapes, "body.0.block2.weight", -1)}


def _blocks_a_level(count: int, downs: list[int]) -> int:
    """Residual blocks for each map: where downsampling has parameters its place tells, else there are four maps."""
    blocks = downs[0] // (2 if len(downs) == 1 else 1) if downs else count // 4
    if not blocks or count % blocks or (not downs and count % 4):
        raise NetworkFileError(f"its {count} residual blocks do not make four feature maps; the file is a part of an adapter or of an unknown make")
    return blocks


def _read_light(shapes: Shapes) -> dict[str, Any]:
    cin = _side(shapes, "body.0.in_conv.weight", 1)
    layout, downscale = _layout_of(cin)
    inner = {name.removeprefix("body.0."): shape for name, shape in shapes.items() if name.startswith("body.0.")}
    return {"kind": "light", "layout": layout, "downscale": downscale, "in_channels": cin // downscale ** 2, "blocks": _count(inner, _BODY),
            "channels": tuple(_side(shapes, f"body.{number}.out_conv.weight", 0) for number in range(_count(shapes, _BODY)))}


def _read_style(shapes: Shapes) -> dict[str, Any]:
    return {"kind": "style", "width": _side(shapes, "style_embedding", 2), "tokens": _side(shapes, "style_embedding", 1),
            "context": _side(shapes, "proj", 1), "layers": _count(shapes, _LAYER)}


def _read_fuser(shapes: Shapes) -> dict[str, Any]:
    levels = _count(shapes, re.compile(r"spatial_ch_projs\.(\d+)\."))
    width = _side(shapes, "seq_proj", 0)
    return {"kind": "fuser", "width": width, "context": width, "layers": _count(shapes, _LAYER),
            "channels": tuple(_side(shapes, f"spatial_ch_projs.{number}.weight", 0) for number in range(levels))}


def _layout_of(cin: int) -> tuple[str, int]:
    """(layout, downscale) of an adapter whose first convolution takes so many channels.

    256 may also be four channels of SD's and 768 twelve; every program that loads adapters takes them for one and three of SDXL's.
    """
    if cin and cin % 256 == 0:
        return "sdxl", 16
    if cin and cin % 64 == 0:
        return "sd", 8
    raise NetworkFileError(f"its first convolution takes {cin} channels, no multiple of 64 as pictures in blocks of 8 pixels have; get the file again")


def _full(facts: Any) -> dict[str, tuple[int, ...]]:
    size, channels = facts.ksize, facts.channels
    shapes = _convolution("conv_in", channels[0], facts.in_channels * facts.downscale ** 2, 3)
    for number in range(len(channels) * facts.blocks):
        level, place = divmod(number, facts.blocks)
        outer = channels[level]
        inner = channels[level - 1] if level and not place else outer
        if inner != outer or not facts.sk:
            shapes |= _convolution(f"body.{number}.in_conv", outer, inner, size)
        shapes |= _convolution(f"body.{number}.block1", outer, outer, 3) | _convolution(f"body.{number}.block2", outer, outer, size)
        if not facts.sk:
            shapes |= _convolution(f"body.{number}.skep", outer, outer, size)
        if facts.use_conv and not place and level in ((2,) if facts.layout == "sdxl" else range(1, len(channels))):
            shapes |= _convolution(f"body.{number}.down_opt.op", inner, inner, 3)
    return shapes


def _light(facts: Any) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    inner = facts.in_channels * facts.downscale ** 2
    for level, outer in enumerate(facts.channels):
        middle = outer // 4
        shapes |= _convolution(f"body.{level}.in_conv", middle, inner, 1) | _convolution(f"body.{level}.out_conv", outer, middle, 1)
        for number in range(facts.blocks):
            shapes |= _convolution(f"body.{level}.body.{number}.block1", middle, middle, 3)
            shapes |= _convolution(f"body.{level}.body.{number}.block2", middle, middle, 3)
        inner = outer
    return shapes


def _style(facts: Any) -> dict[str, tuple[int, ...]]:
    own = {"style_embedding": (1, facts.tokens, facts.width), "proj": (facts.width, facts.context)}
    return own | _transformer(facts)


def _fuser(facts: Any) -> dict[str, tuple[int, ...]]:
    width = facts.width
    shapes = {"task_embedding": (FUSER_TASKS, width), "positional_embedding": (len(facts.channels), width), "seq_proj": (width, width)}
    for level, channels in enumerate(facts.channels):
        shapes |= _linear(f"spatial_feat_mapping.{level}.1", width, channels) | _linear(f"spatial_ch_projs.{level}", channels, width)
    return shapes | _transformer(facts)


def _transformer(facts: Any) -> dict[str, tuple[int, ...]]:
    width = facts.width
    shapes = {f"{name}.{part}": (width,) for name in ("ln_pre", "ln_post") for part in ("weight", "bias")}
    for number in range(facts.layers):
        layer = f"transformer_layes.{number}"
        shapes |= {f"{layer}.{name}.{part}": (width,) for name in ("ln_1", "ln_2") for part in ("weight", "bias")}
        shapes |= {f"{layer}.attn.in_proj_weight": (3 * width, width), f"{layer}.attn.in_proj_bias": (3 * width,)}
        shapes |= _linear(f"{layer}.attn.out_proj", width, width)
        shapes |= _linear(f"{layer}.mlp.c_fc", 4 * width, width) | _linear(f"{layer}.mlp.c_proj", width, 4 * width)
    return shapes


def _convolution(name: str, outer: int, inner: int, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outer, inner, size, size), f"{name}.bias": (outer,)}


def _linear(name: str, outer: int, inner: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outer, inner), f"{name}.bias": (outer,)}


def _side(shapes: Shapes, name: str, side: int) -> int:
    """A length out of a parameter's shape."""
    if name not in shapes:
        raise NetworkFileError(f"the adapter's {name} is missing: the file is a part of one or was made by an unknown program; get it again")
    shape = shapes[name]
    dimensions = {"style_embedding": 3, "proj": 2, "seq_proj": 2}.get(name, 2 if name.startswith("spatial") else 4)
    if len(shape) != dimensions or not all(shape):
        raise NetworkFileError(f"the adapter's {name} has shape {list(shape)}, expected {dimensions} dimensions, none of them empty; get the file again")
    return shape[side]


def _count(shapes: Shapes, pattern: re.Pattern[str]) -> int:
    """How many blocks or layers there are, by the largest number."""
    count = 1 + max((int(match[1]) for name in shapes if (match := pattern.match(name)) and len(match[1]) < 5), default=-1)
    if not 0 < count <= _LARGEST:
        raise NetworkFileError(f"it has {count} blocks, expected some, and at most {_LARGEST}; the file is a part of an adapter or none")
    return count
