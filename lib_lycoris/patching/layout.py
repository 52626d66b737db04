"""A weight as the matrix [O,I·K·K] that lies in memory, whether its channels come first or last."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """How weights of one shape lie in memory.

    Attributes:
        shape: [O,…].
        strides: of each dimension.
        channels_last: [O,I,K,K] lies as [O,K,K,I].
        dense: the values follow each other without gaps, in one of these two orders; where not, there is no matrix.
    """

    shape: torch.Size
    strides: tuple[int, ...]
    channels_last: bool
    dense: bool

    @staticmethod
    def of(weight: Tensor) -> Layout:
        """The layout of this weight."""
        plain = weight.is_contiguous()
        last = not plain and weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last)
        return Layout(weight.shape, weight.stride(), last, plain or last)

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight as [O,I·K·K] in the order of its memory; a view."""
        return (weight.permute(0, 2, 3, 1) if self.channels_last else weight).reshape(self.shape[0], -1)

    def weight(self, values: Tensor) -> Tensor:
        """The weight of which [O,I·K·K] or flat values in the order of memory are the matrix; a view, with the same strides even where a side is one."""
        return values.as_strided(self.shape, self.strides)

    def order(self, down: Tensor) -> Tensor:
        """A second factor [R,I·K·K] with its columns in the order of memory."""
        if not self.channels_last:
            return down
        return down.reshape(down.shape[0], *self.shape[1:]).permute(0, 2, 3, 1).reshape(down.shape)
