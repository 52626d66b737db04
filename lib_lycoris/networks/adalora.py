"""AdaLoRA: ΔW = scale · P·Λ·Q, a low-rank product with singular values of its own between its factors, of which training prunes the least important."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lib_lycoris.errors import NetworkFileError, shown
from lib_lycoris.functional.added import add_product
from lib_lycoris.functional.low_rank import conv_output, linear_output, low_rank_delta
from lib_lycoris.networks import parts
from lib_lycoris.networks.hints import Hints
from lib_lycoris.networks.layer import Layer

MARKS = ("lora_E", "ranknum")
OTHERS = ("lora_A", "lora_B")
_DEFAULT_ALPHA = 8.0  # PEFT's, for a file without its config
_STD = 0.02


class AdaLoRALayer(nn.Module, Layer):
    """The difference of one linear layer or convolution in singular-value form, loaded or in training.

    Its parameters are Q as `lora_A` [R,I·K·K], the singular values as `lora_E` [R,1] and P as `lora_B` [O,R]; R may be 0 where everything was pruned.
    A file of ours has PEFT's names, and beside them loralib's `ranknum`, the rank that training began with, and `alpha`: scale = alpha / (ranknum + 10⁻⁵),
    however much was pruned.

    Source: Zhang et al. 2023, "AdaLoRA", equation 3; the scale is that of QingruZhang/AdaLoRA d10f5ebe, loralib/adalora.py, and of PEFT 0.21.2.
    """

    algorithm = "adalora"

    def __init__(self, q: Tensor, values: Tensor, p: Tensor, alpha: float, init_rank: float | None = None):
        """A layer of these tensors; no `init_rank`: nothing was pruned. An `alpha` of 0 or less stands for the rank that is left."""
        super().__init__()
        parts.register(self, lora_A=q, lora_E=values, lora_B=p)
        self.rank = q.shape[0]
        self.alpha = float(alpha)
        self.init_rank = float(self.rank if init_rank is None else init_rank)

    @classmethod
    def create(cls, target: nn.Module | Sequence[int], rank: int, alpha: float | None = None, generator: torch.Generator | None = None) -> AdaLoRALayer:
        """A fresh layer for training: float32 parameters with gradients, P and Q normal, the singular values zero, so that it adds exactly nothing.

        Args:
            target: the module to train, or the shape of its weight: [O,I], or [O,I,K,K] for a convolution.
            rank: R to begin with; more than the weight's own rank is cut to that, where P and Q can't be orthogonal.
            alpha: scale times rank; none means scale 1.
            generator: where the random numbers come from; none takes torch's own.

        Raises:
            ConfigError: the rank is not a whole number of at least 1, alpha is not finite, or the target has no weight of 2 to 5 dimensions.

        Source: QingruZhang/AdaLoRA d10f5ebe, loralib/adalora.py (`reset_parameters`).
        """
        shape = parts.target_shape(target)
        parts.check_rank(rank)
        parts.check_alpha(alpha)
        columns = math.prod(shape[1:])
        rank = min(rank, shape[0], columns)
        device = generator.device if generator is not None else None
        q, p = (torch.empty(size, device=device).normal_(0, _STD, generator=generator) for size in ((rank, columns), (shape[0], rank)))
        return cls(q, torch.zeros(rank, 1, device=device), p, rank if alpha is None else alpha).requires_grad_(True)

    @property
    def scale(self) -> float:
        """alpha / (the rank that training began with + 10⁻⁵)."""
        return (self.alpha if self.alpha > 0 else self.rank) / (self.init_rank + 1e-5)

    def delta(self, weight: Tensor) -> Tensor:
        parts.check_fits(self, weight.shape, self._size())
        up, down = (factor.to(weight.device) for factor in self.factors())
        return low_rank_delta(up, down, weight.shape)

    def add_to(self, total: Tensor, base: Tensor, strength: float) -> None:
        if not total.is_contiguous():
            return super().add_to(total, base, strength)
        parts.check_fits(self, total.shape, self._size())
        up, down = (factor.to(total) for factor in self.factors())
        total.view(total.shape[0], -1).addmm_(up, down, alpha=strength)

    def delta_output(self, x: Tensor, module: nn.Module, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        if self.rank == 0:
            return super().delta_output(x, module)
        q, p = self.lora_A.to(x), self.lora_B.to(x)
        # the scale goes to the singular values and they between the factors: small times small would round to nothing in half precision
        values = (self.lora_E.float() * self.scale).flatten().to(x)
        if not isinstance(module, _ConvNd):
            return linear_output(x, q, p, values)
        x, padding = parts.pad(x, module)
        kernel = module.kernel_size
        up = p.reshape(*p.shape, *(1 for _ in kernel))
        return conv_output(x, q.reshape(self.rank, -1, *kernel), up, module.stride, padding, module.dilation, module.groups, values)

    def add_output(self, output: Tensor, x: Tensor, module: nn.Module, strength: float = 1.0, weight: Tensor | None = None) -> Tensor:
        geometry = parts.geometry_of(module)
        if self.rank == 0 or geometry is parts.OTHER:
            return super().add_output(output, x, module, strength, weight)
        values, q = self.lora_E, self.lora_A
        if geometry is not None:
            x, padding = parts.pad(x, module)
            q, geometry = q.reshape(self.rank, -1, *module.kernel_size), parts.padded(geometry, padding)
        return add_product(output, x, q, self.lora_B, strength * self.scale, values, geometry)

    def fits(self, shape: Sequence[int]) -> bool:
        return len(shape) > 1 and (shape[0], math.prod(shape[1:])) == self._size()

    def factors(self) -> tuple[Tensor, Tensor]:
        """P·Λ [O,R] with the scale in it and Q [R,I·K·K], both float32, whose product is ΔW in two dimensions."""
        return self.lora_B.float() * (self.lora_E.float() * self.scale).T, self.lora_A.float()

    def truncated(self, ranks: int) -> AdaLoRALayer:
        """The layer of the `ranks` ranks whose singular values are largest, times the lengths of their vectors; its scale is still that of all of them."""
        parts.check_rank(ranks)
        if ranks >= self.rank:
            return self
        q, values, p = (parameter.detach() for parameter in (self.lora_A, self.lora_E, self.lora_B))
        weights = values.float().abs().flatten() * q.float().norm(dim=1) * p.float().norm(dim=0)
        kept = weights.topk(ranks).indices.sort().values
        return AdaLoRALayer(q[kept], values[kept], p[:, kept], self.alpha if self.alpha > 0 else self.rank, self.init_rank)

    def tensors(self) -> dict[str, Tensor]:
        return {**parts.stored(self, self.alpha), "ranknum": torch.tensor([self.init_rank], dtype=torch.float32)}

    def _size(self) -> tuple[int, int]:
        """Rows and columns of ΔW: O, and I times the kernel."""
        return self.lora_B.shape[0], self.lora_A.shape[1]


def build(name: str, tensors: Mapping[str, Tensor], hints: Hints) -> AdaLoRALayer:
    """The layer that a file's tensors and its config describe. What neither says: alpha is PEFT's 8, and the rank that is left is the one training began with.

    Raises:
        NetworkFileError: a factor is missing, or the shapes don't fit each other.
    """
    for part in ("lora_A", "lora_B", "lora_E"):
        if part not in tensors:
            raise parts.incomplete(name, tensors, part)
    q, p, values = (tensors[part] for part in ("lora_A", "lora_B", "lora_E"))
    rank = q.shape[0]
    shapes = parts.shapes_of({"lora_A": q, "lora_E": values, "lora_B": p})
    if not all(tensor.ndim == 2 and tensor.is_floating_point() for tensor in (q, p, values)) or q.shape[1] == 0 or p.shape[0] == 0:
        raise parts.misfit(name, f"{shapes}: matrices of floating-point values are needed")
    if p.shape[1] != rank or tuple(values.shape) != (rank, 1):
        raise parts.misfit(name, f"{shapes}: the ranks differ")
    init_rank = _init_rank(name, tensors, hints)
    if init_rank is not None and init_rank < rank:
        raise parts.misfit(name, f"{shapes}: training began with {init_rank:g} ranks by its config, which is fewer")
    alpha = parts.alpha_of(tensors, rank if init_rank is None else init_rank, hints)
    return AdaLoRALayer(q, values, p, _DEFAULT_ALPHA if alpha is None else alpha, init_rank)


def _init_rank(name: str, tensors: Mapping[str, Tensor], hints: Hints) -> float | None:
    if "ranknum" not in tensors:
        return hints.init_rank
    held = tensors["ranknum"]
    if held.numel() != 1 or held.item() < 0:
        raise NetworkFileError(f"layer {shown(name)}: ranknum is {shown(held.flatten()[:4].tolist())} instead of one rank; the file is damaged, get it again")
    return float(held.item())
