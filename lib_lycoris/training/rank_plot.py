"""A picture of the rank that each layer kept: the model's blocks from top to bottom, a column for each of their layers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

_SPLIT = re.compile(
    r"(?P<component>unet|te\d)\.(?P<block>.*?(?:attentions_\d+(?:_transformer_blocks_\d+)?|resnets_\d+|(?:down|up)samplers_\d+|layers_\d+|^))_?"
    r"(?P<part>(?:attn\d|self_attn|mlp|ff|proj|conv|time|to).*)"
)
_SHORT = (("self_attn_", ""), ("_to_out_0", " out"), ("_to_", " "), ("_net_0_proj", " f1"), ("_net_2", " f2"), ("mlp_fc", "f"), ("_proj", ""), ("_", " "))


def write_rank_plot(path: Path, ranks: Mapping[str, int], initial: int) -> bool:
    """Whether the PNG was written; it is not where matplotlib is missing.

    Args:
        path: of the picture.
        ranks: {"component.layer": rank}, as AdaLoRA's `figures` give them.
        initial: the rank that the layers began with, where the colours end.

    Raises:
        OSError: the file could not be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    blocks, parts, cells = arrange(ranks)
    figure = Figure(figsize=(2.5 + 0.5 * len(parts), 1.5 + 0.26 * len(blocks)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    grid = [[cells.get((block, part), float("nan")) for part in parts] for block in blocks]
    image = axes.imshow(grid, vmin=0, vmax=max(initial, 1), aspect="auto", cmap="viridis")
    axes.set_xticks(range(len(parts)), parts, rotation=60, ha="right")
    axes.set_yticks(range(len(blocks)), blocks)
    axes.set_title(f"rank that each layer kept: {sum(ranks.values())} in {len(ranks)} layers")
    for (block, part), rank in cells.items():
        dark = rank < 0.6 * initial
        axes.text(parts.index(part), blocks.index(block), str(rank), ha="center", va="center", fontsize=7, color="white" if dark else "black")
    figure.colorbar(image, ax=axes, label="rank")
    figure.savefig(path, dpi=110)
    return True


def arrange(ranks: Mapping[str, int]) -> tuple[list[str], list[str], dict[tuple[str, str], int]]:
    """The blocks and their layers in the order in which they first come, and the rank of each (block, layer)."""
    cells = {_split(name): rank for name, rank in ranks.items()}
    return list(dict.fromkeys(block for block, _ in cells)), list(dict.fromkeys(part for _, part in cells)), cells


def _split(name: str) -> tuple[str, str]:
    found = _SPLIT.fullmatch(name)
    if found is None:
        component, _, layer = name.partition(".")
        return component, layer
    block, part = found["block"], found["part"]
    for long, short in _SHORT:
        part = part.replace(long, short)
    block = re.sub(r"_transformer_blocks_(\d+)", lambda number: f" t{number[1]}" if int(number[1]) else "", block).removeprefix("text_model_encoder_")
    return f"{found['component']} {block}".replace("_", " ").strip(), part.strip()
