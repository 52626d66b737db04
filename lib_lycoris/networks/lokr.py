"""LoKr: ΔW = scale · w1 ⊗ w2, each factor whole or itself a low-rank product, w2 with a Tucker core where the file has one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lib_lycoris.errors import ConfigError, shown
from lib_lycoris.functional.added import Pull, pulled
from lib_lycoris.functional.added_kronecker import add_kronecker_product
from lib_lycoris.functional.kronecker import add_kronecker, factor_pair, kronecker_conv_output, kronecker_delta, kronecker_output
from lib_lycoris.functional.low_rank import fold_core
from lib_lycoris.networks import parts
from lib_lycoris.networks.hints import Hints
from lib_lycoris.networks.layer import Layer

MARKS = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")


class LokrLayer(nn.Module, Layer):
    """The Kronecker product of a small and a large factor, for one linear layer or convolution, loaded or in training.

    Its parameters are `lokr_w1` [A,C], or `lokr_w1_a` [A,R] and `lokr_w1_b` [R,C]; and `lokr_w2` [B,D(,K,K)], or `lokr_w2_a` [B,R] and `lokr_w2_b` [R,D·K·K] or
    [R,D,K,K], or with the core `lokr_t2` [R,R,K,K] `lokr_w2_a` [R,B] and `lokr_w2_b` [R,D]. A·B are the weight's rows O, C·D its inputs I.
    """

    algorithm = "lokr"

    def __init__(self, factors: Mapping[str, Tensor], alpha: float | None = None, scale: float | None = None):
        """A layer of these parameters by name, kept as they are and without gradient.

        Args:
            factors: w1 and w2, whole or in parts.
            alpha: scale times rank; none means scale 1. Where neither w1 nor w2 is in parts there is no rank, and alpha means nothing.
            scale: the scale itself for such a layer; none means 1.
        """
        super().__init__()
        parts.register(self, **{mark: factors.get(mark) for mark in MARKS})
        self._size, self._second = _size(factors), _second_size(factors)
        self.rank = _rank(factors)
        if self.rank is None:
            self.alpha, self.scale = None, 1.0 if scale is None else float(scale)
        else:
            self.alpha = float(self.rank if alpha is None else alpha)
            self.scale = self.alpha / self.rank

    @classmethod
    def create(
        cls,
        target: nn.Module | Sequence[int],
        rank: int,
        alpha: float | None = None,
        generator: torch.Generator | None = None,
        factor: int = -1,
        decompose_both: bool = False,
        full_matrix: bool = False,
        tucker: bool = False,
    ) -> LokrLayer:
        """A fresh layer for training: float32 parameters with gradients, drawn as a linear layer's are; w2, or its last part, is zero, so that it adds nothing.

        Args:
            target: the module to train, or the shape of its weight: [O,I], or [O,I,K,K] for a convolution.
            rank: R of a factor in parts; a factor stays whole where R is at least half its longer side.
            alpha: scale times rank; none means scale 1.
            generator: where the random numbers come from; none takes torch's own.
            factor: the small factor's sides (A and C), where it divides O and I; -1: as near to their square roots as they go.
            decompose_both: w1 in parts too.
            full_matrix: both factors whole, whatever the rank.
            tucker: give w2 of a convolution with a kernel larger than one a core.

        Raises:
            ConfigError: the rank or factor is no such number, alpha is not finite, or the target has no weight of 2 to 5 dimensions.

        Source: LyCORIS f49d30d, lycoris/modules/lokr.py; bounds as Kaiming's uniform one with a = √5.
        """
        shape = parts.target_shape(target)
        parts.check_rank(rank)
        parts.check_alpha(alpha)
        if isinstance(factor, bool) or not isinstance(factor, int) or (factor < 1 and factor != -1):
            raise ConfigError(f"network factor {shown(factor)} is not a whole number of at least 1, nor -1")
        (rows1, rows2), (columns1, columns2) = factor_pair(shape[0], factor), factor_pair(shape[1], factor)
        kernel = shape[2:]
        device = generator.device if generator is not None else None

        def draw(*size: int) -> Tensor:
            bound = 1 / math.sqrt(math.prod(size[1:]))
            return torch.empty(size, device=device).uniform_(-bound, bound, generator=generator)

        if decompose_both and not full_matrix and rank < max(rows1, columns1) / 2:
            factors = {"lokr_w1_a": draw(rows1, rank), "lokr_w1_b": draw(rank, columns1)}
        else:
            factors = {"lokr_w1": draw(rows1, columns1)}
        if full_matrix or rank >= max(rows2, columns2) / 2:
            factors["lokr_w2"] = torch.zeros(rows2, columns2, *kernel, device=device)
        elif tucker and math.prod(kernel) > 1:
            factors.update(lokr_t2=draw(rank, rank, *kernel), lokr_w2_a=draw(rank, rows2), lokr_w2_b=torch.zeros(rank, columns2, device=device))
        else:
            factors.update(lokr_w2_a=draw(rows2, rank), lokr_w2_b=torch.zeros(rank, columns2 * math.prod(kernel), device=device))
        return cls(factors, alpha).requires_grad_(True)

    def whole(self) -> tuple[Tensor, Tensor]:
        """w1 [A,C], with the scale, and w2 [B,D·K·K], both float32."""
        w1 = self.lokr_w1.float().flatten(1) if self.lokr_w1 is not None else self.lokr_w1_a.float().flatten(1) @ self.lokr_w1_b.float().flatten(1)
        if self.lokr_w2 is not None:
            w2 = self.lokr_w2.float().flatten(1)
        elif self.lokr_t2 is not None:
            w2 = self.lokr_w2_a.float().T @ fold_core(self.lokr_t2, self.lokr_w2_b)
        else:
            w2 = self.lokr_w2_a.float().flatten(1) @ self.lokr_w2_b.float().flatten(1)
        return w1 * self.scale, w2

    def delta(self, weight: Tensor) -> Tensor:
        parts.check_fits(self, weight.shape, self._size)
        return kronecker_delta(*(factor.to(weight.device) for factor in self.whole()), weight.shape)

    def delta_output(self, x: Tensor, module: nn.Module, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        with parts.full_precision(x):
            w1, w2 = (factor.to(x) for factor in self.whole())
        if not isinstance(module, _ConvNd):
            return kronecker_output(x, w1, w2)
        kernel = module.kernel_size
        if module.groups > 1 or w2.shape[1] % math.prod(kernel):  # the factors' sides follow neither groups nor a kernel
            return super().delta_output(x, module, weight, bias)
        x, padding = parts.pad(x, module)
        return kronecker_conv_output(x, w1, w2.reshape(w2.shape[0], -1, *kernel), module.stride, padding, module.dilation)

    def add_output(self, output: Tensor, x: Tensor, module: nn.Module, strength: float = 1.0, weight: Tensor | None = None) -> Tensor:
        geometry = parts.geometry_of(module)
        kernel = () if geometry is None else getattr(module, "kernel_size", ())
        rows, columns = self._second
        if geometry is parts.OTHER or columns % math.prod(kernel):
            return super().add_output(output, x, module, strength, weight)
        trained = self.trained_parameters()

        def make() -> tuple[tuple[Tensor, Tensor], Pull]:
            w1, w2 = self.whole()
            made = w1, w2.view(rows, -1, *kernel)
            return made, pulled(made, trained)

        if geometry is not None:
            x, padding = parts.pad(x, module)
            geometry = parts.padded(geometry, padding)
        return add_kronecker_product(output, x, make, trained, strength, geometry)

    def add_to(self, total: Tensor, base: Tensor, strength: float) -> None:
        parts.check_fits(self, total.shape, self._size)
        add_kronecker(total, *(factor.to(total) for factor in self.whole()), strength)

    def fits(self, shape: Sequence[int]) -> bool:
        rows, columns = self._size
        return len(shape) > 1 and shape[0] == rows and math.prod(shape[1:]) == columns

    def tensors(self) -> dict[str, Tensor]:
        # Readers want an alpha in every file; where there is no rank they leave it alone, as they must.
        named = parts.stored(self, 1.0 if self.alpha is None else self.alpha)
        return named if self.alpha is not None or self.scale == 1 else {**named, "scale": torch.tensor(self.scale, dtype=torch.float32)}


def build(name: str, tensors: Mapping[str, Tensor], hints: Hints) -> LokrLayer:
    """The layer that a file's tensors describe; a whole factor outranks its parts.

    Raises:
        NetworkFileError: a factor is missing, or the shapes don't fit each other.
    """
    wanted = [_wanted(tensors, factor) for factor in ("lokr_w1", "lokr_w2")]
    own = {part: tensors[part] for names in wanted for part in names if part in tensors}
    for part in (part for names in wanted for part in names):
        if part not in tensors:
            raise parts.incomplete(name, tensors, part)
    parts.check_values(name, own)
    if _size(own) is None:
        raise parts.misfit(name, parts.shapes_of(own))
    rank = _rank(own)
    if rank is None:
        return LokrLayer(own, scale=tensors["scale"].double().item() if "scale" in tensors else hints.scale)
    return LokrLayer(own, parts.alpha_of(tensors, rank, hints))


def _wanted(tensors: Mapping[str, Tensor], factor: str) -> tuple[str, ...]:
    """The parameters that make up a factor in this file."""
    pair = (f"{factor}_a", f"{factor}_b")
    if factor in tensors or not any(part in tensors for part in pair):
        return (factor,)
    return (*pair, "lokr_t2") if factor == "lokr_w2" and "lokr_t2" in tensors else pair


def _rank(factors: Mapping[str, Tensor]) -> int | None:
    """The rank that alpha is divided by: w2's, else w1's; None where both are whole."""
    parted = [factors[f"{factor}_b"] for factor in ("lokr_w2", "lokr_w1") if f"{factor}_b" in factors]
    return parted[0].shape[0] if parted else None


def _size(factors: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """Rows and columns of ΔW, O and I times the kernel; None where a factor's parts don't fit each other."""
    first, second = _first_size(factors), _second_size(factors)
    return None if first is None or second is None else (first[0] * second[0], first[1] * second[1])


def _first_size(factors: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """Rows and columns of w1, or None where its parts don't fit each other."""
    if "lokr_w1" in factors:
        return factors["lokr_w1"].shape[0], factors["lokr_w1"][0].numel()
    return _product_size(factors["lokr_w1_a"], factors["lokr_w1_b"])


def _second_size(factors: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """Rows and columns of w2, or None where its parts don't fit each other."""
    if "lokr_w2" in factors:
        return factors["lokr_w2"].shape[0], factors["lokr_w2"][0].numel()
    left, right, core = factors["lokr_w2_a"], factors["lokr_w2_b"], factors.get("lokr_t2")
    if core is None:
        return _product_size(left, right)
    fits = left.ndim == right.ndim == 2 and core.ndim > 2 and tuple(core.shape[:2]) == (left.shape[0], right.shape[0])
    return (left.shape[1], right.shape[1] * core[0, 0].numel()) if fits else None


def _product_size(left: Tensor, right: Tensor) -> tuple[int, int] | None:
    return (left.shape[0], right[0].numel()) if left[0].numel() == right.shape[0] else None
