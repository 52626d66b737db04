"""A checkpoint's tensors as the modules that networks name: SD 1, SD 2 and SDXL in the original (LDM) layout, or a bare UNet in either naming."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from lib_lycoris.errors import CheckpointError, shown
from lib_lycoris.files.spelling import normal_name
from lib_lycoris.tools.names import SDXL, Key

# What a text encoder's keys start with, its component, in the order of trial; "1." and "0." are SDXL's two, SD 1 and 2 have one.
_TEXT_ENCODERS = (
    ("conditioner.embedders.0.", "te1"),
    ("conditioner.embedders.1.", "te2"),
    ("cond_stage_model.", "te1"),
)
_UNETS = ("model.diffusion_model.", "diffusion_model.", "")
_UNET_MODULE = re.compile(r"((input|output|down|up)_blocks|middle_block|mid_block|out|time_embed|label_emb|conv_\w+|time_embedding|add_embedding)\.")
_FUSED = re.compile(r"(.+)_in_proj_(weight|bias)$")


@dataclass(frozen=True)
class Slot:
    """A module's weight or bias in the file: the tensor's name, and which third of its rows where q, k and v share one (None: the whole)."""

    name: str
    third: int | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """This module's part of the tensor; a view."""
        return tensor if self.third is None else tensor.chunk(3)[self.third]


def find_slots(names: Iterable[str], path: object) -> dict[Key, dict[str, Slot]]:
    """{(component, name): {"weight": slot, "bias": slot}} of a checkpoint's UNet and text encoders.

    Raises:
        CheckpointError: no UNet is in it.
    """
    names = list(names)
    prefix = next((start for start in _UNETS if any(re.match(rf"{re.escape(start)}(input_blocks|down_blocks)\.", name) for name in names)), None)
    if prefix is None:
        raise CheckpointError(f"{shown(path)} holds no Stable Diffusion UNet; name a whole checkpoint file (.safetensors or .ckpt)")
    slots: dict[Key, dict[str, Slot]] = {}
    for name in names:
        for key, kind, slot in _slots_of(name, prefix):
            slots.setdefault(key, {}).setdefault(kind, slot)
    return slots


def checkpoint_base(shapes: Mapping[str, tuple[object, tuple[int, ...]]]) -> str | None:
    """"sd_v1", "sd_v2" or "sdxl_base_v1-0" from a checkpoint's text encoders and its attention blocks' projections, convolutions in SD 1 alone."""
    if any(name.startswith("conditioner.embedders.1.") for name in shapes):
        return SDXL
    projections = [len(shape) for name, (_, shape) in shapes.items() if name.endswith(".proj_in.weight")]
    return ("sd_v1" if projections[0] == 4 else "sd_v2") if projections else None


def _slots_of(name: str, unet: str) -> Iterable[tuple[Key, str, Slot]]:
    place = next(((start, component) for start, component in _TEXT_ENCODERS if name.startswith(start)), None)
    if place is not None:
        component, rest = place[1], name[len(place[0]) :]
        fused = _FUSED.match(rest.replace(".", "_"))
        if fused:
            for third, part in enumerate("qkv"):
                yield (component, normal_name(f"{fused[1]}_{part}_proj")[1]), fused[2], Slot(name, third)
            return
        rest = rest.removeprefix("model.") if rest.startswith("model.transformer.") else rest
        # some SD 1 files lack the level text_model
        rest = re.sub(r"^transformer\.(?=encoder\.|embeddings\.|final_layer_norm\.)", "text_model.", rest)
        yield from _plain(component, rest, name)
    elif name.startswith(unet) and _UNET_MODULE.match(name, len(unet)):
        yield from _plain("unet", name[len(unet) :], name)


def _plain(component: str, rest: str, name: str) -> Iterable[tuple[Key, str, Slot]]:
    module, _, kind = rest.rpartition(".")
    if kind in ("weight", "bias") and module:
        prefix = "unet." if component == "unet" else "text_encoder."
        yield (component, normal_name(prefix + module)[1]), kind, Slot(name)
