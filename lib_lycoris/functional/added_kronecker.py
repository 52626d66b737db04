"""A Kronecker product's part of a layer's output in training: its two small products, and a backward pass that keeps the input at most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .added import Geometry, Make, is_ours
from .kept import recipe
from .precision import as_given

_CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


def add_kronecker_product(
    output: Tensor, x: Tensor, make: Make, parameters: Sequence[Tensor], scale: float = 1.0,
    geometry: Geometry | None = None,
) -> Tensor:
    """output + scale · (w1 ⊗ w2) · x as a new tensor of output's dtype.

    Args:
        output: [...,A·B] of a linear layer, or [N,A·B,H',W'] of a convolution that is not grouped.
        x: the layer's input, [...,C·D] or [N,C·D,H,W].
        make: gives (w1 [A,C], w2 [B,D] or [B,D,K,K]) in any dtype, and what turns their gradients into those of the parameters; asked again in the
            backward pass, so that neither is kept.
        parameters: those of `make` that want a gradient.
        scale: of the product.
        geometry: of the convolution; None for a linear layer.
    """
    return _Added.apply(output, x.to(output.dtype), make, scale, geometry, *parameters)


class _Added(torch.autograd.Function):
    """With G the gradient, all in parts [N,A,…] and [N,C,…]: V = w2ᵀ·G gives ∂x = w1ᵀ·V and ∂w1 = Σ V·xᵀ; ∂w2 is that of w1ᵀ·G over x."""

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, x: Tensor, make: Make, scale: float, geometry: Geometry | None,
        *parameters: Tensor,
    ) -> Tensor:
        with as_given(x.device.type):
            w1, w2 = (factor.to(output.dtype) for factor in make()[0])
            count, whole = _count(x, geometry), (output.detach() if is_ours(output) else output.clone()).contiguous()
            parts = _split(x, w1.shape[1], geometry)
            inner = parts @ w2.t() if geometry is None else _CONVOLUTIONS[w2.ndim](parts, w2, None, *geometry)
            whole.view(count, len(w1), -1).baddbmm_(w1.expand(count, -1, -1), inner.reshape(count, w1.shape[1], -1), alpha=scale)
        ctx.recipe, ctx.make, ctx.scale, ctx.geometry = recipe(x), make, scale, geometry
        ctx.save_for_backward(None if ctx.recipe else x, *parameters)
        return whole

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, geometry = ctx.saved_tensors[0], ctx.geometry
        with as_given(gradient.device.type):
            x = ctx.recipe() if x is None else x
            with torch.enable_grad():
                exact, pull = ctx.make()
            w1, w2 = (factor.detach().to(gradient.dtype) for factor in exact)
            count, mixed = _count(x, geometry), (w1.t() * ctx.scale).expand(_count(x, geometry), -1, -1)
            by_parts = _split(gradient, len(w1), geometry)
            parts = _split(x, w1.shape[1], geometry)
            by_mixed = torch.bmm(mixed, by_parts.reshape(count, len(w1), -1))
            if geometry is None:
                before = by_parts @ w2
                by_w2 = by_mixed.view(len(parts), -1).t() @ parts
            else:
                places = (len(by_parts), parts.shape[1], *parts.shape[2:])
                before = _backward(by_parts, by_parts.new_empty(1).expand(places), w2, geometry, 0)
                by_w2 = _backward(by_mixed.view(len(parts), -1, *by_parts.shape[2:]), parts, w2, geometry, 1)
            before = before.reshape(count, len(w1), -1)
            by_x = torch.bmm(mixed, before).view(x.shape) if ctx.needs_input_grad[1] else None
            by_w1 = torch.bmm(before, parts.reshape(count, w1.shape[1], -1).transpose(1, 2)).sum(0).mul_(ctx.scale)
            gradients = pull(by_w1.to(exact[0]), by_w2.to(exact[1]))
        return gradient if ctx.needs_input_grad[0] else None, by_x, None, None, None, *gradients


def _count(x: Tensor, geometry: Geometry | None) -> int:
    """How many inputs there are: rows of a linear layer's, pictures of a convolution's."""
    return x[..., 0].numel() if geometry is None else len(x)


def _split(tensor: Tensor, count: int, geometry: Geometry | None) -> Tensor:
    """Each input in so many parts, each an input of w2: [N·C,D] of [...,C·D], [N·C,D,H,W] of [N,C·D,H,W]."""
    if geometry is None:
        return tensor.reshape(-1, tensor.shape[-1] // count)
    return tensor.reshape(len(tensor) * count, -1, *tensor.shape[2:])


def _backward(gradient: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, which: int) -> Tensor:
    """The gradient of a convolution's input (0) or weight (1)."""
    stride, padding, dilation = geometry
    asked = [which == 0, which == 1, False]
    return torch.ops.aten.convolution_backward(gradient, x, weight, None, stride, padding, dilation, False, [0] * len(stride), 1, asked)[which]
