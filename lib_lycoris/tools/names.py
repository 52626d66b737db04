"""Module names of the Stable Diffusion family: with dots, their block in the U, and whether they are convolutions. Pure text."""

from __future__ import annotations

import re

from lib_lycoris.files.spelling import SDXL, diffusers_to_ldm_unet, dotted_name, kohya_key

__all__ = ["FORMATS", "SDXL", "Key", "block_name", "block_order", "dotted_name", "is_convolution", "kernel_side", "kohya_key"]

FORMATS = ("kohya", "diffusers", "peft", "locon")
"""The forms that a network can be written in."""

_CONVOLUTION = re.compile(r"(^|_)(conv1|conv2|conv_in|conv_out|(down|up)samplers_0_conv)$")
_PROJECTION = re.compile(r"_attentions_\d+_proj_(in|out)$")
_LDM_BLOCK = re.compile(r"(input|output)_blocks_(\d+)_")
_OUTSIDE = (("time_embed", "TIME"), ("label_emb", "LABEL"), ("out_", "OUT"), ("middle_block_", "M00"))

Key = tuple[str, str]
"""(component, name) as files.spelling.normal_name gives them."""


def kernel_side(key: Key) -> int:
    """K of the module's kernel: 3 for the larger convolutions, 1 for everything else."""
    return 3 if key[0] == "unet" and _CONVOLUTION.search(key[1]) else 1


def is_convolution(key: Key, base_model: str | None) -> bool | None:
    """Whether the module is a convolution; None for an attention block's projections, convolutions in SD 1 alone, where the base model is unknown."""
    if key[0] == "unet" and _PROJECTION.search(key[1]):
        return None if base_model is None else base_model == "sd_v1"
    return key[0] == "unet" and (kernel_side(key) == 3 or key[1].endswith("_conv_shortcut"))


def block_name(key: Key) -> str:
    """The block a module is in, as block weights count them: TE1, TE2, IN00 … IN11, M00, OUT00 … OUT11, and TIME, LABEL, OUT for what is outside of them."""
    component, name = key
    if component != "unet":
        return component.upper()
    ldm = diffusers_to_ldm_unet(name, sdxl=True)
    if found := _LDM_BLOCK.match(ldm):
        return f"{'IN' if found[1] == 'input' else 'OUT'}{int(found[2]):02}"
    return next((block for start, block in _OUTSIDE if ldm.startswith(start)), "OTHER")


def block_order(block: str) -> tuple[int, str]:
    """Sorts blocks as the data runs through them."""
    starts = ("TE", "TIME", "LABEL", "IN", "M", "OUT0", "OUT1", "OUT")
    return next((place for place, start in enumerate(starts) if block.startswith(start)), len(starts)), block
