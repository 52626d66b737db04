"""LoRA on linear layers and LoCon on convolutions: ΔW = alpha/rank · up · down, with a Tucker core between them where the file has one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lib_lycoris.functional.added import add_product
from lib_lycoris.functional.low_rank import conv_output, fold_core, linear_output, low_rank_delta, tucker_delta, tucker_output
from lib_lycoris.networks import parts
from lib_lycoris.networks.hints import Hints
from lib_lycoris.networks.layer import Layer

MARKS = ("lora_up.weight", "lora_down.weight", "lora_mid.weight", "lora_up.bias")


class LowRankLayer(nn.Module, Layer):
    """The low-rank difference of one linear layer or convolution, loaded or in training.

    Its parameters are `lora_down.weight` [R,I(,K,K)], `lora_up.weight` [O,R(,1,1)], and where a file has them `lora_mid.weight` [R,R,K,K]
    and `lora_up.bias` [O]. A linear layer's may be 4-D and a 1×1 convolution's 2-D: what counts is the number of values.
    """

    algorithm = "lora"

    def __init__(self, down: Tensor, up: Tensor, alpha: float | None = None, mid: Tensor | None = None, bias: Tensor | None = None):
        """A layer of these tensors; no `alpha` means scale 1. The tensors are kept as they are and need no gradient."""
        super().__init__()
        self.rank = down.shape[0]
        self.alpha = float(self.rank if alpha is None else alpha)
        self.lora_down = parts.holder(weight=down)
        self.lora_up = parts.holder(weight=up, bias=bias)
        self.lora_mid = None if mid is None else parts.holder(weight=mid)
        # asked for at every change of networks, and slow to find out from parameters of parameters
        self._rows_columns = up.shape[0], math.prod(down.shape[1:]) * (1 if mid is None else math.prod(mid.shape[2:]))

    @classmethod
    def create(
        cls, target: nn.Module | Sequence[int], rank: int, alpha: float | None = None, generator: torch.Generator | None = None, tucker: bool = False
    ) -> LowRankLayer:
        """A fresh layer for training: float32 parameters with gradients, `down` as a linear layer starts, `up` zero, so that it adds exactly nothing.

        Args:
            target: the module to train, or the shape of its weight: [O,I], or [O,I,K,K] for a convolution.
            rank: R; larger than the weight's own rank is allowed and wasteful.
            alpha: scale times rank; none means scale 1.
            generator: where the random numbers come from; none takes torch's own.
            tucker: give convolutions with a kernel larger than one a core [R,R,K,K] between 1×1 factors.

        Raises:
            ConfigError: the rank is not a whole number of at least 1, alpha is not finite, or the target has no weight of 2 to 5 dimensions.

        Source: Hu et al. 2021, "LoRA", section 4.1; the bound is Kaiming's uniform one with a = √5, as torch.nn.Linear has it.
        """
        shape = parts.target_shape(target)
        parts.check_rank(rank)
        parts.check_alpha(alpha)
        device = generator.device if generator is not None else None
        ones = (1,) * len(shape[2:])

        def draw(*size: int) -> Tensor:
            bound = 1 / math.sqrt(math.prod(size[1:]))
            return torch.empty(size, device=device).uniform_(-bound, bound, generator=generator)

        up = torch.zeros(shape[0], rank, *ones, device=device)
        if tucker and math.prod(shape[2:]) > 1:
            return cls(draw(rank, shape[1], *ones), up, alpha, draw(rank, rank, *shape[2:])).requires_grad_(True)
        return cls(draw(rank, *shape[1:]), up, alpha).requires_grad_(True)

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank

    def delta(self, weight: Tensor) -> Tensor:
        parts.check_fits(self, weight.shape, self._size())
        down, up = (part.weight.to(weight.device) for part in (self.lora_down, self.lora_up))
        if self.lora_mid is None:
            return low_rank_delta(self._scaled(up), down, weight.shape)
        return tucker_delta(self._scaled(up), self.lora_mid.weight.to(weight.device), down, weight.shape)

    def delta_bias(self, bias: Tensor | None) -> Tensor | None:
        own = self.lora_up.bias
        return None if own is None else self._scaled(own if bias is None else own.to(bias.device))

    def delta_output(self, x: Tensor, module: nn.Module, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        down = self.lora_down.weight.to(x)
        up = self._scaled(self.lora_up.weight).to(x)
        output = self._convolve(x, down, up, module) if isinstance(module, _ConvNd) else self._multiply(x, down.flatten(1), up.flatten(1))
        own = self.delta_bias(None)
        if own is None:
            return output
        return output + own.to(output).reshape(-1, *(1 for _ in getattr(module, "kernel_size", ())))

    def add_output(self, output: Tensor, x: Tensor, module: nn.Module, strength: float = 1.0, weight: Tensor | None = None) -> Tensor:
        geometry = parts.geometry_of(module)
        if self.lora_mid is not None or self.lora_up.bias is not None or geometry is parts.OTHER:
            return super().add_output(output, x, module, strength, weight)
        down, up = self.lora_down.weight, self.lora_up.weight
        if geometry is None:
            return add_product(output, x, down.flatten(1), up, strength * self.scale)
        down = down if down.ndim > 2 else down.reshape(self.rank, -1, *module.kernel_size)
        x, padding = parts.pad(x, module)
        return add_product(output, x, down, up, strength * self.scale, None, parts.padded(geometry, padding))

    def fits(self, shape: Sequence[int]) -> bool:
        rows, columns = self._size()
        return len(shape) > 1 and shape[0] == rows and math.prod(shape[1:]) == columns

    def factors(self) -> tuple[Tensor, Tensor]:
        """up [O,R] with the scale in it and down [R,I·K·K], a Tucker core in it, both float32, whose product is ΔW in two dimensions."""
        up, down = self._scaled(self.lora_up.weight).flatten(1), self.lora_down.weight.float().flatten(1)
        return up, down if self.lora_mid is None else fold_core(self.lora_mid.weight, down)

    def add_to(self, total: Tensor, base: Tensor, strength: float) -> None:
        parts.check_fits(self, total.shape, self._size())
        up, down = (factor.to(total) for factor in self.factors())
        total.view(total.shape[0], -1).addmm_(up, down, alpha=strength)

    def truncated(self, ranks: int) -> LowRankLayer:
        parts.check_rank(ranks)
        if ranks >= self.rank:
            return self
        down, up, mid = self.lora_down.weight[:ranks], self.lora_up.weight[:, :ranks], self.lora_mid
        core = None if mid is None else mid.weight[:ranks, :ranks]
        return LowRankLayer(down.detach(), up.detach(), self.scale * ranks, None if core is None else core.detach(), self.lora_up.bias)

    def tensors(self) -> dict[str, Tensor]:
        return parts.stored(self, self.alpha)

    def _size(self) -> tuple[int, int]:
        """Rows and columns of ΔW: O, and I times the kernel."""
        return self._rows_columns

    def _scaled(self, up: Tensor) -> Tensor:
        # in float32, before any cast to half: a small scale times a small value must not round away
        return up.float() if self.scale == 1 else up.float() * self.scale

    def _multiply(self, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        # a linear layer's core has a kernel of one
        return linear_output(x, down, up if self.lora_mid is None else up @ self.lora_mid.weight.to(x).flatten(1))

    def _convolve(self, x: Tensor, down: Tensor, up: Tensor, module: nn.Module) -> Tensor:
        ones = (1,) * len(module.kernel_size)
        x, padding = parts.pad(x, module)
        settings = (module.stride, padding, module.dilation, module.groups)
        up = up.reshape(*up.shape[:2], *ones)
        if self.lora_mid is not None:
            mid = self.lora_mid.weight.to(x).reshape(*self.lora_mid.weight.shape[:2], *module.kernel_size)
            return tucker_output(x, down.reshape(*down.shape[:2], *ones), mid, up, *settings)
        return conv_output(x, down.reshape(self.rank, -1, *module.kernel_size), up, *settings)


def build(name: str, tensors: Mapping[str, Tensor], hints: Hints) -> LowRankLayer:
    """The layer that a file's tensors describe.

    Raises:
        NetworkFileError: half of it is missing, or the shapes don't fit each other.
    """
    for half in ("lora_up.weight", "lora_down.weight"):
        if half not in tensors:
            raise parts.incomplete(name, tensors, half)
    down, up, mid, bias = (tensors.get(part) for part in ("lora_down.weight", "lora_up.weight", "lora_mid.weight", "lora_up.bias"))
    _check_shapes(name, down, up, mid, bias)
    return LowRankLayer(down, up, parts.alpha_of(tensors, down.shape[0], hints), mid, bias)


def _check_shapes(name: str, down: Tensor, up: Tensor, mid: Tensor | None, bias: Tensor | None) -> None:
    tensors = {"down": down, "up": up, "mid": mid}
    shapes = parts.shapes_of(tensors)
    parts.check_values(name, tensors)
    parts.check_values(name, {"bias": bias}, (1,))
    ranks = (up[0].numel(), down.shape[0])
    if mid is None and ranks[0] != ranks[1]:
        raise parts.misfit(name, f"{shapes}: the ranks {ranks[0]} and {ranks[1]} differ")
    if mid is not None and (tuple(mid.shape[:2]) != ranks or mid.ndim < 3 or down[0].numel() != down.shape[1]):
        raise parts.misfit(name, f"{shapes}: the core does not fit between them")
    if bias is not None and bias.shape != up.shape[:1]:
        raise parts.misfit(name, f"bias {list(bias.shape)}, up {list(up.shape)}: the bias has another length")
