"""Parts of the layers in training that are left away at random: of a layer's inputs, of its ranks, or the whole layer.

Everything drawn follows from (seed, part of the step, layer) alone, so that a resumed run, a block that is computed twice, and any number of processes
draw the same; outside a training step nothing is left away.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..networks.layer import Way
from .config import NetworkSettings
from .draws import make_generator
from .selection import Key

_RANKED = {"lora_down.weight", "lora_E", "hada_w1_b", "hada_w2_b", "lokr_w1_b", "lokr_w2_b"}
"""The factors whose first axis is the rank; one for each product, so that without a rank there each product lacks it."""


class Dropout:
    """What is drawn for all layers of a training.

    Inputs and ranks that stay are scaled by 1/(1 - share), so that the sum stays the same on average; a layer that stays is not, as its strength is to be
    that with which it is used. Ranks and layers are drawn for a whole step, so that all rows of it see the same network, inputs for each row. LoHa and LoKr
    drop ranks of each of their two products, not rows of ΔW. A layer that is merged into its module (of nn.MultiheadAttention) drops inputs by leaving away
    columns of ΔW, the same for all rows.

    Args:
        settings: the shares.
        seed: of all draws.
        rank: this process' number among `count`, each of which has every count-th row of a batch.

    Source: Srivastava et al. 2014, "Dropout", section 10 (scaling); shares of ranks and layers as kohya-ss/sd-scripts, networks/lora.py, names them.
    """

    def __init__(self, settings: NetworkSettings, seed: int, rank: int = 0, count: int = 1):
        self._shares = {"input": settings.dropout, "rank": settings.rank_dropout, "module": settings.module_dropout}
        self._seed, self._rank, self._count = seed, rank, count
        self._moment: tuple[object, ...] | None = None

    @property
    def on(self) -> bool:
        """Whether anything is ever left away."""
        return any(self._shares.values())

    def wrap(self, layers: Mapping[Key, nn.Module]) -> Mapping[Key, Any]:
        """The layers as they are to be attached; the parameters are those of `layers`."""
        return {key: DroppedLayer(key, layer, self) for key, layer in layers.items()} if self.on else layers

    @contextmanager
    def drawing(self, *moment: object) -> Iterator[None]:
        """Within it, forward and backward pass, the layers lack what is drawn for that moment."""
        self._moment = moment
        try:
            yield
        finally:
            self._moment = None

    def skips(self, key: Key) -> bool:
        """Whether the whole layer is left away now."""
        share = self._now("module")
        return bool(share) and float(torch.rand((), generator=self._generator("module", *key))) < share

    def ranks(self, key: Key, name: str, ranks: int, device: torch.device) -> Tensor | None:
        """Factors [R] for a product's ranks: 0, or 1/(1 - share); None for all 1."""
        share = self._now("rank")
        return self._factors(torch.rand(ranks, generator=self._generator("rank", *key, name)), share).to(device) if share else None

    def inputs(self, key: Key, x: Tensor) -> Tensor:
        """The layer's inputs [B,…], some of them zero and the others larger; each row's are drawn by itself, on x's device."""
        share = self._now("input")
        if not share:
            return x
        rows = range(self._rank, self._rank + self._count * len(x), self._count)
        drawn = [torch.rand(x.shape[1:], generator=self._generator("input", *key, row, device=x.device), device=x.device) for row in rows]
        return x * self._factors(torch.stack(drawn), share).to(x.dtype)

    def columns(self, key: Key, delta: Tensor) -> Tensor:
        """ΔW [O,I,…] without some of its inputs."""
        share = self._now("input")
        if not share:
            return delta
        drawn = torch.rand(delta.shape[1], generator=self._generator("columns", *key)).to(delta.device)
        return delta * self._factors(drawn, share).reshape(1, -1, *(1 for _ in delta.shape[2:]))

    def _now(self, what: str) -> float:
        return 0.0 if self._moment is None else self._shares[what]

    def _factors(self, drawn: Tensor, share: float) -> Tensor:
        return (drawn >= share) / (1 - share)

    def _generator(self, *parts: object, device: torch.device | str = "cpu") -> torch.Generator:
        return make_generator(self._seed, "dropout", *(self._moment or ()), *parts, device=device)


class DroppedLayer:
    """A layer in training as the model sees it: the layer itself, without what its Dropout leaves away."""

    def __init__(self, key: Key, layer: nn.Module, dropout: Dropout):
        self.algorithm, self.weight_dependent = layer.algorithm, layer.weight_dependent
        self._key, self._layer, self._dropout = key, layer, dropout
        self._caller = _Caller(layer)
        self._ranked = {name: value for name, value in layer.named_parameters() if any(name.endswith(factor) for factor in _RANKED)}

    def fits(self, shape: Sequence[int]) -> bool:
        """As the layer's."""
        return self._layer.fits(shape)

    def delta(self, weight: Tensor) -> Tensor:
        """ΔW as it is now."""
        if self._dropout.skips(self._key):
            return torch.zeros(weight.shape, device=weight.device)
        return self._dropout.columns(self._key, self._call("delta", weight))

    def delta_bias(self, bias: Tensor | None) -> Tensor | None:
        """What is added to the bias now, or None."""
        own = self._layer.delta_bias(bias)
        return None if own is None else own * (not self._dropout.skips(self._key))

    def delta_output(self, x: Tensor, module: nn.Module, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """What is added to the module's output now; one zero where the layer is left away."""
        if self._dropout.skips(self._key):
            return x.new_zeros(())
        return self._call("delta_output", self._dropout.inputs(self._key, x), module, weight, bias)

    def add_output(self, output: Tensor, x: Tensor, module: nn.Module, strength: float = 1.0, weight: Tensor | None = None) -> Tensor:
        """The module's output with what is added to it now."""
        return output + strength * self.delta_output(x, module, weight).to(output.dtype)

    def way(self, places: int | None = None, merges: bool = True) -> Way:
        """Beside: what is left away of the inputs has no place in the weight."""
        return "beside"

    def _call(self, method: str, *args: Any) -> Tensor:
        kept = {name: self._dropout.ranks(self._key, name, len(value), value.device) for name, value in self._ranked.items()}
        parts = {f"layer.{name}": self._ranked[name] * _column(factors, self._ranked[name]) for name, factors in kept.items() if factors is not None}
        if not parts:
            return getattr(self._layer, method)(*args)
        return torch.func.functional_call(self._caller, parts, (method, *args))


class _Caller(nn.Module):
    """Lets functional_call reach a layer's methods."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, method: str, *args: Any) -> Tensor:
        return getattr(self.layer, method)(*args)


def _column(factors: Tensor, like: Tensor) -> Tensor:
    """A factor [R] for each rank, shaped to be multiplied with a tensor [R,…]."""
    return factors.reshape(-1, *(1 for _ in like.shape[1:]))
