"""What a training learns from and what it is judged on, made from the config's pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..errors import ConfigError
from .backbone import Backbone
from .config import TrainConfig
from .dataset import Dataset, read_dataset
from .latents import encode_dataset
from .material import Material, Part, PlainMaterial
from .validation import keep_back
from .watch import Watch


@dataclass(frozen=True)
class Pictures:
    """The pictures of a training, read and found good, not yet encoded."""

    learned: Dataset
    judged: Dataset | None
    """Those of validation.folder; None where none is named."""
    draws: Sequence[int]
    """Of `learned`, those that are learned from."""
    kept_back: Sequence[int]
    """Of `learned`, those that are judged on: one for each picture that is kept back."""


def read_pictures(config: TrainConfig, watch: Watch) -> Pictures:
    """The pictures that the config names.

    Raises:
        DatasetError: pictures or captions can't be used.
        ConfigError: there is too little to keep some back.
    """
    watch.phase("reading pictures")
    learned, folder = read_dataset(config.data), config.validation.folder
    judged = None if folder is None else read_dataset(replace(config.data, folders=(folder,), dataset=None))
    return Pictures(learned, judged, *_split(config, learned))


def make_materials(config: TrainConfig, backbone: Backbone, pictures: Pictures, watch: Watch) -> tuple[Material, Material | None]:
    """(what is learned from, what is judged on or None), encoded by the model.

    Raises:
        DatasetError: a picture can't be read.
        TrainingError: the autoencoder gives no numbers for a picture.
    """
    whole = _encode(config, backbone, pictures.learned, watch)
    judged = Part(whole, pictures.kept_back) if pictures.judged is None else _encode(config, backbone, pictures.judged, watch)
    return Part(whole, pictures.draws), judged if judged.samples else None


def _split(config: TrainConfig, dataset: Dataset) -> tuple[list[int], list[int]]:
    """(draws that are learned from, draws that are judged on)."""
    draws, settings = dataset.draws, config.validation
    if not settings.share or settings.folder is not None:
        return list(range(len(draws))), []
    if len(dataset.pictures) < 2:
        raise ConfigError(f"validation.share = {settings.share:g}: of one picture none can be kept back; add pictures, or name a validation.folder")
    kept = set(keep_back(len(dataset.pictures), settings.share, config.training.seed))
    return [draw for draw, picture in enumerate(draws) if picture not in kept], [draws.index(picture) for picture in sorted(kept)]


def _encode(config: TrainConfig, backbone: Backbone, dataset: Dataset, watch: Watch) -> Material:
    latents = encode_dataset(backbone, dataset, config.data.resolution, config.training.seed, lambda done, total: watch.phase("encoding pictures", done, total))
    return PlainMaterial([latents[index] for index in dataset.draws], [dataset.pictures[index].caption for index in dataset.draws])
