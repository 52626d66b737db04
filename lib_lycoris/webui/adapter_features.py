"""Features of several adapters on one UNet: computed once for a size, added up by their weights, turned with the steps and rows of a sampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lib_lycoris.errors import ConfigError
from lib_lycoris.functional.feature_maps import mask_map
from lib_lycoris.patching.features import FeatureSession, Row
from lib_lycoris.prompt.unit import Unit


def check_fits(adapter: Any, name: str, session: FeatureSession) -> None:
    """Raises where an adapter's features are none of this UNet's.

    Raises:
        ConfigError: its kind gives no features, or others.
    """
    if adapter.kind not in ("full", "light"):
        raise ConfigError(f"a {adapter.kind} adapter gives no features of a picture: choose a full or light one")
    if tuple(adapter.channels) != session.channels or (adapter.layout or session.layout) != session.layout:
        raise ConfigError(f"{name} is for another model than the loaded checkpoint: refresh the list and choose one of those that fit")


@torch.no_grad()
def make_features(adapter: nn.Module, unit: Unit, maps: Sequence[Any], region: Any, device: torch.device) -> list[Tensor]:
    """An adapter's weighted features [P,C,h,w] of control maps [H,W,3] uint8; the adapter itself goes back to where it was.

    Args:
        adapter: a full or light one.
        unit: whose weights count.
        maps: P of them.
        region: where it acts [H,W] uint8, white; None: everywhere.
        device: where it is computed and where the features stay.
    """
    home = next(adapter.parameters()).device
    pictures = torch.from_numpy(np.stack(maps)).permute(0, 3, 1, 2).float().to(device) / 255
    try:
        features = [feature * weight for feature, weight in zip(adapter.to(device)(pictures), unit.levels(), strict=True)]
    finally:
        adapter.to(home)
    if region is None:
        return features
    white = torch.from_numpy(np.ascontiguousarray(region))[None, None].float().to(device) / 255
    return [mask_map(feature, white) for feature in features]


class Features:
    """What the adapters of a pass add to a UNet. `session` is what has it on."""

    def __init__(self, unet: nn.Module):
        self.session = FeatureSession(unet)
        self._parts: list[tuple[Unit, Sequence[Tensor]]] = []
        self._acting: tuple[bool, ...] = ()

    def add(self, unit: Unit, features: Sequence[Tensor]) -> None:
        """Has a unit's features count at its steps."""
        self._parts.append((unit, features))

    def begin_step(self, step: int, steps: int, rows: Sequence[Row | int]) -> None:
        """The UNet's next calls are of this step and hold these rows' pictures."""
        acting = tuple(unit.acts(step, steps) for unit, _ in self._parts)
        if acting != self._acting:
            self._acting = acting
            chosen = [features for (_, features), acts in zip(self._parts, acting, strict=True) if acts]
            self.session.set([sum(level[1:], level[0]) for level in zip(*chosen, strict=True)] if chosen else None)
        if any(acting):
            # Where all units have one map for all pictures, the sums hold one picture too.
            single = all(len(features[0]) == 1 for (_, features), acts in zip(self._parts, acting, strict=True) if acts)
            self.session.begin_step([0] * len(rows) if single else rows)

    def restore(self) -> None:
        """Takes everything off."""
        self._acting = ()
        self.session.restore()
