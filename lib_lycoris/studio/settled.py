"""A model's modules as a training wants them, and back again."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

_HALF = torch.float16


@contextmanager
def settled(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Within it parameters are frozen, dropout is off, half precision is widened so that gradients fit; all is put back at the end."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    flags = [parameter.requires_grad for parameter in parameters]
    modes = [(part, part.training) for module in modules for part in module.modules()]
    halves = [parameter for parameter in parameters if parameter.dtype == _HALF]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        for module in modules:
            module.eval()
        _cast(halves, torch.float32)
        yield
    finally:
        _cast(halves, _HALF)  # every half-precision number comes back as it was
        for parameter, flag in zip(parameters, flags, strict=True):
            parameter.requires_grad_(flag)
        for part, mode in modes:
            part.training = mode


def _cast(parameters: list[nn.Parameter], dtype: torch.dtype) -> None:
    for parameter in parameters:
        parameter.data = parameter.data.to(dtype)
