"""A loaded network: its layers by name and what its file says about itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from lib_lycoris.networks.layer import Layer


@dataclass(frozen=True, eq=False)
class Network:
    """Layers by the module path that the file spells, metadata as text, where it came from, and how many bytes its tensors take."""

    layers: Mapping[str, Layer]
    metadata: dict[str, str] = field(default_factory=dict)
    path: Path | None = None
    nbytes: int = 0
    unused: tuple[str, ...] = ()
    """Keys of the file that belong to no layer: an embedding packed with it, a stray `scalar`."""
    replacing: tuple[str, ...] = ()
    """Those among `unused` that would take the place of the model's own parameters (PEFT's `bias` and `modules_to_save`), which nothing here does."""
    targets: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """For each key of `layers` the (component, name) that files.spelling.normal_name gives it; a layer without one finds no home in a model."""
    embeddings: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """Textual inversions that are packed with the network: {name: {part of the file's key: tensor}}, read from the file when they are asked for."""
