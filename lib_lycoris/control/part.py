"""What one adapter brings to a picture: feature maps or words, and the unit that says how they count."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lib_lycoris.functional.feature_maps import mask_map
from lib_lycoris.prompt.unit import Unit


@dataclass(frozen=True)
class Part:
    """An adapter's own features, neither weighted nor masked.

    Attributes:
        unit: its weights and the steps in which it acts.
        features: four maps [P,C,h,w], or one tensor of words [P,K,D] of a style adapter, for P pictures or (P = 1) for all.
        task: what the fuser knows it as, if it does.
        region: where it acts: [P or 1,1,H,W] of 0…1; None: everywhere. Words act everywhere.
    """

    unit: Unit
    features: tuple[Tensor, ...]
    task: str | None = None
    region: Tensor | None = None

    @property
    def speaks(self) -> bool:
        """Whether it brings words instead of maps."""
        return self.features[0].ndim == 3

    def weighted(self) -> list[Tensor]:
        """Its features times its weights; words have but one."""
        weights = (self.unit.weight,) if self.speaks else self.unit.levels()
        return [feature * weight for feature, weight in zip(self.features, weights, strict=True)]

    def masked(self, features: list[Tensor]) -> list[Tensor]:
        """The features where the part acts."""
        return features if self.region is None or self.speaks else [mask_map(feature, self.region) for feature in features]
