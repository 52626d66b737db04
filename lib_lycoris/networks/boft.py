"""BOFT: a layer turned by a butterfly product of block-diagonal rotations: its outputs, as LyCORIS writes it, or its inputs, as PEFT does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lib_lycoris.functional.blocks import rows_at_once
from lib_lycoris.functional.butterfly import butterfly_change, paired_by_halves
from lib_lycoris.functional.rotation import cayley_change, constrained, skew_of
from lib_lycoris.networks import parts, rotations
from lib_lycoris.networks.hints import Hints
from lib_lycoris.networks.layer import Layer

MARKS = ("boft_R", "boft_s")


class BOFTLayer(nn.Module, Layer):
    """The butterfly rotation of the outputs of one linear layer or convolution: W' = rescale · R_M·…·R_1·W, in LyCORIS' spelling.

    Its parameter is `oft_blocks` [M,k,b,b], from whose skew part Q follows R = (I + Q)(I − Q)⁻¹, and where a file has one `rescale` [O,1,…]. `alpha` is no
    scale here: alpha · O is the greatest norm of Q over all blocks of all stages, and 0 is no limit.

    Source: Liu et al. 2024, "Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization"; LyCORIS 4.1.3, lycoris/functional/boft.py.
    """

    algorithm = "boft"
    weight_dependent = True

    def __init__(self, blocks: Tensor, rescale: Tensor | None = None, alpha: float | None = None):
        """A layer of these tensors; no `alpha` means no limit."""
        super().__init__()
        parts.register(self, oft_blocks=blocks, rescale=rescale)
        self.alpha = alpha

    def delta(self, weight: Tensor) -> Tensor:
        total = torch.zeros(weight.shape, device=weight.device)
        self.add_to(total, weight, 1.0)
        return total

    def add_to(self, total: Tensor, base: Tensor, strength: float) -> None:
        if not total.is_contiguous():
            return super().add_to(total, base, strength)
        parts.check_fits(self, base.shape, (self._size(),))
        stages = self._stages(base).to(total)
        totals, weights = (tensor.flatten(1) for tensor in (total, base))
        width = rows_at_once(weights.T)
        for some, columns in zip(totals.split(width, 1), weights.split(width, 1), strict=True):
            some.add_(self._turned(columns.to(total), stages), alpha=strength)

    def delta_output(self, x: Tensor, module: nn.Module, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        if getattr(module, "groups", 1) > 1:  # outputs of different groups come from different inputs: rows of the weight can be mixed, they can't
            return super().delta_output(x, module, weight, bias)
        base = parts.base_of(module, weight, x, True)
        parts.check_fits(self, base.shape, (self._size(),))
        with parts.full_precision(x):
            stages = self._stages(base)
        axis = 1 if isinstance(module, _ConvNd) else -1
        output = parts.output_with(x, module, base, None).movedim(axis, 0)
        return self._turned(output, stages.to(output)).movedim(0, axis)

    def fits(self, shape: Sequence[int]) -> bool:
        return len(shape) > 1 and shape[0] == self._size()

    def tensors(self) -> dict[str, Tensor]:
        return parts.stored(self, self.alpha)

    def _size(self) -> int:
        return self.oft_blocks.shape[1] * self.oft_blocks.shape[2]

    def _stages(self, weight: Tensor) -> Tensor:
        """R − I of each block of each stage, float32 [M,k,b,b] on the weight's device."""
        skew = constrained(skew_of(self.oft_blocks.to(weight.device)), (self.alpha or 0.0) * self._size())
        return paired_by_halves(cayley_change(skew))

    def _turned(self, rows: Tensor, stages: Tensor) -> Tensor:
        """What is changed of rows [O,…]."""
        change = butterfly_change(rows, stages)
        if self.rescale is None:
            return change
        rescale = self.rescale.to(rows).reshape(-1, *(1 for _ in rows.shape[1:]))
        return rescale * change + (rescale - 1) * rows


class InputBOFTLayer(nn.Module, Layer):
    """The butterfly rotation of the inputs of one linear layer or convolution: W' = s · W·(R_M·…·R_1)ᵀ, in PEFT's spelling.

    Its parameters are `boft_R` [M,k,b,b], over k·b = I·K·K columns, with R = (I − Q)(I + Q)⁻¹ and Q = (B − Bᵀ)/2 for each block B, and where a file has it
    `boft_s` with O values.

    Source: PEFT 0.21.2, tuners/boft/layer.py.
    """

    algorithm = "boft"
    weight_dependent = True

    def __init__(self, blocks: Tensor, scales: Tensor | None = None):
        """A layer of these tensors; no `scales`: all are 1."""
        super().__init__()
        parts.register(self, boft_R=blocks, boft_s=scales)

    def delta(self, weight: Tensor) -> Tensor:
        parts.check_fits(self, weight.shape, ("?" if self.boft_s is None else self.boft_s.numel(), self._columns()))
        stages = cayley_change(skew_of(self.boft_R.to(weight.device)) / -2)
        rows = weight.float().flatten(1).split(rows_at_once(weight))
        change = torch.cat([butterfly_change(some.T, stages).T for some in rows]).reshape(weight.shape)
        if self.boft_s is None:
            return change
        scales = self.boft_s.to(weight.device).float().reshape(-1, *(1 for _ in weight.shape[1:]))
        return scales * change + (scales - 1) * weight.float()

    def fits(self, shape: Sequence[int]) -> bool:
        return len(shape) > 1 and math.prod(shape[1:]) == self._columns() and (self.boft_s is None or self.boft_s.numel() == shape[0])

    def tensors(self) -> dict[str, Tensor]:
        return parts.stored(self, None)

    def _columns(self) -> int:
        return self.boft_R.shape[1] * self.boft_R.shape[2]


def build(name: str, tensors: Mapping[str, Tensor], hints: Hints) -> BOFTLayer:
    """The layer that a file's tensors in LyCORIS' spelling describe.

    Raises:
        NetworkFileError: the blocks are not square, or not as many and as large as their stages need, or the shapes don't fit each other.
    """
    blocks, rescale = tensors["oft_blocks"], tensors.get("rescale")
    _check_stages(name, "oft_blocks", blocks)
    if blocks.shape[2] % 2:
        raise parts.misfit(name, f"oft_blocks {list(blocks.shape)}: blocks of an even size are needed")
    rotations.check_factors(name, "rescale", rescale, blocks.shape[1] * blocks.shape[2])
    # a limit in the file alone: what a config or the caller calls alpha is a scale
    return BOFTLayer(blocks, rescale, tensors["alpha"].double().item() if "alpha" in tensors else None)


def build_on_inputs(name: str, tensors: Mapping[str, Tensor], hints: Hints) -> InputBOFTLayer:
    """The layer that a file's tensors in PEFT's spelling describe.

    Raises:
        NetworkFileError: `boft_R` is missing, its blocks are not square, or not as many and as large as their stages need, or `boft_s` is no vector.
    """
    if "boft_R" not in tensors:
        raise parts.incomplete(name, tensors, "boft_R")
    blocks, scales = tensors["boft_R"], tensors.get("boft_s")
    _check_stages(name, "boft_R", blocks)
    rotations.check_factors(name, "boft_s", scales)
    return InputBOFTLayer(blocks, scales)


def _check_stages(name: str, part: str, blocks: Tensor) -> None:
    rotations.check_blocks(name, part, blocks, 4)
    stages, count, size = blocks.shape[:3]
    if (stages > 1 and size % 2) or stages > 40 or count % 2 ** (stages - 1):
        raise parts.misfit(name, f"{part} {list(blocks.shape)}: {count} blocks of {size} can't be paired in {stages} stages")
