"""The trained network as the file that everything loads: kohya's names, alpha beside every layer, metadata without a path or a user's name."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ..errors import LycoError, TrainingError
from ..files.hashes import legacy_hash, tensor_hash
from ..files.metadata import TrainingFacts, make_metadata, reduce_metadata, with_hashes
from ..files.safetensors import write_tensors
from ..files.spelling import kohya_key
from ..networks.layer import Layer
from .backbone import Backbone
from .config import KINDS_WITHOUT_LAYERS, TrainConfig
from .dataset import Dataset
from .description import describe_kind
from .peft_form import rounded, write_peft
from .selection import Key


@dataclass(frozen=True)
class About:
    """What a training knows of itself when it saves."""

    dataset: Dataset
    steps: int
    planned: int
    started_at: float
    """Seconds since 1970."""
    validation_loss: float | None = None
    packed: Mapping[str, Tensor] = field(default_factory=dict)
    """What else a network's file holds, by key: a word that was trained with it."""


def export_network(folder: Path, layers: Mapping[Key, Layer], config: TrainConfig, backbone: Backbone, about: About) -> Path:
    """The saved file: NAME.safetensors, or NAME-step00000123.safetensors for a training that was stopped before its end; in PEFT's form a folder.

    Raises:
        TrainingError: the parameters are not finite in the file's dtype, or the file could not be written; an older one stays.
    """
    name = file_name(config, about)
    metadata = make_metadata(training_facts(config, backbone, about, layers))
    try:
        if config.output.form == "peft":
            write_peft(folder / name, layers, config.output.dtype, reduce_metadata(metadata) if config.output.metadata == "minimal" else metadata)
            return folder / name
        path = folder / f"{name}.safetensors"
        tensors = network_tensors(layers, config.output.dtype, backbone.base_model) | dict(about.packed)
        if config.output.metadata == "minimal":
            metadata = reduce_metadata(metadata)
        else:
            metadata = with_hashes(metadata, tensor_hash(tensors), legacy_hash(tensors, metadata))
        write_tensors(path, tensors, metadata)
    except TrainingError:
        raise
    except (LycoError, OSError) as error:
        advice = "the training's last state is kept, resuming it saves the network again"
        raise TrainingError(f"the network could not be saved: {error}; {advice}") from error
    return path


def file_name(config: TrainConfig, about: About) -> str:
    """NAME of a training that has come to its end, else NAME-step00000123; without an ending."""
    return config.output.name if about.steps >= about.planned else f"{config.output.name}-step{about.steps:08}"


def network_tensors(layers: Mapping[Key, Layer], dtype: str, base_model: str = "sd_v1") -> dict[str, Tensor]:
    """All parameters under kohya's names: "lora_unet_….lora_down.weight". Weights are rounded to `dtype` once; alpha and counts stay float32, exact.

    Raises:
        TrainingError: a value is not finite, or too large for the dtype.
    """
    tensors = {}
    for key, layer in layers.items():
        prefix = kohya_key(key, base_model)
        for part, tensor in layer.tensors().items():
            exact = part in ("alpha", "scale") or not tensor.is_floating_point()
            tensors[f"{prefix}.{part}"] = tensor.cpu() if exact else rounded(tensor, dtype, f"{prefix}: {part}")
    return tensors


def training_facts(config: TrainConfig, backbone: Backbone, about: About, layers: Mapping[Key, Layer]) -> TrainingFacts:
    """What a file says of the training that it is from."""
    network, training = config.network, config.training
    said = [picture.concept for picture in about.dataset.pictures if picture.concept and picture.concept.lower() in picture.caption.lower()]
    words = [config.data.trigger, config.word, *said]
    return TrainingFacts(
        name=config.output.name, base_model=backbone.base_model,
        prediction=config.model.resolve_prediction(backbone.prediction),
        **describe_kind(network, layers),
        checkpoint_name=backbone.checkpoint_name, checkpoint_hash=backbone.checkpoint_hash,
        resolution=config.data.resolution, pictures=len(about.dataset.pictures), batch_size=config.data.batch_size,
        steps=about.steps, planned_steps=about.planned,
        learning_rate=config.learning_rate, unet_learning_rate=config.learning_rate,
        text_encoder_learning_rate=training.te_learning_rate if network.text_encoder and network.kind not in KINDS_WITHOUT_LAYERS else None,
        optimizer=training.optimizer, schedule=training.schedule, precision=training.precision, seed=training.seed,
        clip_skip=config.model.clip_skip, validation_loss=about.validation_loss,
        started=about.started_at, finished=time.time(),
        trigger_words=tuple(dict.fromkeys(word for word in words if word)),
        tag_frequency=_tag_frequency(about.dataset),
    )


def _tag_frequency(dataset: Dataset) -> dict[str, int]:
    """In how many captions each part between commas stands."""
    tags = Counter(tag.strip() for picture in dataset.pictures for tag in picture.caption.split(","))
    return {tag: count for tag, count in tags.items() if tag}
