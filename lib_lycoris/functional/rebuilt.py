"""A layer's output with a weight that is made of parameters in training, and made anew for the backward pass, so that the graph never holds it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .added import Geometry, Make, Pull, back_down, back_inner, back_up, inner_of
from .kept import recipe
from .precision import as_given

_CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


def rebuilt_output(
    x: Tensor, bias: Tensor | None, make: Callable[[], tuple[Tensor, Pull]], parameters: Sequence[Tensor], geometry: Geometry | None = None, groups: int = 1,
    factors: Make | None = None,
) -> Tensor:
    """The output for x of a linear layer or convolution with the weight that `make` gives, in x's dtype.

    With `factors` the whole weight's gradient is not needed: beside the layer's own work that leaves four products of the factors, all in the backward pass,
    where ΔW's own product beside the layer's takes six.

    Args:
        x: [...,I] or [B,I,H,W].
        bias: [O] or None.
        make: gives the weight [O,I] or [O,I/groups,K,K] in any dtype, and what turns its gradient into those of the parameters.
        parameters: those of `make` that want a gradient.
        geometry: of the convolution; None for a linear layer.
        groups: of the convolution.
        factors: gives up [O,R] and down [R,I] or [R,I,K,K] in any dtype, of whose product with what is constant the weight is the sum, and what turns their
            gradients into those of the parameters; of a convolution that is not grouped.
    """
    return _Rebuilt.apply(x, bias, make, geometry, groups, factors, *parameters)


class _Rebuilt(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, make: Callable[[], tuple[Tensor, Pull]], geometry: Geometry | None, groups: int, factors: Make | None,
        *parameters: Tensor,
    ) -> Tensor:
        with as_given(x.device.type):
            weight = make()[0].to(x.dtype)
            output = F.linear(x, weight, bias) if geometry is None else _CONVOLUTIONS[weight.ndim](x, weight, bias, *geometry, groups)
        ctx.recipe, ctx.make, ctx.geometry, ctx.groups, ctx.factors = recipe(x), make, geometry, groups, factors
        ctx.save_for_backward(None if ctx.recipe else x, *parameters)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, wanted = ctx.saved_tensors[0], ctx.needs_input_grad
        with as_given(gradient.device.type):
            x = ctx.recipe() if x is None else x
            if ctx.factors is None:
                by_x, gradients = _through_weight(ctx, gradient, x)
            else:
                by_x = _to_input(ctx, gradient, x) if wanted[0] else None
                gradients = _through_factors(ctx, gradient, x)
        by_bias = gradient.sum([axis for axis in range(gradient.ndim) if axis != _channels(gradient, ctx.geometry)]) if wanted[1] else None
        return by_x, by_bias, None, None, None, None, *gradients


def _through_weight(ctx: Any, gradient: Tensor, x: Tensor) -> tuple[Tensor | None, Sequence[Tensor | None]]:
    with torch.enable_grad():
        exact, pull = ctx.make()
    by_x, by_weight = _product_gradients(ctx, gradient, x, exact.detach().to(gradient.dtype), ctx.needs_input_grad[0], True)
    return by_x, pull(by_weight.to(exact))


def _to_input(ctx: Any, gradient: Tensor, x: Tensor) -> Tensor:
    return _product_gradients(ctx, gradient, x, ctx.make()[0].to(gradient.dtype), True, False)[0]


def _through_factors(ctx: Any, gradient: Tensor, x: Tensor) -> Sequence[Tensor | None]:
    with torch.enable_grad():
        exact, pull = ctx.factors()
    up, down = (factor.detach().to(gradient.dtype) for factor in exact)
    by_up = back_up(gradient, inner_of(x, down, ctx.geometry), 1, ctx.geometry)
    by_down = back_down(back_inner(gradient, up, 1, ctx.geometry), x, down, ctx.geometry, False, True)[1]
    return pull(by_up.to(exact[0]), by_down.to(exact[1]))


def _product_gradients(ctx: Any, gradient: Tensor, x: Tensor, weight: Tensor, for_x: bool, for_weight: bool) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of x and the weight from that of their product."""
    rows = gradient if ctx.geometry is not None else gradient.reshape(-1, gradient.shape[-1])
    return back_down(rows, x, weight, ctx.geometry, for_x, for_weight, ctx.groups)


def _channels(gradient: Tensor, geometry: Geometry | None) -> int:
    return gradient.ndim - 1 if geometry is None else 1
