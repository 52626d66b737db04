"""What previews of an adapter follow: control pictures that are kept back, with their own captions where no prompts are given."""

from __future__ import annotations

from contextlib import AbstractContextManager

import numpy as np
from torch import Tensor

from .adapter import AdapterMethod
from .config import OutputSettings
from .material import Material

MOST = 4
"""Control pictures, where no prompts say how many."""


class ControlGuide:
    """Control pictures for previews; fulfils previews.Guide.

    Args:
        method: whose adapter they go through, attached.
        material: what is judged on, or what is learned from where nothing is kept back.
        settings: prompts; the first is for the first control picture, and so on, round and round.
    """

    def __init__(self, method: AdapterMethod, material: Material, settings: OutputSettings):
        self._method = method
        count = max(len(settings.preview_prompts), min(MOST, material.samples))
        self._controls = [material.control(number % material.samples, 0) for number in range(count)]
        given = settings.preview_prompts or tuple(material.caption(number % material.samples, 0) for number in range(count))
        self.prompts = tuple(given[number % len(given)] for number in range(count))

    def around(self, number: int) -> AbstractContextManager[None]:
        return self._method.following(self._controls[number][None])

    def size(self, number: int) -> dict[str, int]:
        height, width = self._controls[number].shape[1:]
        return {"width": width, "height": height}

    def row(self) -> tuple[str, list[np.ndarray]]:
        return "control", [_to_picture(control) for control in self._controls]


def _to_picture(control: Tensor) -> np.ndarray:
    """uint8 [H,W,3] of a control picture [3,H,W] in 0..1."""
    return (control.cpu().permute(1, 2, 0) * 255).round().byte().numpy()
