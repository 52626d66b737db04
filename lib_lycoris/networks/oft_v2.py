"""OFTv2: the inputs of a layer turned block by block, as PEFT and OneTrainer write it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lib_lycoris.functional.blocks import add_blocks_to_columns, multiply_blocks
from lib_lycoris.functional.rotation import cayley_change, neumann_change, shortened, skew_from_upper
from lib_lycoris.networks import parts, rotations
from lib_lycoris.networks.hints import Hints
from lib_lycoris.networks.layer import Layer

MARKS, OTHERS = ("oft_R.weight",), ("oft_R.scaled_oft",)


class InputOFTLayer(nn.Module, Layer):
    """The rotation of the inputs of one linear layer or convolution: W' = W·Rᵀ with a block-diagonal R over the I·K·K columns.

    Its parameter is `oft_R.weight` [k,b(b−1)/2], the upper triangles of k skew blocks Q, or one [1,b(b−1)/2] that all blocks share. PEFT's R is the sum
    I + 2Q + 2Q² + 2Q³ + Q⁴, or (I − Q)(I + Q)⁻¹ where its config says so: these two turn opposite ways.

    OneTrainer has the same tensors, with two differences. `oft_R.scaled_oft` marks those of its files whose values are divided by 2·√(b − 1). And its
    convolutions turn the other way, W' = W·R: nothing in the tensors marks that, so a layer counts as OneTrainer's where it has `scaled_oft` or a name
    in kohya's spelling, without dots, as OneTrainer writes and PEFT never does.

    Source: Qiu et al. 2025, "Orthogonal Finetuning Made Scalable"; PEFT 0.21.2, tuners/oft/layer.py; Nerogar/OneTrainer 23df3832, modules/module/LoRAModule.py
    and oft_utils.py.
    """

    algorithm = "oft"
    weight_dependent = True

    def __init__(self, values: Tensor, scaled: bool = False, turned_convolutions: bool = False, hints: Hints | None = None):
        """A layer of these upper triangles; `scaled`: divided by 2·√(b − 1); `turned_convolutions`: as OneTrainer has them."""
        super().__init__()
        self.oft_R = parts.holder(weight=values)
        self.scaled = scaled
        self.turned_convolutions = turned_convolutions
        self.hints = hints or Hints()
        self.size = block_size(values.shape[1])

    def delta(self, weight: Tensor) -> Tensor:
        blocks = self._change(weight)
        return multiply_blocks(blocks.transpose(1, 2), weight.float().flatten(1), 1).reshape(weight.shape)

    def add_to(self, total: Tensor, base: Tensor, strength: float) -> None:
        if not total.is_contiguous():
            return super().add_to(total, base, strength)
        add_blocks_to_columns(total, self._change(base).to(total), base.to(total), strength)

    def delta_output(self, x: Tensor, module: nn.Module, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        convolution = isinstance(module, _ConvNd)
        if convolution and (math.prod(module.kernel_size) > 1 or module.groups > 1):
            return super().delta_output(x, module, weight, bias)
        base = parts.base_of(module, weight, x, True)
        with parts.full_precision(x):
            blocks = self._change(base)
        return parts.output_with(multiply_blocks(blocks.to(x), x, 1 if convolution else -1), module, base, None)

    def fits(self, shape: Sequence[int]) -> bool:
        columns = math.prod(shape[1:])
        shared = self.oft_R.weight.shape[0] == 1
        return len(shape) > 1 and (columns % self.size == 0 if shared else columns == self.oft_R.weight.shape[0] * self.size)

    def tensors(self) -> dict[str, Tensor]:
        named = parts.stored(self, None)
        return {**named, "oft_R.scaled_oft": torch.tensor(True)} if self.scaled else named

    def _change(self, weight: Tensor) -> Tensor:
        """N float32 [k,b,b] on the weight's device, where ΔW = W·diag(N): Rᵀ − I, or R − I."""
        parts.check_fits(self, weight.shape, ("?", self.oft_R.weight.shape[0] * self.size))
        skew = skew_from_upper(self.oft_R.weight.to(weight.device), self.size)
        if self.scaled and self.size > 1:
            skew = skew / (2 * math.sqrt(self.size - 1))
        if self.hints.coft_limit is not None:
            skew = shortened(skew, self.hints.coft_limit)
        if weight.ndim == 2 or not self.turned_convolutions:
            skew = -skew  # R of −Q is Rᵀ
        if self.hints.cayley_neumann is False:
            change = cayley_change(-skew)
        else:
            change = neumann_change(skew, self.hints.cayley_terms or 5)
        return change.expand(math.prod(weight.shape[1:]) // self.size, -1, -1)


def block_size(values: int) -> int:
    """b for b(b − 1)/2 values above the diagonal; 0 where there is none."""
    size = (1 + math.isqrt(1 + 8 * values)) // 2
    return size if size * (size - 1) // 2 == values else 0


def build(name: str, tensors: Mapping[str, Tensor], hints: Hints) -> InputOFTLayer:
    """The layer that a file's tensors and its config describe; a `name` without dots is OneTrainer's.

    Raises:
        NetworkFileError: there is no weight, or its rows are no triangles.
    """
    if "oft_R.weight" not in tensors:
        raise parts.incomplete(name, tensors, "oft_R.weight")
    values = tensors["oft_R.weight"]
    parts.check_values(name, {"oft_R.weight": values}, (2,))
    if not block_size(values.shape[1]):
        raise parts.misfit(name, f"oft_R.weight {list(values.shape)}: {values.shape[1]} values are no triangle's")
    rotations.check_size(name, "oft_R.weight", values)
    mark = tensors.get("oft_R.scaled_oft")
    if mark is not None and mark.numel() != 1:
        raise parts.misfit(name, f"oft_R.scaled_oft {list(mark.shape)}: one value is needed")
    scaled = mark is not None and bool(mark.item())
    return InputOFTLayer(values, scaled, scaled or "." not in name, hints)
