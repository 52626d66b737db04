"""From a file to a network."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lib_lycoris.errors import ConfigError, NetworkFileError, shown
from lib_lycoris.files import peft
from lib_lycoris.files.keys import describe_foreign, split_key
from lib_lycoris.files.reader import TensorFile, open_tensor_file
from lib_lycoris.files.spelling import normal_name
from lib_lycoris.networks.kinds import build_layer, is_parameter
from lib_lycoris.networks.network import Network

# Parameters that other files have too: none of them makes a network on its own.
_UNTELLING = {"alpha", "scale", "rescale", "diff"}


def open_network(path: str | os.PathLike[str], alpha: float | None = None, init_rank: int | None = None) -> Network:
    """The network in the file at `path`: .safetensors, .pt, .ckpt, .bin, or a PEFT folder's adapter_model.safetensors with the config beside it.

    Args:
        path: the file; its form is told by its content.
        alpha: for layers whose alpha neither the file nor a config says; none means scale 1.
        init_rank: the rank that an AdaLoRA started with, where no config says it.

    Raises:
        NetworkFileError: the file can't be read, is damaged, none of ours, not finite, of a kind not supported yet, or a pickle that would run code.
        ConfigError: `alpha` is not a finite number, or `init_rank` not a whole number of at least 1.
    """
    _check_arguments(alpha, init_rank)
    file = open_tensor_file(path)
    grouped, unused = _group(file)
    if not any(name not in _UNTELLING for parameters in grouped.values() for name in parameters):
        raise NetworkFileError(f"{shown(path)} {_what_else(file)}")
    try:
        return _build(path, file, grouped, unused, alpha)
    except NetworkFileError as error:
        raise error if str(error).startswith(shown(path)) else NetworkFileError(f"{shown(path)}: {error}") from error


def _build(path: str | os.PathLike[str], file: TensorFile, grouped: Mapping[str, Mapping[str, str]], unused: list[str], alpha: float | None) -> Network:
    config = peft.read_config(path) if _is_peft(path, file) else {}
    alpha_of = peft.alpha_from_config(config) if config else peft.alpha_from_diffusers(file.metadata)
    values = file.read()
    layers = {}
    for name, parameters in grouped.items():
        tensors = {parameter: values[key] for parameter, key in parameters.items()}
        layers[name] = build_layer(name, _with_alpha(name, tensors, alpha_of, alpha))
    nbytes = sum(values[key].numel() * values[key].element_size() for parameters in grouped.values() for key in parameters.values())
    metadata = {**peft.config_as_metadata(config), **file.metadata}
    targets = {name: normal_name(name) for name in layers}
    return Network(layers, metadata, Path(path), nbytes, unused=tuple(unused), targets=targets)


def _check_arguments(alpha: float | None, init_rank: int | None) -> None:
    if alpha is not None and not math.isfinite(alpha):
        raise ConfigError(f"alpha {alpha} is not a finite number; leave it out to take the file's")
    if init_rank is not None and (isinstance(init_rank, bool) or not isinstance(init_rank, int) or init_rank < 1):
        raise ConfigError(f"init_rank {shown(init_rank)} is not a whole number of at least 1; leave it out to take the file's")


def _group(file: TensorFile) -> tuple[dict[str, dict[str, str]], list[str]]:
    """The file's keys as {module path: {parameter: key}}, and those that are no layer's."""
    grouped: dict[str, dict[str, str]] = {}
    unused = []
    for key in file.names:
        parts = split_key(key)
        if parts is not None:
            grouped.setdefault(parts[0], {})[parts[1]] = key
        if parts is None or not is_parameter(parts[1]):
            unused.append(key)
    return grouped, unused


def _is_peft(path: str | os.PathLike[str], file: TensorFile) -> bool:
    # a config in the same folder belongs to PEFT's own file, not to any other that lies there
    return Path(path).stem == "adapter_model" or any(name.startswith("base_model.model.") for name in file.names)


def _with_alpha(name: str, tensors: dict[str, Tensor], alpha_of: peft.AlphaOf, fallback: float | None) -> dict[str, Tensor]:
    """The layer's tensors with the alpha that a config or the caller says, where the file itself says none."""
    down = tensors.get("lora_down.weight")
    if "alpha" in tensors or "scale" in tensors or down is None or down.ndim < 2:
        return tensors
    alpha = alpha_of(name.removeprefix("base_model.model."), down.shape[0])
    alpha = fallback if alpha is None else alpha
    return tensors if alpha is None else {**tensors, "alpha": torch.tensor(alpha, dtype=torch.float64)}


def _what_else(file: TensorFile) -> str:
    foreign = describe_foreign(file.names)
    if foreign is not None:
        return f"is no LoRA-like network but {foreign}"
    examples = ", ".join(shown(name, 60) for name in file.names[:3]) or "nothing"
    return f"is no network that is known here (it holds {examples}); choose a LoRA or LoCon file"
