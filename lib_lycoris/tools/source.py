"""The network that a user names: a file, a PEFT folder, or the folder of several that diffusers' scripts write (unet, text_encoder, text_encoder_2)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from lib_lycoris.errors import NetworkFileError, shown
from lib_lycoris.files.metadata import read_base_model
from lib_lycoris.files.spelling import normal_name
from lib_lycoris.library.load import open_network
from lib_lycoris.networks.layer import Layer
from lib_lycoris.networks.network import Network
from lib_lycoris.tools.names import SDXL, Key
from lib_lycoris.tools.products import dense_shape

BUNDLE = "bundle_emb."
PEFT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
COMPONENT_FOLDERS = {"unet": "unet", "text_encoder": "te1", "text_encoder_2": "te2"}

# Columns of a cross-attention's keys, and rows of it, in each base model.
_CONTEXTS = {"sd_v1": (768, (320, 640, 1280)), "sd_v2": (1024, (320, 640, 1280)), SDXL: (2048, (640, 1280))}


def open_source(path: str | os.PathLike[str]) -> Network:
    """The network at `path`: a file as open_network takes it, or a folder with one or several PEFT adapters, joined; targets always filled.

    Raises:
        NetworkFileError: there is none, or it can't be used.
    """
    if not os.path.isdir(path):
        return open_network(path)
    parts = {folder: _adapter_file(Path(path) / folder) for folder in ("", *COMPONENT_FOLDERS)}
    parts = {folder: file for folder, file in parts.items() if file is not None}
    if not parts:
        raise NetworkFileError(f"{shown(path)} is a folder without {PEFT_FILES[0]}, also in {', '.join(COMPONENT_FOLDERS)}; name a network file")
    return _joined(Path(path), {folder: open_network(file) for folder, file in parts.items()})


def source_files(path: str | os.PathLike[str]) -> list[Path]:
    """The files that `open_source` would read: the file itself, or a folder's adapters."""
    if not os.path.isdir(path):
        return [Path(path)]
    return [file for folder in ("", *COMPONENT_FOLDERS) if (file := _adapter_file(Path(path) / folder)) is not None]


def layers_by_target(network: Network) -> dict[Key, Layer]:
    """The layers by (component, name).

    Raises:
        NetworkFileError: two of them are for one module.
    """
    found: dict[Key, Layer] = {}
    for name, layer in network.layers.items():
        key = network.targets.get(name) or normal_name(name)
        if key in found:
            raise NetworkFileError(f"{shown(network.path)}: two layers are for {shown(' '.join(key))}, one of them {shown(name)}; get the file again")
        found[key] = layer
    return found


def find_base_model(layers: Mapping[Key, Layer], metadata: Mapping[str, str]) -> str | None:
    """"sd_v1", "sd_v2" or "sdxl_base_v1-0" from the metadata, else from the layers and the width of conditioning that they fit; None where nothing tells."""
    said = read_base_model(metadata)
    if said is not None:
        return said
    unet = [name for component, name in layers if component == "unet"]
    if any(component == "te2" for component, _ in layers) or any("_transformer_blocks_1_" in name or name.startswith("add_embedding") for name in unet):
        return SDXL
    for (component, name), layer in layers.items():
        if component == "unet" and name.endswith(("_attn2_to_k", "_attn2_to_v")):
            shape = dense_shape(layer)
            fitting = [base for base, (width, rows) in _CONTEXTS.items() if any(layer.fits((out, width)) for out in ((*rows, shape[0]) if shape else rows))]
            if len(fitting) == 1:
                return fitting[0]
    return None


def packed_embeddings(networks: Sequence[Network]) -> dict[str, Tensor]:
    """The textual inversions that are packed with the networks, under the names that kohya's files have for them; of two of one name the first."""
    packed: dict[str, Tensor] = {}
    for network in networks:
        for name, parts in network.embeddings.items():
            for part, tensor in parts.items():
                packed.setdefault(f"{BUNDLE}{name}.{part}", tensor)
    return packed


def stray_keys(network: Network) -> list[str]:
    """Keys that belong neither to a layer nor to a packed embedding."""
    return [key for key in network.unused if not key.startswith(BUNDLE) and key not in network.embeddings]


def own_dtype(networks: Sequence[Network]) -> torch.dtype:
    """The dtype that holds every tensor of these networks without rounding: theirs where they agree, else float32."""
    counts = Counter(
        tensor.dtype
        for network in networks for layer in network.layers.values() for name, tensor in layer.tensors().items()
        if tensor.is_floating_point() and name not in ("alpha", "scale")
    )
    return next(iter(counts)) if len(counts) == 1 and next(iter(counts)).itemsize < 4 else torch.float32


def _adapter_file(folder: Path) -> Path | None:
    return next((folder / name for name in PEFT_FILES if (folder / name).is_file()), None)


def _joined(path: Path, parts: Mapping[str, Network]) -> Network:
    layers, targets, metadata, unused, nbytes = {}, {}, {}, [], 0
    for folder, network in parts.items():
        for name, layer in network.layers.items():
            joined = f"{folder}.{name}" if folder else name
            component, target = network.targets[name]
            layers[joined] = layer
            # an adapter of the second text encoder spells its layers like one of the first
            targets[joined] = (COMPONENT_FOLDERS.get(folder, component), target)
        metadata.update(network.metadata)
        unused += network.unused
        nbytes += network.nbytes
    networks = list(parts.values())
    first = networks[0]
    replacing = tuple(key for network in networks for key in network.replacing)
    embeddings = {name: parts for network in reversed(networks) for name, parts in network.embeddings.items()}
    gathered = {"unused": tuple(unused), "replacing": replacing, "targets": targets, "embeddings": embeddings}
    return replace(first, layers=layers, metadata=metadata, path=path, nbytes=nbytes, **gathered)
