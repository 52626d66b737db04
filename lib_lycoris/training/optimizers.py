"""The optimisers: a table from the config's word to what makes one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .config import TrainingSettings


def make_optimizer(groups: list[dict[str, Any]], settings: TrainingSettings) -> torch.optim.Optimizer:
    """The optimiser over these parameter groups, each with its own "lr"."""
    return _OPTIMIZERS[settings.optimizer](groups, settings)


def _adamw(groups: list[dict[str, Any]], settings: TrainingSettings) -> torch.optim.Optimizer:
    """Source: Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2."""
    try:
        return torch.optim.AdamW(groups, weight_decay=settings.weight_decay, fused=True)
    except (RuntimeError, TypeError):
        # torch 2.1 fuses on CUDA alone; foreach gives the same steps with a few more calls.
        return torch.optim.AdamW(groups, weight_decay=settings.weight_decay, foreach=True)


_OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], TrainingSettings], torch.optim.Optimizer]] = {"adamw": _adamw}
