"""All trained parameters of one learning rate in one piece of memory, so that clipping, averaging and the optimiser's step are a few large kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class Flat:
    """Parameters as views into one vector, and their gradients into another.

    Parameters of one shape and role lie side by side, so that `allocator.stacked` sees them as one tensor without a copy. Whoever reads or writes a
    parameter reads or writes the vector; gradients must be zeroed by `zero_gradients`, not set to None.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]):
        """Moves the parameters, float32 and on one device, into a vector; their values stay."""
        # by the last part of the name (lora_A, lora_down.weight, …) and the shape, then in the order given
        self.names = sorted(parameters, key=lambda name: (name.split(".", 2)[2], tuple(parameters[name].shape)))
        ordered = [parameters[name] for name in self.names]
        self.vector = nn.Parameter(torch.cat([value.detach().reshape(-1) for value in ordered]))
        self.vector.grad = torch.zeros_like(self.vector)
        self._parameters = dict(zip(self.names, ordered, strict=True))
        for value, data, grad in zip(ordered, self._views(self.vector.detach(), ordered), self._views(self.vector.grad, ordered), strict=True):
            value.data = data
            value.grad = grad

    def views(self, vector: Tensor) -> dict[str, Tensor]:
        """A vector of this length as {name: tensor in the parameter's shape}, all views."""
        return dict(zip(self.names, self._views(vector, list(self._parameters.values())), strict=True))

    def zero_gradients(self) -> None:
        """All gradients zero, in place."""
        self.vector.grad.zero_()

    def _views(self, vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
        return [part.view(value.shape) for part, value in zip(vector.split([value.numel() for value in like]), like, strict=True)]
