"""One Stable Diffusion 1 checkpoint, two spellings: the original file's parameter names (LDM) and those of diffusers' and transformers' modules.

Each part is one table of (module path in the file, module path in the library); both directions and all of a part's sizes come from it.

Source: names read in CompVis/stable-diffusion (ldm/modules) and in diffusers' and transformers' modules.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
"""What a part's parameters start with in a checkpoint file."""
_TEXT_LEVEL = "text_model."
_POSITIONS = "embeddings.position_ids"

_RESNET = [("in_layers.0", "norm1"), ("in_layers.2", "conv1"), ("emb_layers.1", "time_emb_proj"), ("out_layers.0", "norm2"),
           ("out_layers.3", "conv2"), ("skip_connection", "conv_shortcut")]
_VAE_ATTENTION = [("norm", "group_norm"), ("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")]


def unet_table(multipliers: int = 4, blocks: int = 2, attention: tuple[bool, ...] = (True, True, True, False)) -> list[tuple[str, str]]:
    """(LDM path, diffusers path) of the UNet's modules.

    Args:
        multipliers: levels of resolution.
        blocks: residual blocks a level on the way down; the way up has one more.
        attention: which levels have attention, from the full resolution down.
    """
    table = [("time_embed.0", "time_embedding.linear_1"), ("time_embed.2", "time_embedding.linear_2"), ("input_blocks.0.0", "conv_in"),
             ("out.0", "conv_norm_out"), ("out.2", "conv_out"), ("middle_block.1", "mid_block.attentions.0")]
    resnets = [("middle_block.0", "mid_block.resnets.0"), ("middle_block.2", "mid_block.resnets.1")]
    place = 1
    for level in range(multipliers):
        for block in range(blocks):
            resnets.append((f"input_blocks.{place}.0", f"down_blocks.{level}.resnets.{block}"))
            if attention[level]:
                table.append((f"input_blocks.{place}.1", f"down_blocks.{level}.attentions.{block}"))
            place += 1
        if level + 1 < multipliers:
            table.append((f"input_blocks.{place}.0.op", f"down_blocks.{level}.downsamplers.0.conv"))
            place += 1
    place = 0
    for up, level in enumerate(reversed(range(multipliers))):
        for block in range(blocks + 1):
            resnets.append((f"output_blocks.{place}.0", f"up_blocks.{up}.resnets.{block}"))
            if attention[level]:
                table.append((f"output_blocks.{place}.1", f"up_blocks.{up}.attentions.{block}"))
            if level and block == blocks:
                table.append((f"output_blocks.{place}.{2 if attention[level] else 1}.conv", f"up_blocks.{up}.upsamplers.0.conv"))
            place += 1
    return table + [(f"{old}.{a}", f"{new}.{b}") for old, new in resnets for a, b in _RESNET]


def vae_table(levels: int = 4, blocks: int = 2) -> list[tuple[str, str]]:
    """(LDM path, diffusers path) of the autoencoder's modules; the decoder's levels are counted from the other end."""
    table = [("quant_conv", "quant_conv"), ("post_quant_conv", "post_quant_conv")]
    resnets = []
    for half, (old, new, sample, count) in {"encoder": ("down", "down_blocks", "downsample", blocks),
                                            "decoder": ("up", "up_blocks", "upsample", blocks + 1)}.items():
        table += [(f"{half}.conv_in", f"{half}.conv_in"), (f"{half}.norm_out", f"{half}.conv_norm_out"), (f"{half}.conv_out", f"{half}.conv_out")]
        table += [(f"{half}.mid.attn_1.{a}", f"{half}.mid_block.attentions.0.{b}") for a, b in _VAE_ATTENTION]
        resnets += [(f"{half}.mid.block_{i + 1}", f"{half}.mid_block.resnets.{i}") for i in range(2)]
        for level in range(levels):
            there = f"{half}.{new}.{level if half == 'encoder' else levels - 1 - level}"
            resnets += [(f"{half}.{old}.{level}.block.{i}", f"{there}.resnets.{i}") for i in range(count)]
            table.append((f"{half}.{old}.{level}.{sample}.conv", f"{there}.{sample}rs.0.conv"))
    leaves = [(part, part) for part in ("norm1", "conv1", "norm2", "conv2")] + [("nin_shortcut", "conv_shortcut")]
    return table + [(f"{old}.{a}", f"{new}.{b}") for old, new in resnets for a, b in leaves]


def _renamed(names: Iterable[str], table: Mapping[str, str]) -> dict[str, str]:
    """{name: its other spelling} for the names whose beginning the table knows."""
    found = {}
    for name in names:
        parts = name.split(".")
        for count in range(len(parts) - 1, 0, -1):
            head = ".".join(parts[:count])
            if head in table:
                found[name] = ".".join([table[head], *parts[count:]])
                break
    return found


def _levels(names: Iterable[str], prefix: str, block: str) -> tuple[int, int]:
    """How many levels, and residual blocks on the first, there are under prefix.LEVEL.block.BLOCK."""
    places = [name[len(prefix):].split(".") for name in names if name.startswith(prefix)]
    levels = {int(place[0]) for place in places}
    blocks = {int(place[2]) for place in places if place[0] == "0" and place[1] == block}
    return len(levels), len(blocks)


def read_part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, without it."""
    return {name[len(prefix):]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def unet_to_diffusers(part: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A file's UNet (its prefix taken off) as the state of diffusers' UNet2DConditionModel; what SD 1 has no place for is left out."""
    return {new: part[old] for old, new in _renamed(part, dict(unet_table())).items()}


def unet_to_ldm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of unet_to_diffusers."""
    return {new: state[old] for old, new in _renamed(state, {b: a for a, b in unet_table()}).items()}


def vae_to_diffusers(part: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A file's autoencoder (its prefix taken off) as the state of diffusers' AutoencoderKL."""
    levels, blocks = _levels(part, "encoder.down.", "block")
    names = _renamed(part, dict(vae_table(levels, blocks)))
    return {new: part[old].flatten(1) if _is_vae_projection(new) else part[old] for old, new in names.items()}


def vae_to_ldm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of vae_to_diffusers."""
    levels, blocks = _levels(state, "encoder.down_blocks.", "resnets")
    names = _renamed(state, {b: a for a, b in vae_table(levels, blocks)})
    return {new: state[old][:, :, None, None] if _is_vae_projection(old) else state[old] for old, new in names.items()}


def _is_vae_projection(name: str) -> bool:
    """Whether a diffusers name is a linear weight that the file keeps as a 1x1 convolution."""
    return ".attentions." in name and ".to_" in name and name.endswith(".weight")


def text_to_transformers(part: Mapping[str, Tensor], level: str = "") -> dict[str, Tensor]:
    """A file's text model (its prefix taken off) as the state of transformers' CLIPTextModel.

    Args:
        level: "text_model." for transformers below 5, which has that level in its names; files may be with or without it.
    """
    return {level + name.removeprefix(_TEXT_LEVEL): tensor for name, tensor in part.items() if not name.endswith(_POSITIONS)}


def text_to_ldm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of text_to_transformers, with the table of positions that old readers look for."""
    plain = {name.removeprefix(_TEXT_LEVEL): tensor for name, tensor in state.items()}
    positions = torch.arange(plain["embeddings.position_embedding.weight"].shape[0])[None]
    return {_TEXT_LEVEL + name: tensor for name, tensor in {**plain, _POSITIONS: positions}.items()}


def make_checkpoint(unet: Mapping[str, Tensor], vae: Mapping[str, Tensor], text: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an original SD 1 checkpoint file, contiguous, from the three modules' state dicts."""
    parts = {UNET: unet_to_ldm(unet), VAE: vae_to_ldm(vae), TEXT: text_to_ldm(text)}
    return {prefix + name: tensor.detach().contiguous() for prefix, part in parts.items() for name, tensor in part.items()}


# ------------------------------------------------------------------ sizes, from shapes

def unet_config(part: Mapping[str, Tensor], heads: int = 8, head_width: int | None = None) -> dict:
    """The arguments of diffusers' UNet2DConditionModel for a file's UNet.

    Args:
        heads: attention heads at every level; no shape tells it.
        head_width: width of a head instead, so that their count grows with the level.
    """
    widths = [part[f"input_blocks.{place}.0.out_layers.3.weight"].shape[0] for place in (1, 4, 7, 10)]
    first = part["input_blocks.0.0.weight"]
    return {"in_channels": first.shape[1], "out_channels": part["out.2.weight"].shape[0], "block_out_channels": widths, "layers_per_block": 2,
            "cross_attention_dim": part["input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"].shape[1],
            # diffusers' attention_head_dim is the number of heads
            "attention_head_dim": [width // head_width for width in widths] if head_width else heads, "sample_size": 64,
            "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3}


def vae_config(part: Mapping[str, Tensor]) -> dict:
    """The arguments of diffusers' AutoencoderKL for a file's autoencoder."""
    levels, blocks = _levels(part, "encoder.down.", "block")
    widths = [part[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in range(levels)]
    return {"block_out_channels": widths, "layers_per_block": blocks,
            "latent_channels": part["decoder.conv_in.weight"].shape[1], "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels, "norm_num_groups": 32, "sample_size": 512}


def text_config(state: Mapping[str, Tensor], given: Mapping | None = None) -> dict:
    """The arguments of transformers' CLIPTextConfig for a text model's state.

    Args:
        state: as text_to_transformers gives it, without level.
        given: the config.json beside a checkpoint, for what no shape tells: heads, activation. Otherwise they are those of ViT-L/14.
    """
    words = state["embeddings.token_embedding.weight"]
    layers = {int(name.split(".")[2]) for name in state if name.startswith("encoder.layers.")}
    width, given = words.shape[1], given or {}
    return {"vocab_size": words.shape[0], "hidden_size": width, "intermediate_size": state["encoder.layers.0.mlp.fc1.weight"].shape[0],
            "num_hidden_layers": len(layers), "max_position_embeddings": state["embeddings.position_embedding.weight"].shape[0],
            "num_attention_heads": given.get("num_attention_heads", max(1, width // 64)), "hidden_act": given.get("hidden_act", "quick_gelu"),
            "layer_norm_eps": given.get("layer_norm_eps", 1e-5), "projection_dim": given.get("projection_dim", width),
            "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
