"""CLIP's picture encoder from a file that the user has; nothing is downloaded."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from lib_lycoris.errors import NetworkFileError, shown
from lib_lycoris.files.reader import open_tensor_file
from lib_lycoris.library.walk import walk_folders
from lib_lycoris.networks.clip_vision import HEAD, ClipVision

EXTENSIONS = (".safetensors", ".bin", ".pth", ".pt")
_PATCHES = "embeddings.patch_embedding.weight"


def open_clip_vision(path: str | os.PathLike[str]) -> ClipVision:
    """The picture encoder of a file of Hugging Face's making: a CLIPVisionModel's, or a whole CLIPModel's. In float32 on the CPU.

    Raises:
        NetworkFileError: the file can't be read, or holds no such encoder.
    """
    file = open_tensor_file(Path(path))
    prefix = _prefix(file.names)
    if prefix is None:
        raise NetworkFileError(f"{shown(path)} holds no picture encoder of CLIP as Hugging Face spells it; get clip-vit-large-patch14's model.safetensors")
    shapes = {name.removeprefix(prefix): shape for name, shape in file.shapes.items() if name.startswith(prefix)}
    layers = len({match[1] for name in shapes if (match := re.match(r"encoder\.layers\.(\d+)\.", name))})
    try:
        width, _, patch, _ = shapes[_PATCHES]
        side = patch * round((shapes["embeddings.position_embedding.weight"][0] - 1) ** 0.5)
        encoder = ClipVision(width, layers, patch, side, shapes["encoder.layers.0.mlp.fc1.weight"][0])
        wanted = encoder.state_dict()
        fits = width % HEAD == 0 and all(tuple(shapes[name]) == tuple(tensor.shape) for name, tensor in wanted.items())
    except (KeyError, ValueError):
        fits = False
    if not fits:
        raise NetworkFileError(f"{shown(path)}: its picture encoder is incomplete, or not CLIP's; get clip-vit-large-patch14's model.safetensors")
    values = file.read([prefix + name for name in wanted], check=True)
    encoder.load_state_dict({name: values[prefix + name].float() for name in wanted})
    return encoder.requires_grad_(False).eval()


def find_clip_vision(places: Iterable[str | os.PathLike[str]], width: int) -> Path | None:
    """The first file among files and folders whose picture encoder is so wide (1024: ViT-L/14); only headers are read."""
    for place in map(Path, places):
        files = [place] if place.is_file() else sorted(Path(folder, file) for folder, files in walk_folders(place) for file in files)
        for path in files:
            if path.suffix.lower() in EXTENSIONS and path.is_file() and _width(path) == width:
                return path
    return None


def _width(path: Path) -> int | None:
    try:
        file = open_tensor_file(path)
        prefix = _prefix(file.names)
        return None if prefix is None else file.shapes[prefix + _PATCHES][0]
    except (NetworkFileError, OSError, IndexError):
        return None


def _prefix(names: Iterable[str]) -> str | None:
    return next((name.removesuffix(_PATCHES) for name in names if name.endswith(_PATCHES) and "text" not in name), None)
