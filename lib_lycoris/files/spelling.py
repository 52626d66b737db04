"""Module names as files spell them ↔ one normal form: a component and the module's path in diffusers' naming, with "_" for ".". Pure text.

Source: facts of kohya's sd-scripts, LyCORIS, diffusers and PEFT savers; CompVis/stable-diffusion openaimodel.py for the layout of the LDM names.
"""

from __future__ import annotations

import re

from lib_lycoris.errors import NetworkFileError, shown

SDXL = "sdxl_base_v1-0"
"""The base model whose UNet kohya's files name as LDM does."""

# Longest first: "lora_te_" must not take "lora_te1_"'s keys, nor "unet_" those of "lora_unet_".
_PREFIXES = (
    ("base_model_model_", None),
    ("lora_unet_", "unet"),
    ("oft_unet_", "unet"),
    ("lora_te1_", "te1"),
    ("lora_te2_", "te2"),
    ("lora_te3_", "te3"),
    ("lora_te_", "te1"),
    ("lycoris_", None),
    ("clip_bigG_", "te2"),  # HCP-Diffusion's for SDXL
    ("clip_B_", "te1"),
    ("text_encoder_2_", "te2"),
    ("text_encoder_", "te1"),
    ("model_diffusion_model_", "unet"),
    ("diffusion_model_", "unet"),
    ("unet_", "unet"),
)
_TEXT_ENCODER = re.compile(r"(text_model|(model_)?transformer_(resblocks|text_model)|encoder_layers|embeddings|final_layer_norm|ln_final|text_projection)(_|$)")

# Path elements of diffusers' UNet and transformers' CLIP that have a "_" of their own, and those that have none.
_JOINED = """down_blocks up_blocks mid_block transformer_blocks to_q to_k to_v to_out proj_in proj_out time_embedding add_embedding linear_1 linear_2
    conv_in conv_out conv_norm_out time_emb_proj conv_shortcut text_model self_attn q_proj k_proj v_proj out_proj layer_norm1 layer_norm2 final_layer_norm
    token_embedding position_embedding text_projection"""
_PLAIN = "attentions resnets downsamplers upsamplers conv conv1 conv2 norm norm1 norm2 norm3 attn1 attn2 ff net proj encoder layers mlp fc1 fc2 embeddings"
_ELEMENT = re.compile(f"({'|'.join(sorted([*_JOINED.split(), *_PLAIN.split()], key=len, reverse=True))}|[0-9]+)(_|$)")

_RESNET_TO_DIFFUSERS = {
    "in_layers_0": "norm1",
    "in_layers_2": "conv1",
    "emb_layers_1": "time_emb_proj",
    "out_layers_0": "norm2",
    "out_layers_3": "conv2",
    "skip_connection": "conv_shortcut",
}
_RESNET_TO_LDM = {diffusers: ldm for ldm, diffusers in _RESNET_TO_DIFFUSERS.items()}
_ENDS_TO_DIFFUSERS = {
    "input_blocks_0_0": "conv_in",
    "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
    "out_0": "conv_norm_out",
    "out_2": "conv_out",
}
_ENDS_TO_LDM = {diffusers: ldm for ldm, diffusers in _ENDS_TO_DIFFUSERS.items()}

_LDM_BLOCK = re.compile(r"(input|output)_blocks_(\d+)_(\d)(?:_(.+))?")
_LDM_MIDDLE = re.compile(r"middle_block_([012])(?:_(.+))?")
_DIFFUSERS_BLOCK = re.compile(r"(down|up)_blocks_(\d+)_(resnets|attentions|downsamplers|upsamplers)_(\d+)(?:_(.+))?")
_DIFFUSERS_MIDDLE = re.compile(r"mid_block_(resnets|attentions)_([01])(?:_(.+))?")

_OPEN_CLIP_LAYER = re.compile(r"(?:model_)?transformer_resblocks_(\d+)(?:_(.+))?")
_OPEN_CLIP_PARTS = (("attn", "self_attn"), ("mlp_c_fc", "mlp_fc1"), ("mlp_c_proj", "mlp_fc2"), ("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"))
_OLD_ATTENTION = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


def normal_name(key: str) -> tuple[str, str]:
    """The component ("unet", "te1", "te2"; "te3" for files of later models) and the module's name, for a module path as any file spells it.

    The name is diffusers' (UNet) or CLIPTextModel's path with "_" for ".". A path that is no known model's is given back as it is, as a part of the UNet.
    """
    component, name = _split_component(key.replace(".", "_"))
    return component, _normal_unet(name) if component == "unet" else _normal_text_encoder(name)


def ldm_to_diffusers_unet(name: str) -> str:
    """diffusers' name for an LDM UNet module's underscored name, for SD 1, SD 2 and SDXL alike; any other name unchanged."""
    if name in _ENDS_TO_DIFFUSERS:
        return _ENDS_TO_DIFFUSERS[name]
    if match := _LDM_MIDDLE.fullmatch(name):
        part, rest = int(match[1]), match[2]
        return _join("mid_block_attentions_0", rest) if part == 1 else _join(f"mid_block_resnets_{part // 2}", _RESNET_TO_DIFFUSERS.get(rest, rest))
    if match := _LDM_BLOCK.fullmatch(name):
        side, index, part, rest = match[1], int(match[2]), int(match[3]), match[4]
        return _input_block(index, part, rest) if side == "input" else _output_block(index, part, rest)
    return name


def diffusers_to_ldm_unet(name: str, sdxl: bool = False) -> str:
    """The LDM name for a diffusers UNet module's underscored name; any other name unchanged.

    Args:
        name: for example "up_blocks_0_upsamplers_0_conv".
        sdxl: SDXL has attention in its first up block, so that the upsampler there stands third in its LDM block; in SD 1 and 2 it stands second.
    """
    if name in _ENDS_TO_LDM:
        return _ENDS_TO_LDM[name]
    if match := _DIFFUSERS_MIDDLE.fullmatch(name):
        kind, index, rest = match[1], int(match[2]), match[3]
        return _join("middle_block_1", rest) if kind == "attentions" else _join(f"middle_block_{2 * index}", _RESNET_TO_LDM.get(rest, rest))
    if match := _DIFFUSERS_BLOCK.fullmatch(name):
        side, level, kind, index, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
        if kind == "downsamplers":
            return _join(f"input_blocks_{3 + 3 * level}_0", {"conv": "op"}.get(rest, rest))
        if kind == "upsamplers":
            return _join(f"output_blocks_{2 + 3 * level}_{2 if level or sdxl else 1}", rest)
        block = f"input_blocks_{1 + 3 * level + index}" if side == "down" else f"output_blocks_{3 * level + index}"
        return _join(f"{block}_1", rest) if kind == "attentions" else _join(f"{block}_0", _RESNET_TO_LDM.get(rest, rest))
    return name


def kohya_name(component: str, name: str, single_text_encoder: bool = True) -> str:
    """The module part of kohya's key: ("unet", …) → "lora_unet_…", ("te1", …) → "lora_te_…", or "lora_te1_…" where the model has two text encoders."""
    prefix = {"unet": "lora_unet_", "te1": "lora_te_" if single_text_encoder else "lora_te1_", "te2": "lora_te2_", "te3": "lora_te3_"}[component]
    return prefix + name


def _split_component(name: str) -> tuple[str, str]:
    component = None
    for prefix, meant in _PREFIXES:
        if name.startswith(prefix):
            name, component = name[len(prefix) :], component or meant
    if component is None:
        component = "te1" if _TEXT_ENCODER.match(name) else "unet"
    return component, name


def _normal_unet(name: str) -> str:
    # diffusers' old attention processors: …attn1.processor.to_q, and to_out where the module is to_out.0
    name = ldm_to_diffusers_unet(name.replace("_processor_to_", "_to_"))
    return f"{name}_0" if name.endswith("_to_out") else name


def _normal_text_encoder(name: str) -> str:
    name = re.sub(r"^(transformer_)?(text_model_)+", "text_model_", name)
    if match := _OPEN_CLIP_LAYER.fullmatch(name):
        name = _join(f"text_model_encoder_layers_{match[1]}", _open_clip_part(match[2]))
    if match := re.fullmatch(r"(model_)?(ln_final|positional_embedding|token_embedding)", name):
        ends = {"ln_final": "final_layer_norm", "positional_embedding": "embeddings_position_embedding", "token_embedding": "embeddings_token_embedding"}
        name = ends[match[2]]
    if name.startswith(("encoder_layers_", "embeddings_", "final_layer_norm")):  # open_clip's from above, and transformers 5, which has no text_model level
        name = f"text_model_{name}"
    head, _, old = name.partition("_self_attn_")
    return f"{head}_self_attn_{_OLD_ATTENTION[old]}" if old in _OLD_ATTENTION else name


def _open_clip_part(rest: str | None) -> str | None:
    for open_clip, clip in _OPEN_CLIP_PARTS:
        if rest is not None and (rest == open_clip or rest.startswith(f"{open_clip}_")):
            return clip + rest[len(open_clip) :]
    return rest


def _input_block(index: int, part: int, rest: str | None) -> str:
    level, place = divmod(index - 1, 3)
    if place == 2:
        return _join(f"down_blocks_{level}_downsamplers_0", {"op": "conv"}.get(rest, rest))
    return _block_part(f"down_blocks_{level}", place, part, rest)


def _output_block(index: int, part: int, rest: str | None) -> str:
    level, place = divmod(index, 3)
    if part == 2 or (part == 1 and rest == "conv"):
        return _join(f"up_blocks_{level}_upsamplers_0", rest)
    return _block_part(f"up_blocks_{level}", place, part, rest)


def _block_part(block: str, place: int, part: int, rest: str | None) -> str:
    return _join(f"{block}_attentions_{place}", rest) if part == 1 else _join(f"{block}_resnets_{place}", _RESNET_TO_DIFFUSERS.get(rest, rest))


def _join(head: str, rest: str | None) -> str:
    return f"{head}_{rest}" if rest else head


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


def kohya_key(key: tuple[str, str], base_model: str | None) -> str:
    """The module part of kohya's key. Like kohya's own files, SDXL's UNet has LDM names and the others diffusers'."""
    component, name = key
    if component == "unet" and base_model == SDXL:
        name = diffusers_to_ldm_unet(name, sdxl=True)
    return kohya_name(component, name, single_text_encoder=base_model != SDXL)
