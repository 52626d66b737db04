"""Products in the precision that their factors have, also where a host's forward pass runs under autocast."""

from __future__ import annotations

import contextlib

import torch

_AUTOCASTS = ("cpu", "cuda", "xpu")
_BY_DEVICE = hasattr(torch, "get_autocast_dtype")  # from torch 2.4 on
_NOTHING = contextlib.nullcontext()


def autocasts(kind: str) -> bool:
    """Whether products on devices of that kind are shortened at the moment."""
    if kind not in _AUTOCASTS:
        return False
    if _BY_DEVICE:
        return torch.is_autocast_enabled(kind)
    return torch.is_autocast_cpu_enabled() if kind == "cpu" else torch.is_autocast_enabled()


def as_given(kind: str) -> contextlib.AbstractContextManager:
    """Within it products on devices of that kind are of the precision of their factors; costs nothing where they are anyway."""
    return torch.autocast(kind, enabled=False) if autocasts(kind) else _NOTHING
