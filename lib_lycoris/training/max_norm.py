"""Layers kept small: a ΔW that outgrows a limit is scaled down to it after each step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ..networks.adalora import AdaLoRALayer
from ..patching.targets import Target
from .selection import Key

_NO_FACTOR = ("bias", "diff_b", "b_norm")
"""Last parts of the names of parameters that are no factor of ΔW."""


@torch.no_grad()
def limit_norms(layers: Mapping[Key, nn.Module], targets: Mapping[Key, Target], limit: float) -> None:
    """Brings every layer's ΔW whose Frobenius norm is above the limit down to it; the others stay bit for bit.

    All factors of a layer shrink alike; of AdaLoRA's only Λ, as P and Q are to stay orthogonal. Nothing is copied to the CPU.

    Source: Stable-diffusion trainers call it "scale weight norms"; max-norm: Srebro & Shraibman 2005.
    """
    for key, layer in layers.items():
        if not any(value.requires_grad for value in layer.parameters()):
            continue  # a layer with a rate of 0 stays as it is
        shrink = (limit / delta_norm(layer, targets[key]).clamp(min=torch.finfo(torch.float32).tiny)).clamp(max=1)
        factors = [layer.lora_E] if isinstance(layer, AdaLoRALayer) else list(_factors(layer))
        for factor in factors:
            factor.mul_(shrink ** (1 / len(factors)))


def delta_norm(layer: nn.Module, target: Target) -> Tensor:
    """‖ΔW‖ (Frobenius) as a float32 number; of a product of two factors through their Gram matrices, without making ΔW: ‖UD‖² = Σ (UᵀU) ∘ (DDᵀ)."""
    factors = layer.factors()
    if factors is None:
        weight = target.module._parameters[target.weight]
        return layer.delta(weight if target.rows is None else weight[target.rows]).norm()
    up, down = factors
    return ((up.T @ up) * (down @ down.T)).sum().clamp(min=0).sqrt()


def _factors(layer: nn.Module) -> Iterable[nn.Parameter]:
    """The parameters whose product ΔW is."""
    return (value for name, value in layer.named_parameters() if name.rpartition(".")[2] not in _NO_FACTOR)
