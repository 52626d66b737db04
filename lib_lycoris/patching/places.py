"""Where in a UNet an adapter's feature maps are added: at block outputs that go both to the next block and to the decoder.

Source: TencentARC/T2I-Adapter, ldm/modules/diffusionmodules/openaimodel.py (branch SD); huggingface/diffusers, models/unets/unet_2d_blocks.py and
unet_2d_condition.py (58eb52c).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from lib_lycoris.errors import ConfigError

from .naming import is_diffusers, is_ldm, unet_root


@dataclass(frozen=True)
class Place:
    """A module whose output gets a map.

    Attributes:
        module: its forward hook adds the map.
        name: its path in the UNet.
        channels: of its output.
    """

    module: nn.Module
    name: str
    channels: int


@dataclass(frozen=True)
class Places:
    """All four, from the largest map to the smallest, and the layout of adapters that fits them: "sd" (SD 1 and 2) or "sdxl"."""

    layout: str
    places: tuple[Place, ...]

    @property
    def channels(self) -> tuple[int, ...]:
        """Of each map."""
        return tuple(place.channels for place in self.places)


def find_places(unet: nn.Module) -> Places:
    """The places of a UNet in LDM's or diffusers' naming, or of the one within `unet`.

    UNets of four depths (SD 1, SD 2) get a map at the end of each; those of three (SDXL) behind the first downsampling, at the end of the second and third,
    and behind the middle.

    Raises:
        ConfigError: it has other depths, or names of neither kind.
    """
    root = unet_root(unet)
    depths = _ldm_depths(root) if is_ldm(root) else _diffusers_depths(root) if is_diffusers(root) else []
    if len(depths) == 4:
        return Places("sd", tuple(last for last, _ in depths))
    middle_name = "middle_block" if is_ldm(root) else "mid_block"
    middle = getattr(root, middle_name, None)
    if len(depths) == 3 and depths[0][1] is not None and middle is not None:
        return Places("sdxl", (depths[0][1], depths[1][0], depths[2][0], Place(middle, middle_name, _channels(middle))))
    raise ConfigError(f"T2I-Adapters are made for the UNets of SD 1, SD 2 and SDXL; a {type(root).__name__} with {len(depths)} depths has no places for them")


def feature_channels(unet: nn.Module) -> tuple[int, ...]:
    """The channels of the four maps that a UNet takes.

    Raises:
        ConfigError: as `find_places`.
    """
    return find_places(unet).channels


def _ldm_depths(unet: nn.Module) -> list[tuple[Place, Place | None]]:
    """For each depth the last block of it, and the block that leads to the next."""
    depths: list[tuple[Place, Place | None]] = []
    last = None
    for number, block in enumerate(unet.input_blocks):
        name = f"input_blocks.{number}"
        if any(hasattr(part, "in_layers") for part in block):
            last = Place(block, name, _channels(next(part for part in block if hasattr(part, "in_layers"))))
        elif last is not None and any(hasattr(part, "op") for part in block):
            depths.append((last, Place(block, name, _channels(block) or last.channels)))
            last = None
    return [*depths, (last, None)] if last is not None else depths


def _diffusers_depths(unet: nn.Module) -> list[tuple[Place, Place | None]]:
    depths = []
    for number, block in enumerate(unet.down_blocks):
        name, channels = f"down_blocks.{number}", _channels(block.resnets[-1])
        kind = "attentions" if len(getattr(block, "attentions", None) or ()) else "resnets"
        modules = getattr(block, kind)
        last = Place(modules[-1], f"{name}.{kind}.{len(modules) - 1}", channels)
        downs = getattr(block, "downsamplers", None)
        depths.append((last, Place(downs[-1], f"{name}.downsamplers.{len(downs) - 1}", _channels(downs[-1]) or channels) if downs else None))
    return depths


def _channels(module: nn.Module) -> int:
    """Channels of the output: those of the last convolution within, of which none changes them again."""
    return next((part.out_channels for part in reversed(list(module.modules())) if hasattr(part, "out_channels")), 0)
