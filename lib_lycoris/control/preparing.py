"""From units with their pictures to a Control for one pass: nothing that was asked for is left out without a word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lib_lycoris.errors import AdapterError, ConfigError, LycoError
from lib_lycoris.library.adapters import AdapterShelf
from lib_lycoris.networks.adapters.fuser import TASKS, CoAdapterFuser
from lib_lycoris.preprocess.sizes import fit
from lib_lycoris.preprocess.table import as_picture
from lib_lycoris.prompt.unit import Unit
from lib_lycoris.prompt.unit_values import AUTO_FUSER, NO_FUSER

from .control import Control
from .making import FeatureCache, See, grown_resolution, make_map, settled_unit
from .part import Part

LAYOUTS = {"sd": "SD 1 or SD 2", "sdxl": "SDXL"}
"""Whose UNet has which layout of feature maps."""


@dataclass(frozen=True, eq=False)
class Asked:
    """A unit and the pictures beside it.

    Attributes:
        unit: its values.
        pictures: [h,w,3] uint8 each; one for all pictures of a batch, or one for each of them, over and over. None where its preprocessor needs none.
        region: where it acts, white on black [h,w] or [h,w,3] uint8; None: everywhere.
    """

    unit: Unit
    pictures: tuple[Any, ...] = ()
    region: Any = None


class Preparation:
    """What stays from one pass or picture to the next: loaded adapters and computed features.

    Args:
        shelf: finds and loads adapters.
        see: CLIP's picture encoder, for style adapters; None: there is none.
    """

    def __init__(self, shelf: AdapterShelf, see: See | None = None):
        self.shelf, self.see = shelf, see
        self._cache = FeatureCache()

    def prepare(self, unet: nn.Module, asked: Sequence[Asked], size: tuple[int, int], batch: int = 1, device: torch.device | str = "cpu", hires: bool = False,
                base_model: str | None = None, fuser: str = AUTO_FUSER, first: tuple[int, int] | None = None) -> Prepared:
        """The Control of a pass, with nothing on the model yet. A unit that can't act is left out with a problem in words.

        Args:
            unet: what is steered.
            asked: the units; those that are not active, or not of this pass, are passed over.
            size: (width, height) in pixels, multiples of 8.
            batch: pictures.
            device: where features are computed and stay.
            hires: whether this is the second pass of a hires fix.
            base_model: the checkpoint's, for a word where an adapter is for another.
            fuser: "auto": a fuser's file that fits, where two adapters or more act that it knows, or one that was trained with it (by its name, coadapter…);
                "none"; or a file's name.
            first: (width, height) of the first pass, where this is the hires pass: maps are then made anew, as much finer as this one is larger.

        Raises:
            AdapterError: a unit that is strict can't act.
            ConfigError: the UNet is none that adapters are made for, though a unit is active.
        """
        chosen = {number: each for number, each in enumerate(asked, start=1) if each.unit.active and each.unit.in_pass(hires)}
        prepared = Prepared()
        if not chosen:
            return prepared
        prepared.control = Control(unet, self._find_fuser(fuser, list(chosen.values()), unet, prepared))
        for number, each in chosen.items():
            try:
                part, maps = self._make_part(prepared, each, size, batch, device, first if hires else None)
                prepared.control.add(part)
                prepared.maps.extend((number, made) for made in maps)
                prepared.units.append((number, settled_unit(each.unit, self.shelf.facts(each.unit.adapter))))
                self._remark(prepared, each.unit, base_model)
            except LycoError as error:
                problem = f"adapter {number} ({each.unit.adapter}) was left out: {error}"
                if each.unit.strict:
                    raise AdapterError(f"{problem} (it is set to stop then)") from error
                prepared.problems.append(problem)
        return prepared

    def _make_part(self, prepared: Prepared, asked: Asked, size: tuple[int, int], batch: int, device: torch.device | str,
                   first: tuple[int, int] | None) -> tuple[Part, list[Any]]:
        """What a unit adds, and the control maps that it was made of."""
        unit = asked.unit
        facts = self.shelf.facts(unit.adapter)
        layout = prepared.control.session.layout
        if facts.layout is not None and facts.layout != layout:  # full ones of SD 1 and SDXL have the same channels
            raise ConfigError(f"it is for another model: for {LAYOUTS[facts.layout]}, and this UNet is {LAYOUTS[layout]}'s; choose one that fits")
        if facts.kind == "fuser":
            raise ConfigError("it is the CoAdapter fuser, which acts on other adapters; choose those, and it is used by itself")
        adapter = self.shelf.load(unit.adapter)
        count = batch if len(asked.pictures) > 1 else len(asked.pictures)
        pictures = [as_picture(asked.pictures[place % len(asked.pictures)]) for place in range(count)]
        if facts.kind == "style":
            return Part(unit, self._speak(adapter, pictures, device), task="style"), []
        maps = [self._make_map(settled_unit(unit, facts), facts, picture, size, first) for picture in pictures or [None]]
        return Part(unit, self._cache.features(adapter, maps, device), facts.task if facts.task in TASKS else None, _region(asked, size, device)), maps

    @staticmethod
    def _make_map(unit: Unit, facts: Any, picture: Any, size: tuple[int, int], first: tuple[int, int] | None) -> Any:
        resolution = unit.processor_resolution if first is None else grown_resolution(unit.processor_resolution, first, size, picture)
        return make_map(replace(unit, processor_resolution=resolution), facts, picture, size)

    def _speak(self, adapter: Any, pictures: Sequence[Any], device: torch.device | str) -> tuple[Tensor, ...]:
        if self.see is None:
            raise ConfigError("a style adapter needs CLIP's picture encoder (clip-vit-large-patch14), and none is here")
        if not pictures:
            raise ConfigError("a style adapter needs a picture: give one")
        return self._cache.words(adapter, pictures, self.see, device)

    def _find_fuser(self, wanted: str, chosen: Sequence[Asked], unet: nn.Module, prepared: Prepared) -> CoAdapterFuser | None:
        if wanted == NO_FUSER:
            return None
        if wanted == AUTO_FUSER:
            known = [each for each in chosen if self._task_of(each.unit) in TASKS]
            if len(known) < 2 and not any("coadapter" in each.unit.adapter.lower() for each in known):
                return None
            wanted = next(iter(self.shelf.names(channels=Control(unet).channels, kinds=("fuser",))), "")
            if not wanted:
                return None
        try:
            fuser = self.shelf.load(wanted)
            if not isinstance(fuser, CoAdapterFuser):
                raise ConfigError(f"{wanted} is a {fuser.kind} adapter, no fuser")
            Control(unet, fuser)
        except LycoError as error:
            prepared.problems.append(f"the fuser was left out: {error}")
            return None
        prepared.fuser = wanted
        return fuser

    def _task_of(self, unit: Unit) -> str | None:
        try:
            facts = self.shelf.facts(unit.adapter)
        except LycoError:
            return None  # its own turn tells it
        return "style" if facts.kind == "style" else facts.task

    def _remark(self, prepared: Prepared, unit: Unit, base_model: str | None) -> None:
        """A word where an adapter acts that was trained for another base model."""
        own = self.shelf.facts(unit.adapter).base_model
        if own is not None and base_model is not None and own != base_model:
            prepared.problems.append(f"adapter {unit.adapter} was trained on {own}, and the checkpoint is {base_model}")


@dataclass
class Prepared:
    """A pass's adapters.

    Attributes:
        control: None where no unit acts.
        problems: for under the picture.
        maps: (number from 1 of a unit that acts, control map [H,W,3] uint8), in the order of the batch.
        fuser: the fuser's name, if one is used.
        units: (number, unit) of those that act, with the preprocessor and resolution that they meant.
    """

    control: Control | None = None
    problems: list[str] = field(default_factory=list)
    maps: list[tuple[int, Any]] = field(default_factory=list)
    fuser: str | None = None
    units: list[tuple[int, Unit]] = field(default_factory=list)

    def saved_maps(self, picture: int) -> tuple[Any, ...]:
        """The control maps of one picture of the batch that their units want saved."""
        saved = []
        for number, unit in self.units:
            own = [made for owner, made in self.maps if owner == number]
            if unit.save_map and own:
                saved.append(own[picture % len(own)])
        return tuple(saved)


def _region(asked: Asked, size: tuple[int, int], device: torch.device | str) -> Tensor | None:
    """[1,1,H,W] of 0…1."""
    if asked.region is None:
        return None
    white = fit(as_picture(asked.region), *size, asked.unit.resize_mode)
    return torch.from_numpy(np.ascontiguousarray(white)).float().amax(dim=-1)[None, None].to(device) / 255
