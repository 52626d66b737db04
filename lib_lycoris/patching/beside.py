"""What layers beside add to a module's output: products of low rank with a strength for each row, or a dense ΔW through the layer's own operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lib_lycoris.networks.parts import full_precision, output_with, pad, weight_shape

from .rows import acting, on_device, spread
from .slot import Slot, Wish

_CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


class Beside:
    """All that is beside on one module. What it computed on the way is kept for the next forward and goes with it."""

    def __init__(self, slots: Sequence[Slot]):
        self._trained = [wish.effect for slot in slots for wish in slot.beside if wish.way == "trained"]
        self._others = [(slot, wish) for slot in slots for wish in slot.beside if wish.way != "trained"]
        self._adders: list[_Products | _Dense] | None = None

    def add(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> Tensor:
        """The output with everything added: a forward hook with keywords."""
        x = args[0] if args else next(iter(kwargs.values()))
        for effect in self._trained:
            output = effect.layer.add_output(output, x, module, effect.strength)
        if self._others:
            if self._adders is None:
                self._adders = _adders(self._others)
            for adder in self._adders:
                output = adder.add(x, module, output)
        return output


def _adders(wishes: Sequence[tuple[Slot, Wish]]) -> list[_Products | _Dense]:
    products, adders = [], []
    for slot, wish in wishes:
        factors = _factors(wish)
        if factors is None:
            adders.append(_Dense(slot, wish))
        else:
            products.append((wish, factors))
    return [*([_Products(products)] if products else []), *adders]


class _Products:
    """Layers of low rank, as one: [ΣR] rows down, a strength for each rank and row in the middle, and up."""

    def __init__(self, products: Sequence[tuple[Wish, tuple[Tensor, Tensor]]]):
        self._wishes = [wish for wish, _ in products]
        self._factors = [factors for _, factors in products]
        self._ready: dict[tuple, tuple[Tensor, Tensor]] = {}

    def add(self, x: Tensor, module: nn.Module, output: Tensor) -> Tensor:
        amounts = [_amount(wish, x.shape[0]) for wish in self._wishes]
        active = tuple(number for number, amount in enumerate(amounts) if isinstance(amount, Tensor) or amount)
        if not active:
            return output
        chosen = [amounts[number] for number in active]
        if not any(isinstance(amount, Tensor) for amount in chosen):
            down, up = self._prepared(module, x, output, active, tuple(chosen))
            return _add_product(x, module, output, down, up, None)
        down, up = self._prepared(module, x, output, active, None)
        ranks = [self._factors[number][0].shape[1] for number in active]
        strengths = _by_rank(chosen, ranks, x.shape[0])
        rows = acting(strengths)
        if rows is None:
            return _add_product(x, module, output, down, up, strengths)
        part = output[rows]
        return _with_rows(output, rows, _add_product(x[rows], module, part, down, up, strengths[rows]))

    def _prepared(self, module: nn.Module, x: Tensor, output: Tensor, active: tuple[int, ...], amounts: tuple[float, ...] | None) -> tuple[Tensor, Tensor]:
        """The factors of the active layers as tensors for x, scaled where the strengths are numbers; made in float32 and rounded once."""
        key = (active, amounts, x.dtype, output.dtype, output.device)
        if key not in self._ready:
            if len(self._ready) > 3:  # a schedule gives new numbers in each step
                self._ready.clear()
            with full_precision(output), torch.inference_mode(False), torch.no_grad():
                ups, downs = zip(*(self._factors[number] for number in active), strict=True)
                if amounts is not None:
                    ups = [up * amount for up, amount in zip(ups, amounts, strict=True)]
                down = torch.cat([down.to(output.device) for down in downs])
                up = torch.cat([up.to(output.device) for up in ups], dim=1)
                if isinstance(module, _ConvNd):
                    down = down.reshape(-1, *weight_shape(module)[1:])
                    up = up.reshape(*up.shape, *(1 for _ in module.kernel_size))
                self._ready[key] = down.to(x.dtype), up.to(output.dtype)
        return self._ready[key]


class _Dense:
    """A layer of any kind through its ΔW, computed once per change of what it depends on."""

    def __init__(self, slot: Slot, wish: Wish):
        self._slot = slot
        self._wish = wish
        self._key: tuple | None = None
        self._made: tuple[Tensor | None, Tensor | None] = (None, None)

    def add(self, x: Tensor, module: nn.Module, output: Tensor) -> Tensor:
        amount = _amount(self._wish, x.shape[0])
        if not isinstance(amount, Tensor):
            return output if not amount else output + amount * self._output(x, module, output)
        rows = acting(amount)
        if rows is None:
            return torch.addcmul(output, spread(on_device(amount, output), output.ndim, True), self._output(x, module, output))
        part = output[rows]
        return _with_rows(output, rows, part + spread(on_device(amount[rows], output), part.ndim, True) * self._output(x[rows], module, part))

    def _output(self, x: Tensor, module: nn.Module, output: Tensor) -> Tensor:
        weight, bias = self._deltas(output)
        columns = self._wish.effect.columns
        if isinstance(module, nn.Embedding):
            return F.embedding(x, weight).to(output.dtype)
        x = x if columns is None else x[:, :columns]
        return output_with(x.to(output.dtype), module, weight, bias)

    def _deltas(self, output: Tensor) -> tuple[Tensor | None, Tensor | None]:
        effect = self._wish.effect
        own = self._slot.own(effect.target.weight)
        dependent = getattr(effect.layer, "weight_dependent", False)
        key = (output.dtype, output.device, (id(own), own.data_ptr(), None if own.is_inference() else own._version) if dependent else None)
        if key != self._key:
            with full_precision(output), torch.inference_mode(False), torch.no_grad():
                base = self._base(output, dependent)
                delta = effect.layer.delta(effect.part(base))
                bias = effect.layer.delta_bias(self._base_bias(effect, output, dependent))
                self._made = delta.to(output), None if bias is None else bias.to(output)
            self._key = key
        return self._made

    def _base(self, output: Tensor, dependent: bool) -> Tensor:
        target = self._wish.effect.target
        if not dependent:
            return torch.empty(1, device=output.device).expand(target.shape)
        return self._slot.base([self._wish.effect], target.weight).detach().to(output.device)

    def _base_bias(self, effect: Any, output: Tensor, dependent: bool) -> Tensor | None:
        name = effect.target.bias
        bias = None if name is None else self._slot.base([effect], name)
        return None if bias is None else bias.detach().to(output.device)


def _factors(wish: Wish) -> tuple[Tensor, Tensor] | None:
    """The layer's factors where it can go through them: on a whole linear layer or ungrouped convolution, and without a bias of its own."""
    effect = wish.effect
    module = effect.target.module
    plain = isinstance(module, nn.Linear) or (isinstance(module, _ConvNd) and not module.transposed and module.groups == 1)
    if not plain or effect.columns is not None or effect.layer.delta_bias(None) is not None:
        return None
    with torch.no_grad():
        return effect.layer.factors()


def _amount(wish: Wish, count: int) -> float | Tensor:
    """The strength for a batch of `count`: a number, or [count]."""
    effect = wish.effect
    if effect.dial is None:
        return effect.strength
    value = effect.dial.scalar if wish.rows is None else wish.rows.values(effect.dial, count)
    return effect.strength * value


def _by_rank(amounts: Sequence[float | Tensor], ranks: Sequence[int], count: int) -> Tensor:
    """[count,ΣR] on the CPU: each layer's strength for each row, over its ranks."""
    columns = [amount if isinstance(amount, Tensor) else torch.full((count,), amount, dtype=torch.float64) for amount in amounts]
    return torch.stack(columns, dim=1).repeat_interleave(torch.tensor(ranks), dim=1)


def _add_product(x: Tensor, module: nn.Module, output: Tensor, down: Tensor, up: Tensor, strengths: Tensor | None) -> Tensor:
    if isinstance(module, _ConvNd):
        x, padding = pad(x.to(down.dtype), module)
        inner = _CONVOLUTIONS[down.ndim](x, down, None, module.stride, padding, module.dilation).to(output.dtype)
        if strengths is not None:
            inner = inner * spread(on_device(strengths, inner), inner.ndim, True)
        return output + _CONVOLUTIONS[up.ndim](inner, up)
    inner = F.linear(x.to(down.dtype), down).to(output.dtype)
    if strengths is not None:
        inner = inner * spread(on_device(strengths, inner), inner.ndim, False)
    return torch.addmm(output.reshape(-1, output.shape[-1]), inner.reshape(-1, inner.shape[-1]), up.t()).view(output.shape)


def _with_rows(output: Tensor, rows: slice | Tensor, changed: Tensor) -> Tensor:
    """The output with these rows in place of its own."""
    if isinstance(rows, slice):
        return torch.cat([output[:rows.start], changed, output[rows.stop:]])
    return output.index_copy(0, rows.to(output.device), changed)
