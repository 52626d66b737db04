"""LoRA on linear layers and LoCon on convolutions: ΔW = alpha/rank · up · down, with a Tucker core between them where the file has one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lib_lycoris.errors import ConfigError, NetworkFileError, shown
from lib_lycoris.functional.low_rank import conv_output, linear_output, low_rank_delta, tucker_delta, tucker_output

NAMES = ("lora_up.weight", "lora_down.weight", "lora_mid.weight", "lora_up.bias", "alpha", "scale")


class LowRankLayer(nn.Module):
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
        self.lora_down = _holder(weight=down)
        self.lora_up = _holder(weight=up, bias=bias)
        self.lora_mid = None if mid is None else _holder(weight=mid)

    @classmethod
    def create(cls, target: nn.Module | Sequence[int], rank: int, alpha: float | None = None, generator: torch.Generator | None = None) -> LowRankLayer:
        """A fresh layer for training: float32 parameters with gradients, `down` as a linear layer starts, `up` zero, so that it adds exactly nothing.

        Args:
            target: the module to train, or the shape of its weight: [O,I], or [O,I,K,K] for a convolution.
            rank: R; larger than the weight's own rank is allowed and wasteful.
            alpha: scale times rank; none means scale 1.
            generator: where the random numbers come from; none takes torch's own.

        Raises:
            ConfigError: the rank is not a whole number of at least 1, alpha is not finite, or the target has no weight of 2 to 5 dimensions.

        Source: Hu et al. 2021, "LoRA", section 4.1; the bound is Kaiming's uniform one with a = √5, as torch.nn.Linear has it.
        """
        shape = tuple(target.weight.shape if isinstance(target, nn.Module) else target)
        if len(shape) not in (2, 3, 4, 5):
            raise ConfigError(f"a weight of shape {list(shape)} can't take a low-rank layer; it needs 2 dimensions, or 3 to 5 for a convolution")
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise ConfigError(f"network rank {shown(rank)} is not a whole number of at least 1")
        if alpha is not None and not math.isfinite(alpha):
            raise ConfigError(f"network alpha {alpha} is not a finite number; leave it out for scale 1")
        device = generator.device if generator is not None else None
        bound = 1 / math.sqrt(math.prod(shape[1:]))
        down = torch.empty(rank, *shape[1:], device=device).uniform_(-bound, bound, generator=generator)
        up = torch.zeros(shape[0], rank, *(1 for _ in shape[2:]), device=device)
        return cls(down, up, alpha).requires_grad_(True)

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank

    def delta(self, weight: Tensor) -> Tensor:
        self._check(weight.shape)
        down, up = (part.weight.to(weight.device) for part in (self.lora_down, self.lora_up))
        if self.lora_mid is None:
            return low_rank_delta(self._scaled(up), down, weight.shape)
        return tucker_delta(self._scaled(up), self.lora_mid.weight.to(weight.device), down, weight.shape)

    def delta_bias(self, bias: Tensor | None) -> Tensor | None:
        own = self.lora_up.bias
        return None if own is None else self._scaled(own if bias is None else own.to(bias.device))

    def delta_output(self, x: Tensor, module: nn.Module) -> Tensor:
        down = self.lora_down.weight.to(x)
        up = self._scaled(self.lora_up.weight).to(x)
        output = self._convolve(x, down, up, module) if isinstance(module, _ConvNd) else self._multiply(x, down.flatten(1), up.flatten(1))
        own = self.delta_bias(None)
        if own is None:
            return output
        return output + own.to(output).reshape(-1, *(1 for _ in getattr(module, "kernel_size", ())))

    def fits(self, shape: Sequence[int]) -> bool:
        rows, columns = self._size()
        return len(shape) > 1 and shape[0] == rows and math.prod(shape[1:]) == columns

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """up [O,R] with the scale in it and down [R,I·K·K], both float32, whose product is ΔW in two dimensions; None where a Tucker core stands between."""
        if self.lora_mid is not None:
            return None
        return self._scaled(self.lora_up.weight).flatten(1), self.lora_down.weight.float().flatten(1)

    def tensors(self) -> dict[str, Tensor]:
        named = {name: parameter.detach() for name, parameter in self.named_parameters()}
        return {**named, "alpha": torch.tensor(self.alpha, dtype=torch.float32)}

    def _size(self) -> tuple[int, int]:
        """Rows and columns of ΔW: O, and I times the kernel."""
        kernel = 1 if self.lora_mid is None else self.lora_mid.weight[0, 0].numel()
        return self.lora_up.weight.shape[0], self.lora_down.weight[0].numel() * kernel

    def _check(self, shape: Sequence[int]) -> None:
        if not self.fits(shape):
            size = " × ".join(map(str, self._size()))
            raise NetworkFileError(f"a low-rank delta of {size} does not fit a weight of shape {list(shape)}: the network was made for another model")

    def _scaled(self, up: Tensor) -> Tensor:
        # in float32, before any cast to half: a small scale times a small value must not round away
        return up.float() * self.scale

    def _multiply(self, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        # a linear layer's core has a kernel of one
        return linear_output(x, down, up if self.lora_mid is None else up @ self.lora_mid.weight.to(x).flatten(1))

    def _convolve(self, x: Tensor, down: Tensor, up: Tensor, module: nn.Module) -> Tensor:
        ones = (1,) * len(module.kernel_size)
        x, padding = _pad(x, module)
        settings = (module.stride, padding, module.dilation, module.groups)
        up = up.reshape(*up.shape[:2], *ones)
        if self.lora_mid is not None:
            mid = self.lora_mid.weight.to(x).reshape(*self.lora_mid.weight.shape[:2], *module.kernel_size)
            return tucker_output(x, down.reshape(*down.shape[:2], *ones), mid, up, *settings)
        return conv_output(x, down.reshape(self.rank, -1, *module.kernel_size), up, *settings)


def build(name: str, tensors: Mapping[str, Tensor]) -> LowRankLayer:
    """The layer that a file's tensors describe.

    Raises:
        NetworkFileError: half of it is missing, or the shapes don't fit each other.
    """
    missing = [half for half in ("lora_up.weight", "lora_down.weight") if half not in tensors]
    if missing:
        raise NetworkFileError(f"layer {shown(name)} has {', '.join(map(shown, tensors))} without {missing[0]}: the file is incomplete; get it again")
    down, up, mid, bias = (tensors.get(part) for part in ("lora_down.weight", "lora_up.weight", "lora_mid.weight", "lora_up.bias"))
    _check_shapes(name, down, up, mid, bias)
    return LowRankLayer(down, up, _alpha(tensors, down.shape[0]), mid, bias)


def _alpha(tensors: Mapping[str, Tensor], rank: int) -> float | None:
    """alpha as the file stores it, which may be any dtype, 0-D or one element; a stored `scale` outranks it."""
    if "scale" in tensors:
        return tensors["scale"].double().item() * rank
    return tensors["alpha"].double().item() if "alpha" in tensors else None


def _check_shapes(name: str, down: Tensor, up: Tensor, mid: Tensor | None, bias: Tensor | None) -> None:
    shapes = f"down {list(down.shape)}, up {list(up.shape)}" + ("" if mid is None else f", mid {list(mid.shape)}")
    for tensor in (down, up, *([] if mid is None else [mid])):
        if not 2 <= tensor.ndim <= 5 or tensor.numel() == 0 or not tensor.is_floating_point():
            raise _misfit(name, f"{shapes} ({tensor.dtype}): two or more dimensions of floating-point values are needed")
    ranks = (up[0].numel(), down.shape[0])
    if mid is None and ranks[0] != ranks[1]:
        raise _misfit(name, f"{shapes}: the ranks {ranks[0]} and {ranks[1]} differ")
    if mid is not None and (tuple(mid.shape[:2]) != ranks or mid.ndim < 3 or down[0].numel() != down.shape[1]):
        raise _misfit(name, f"{shapes}: the core does not fit between them")
    if bias is not None and bias.shape != up.shape[:1]:
        raise _misfit(name, f"bias {list(bias.shape)}, up {list(up.shape)}: the bias has another length")


def _misfit(name: str, what: str) -> NetworkFileError:
    return NetworkFileError(f"layer {shown(name)} has mismatched shapes, {what}; the file is damaged, get it again")


def _holder(**tensors: Tensor | None) -> nn.Module:
    """A module that holds these as parameters, so that their names read as in a file: lora_up.weight."""
    holder = nn.Module()
    for name, tensor in tensors.items():
        holder.register_parameter(name, None if tensor is None else nn.Parameter(tensor, requires_grad=False))
    return holder


def _pad(x: Tensor, module: nn.Module) -> tuple[Tensor, object]:
    # the WebUI's tiling option switches padding_mode of convolutions to "circular"
    if module.padding_mode == "zeros":
        return x, module.padding
    return F.pad(x, module._reversed_padding_repeated_twice, mode=module.padding_mode), 0
