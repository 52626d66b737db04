"""What a fine-tuned checkpoint learned, as a LoCon: the difference of two checkpoints, layer by layer, by SVD."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from lib_lycoris.errors import CheckpointError, shown
from lib_lycoris.files.streaming import TensorStore, open_store
from lib_lycoris.functional.truncation import matrix_svd
from lib_lycoris.tools.facts import RECIPE, architecture_of, network_facts, single_file, write_network
from lib_lycoris.tools.low_rank import low_rank_parts
from lib_lycoris.tools.names import Key
from lib_lycoris.tools.slots import Slot, checkpoint_base, find_slots
from lib_lycoris.tools.truncate import Keep, Kept, truncated

OnStep = Callable[[int, int], None]


@dataclass
class Extracted:
    """What came of it: the file, its bytes, ranks and energies, and lines for the user."""

    path: Path
    nbytes: int
    kept: Kept
    notes: list[str] = field(default_factory=list)


@dataclass
class _Left:
    """What the difference has beside low-rank layers."""

    equal: int = 0
    bare: list[str] = field(default_factory=list)
    """Norms, biases and embeddings that differ."""
    odd: list[str] = field(default_factory=list)
    """Modules that only one of the two has, or in another shape."""
    outside: int = 0
    """Tensors that differ and are of no module of UNet or text encoders: the VAE's, a text projection."""


def extract(base: str | os.PathLike[str], tuned: str | os.PathLike[str], out: str | os.PathLike[str], rank: int | None = None, energy: float | None = None,
            full: bool = False, dtype: torch.dtype | None = None, on_step: OnStep | None = None) -> Extracted:
    """Writes tuned - base as a LoCon to `out`: on `base` at strength 1 it gives `tuned` as nearly as the ranks allow.

    Args:
        base: the checkpoint that the tuned one was made from.
        tuned: the other one.
        out: a .safetensors file.
        rank: the most ranks of a layer; or
        energy: the share of each layer's squared singular values to keep, above 0 up to 1.
        full: keep the differences of biases and norms too, whole, under LyCORIS' names.
        dtype: what to store; None: the wider of the checkpoints' dtypes.
        on_step: told how many modules are done, of how many.

    Raises:
        ConfigError: a bad argument.
        CheckpointError: a file is no checkpoint, they are of different models, or nothing differs.
        LycoError: the output can't be written.
    """
    keep = Keep(rank, energy)
    out = single_file(out, base, tuned)
    stores = open_store(base), open_store(tuned)
    slots, others = (find_slots(store.tensors, path) for store, path in zip(stores, (base, tuned), strict=True))
    base_model = checkpoint_base(stores[0].tensors)
    _check_models(base, tuned, base_model, checkpoint_base(stores[1].tensors))
    kept, left, layers = Kept(), _Left(), {}
    dtype = dtype or _dtype(stores)
    for place, (key, kinds) in enumerate(slots.items(), start=1):
        parts = _extracted(stores, key, kinds, others.get(key, {}), keep, kept, left, full, base_model, dtype)
        if parts:
            layers[key] = parts
        if on_step is not None:
            on_step(place, len(slots))
    left.odd += sorted(name for _, name in others.keys() - slots.keys())
    left.outside = _outside(stores, {slot.name for kinds in slots.values() for slot in kinds.values()})
    if not layers:
        bare = f"; {len(left.bare)} biases or norms do, which --full keeps" if left.bare else ""
        raise CheckpointError(f"{shown(tuned)} and {shown(base)} do not differ in any layer that a network can hold{bare}: nothing to extract")
    wish = f"rank {rank}" if rank is not None else f"energy {energy:g}"
    recipe = f"extract {Path(tuned).stem} from {Path(base).stem}, {wish}"
    facts = network_facts(layers, base_model, out.stem) | {"ss_sd_model_name": Path(base).name, RECIPE: recipe}
    if architecture_of(base_model) is not None:
        facts |= {"modelspec.sai_model_spec": "1.0.0", "modelspec.architecture": architecture_of(base_model), "modelspec.implementation": "diffusers"}
    return Extracted(out, write_network(out, layers, facts, base_model), kept, _notes(left, full))


def _extracted(stores: tuple[TensorStore, TensorStore], key: Key, kinds: Mapping[str, Slot], others: Mapping[str, Slot], keep: Keep, kept: Kept, left: _Left,
               full: bool, base_model: str | None, dtype: torch.dtype) -> dict[str, Tensor]:
    """The module's tensors in the network; empty where it does not differ, or only in what can't be kept."""
    deltas = {}
    for kind, slot in kinds.items():
        if kind not in others:
            left.odd.append(key[1])
            continue
        delta = _difference(stores, slot, others[kind])
        if delta is None:
            left.odd.append(key[1])
        elif delta.any():
            deltas[kind] = delta
    if not deltas:
        left.equal += 1
        return {}
    weight = deltas.pop("weight", None)
    parts: dict[str, Tensor] = {}
    if weight is not None and weight.ndim > 1 and "_embeddings_" not in key[1]:
        product = truncated(*matrix_svd(weight.flatten(1)), keep, kept)
        parts = low_rank_parts(key, product, base_model, dtype, False, weight)
    elif weight is not None and (not full or weight.ndim > 1):
        left.bare.append(key[1])
    elif weight is not None:
        parts["w_norm"] = weight
    if "bias" in deltas and full:
        parts |= _bias_parts(parts, deltas["bias"])
    elif "bias" in deltas:
        left.bare.append(key[1])
    return parts


def _bias_parts(parts: Mapping[str, Tensor], bias: Tensor) -> dict[str, Tensor]:
    if "lora_up.weight" in parts:
        return {"lora_up.bias": bias}
    return {"b_norm": bias} if "w_norm" in parts else {"diff_b": bias}


def _difference(stores: tuple[TensorStore, TensorStore], slot: Slot, other: Slot) -> Tensor | None:
    """tuned - base float32 of one tensor; zeros where both are the same rounded to the coarser of their dtypes; None for unlike shapes."""
    base, tuned = (each.of(store.read(each.name)) for store, each in zip(stores, (slot, other), strict=True))
    if base.shape != tuned.shape or not base.is_floating_point() or not tuned.is_floating_point():
        return None
    if base.dtype != tuned.dtype:
        coarse = max(base.dtype, tuned.dtype, key=lambda dtype: torch.finfo(dtype).eps)
        if torch.equal(base.to(coarse), tuned.to(coarse)):
            return torch.zeros(1)
    return tuned.float() - base.float()


def _outside(stores: tuple[TensorStore, TensorStore], inside: set[str]) -> int:
    both = [name for name in stores[0].tensors if name in stores[1].tensors and name not in inside and not name.startswith("model_ema.")]
    deltas = (_difference(stores, Slot(name), Slot(name)) for name in both)
    return sum(delta is None or bool(delta.any()) for name, delta in zip(both, deltas, strict=True) if stores[0].tensors[name][0].is_floating_point)


def _check_models(base: object, tuned: object, one: str | None, other: str | None) -> None:
    if one != other:
        models = f"{shown(tuned)} ({other or 'unknown'}) is of another model than {shown(base)} ({one or 'unknown'})"
        raise CheckpointError(f"{models}; name the checkpoint that it was trained from")


def _dtype(stores: tuple[TensorStore, TensorStore]) -> torch.dtype:
    held = {dtype for store in stores for dtype, shape in store.tensors.values() if dtype.is_floating_point and len(shape) > 1}
    return held.pop() if len(held) == 1 and held <= {torch.float16, torch.bfloat16} else torch.float32


def _notes(left: _Left, full: bool) -> list[str]:
    notes = []
    if left.equal:
        notes.append(f"modules that do not differ: {left.equal}")
    if left.bare:
        what, advice = ("embeddings", "") if full else ("biases, norms or embeddings", "; --full keeps biases and norms")
        notes.append(f"modules whose {what} differ, left out: {len(set(left.bare))}{advice}")
    if left.outside:
        notes.append(f"tensors that differ and can't be in a network (a VAE's, a text projection): {left.outside}")
    if left.odd:
        notes.append(f"modules in one checkpoint only, or of another shape, left out: {len(set(left.odd))}, for example {shown(left.odd[0], 80)}")
    return notes
