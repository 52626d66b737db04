"""A layer's output with a weight that is made of parameters in training, and made anew for the backward pass, so that the graph never holds it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .added import Geometry, Pull
from .kept import recipe
from .precision import as_given

_CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


def rebuilt_output(
    x: Tensor, bias: Tensor | None, make: Callable[[], tuple[Tensor, Pull]], parameters: Sequence[Tensor], geometry: Geometry | None = None, groups: int = 1
) -> Tensor:
    """The output for x of a linear layer or convolution with the weight that `make` gives, in x's dtype.

    Args:
        x: [...,I] or [B,I,H,W].
        bias: [O] or None.
        make: gives the weight [O,I] or [O,I/groups,K,K] in any dtype, and what turns its gradient into those of the parameters.
        parameters: those of `make` that want a gradient.
        geometry: of the convolution; None for a linear layer.
        groups: of the convolution.
    """
    return _Rebuilt.apply(x, bias, make, geometry, groups, *parameters)


class _Rebuilt(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, make: Callable[[], tuple[Tensor, Pull]], geometry: Geometry | None, groups: int, *parameters: Tensor
    ) -> Tensor:
        with as_given(x.device.type):
            weight = make()[0].to(x.dtype)
            output = F.linear(x, weight, bias) if geometry is None else _CONVOLUTIONS[weight.ndim](x, weight, bias, *geometry, groups)
        ctx.recipe, ctx.make, ctx.geometry, ctx.groups = recipe(x), make, geometry, groups
        ctx.save_for_backward(None if ctx.recipe else x, *parameters)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x = ctx.saved_tensors[0]
        with as_given(gradient.device.type):
            x = ctx.recipe() if x is None else x
            with torch.enable_grad():
                exact, pull = ctx.make()
            weight = exact.detach().to(gradient.dtype)
            if ctx.geometry is None:
                flat = gradient.reshape(-1, gradient.shape[-1])
                by_weight = flat.t() @ x.reshape(-1, x.shape[-1])
                by_x = (flat @ weight).view(x.shape) if ctx.needs_input_grad[0] else None
            else:
                stride, padding, dilation = ctx.geometry
                by_x, by_weight, _ = torch.ops.aten.convolution_backward(
                    gradient, x, weight, None, stride, padding, dilation, False, [0] * len(stride), ctx.groups, [ctx.needs_input_grad[0], True, False]
                )
            gradients = pull(by_weight.to(exact))
        by_bias = gradient.sum([axis for axis in range(gradient.ndim) if axis != _channels(gradient, ctx.geometry)]) if ctx.needs_input_grad[1] else None
        return by_x, by_bias, None, None, None, *gradients


def _channels(gradient: Tensor, geometry: Geometry | None) -> int:
    return gradient.ndim - 1 if geometry is None else 1
