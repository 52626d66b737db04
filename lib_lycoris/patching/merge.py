"""Merged weights and biases: the base plus strength times each delta, added up in float32 and rounded once."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

from .plan import Effect

_AUTOCASTS = ("cpu", "cuda", "xpu")


def merge_weight(weight: Tensor, effects: Sequence[Effect]) -> Tensor:
    """weight + Σ strength · ΔW in weight's shape, dtype and memory layout, as a new tensor; every ΔW is made for `weight` as it is."""
    base = weight.detach()
    with _full_precision(base):
        total = base.to(_exact(base), copy=True, memory_format=torch.contiguous_format)
        for effect in effects:
            _add(_part(total, effect), _part(base, effect), effect)
        if base.is_contiguous():
            return total.to(base.dtype)
        return torch.empty_like(base).copy_(total)  # channels_last stays channels_last


def merge_bias(bias: Tensor | None, weight: Tensor, effects: Sequence[Effect]) -> Tensor | None:
    """The same for a bias [O] of the layer with this weight [O,…]; zeros stand for a bias that is not there. None when no layer changes it."""
    base = None if bias is None else bias.detach()
    with _full_precision(weight):
        deltas = [(effect, effect.layer.delta_bias(None if base is None else _part(base, effect))) for effect in effects]
        if all(delta is None for _, delta in deltas):
            return None
        like = weight.detach() if base is None else base
        total = torch.zeros(weight.shape[0], dtype=_exact(like), device=like.device) if base is None else base.to(_exact(base), copy=True)
        for effect, delta in deltas:
            if delta is not None:
                part = _part(total, effect)
                part.add_(delta.to(part), alpha=effect.strength)
        return total.to(like.dtype)


def _add(total: Tensor, base: Tensor, effect: Effect) -> None:
    """Adds strength · ΔW to `total` in place: one product straight into it where the layer is one."""
    factors = effect.layer.factors()
    if factors is None:
        total.add_(effect.layer.delta(base).to(total), alpha=effect.strength)
    else:
        up, down = factors
        total.view(total.shape[0], -1).addmm_(up.to(total), down.to(total), alpha=effect.strength)


def _part(tensor: Tensor, effect: Effect) -> Tensor:
    """The rows that are the target's own, as a view."""
    return tensor if effect.target.rows is None else tensor[effect.target.rows]


def _exact(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _full_precision(tensor: Tensor) -> contextlib.AbstractContextManager:
    # a host's forward runs under autocast, which would make the product in half precision
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if kind in _AUTOCASTS else contextlib.nullcontext()
