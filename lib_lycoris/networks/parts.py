"""What the kinds share: holders of parameters, alpha and scale, checks of shapes, and a module's output with another weight."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lib_lycoris.errors import ConfigError, NetworkFileError, shown
from lib_lycoris.functional.precision import as_given
from lib_lycoris.networks.hints import Hints

_CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
_BLOCK = 1 << 18  # values: with a few more of its size it stays in the cache, and the allocator hands the same pages out again


def holder(**tensors: Tensor | None) -> nn.Module:
    """A module that holds these as parameters, so that their names read as in a file: lora_up.weight."""
    module = nn.Module()
    register(module, **tensors)
    return module


def register(module: nn.Module, **tensors: Tensor | None) -> None:
    """Gives `module` these as parameters without gradients; None stands for one that a file may have and this one has not."""
    for name, tensor in tensors.items():
        module.register_parameter(name, None if tensor is None else nn.Parameter(tensor, requires_grad=False))


def stored(module: nn.Module, alpha: float | None) -> dict[str, Tensor]:
    """The module's parameters by name, detached, and alpha as a float32 number, as a file holds them; None leaves alpha out."""
    named = {name: parameter.detach() for name, parameter in module.named_parameters()}
    return named if alpha is None else {**named, "alpha": torch.tensor(alpha, dtype=torch.float32)}


def alpha_of(tensors: Mapping[str, Tensor], rank: int, hints: Hints) -> float | None:
    """alpha, so that alpha / rank is the scale: the file's `scale`, else its `alpha` (any dtype, 0-D or one element), else the config's; None: scale 1."""
    if "scale" in tensors:
        return tensors["scale"].double().item() * rank
    if "alpha" in tensors:
        return tensors["alpha"].double().item()
    return hints.scale * rank if hints.alpha is None and hints.scale is not None else hints.alpha


def misfit(name: str, what: str) -> NetworkFileError:
    """The error for a layer whose tensors don't fit each other."""
    return NetworkFileError(f"layer {shown(name)} has mismatched shapes, {what}; the file is damaged, get it again")


def incomplete(name: str, tensors: Mapping[str, Tensor], missing: str) -> NetworkFileError:
    """The error for a layer that lacks the parameter `missing`."""
    return NetworkFileError(f"layer {shown(name)} has {', '.join(shown(part, 40) for part in tensors)} without {missing}: the file is incomplete; get it again")


def check_values(name: str, tensors: Mapping[str, Tensor | None], dimensions: Sequence[int] = range(2, 6)) -> None:
    """Raises NetworkFileError unless each tensor that is there holds floating-point values, at least one, in so many dimensions."""
    for part, tensor in tensors.items():
        if tensor is not None and (tensor.ndim not in dimensions or tensor.numel() == 0 or not tensor.is_floating_point()):
            wanted = " or ".join(map(str, dimensions)) if len(dimensions) < 3 else f"{dimensions[0]} to {dimensions[-1]}"
            raise misfit(name, f"{part} {list(tensor.shape)} ({tensor.dtype}): {wanted} dimensions of floating-point values are needed")


def shapes_of(tensors: Mapping[str, Tensor | None]) -> str:
    """The tensors' names and shapes, for a message."""
    return ", ".join(f"{part} {list(tensor.shape)}" for part, tensor in tensors.items() if tensor is not None)


def check_fits(layer, shape: Sequence[int], size: Sequence[int]) -> None:
    """Raises NetworkFileError unless the layer, which is made for a weight of `size`, fits one of `shape`."""
    if not layer.fits(shape):
        own = " × ".join(map(str, size))
        raise NetworkFileError(f"a {layer.algorithm} delta of {own} does not fit a weight of shape {list(shape)}: the network was made for another model")


def check_rank(rank: object) -> None:
    """Raises ConfigError unless `rank` is a whole number of at least 1."""
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ConfigError(f"network rank {shown(rank)} is not a whole number of at least 1")


def check_alpha(alpha: float | None) -> None:
    """Raises ConfigError unless `alpha` is None or finite."""
    if alpha is not None and not math.isfinite(alpha):
        raise ConfigError(f"network alpha {alpha} is not a finite number; leave it out for scale 1")


def target_shape(target: nn.Module | Sequence[int]) -> tuple[int, ...]:
    """The shape of the weight to train, [O,I] or [O,I,K,K].

    Raises:
        ConfigError: it has not 2 to 5 dimensions.
    """
    shape = tuple(weight_shape(target) if isinstance(target, nn.Module) else target)
    if len(shape) not in (2, 3, 4, 5):
        raise ConfigError(f"a weight of shape {list(shape)} can't take a low-rank layer; it needs 2 dimensions, or 3 to 5 for a convolution")
    return shape


def weight_shape(module: nn.Module) -> tuple[int, ...]:
    """The shape of the module's weight as its settings tell it: a quantised weight's own shape is that of its storage."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    if isinstance(module, _ConvNd) and not module.transposed:
        return module.out_channels, module.in_channels // module.groups, *module.kernel_size
    return tuple(module.weight.shape)


def row_blocks(total: Tensor) -> Iterator[slice]:
    """Slices of the rows of `total`, one after another, so that a few temporary tensors of a block's size stay in the processor's cache; all rows on a GPU."""
    rows = total.shape[0]
    step = rows if total.device.type != "cpu" else max(1, _BLOCK // max(1, total.numel() // rows))
    return (slice(start, start + step) for start in range(0, rows, step))


def add_blocks(total: Tensor, delta: Tensor, strength: float) -> None:
    """Adds strength · delta to `total` of the same shape in place, without a copy of the whole `delta` in total's dtype."""
    if delta.dtype == total.dtype and delta.device == total.device:
        total.add_(delta, alpha=strength)
        return
    for rows in row_blocks(total):
        total[rows].add_(delta[rows].to(total), alpha=strength)


def base_of(module: nn.Module, weight: Tensor | None, x: Tensor, dependent: bool) -> Tensor:
    """The base weight for `delta`, on x's device, without gradient: `weight` or the module's own; for a kind that reads only its shape, a stand-in."""
    if not dependent:
        return torch.empty(1, device=x.device).expand(weight_shape(module))
    return (module.weight if weight is None else weight).detach().to(x.device)


def bias_of(module: nn.Module, bias: Tensor | None, x: Tensor) -> Tensor | None:
    """The base bias for `delta_bias` on x's device, without gradient; None where the module has none."""
    bias = getattr(module, "bias", None) if bias is None else bias
    return None if bias is None else bias.detach().to(x.device)


def output_with(x: Tensor, module: nn.Module, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """The output of `module` for `x`, in x's dtype, if it had this weight and bias and neither of its own; None for a weight of zeros."""
    weight, bias = (None if tensor is None else tensor.to(x) for tensor in (weight, bias))
    if isinstance(module, nn.LayerNorm | nn.GroupNorm):
        return _norm_output(x, module, weight, bias)
    if weight is None:
        weight = torch.zeros((), dtype=x.dtype, device=x.device).expand(weight_shape(module))
    if isinstance(module, _ConvNd):
        x, padding = pad(x, module)
        return _CONVOLUTIONS[weight.ndim](x, weight, bias, module.stride, padding, module.dilation, module.groups)
    return F.linear(x, weight, bias)


OTHER = object()
"""Stands for a module whose product takes a way of its own: grouped or transposed, or padded in words."""


def geometry_of(module: nn.Module) -> object:
    """Stride, padding and dilation of a convolution, None for a linear layer, OTHER for what is neither."""
    if isinstance(module, _ConvNd):
        return OTHER if module.groups != 1 or module.transposed or isinstance(module.padding, str) else (module.stride, module.padding, module.dilation)
    return None if isinstance(module, nn.Linear) else OTHER


def padded(geometry: tuple, padding: object) -> tuple:
    """The geometry for an input that `pad` was given; it tells which padding is left."""
    stride, _, dilation = geometry
    return stride, (0,) * len(stride) if padding == 0 else padding, dilation


def pad(x: Tensor, module: nn.Module) -> tuple[Tensor, object]:
    """`x` and the padding that is left for the convolution to do: the WebUI's tiling option switches padding_mode of convolutions to "circular"."""
    if module.padding_mode == "zeros":
        return x, module.padding
    return F.pad(x, module._reversed_padding_repeated_twice, mode=module.padding_mode), 0


def full_precision(tensor: Tensor) -> contextlib.AbstractContextManager:
    """Within it products on the tensor's device are of the precision that their factors have: a host's forward runs under autocast."""
    return as_given(tensor.device.type)


def _norm_output(x: Tensor, module: nn.LayerNorm | nn.GroupNorm, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    # γ·x̂ + β is linear in γ and β, so the deltas in their places give what they add
    if weight is None:
        weight = torch.zeros(weight_shape(module), dtype=x.dtype, device=x.device)
    if isinstance(module, nn.LayerNorm):
        return F.layer_norm(x, module.normalized_shape, weight, bias, module.eps)
    return F.group_norm(x, module.num_groups, weight, bias, module.eps)
