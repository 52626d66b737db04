"""Adapter files for a checkpoint of any width: random ones that change a picture plainly."""

from __future__ import annotations

from pathlib import Path

import torch

from lib_lycoris.library.adapters import write_adapter
from lib_lycoris.networks.adapters.full import FullAdapter

from .network_files import Shapes

ENDS = [f"down_blocks_{level}_resnets_1_conv2" for level in range(4)]
"""The last convolutions before the places where an SD 1 adapter's features are added."""


def write_adapters(folder: Path, shapes: Shapes) -> None:
    """"canny one" and "second" for this checkpoint, "xl" for SDXL, "wide" for another UNet of SD 1; a ControlNet; and a file that was cut off."""
    folder.mkdir(parents=True, exist_ok=True)
    channels = tuple(shapes["unet", end][0] for end in ENDS)
    write(folder / "canny one.safetensors", channels, seed=1, base_model="sd_v1", preprocessor="canny")
    (folder / "more").mkdir()
    write(folder / "more" / "second.safetensors", channels, seed=2)
    write(folder / "xl.safetensors", channels, seed=3, layout="sdxl", base_model="sdxl_base_v1-0")
    write(folder / "wide.safetensors", tuple(2 * width for width in channels), seed=4)
    whole = (folder / "canny one.safetensors").read_bytes()
    (folder / "broken.safetensors").write_bytes(whole[: len(whole) // 2])


def write(path: Path, channels: tuple[int, ...], seed: int, layout: str = "sd", **told) -> None:
    """A random full adapter whose features are about as large as what they are added to."""
    torch.manual_seed(seed)
    adapter = FullAdapter.create(zero=False, channels=channels, in_channels=3, layout=layout, blocks=1)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.mul_(1.5)
    write_adapter(path, adapter, **told)
