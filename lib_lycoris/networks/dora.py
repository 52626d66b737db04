"""DoRA: any other layer, after which every row or every column of the weight is stretched to a length of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lib_lycoris.errors import ConfigError
from lib_lycoris.functional.decomposition import lengths, relative_gain
from lib_lycoris.networks import parts, rotations
from lib_lycoris.networks.layer import Layer, Way

MARKS = ("dora_scale", "lora_magnitude_vector")


class DecomposedLayer(nn.Module, Layer):
    """Another layer and the lengths to which W plus its delta is brought: ΔW = magnitude · (W + ΔV) / ‖W + ΔV‖ − W, loaded or in training.

    Strength acts on this ΔW as a whole. The lengths are those of rows (outputs; the paper, PEFT, LyCORIS since 3.2) or of columns (inputs; LyCORIS before,
    OneTrainer). `dora_scale` tells which by its shape: [O,1,…] and [O] rows, [1,I,…] columns, and columns where [1,N,…] could be both.
    `lora_magnitude_vector` (PEFT) is rows whatever its shape. `algorithm` is that of the layer inside.

    Source: Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", equation 5; LyCORIS 4.1.3, lycoris/functional/general.py;
    PEFT 0.21.2, tuners/lora/dora.py.
    """

    weight_dependent = True

    def __init__(self, inner: Layer, dora_scale: Tensor | None = None, lora_magnitude_vector: Tensor | None = None, exact_gradient: bool = False):
        """A layer around `inner` with one of the two; `exact_gradient`: in training the gradient also goes through the lengths that are divided by."""
        super().__init__()
        self.inner = inner
        self.algorithm = inner.algorithm
        self.exact_gradient = exact_gradient
        parts.register(self, dora_scale=dora_scale, lora_magnitude_vector=lora_magnitude_vector)

    @classmethod
    def create(cls, target: nn.Module | Tensor, inner: Layer, on_output: bool = True, exact_gradient: bool = False) -> DecomposedLayer:
        """A fresh layer for training: the weight's own lengths as trainable float32 magnitudes around a fresh `inner`, so that it adds exactly nothing.

        Exactly: the length of a weight to which nothing is added is computed as the magnitude was, and what counts is their difference.

        Args:
            target: the module to train, or its weight; it is read.
            inner: the fresh layer for the same module.
            on_output: a length for each output rather than for each input.
            exact_gradient: the gradient goes through the lengths, too; without, they count as constants, which saves the memory of a whole weight.

        Raises:
            ConfigError: the target has no weight of 2 to 5 dimensions, or `inner` is not made for it.

        Source: Liu et al. 2024, "DoRA", section 4.3 for the constant lengths.
        """
        weight = target if isinstance(target, Tensor) else target.weight
        shape = parts.target_shape(weight.shape if isinstance(target, Tensor) else target)
        if not inner.fits(shape) or tuple(weight.shape) != shape:
            size = list(weight.shape)
            raise ConfigError(f"a weight of shape {size} can't be decomposed around this {inner.algorithm} layer; make both for one module")
        layer = cls(inner, lengths(weight.detach(), 0 if on_output else 1).float(), exact_gradient=exact_gradient)
        layer.dora_scale.requires_grad_(True)
        return layer

    def delta(self, weight: Tensor) -> Tensor:
        axis = self._checked_axis(weight.shape)
        base, change = weight.float(), self.inner.delta(weight)
        changed = base + change
        return torch.addcmul(change, changed, self._gain(changed, axis))

    def add_to(self, total: Tensor, base: Tensor, strength: float) -> None:
        axis = self._checked_axis(base.shape)
        changed = base.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        self.inner.add_to(changed, base, 1.0)
        self.inner.add_to(total, base, strength)
        total.addcmul_(changed.to(total), self._gain(changed, axis).to(total), value=strength)

    def delta_bias(self, bias: Tensor | None) -> Tensor | None:
        return self.inner.delta_bias(bias)

    def delta_output(self, x: Tensor, module: nn.Module, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        base = parts.base_of(module, weight, x, True)
        axis = self._checked_axis(base.shape)
        if self.inner.delta_bias(parts.bias_of(module, bias, x)) is not None:  # the bias is not stretched with the weight
            return super().delta_output(x, module, weight, bias)
        with parts.full_precision(x):
            gain = self._gain_for(base, axis).flatten()
        if axis == 1:
            gain = gain.repeat(getattr(module, "groups", 1))
        gain = gain.reshape(-1, *(1 for _ in module.kernel_size)) if isinstance(module, _ConvNd) else gain
        # (g − 1)·W and g·ΔV, never g·(W + ΔV) − W: what is left of such a difference in half precision is noise
        if axis == 0:
            beside = self.inner.delta_output(x, module, weight, bias)
            return parts.output_with(x, module, base, None) * gain.to(x) + beside * (gain + 1).to(beside)
        return parts.output_with(x * gain.to(x), module, base, None) + self.inner.delta_output(x * (gain + 1).to(x), module, weight, bias)

    def way(self, places: int | None = None, merges: bool = True) -> Way:
        return "weight"

    def fits(self, shape: Sequence[int]) -> bool:
        return self.inner.fits(shape) and self._axis(shape) is not None

    def truncated(self, ranks: int) -> DecomposedLayer:
        inner = self.inner.truncated(ranks)
        return self if inner is self.inner else DecomposedLayer(inner, self.dora_scale, self.lora_magnitude_vector, self.exact_gradient)

    def tensors(self) -> dict[str, Tensor]:
        own = {mark: getattr(self, mark) for mark in MARKS}
        return {**self.inner.tensors(), **{mark: tensor.detach() for mark, tensor in own.items() if tensor is not None}}

    def _magnitude(self) -> Tensor:
        return self.lora_magnitude_vector if self.dora_scale is None else self.dora_scale

    def _axis(self, shape: Sequence[int]) -> int | None:
        """The axis of a weight of this shape whose slices have the lengths; None where there are more or fewer of them."""
        held, count = self._magnitude().shape, self._magnitude().numel()
        lying = self.dora_scale is not None and len(held) > 1 and held[0] == 1
        if lying and count == shape[1]:
            return 1
        return 0 if count == shape[0] else None

    def _checked_axis(self, shape: Sequence[int]) -> int:
        axis = self._axis(shape) if len(shape) > 1 else None
        parts.check_fits(self, shape, (self._magnitude().numel(),))
        return axis

    def _gain(self, changed: Tensor, axis: int) -> Tensor:
        """g − 1 for each slice of the weight with its change, shaped to be multiplied with it."""
        length = lengths(changed if self.exact_gradient else changed.detach(), axis)
        return relative_gain(self._magnitude().to(changed.device).reshape(length.shape), length)

    def _gain_for(self, base: Tensor, axis: int) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.exact_gradient):
            changed = base.float() + self.inner.delta(base)
        return self._gain(changed, axis)


def build(name: str, tensors: Mapping[str, Tensor], inner: Layer) -> DecomposedLayer:
    """The layer around `inner` that the mark among a file's tensors describes.

    Raises:
        NetworkFileError: the magnitudes are no vector.
    """
    mark = next(mark for mark in MARKS if mark in tensors)
    rotations.check_factors(name, mark, tensors[mark])
    return DecomposedLayer(inner, **{mark: tensors[mark]})
