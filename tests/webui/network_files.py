"""Network files for a checkpoint of any width, in kohya's format, and checkpoints with other weights."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lib_lycoris.files.spelling import kohya_name, ldm_to_diffusers_unet

Shapes = dict[tuple[str, str], tuple[int, ...]]
"""(component, diffusers path with "_") → the weight's shape."""

_UNET = "model.diffusion_model."
_TEXT = "cond_stage_model.transformer."
LINEAR = re.compile(r"(attn[12]_to_[qkv]|attn[12]_to_out_0|ff_net_0_proj|ff_net_2|proj_in|proj_out|[qkv]_proj|out_proj|mlp_fc[12])$")
CONVOLUTION = re.compile(r"(conv1|conv2|downsamplers_0_conv|upsamplers_0_conv)$")


def read_shapes(checkpoint: Path) -> Shapes:
    """The shapes of a checkpoint's layers that networks act on."""
    shapes = {}
    with safe_open(str(checkpoint), "pt") as file:
        for key in file.keys():  # noqa: SIM118 (it is no mapping)
            name = key.removesuffix(".weight")
            if name == key:
                continue
            shape = tuple(file.get_slice(key).get_shape())
            if name.startswith(_UNET):
                shapes["unet", ldm_to_diffusers_unet(name[len(_UNET):].replace(".", "_"))] = shape
            elif name.startswith(_TEXT):
                shapes["te1", name[len(_TEXT):].replace(".", "_")] = shape
    return shapes


def write_network(path: Path, shapes: Shapes, seed: int, pattern: re.Pattern = LINEAR, rank: int = 4, size: float = 0.3) -> None:
    """A LoRA on the layers whose names match; ΔW is about `size` times as large as a usual weight.

    Convolutions get a LoCon's two tensors. Half of the layers have an alpha that is not the rank.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for number, ((component, name), shape) in enumerate(sorted(shapes.items())):
        if not pattern.search(name):
            continue
        key = kohya_name(component, name)
        fan_in = torch.Size(shape[1:]).numel()
        up_shape, down_shape = (shape[0], rank, *[1] * (len(shape) - 2)), (rank, *shape[1:])
        tensors[f"{key}.lora_up.weight"] = torch.randn(up_shape, generator=generator) * (size / rank**0.5)
        tensors[f"{key}.lora_down.weight"] = torch.randn(down_shape, generator=generator) / fan_in**0.5
        tensors[f"{key}.alpha"] = torch.tensor(float(rank if number % 2 else rank / 2))
    assert tensors, "no layer matches"
    save_file(tensors, str(path), {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_base_model_version": "sd_v1"})


def write_ia3(path: Path, shapes: Shapes, seed: int, pattern: re.Pattern = LINEAR, size: float = 0.5) -> None:
    """An (IA)³ of LyCORIS on the UNet's layers whose names match: ΔW is the weight itself times a factor of about `size` for each output."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for (component, name), shape in sorted(shapes.items()):
        if component == "unet" and pattern.search(name):
            key = kohya_name(component, name)
            tensors[f"{key}.weight"] = size * torch.randn(shape[0], *[1] * (len(shape) - 2 and len(shape) - 1), generator=generator)
            tensors[f"{key}.on_input"] = torch.tensor(False)
    save_file(tensors, str(path))


def write_foreign_network(path: Path, homeless: int, shapes: Shapes) -> None:
    """A LoRA with one layer that the model has and `homeless` ones of SDXL that it has not."""
    write_network(path, {key: shape for key, shape in shapes.items() if key == ("unet", "mid_block_attentions_0_proj_in")}, seed=7)
    tensors = load_file(str(path))
    for number in range(homeless):
        key = f"lora_unet_mid_block_attentions_0_transformer_blocks_{number + 1}_attn2_to_k"
        tensors |= {f"{key}.lora_up.weight": torch.ones(1280, 4), f"{key}.lora_down.weight": torch.ones(4, 2048), f"{key}.alpha": torch.tensor(4.0)}
    save_file(tensors, str(path))


def write_sibling(source: Path, path: Path, seed: int) -> None:
    """A checkpoint of the same architecture whose UNet and text encoder have other weights."""
    generator = torch.Generator().manual_seed(seed)
    tensors = load_file(str(source))
    for name in sorted(tensors):
        if name.startswith((_UNET, _TEXT)) and tensors[name].is_floating_point() and tensors[name].dim() > 1:
            noise = torch.randn(tensors[name].shape, generator=generator).to(tensors[name].dtype)
            tensors[name] = tensors[name] + 0.3 * tensors[name].float().std().to(tensors[name].dtype) * noise
    save_file(tensors, str(path))
