"""What is trained, and what its kind wants of each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from ..patching.session import attach
from ..patching.targets import Target
from .backbone import Backbone
from .config import TrainConfig
from .dropout import Dropout
from .export import About, export_network
from .material import Material
from .selection import Key


class Method(Protocol):
    """The layers in training and what goes with them."""

    layers: Mapping[Key, nn.Module]
    """By target; float32 parameters, attached beside their targets."""

    def attached(self, targets: Mapping[Key, Target], dropout: Dropout) -> AbstractContextManager[Any]:
        """Within it, what is trained acts on the model; after it the model is as it was."""

    def around(self, material: Material, rows: Sequence[tuple[int, int]]) -> AbstractContextManager[Any]:
        """Around the model's answer for these (epoch, sample) rows, captions encoded within: what goes into it beside the layers."""

    def add_penalty(self) -> Tensor | float:
        """The value of what is added to each step's loss, after its gradient was added to the parameters' (which are reduced and not scaled by then)."""

    def after_step(self, step: int) -> None:
        """Called after the optimiser's step, which counts from 1; the gradients are still there: not scaled, reduced over all processes, clipped."""

    def figures(self) -> dict[str, Any]:
        """What the method has to tell at this point, in plain values: {"ranks": …}."""

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs beyond the parameters."""

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes up what `state` gave."""

    def export_layers(self) -> Mapping[Key, nn.Module]:
        """The layers as a file gets them."""

    def write(self, folder: Path, config: TrainConfig, backbone: Backbone, about: About) -> Path:
        """The file of what was trained, in that folder.

        Raises:
            TrainingError: it could not be written, or holds numbers that are not finite.
        """


class PlainMethod:
    """Layers that want nothing but their gradients."""

    def __init__(self, layers: Mapping[Key, nn.Module]):
        self.layers = layers

    def attached(self, targets: Mapping[Key, Target], dropout: Dropout) -> AbstractContextManager[Any]:
        return attach(targets, dropout.wrap(self.layers))

    def around(self, material: Material, rows: Sequence[tuple[int, int]]) -> AbstractContextManager[Any]:
        return nullcontext()

    def add_penalty(self) -> float:
        return 0.0

    def after_step(self, step: int) -> None:
        """Nothing."""

    def figures(self) -> dict[str, Any]:
        return {}

    def state(self) -> dict[str, Tensor]:
        return {}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Nothing."""

    def export_layers(self) -> Mapping[Key, nn.Module]:
        return self.layers

    def write(self, folder: Path, config: TrainConfig, backbone: Backbone, about: About) -> Path:
        return export_network(folder, self.export_layers(), config, backbone, about)
