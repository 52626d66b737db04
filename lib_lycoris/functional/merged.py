"""A layer's output with W + ΔW, where ΔW is a product of two factors: they get their gradients without that of the whole weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .added import Geometry, Make, back_down, back_inner, back_up, inner_of
from .kept import recipe
from .precision import as_given

_CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


def merged_output(
    x: Tensor, bias: Tensor | None, weigh: Callable[[], Tensor], make: Make, parameters: Sequence[Tensor], geometry: Geometry | None = None
) -> Tensor:
    """The output for x of a linear layer or ungrouped convolution with the weight that `weigh` gives: one product, and one for the gradient of x.

    Beside the layer's own work that leaves four products of the factors, all in the backward pass; ΔW's own product beside the layer's takes six. Neither the
    weight nor the factors are kept.

    Args:
        x: [...,I] or [B,I,H,W].
        bias: [O] or None.
        weigh: gives W + ΔW [O,I] or [O,I,K,K] in any dtype; asked again in the backward pass.
        make: gives factors (up [O,R], down [R,I] or [R,I,K,K]) of ΔW, of any dtype, and what turns their gradients into those of the parameters.
        parameters: those of `make` that want a gradient.
        geometry: of the convolution; None for a linear layer.
    """
    return _Merged.apply(x, bias, weigh, make, geometry, *parameters)


class _Merged(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, weigh: Callable[[], Tensor], make: Make, geometry: Geometry | None, *parameters: Tensor
    ) -> Tensor:
        with as_given(x.device.type):
            weight = weigh().to(x.dtype)
            output = F.linear(x, weight, bias) if geometry is None else _CONVOLUTIONS[weight.ndim](x, weight, bias, *geometry)
        ctx.recipe, ctx.weigh, ctx.make, ctx.geometry = recipe(x), weigh, make, geometry
        ctx.save_for_backward(None if ctx.recipe else x, *parameters)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, geometry = ctx.saved_tensors[0], ctx.geometry
        with as_given(gradient.device.type):
            x = ctx.recipe() if x is None else x
            by_x = None
            if ctx.needs_input_grad[0]:
                rows = gradient if geometry else gradient.reshape(-1, gradient.shape[-1])
                by_x = back_down(rows, x, ctx.weigh().to(x.dtype), geometry, True, False)[0]
            with torch.enable_grad():
                exact, pull = ctx.make()
            up, down = (factor.detach().to(x.dtype) for factor in exact)
            outer = back_inner(gradient, up, 1, geometry)
            by_up = back_up(gradient, inner_of(x, down, geometry), 1, geometry)
            by_down = back_down(outer, x, down, geometry, False, True)[1]
            gradients = pull(by_up.to(exact[0]), by_down.to(exact[1]))
        by_bias = gradient.sum([axis for axis in range(gradient.ndim) if axis != (1 if geometry else gradient.ndim - 1)]) if ctx.needs_input_grad[1] else None
        return by_x, by_bias, None, None, None, *gradients
