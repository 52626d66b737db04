"""What is to be done, before anything is: which layer of which network goes to which target, with what strength."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from lib_lycoris.errors import ConfigError, shown
from lib_lycoris.networks.layer import Layer
from lib_lycoris.networks.network import Network

from .targets import Target
from .weighting import Dial, Weighting, as_weighting

Cut = Callable[[Layer, int], Layer]

_PICTURE_CHANNELS = 4
_REPLACES = "it takes the place of the model's own values, and networks only add to them; train without bias, modules_to_save, trainable_token_indices"


@dataclass(frozen=True)
class Effect:
    """One layer of a network on one target.

    Attributes:
        target: where.
        layer: what.
        strength: how strongly (1.0 = as trained).
        dial: multiplies the strength, where there is one.
        columns: how many input channels the layer was made for, where the target has more (inpainting); it acts on the first ones.
    """

    target: Target
    layer: Layer
    strength: float
    dial: Dial | None = None
    columns: int | None = None

    @property
    def amount(self) -> float:
        """Strength times the dial's one value.

        Raises:
            ConfigError: the dial has different values for its rows.
        """
        return self.strength if self.dial is None else self.strength * self.dial.scalar

    def part(self, tensor: Tensor) -> Tensor:
        """Of the target's weight the rows and columns that the layer acts on, or of its bias the rows; a view."""
        if self.target.rows is not None:
            tensor = tensor[self.target.rows]
        return tensor if self.columns is None or tensor.ndim < 2 else tensor[:, :self.columns]


@dataclass(frozen=True)
class Leftover:
    """A network's layer that can't be put on, and why in words."""

    network: Network
    name: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """All effects, and the layers that have no home in this model."""

    effects: tuple[Effect, ...] = ()
    leftovers: tuple[Leftover, ...] = ()


def make_plan(networks: Iterable[tuple[Network, float | tuple[float, float] | Weighting]], targets: Mapping[tuple[str, str], Target],
              cut: Cut = lambda layer, ranks: layer.truncated(ranks)) -> Plan:
    """The plan for these networks, each with its strength: a number, (text encoder, unet) or a Weighting. The same whatever order they come in.

    A network given twice counts with the sum of its strengths; strength 0 does nothing.

    Args:
        networks: with their strengths.
        targets: from find_targets.
        cut: the layer of a layer's first ranks; it may keep those that it made.

    Raises:
        ConfigError: a strength is not a finite number, or what should have one is no network.
    """
    ordered = sorted((_pair(item) for item in networks), key=_order)
    sums: dict[tuple, list] = {}
    leftovers: dict[tuple[int, str], Leftover] = {}
    for network, weighting in ordered:
        leftovers.update({(id(network), key): Leftover(network, key, _REPLACES) for key in network.replacing})
        for name, layer in network.layers.items():
            target = targets.get(network.targets.get(name, ("", "")))
            try:
                used, columns = _home(layer, target, weighting.ranks, cut)
            except ConfigError as error:
                leftovers[id(network), name] = Leftover(network, name, str(error))
                continue
            strength, dial = weighting.of(*target.key)
            entry = sums.setdefault((id(target), id(used), id(dial)), [target, used, 0.0, dial, columns])
            entry[2] += strength
    return Plan(tuple(Effect(*entry) for entry in sums.values() if entry[2]), tuple(leftovers.values()))


def _pair(item: object) -> tuple[Network, Weighting]:
    network, strength = item if isinstance(item, tuple | list) and len(item) == 2 else (None, None)
    if not isinstance(network, Network):
        raise ConfigError(f"{shown(item, 60)} is no network with its strength; give pairs, like (open_network(path), 0.8)")
    return network, as_weighting(strength)


def _order(item: tuple[Network, Weighting]) -> tuple:
    network, weighting = item
    numbers = (0.0 if isinstance(strength, Dial) else strength for strength in (weighting.te, weighting.unet))
    return (str(network.path or ""), *numbers, weighting.ranks or 0)


def _home(layer: Layer, target: Target | None, ranks: int | None, cut: Cut) -> tuple[Layer, int | None]:
    """The layer as it acts on the target, and on how many of its columns (None: all).

    Raises:
        ConfigError: it can't, and why.
    """
    if target is None:
        raise ConfigError("the model has no such layer")
    columns = None
    if not layer.fits(target.shape):
        columns = _PICTURE_CHANNELS
        if target.name != "conv_in" or len(target.shape) != 4 or not layer.fits((target.shape[0], columns, *target.shape[2:])):
            raise ConfigError(f"made for another shape than the model's {list(target.shape)}")
    if target.fused and not target.module._parameters[target.weight].is_floating_point():
        raise ConfigError("its weight is quantised and fused with others")
    return (layer if ranks is None else cut(layer, ranks)), columns
