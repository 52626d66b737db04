"""LoRA on an embedding table, as PEFT writes it: ΔW = alpha/rank · (B · A)ᵀ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from lib_lycoris.functional.low_rank import low_rank_delta
from lib_lycoris.networks import parts
from lib_lycoris.networks.hints import Hints
from lib_lycoris.networks.layer import Layer

MARKS = ("lora_embedding_A", "lora_embedding_B")


class EmbeddingLayer(nn.Module, Layer):
    """The low-rank difference of one embedding table [T,D]: `lora_embedding_A` [R,T] and `lora_embedding_B` [D,R].

    Source: huggingface/peft 5d602fdbf, tuners/lora/layer.py, `Embedding.get_delta_weight`.
    """

    algorithm = "lora"

    def __init__(self, a: Tensor, b: Tensor, alpha: float | None = None):
        """A layer of these tensors, kept as they are and without gradient; no `alpha` means scale 1."""
        super().__init__()
        self.rank = a.shape[0]
        self.alpha = float(self.rank if alpha is None else alpha)
        self.scale = self.alpha / self.rank
        parts.register(self, lora_embedding_A=a, lora_embedding_B=b)

    def delta(self, weight: Tensor) -> Tensor:
        parts.check_fits(self, weight.shape, self._size())
        return low_rank_delta(*(factor.to(weight.device) for factor in self.factors()), weight.shape)

    def delta_output(self, x: Tensor, module: nn.Module, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """What ΔW adds to the embeddings of the tokens `x`, in float32."""
        rows, columns = self.factors()
        with parts.full_precision(x):
            return F.embedding(x, rows.to(x.device)) @ columns.to(x.device)

    def add_to(self, total: Tensor, base: Tensor, strength: float) -> None:
        parts.check_fits(self, total.shape, self._size())
        total.addmm_(*(factor.to(total) for factor in self.factors()), alpha=strength)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.lora_embedding_A.float().T * self.scale, self.lora_embedding_B.float().T

    def fits(self, shape: Sequence[int]) -> bool:
        return tuple(shape) == self._size()

    def tensors(self) -> dict[str, Tensor]:
        return parts.stored(self, self.alpha)

    def _size(self) -> tuple[int, int]:
        return self.lora_embedding_A.shape[1], self.lora_embedding_B.shape[0]


def build(name: str, tensors: Mapping[str, Tensor], hints: Hints) -> EmbeddingLayer:
    """The layer that a file's tensors describe.

    Raises:
        NetworkFileError: half of it is missing, or the ranks differ.
    """
    for part in MARKS:
        if part not in tensors:
            raise parts.incomplete(name, tensors, part)
    own = {part: tensors[part] for part in MARKS}
    parts.check_values(name, own, (2,))
    a, b = own.values()
    if a.shape[0] != b.shape[1]:
        raise parts.misfit(name, parts.shapes_of(own))
    return EmbeddingLayer(a, b, parts.alpha_of(tensors, a.shape[0], hints))
