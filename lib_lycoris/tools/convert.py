"""One network, other spellings: kohya's, diffusers', PEFT's folder; and other kinds as LoCon where that is exact."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from lib_lycoris.errors import ConfigError, NetworkFileError, shown
from lib_lycoris.files import peft_folder
from lib_lycoris.files.safetensors import write_tensors
from lib_lycoris.networks.dora import DecomposedLayer
from lib_lycoris.networks.layer import Layer
from lib_lycoris.tools.facts import carried_metadata, check_not_source, fitted, network_facts, single_file, write_network
from lib_lycoris.tools.low_rank import like_tensor, low_rank_parts, module_shaped, own_factors
from lib_lycoris.tools.names import FORMATS, Key, dotted_name
from lib_lycoris.tools.products import capped, dense_delta, exact_product, layer_kind, needs_base, only_bias
from lib_lycoris.tools.source import find_base_model, layers_by_target, open_source, own_dtype, packed_embeddings, stray_keys

OnStep = Callable[[int, int], None]
"""Called with how many layers are done, and of how many."""

_PLAIN = {"lora_up.weight", "lora_down.weight", "lora_up.bias", "alpha", "scale"}
# Parameters that only PEFT's own loader knows.
_PEFT_ONLY = ("lora_E", "ia3_l", "oft_R.weight", "boft_R", "lora_embedding_A")
_DIFFUSERS_COMPONENTS = {"unet": "unet", "te1": "text_encoder", "te2": "text_encoder_2"}


@dataclass
class Converted:
    """What came of a conversion: the file or folder, how many layers, its bytes, and lines for the user."""

    path: Path
    layers: int
    nbytes: int
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Task:
    layers: Mapping[Key, Layer]
    base_model: str | None
    dtype: torch.dtype
    metadata: Mapping[str, str]
    packed: Mapping[str, Tensor]
    on_step: OnStep

    def steps(self):
        """The layers in turn, each told when it is done."""
        for place, item in enumerate(self.layers.items(), start=1):
            yield item
            self.on_step(place, len(self.layers))


def convert(path: str | os.PathLike[str], out: str | os.PathLike[str], to: str, on_step: OnStep | None = None) -> Converted:
    """Writes the network at `path` to `out` in another spelling, ΔW unchanged.

    Args:
        path: a network file, or a PEFT folder.
        out: a .safetensors file; for "peft" a folder, which is made.
        to: "kohya", "diffusers", "peft", or "locon" (kohya's spelling, every layer low-rank).
        on_step: told the progress.

    Raises:
        ConfigError: a bad format or output name.
        NetworkFileError: the file can't be used, or holds a kind that the format has no form for.
        LycoError: the output can't be written.
    """
    if to not in FORMATS:
        raise ConfigError(f"format {shown(to)!r} is unknown; known are {', '.join(FORMATS)}")
    if to == "peft":
        target = peft_folder.checked_folder(Path(out))
        check_not_source(peft_folder.possible_files(target), path)
    else:
        target = single_file(out, path)
    network = open_source(path)
    layers = layers_by_target(network)
    base_model = find_base_model(layers, network.metadata)
    on_step = on_step or (lambda done, total: None)
    task = _Task(layers, base_model, own_dtype([network]), carried_metadata(network.metadata), packed_embeddings([network]), on_step)
    converted = {"kohya": _to_kohya, "diffusers": _to_diffusers, "peft": _to_peft, "locon": _to_locon}[to](target, task)
    stray = stray_keys(network)
    if stray:
        converted.notes.append(f"keys that belong to no layer, left out: {len(stray)}, for example {shown(stray[0], 60)}")
    if task.packed and to in ("diffusers", "peft"):
        names = ", ".join(shown(name, 60) for name in network.embeddings)
        converted.notes.append(f"embeddings packed with the network, which this form can't hold, left out: {names}")
    return converted


def _to_kohya(out: Path, task: _Task) -> Converted:
    layers = {key: _kohya_parts(key, layer) for key, layer in task.steps()}
    own = network_facts(layers, task.base_model, out.stem)
    facts = {**task.metadata, **{name: value for name, value in own.items() if not name.startswith("ss_base") or name not in task.metadata}}
    if not all("lora_down.weight" in parts and "dora_scale" not in parts for parts in layers.values()):
        facts["ss_network_module"] = "lycoris.kohya"
    size = write_network(out, layers, _named(facts, task.metadata), task.base_model, task.packed)
    return Converted(out, len(layers), size)


def _kohya_parts(key: Key, layer: Layer) -> dict[str, Tensor]:
    parts = dict(layer.tensors())
    magnitude = parts.pop("lora_magnitude_vector", None)
    if magnitude is not None:  # [O,1,…] says that the lengths are those of rows
        weight = next((tensor for tensor in parts.values() if tensor.ndim > 1), magnitude)
        parts["dora_scale"] = magnitude.reshape(-1, *(1 for _ in weight.shape[1:]))
    odd = next((name for name in _PEFT_ONLY if name in parts), None)
    if odd is not None:
        advice = "keep it in PEFT's form, which <lyco:…> reads" if getattr(layer, "weight_dependent", False) else "use --to locon, which is exact"
        raise NetworkFileError(f"layer {shown(key[1])} is {layer_kind(layer)} in PEFT's form ({odd}), which kohya's has no names for: {advice}")
    return parts


def _to_locon(out: Path, task: _Task) -> Converted:
    layers, long = {}, 0
    for key, layer in task.steps():
        if getattr(layer, "weight_dependent", False):
            raise needs_base(layer, key[1])
        if set(layer.tensors()) <= _PLAIN or only_bias(layer):  # it is low-rank already, or has no ranks
            layers[key] = dict(layer.tensors())
            continue
        product = exact_product(layer)
        if product is None:
            delta = dense_delta(layer, key[1])
            if delta.ndim < 2:  # a norm's weight, which has no rank
                layers[key] = dict(layer.tensors())
                continue
            product = (torch.eye(delta.shape[0]), delta.flatten(1))
        if product[0].shape[1] == 0:  # AdaLoRA may have pruned all of it
            continue
        short = capped(product)
        long += short[0].shape[1] == min(short[0].shape[0], short[1].shape[1])
        layers[key] = low_rank_parts(key, short, task.base_model, task.dtype, True, like_tensor(layer), layer.delta_bias(None))
    facts = {**task.metadata, **network_facts(layers, task.base_model, out.stem)}
    size = write_network(out, layers, _named(facts, task.metadata), task.base_model, task.packed)
    converted = Converted(out, len(layers), size)
    if long:
        converted.notes.append(f"layers of the full rank of their weight: {long}; 'resize' makes the file small, with a loss that it tells")
    return converted


def _to_diffusers(out: Path, task: _Task) -> Converted:
    tensors: dict[str, Tensor] = {}
    grown = 0
    for key, adapter in _adapters(task, "diffusers'"):
        start = f"{_component(key)}.{dotted_name(key[1])}"
        # Loaders of this spelling take scale 1 for granted, so that the scale goes into a factor; in float32 where the file's dtype would round the result.
        up = adapter.b if adapter.scale == 1 else fitted(adapter.b.float() * adapter.scale, adapter.b.dtype, True)
        grown += up.dtype != adapter.b.dtype
        # the loader of text encoders can't tell PEFT's names where only the MLP has layers; these it always can
        a, b = ("lora_A", "lora_B") if key[0] == "unet" else ("lora_linear_layer.down", "lora_linear_layer.up")
        tensors.update({f"{start}.{a}.weight": adapter.a, f"{start}.{b}.weight": up})
        if adapter.bias is not None:
            tensors[f"{start}.{b}.bias"] = adapter.bias
        if adapter.magnitude is not None:
            tensors[f"{start}.lora_magnitude_vector"] = adapter.magnitude
    write_tensors(out, tensors, {"format": "pt", **task.metadata})
    converted = Converted(out, len(task.layers), out.stat().st_size)
    if grown:
        converted.notes.append(f"layers whose up factor took in the scale, as float32 so that nothing is rounded: {grown}")
    return converted


def _to_peft(out: Path, task: _Task) -> Converted:
    parts: dict[str, dict[str, peft_folder.Adapter]] = {}
    for key, adapter in _adapters(task, "PEFT's"):
        parts.setdefault(_component(key), {})[dotted_name(key[1])] = adapter
    return Converted(out, len(task.layers), peft_folder.write(out, parts, task.metadata))


def _adapters(task: _Task, format_name: str) -> Iterator[tuple[Key, peft_folder.Adapter]]:
    """Each layer as PEFT's modules hold it.

    Raises:
        NetworkFileError: the form has no place for a layer's kind.
    """
    decomposed = {key: isinstance(layer, DecomposedLayer) for key, layer in task.layers.items()}
    if len(set(decomposed.values())) > 1:
        plain = next(key[1] for key, value in decomposed.items() if not value)
        raise NetworkFileError(f"layer {shown(plain)} is no DoRA while others are: {format_name} form has all or none; --to kohya keeps them")
    for key, layer in task.steps():
        own = own_factors(layer)
        if own is None:
            raise NetworkFileError(f"layer {shown(key[1])} is {layer_kind(layer)}, which {format_name} low-rank form can't hold: {_advice(layer)}")
        up, down = module_shaped(key, own.up.flatten(1), own.down.flatten(1), task.base_model, own.down)
        if down.shape[0] == 0:
            continue
        magnitude = own.magnitude if own.magnitude is None or down.ndim == 2 else own.magnitude.reshape(1, -1, *(1 for _ in down.shape[2:]))
        yield key, peft_folder.Adapter(down.contiguous(), up.contiguous(), own.scale, own.bias, magnitude)


def _advice(layer: Layer) -> str:
    if getattr(layer, "weight_dependent", False):
        return "--to kohya, or merge it into a checkpoint with 'merge --checkpoint'"
    return "convert it --to locon first, which is exact" if exact_product(layer) is not None else "--to kohya keeps it"


def _component(key: Key) -> str:
    if key[0] not in _DIFFUSERS_COMPONENTS:
        raise NetworkFileError(f"layer {shown(key[1])} is of {key[0]}, which Stable Diffusion's pipelines have not; --to kohya keeps it")
    return _DIFFUSERS_COMPONENTS[key[0]]


def _named(facts: dict[str, str], metadata: Mapping[str, str]) -> dict[str, str]:
    """The facts with the name and title that the file had, where it had them: a conversion makes no other network of it."""
    return {**facts, **{name: metadata[name] for name in ("ss_output_name", "modelspec.title") if name in metadata}}
