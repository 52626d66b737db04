"""A network of smaller ranks: per layer the best approximation of its ΔW."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from lib_lycoris.functional.truncation import matrix_svd, product_svd
from lib_lycoris.networks.layer import Layer
from lib_lycoris.tools.facts import RECIPE, carried_metadata, network_facts, single_file, write_network
from lib_lycoris.tools.low_rank import like_tensor, low_rank_parts
from lib_lycoris.tools.names import Key
from lib_lycoris.tools.products import dense_delta, exact_product, needs_base, only_bias
from lib_lycoris.tools.source import find_base_model, layers_by_target, open_source, own_dtype, packed_embeddings
from lib_lycoris.tools.truncate import Keep, Kept, truncated

OnStep = Callable[[int, int], None]


@dataclass
class Resized:
    """What came of it: the file, its bytes and the source's, ranks and energies, and lines for the user."""

    path: Path
    nbytes: int
    bytes_before: int
    kept: Kept
    notes: list[str] = field(default_factory=list)


def resize(path: str | os.PathLike[str], out: str | os.PathLike[str], rank: int | None = None, energy: float | None = None,
           dtype: torch.dtype | None = None, on_step: OnStep | None = None) -> Resized:
    """Writes the network at `path` with smaller ranks to `out`, as LoCon whatever kind it was; alpha is the rank, so that every reader takes scale 1.

    Args:
        path: a network file or PEFT folder.
        out: a .safetensors file.
        rank: the most ranks of a layer; or
        energy: the share of each layer's squared singular values to keep, above 0 up to 1; 1 drops only ranks that do nothing.
        dtype: what to store; None: what the source has.
        on_step: told how many layers are done, of how many.

    Raises:
        ConfigError: a bad argument.
        NetworkFileError: the file can't be used, or its ΔW depends on a base weight.
        LycoError: the output can't be written.
    """
    keep = Keep(rank, energy)
    out = single_file(out, path)
    network = open_source(path)
    layers = layers_by_target(network)
    base_model = find_base_model(layers, network.metadata)
    dtype = dtype or own_dtype([network])
    kept, smaller, empty = Kept(), {}, 0
    for place, (key, layer) in enumerate(layers.items(), start=1):
        parts = _resized(key, layer, keep, kept, base_model, dtype)
        if parts is None:
            empty += 1
        else:
            smaller[key] = parts
        if on_step is not None:
            on_step(place, len(layers))
    wish = f"rank {rank}" if rank is not None else f"energy {energy:g}"
    facts = {**carried_metadata(network.metadata), **network_facts(smaller, base_model, out.stem), RECIPE: f"resize {Path(path).stem} to {wish}"}
    result = Resized(out, write_network(out, smaller, facts, base_model, packed_embeddings([network])), network.nbytes, kept)
    if empty:
        result.notes.append(f"layers that change nothing, left out: {empty}")
    return result


def _resized(key: Key, layer: Layer, keep: Keep, kept: Kept, base_model: str | None, dtype: torch.dtype) -> dict[str, Tensor] | None:
    """The layer's new tensors; None for one that does nothing. A norm's weights, which have no rank, stay as they are."""
    if getattr(layer, "weight_dependent", False):
        raise needs_base(layer, key[1])
    if only_bias(layer):
        return dict(layer.tensors())
    bias = layer.delta_bias(None)
    product = exact_product(layer)
    if product is None:
        delta = dense_delta(layer, key[1])
        if delta.ndim < 2:
            return dict(layer.tensors())
        parts = truncated(*matrix_svd(delta.flatten(1)), keep, kept)
    else:
        parts = truncated(*product_svd(*product), keep, kept)
    return None if parts is None else low_rank_parts(key, parts, base_model, dtype, False, like_tensor(layer), bias)
