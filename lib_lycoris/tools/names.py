"""Module names of the Stable Diffusion family: with dots, their block in the U, and whether they are convolutions. Pure text."""

from __future__ import annotations

import re

from lib_lycoris.errors import NetworkFileError, shown
from lib_lycoris.files.spelling import diffusers_to_ldm_unet, kohya_name

# Path elements of diffusers' UNet and transformers' CLIP that have a "_" of their own, and those that have none.
_JOINED = """down_blocks up_blocks mid_block transformer_blocks to_q to_k to_v to_out proj_in proj_out time_embedding add_embedding linear_1 linear_2
    conv_in conv_out conv_norm_out time_emb_proj conv_shortcut text_model self_attn q_proj k_proj v_proj out_proj layer_norm1 layer_norm2 final_layer_norm
    token_embedding position_embedding text_projection"""
_PLAIN = "attentions resnets downsamplers upsamplers conv conv1 conv2 norm norm1 norm2 norm3 attn1 attn2 ff net proj encoder layers mlp fc1 fc2 embeddings"
_ELEMENT = re.compile(f"({'|'.join(sorted([*_JOINED.split(), *_PLAIN.split()], key=len, reverse=True))}|[0-9]+)(_|$)")

_CONVOLUTION = re.compile(r"(^|_)(conv1|conv2|conv_in|conv_out|(down|up)samplers_0_conv)$")
_PROJECTION = re.compile(r"_attentions_\d+_proj_(in|out)$")
_LDM_BLOCK = re.compile(r"(input|output)_blocks_(\d+)_")
_OUTSIDE = (("time_embed", "TIME"), ("label_emb", "LABEL"), ("out_", "OUT"), ("middle_block_", "M00"))

Key = tuple[str, str]
"""(component, name) as files.spelling.normal_name gives them."""

SDXL = "sdxl_base_v1-0"


def dotted_name(name: str) -> str:
    """A normal name's path with dots, as the modules of diffusers' UNet and transformers' CLIPTextModel are called.

    Raises:
        NetworkFileError: an element is none of theirs.
    """
    parts, place = [], 0
    while place < len(name):
        found = _ELEMENT.match(name, place)
        if found is None:
            raise NetworkFileError(f"layer {shown(name)} is none of a Stable Diffusion model's that diffusers names; write kohya's form, which keeps any name")
        parts.append(found[1])
        place = found.end()
    return ".".join(parts)


def kohya_key(key: Key, base_model: str | None) -> str:
    """The module part of kohya's key. Like kohya's own files, SDXL's UNet has LDM names and the others diffusers'."""
    component, name = key
    if component == "unet" and base_model == SDXL:
        name = diffusers_to_ldm_unet(name, sdxl=True)
    return kohya_name(component, name, single_text_encoder=base_model != SDXL)


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
