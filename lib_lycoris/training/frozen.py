"""A model that is looked through, not changed: its own weights get no gradients, and every flag comes back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def frozen(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within it no parameter of these modules wants a gradient and none is in train mode; after it all is as it was, also after an exception."""
    modules = list(modules)
    wanting = [(parameter, parameter.requires_grad) for module in modules for parameter in module.parameters()]
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for parameter, _ in wanting:
            parameter.requires_grad_(False)
        for module in modules:
            module.eval()
        yield
    finally:
        for parameter, flag in wanting:
            parameter.requires_grad_(flag)
        for part, mode in modes:
            part.training = mode
