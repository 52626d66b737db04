"""Several networks as one: their factors side by side, which is exact, or by SVD to a rank."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from lib_lycoris.errors import ConfigError, NetworkFileError, shown
from lib_lycoris.functional.truncation import matrix_svd, product_svd
from lib_lycoris.networks.layer import Layer
from lib_lycoris.networks.network import Network
from lib_lycoris.tools.facts import RECIPE, common_metadata, fitted, network_facts, single_file, write_network
from lib_lycoris.tools.low_rank import like_tensor, low_rank_parts
from lib_lycoris.tools.names import Key
from lib_lycoris.tools.products import capped, dense_delta, exact_product, needs_base, only_bias
from lib_lycoris.tools.source import find_base_model, layers_by_target, open_source, own_dtype, packed_embeddings
from lib_lycoris.tools.truncate import Keep, Kept, truncated

OnStep = Callable[[int, int], None]
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


@dataclass(frozen=True)
class Part:
    """One network of a merge: its file, and its strengths on text encoders and UNet."""

    path: str
    te: float = 1.0
    unet: float = 1.0

    def strength(self, component: str) -> float:
        """The strength on a component."""
        return self.unet if component == "unet" else self.te

    def __str__(self) -> str:
        strengths = f"{self.unet:g}" if self.te == self.unet else f"te={self.te:g},unet={self.unet:g}"
        return f"{Path(self.path).stem}:{strengths}"


@dataclass
class Merged:
    """What came of it: the file, how many layers, its bytes, and lines for the user."""

    path: Path
    layers: int
    nbytes: int
    notes: list[str] = field(default_factory=list)


def read_part(text: str) -> Part:
    """The part that "FILE:0.8", "FILE:te=0.5,unet=1" or "FILE" (strength 1) means. A colon in the path, as of a drive of Windows, stays in it.

    Raises:
        ConfigError: there is no file name, or the strength is no finite number.
    """
    path, colon, tail = text.rpartition(":")
    if not colon or (re.search(r"[/\\]", tail) and not _NUMBER.match(tail)):
        return Part(_named(text, text))
    named = [piece.partition("=") for piece in tail.split(",")]
    if all(equals and name.strip() in ("te", "unet") for name, equals, _ in named):
        return Part(_named(path, text), **{name.strip(): _number(value.strip(), text) for name, _, value in named})
    strength = _number(tail.strip(), text)
    return Part(_named(path, text), strength, strength)


def merge(parts: Sequence[Part], out: str | os.PathLike[str], rank: int | None = None, dtype: torch.dtype | None = None,
          on_step: OnStep | None = None) -> Merged:
    """Writes one network to `out` whose ΔW is the sum of strength · ΔW over `parts`.

    Without `rank` the sum is exact: low-rank layers (LoRA, LoCon, AdaLoRA, LoHa, LoKr) put their factors side by side, so that ranks add up, and layers
    with a full difference become one. A layer whose ranks would exceed the full rank of its weight is multiplied out.

    Args:
        parts: the networks with their strengths.
        out: a .safetensors file.
        rank: the most ranks of a layer, by SVD of the sum.
        dtype: what to store, rounded; None: what the networks have, where that rounds nothing, else float32.
        on_step: told how many layers are done, of how many.

    Raises:
        ConfigError: a bad argument.
        NetworkFileError: a file can't be used, holds a kind that needs a base weight, or they are for different models.
        LycoError: the output can't be written.
    """
    keep = None if rank is None else Keep(rank=rank)
    out = single_file(out, *(part.path for part in parts))
    networks = [open_source(part.path) for part in parts]
    found = [layers_by_target(network) for network in networks]
    base_model = _common_base(parts, networks, found)
    kept, exact, dtype = Kept(), dtype is None and rank is None, dtype or own_dtype(networks)
    keys = list(dict.fromkeys(key for layers in found for key in layers))
    merged = {}
    for place, key in enumerate(keys, start=1):
        summands = [(layers[key], part.strength(key[0])) for layers, part in zip(found, parts, strict=True) if key in layers]
        made = _sum(key, [pair for pair in summands if pair[1]], keep, kept, _Form(base_model, dtype, exact))
        if made:
            merged[key] = made
        if on_step is not None:
            on_step(place, len(keys))
    if not merged:
        raise ConfigError("every strength is 0, so that nothing is left to write; give at least one network a strength")
    recipe = f"merge {' '.join(map(str, parts))}" + (f" to rank {rank}" if rank else "")
    facts = {**common_metadata([network.metadata for network in networks]), **network_facts(merged, base_model, out.stem), RECIPE: recipe}
    result = Merged(out, len(merged), write_network(out, merged, facts, base_model, packed_embeddings(networks)))
    if keep is not None:
        result.notes.append(kept.line())
    return result


@dataclass(frozen=True)
class _Form:
    """How low_rank_parts is to store a sum."""

    base_model: str | None
    dtype: torch.dtype
    exact: bool


def _sum(key: Key, summands: Sequence[tuple[Layer, float]], keep: Keep | None, kept: Kept, form: _Form) -> dict[str, Tensor] | None:
    """The tensors of the layer that is the sum of strength · layer; None for a sum of nothing."""
    for layer, _ in summands:
        if getattr(layer, "weight_dependent", False):
            raise needs_base(layer, key[1])
    bias = _sum_bias(summands)
    with_weight = [pair for pair in summands if not only_bias(pair[0])]
    if not with_weight:
        name = "b_norm" if any("b_norm" in layer.tensors() for layer, _ in summands) else "diff_b"
        return None if bias is None else {name: bias}
    summands = with_weight
    products = [exact_product(layer) for layer, _ in summands]
    like = next((tensor for layer, _ in summands if (tensor := like_tensor(layer)) is not None), None)
    if any(product is None for product in products):
        return _sum_dense(key, summands, keep, kept, form, like, bias)
    up = torch.cat([product[0] * strength for product, (_, strength) in zip(products, summands, strict=True)], dim=1)
    down = torch.cat([product[1] for product in products])
    if down.shape[0] == 0:
        return None
    if keep is None:
        return low_rank_parts(key, capped((up, down)), form.base_model, form.dtype, form.exact, like, bias)
    product = truncated(*product_svd(up, down), keep, kept)
    return None if product is None else low_rank_parts(key, product, form.base_model, form.dtype, False, like, bias)


def _sum_dense(key: Key, summands: Sequence[tuple[Layer, float]], keep: Keep | None, kept: Kept, form: _Form, like: Tensor | None,
               bias: Tensor | None) -> dict[str, Tensor] | None:
    deltas = [(dense_delta(layer, key[1]), strength) for layer, strength in summands]
    shape = max((delta.shape for delta, _ in deltas), key=len)
    total = sum(delta.reshape(shape) * strength for delta, strength in deltas)
    if len(shape) < 2:
        return {"w_norm": total} | ({} if bias is None else {"b_norm": bias})
    if keep is None:
        return {"diff": fitted(total, form.dtype, form.exact)} | ({} if bias is None else {"diff_b": bias})
    product = truncated(*matrix_svd(total.flatten(1)), keep, kept)
    return None if product is None else low_rank_parts(key, product, form.base_model, form.dtype, False, like, bias)


def _sum_bias(summands: Sequence[tuple[Layer, float]]) -> Tensor | None:
    biases = [(layer.delta_bias(None), strength) for layer, strength in summands]
    there = [bias.detach().float() * strength for bias, strength in biases if bias is not None]
    return sum(there) if there else None


def _common_base(parts: Sequence[Part], networks: Sequence[Network], found: Sequence[dict[Key, Layer]]) -> str | None:
    bases = {part.path: find_base_model(layers, network.metadata) for part, network, layers in zip(parts, networks, found, strict=True)}
    known = {base for base in bases.values() if base is not None}
    if len(known) > 1:
        said = ", ".join(f"{shown(Path(path).name, 60)} for {base}" for path, base in bases.items())
        raise NetworkFileError(f"the networks are for different base models ({said}); merge only those of one")
    return next(iter(known), None)


def _named(path: str, text: str) -> str:
    if not path:
        raise ConfigError(f"{shown(text)!r} names no file; give FILE:STRENGTH, for example my-cat.safetensors:0.8")
    return path


def _number(value: str, text: str) -> float:
    if not _NUMBER.fullmatch(value) or not math.isfinite(float(value)):
        raise ConfigError(f"{shown(text)!r}: strength {shown(value)!r} is no finite number; give FILE:0.8 or FILE:te=0.5,unet=1")
    return float(value)
