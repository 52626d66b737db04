"""LoHa: ΔW = alpha/rank · (w1_a · w1_b) ⊙ (w2_a · w2_b), each half with a Tucker core where the file has one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lib_lycoris.functional.added import Pull, add_made_product, pulled
from lib_lycoris.functional.hadamard import add_hadamard, hadamard_delta, khatri_rao_factors, khatri_rao_with_gradients
from lib_lycoris.functional.low_rank import conv_output, fold_core, linear_output
from lib_lycoris.networks import parts
from lib_lycoris.networks.hints import Hints
from lib_lycoris.networks.layer import Layer, Way

MARKS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")

# Measured on one core: up to this many ranks one product of them takes less time than two small products and their entries' (R = 4: 0.5 against 0.8 ms for
# 1280 × 1280; R = 8: 2.1 against 0.9 ms).
_CHEAP = 16
_EXACT = (torch.float32, torch.float64)
_PASSES = 100  # what the passes over the entries of a tensor cost, in multiplications for each of them


class LohaLayer(nn.Module, Layer):
    """The Hadamard product of two low-rank products, for one linear layer or convolution, loaded or in training.

    Its parameters are `hada_w1_a` [O,R(,1,1)], `hada_w1_b` [R,I·K·K] or [R,I,K,K], and the same for `hada_w2_…`. With the cores `hada_t1` and `hada_t2`
    [R,R,K,K] they are [R,O] and [R,I].
    """

    algorithm = "loha"

    def __init__(self, w1_a: Tensor, w1_b: Tensor, w2_a: Tensor, w2_b: Tensor, alpha: float | None = None, t1: Tensor | None = None, t2: Tensor | None = None):
        """A layer of these tensors; no `alpha` means scale 1. The tensors are kept as they are and need no gradient."""
        super().__init__()
        self.rank = w1_b.shape[0]
        self.alpha = float(self.rank if alpha is None else alpha)
        parts.register(self, hada_w1_a=w1_a, hada_w1_b=w1_b, hada_w2_a=w2_a, hada_w2_b=w2_b, hada_t1=t1, hada_t2=t2)
        # rows and columns of ΔW: O, and I times the kernel
        self._size = (w1_a.shape[0], w1_b[0].numel()) if t1 is None else (w1_a.shape[1], w1_b.shape[1] * t1[0, 0].numel())
        self._ranks = self.rank * w2_b.shape[0]

    @classmethod
    def create(
        cls, target: nn.Module | Sequence[int], rank: int, alpha: float | None = None, generator: torch.Generator | None = None, tucker: bool = False
    ) -> LohaLayer:
        """A fresh layer for training: float32 parameters with gradients, normally distributed but `hada_w2_a`, which is zero, so that it adds exactly nothing.

        Args:
            target: the module to train, or the shape of its weight: [O,I], or [O,I,K,K] for a convolution.
            rank: R; ΔW can have rank R².
            alpha: scale times rank; none means scale 1.
            generator: where the random numbers come from; none takes torch's own.
            tucker: give convolutions with a kernel larger than one a core in each half.

        Raises:
            ConfigError: the rank is not a whole number of at least 1, alpha is not finite, or the target has no weight of 2 to 5 dimensions.

        Source: LyCORIS f49d30d, lycoris/modules/loha.py: standard deviations 1 (w1_b, w2_b), 0.1 (w1_a and the cores) and 0 (w2_a).
        """
        shape = parts.target_shape(target)
        parts.check_rank(rank)
        parts.check_alpha(alpha)
        kernel = shape[2:]
        cores = tucker and math.prod(kernel) > 1
        left, right = ((rank, shape[0]), (rank, shape[1])) if cores else ((shape[0], rank), (rank, math.prod(shape[1:])))
        device = generator.device if generator is not None else None

        def draw(size: Sequence[int], deviation: float) -> Tensor:
            return torch.empty(size, device=device).normal_(0, deviation, generator=generator)

        w1_b, w1_a, w2_b = draw(right, 1), draw(left, 0.1), draw(right, 1)
        t1, t2 = (draw((rank, rank, *kernel), 0.1) if cores else None for _ in range(2))
        return cls(w1_a, w1_b, torch.zeros(left, device=device), w2_b, alpha, t1, t2).requires_grad_(True)

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank

    def halves(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Left [O,R] and right [R,I·K·K] of the first half, with the scale, and of the second: float32, cores multiplied into the rights."""
        left1, right1 = _half(self.hada_w1_a, self.hada_w1_b, self.hada_t1)
        left2, right2 = _half(self.hada_w2_a, self.hada_w2_b, self.hada_t2)
        return left1 * self.scale, right1, left2, right2

    def delta(self, weight: Tensor) -> Tensor:
        parts.check_fits(self, weight.shape, self._size)
        return hadamard_delta(*(half.to(weight.device) for half in self.halves()), weight.shape)

    def delta_output(self, x: Tensor, module: nn.Module, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        rows, columns = self._size
        if self._ranks * (rows + columns) >= rows * columns:
            return super().delta_output(x, module, weight, bias)
        with parts.full_precision(x):
            up, down = (factor.to(x) for factor in self.product())
        if not hasattr(module, "kernel_size"):
            return linear_output(x, down, up)
        x, padding = parts.pad(x, module)
        kernel = module.kernel_size
        down, up = down.reshape(self._ranks, -1, *kernel), up.reshape(rows, self._ranks, *(1 for _ in kernel))
        return conv_output(x, down, up, module.stride, padding, module.dilation, module.groups)

    def add_output(self, output: Tensor, x: Tensor, module: nn.Module, strength: float = 1.0, weight: Tensor | None = None) -> Tensor:
        geometry = parts.geometry_of(module)
        rows, columns = self._size
        if geometry is parts.OTHER or self._ranks * (rows + columns) >= rows * columns:
            return super().add_output(output, x, module, strength, weight)
        plain = self._plain() if output.dtype in _EXACT else None
        trained = plain or self.trained_parameters()
        strength *= self.scale if plain else 1.0
        if geometry is None:
            return add_made_product(output, x, lambda: self._made(plain), trained, strength)
        x, padding = parts.pad(x, module)
        shape = (self._ranks, -1, *module.kernel_size)

        def make() -> tuple[tuple[Tensor, Tensor], Pull]:
            (up, down), pull = self._made(plain)
            return (up, down.reshape(shape)), lambda by_up, by_down: pull(by_up, by_down.reshape(down.shape))

        return add_made_product(output, x, make, trained, strength, parts.padded(geometry, padding))

    def trained_parameters(self) -> list[Tensor]:
        return self._plain() or super().trained_parameters()

    def weight_with(self, base: Tensor, strength: float) -> tuple[Tensor, Pull]:
        plain = self._plain()
        if plain is None:
            return super().weight_with(base, strength)
        with torch.no_grad():
            matrix, pull = add_hadamard(base.reshape(len(base), -1), plain, strength * self.scale)
        return matrix.view(base.shape), lambda gradient: pull(gradient.reshape(matrix.shape))

    def trained_factors(self, shape: Sequence[int], strength: float) -> tuple[tuple[Tensor, Tensor], Pull]:
        (up, down), pull = self._made(self._plain())
        scale = strength * self.scale
        return (up.mul_(scale), down.view(-1, *shape[1:])), lambda by_up, by_down: pull(by_up.mul_(scale), by_down.reshape(down.shape))

    def way(self, places: int | None = None, merges: bool = True) -> Way:
        rows, columns = self._size
        if places is None:
            return "weight"
        size, sides, ranks = rows * columns, rows + columns, self._ranks
        # each way's products beyond the layer's own, in the order of `Way`; entries count about so many more
        costs = {
            "beside": sides * ranks * (6 * places + _PASSES),
            "weight": size * ((2 if merges else 6) * places + 16 * self.rank + _PASSES),
        }
        if merges and self._plain():
            costs["factors"] = sides * ranks * (4 * places + _PASSES) + size * (8 * self.rank + _PASSES)
        return min(costs, key=costs.get)

    def add_to(self, total: Tensor, base: Tensor, strength: float) -> None:
        parts.check_fits(self, total.shape, self._size)
        left1, right1, left2, right2 = (half.to(total) for half in self.halves())
        for rows in parts.row_blocks(total):
            block = total.view(total.shape[0], -1)[rows]
            block.addcmul_(left1[rows] @ right1, left2[rows] @ right2, value=strength)

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """The one product where few enough ranks make it the cheaper way to merge; `product` gives it for any."""
        return self.product() if self._ranks <= _CHEAP else None

    def product(self) -> tuple[Tensor, Tensor]:
        """Factors [O,R²] and [R²,I·K·K] float32, scale inside, whose product is ΔW exactly: LoHa as a LoCon of rank R².

        The second's rows are of length one. A LoHa's lefts are small and its rights of the order of one, so that in half precision an inner product with
        the rights alone would overflow.
        """
        up, down = khatri_rao_factors(*self.halves())
        length = down.detach().norm(dim=1).clamp_min(torch.finfo(down.dtype).tiny)
        return up * length, down / length[:, None]

    def fits(self, shape: Sequence[int]) -> bool:
        rows, columns = self._size
        return len(shape) > 1 and shape[0] == rows and math.prod(shape[1:]) == columns

    def tensors(self) -> dict[str, Tensor]:
        return parts.stored(self, self.alpha)

    def _made(self, plain: list[Tensor] | None) -> tuple[tuple[Tensor, Tensor], Pull]:
        """The one product, without the scale where it is of plain matrices, and what turns the gradients of its factors into those of the parameters."""
        if plain:
            with torch.no_grad():
                return khatri_rao_with_gradients(plain)
        factors = self.product()
        return factors, pulled(factors, self.trained_parameters())

    def _plain(self) -> list[Tensor] | None:
        """The parameters, if they are four matrices in float32, without cores, all of which are trained."""
        named = self._parameters  # asked for in every forward pass, and attributes of a module are slow
        if named["hada_t1"] is not None:
            return None
        four = [named["hada_w1_a"], named["hada_w1_b"], named["hada_w2_a"], named["hada_w2_b"]]
        for value in four:
            if not value.requires_grad or value.ndim != 2 or value.dtype not in _EXACT:
                return None
        return four


def build(name: str, tensors: Mapping[str, Tensor], hints: Hints) -> LohaLayer:
    """The layer that a file's tensors describe.

    Raises:
        NetworkFileError: a factor or one of two cores is missing, or the shapes don't fit each other.
    """
    cores = MARKS[4:] if any(core in tensors for core in MARKS[4:]) else ()
    for part in (*MARKS[:4], *cores):
        if part not in tensors:
            raise parts.incomplete(name, tensors, part)
    own = {part: tensors.get(part) for part in MARKS}
    parts.check_values(name, own)
    sizes = [_half_size(own[f"hada_w{half}_a"], own[f"hada_w{half}_b"], own[f"hada_t{half}"]) for half in (1, 2)]
    if None in sizes or sizes[0] != sizes[1]:
        raise parts.misfit(name, parts.shapes_of(own))
    w1_a, w1_b, w2_a, w2_b, t1, t2 = own.values()
    return LohaLayer(w1_a, w1_b, w2_a, w2_b, parts.alpha_of(tensors, w1_b.shape[0], hints), t1, t2)


def _half(left: Tensor, right: Tensor, core: Tensor | None) -> tuple[Tensor, Tensor]:
    if core is None:
        return left.float().flatten(1), right.float().flatten(1)
    return left.float().T, fold_core(core, right)


def _half_size(left: Tensor, right: Tensor, core: Tensor | None) -> tuple[int, int] | None:
    """Rows and columns of a half's product, or None where its shapes don't fit each other."""
    if core is None:
        return (left.shape[0], right[0].numel()) if left[0].numel() == right.shape[0] else None
    fits = left.ndim == right.ndim == 2 and core.ndim > 2 and tuple(core.shape[:2]) == (left.shape[0], right.shape[0])
    return (left.shape[1], right.shape[1] * core[0, 0].numel()) if fits else None
