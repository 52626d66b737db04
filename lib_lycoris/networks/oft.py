"""Diag-OFT: the outputs of a layer turned block by block, as kohya and LyCORIS write it, and as LyCORIS once wrote it (the rotation itself)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lib_lycoris.functional.blocks import add_blocks_to_rows, multiply_blocks
from lib_lycoris.functional.rotation import cayley_change, constrained, skew_of
from lib_lycoris.networks import boft, parts, rotations
from lib_lycoris.networks.hints import Hints
from lib_lycoris.networks.layer import Layer

MARKS, OTHERS = ("oft_blocks", "oft_diag"), ("rescale",)


class OFTLayer(nn.Module, Layer):
    """The rotation of the outputs of one linear layer or convolution: W' = rescale · Rᵀ·W with a block-diagonal R.

    Its parameter is `oft_blocks` [k,b,b], from whose skew part Q follows R = (I + Q)(I − Q)⁻¹, or `oft_diag` [k,b,b], which is R; and where a file has one,
    `rescale` [O,1,…]. `alpha` is no scale here: alpha · O is the greatest norm of Q over all its blocks, and 0 is no limit.

    Source: Qiu et al. 2023, "Controlling Text-to-Image Diffusion by Orthogonal Finetuning"; LyCORIS 4.1.3, lycoris/functional/diag_oft.py.
    """

    algorithm = "oft"
    weight_dependent = True

    def __init__(self, blocks: Tensor | None = None, rescale: Tensor | None = None, alpha: float | None = None, rotation: Tensor | None = None):
        """A layer of `oft_blocks` or, as `rotation`, of `oft_diag`; no `alpha` means no limit."""
        super().__init__()
        parts.register(self, oft_blocks=blocks, oft_diag=rotation, rescale=rescale)
        self.alpha = alpha

    def delta(self, weight: Tensor) -> Tensor:
        parts.check_fits(self, weight.shape, (self._size(),))
        return multiply_blocks(self._change(weight), weight.float(), 0)

    def add_to(self, total: Tensor, base: Tensor, strength: float) -> None:
        if not total.is_contiguous():
            return super().add_to(total, base, strength)
        parts.check_fits(self, base.shape, (self._size(),))
        add_blocks_to_rows(total, self._change(base).to(total), base.to(total), strength)

    def delta_output(self, x: Tensor, module: nn.Module, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        if getattr(module, "groups", 1) > 1:  # outputs of different groups come from different inputs: rows of the weight can be mixed, they can't
            return super().delta_output(x, module, weight, bias)
        base = parts.base_of(module, weight, x, True)
        parts.check_fits(self, base.shape, (self._size(),))
        with parts.full_precision(x):
            change = self._change(base)
        return multiply_blocks(change.to(x), parts.output_with(x, module, base, None), 1 if isinstance(module, _ConvNd) else -1)

    def fits(self, shape: Sequence[int]) -> bool:
        return len(shape) > 1 and shape[0] == self._size()

    def tensors(self) -> dict[str, Tensor]:
        return parts.stored(self, self.alpha)

    def _size(self) -> int:
        held = self.oft_diag if self.oft_blocks is None else self.oft_blocks
        return held.shape[0] * held.shape[1]

    def _change(self, weight: Tensor) -> Tensor:
        """diag(rescale)·Rᵀ − I, float32 [k,b,b] on the weight's device."""
        if self.oft_blocks is None:
            held = self.oft_diag.to(weight.device).float()
            change = held.transpose(1, 2) - torch.eye(held.shape[1], device=weight.device)
        else:
            skew = constrained(skew_of(self.oft_blocks.to(weight.device)), (self.alpha or 0.0) * self._size())
            change = cayley_change(-skew)
        if self.rescale is None:
            return change
        rescale = self.rescale.to(weight.device).float().reshape(*change.shape[:2], 1)
        return rescale * change + (rescale - 1) * torch.eye(change.shape[1], device=weight.device)


def build(name: str, tensors: Mapping[str, Tensor], hints: Hints) -> Layer:
    """The layer that a file's tensors describe; blocks of four dimensions are BOFT's.

    Raises:
        NetworkFileError: the blocks are not square, or the shapes don't fit each other.
    """
    part = MARKS[0] if MARKS[0] in tensors else MARKS[1]
    blocks, rescale = tensors[part], tensors.get("rescale")
    if blocks.ndim == 4 and part == "oft_blocks":
        return boft.build(name, tensors, hints)
    rotations.check_blocks(name, part, blocks, 3)
    rotations.check_factors(name, "rescale", rescale, blocks.shape[0] * blocks.shape[1])
    # a limit in the file alone: what a config or the caller calls alpha is a scale
    alpha = tensors["alpha"].double().item() if "alpha" in tensors else None
    return OFTLayer(blocks, rescale, alpha) if part == "oft_blocks" else OFTLayer(rescale=rescale, alpha=alpha, rotation=blocks)
