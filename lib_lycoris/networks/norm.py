"""The differences of a normalisation's scale γ and shift β, as LyCORIS writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lib_lycoris.errors import ConfigError
from lib_lycoris.networks import parts
from lib_lycoris.networks.hints import Hints
from lib_lycoris.networks.layer import Layer

MARKS = ("w_norm", "b_norm")


class NormLayer(nn.Module, Layer):
    """`w_norm` [O] is added to a LayerNorm's or GroupNorm's weight, `b_norm` [O] to its bias; either may be missing. It has no scale."""

    algorithm = "norm"

    def __init__(self, w_norm: Tensor | None = None, b_norm: Tensor | None = None):
        """A layer of these tensors, kept as they are and without gradient."""
        super().__init__()
        parts.register(self, w_norm=w_norm, b_norm=b_norm)

    @classmethod
    def create(cls, target: nn.Module, rank: int = 1, alpha: float | None = None, generator: torch.Generator | None = None) -> NormLayer:
        """A fresh layer for training: float32 zeros with gradients for the module's weight and, where it has one, bias; the rest is not used.

        Raises:
            ConfigError: the module is no LayerNorm or GroupNorm with a weight of one dimension.

        Source: LyCORIS f49d30d, lycoris/modules/norms.py, which starts at zero too.
        """
        weight = getattr(target, "weight", None)
        if not isinstance(target, nn.LayerNorm | nn.GroupNorm) or weight is None or weight.ndim != 1:
            raise ConfigError(f"{type(target).__name__} is no LayerNorm or GroupNorm with a weight; choose another kind of network for it")
        device = generator.device if generator is not None else None
        zeros = (torch.zeros(weight.shape, device=device) for _ in range(2))
        return cls(next(zeros), next(zeros) if target.bias is not None else None).requires_grad_(True)

    def delta(self, weight: Tensor) -> Tensor:
        parts.check_fits(self, weight.shape, self._size())
        return torch.zeros(weight.shape, device=weight.device) if self.w_norm is None else self.w_norm.to(weight.device).float()

    def delta_bias(self, bias: Tensor | None) -> Tensor | None:
        return None if self.b_norm is None else self.b_norm.float() if bias is None else self.b_norm.to(bias.device).float()

    def belongs_in_weight(self, places: int | None = None) -> bool:
        return True

    def fits(self, shape: Sequence[int]) -> bool:
        return tuple(shape) == tuple(self._size())

    def tensors(self) -> dict[str, Tensor]:
        return parts.stored(self, None)

    def _size(self) -> Sequence[int]:
        return (self.b_norm if self.w_norm is None else self.w_norm).shape


def build(name: str, tensors: Mapping[str, Tensor], hints: Hints) -> NormLayer:
    """The layer that a file's tensors describe.

    Raises:
        NetworkFileError: the shapes don't fit each other.
    """
    w_norm, b_norm = (tensors.get(part) for part in MARKS)
    parts.check_values(name, {"w_norm": w_norm, "b_norm": b_norm}, (1,))
    if w_norm is not None and b_norm is not None and w_norm.shape != b_norm.shape:
        raise parts.misfit(name, parts.shapes_of({"w_norm": w_norm, "b_norm": b_norm}))
    return NormLayer(w_norm, b_norm)
