"""What a training would do, in plain words, before it is started."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from ..patching.targets import Target, find_targets
from .backbone import Backbone
from .config import TrainConfig
from .dataset import Dataset, read_dataset
from .methods import create_layer
from .selection import Key, select_targets

_FEW_PICTURES = 5
_MANY_EPOCHS = 500
_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_HEADER_BYTES_A_LAYER = 300


@dataclass(frozen=True)
class Preflight:
    """What is known of a training before its first step.

    Attributes:
        pictures: files; `draws` counts each as often as it is repeated.
        steps: optimiser steps, going `epochs` times over all draws.
        layers: of UNet and text encoders.
        parameters: numbers that are trained.
        file_bytes: about, of the network file.
        words: that most captions share, with the count of captions that have them.
        problems: what looks wrong, in words.
    """

    pictures: int
    draws: int
    steps: int
    epochs: float
    unet_layers: int
    text_encoder_layers: int
    parameters: int
    file_bytes: int
    words: tuple[tuple[str, int], ...]
    problems: tuple[str, ...]

    def lines(self) -> list[str]:
        """All of it in sentences, one a line."""
        texts = f" and {self.text_encoder_layers} of the text encoder" if self.text_encoder_layers else ", the text encoder is left as it is"
        repeated = f", {self.draws} with repeats" if self.draws != self.pictures else ""
        words = ", ".join(f"{word} ({count})" for word, count in self.words)
        return [
            f"{self.pictures} pictures{repeated}.",
            f"{self.steps} steps: every picture is seen about {self.epochs:.3g} times.",
            f"{self.unet_layers} layers of the UNet{texts}: {self.parameters:,} numbers are trained.",
            f"The network file will have about {self.file_bytes / 1e6:.1f} MB.",
            *([f"Words that captions share: {words}."] if words else []),
            *(f"Look at this: {problem}" for problem in self.problems),
        ]


def check_training(config: TrainConfig, backbone: Backbone, side: int | None = None) -> Preflight:
    """What that training would do; nothing is trained, written or changed.

    Args:
        config: what is to be trained.
        backbone: the model.
        side: in pixels, of the pictures that the model was made for; None where nobody knows.

    Raises:
        ConfigError: the settings don't fit the model.
        DatasetError: pictures or captions can't be used.
    """
    dataset = read_dataset(config.data)
    targets = select_targets(find_targets(backbone.unet, backbone.text_encoders), config.network)
    draws, batch = len(dataset.draws), config.data.batch_size
    steps = config.training.total_steps(draws, batch)
    parameters = sum(count_parameters(target, config) for target in targets.values())
    unet = sum(component == "unet" for component, _ in targets)
    epochs = steps * batch / draws
    return Preflight(
        pictures=len(dataset.pictures), draws=draws, steps=steps, epochs=epochs, unet_layers=unet, text_encoder_layers=len(targets) - unet,
        parameters=parameters, file_bytes=parameters * _BYTES[config.output.dtype] + _HEADER_BYTES_A_LAYER * len(targets),
        words=tuple(_shared_words(picture.caption for picture in dataset.pictures)),
        problems=(*dataset.problems, *_doubts(config, dataset, targets, epochs), *_doubts_of_size(config, side)),
    )


def count_parameters(target: Target, config: TrainConfig) -> int:
    """How many numbers of that layer's network are trained."""
    with torch.random.fork_rng(devices=[]):
        layer = create_layer(target, config.network, config.training.seed)
    return sum(parameter.numel() for parameter in layer.parameters() if parameter.requires_grad)


def _doubts(config: TrainConfig, dataset: Dataset, targets: Mapping[Key, Target], epochs: float) -> list[str]:
    doubts = []
    count = len(dataset.pictures)
    if count < _FEW_PICTURES:
        doubts.append(f"only {count} picture{'s' if count > 1 else ''}: with fewer than {_FEW_PICTURES} a network mostly learns them by heart.")
    if epochs > _MANY_EPOCHS:
        doubts.append(f"every picture is seen {epochs:.0f} times: fewer training.steps may do.")
    if epochs < 1:
        doubts.append("not every picture is seen once: more training.steps, or fewer pictures.")
    narrow = [key for key, target in targets.items() if config.network.rank > min(target.shape[0], target.shape[1])]
    if narrow:
        doubts.append(f"network.rank = {config.network.rank} is more than {len(narrow)} of the layers can use, as {narrow[0][1]}: a smaller one does the same.")
    return doubts


def _doubts_of_size(config: TrainConfig, side: int | None) -> list[str]:
    resolution = config.data.resolution
    if side is None or side / 2 <= resolution <= side * 1.5:
        return []
    return [f"data.resolution = {resolution}: the checkpoint was made for pictures of {side} pixels; use about that."]


def _shared_words(captions: Iterable[str], most: int = 8) -> list[tuple[str, int]]:
    """The words that at least half of the captions have, the most frequent first; two captions at least."""
    texts = [set(caption.lower().replace(",", " ").split()) for caption in captions if caption]
    counts = Counter(word for words in texts for word in words)
    shared = [(word, count) for word, count in counts.items() if count >= 2 and count * 2 >= len(texts)]
    return sorted(shared, key=lambda item: (-item[1], item[0]))[:most]
