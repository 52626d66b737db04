"""What old extractions of LyCORIS put beside their low-rank product: the few largest values that it misses, as a sparse matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lib_lycoris.networks import parts
from lib_lycoris.networks.hints import Hints
from lib_lycoris.networks.layer import Layer
from lib_lycoris.networks.low_rank import LowRankLayer
from lib_lycoris.networks.low_rank import build as build_low_rank

MARKS = ("bias_indices", "bias_values", "bias_size")


class SparseLayer(nn.Module, Layer):
    """A low-rank layer and, times its scale, `bias_values` [N] at the places `bias_indices` [2,N] (rows, columns) of ΔW in two dimensions.

    Source: KohakuBlueleaf/a1111-sd-webui-lycoris df9c009, lycoris.py: the sparse matrix is added to up · down before the scale.
    """

    algorithm = "lora"

    def __init__(self, inner: LowRankLayer, indices: Tensor, values: Tensor, size: Tensor):
        """A layer of `inner`, whose scale it takes, and these tensors, which are kept as they are."""
        super().__init__()
        self.inner = inner
        for name, tensor in zip(MARKS, (indices, values, size), strict=True):
            self.register_buffer(name, tensor)

    def delta(self, weight: Tensor) -> Tensor:
        delta = self.inner.delta(weight)
        self._add(delta, 1.0)
        return delta

    def delta_bias(self, bias: Tensor | None) -> Tensor | None:
        return self.inner.delta_bias(bias)

    def add_to(self, total: Tensor, base: Tensor, strength: float) -> None:
        self.inner.add_to(total, base, strength)
        self._add(total, strength)

    def fits(self, shape: Sequence[int]) -> bool:
        return self.inner.fits(shape)

    def tensors(self) -> dict[str, Tensor]:
        return {**self.inner.tensors(), **dict(self.named_buffers(recurse=False))}

    def _add(self, total: Tensor, strength: float) -> None:
        rows, columns = (indices.to(total.device) for indices in unsigned(self.bias_indices))
        values = self.bias_values.to(total) * (strength * self.inner.scale)
        total.view(total.shape[0], -1).index_put_((rows, columns), values, accumulate=True)


def build(name: str, tensors: Mapping[str, Tensor], hints: Hints) -> SparseLayer:
    """The layer that a file's tensors describe.

    Raises:
        NetworkFileError: a tensor is missing, or the shapes or indices don't fit each other.
    """
    for part in MARKS:
        if part not in tensors:
            raise parts.incomplete(name, tensors, part)
    indices, values, size = own = [tensors[part] for part in MARKS]
    shapes = parts.shapes_of(dict(zip(MARKS, own, strict=True)))
    whole = not (indices.is_floating_point() or size.is_floating_point()) and values.is_floating_point()
    if not whole or size.shape != (2,) or values.ndim != 1 or indices.shape != (2, len(values)):
        raise parts.misfit(name, f"{shapes}: two rows of whole numbers, as many values, and a size of two numbers are needed")
    inner = build_low_rank(name, tensors, hints)
    rows, columns = unsigned(size).tolist()
    if not inner.fits((rows, columns)) or not _within(unsigned(indices), rows, columns):
        raise parts.misfit(name, f"{shapes}: a size of {rows} × {columns} does not fit the rest or the indices")
    return SparseLayer(inner, indices, values, size)


def unsigned(indices: Tensor) -> Tensor:
    """The whole numbers as int64; those above 32767 are negative in the files' int16."""
    wide = indices.long()
    return wide % 65536 if indices.dtype == torch.int16 else wide


def _within(indices: Tensor, rows: int, columns: int) -> bool:
    limits = torch.tensor([[rows], [columns]], device=indices.device)
    return bool(((indices >= 0) & (indices < limits)).all())
