"""GLoRA: ΔW = alpha/rank · (B + W·A) with low-rank A [I,I] and B [O,I(,K,K)], in LyCORIS' spelling of today and in that of before June 2024."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lib_lycoris.functional.low_rank import conv_output, linear_output
from lib_lycoris.networks import parts
from lib_lycoris.networks.hints import Hints
from lib_lycoris.networks.layer import Layer
from lib_lycoris.networks.low_rank import LowRankLayer

MARKS, OTHERS = ("a1.weight", "a2.weight", "b1.weight", "b2.weight"), ("bm.weight",)


class GLoRALayer(nn.Module, Layer):
    """GLoRA's difference of one linear layer or convolution.

    Its parameters are the factors of A and of B, and between those of B a core `bm.weight` [R,R,K,K] where a file has one. Today `a1` [I,R], `a2` [R,I],
    `b1` [O,R], `b2` [R,I(,K,K)] with A = a1·a2 and B = b1·b2. Before June 2024 the numbers 1 and 2 were the other way round; the shapes tell which it is.
    Where both fit, a square weight and a rank as large as its side, the old way holds, as in other programs.

    Source: Chavan et al. 2023, "One-for-All: Generalized LoRA", equation 4; LyCORIS 4.1.3, lycoris/modules/glora.py, and the same file at commit 68b1957.
    """

    algorithm = "glora"
    weight_dependent = True

    def __init__(self, tensors: Mapping[str, Tensor], alpha: float | None = None, ranks: int | None = None):
        """A layer of the tensors {"a1.weight": …}; no `alpha` means scale 1; `ranks`: only so many of them count."""
        super().__init__()
        for name in ("a1", "a2", "b1", "b2", "bm"):
            setattr(self, name, parts.holder(weight=tensors[f"{name}.weight"]) if f"{name}.weight" in tensors else None)
        self.alpha = alpha
        self.ranks = ranks

    def delta(self, weight: Tensor) -> Tensor:
        up, down, own = self._read(weight)
        rows = torch.matmul(up.T, weight.float().reshape(*weight.shape[:2], -1))  # [O,R,K·K]
        return torch.matmul(down.T, rows).reshape(weight.shape) + own.delta(weight)

    def add_to(self, total: Tensor, base: Tensor, strength: float) -> None:
        if not total.is_contiguous() or base.numel() != base.shape[0] * base.shape[1]:
            return super().add_to(total, base, strength)
        up, down, own = self._read(base)
        own.add_to(total, base, strength)
        by_weight = base.to(total).reshape(base.shape[:2]) @ up.to(total)
        total.view(base.shape[:2]).addmm_(by_weight, down.to(total), alpha=strength)

    def delta_output(self, x: Tensor, module: nn.Module, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        base = parts.base_of(module, weight, x, True)
        up, down, own = self._read(base)
        up, down = up.to(x), down.to(x)
        if isinstance(module, _ConvNd):
            ones, groups = (1,) * len(module.kernel_size), module.groups
            mixed = conv_output(x, down.reshape(*down.shape, *ones), up.repeat(groups, 1).reshape(-1, up.shape[1], *ones), groups=groups)
        else:
            mixed = linear_output(x, down, up)
        return parts.output_with(mixed, module, base, None) + own.delta_output(x, module)

    def fits(self, shape: Sequence[int]) -> bool:
        return len(shape) > 1 and any(self._is_made_for(shape, old) for old in (True, False))

    def truncated(self, ranks: int) -> GLoRALayer:
        parts.check_rank(ranks)
        possible = [down.shape[0] for _, down, _, b_down in map(self._sides, (True, False)) if down.shape[0] == b_down.shape[0]]
        return self if ranks >= max(possible) else GLoRALayer(self.tensors(), self.alpha, ranks)

    def tensors(self) -> dict[str, Tensor]:
        return parts.stored(self, self.alpha)

    def _sides(self, old: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A's factors [I,R,…] and [R,I,…], and B's [O,R,…] and [R,I,…], in the old spelling or in today's."""
        a1, a2, b1, b2 = (holder.weight for holder in (self.a1, self.a2, self.b1, self.b2))
        return (a2, a1, b2, b1) if old else (a1, a2, b1, b2)

    def _is_made_for(self, shape: Sequence[int], old: bool) -> bool:
        a_up, a_down, b_up, b_down = self._sides(old)
        kernel = 1 if self.bm is None else self.bm.weight[0, 0].numel()
        return (
            a_down.shape[0] == a_up.shape[1] == b_up.shape[1] == b_down.shape[0]
            and a_up.shape[0] == a_down.shape[1] == shape[1]
            and b_up.shape[0] == shape[0]
            and b_down[0].numel() * kernel == math.prod(shape[1:])
        )

    def _read(self, weight: Tensor) -> tuple[Tensor, Tensor, LowRankLayer]:
        """A's factors [I,R], with the scale in it, and [R,I], both float32 on the weight's device, and B as a layer of its own."""
        parts.check_fits(self, weight.shape, (self.b1.weight.shape[0], self.a1.weight.shape[0]))
        a_up, a_down, b_up, b_down = (side.to(weight.device) for side in self._sides(self._is_made_for(weight.shape, old=True)))
        core = None if self.bm is None else self.bm.weight.to(weight.device)
        rank = a_down.shape[0]
        scale = 1.0 if self.alpha is None else self.alpha / rank
        own = LowRankLayer(b_down, b_up, scale * rank, core)
        if self.ranks is not None and self.ranks < rank:
            a_up, a_down, own = a_up[:, : self.ranks], a_down[: self.ranks], own.truncated(self.ranks)
        return a_up.float().flatten(1) * scale, a_down.float().flatten(1), own


def build(name: str, tensors: Mapping[str, Tensor], hints: Hints) -> GLoRALayer:
    """The layer that a file's tensors describe.

    Raises:
        NetworkFileError: a factor is missing, or the shapes don't fit each other.
    """
    for part in MARKS:
        if part not in tensors:
            raise parts.incomplete(name, tensors, part)
    held = {part: tensors[part] for part in (*MARKS, *OTHERS) if part in tensors}
    _check_shapes(name, held)
    return GLoRALayer(held, parts.alpha_of(tensors, min(tensors["a1.weight"].shape[:2]), hints))


def _check_shapes(name: str, held: Mapping[str, Tensor]) -> None:
    parts.check_values(name, held)
    a1, a2, b1, b2 = (held[part].shape for part in MARKS)
    shapes = parts.shapes_of(held)
    if any(math.prod(shape[2:]) != 1 for shape in (a1, a2)) or a1[:2] != a2[:2][::-1]:
        raise parts.misfit(name, f"{shapes}: A is no product of two matrices that gives a square one")
    today, old = b1[1] == b2[0] == a1[1] and b1[1:].numel() == b1[1], b2[1] == b1[0] == a1[0] and b2[1:].numel() == b2[1]
    if not today and not old:
        raise parts.misfit(name, f"{shapes}: the ranks differ")
    core = held.get("bm.weight")
    if core is not None and (core.ndim < 3 or core.shape[0] != core.shape[1] or core.shape[0] not in {a1[1] if today else None, a1[0] if old else None}):
        raise parts.misfit(name, f"{shapes}: the core does not fit between B's factors")
