"""What is to be done, before anything is: which layer of which network goes to which target, with what strength."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lib_lycoris.errors import ConfigError
from lib_lycoris.networks.layer import Layer
from lib_lycoris.networks.network import Network

from .targets import Target


@dataclass(frozen=True)
class Effect:
    """One layer of a network on one target, with its strength (1.0 = as trained)."""

    target: Target
    layer: Layer
    strength: float


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


def make_plan(networks: Iterable[tuple[Network, float | tuple[float, float]]], targets: Mapping[tuple[str, str], Target]) -> Plan:
    """The plan for these networks, each with its strength: a number, or (text encoder, unet). The same whatever order they come in.

    A network given twice counts with the sum of its strengths; strength 0 does nothing.

    Raises:
        ConfigError: a strength is not a finite number.
    """
    ordered = sorted(((network, _pair(strength)) for network, strength in networks), key=lambda item: (str(item[0].path or ""), item[1]))
    sums: dict[tuple[int, int], list] = {}
    leftovers: dict[tuple[int, str], Leftover] = {}
    for network, (te, unet) in ordered:
        for name, layer in network.layers.items():
            target = targets.get(network.targets.get(name, ("", "")))
            reason = _misfit(layer, target)
            if reason:
                leftovers[id(network), name] = Leftover(network, name, reason)
                continue
            strength = unet if target.component == "unet" else te
            entry = sums.setdefault((id(target), id(layer)), [target, layer, 0.0])
            entry[2] += strength
    return Plan(tuple(Effect(*entry) for entry in sums.values() if entry[2]), tuple(leftovers.values()))


def _pair(strength: float | tuple[float, float]) -> tuple[float, float]:
    te, unet = strength if isinstance(strength, tuple) else (strength, strength)
    if not (math.isfinite(te) and math.isfinite(unet)):
        raise ConfigError(f"strength {strength} is not a finite number; give a number like 0.8, or (text encoder, unet)")
    return float(te), float(unet)


def _misfit(layer: Layer, target: Target | None) -> str:
    """Why the layer can't go to the target; empty when it can."""
    if target is None:
        return "the model has no such layer"
    if not layer.fits(target.shape):
        return f"made for another shape than the model's {list(target.shape)}"
    if target.fused and not target.module._parameters[target.weight].is_floating_point():
        return "its weight is quantised and fused with others"
    return ""
