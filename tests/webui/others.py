"""Other people's extensions beside ours: where they lie, what starts them, and small model files for them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from .real import find_webui

CONTROLNET, TILED, FREEU = "sd-webui-controlnet", "multidiffusion-upscaler-for-automatic1111", "sd-webui-freeu"
NAMES = (CONTROLNET, TILED, FREEU)
UNSET = ("WEBUI_EXTENSIONS is not set: the tests beside other extensions were skipped (set it to a folder that has " + ", ".join(NAMES)
         + "; WEBUI_EXTENSIONS_PACKAGES to one with what they import and the WebUI lacks)")
HINTS = (3, 16, 16, 32, 32, 96, 96, 256)


def find_extensions() -> list[Path]:
    """The folders of the extensions in $WEBUI_EXTENSIONS; skips the test where it is unset or has not all of them."""
    folder = os.environ.get("WEBUI_EXTENSIONS")
    if not folder or find_webui() is None:
        pytest.skip(UNSET)
    found = [Path(folder).expanduser().resolve() / name for name in NAMES]
    missing = [path.name for path in found if not (path / "scripts").is_dir()]
    if missing:
        pytest.skip(f"WEBUI_EXTENSIONS={folder} has no {', '.join(missing)}: the tests beside other extensions were skipped")
    return found


def write_checkpoints(models: Path, *names: str) -> None:
    """Writes these of tiny_checkpoints.py beside the WebUI's own checkpoint."""
    from .tiny_checkpoints import __file__ as script

    host, python = find_webui()
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    offline = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([str(python), script, str(models), *names], cwd=host, env=environment | offline, check=True, capture_output=True, timeout=600)


def write_controlnet(checkpoint: Path, config: dict[str, Any], path: Path, seed: int) -> dict[str, Any]:
    """A ControlNet for this checkpoint: its UNet's first half, and random layers where a fresh one has zeros; gives its sizes as the extension spells them."""
    unet = "model.diffusion_model."
    tensors = {name.removeprefix(unet): value for name, value in load_file(str(checkpoint)).items() if name.startswith(unet)}
    kept = ("time_embed.", "label_emb.", "input_blocks.", "middle_block.")
    tensors = {name: value.clone() for name, value in tensors.items() if name.startswith(kept)}
    random = torch.Generator().manual_seed(seed)

    def put(name: str, *shape: int) -> None:
        fan_in = torch.Size(shape[1:]).numel()
        tensors[f"{name}.weight"] = torch.randn(shape, generator=random) * (2 / fan_in) ** 0.5
        tensors[f"{name}.bias"] = torch.zeros(shape[0])

    width = config["model_channels"]
    for number, shape in enumerate(zip((*HINTS[1:], width), HINTS, strict=True)):
        put(f"input_hint_block.{2 * number}", *shape, 3, 3)
    widths = [width]
    for level, factor in enumerate(config["channel_mult"]):
        widths += [factor * width] * (config["num_res_blocks"] + (level < len(config["channel_mult"]) - 1))
    for number, each in enumerate(widths):
        put(f"zero_convs.{number}.0", each, each, 1, 1)
    put("middle_block_out.0", widths[-1], widths[-1], 1, 1)
    save_file({f"control_model.{name}": value.contiguous() for name, value in tensors.items()}, str(path))
    names = ("model_channels", "channel_mult", "num_res_blocks", "attention_resolutions", "transformer_depth", "context_dim", "num_heads", "num_head_channels",
             "adm_in_channels", "use_linear_in_transformer")
    sizes = {name: config[name] for name in names if name in config}
    depths = sizes.get("transformer_depth", 1)
    return sizes | ({"transformer_depth_middle": depths[-1]} if isinstance(depths, list) else {})


def read_config(checkpoint: Path) -> dict[str, Any]:
    """A UNet's sizes, of the checkpoint's yaml."""
    params = json.loads(checkpoint.with_suffix(".yaml").read_text())["model"]["params"]
    return (params.get("unet_config") or params["network_config"])["params"]


def unet_shapes(checkpoint: Path) -> dict[tuple[str, str], tuple[int, ...]]:
    """Shapes of a checkpoint's UNet layers by diffusers' names."""
    from lib_lycoris.files.spelling import ldm_to_diffusers_unet

    unet, shapes = "model.diffusion_model.", {}
    with safe_open(str(checkpoint), "pt") as file:
        for key in file.keys():  # noqa: SIM118 (it is no mapping)
            if key.startswith(unet) and key.endswith(".weight"):
                shapes["unet", ldm_to_diffusers_unet(key[len(unet):-len(".weight")].replace(".", "_"))] = tuple(file.get_slice(key).get_shape())
    return shapes


def controlnet(model: str = "None", picture: str | None = None, module: str = "none", **more: Any) -> dict[str, Any]:
    """What the API is asked for one of the extension's units."""
    return {"ControlNet": {"args": [{"enabled": True, "module": module, "model": model, "image": picture, "resize_mode": "Just Resize", **more}]}}


def tiled(method: str = "MultiDiffusion", enabled: bool = True, tile: int = 16, overlap: int = 8, batch: int = 4, regions: tuple = (),
          background: bool = True) -> dict[str, Any]:
    """What the API is asked for Tiled Diffusion; regions: (x, y, w, h, prompt) as parts of the picture."""
    empty = [False, 0.4, 0.4, 0.2, 0.2, "", "", "Background", 0.2, -1]
    boxes = [[True, *region[:4], region[4], "", "Background", 0.2, 7] for region in regions]
    boxes += [empty] * (8 - len(boxes))
    return {"Tiled Diffusion": {"args": [enabled, method, False, True, 64, 64, tile, tile, overlap, batch, "None", 1.0, False, 10, 1, 1, 64, False,
                                         bool(regions), background, False, *(value for box in boxes for value in box)]}}


def freeu(**more: Any) -> dict[str, Any]:
    """What the API is asked for FreeU: all three widths that it knows, strongly."""
    stage = {"backbone_factor": 1.6, "skip_factor": 0.4, "backbone_width": 1.0, "skip_cutoff": 0.3}
    return {"FreeU": {"args": [{"enable": True, "version": "2", "stage_infos": [stage] * 3, **more}]}}
