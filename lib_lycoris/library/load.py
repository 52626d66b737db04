"""From a file to a network."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from lib_lycoris.errors import ConfigError, NetworkFileError, shown
from lib_lycoris.files import peft
from lib_lycoris.files.embeddings import is_embedding
from lib_lycoris.files.keys import EMBEDDING, describe_foreign, is_whole_parameter
from lib_lycoris.files.reader import TensorFile, open_tensor_file
from lib_lycoris.library.arrangement import Arrangement, arrange
from lib_lycoris.library.lazy import LazyMapping
from lib_lycoris.networks.hints import Hints
from lib_lycoris.networks.kinds import build_layer, is_told_by_value
from lib_lycoris.networks.layer import Layer
from lib_lycoris.networks.network import Network

# The factor whose rows are the rank that a config speaks of.
_RANKED = ("lora_down.weight", "lora_A", "lora_embedding_A")


def open_network(path: str | os.PathLike[str], alpha: float | None = None, init_rank: int | None = None) -> Network:
    """The network in the file at `path`: .safetensors, .pt, .ckpt, .bin, or a PEFT folder's adapter_model.safetensors with the config beside it.

    Its tensors may be the system's own pages of a large file (files/memory.py): as long as the network lives, a file that another program cuts off in place
    ends this process. `read_network` copies.

    Args:
        path: the file; its form is told by its content.
        alpha: for layers whose alpha neither the file nor a config says; none means scale 1 (for AdaLoRA PEFT's default, 8).
        init_rank: the rank that an AdaLoRA started with, where no config says it; none: what the file says, or the largest rank that is in it.

    Raises:
        NetworkFileError: the file can't be read, is damaged, none of ours, not finite, or a pickle that would run code.
        ConfigError: `alpha` is not a finite number, or `init_rank` not a whole number of at least 1.
    """
    return read_network(path, alpha, init_rank, mapped=True)


def read_network(path: str | os.PathLike[str], alpha: float | None = None, init_rank: int | None = None, mapped: bool = False) -> Network:
    """The same, its tensors a copy that nothing else holds, unless `mapped`.

    Raises:
        NetworkFileError, ConfigError: as `open_network`.
    """
    _check_arguments(alpha, init_rank)
    file = open_tensor_file(path)
    try:
        arranged = arrange(file)
        if not arranged.layers:
            raise NetworkFileError(_what_else(path, file))
        _settle_text_encoder(path, file, arranged)
        return _assemble(path, file, arranged, Hints(alpha=alpha, init_rank=init_rank), mapped)
    except NetworkFileError as error:
        raise error if str(error).startswith(shown(path)) else NetworkFileError(f"{shown(path)}: {error}") from error


def _settle_text_encoder(path: str | os.PathLike[str], file: TensorFile, arranged: Arrangement) -> None:
    """PEFT's files name no model; that of a second text encoder spells its layers like one of the first, and its folder alone says whose it is."""
    if _is_peft(path, file) and Path(path).absolute().parent.name == "text_encoder_2":
        arranged.homes.update({module: ("te2", name) for module, (component, name) in arranged.homes.items() if component == "te1"})


def _assemble(path: str | os.PathLike[str], file: TensorFile, arranged: Arrangement, said: Hints, mapped: bool) -> Network:
    config = peft.read_config(path) if _is_peft(path, file) else {}
    facts_of = peft.facts_from_config(config) if config else peft.facts_from_diffusers(file.metadata)
    largest = max((file.shapes[keys["lora_A"]][0] for keys in arranged.layers.values() if "lora_A" in keys and file.shapes[keys["lora_A"]]), default=None)
    values = file.read([key for keys in arranged.layers.values() for key in keys.values()], check=True, mapped=mapped)

    def make(module: str) -> Layer:
        tensors = {parameter: values[key] for parameter, key in arranged.layers[module].items()}
        return build_layer(module, tensors, _hints(module, tensors, facts_of, said, largest), checked=True)

    layers = LazyMapping(arranged.layers, make, _check_one_of_each(arranged, file, values, make))
    metadata = {**peft.config_as_metadata(config), **file.metadata}
    nbytes = sum(tensor.numel() * tensor.element_size() for tensor in values.values())
    replacing = tuple(filter(is_whole_parameter, arranged.unused))
    network = Network(layers, metadata, Path(path), nbytes, unused=tuple(arranged.unused), replacing=replacing, targets=arranged.homes)
    return replace(network, embeddings=LazyMapping(arranged.embeddings, partial(_read_embedding, path, arranged))) if arranged.embeddings else network


def _check_one_of_each(arranged: Arrangement, file: TensorFile, values: Mapping[str, Tensor], make: Callable[[str], Layer]) -> dict[str, Layer]:
    """One layer of every make, built, so that what does not fit together is told at once.

    Makes differ in parameters, shapes and dtypes; all else is in the values, which were looked at when they were read. The other layers are built when they
    are asked for: most of the time that opening a network takes would go there.
    """
    made, seen = {}, set()
    for module, keys in arranged.layers.items():
        kind = tuple((parameter, file.shapes[key], values[key].dtype) for parameter, key in keys.items())
        if kind not in seen or is_told_by_value(keys):
            seen.add(kind)
            made[module] = make(module)
    return made


def _hints(module: str, tensors: Mapping[str, Tensor], facts_of: peft.FactsOf, said: Hints, largest: int | None) -> Hints:
    """What the config says of a layer, and where it is silent the caller; for an AdaLoRA also what can be told from the whole file."""
    rows = next((tensors[name].shape[0] for name in _RANKED if name in tensors and tensors[name].ndim), 0)
    facts = facts_of(module.removeprefix("base_model.model."), rows)
    alpha = facts.pop("alpha", None)
    rank = facts.pop("init_rank", None) or said.init_rank
    if rank is None and "lora_E" in tensors and "ranknum" not in tensors:
        rank = largest or None
    return Hints(alpha=said.alpha if alpha is None and "scale" not in facts else alpha, init_rank=rank, **facts)


def _read_embedding(path: str | os.PathLike[str], arranged: Arrangement, name: str) -> dict[str, Tensor]:
    keys = arranged.embeddings[name]
    values = open_tensor_file(path).read(keys.values(), check=True)
    missing = [key for key in keys.values() if key not in values]
    if missing:
        raise NetworkFileError(f"{shown(path)} has no {shown(missing[0])} any more: it changed since it was opened; open it again")
    return {part: values[key] for part, key in keys.items()}


def _check_arguments(alpha: float | None, init_rank: int | None) -> None:
    if alpha is not None and not math.isfinite(alpha):
        raise ConfigError(f"alpha {alpha} is not a finite number; leave it out to take the file's")
    if init_rank is not None and (isinstance(init_rank, bool) or not isinstance(init_rank, int) or init_rank < 1):
        raise ConfigError(f"init_rank {shown(init_rank)} is not a whole number of at least 1; leave it out to take the file's")


def _is_peft(path: str | os.PathLike[str], file: TensorFile) -> bool:
    # a config in the same folder belongs to PEFT's own file, not to any other that lies there
    return Path(path).stem == "adapter_model" or any(name.startswith("base_model.model.") for name in file.names)


def _what_else(path: str | os.PathLike[str], file: TensorFile) -> str:
    foreign = EMBEDDING if is_embedding(file) else describe_foreign(file.names)
    if foreign is not None:
        return f"{shown(path)} is no LoRA-like network but {foreign}"
    examples = ", ".join(shown(name, 60) for name in file.names[:3]) or "nothing"
    return f"{shown(path)} is no network that is known here (it holds {examples}); choose a LoRA, LoHa, LoKr or another such file"
