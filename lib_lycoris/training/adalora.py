"""AdaLoRA in training: P·Λ·Q on every layer, kept orthogonal, with a budget of ranks that goes where it matters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..networks.adalora import AdaLoRALayer
from ..networks.low_rank import LowRankLayer
from ..patching.session import attach
from ..patching.targets import Target
from .allocator import PARTS, RankAllocator, Run, runs
from .backbone import Backbone
from .config import NetworkSettings, TrainConfig
from .dropout import Dropout
from .export import About, export_network
from .material import Material
from .selection import Key

_ALPHA = 4.0
"""Of every layer of an exported network: near the ranks that are left, so that the factors stay about as large as they are."""


@dataclass(frozen=True)
class Phases:
    """Of a training, in steps: before the first rank is taken away, after the last, and between two choices."""

    warmup: int
    final: int
    interval: int


def phases(settings: NetworkSettings, steps: int) -> Phases:
    """What the settings say, or a tenth, four tenths and a hundredth of the steps; always with at least one step between warm-up and final phase."""
    final = round(steps * 0.4) if settings.final is None else settings.final
    warmup = steps // 10 if settings.warmup is None else settings.warmup
    if settings.warmup is None or settings.final is None:
        warmup = min(warmup, max(steps - final - 1, 0)) if settings.warmup is None else warmup
        final = min(final, max(steps - warmup - 1, 0)) if settings.final is None else final
    return Phases(warmup, final, max(1, steps // 100) if settings.interval is None else settings.interval)


def check_phases(settings: NetworkSettings, steps: int) -> None:
    """Returns where the phases leave steps in which ranks are taken away.

    Raises:
        ConfigError: they leave none.
    """
    found = phases(settings, steps)
    if found.warmup + found.final >= steps:
        raise ConfigError(f"network.warmup = {found.warmup} and network.final = {found.final}: they leave none of the {steps} steps between them; shorten one, "
                          "or train longer")


class AdaLoRAMethod:
    """Layers with `lora_A` [R,I·K·K] (Q), `lora_E` [R,1] (Λ) and `lora_B` [O,R] (P); ranks that are not worth it get Λ = 0 until a later step revives them.

    Source: Zhang et al. 2023, "Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", algorithm 1.
    """

    def __init__(self, layers: Mapping[Key, AdaLoRALayer], shapes: Mapping[Key, Sequence[int]], allocator: RankAllocator, orthogonality: float):
        """A method over these layers for weights of these shapes.

        Args:
            layers: float32, on the model's device.
            shapes: of the targets' weights, for the file's sake.
            allocator: made for the layers' ranks, by the names "component.name".
            orthogonality: γ, the penalty's weight.
        """
        self.layers = layers
        self._shapes = shapes
        self._allocator = allocator
        self._orthogonality = orthogonality
        self._names = {f"{component}.{name}": (component, name) for component, name in layers}
        self._runs: dict[str, list[Run]] = {}

    def attached(self, targets: Mapping[Key, Target], dropout: Dropout) -> AbstractContextManager[Any]:
        return attach(targets, dropout.wrap(self.layers))

    def around(self, material: Material, rows: Sequence[tuple[int, int]]) -> AbstractContextManager[Any]:
        return nullcontext()

    @torch.no_grad()
    def add_penalty(self) -> Tensor:
        """γ · the layers' mean of ‖PᵀP-I‖² + ‖QQᵀ-I‖² (Frobenius norms) as a number; its gradient 4(QQᵀ-I)Q, and P's likewise, goes to the parameters'.

        The mean, where the paper has the sum: over hundreds of layers the sum would outweigh the pictures, and clipping would take the rest.
        """
        self._bind()
        factor = self._orthogonality / len(self.layers)
        values = []
        for run in self._runs["lora_A"]:
            off = run.values @ run.values.transpose(1, 2)
            off.diagonal(dim1=1, dim2=2).sub_(1)
            values.append(off.square().sum())
            run.gradients.baddbmm_(off, run.values, alpha=4 * factor)
        for run in self._runs["lora_B"]:
            off = run.values.transpose(1, 2) @ run.values
            off.diagonal(dim1=1, dim2=2).sub_(1)
            values.append(off.square().sum())
            run.gradients.baddbmm_(run.values, off, alpha=4 * factor)
        return factor * torch.stack(values).sum()

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        self._bind()
        masks = self._allocator.update(step)
        if not self._allocator.masks_at(step):
            return
        for run in self._runs["lora_E"]:
            run.values.mul_(torch.stack([masks[name] for name in run.names])[..., None])

    def figures(self) -> dict[str, Any]:
        """{"ranks": {layer: how many are in use}}."""
        self._bind()
        counts = {}
        for run in self._runs["lora_E"]:
            counts.update(zip(run.names, torch.count_nonzero(run.values.detach(), dim=(1, 2)).tolist(), strict=True))
        return {"ranks": {name: counts[name] for name in self._names}}

    def state(self) -> dict[str, Tensor]:
        return self._allocator.state_dict()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self._allocator.load_state_dict(tensors)
        self._runs = {}

    def export_layers(self) -> Mapping[Key, nn.Module]:
        """LoRA layers of just the ranks that are left, exactly what was trained; a layer without any is left out."""
        made = {key: lora_of(layer, self._shapes[key]) for key, layer in self.layers.items()}
        return {key: layer for key, layer in made.items() if layer is not None}

    def write(self, folder: Path, config: TrainConfig, backbone: Backbone, about: About) -> Path:
        return export_network(folder, self.export_layers(), config, backbone, about)

    def _bind(self) -> None:
        """Parameters and gradients lie where they are for the whole training, so they are put together only once."""
        if self._runs:
            return
        given = {
            name: {part: (getattr(self.layers[key], part), getattr(self.layers[key], part).grad) for part in PARTS} for name, key in self._names.items()
        }
        self._allocator.bind(given)
        self._runs = {part: runs({name: factors[part] for name, factors in given.items()}) for part in PARTS}


@torch.no_grad()
def lora_of(layer: AdaLoRALayer, shape: Sequence[int]) -> LowRankLayer | None:
    """The same ΔW as a LoRA layer for a weight of that shape, of as many ranks as have a Λ that is not zero; None where there is none.

    Λ, with the scale in it, is split evenly between the factors, so that neither gets numbers too small for half precision. Programs divide alpha by the rank
    that they find; it is the same for all layers, as diffusers mixes up the alphas of a file where they differ.
    """
    kept = layer.lora_E.flatten() != 0
    if not kept.any():
        return None
    values = layer.lora_E.flatten()[kept] * layer.scale
    rank, kernel = len(values), tuple(shape[2:])
    root = (values.abs() * (rank / _ALPHA)).sqrt()
    down, up = root[:, None] * layer.lora_A[kept], layer.lora_B[:, kept] * (root * values.sign())
    return LowRankLayer(down.reshape(rank, *shape[1:]), up.reshape(shape[0], rank, *(1 for _ in kernel)), _ALPHA)
