"""What a network file is: kind, base model, ranks, norms, words that call it, how it was trained, and what is wrong with it."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lib_lycoris.networks.layer import Layer
from lib_lycoris.networks.network import Network
from lib_lycoris.tools.names import Key, block_name, block_order, dotted_name
from lib_lycoris.tools.products import delta_norm, layer_kind
from lib_lycoris.tools.source import find_base_model, layers_by_target, open_source, stray_keys

OnStep = Callable[[int, int], None]
_MOST_TAGS = 200
_FACTS = {
    "ss_sd_model_name": "checkpoint",
    "ss_new_sd_model_hash": "checkpoint's hash",
    "ss_resolution": "resolution",
    "ss_num_train_images": "pictures",
    "ss_batch_size_per_device": "batch size",
    "ss_steps": "steps",
    "ss_max_train_steps": "steps planned",
    "ss_num_epochs": "epochs",
    "ss_learning_rate": "learning rate",
    "ss_unet_lr": "rate of the UNet",
    "ss_text_encoder_lr": "rate of the text encoder",
    "ss_optimizer": "optimiser",
    "ss_lr_scheduler": "schedule",
    "ss_mixed_precision": "precision",
    "ss_seed": "seed",
    "ss_clip_skip": "clip skip",
    "ss_training_comment": "comment",
    "modelspec.date": "date",
    "modelspec.author": "author",
    "modelspec.license": "licence",
    "modelspec.description": "description",
    "modelspec.usage_hint": "usage",
    "lyco.recipe": "made by",
}
_RANKED = ("lora_down.weight", "hada_w1_b", "lokr_w2_b", "lokr_w1_b", "lora_A", "a2.weight")


@dataclass
class Report:
    """All of it, in plain values; `as_json` is what --json prints."""

    path: Path
    kind: str
    algorithms: list[str]
    """As layer.algorithm has them: "lora" for LoCon too."""
    layer_kinds: dict[str, int]
    """How many layers are of each kind: "locon" for larger convolutions, "dora" where a magnitude stands beside the factors."""
    base_model: str | None
    ranks: dict[str, int]
    """By the layer's name as the file spells it; layers without a rank are left out."""
    alphas: dict[str, float]
    layers: int
    components: dict[str, int]
    parameters: int
    nbytes: int
    dtypes: list[str]
    norms: dict[str, float | None]
    """‖ΔW‖ (Frobenius) by block, as the data runs; None where ΔW is another one for every base weight."""
    metadata: dict[str, str]
    trigger_words: list[str]
    tags: dict[str, int]
    training: dict[str, str]
    embeddings: list[str]
    """Names of the textual inversions that are packed with it."""
    problems: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        """One object; kind, algorithms, base_model, layers, ranks, parameters, bytes, metadata and norms are its stable part."""
        return {
            "kind": self.kind,
            "algorithms": self.algorithms,
            "base_model": self.base_model,
            "layers": self.layers,
            "ranks": self.ranks,
            "parameters": self.parameters,
            "bytes": self.nbytes,
            "metadata": self.metadata,
            "norms": self.norms,
            "file": str(self.path),
            "layers_by_kind": self.layer_kinds,
            "layers_by_component": self.components,
            "alphas": self.alphas,
            "dtypes": self.dtypes,
            "trigger_words": self.trigger_words,
            "tags": self.tags,
            "training": self.training,
            "embeddings": self.embeddings,
            "problems": self.problems,
        }


def inspect(path: str | os.PathLike[str], on_step: OnStep | None = None) -> Report:
    """The report on the network at `path`, a file or a PEFT folder.

    Raises:
        NetworkFileError: it can't be used.
    """
    return report_on(open_source(path), on_step)


def report_on(network: Network, on_step: OnStep | None = None) -> Report:
    """The report on a loaded network."""
    layers = layers_by_target(network)
    kinds = Counter(layer_kind(layer) for layer in layers.values())
    tensors = [tensor for layer in layers.values() for name, tensor in layer.tensors().items() if name not in ("alpha", "scale")]
    tags = _tags(network.metadata)
    return Report(
        path=network.path or Path(),
        kind=_kind(kinds),
        algorithms=sorted({layer.algorithm for layer in layers.values()}),
        layer_kinds=dict(kinds.most_common()),
        base_model=find_base_model(layers, network.metadata),
        ranks={name: rank for name, layer in network.layers.items() if (rank := _rank(layer)) is not None},
        alphas={name: float(parts["alpha"]) for name, layer in network.layers.items() if "alpha" in (parts := layer.tensors())},
        layers=len(layers),
        components=dict(Counter(component for component, _ in layers)),
        parameters=sum(tensor.numel() for tensor in tensors),
        nbytes=network.nbytes,
        dtypes=sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors}),
        norms=_norms(layers, on_step),
        metadata=dict(network.metadata),
        trigger_words=_trigger_words(network.metadata, tags),
        tags=tags,
        training={title: network.metadata[key] for key, title in _FACTS.items() if network.metadata.get(key) not in (None, "", "None")},
        embeddings=list(network.embeddings),
        problems=_problems(network, layers),
    )


def _kind(kinds: Counter[str]) -> str:
    if set(kinds) <= {"lora", "locon"}:
        return "locon" if "locon" in kinds else "lora"
    return next(iter(kinds)) if len(kinds) == 1 else "mixed"


def _rank(layer: Layer) -> int | None:
    parts = layer.tensors()
    return next((parts[name].shape[0] for name in _RANKED if name in parts), None)


def _norms(layers: Mapping[Key, Layer], on_step: OnStep | None) -> dict[str, float | None]:
    squares: dict[str, float | None] = {}
    for place, (key, layer) in enumerate(layers.items(), start=1):
        block, norm = block_name(key), delta_norm(layer)
        before = squares.get(block, 0.0)
        squares[block] = None if norm is None or before is None else before + norm * norm
        if on_step is not None:
            on_step(place, len(layers))
    return {block: None if squares[block] is None else squares[block] ** 0.5 for block in sorted(squares, key=block_order)}


def _tags(metadata: Mapping[str, str]) -> dict[str, int]:
    """How often each tag was trained, over all folders, most frequent first."""
    try:
        folders = json.loads(metadata.get("ss_tag_frequency") or "{}")
        counts: Counter[str] = Counter()
        for tags in folders.values():
            counts.update({str(tag).strip(): int(count) for tag, count in tags.items()})
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return {}
    return dict(counts.most_common(_MOST_TAGS))


def _trigger_words(metadata: Mapping[str, str], tags: Mapping[str, int]) -> list[str]:
    """The words that the file names itself; else the concepts of kohya's folder names (10_word); else the tag that every caption has."""
    said = [word.strip() for word in metadata.get("modelspec.trigger_phrase", "").split(",") if word.strip()]
    if said:
        return said
    try:
        folders = list(json.loads(metadata.get("ss_dataset_dirs") or metadata.get("ss_tag_frequency") or "{}"))
    except (ValueError, TypeError, RecursionError):
        folders = []
    concepts = [found[1].strip() for folder in folders if (found := re.match(r"\d+_(.+)", str(folder)))]
    if concepts:
        return list(dict.fromkeys(concepts))
    pictures = metadata.get("ss_num_train_images", "")
    return [tag for tag, count in tags.items() if pictures.isdigit() and int(pictures) > 1 and count >= int(pictures)][:3]


def _problems(network: Network, layers: Mapping[Key, Layer]) -> list[str]:
    problems = []
    stray = stray_keys(network)
    if stray:
        problems.append(f"keys that belong to no layer: {len(stray)}, for example {stray[0]}")
    homeless = [name for component, name in layers if not _known(name)]
    if homeless:
        problems.append(f"layers without a home in Stable Diffusion 1, 2 or XL: {len(homeless)}, for example {homeless[0]}")
    dependent = [layer_kind(layer) for layer in layers.values() if getattr(layer, "weight_dependent", False)]
    if dependent:
        kinds = ", ".join(sorted(set(dependent)))
        problems.append(f"layers whose change depends on the base weight ({kinds}): {len(dependent)}; their blocks have no norm without a checkpoint")
    idle = sum(1 for layer in layers.values() if delta_norm(layer) == 0)
    if idle:
        problems.append(f"layers that change nothing, all values of a factor being zero: {idle}")
    return problems


def _known(name: str) -> bool:
    try:
        dotted_name(name)
    except ValueError:
        return False
    return True
