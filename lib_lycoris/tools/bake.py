"""Networks into a checkpoint: every weight is read, gets its deltas in float32, is rounded once to its own dtype, and written; one at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lib_lycoris.errors import CheckpointError, shown
from lib_lycoris.files.streaming import TensorStore, open_store, write_stream
from lib_lycoris.networks.layer import Layer
from lib_lycoris.tools.facts import RECIPE, single_file
from lib_lycoris.tools.merge import Merged, Part
from lib_lycoris.tools.names import Key
from lib_lycoris.tools.slots import Slot, find_slots
from lib_lycoris.tools.source import layers_by_target, open_source

OnStep = Callable[[int, int], None]
_HASHES = ("modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash")
_MOST_NAMED = 3


def bake(parts: Sequence[Part], checkpoint: str | os.PathLike[str], out: str | os.PathLike[str], on_step: OnStep | None = None) -> Merged:
    """Writes the checkpoint with the networks in it to `out`; every kind can go in, each acts on the checkpoint's own weight, and the order does not matter.

    Raises:
        ConfigError: a bad output name.
        NetworkFileError: a network can't be used.
        CheckpointError: the checkpoint can't be used, or no layer of any network fits it.
        LycoError: the output can't be written.
    """
    out = single_file(out, checkpoint, *(part.path for part in parts))
    store = open_store(checkpoint)
    slots = find_slots(store.tensors, checkpoint)
    wanted, homeless, count = _plan(parts, slots, store)
    if not wanted:
        raise CheckpointError(f"no layer of the networks fits {shown(checkpoint)}, for example {shown(homeless[0])}: they are for another model")
    done = 0

    def make(name: str) -> Tensor:
        nonlocal done
        tensor = store.read(name)
        if name in wanted:
            tensor = _baked(tensor, wanted[name])
        done += 1
        if on_step is not None:
            on_step(done, len(store.tensors))
        return tensor

    metadata = {key: value for key, value in store.metadata.items() if key not in _HASHES}
    write_stream(out, store.tensors, {**metadata, RECIPE: f"{Path(checkpoint).stem} with {' '.join(map(str, parts))}"}, make)
    result = Merged(out, count, out.stat().st_size)
    if homeless:
        named = ", ".join(shown(name, 80) for name in homeless[:_MOST_NAMED]) + (" …" if len(homeless) > _MOST_NAMED else "")
        result.notes.append(f"layers without a home in this checkpoint, left out: {len(homeless)} of {count + len(homeless)} ({named})")
    return result


_Jobs = "list[tuple[Slot, str, Layer, float]]"


def _plan(parts: Sequence[Part], slots: dict[Key, dict[str, Slot]], store: TensorStore) -> tuple[dict[str, _Jobs], list[str], int]:
    """{tensor: what is added to it}, the layers that have no home, and how many have."""
    wanted: dict[str, list[tuple[Slot, str, Layer, float]]] = {}
    homeless, count = [], 0
    for part in parts:
        for key, layer in layers_by_target(open_source(part.path)).items():
            home, strength = slots.get(key, {}), part.strength(key[0])
            if "weight" not in home or not layer.fits(_shape(home["weight"], store)):
                homeless.append(f"{key[0]} {key[1]}")
                continue
            count += 1
            for kind, slot in home.items():
                if strength and store.tensors[slot.name][0].is_floating_point:
                    wanted.setdefault(slot.name, []).append((slot, kind, layer, strength))
    return wanted, homeless, count


def _shape(slot: Slot, store: TensorStore) -> tuple[int, ...]:
    shape = store.tensors[slot.name][1]
    return shape if slot.third is None else (shape[0] // 3, *shape[1:])


def _baked(tensor: Tensor, jobs: _Jobs) -> Tensor:
    """The tensor with its deltas, all of them of the tensor as it was."""
    base = tensor.float()
    total = base.clone()
    for slot, kind, layer, strength in jobs:
        own = slot.of(base)
        delta = layer.delta(own) if kind == "weight" else layer.delta_bias(own)
        if delta is not None:
            slot.of(total).add_(delta, alpha=strength)
    if torch.equal(total, base):
        return tensor
    rounded = total.to(tensor.dtype)
    if not torch.isfinite(rounded.float()).all():  # fp8 has no test of its own
        raise CheckpointError(f"a merged weight exceeds what {tensor.dtype} can hold; use smaller strengths, or a checkpoint in float32")
    return rounded
