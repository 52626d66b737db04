"""From the config's word for a kind to its layers in training."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from ..networks.adalora import AdaLoRALayer
from ..networks.dora import DecomposedLayer
from ..networks.full import FullLayer
from ..networks.ia3 import IA3Layer
from ..networks.loha import LohaLayer
from ..networks.lokr import LokrLayer
from ..networks.low_rank import LowRankLayer
from ..networks.norm import NormLayer
from ..patching.targets import Target
from .adalora import AdaLoRAMethod, check_phases, phases
from .allocator import RankAllocator
from .config import NetworkSettings, split_pattern
from .draws import make_generator
from .method import Method, PlainMethod
from .selection import Key, is_large_convolution, matches


def make_method(settings: NetworkSettings, targets: Mapping[Key, Target], steps: int, seed: int, device: torch.device) -> Method:
    """Fresh layers of that kind for the targets, and what goes with them; each layer's first numbers depend on the seed and its own name alone.

    A kind without layers has no targets.

    Raises:
        ConfigError: AdaLoRA's phases don't fit into the steps, or a layer can't be of that kind.
    """
    if settings.kind == "adalora":
        check_phases(settings, steps)
    layers = {key: create_layer(target, settings, seed).to(device) for key, target in targets.items()}
    if settings.kind != "adalora":
        return PlainMethod(layers)
    ranks = {f"{component}.{name}": layer.rank for (component, name), layer in layers.items()}
    found = phases(settings, steps)
    allocator = RankAllocator(ranks, settings.final_rank, steps, found.warmup, found.final, found.interval, settings.beta1, settings.beta2)
    return AdaLoRAMethod(layers, {key: tuple(target.shape) for key, target in targets.items()}, allocator, settings.orthogonality)


def create_layer(target: Target, settings: NetworkSettings, seed: int) -> nn.Module:
    """A fresh layer for one target; it adds exactly nothing."""
    layer = _inner_layer(target, settings, make_generator(seed, "layer", *target.key))
    return DecomposedLayer.create(_weight(target), layer, settings.dora_on_output) if settings.dora else layer


def count_parameters(target: Target, settings: NetworkSettings) -> int:
    """How many numbers `create_layer` gives for that target; takes neither memory nor time for them."""
    with torch.device("meta"):
        layer = _inner_layer(target, settings, None)
    magnitudes = target.shape[0 if settings.dora_on_output else 1] if settings.dora else 0
    return sum(parameter.numel() for parameter in layer.parameters() if parameter.requires_grad) + magnitudes


def _inner_layer(target: Target, settings: NetworkSettings, generator: torch.Generator | None) -> nn.Module:
    """The layer without what DoRA puts around it."""
    rank, alpha = rank_of(target, settings)
    shape = tuple(target.shape)
    kind = settings.kind
    if kind == "norm":
        return NormLayer.create(target.module)
    if kind == "full":
        return FullLayer.create(shape, generator=generator, bias=target.bias is not None and target.module._parameters.get(target.bias) is not None)
    if kind == "ia3":
        return IA3Layer.create(shape, on_input=scales_input(target))
    if kind == "adalora":
        return AdaLoRALayer.create(shape, rank, alpha, generator)
    alpha = alpha * math.sqrt(rank) if settings.rs_lora else alpha
    if kind == "loha":
        return LohaLayer.create(shape, rank, alpha, generator, tucker=settings.tucker)
    if kind == "lokr":
        factor = -1 if settings.factor is None else settings.factor
        return LokrLayer.create(shape, rank, alpha, generator, factor, settings.decompose_both, settings.full_matrix, settings.tucker)
    return LowRankLayer.create(shape, rank, alpha, generator, tucker=settings.tucker)


def _weight(target: Target) -> torch.Tensor:
    """The weight that is trained: of a fused q, k and v its own rows."""
    weight = target.module._parameters[target.weight]
    return weight if target.rows is None else weight[target.rows]


def rank_of(target: Target, settings: NetworkSettings) -> tuple[int, float]:
    """Rank and alpha of the layer for that target; a rank of its own keeps the scale of the others."""
    if settings.kind == "adalora":
        rank = settings.initial_rank
        alpha = float(rank) if settings.alpha is None else settings.alpha
    elif is_large_convolution(target.module):
        rank, alpha = settings.convolution_rank, settings.convolution_alpha
    else:
        rank, alpha = settings.rank, settings.linear_alpha
    for item in reversed(settings.block_ranks):
        pattern, own = split_pattern("network.block_ranks", item, int)
        if matches(target.name, pattern):
            return own, own * alpha / rank
    return rank, alpha


def scales_input(target: Target) -> bool:
    """Whether (IA)³ scales this layer's inputs: those of the feed-forward's second layer, where the paper has its factors.

    Source: Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning", section 3.3.
    """
    return target.name.endswith(("_ff_net_2", "_mlp_fc2"))
