"""Networks made up for the targets of a tree, the slow reference of what they do, and a look at what is on a tree's modules."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from lib_lycoris.networks.low_rank import LowRankLayer
from lib_lycoris.networks.network import Network


def generator(seed):
    return torch.Generator().manual_seed(seed)


def random_layer(shape, seed, rank=2, bias=False, dtype=torch.float32):
    draw = generator(seed)
    down = torch.randn(rank, *shape[1:], generator=draw) * 0.3
    up = torch.randn(shape[0], rank, *(1 for _ in shape[2:]), generator=draw) * 0.3
    return LowRankLayer(down.to(dtype), up.to(dtype), alpha=1.0, bias=torch.randn(shape[0], generator=draw).to(dtype) if bias else None)


def random_network(targets, seed, names=None, bias=False, path=None, **options):
    """A network with a layer for every target that can have one (or for those whose name contains one of `names`)."""
    layers, homes = {}, {}
    for number, (key, target) in enumerate(targets.items()):
        if len(target.shape) > 1 and not isinstance(target.module, nn.Embedding) and (names is None or any(name in key[1] for name in names)):
            name = f"lora_{key[0]}_{key[1]}"
            layers[name], homes[name] = random_layer(target.shape, seed * 1000 + number, bias=bias, **options), key
    return Network(layers=layers, targets=homes, path=path if path is None else Path(path))


def merge_by_hand(targets, networks):
    """Adds up − in float64, one layer after the other − what the networks' factors say, into the tree itself."""
    for network, strength in networks:
        te, unet = strength if isinstance(strength, tuple) else (strength, strength)
        for name, layer in network.layers.items():
            target = targets[network.targets[name]]
            factor = (unet if target.component == "unet" else te) * layer.alpha / layer.rank
            weight = getattr(target.module, target.weight)
            rows = target.rows or slice(None)
            delta = torch.einsum("or,ri->oi", layer.lora_up.weight.double().flatten(1), layer.lora_down.weight.double().flatten(1))
            weight.data[rows] = (weight.data[rows].double() + factor * delta.reshape(weight.data[rows].shape)).to(weight.dtype)
            if layer.lora_up.bias is not None:
                if getattr(target.module, target.bias) is None:
                    setattr(target.module, target.bias, nn.Parameter(torch.zeros(weight.shape[0], dtype=weight.dtype)))
                bias = getattr(target.module, target.bias)
                bias.data[rows] = (bias.data[rows].double() + factor * layer.lora_up.bias.double()).to(bias.dtype)


def photograph(tree):
    """Everything that patching might change: which objects the parameters are, their bits, and the hooks."""
    parameters = [(name, parameter, parameter.detach().clone(), parameter._version) for name, parameter in tree.named_parameters()]
    hooks = [{field: dict(value) for field, value in vars(module).items() if "hook" in field and isinstance(value, dict)}
             for module in tree.modules()]
    attributes = [set(vars(module)) - {"error", "inside", "go"} for module in tree.modules()]  # without those that tests set
    return parameters, hooks, attributes, list(tree.state_dict())


def assert_untouched(tree, before):
    """The tree is as it was photographed: same objects, same bits, same hooks, same attributes."""
    after = photograph(tree)
    assert [(name, id(parameter)) for name, parameter, _, _ in after[0]] == [(name, id(parameter)) for name, parameter, _, _ in before[0]]
    assert all(torch.equal(now, then) for (_, _, now, _), (_, _, then, _) in zip(after[0], before[0], strict=True))
    assert after[1:] == before[1:]


def assert_own_parameters(tree, before):
    """At rest every module holds its own tensors (hooks may be on)."""
    assert [(name, id(parameter)) for name, parameter in tree.named_parameters()] == [(name, id(parameter)) for name, parameter, _, _ in before[0]]
    assert all(torch.equal(parameter, then) for (_, parameter), (_, _, then, _) in zip(tree.named_parameters(), before[0], strict=True))
