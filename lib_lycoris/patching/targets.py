"""The layers of a model that a network can act on, found in LDM's and in diffusers' module trees alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from lib_lycoris.errors import ConfigError, shown

from . import naming

KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.LayerNorm, nn.GroupNorm, nn.Embedding)
"""Classes of layers that are targets; nn.MultiheadAttention is four (q, k, v, out)."""


@dataclass(frozen=True, eq=False)
class Target:
    """A layer of the model: where its parameters are, and which module's forward uses them.

    Attributes:
        component: "unet", "te1" or "te2".
        name: diffusers' path with "_" for ".": "down_blocks_0_attentions_0_proj_in".
        module: holds the parameters.
        hooked: whose forward reads them: `module`, but the nn.MultiheadAttention for its `out_proj`, which is never called itself.
        weight: the weight's name in `module`.
        bias: the bias' name in `module`, which may hold None there; None where its class knows no bias.
        rows: the part of the parameters that is this layer's (q, k or v of a fused projection), or None for all.
    """

    component: str
    name: str
    module: nn.Module
    hooked: nn.Module
    weight: str = "weight"
    bias: str | None = None
    rows: slice | None = None

    @property
    def key(self) -> tuple[str, str]:
        """(component, name)."""
        return self.component, self.name

    @property
    def shape(self) -> torch.Size:
        """The shape of this layer's weight, [O,I], [O,I,K,K] or [D]; for a linear layer as it says itself, as quantised weights are packed."""
        if isinstance(self.module, nn.Linear):
            return torch.Size((self.module.out_features, self.module.in_features))
        shape = self.module._parameters[self.weight].shape
        return shape if self.rows is None else torch.Size((self.rows.stop - self.rows.start, *shape[1:]))

    @property
    def fused(self) -> bool:
        """Whether the layer's own output can't be seen, because the module that reads its weight does more in one go."""
        return isinstance(self.hooked, nn.MultiheadAttention)


class Targets(Mapping):
    """All targets of a model. Iterates over the keys as files.spelling.normal_name gives them; looks up LDM's and the tree's own spelling too."""

    def __init__(self) -> None:
        self._targets: dict[tuple[str, str], Target] = {}
        self._spellings: dict[tuple[str, str], Target] = {}

    def add(self, target: Target, spellings: Sequence[str] = ()) -> None:
        """Takes in a target, also under other spellings of its name where those are still free."""
        self._targets.setdefault(target.key, target)
        for spelling in spellings:
            self._spellings.setdefault((target.component, spelling), target)

    def __getitem__(self, key: tuple[str, str]) -> Target:
        return self._targets[key] if key in self._targets else self._spellings[key]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._targets)

    def __len__(self) -> int:
        return len(self._targets)


def find_targets(unet: nn.Module | None, text_encoders: Sequence[nn.Module | None] = ()) -> Targets:
    """The targets of a UNet and its text encoders.

    Args:
        unet: a UNet in LDM's or diffusers' naming, or a module that holds one; None for none.
        text_encoders: te1, te2: transformers' CLIPTextModel, open_clip's text model, or modules that hold one; None for one that the model lacks (te1 of
            SDXL's refiner).

    Raises:
        ConfigError: one of them is no module, or `text_encoders` is one by itself.
    """
    text_encoders = _checked(unet, text_encoders)
    targets = Targets()
    if unet is not None:
        root = naming.unet_root(unet)
        names = naming.unet_names(root)
        _add_all(targets, "unet", root, names)
    for number, tree in enumerate(text_encoders, start=1):
        if tree is not None:
            _add_all(targets, f"te{number}", tree, naming.text_encoder_names(tree))
    return targets


def _checked(unet: object, text_encoders: Iterable) -> tuple[nn.Module | None, ...]:
    if isinstance(text_encoders, nn.Module) and not isinstance(text_encoders, nn.ModuleList):
        raise ConfigError(f"text_encoders is a {type(text_encoders).__name__} by itself; give a list of them, te1 first: [text_encoder]")
    text_encoders = tuple(text_encoders)
    for tree in (unet, *text_encoders):
        if tree is not None and not isinstance(tree, nn.Module):
            raise ConfigError(f"{shown(tree, 60)} ({type(tree).__name__}) is no module: give a UNet and a list of text encoders, as torch.nn.Module")
    return text_encoders


def _add_all(targets: Targets, component: str, root: nn.Module, names: Mapping[str, Sequence[str]]) -> None:
    inside_attention: set[nn.Module] = set()
    for path, module in root.named_modules():
        if path not in names:
            continue
        spellings = [name.replace(".", "_") for name in dict.fromkeys((*names[path], path))]
        if isinstance(module, nn.MultiheadAttention):
            inside_attention.add(module.out_proj)
            for target, suffix in _attention_parts(component, spellings[0], module):
                targets.add(target, [f"{spelling}_{suffix}" for spelling in spellings])
        elif isinstance(module, KINDS) and module not in inside_attention and module._parameters.get("weight") is not None:
            targets.add(Target(component, spellings[0], module, module, bias=_bias(module, "bias")), spellings)


def _attention_parts(component: str, name: str, module: nn.MultiheadAttention) -> Iterator[tuple[Target, str]]:
    if module._parameters.get("in_proj_weight") is not None:
        width = module.embed_dim
        for number, part in enumerate("qkv"):
            rows = slice(number * width, (number + 1) * width)
            yield Target(component, f"{name}_{part}_proj", module, module, "in_proj_weight", _bias(module, "in_proj_bias"), rows), f"{part}_proj"
    yield Target(component, f"{name}_out_proj", module.out_proj, module, "weight", _bias(module.out_proj, "bias")), "out_proj"


def _bias(module: nn.Module, name: str) -> str | None:
    return name if name in module._parameters else None
