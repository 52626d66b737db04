"""A full difference: ΔW itself, and the bias's, of any layer; and a weight that replaces the model's own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lib_lycoris.networks import parts
from lib_lycoris.networks.hints import Hints
from lib_lycoris.networks.layer import Layer, Way

MARKS = ("diff", "diff_b", "set_weight")


class FullLayer(nn.Module, Layer):
    """The difference as it is: `diff`, in the weight's shape (a 1×1 convolution's may be [O,I]), and `diff_b` [O]; either may be missing. It has no scale."""

    algorithm = "full"

    def __init__(self, diff: Tensor | None = None, diff_b: Tensor | None = None):
        """A layer of these tensors, kept as they are and without gradient."""
        super().__init__()
        parts.register(self, diff=diff, diff_b=diff_b)

    @classmethod
    def create(
        cls, target: nn.Module | Sequence[int], rank: int = 1, alpha: float | None = None, generator: torch.Generator | None = None, bias: bool | None = None
    ) -> FullLayer:
        """A fresh layer for training: float32 zeros with gradients in the shapes of the weight and of the bias.

        Args:
            target: the module to train, or the shape of its weight.
            rank, alpha: not used; there is none.
            generator: tells the device alone.
            bias: whether there is a difference for the bias; None: where the module has one.

        Source: LyCORIS f49d30d, lycoris/modules/full.py, which starts at zero too.
        """
        device = generator.device if generator is not None else None
        shape = parts.weight_shape(target) if isinstance(target, nn.Module) else tuple(target)
        has_bias = getattr(target, "bias", None) is not None if bias is None else bias
        return cls(torch.zeros(shape, device=device), torch.zeros(shape[0], device=device) if has_bias else None).requires_grad_(True)

    def delta(self, weight: Tensor) -> Tensor:
        parts.check_fits(self, weight.shape, self._size())
        if self.diff is None:
            return torch.zeros(weight.shape, device=weight.device)
        return self.diff.to(weight.device).float().reshape(weight.shape)

    def delta_bias(self, bias: Tensor | None) -> Tensor | None:
        return None if self.diff_b is None else self.diff_b.float() if bias is None else self.diff_b.to(bias.device).float()

    def way(self, places: int | None = None, merges: bool = True) -> Way:
        return "weight"

    def add_to(self, total: Tensor, base: Tensor, strength: float) -> None:
        parts.check_fits(self, total.shape, self._size())
        if self.diff is not None:
            parts.add_blocks(total, self.diff.reshape(total.shape), strength)

    def fits(self, shape: Sequence[int]) -> bool:
        if self.diff is None:
            return len(shape) > 0 and shape[0] == self.diff_b.shape[0]
        return len(shape) > 0 and shape[0] == self.diff.shape[0] and math.prod(shape) == self.diff.numel()

    def tensors(self) -> dict[str, Tensor]:
        return parts.stored(self, None)

    def _size(self) -> Sequence[int]:
        return self.diff_b.shape if self.diff is None else self.diff.shape


class ReplacementLayer(nn.Module, Layer):
    """A weight to stand in the model's place: `set_weight`, so that ΔW is its difference from the base; at strength 1 nothing of the base is left."""

    algorithm = "full"
    weight_dependent = True

    def __init__(self, set_weight: Tensor):
        """A layer of this tensor, kept as it is and without gradient."""
        super().__init__()
        parts.register(self, set_weight=set_weight)

    def delta(self, weight: Tensor) -> Tensor:
        parts.check_fits(self, weight.shape, self.set_weight.shape)
        return self.set_weight.to(weight.device).float().reshape(weight.shape) - weight.float()

    def fits(self, shape: Sequence[int]) -> bool:
        return len(shape) > 0 and shape[0] == self.set_weight.shape[0] and math.prod(shape) == self.set_weight.numel()

    def tensors(self) -> dict[str, Tensor]:
        return parts.stored(self, None)


def build(name: str, tensors: Mapping[str, Tensor], hints: Hints) -> FullLayer | ReplacementLayer:
    """The layer that a file's tensors describe.

    Raises:
        NetworkFileError: the shapes don't fit each other, or there are both a difference and a replacement.
    """
    diff, diff_b, replacement = (tensors.get(part) for part in MARKS)
    parts.check_values(name, {"diff": diff, "set_weight": replacement}, range(1, 6))
    parts.check_values(name, {"diff_b": diff_b}, (1,))
    if replacement is not None:
        if diff is not None or diff_b is not None:
            raise parts.misfit(name, f"{parts.shapes_of({part: tensors.get(part) for part in MARKS})}: a difference and a replacement in one")
        return ReplacementLayer(replacement)
    if diff is not None and diff_b is not None and diff.shape[0] != diff_b.shape[0]:
        raise parts.misfit(name, parts.shapes_of({"diff": diff, "diff_b": diff_b}))
    return FullLayer(diff, diff_b)
