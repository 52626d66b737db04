"""AdaLoRA's budget: after each step, which ranks of which layer are worth keeping."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError, shown

PARTS = ("lora_A", "lora_E", "lora_B")
"""The three factors of a layer's ΔW = B·diag(E)·A: A [R,I] (a convolution's [R,I·K·K] or [R,I,K,K]), E [R,1], B [O,R]."""

Parameters = Mapping[str, Mapping[str, "tuple[Tensor, Tensor | None]"]]


@dataclass(frozen=True)
class _Group:
    """Layers whose factors have the same shapes, with their moving averages stacked: one kernel for all of them."""

    layers: tuple[str, ...]
    sensitivity: dict[str, Tensor]
    uncertainty: dict[str, Tensor]


class RankAllocator:
    """Shares a budget of ranks out among layers, by how much each rank matters to the loss.

    A weight's importance is |w·∂L/∂w|, smoothed by one moving average, times the smoothed distance from that average; a rank's is E's plus the means over
    its row of A and its column of B. The budget falls along a cubic curve from all ranks to `target_rank` per layer on average.

    Args:
        ranks: {layer: initial rank}.
        target_rank: ranks per layer that are left at the end, on average; a fraction is allowed.
        total_steps: optimiser steps of the whole training.
        warmup: steps at the start in which every rank is kept.
        final: steps at the end in which the choice no longer changes.
        interval: steps between two choices while the budget falls.
        beta1: how much of the average importance is kept from step to step.
        beta2: the same for the average uncertainty.

    Raises:
        ConfigError: a value is out of range, or warm-up and final phase leave no steps between them.

    Source: Zhang et al. 2023, "Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", section 3.2–3.3 and algorithm 1; QingruZhang/AdaLoRA d10f5ebe,
    loralib/adalora.py for what the paper leaves open (scores stop with the final phase; every step of it masks; equal scores fall together).
    """

    def __init__(
        self, ranks: Mapping[str, int], target_rank: float, total_steps: int, warmup: int, final: int, interval: int, beta1: float = 0.85, beta2: float = 0.85,
    ):
        _check(ranks, target_rank, total_steps, warmup, final, interval, beta1, beta2)
        self.ranks = dict(ranks)
        self.total_steps, self.warmup, self.final, self.interval = total_steps, warmup, final, interval
        self.beta1, self.beta2 = beta1, beta2
        self.initial_budget = sum(self.ranks.values())
        self.target_budget = target_rank * len(self.ranks)
        self._groups: tuple[_Group, ...] = ()
        self._frozen: dict[str, Tensor] | None = None
        self._loaded: dict[str, Tensor] = {}
        self._bound: list[dict[str, tuple[Tensor, Tensor]]] = []

    def budget(self, step: int) -> int:
        """How many ranks all layers together have after that step (counted from 1)."""
        if step <= self.warmup:
            return self.initial_budget
        if step > self.total_steps - self.final:
            return int(self.target_budget)
        left = 1 - (step - self.warmup) / (self.total_steps - self.final - self.warmup)
        return int(self.target_budget + (self.initial_budget - self.target_budget) * left**3)

    def masks_at(self, step: int) -> bool:
        """Whether ranks are masked after that step."""
        last = step > self.total_steps - self.final
        return step > self.warmup and (last or step % self.interval == 0)

    def bind(self, parameters: Parameters) -> None:
        """Remembers parameters and gradients that stay where they are, so that `update` needs them no more.

        Raises:
            ConfigError: a layer or factor is missing, or has another rank than was said at the start.
        """
        self._groups = self._groups or self._make_groups(parameters)
        self._bound = self._stack(parameters)

    @torch.no_grad()
    def update(self, step: int, parameters: Parameters | None = None) -> dict[str, Tensor]:
        """For each layer which of its ranks are kept [R] bool; all True after a step that masks nothing. No parameter is changed.

        To be called once after each optimiser step, with the gradients of that step: reduced over all processes, and not scaled for half precision.

        Args:
            step: counts from 1.
            parameters: {layer: {"lora_A": (parameter, gradient), "lora_E": …, "lora_B": …}}; None stands for a gradient of zeros. Left out: those that
                were bound.

        Raises:
            ConfigError: a layer or factor is missing, or has another rank than was said at the start.
        """
        if parameters is None and not self._bound:
            raise ConfigError("the rank allocator has no parameters: hand them to update, or to bind once")
        if parameters is not None:
            self._groups = self._groups or self._make_groups(parameters)
        if step < self.total_steps - self.final:
            self._frozen = None
            for group, stacks in zip(self._groups, self._bound if parameters is None else self._stack(parameters), strict=True):
                for part in PARTS:
                    self._average(group, part, *stacks[part])
        if not self.masks_at(step):
            return self._all_kept()
        if self._frozen is None or step < self.total_steps - self.final:
            self._frozen = self._choose(self.budget(step))
        return dict(self._frozen)

    def state_dict(self) -> dict[str, Tensor]:
        """The moving averages, flat: {"sensitivity.LAYER.lora_A": …, "uncertainty.LAYER.lora_A": …}; empty before the first update."""
        if not self._groups:
            return dict(self._loaded)
        return {
            f"{kind}.{layer}.{part}": getattr(group, kind)[part][index].clone()
            for group in self._groups for index, layer in enumerate(group.layers) for part in PARTS for kind in ("sensitivity", "uncertainty")
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from what `state_dict` gave.

        Raises:
            ConfigError: the state is of other layers.
        """
        strange = [key for key in state if key.partition(".")[2].rpartition(".")[0] not in self.ranks]
        if strange or (state and len(state) != len(self.ranks) * len(PARTS) * 2):
            example = shown(next(iter(strange or state)))
            raise ConfigError(f"the rank allocator's state is of other layers (it has {len(state)} entries, as {example}); start anew")
        self._loaded, self._groups, self._frozen = dict(state), (), None

    def _make_groups(self, parameters: Parameters) -> tuple[_Group, ...]:
        shapes: dict[tuple, list[str]] = {}
        for layer, rank in self.ranks.items():
            tensors = {part: _parameter(parameters, layer, part) for part in PARTS}
            if tensors["lora_A"].shape[0] != rank or tensors["lora_E"].numel() != rank or tensors["lora_B"].shape[1] != rank:
                found = ", ".join(f"{part} {list(tensor.shape)}" for part, tensor in tensors.items())
                raise ConfigError(f"layer {shown(layer)} has {found}: not the rank {rank} that the allocator was made for")
            shapes.setdefault(tuple(tensor.shape for tensor in tensors.values()), []).append(layer)
        return tuple(self._make_group(layers, parameters) for layers in shapes.values())

    def _make_group(self, layers: list[str], parameters: Parameters) -> _Group:
        def start(kind: str, part: str) -> Tensor:
            like = parameters[layers[0]][part][0]
            if not self._loaded:
                return torch.zeros(len(layers), *like.shape, device=like.device)
            try:
                return torch.stack([self._loaded[f"{kind}.{layer}.{part}"].to(like.device, torch.float32).reshape(like.shape) for layer in layers])
            except (KeyError, RuntimeError) as error:
                what = f"{kind} of {part} for {shown(layers[0])} in shape {list(like.shape)}"
                raise ConfigError(f"the rank allocator's state has no {what}: it is of another network") from error

        return _Group(tuple(layers), {part: start("sensitivity", part) for part in PARTS}, {part: start("uncertainty", part) for part in PARTS})

    def _stack(self, parameters: Parameters) -> list[dict[str, tuple[Tensor, Tensor]]]:
        """For each group and factor the stacked values and gradients [N,…]."""

        def stack(layers: Sequence[str], part: str) -> tuple[Tensor, Tensor]:
            for layer in layers:
                _parameter(parameters, layer, part)
            pairs = [parameters[layer][part] for layer in layers]
            return stacked([value.detach() for value, _ in pairs]), stacked([torch.zeros_like(value) if grad is None else grad for value, grad in pairs])

        return [{part: stack(group.layers, part) for part in PARTS} for group in self._groups]

    def _average(self, group: _Group, part: str, values: Tensor, gradients: Tensor) -> None:
        """Equations 9 and 10: Ī = β₁Ī + (1-β₁)I, then Ū = β₂Ū + (1-β₂)|I - Ī|, with I = |w·∂L/∂w|."""
        importance = (values * gradients).float().abs_()
        sensitivity = group.sensitivity[part].mul_(self.beta1).add_(importance, alpha=1 - self.beta1)
        group.uncertainty[part].mul_(self.beta2).add_(importance.sub_(sensitivity).abs_(), alpha=1 - self.beta2)

    def _scores(self) -> dict[str, Tensor]:
        """Each layer's importance of its ranks [R], equation 7 with equation 11 within."""
        scores = {}
        for group in self._groups:
            element = {part: group.sensitivity[part] * group.uncertainty[part] for part in PARTS}
            rows = element["lora_A"].flatten(2).mean(2) + element["lora_B"].mean(1) + element["lora_E"].flatten(1)
            scores.update(zip(group.layers, rows, strict=True))
        return {layer: scores[layer] for layer in self.ranks}

    def _choose(self, budget: int) -> dict[str, Tensor]:
        scores = self._scores()
        surplus = self.initial_budget - budget
        if surplus <= 0:
            return {layer: torch.ones_like(score, dtype=torch.bool) for layer, score in scores.items()}
        device = next(iter(scores.values())).device
        threshold = torch.cat([score.to(device) for score in scores.values()]).kthvalue(surplus).values
        return {layer: score > threshold.to(score.device) for layer, score in scores.items()}

    def _all_kept(self) -> dict[str, Tensor]:
        devices = {layer: group.sensitivity["lora_E"].device for group in self._groups for layer in group.layers}
        return {layer: torch.ones(rank, dtype=torch.bool, device=devices[layer]) for layer, rank in self.ranks.items()}


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors of one shape as one tensor [N,…]: a view where they lie one after the other in one piece of memory, otherwise a copy."""
    first = tensors[0]
    size = first.numel()
    in_a_row = first.is_contiguous() and all(
        tensor.is_contiguous() and tensor.dtype == first.dtype and tensor.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        and tensor.storage_offset() == first.storage_offset() + index * size
        for index, tensor in enumerate(tensors)
    )
    return first.as_strided((len(tensors), *first.shape), (size, *first.stride())) if in_a_row else torch.stack(list(tensors))


def _parameter(parameters: Parameters, layer: str, part: str) -> Tensor:
    try:
        return parameters[layer][part][0]
    except KeyError:
        raise ConfigError(f"the rank allocator was given no {part} of layer {shown(layer)}; it needs lora_A, lora_E and lora_B of every layer") from None


def _check(ranks: Mapping[str, int], target: float, total: int, warmup: int, final: int, interval: int, beta1: float, beta2: float) -> None:
    if not ranks or any(isinstance(rank, bool) or not isinstance(rank, int) or rank < 1 for rank in ranks.values()):
        raise ConfigError(f"ranks {shown(ranks)}: at least one layer is needed, each with a whole rank of 1 or more")
    if not math.isfinite(target) or target < 0:
        raise ConfigError(f"target_rank {target} is not a number of 0 or more: give the ranks per layer that should be left at the end")
    for name, value, least in (("total_steps", total, 1), ("warmup", warmup, 0), ("final", final, 0), ("interval", interval, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"{name} {shown(value)} is not a whole number of at least {least}")
    if warmup + final >= total:
        raise ConfigError(f"warmup {warmup} and final {final} leave none of {total} steps between them: shorten one, or train longer")
    for name, value in (("beta1", beta1), ("beta2", beta2)):
        if not 0 < value < 1:
            raise ConfigError(f"{name} {value} is not between 0 and 1; 0.85 is usual")
