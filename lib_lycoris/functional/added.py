"""A low-rank product added to a layer's output in training, with a backward pass that keeps little: its inner [N,R] and, where it must, the input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .kept import recipe
from .precision import as_given

_CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
Geometry = tuple[Sequence[int], Sequence[int], Sequence[int]]
"""Stride, padding and dilation of a convolution."""
Pull = Callable[..., Sequence["Tensor | None"]]
Make = Callable[[], "tuple[tuple[Tensor, Tensor], Pull]"]
"""Makes two factors out of parameters, and what turns the factors' gradients into those of the parameters."""


def add_product(
    output: Tensor, x: Tensor, down: Tensor, up: Tensor, scale: float = 1.0, values: Tensor | None = None, geometry: Geometry | None = None
) -> Tensor:
    """output + scale · up · diag(values) · down · x as a new tensor, in one product less than adding it would take; of output's dtype.

    Args:
        output: [...,O] of a linear layer, or [B,O,H',W'] of a convolution that is not grouped.
        x: the layer's input, [...,I] or [B,I,H,W].
        down: [R,I], or [R,I,K,K].
        up: [O,R], or [O,R,1,1].
        scale: of the product.
        values: [R] or [R,1] between the two; None: ones.
        geometry: of the convolution; None for a linear layer.
    """
    dtype = output.dtype
    if x.dtype != dtype or down.dtype != dtype or up.dtype != dtype:
        x, down, up = x.to(dtype), down.to(dtype), up.to(dtype)
    return _Added.apply(output, x, down, up, None if values is None else values.to(dtype), scale, geometry)


def add_made_product(
    output: Tensor, x: Tensor, make: Make, parameters: Sequence[Tensor], scale: float = 1.0,
    geometry: Geometry | None = None,
) -> Tensor:
    """The same for factors that are themselves made of `parameters`: they are made anew for the backward pass, so that none of them is kept.

    `make` gives (up, down), up [O,R] and down as above, and what turns their gradients into those of the parameters; `pulled` makes it of a plain function.
    """
    return _AddedMade.apply(output, x.to(output.dtype), make, scale, geometry, *parameters)


def pulled(values: Sequence[Tensor], parameters: Sequence[Tensor]) -> Pull:
    """What turns gradients of `values`, made in the graph, into those of the parameters; None for one that none of them depends on."""
    return lambda *gradients: torch.autograd.grad(values, parameters, gradients, allow_unused=True)


class _Added(torch.autograd.Function):
    """Keeps what the first factor gives, without the values, or not even that."""

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, x: Tensor, down: Tensor, up: Tensor, values: Tensor | None, scale: float, geometry: Geometry | None
    ) -> Tensor:
        with as_given(x.device.type):
            inner = inner_of(x, down, geometry)
            total = _plus(output, _weighted(inner, values), up.flatten(1) if up.ndim > 2 else up, scale, is_ours(output))
        ctx.recipe, ctx.scale, ctx.geometry = recipe(x), scale, geometry
        ctx.save_for_backward(None if ctx.recipe else x, None if _outgrows(inner, down, up) else inner, down, up, values)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, inner, down, up, values = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        by_values = by_up = None
        with as_given(gradient.device.type):
            x = ctx.recipe() if x is None else x
            if inner is None and (wanted[3] or wanted[4]):
                inner = inner_of(x, down, ctx.geometry)
            outer = back_inner(gradient, up.flatten(1) if up.ndim > 2 else up, ctx.scale, ctx.geometry)
            if wanted[4]:
                by_values = (outer * inner).sum([axis for axis in range(inner.ndim) if axis != 1]).view(values.shape)
            if wanted[3]:
                by_up = back_up(gradient, _weighted(inner, values), ctx.scale, ctx.geometry).reshape(up.shape)
            by_x, by_down = back_down(_weighted(outer, values), x, down, ctx.geometry, wanted[1], wanted[2])
        return gradient if wanted[0] else None, by_x, by_down, by_up, by_values, None, None


class _AddedMade(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, output: Tensor, x: Tensor, make: Make, scale: float, geometry: Geometry | None,
        *parameters: Tensor,
    ) -> Tensor:
        with as_given(x.device.type):
            up, down = (factor.to(output.dtype) for factor in make()[0])
            inner = inner_of(x, down, geometry)
            total = _plus(output, inner, up, scale, is_ours(output))
        ctx.recipe, ctx.make, ctx.scale, ctx.geometry = recipe(x), make, scale, geometry
        ctx.save_for_backward(None if ctx.recipe else x, None if _is_cheap(down, up) else inner, *parameters)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, inner = ctx.saved_tensors[:2]
        with as_given(gradient.device.type):
            x = ctx.recipe() if x is None else x
            with torch.enable_grad():
                exact, pull = ctx.make()
            up, down = (factor.detach().to(gradient.dtype) for factor in exact)
            outer = back_inner(gradient, up, ctx.scale, ctx.geometry)
            by_up = back_up(gradient, inner_of(x, down, ctx.geometry) if inner is None else inner, ctx.scale, ctx.geometry)
            by_x, by_down = back_down(outer, x, down, ctx.geometry, ctx.needs_input_grad[1], True)
            gradients = pull(by_up.to(exact[0]), by_down.to(exact[1]))
        return gradient if ctx.needs_input_grad[0] else None, by_x, None, None, None, *gradients


def _outgrows(inner: Tensor, down: Tensor, up: Tensor) -> bool:
    """Whether what lies between the factors is so much larger than they are that to make it a second time is the smaller price.

    Kept, it is the most of what a LoRA takes beyond its parameters and the optimiser's share of them.
    """
    return inner.numel() // len(down) > 2 * (down[0].numel() + len(up)) or _is_cheap(down, up)


def _is_cheap(down: Tensor, up: Tensor) -> bool:
    """Whether the first of the two products takes little of the work of both."""
    return 8 * down[0].numel() <= len(up)


def inner_of(x: Tensor, down: Tensor, geometry: Geometry | None) -> Tensor:
    """[N,R] of a linear layer, [B,R,H',W'] of a convolution."""
    if geometry is None:
        return _rows(x) @ down.t()
    return _CONVOLUTIONS[down.ndim](x, down, None, *geometry)


_FRESH = {"AddmmBackward0", "MmBackward0", "ViewBackward0", "UnsafeViewBackward0", "ConvolutionBackward0"}
"""What made a tensor that a linear layer or convolution gave away and doesn't keep itself."""


def is_ours(output: Tensor) -> bool:
    """Whether the layer's output can be added to where it is, as nobody needs it any more; torch raises an error should somebody after all."""
    return output.grad_fn is not None and output.grad_fn.name() in _FRESH


def _plus(output: Tensor, inner: Tensor, up: Tensor, scale: float, in_place: bool) -> Tensor:
    total = output.detach() if in_place else output.clone()
    if inner.ndim == 2:
        total = total.contiguous()
        _rows(total).addmm_(inner, up.t(), alpha=scale)
    elif not total.is_contiguous() and (rows := total.movedim(1, -1)).is_contiguous():  # channels last: places are rows
        _rows(rows).addmm_(_rows(inner.movedim(1, -1)), up.t(), alpha=scale)
    else:
        total = total.contiguous()
        total.flatten(2).baddbmm_(up.expand(len(output), -1, -1), inner.flatten(2), alpha=scale)
    return total


def back_inner(gradient: Tensor, up: Tensor, scale: float, geometry: Geometry | None) -> Tensor:
    """The gradient of what was multiplied with `up`."""
    if geometry is None:
        return _times(_rows(gradient) @ up, scale)
    if not gradient.is_contiguous():
        return _times(_rows(gradient.movedim(1, -1)) @ up, scale).view(*gradient.movedim(1, -1).shape[:-1], -1).movedim(-1, 1)
    return _times(torch.bmm(up.t().expand(len(gradient), -1, -1), gradient.flatten(2)), scale).view(len(gradient), -1, *gradient.shape[2:])


def back_up(gradient: Tensor, inner: Tensor, scale: float, geometry: Geometry | None) -> Tensor:
    """The gradient of `up` [O,R]."""
    if geometry is None:
        return _times((inner.t() @ _rows(gradient)).t(), scale)
    if len(gradient) == 1:
        return _times(gradient[0].flatten(1) @ inner[0].flatten(1).t(), scale)
    return _times((_rows(inner.movedim(1, -1)).t() @ _rows(gradient.movedim(1, -1))).t(), scale)


def _times(tensor: Tensor, scale: float) -> Tensor:
    return tensor if scale == 1 else tensor.mul_(scale)


def back_down(
    outer: Tensor, x: Tensor, down: Tensor, geometry: Geometry | None, for_x: bool, for_down: bool, groups: int = 1
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of x and `down` from that of their product."""
    if geometry is not None:
        stride, padding, dilation = geometry
        zeros = [0] * len(stride)
        by_x, by_down, _ = torch.ops.aten.convolution_backward(
            outer, x, down, None, stride, padding, dilation, False, zeros, groups, [for_x, for_down, False]
        )
        return by_x, by_down
    return (outer @ down).view(x.shape) if for_x else None, outer.t() @ _rows(x) if for_down else None


def _rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


def _weighted(inner: Tensor, values: Tensor | None) -> Tensor:
    """[N,R] or [B,R,H,W] times values [R]."""
    return inner if values is None else inner * values.reshape(-1, *(1 for _ in inner.shape[2:]))
