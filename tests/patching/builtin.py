"""A stand-in for the WebUI's own Lora extension: it replaces the forward of torch's classes and merges into weights in place, with a backup."""

from __future__ import annotations

import contextlib

import torch
from torch import nn

CLASSES = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)


class Builtin:
    """What it wants is `networks`: names, each with ΔW by (module, parameter name)."""

    def __init__(self):
        self.networks: dict[str, dict[tuple[nn.Module, str], torch.Tensor]] = {}
        self.used: dict[nn.Module, list[torch.Tensor]] = {}
        """The weights that each module last ran with, seen from within its forward."""

    def apply(self, module):
        wanted = tuple(self.networks)
        if getattr(module, "builtin_names", ()) == wanted or not hasattr(module, "builtin_layer"):
            return
        weights = self._weights(module)
        if not hasattr(module, "builtin_backup"):
            module.builtin_backup = [weight.detach().clone() for weight in weights]
        with torch.no_grad():
            for weight, backup in zip(weights, module.builtin_backup, strict=True):
                weight.copy_(backup)
            for deltas in self.networks.values():
                for (owner, name), delta in deltas.items():
                    if owner is module:
                        weight = weights[("in_proj_weight", "out_proj").index(name)] if isinstance(module, nn.MultiheadAttention) else weights[0]
                        weight.copy_((weight.float() + delta).to(weight.dtype))
        module.builtin_names = wanted

    def settle(self, module):
        self.apply(module)
        return getattr(module, "builtin_names", ())

    def _weights(self, module):
        return [module.in_proj_weight, module.out_proj.weight] if isinstance(module, nn.MultiheadAttention) else [module.weight]

    @contextlib.contextmanager
    def installed(self, tree):
        """Names the tree's layers as its own and replaces the classes' forward until the end."""
        for module in tree.modules():
            if isinstance(module, CLASSES):
                module.builtin_layer = True
        originals = {kind: kind.forward for kind in CLASSES}

        def replacement(original):
            def forward(module, *args, **kwargs):
                self.apply(module)
                self.used[module] = [weight.detach().clone() for weight in self._weights(module)]
                return original(module, *args, **kwargs)
            return forward

        for kind, original in originals.items():
            kind.forward = replacement(original)
        try:
            yield self
        finally:
            for kind, original in originals.items():
                kind.forward = original
            for module in tree.modules():
                for field in ("builtin_layer", "builtin_names", "builtin_backup"):
                    vars(module).pop(field, None)
