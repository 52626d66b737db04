"""A weight in training: in its module's place during the forward pass, it lets a product with it run with the layers' ΔW in the graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lib_lycoris.functional.added import Geometry, Pull, pulled
from lib_lycoris.functional.precision import autocasts
from lib_lycoris.functional.rebuilt import rebuilt_output
from lib_lycoris.networks.layer import Way

from .merge import merge_bias, merge_in_graph
from .plan import Effect

_PRODUCTS = (F.linear, F.conv1d, F.conv2d, F.conv3d)
_NORMS = (F.layer_norm, F.group_norm)
_EXACT = (torch.float32, torch.float64)
# What others may ask a weight without meaning to compute with it.
_LOOKS = ("__get__", "dim", "size", "numel", "stride", "data_ptr", "is_floating_point", "is_contiguous", "requires_grad_", "__repr__", "__hash__", "ndimension",
          "storage_offset", "untyped_storage", "is_inference", "__format__", "__len__")


class TracedWeight(Tensor):
    """The module's own weight, which knows what is trained on it.

    A linear layer's or convolution's product with it is that with W + ΔW; the sum is made anew for the backward pass, so that the graph never holds it. Where
    the product is computed in half precision, or where less arithmetic does it, ΔW has a product of its own beside. Whatever else is done with it is done
    with W + ΔW, in the graph.
    """

    effects: Sequence[Effect]
    own: Tensor

    @staticmethod
    def of(weight: Tensor, effects: Sequence[Effect]) -> TracedWeight:
        """The weight with these effects on it, at least one."""
        made = weight.detach().as_subclass(TracedWeight)
        made.own, made.effects = weight.detach(), tuple(effects)
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func.__name__ in _LOOKS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if func in _PRODUCTS and len(args) > 1 and isinstance(args[1], cls) and hasattr(args[1], "effects"):
            return args[1]._product(func, args[0], args[2] if len(args) > 2 else kwargs.get("bias"), args[3:], kwargs)
        if func in _NORMS:
            args, kwargs = _with_bias(args, kwargs)
        return func(*(_merged(value) for value in args), **{name: _merged(value) for name, value in kwargs.items()})

    def _product(self, func: Any, x: Tensor, bias: Tensor | None, rest: tuple, kwargs: dict[str, Any]) -> Tensor:
        module = self.effects[0].target.module
        geometry, groups = _geometry(rest, kwargs) if isinstance(module, _ConvNd) else (None, 1)
        merges = not autocasts(x.device.type) and x.dtype == self.own.dtype and x.dtype in _EXACT
        way, given = self._way(x, module, geometry, merges), x
        if geometry is not None and isinstance(geometry[1], str):
            x, geometry = F.pad(x, module._reversed_padding_repeated_twice), (geometry[0], (0,) * len(geometry[0]), geometry[2])
        if merges and way != "beside":
            bias = merged_bias(bias, self.own, self.effects)
            return rebuilt_output(x, bias, self._sum, _parameters(self.effects), geometry, groups, self._factors if way == "factors" else None)
        output = func(given, self.own, bias, *rest, **{name: value for name, value in kwargs.items() if name != "bias"})
        if way != "beside":
            own = merged_bias(None, self.own, self.effects)
            beside = rebuilt_output(
                x.to(output.dtype), None if own is None else own.to(output.dtype), self._delta, _parameters(self.effects), geometry, groups
            )
            return output + beside
        for effect in self.effects:
            output = effect.layer.add_output(output, x, module, effect.amount, self.own)
        return output

    def _sum(self) -> tuple[Tensor, Pull]:
        """W + ΔW and what gives the parameters' gradients."""
        if len(self.effects) == 1:
            return self.effects[0].layer.weight_with(self.own, self.effects[0].amount)
        total = merge_in_graph(self.own, self.effects)
        return total, pulled([total], _parameters(self.effects))

    def _factors(self) -> tuple[tuple[Tensor, Tensor], Pull]:
        """Those of the one effect's ΔW, and the same."""
        return self.effects[0].layer.trained_factors(self.own.shape, self.effects[0].amount)

    def _delta(self) -> tuple[Tensor, Pull]:
        """ΔW of all effects, float32, and the same."""
        total = sum(effect.amount * effect.layer.delta(self.own) for effect in self.effects)
        return total, pulled([total], _parameters(self.effects))

    def _way(self, x: Tensor, module: nn.Module, geometry: Geometry | None, merges: bool) -> Way:
        """The cheapest for all; "weight" where the input was padded already, which beside would do again."""
        if geometry is None:
            places = x.numel() // x.shape[-1]
        else:
            if module.padding_mode != "zeros" or isinstance(geometry[1], str):
                return "weight"
            places = x.numel() // x.shape[1] // math.prod(geometry[0])
        ways = {effect.layer.way(places, merges) for effect in self.effects}
        if ways == {"factors"} and len(self.effects) == 1 and getattr(module, "groups", 1) == 1:
            return "factors"
        return "beside" if ways == {"beside"} else "weight"


def _geometry(rest: tuple, kwargs: dict[str, Any]) -> tuple[Geometry, int]:
    """Stride, padding and dilation that a convolution was called with, and groups."""
    given = {**dict(zip(("stride", "padding", "dilation", "groups"), rest, strict=False)), **kwargs}
    return (given.get("stride", 1), given.get("padding", 0), given.get("dilation", 1)), given.get("groups", 1)


def merged_bias(bias: Tensor | None, weight: Tensor, effects: Sequence[Effect]) -> Tensor | None:
    """The bias with what the effects add to it, in the graph; itself where they add nothing."""
    made = merge_bias(bias, bias, weight, effects)
    return bias if made is None else made


def _merged(value: Any) -> Any:
    return merge_in_graph(value.own, value.effects) if isinstance(value, TracedWeight) and hasattr(value, "effects") else value


def _with_bias(args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """A normalisation's arguments (input, shape or groups, weight, bias) with the effects in its bias too."""
    named = dict(zip(("weight", "bias"), args[2:4], strict=False))
    weight, bias = (named.get(name, kwargs.get(name)) for name in ("weight", "bias"))
    bias = merged_bias(bias, weight.own, weight.effects)
    return (*args[:2], weight, bias, *args[4:]), {name: value for name, value in kwargs.items() if name not in ("weight", "bias")}


def _parameters(effects: Sequence[Effect]) -> list[Tensor]:
    return [parameter for effect in effects for parameter in effect.layer.trained_parameters()]
