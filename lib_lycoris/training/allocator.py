"""AdaLoRA's budget: after each step, which ranks of which layer are worth keeping."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError, shown

PARTS = ("lora_A", "lora_E", "lora_B")
"""The three factors of a layer's ΔW = B·diag(E)·A: A [R,I] (a convolution's [R,I·K·K] or [R,I,K,K]), E [R,1], B [O,R]."""

Parameters = Mapping[str, Mapping[str, "tuple[Tensor, Tensor | None]"]]


BLOCK = 1 << 17
"""Values that are worked on at a time on the CPU, so that they are still in its cache for the next of several passes."""


@dataclass(eq=False)
class _Stack:
    """One factor of layers where it has the same shape, with its moving averages [N,…]; values and gradients where these stay where they are."""

    part: str
    layers: tuple[str, ...]
    sensitivity: Tensor
    uncertainty: Tensor
    bound: tuple[Tensor, Tensor] | None = None

    def blocks(self, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Both averages and the others [N,…] a few layers at a time on the CPU, elsewhere at once."""
        tensors = (self.sensitivity, self.uncertainty, *others)
        layers = len(self.layers)
        size = layers if self.sensitivity.device.type != "cpu" else max(1, BLOCK * layers // self.sensitivity.numel())
        return zip(*(tensor.split(size) for tensor in tensors), strict=True)

    def rank_means(self, sensitivity: Tensor, uncertainty: Tensor) -> Tensor:
        """The mean importance of each rank's weights [n,R] in a block of n layers: equation 7's means of equation 11."""
        product = sensitivity * uncertainty
        return product.mean(1) if self.part == "lora_B" else product.flatten(2).mean(2)


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
        self._stacks: tuple[_Stack, ...] = ()
        self._places: dict[str, Tensor] = {}
        self._frozen: dict[int, dict[str, Tensor]] = {}
        self._loaded: dict[str, Tensor] = {}

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
            ConfigError: a layer or factor is missing, has no gradient, or has another rank than was said at the start.
        """
        self._check(parameters)
        if any(gradient is None for factors in parameters.values() for _, gradient in factors.values()):
            raise ConfigError("the rank allocator can't be bound to parameters without gradients; hand them to update in each step")
        kept = self.state_dict()
        groups = [(part, run) for part in PARTS for run in runs({layer: parameters[layer][part] for layer in self.ranks})]
        self._stacks = tuple(self._make_stack(part, run.names, run.values, kept) for part, run in groups)
        for stack, (_, run) in zip(self._stacks, groups, strict=True):
            stack.bound = run.values, run.gradients
        self._arrange()

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
        if parameters is not None:
            self._check(parameters)
        if not self._stacks:
            self._stack_up(parameters)
        masked, means = self.masks_at(step), {}
        if step < self.total_steps - self.final:
            self._frozen.clear()
            means = {stack: self._average(stack, *self._given(stack, parameters), masked) for stack in self._stacks}
        if not masked:
            return self._all_kept()
        budget = self.budget(step)
        if budget not in self._frozen:
            means = means or {stack: torch.cat([stack.rank_means(*block) for block in stack.blocks()]) for stack in self._stacks}
            self._frozen[budget] = self._choose(means, budget)
        return dict(self._frozen[budget])

    def state_dict(self) -> dict[str, Tensor]:
        """The moving averages, flat: {"sensitivity.LAYER.lora_A": …, "uncertainty.LAYER.lora_A": …}; empty before the first update."""
        if not self._stacks:
            return dict(self._loaded)
        return {
            f"{kind}.{layer}.{stack.part}": getattr(stack, kind)[index].clone()
            for stack in self._stacks for index, layer in enumerate(stack.layers) for kind in ("sensitivity", "uncertainty")
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
        self._loaded, self._stacks, self._frozen = dict(state), (), {}

    def _check(self, parameters: Parameters) -> None:
        for layer, rank in self.ranks.items():
            tensors = {part: _parameter(parameters, layer, part) for part in PARTS}
            if tensors["lora_A"].shape[0] != rank or tensors["lora_E"].numel() != rank or tensors["lora_B"].shape[1] != rank:
                found = ", ".join(f"{part} {list(tensor.shape)}" for part, tensor in tensors.items())
                raise ConfigError(f"layer {shown(layer)} has {found}: not the rank {rank} that the allocator was made for")

    def _stack_up(self, parameters: Parameters | None) -> None:
        """Stacks by shape, for parameters that are handed over anew each time."""
        if parameters is None:
            raise ConfigError("the rank allocator has no parameters: hand them to update, or to bind once")
        made = []
        for part in PARTS:
            shapes: dict[tuple, list[str]] = {}
            for layer in self.ranks:
                value = parameters[layer][part][0]
                shapes.setdefault((value.shape, value.device), []).append(layer)
            for (shape, _), layers in shapes.items():
                like = parameters[layers[0]][part][0].expand(len(layers), *shape)
                made.append(self._make_stack(part, layers, like, self._loaded))
        self._stacks = tuple(made)
        self._arrange()

    def _make_stack(self, part: str, layers: Sequence[str], like: Tensor, kept: Mapping[str, Tensor]) -> _Stack:
        """A stack with the averages out of a state, or zeros; `like` [N,…] tells shape and device."""

        def start(kind: str) -> Tensor:
            if not kept:
                return torch.zeros(like.shape, device=like.device)
            try:
                return torch.stack([kept[f"{kind}.{layer}.{part}"].to(like.device, torch.float32).reshape(like.shape[1:]) for layer in layers])
            except (KeyError, RuntimeError) as error:
                what = f"{kind} of {part} for {shown(layers[0])} in shape {list(like.shape[1:])}"
                raise ConfigError(f"the rank allocator's state has no {what}: it is of another network") from error

        return _Stack(part, tuple(layers), start("sensitivity"), start("uncertainty"))

    def _arrange(self) -> None:
        """For each factor, where the ranks of the layers in the allocator's order stand in the stacks' order."""
        device = self._stacks[0].sensitivity.device
        for part in PARTS:
            starts, place = {}, 0
            for stack in self._stacks:
                if stack.part == part:
                    for layer in stack.layers:
                        starts[layer] = place
                        place += self.ranks[layer]
            self._places[part] = torch.cat([torch.arange(starts[layer], starts[layer] + rank) for layer, rank in self.ranks.items()]).to(device)

    def _given(self, stack: _Stack, parameters: Parameters | None) -> tuple[Tensor, Tensor]:
        """The stacked values and gradients [N,…]."""
        if parameters is None:
            if stack.bound is None:
                raise ConfigError("the rank allocator has no parameters: hand them to update, or to bind once")
            return stack.bound
        pairs = [parameters[layer][stack.part] for layer in stack.layers]
        values = torch.stack([value.detach() for value, _ in pairs])
        return values, torch.stack([torch.zeros_like(value) if gradient is None else gradient for value, gradient in pairs])

    def _average(self, stack: _Stack, values: Tensor, gradients: Tensor, masked: bool) -> Tensor | None:
        """Equations 9 and 10: Ī = β₁Ī + (1-β₁)I, then Ū = β₂Ū + (1-β₂)|I - Ī|, with I = |w·∂L/∂w|; the ranks' means [N,R] where they are wanted."""
        means = []
        for sensitivity, uncertainty, value, gradient in stack.blocks(values, gradients):
            importance = (value * gradient).float().abs_()
            sensitivity.lerp_(importance, 1 - self.beta1)
            uncertainty.lerp_(importance.sub_(sensitivity).abs_(), 1 - self.beta2)
            if masked:  # while both are in the cache
                means.append(stack.rank_means(sensitivity, uncertainty))
        return torch.cat(means) if masked else None

    def _scores(self, means: Mapping[_Stack, Tensor]) -> Tensor:
        """The importance of all ranks [ΣR], the layers in the order of `ranks`: equation 7."""
        device = self._stacks[0].sensitivity.device
        total = 0
        for part in PARTS:
            rows = torch.cat([means[stack].flatten().to(device) for stack in self._stacks if stack.part == part])
            total = total + rows[self._places[part]]
        return total

    def _choose(self, means: Mapping[_Stack, Tensor], budget: int) -> dict[str, Tensor]:
        scores = self._scores(means)
        surplus = self.initial_budget - budget
        kept = scores > scores.kthvalue(surplus).values if surplus > 0 else torch.ones_like(scores, dtype=torch.bool)
        return dict(zip(self.ranks, kept.split(list(self.ranks.values())), strict=True))

    def _all_kept(self) -> dict[str, Tensor]:
        device = self._stacks[0].sensitivity.device
        return {layer: torch.ones(rank, dtype=torch.bool, device=device) for layer, rank in self.ranks.items()}


@dataclass(frozen=True, eq=False)
class Run:
    """Tensors of one shape that lie one after the other in memory, and their gradients, which do too: as one tensor [N,…] each, both views."""

    names: tuple[str, ...]
    values: Tensor
    gradients: Tensor


def runs(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> list[Run]:
    """All of these (value, gradient) in as few runs as they make."""
    groups: list[list[str]] = []
    previous = None
    for name in sorted(pairs, key=lambda name: (tuple(pairs[name][0].shape), *map(_address, pairs[name]))):
        if previous is None or not all(_follows(one, other) for one, other in zip(pairs[previous], pairs[name], strict=True)):
            groups.append([])
        groups[-1].append(name)
        previous = name
    return [Run(tuple(names), *(stacked([pairs[name][place].detach() for name in names]) for place in (0, 1))) for names in groups]


def _address(tensor: Tensor) -> tuple[int, int]:
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset()


def _follows(one: Tensor, other: Tensor) -> bool:
    """Whether the second tensor is of the first's kind and begins where that ends."""
    alike = one.shape == other.shape and one.dtype == other.dtype and one.is_contiguous() and other.is_contiguous()
    return alike and _address(other) == (_address(one)[0], _address(one)[1] + one.numel())


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors of one shape as one tensor [N,…]: a view where they lie one after the other in one piece of memory, otherwise a copy."""
    first = tensors[0]
    in_a_row = all(_follows(one, other) for one, other in itertools.pairwise(tensors))
    return first.as_strided((len(tensors), *first.shape), (first.numel(), *first.stride())) if in_a_row else torch.stack(list(tensors))


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
