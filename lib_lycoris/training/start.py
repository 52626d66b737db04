"""A training that goes on from a network file: its numbers in the fresh layers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..errors import ConfigError, NetworkFileError, shown
from ..library.load import read_network
from ..networks.layer import Layer
from ..patching.targets import Target
from .config import TrainConfig
from .methods import make_method
from .selection import Key

_KEY = "network.start_from"


def check_start(config: TrainConfig, targets: Mapping[Key, Target], steps: int) -> None:
    """Returns where the training can go on from the network file that the config names.

    Raises:
        ConfigError: as `start_from`.
    """
    assert config.network.start_from is not None
    start_from(config.network.start_from, make_method(config.network, targets, steps, 0, torch.device("cpu")).layers)


@torch.no_grad()
def start_from(path: str, layers: Mapping[Key, nn.Module]) -> None:
    """Takes the numbers of a network file's layers into these; both must be the same layers, of one kind, rank and alpha. AdaLoRA goes on from PEFT's form.

    Raises:
        ConfigError: the file can't be read, or a layer is another; none was changed then.
    """
    try:
        network = read_network(path)
    except (NetworkFileError, OSError) as error:
        raise ConfigError(f"{_KEY} = {shown(path)}: {error}") from error
    found: dict[Key, Layer] = {network.targets[name]: layer for name, layer in network.layers.items() if name in network.targets}
    for key, layer in layers.items():
        if key in found:
            _check_kind(_where(path, key), found[key], layer)
    for key in found:
        if key not in layers:
            raise ConfigError(f"{_KEY} = {shown(path)}: it has a layer {_name(key)}, which the settings of [network] do not train; add it to them")
    pairs = {key: (layer, _fitting(path, key, layer, found.get(key))) for key, layer in layers.items()}
    for layer, own in pairs.values():
        values = dict(own.named_parameters())
        for name, parameter in layer.named_parameters():
            parameter.copy_(values[name].reshape(parameter.shape))


def _fitting(path: str, key: Key, layer: nn.Module, own: Layer | None) -> nn.Module:
    """The file's layer, if its numbers mean the same in the fresh one.

    Raises:
        ConfigError: they do not.
    """
    where = _where(path, key)
    if own is None:
        raise ConfigError(f"{where} is not in it, and the settings of [network] train it; leave it out of them")
    _check_kind(where, own, layer)
    held, wanted = _shapes(own), _shapes(layer)
    if held.keys() != wanted.keys():
        raise ConfigError(f"{where} has {', '.join(sorted(held))}, the settings make {', '.join(sorted(wanted))}; use the settings it was made with")
    for name, shape in wanted.items():
        # a 1×1 kernel may be written out or not
        if [size for size in held[name] if size != 1] != [size for size in shape if size != 1]:
            raise ConfigError(f"{where} has {name} {held[name]}, the settings make {shape}; use the rank and factors it was made with")
    if _scale(own) != _scale(layer):
        raise ConfigError(f"{where} has the scale {_scale(own):g} (alpha / rank), the settings give {_scale(layer):g}; use the alpha it was made with")
    return own


def _where(path: str, key: Key) -> str:
    return f"{_KEY} = {shown(path)}: layer {_name(key)}"


def _check_kind(where: str, own: Layer, layer: nn.Module) -> None:
    if _kind(own) != _kind(layer):
        raise ConfigError(f"{where} is of kind {_kind(own)}, the settings make {_kind(layer)}; use the same network.kind" + _pruned(own, layer))


def _kind(layer: Layer) -> str:
    return f"{layer.algorithm} with DoRA" if hasattr(layer, "inner") else layer.algorithm


def _pruned(own: Layer, layer: nn.Module) -> str:
    return "; AdaLoRA goes on from a file in PEFT's form" if (own.algorithm, layer.algorithm) == ("lora", "adalora") else ""


def _scale(layer: Layer) -> float:
    """alpha / rank, to single precision as a file has it; 1 for kinds without."""
    scale = getattr(getattr(layer, "inner", layer), "scale", 1.0)
    return float(torch.tensor(scale() if callable(scale) else scale, dtype=torch.float32))


def _shapes(layer: nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in layer.named_parameters()}


def _name(key: Key) -> str:
    return shown(f"{key[0]}.{key[1]}")
