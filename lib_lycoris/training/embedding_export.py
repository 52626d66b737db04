"""A trained word as the files that everything loads: .safetensors, and the picture that is shared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ..errors import LycoError, TrainingError
from ..files.embeddings import pack_embeddings, write_embedding, write_embedding_picture
from ..files.metadata import make_metadata, reduce_metadata
from .backbone import Backbone
from .config import TrainConfig
from .export import About, training_facts
from .method import Method
from .new_word import NewWord
from .previews import own_randomness

_ADVICE = "the training's last state is kept, resuming it saves the word again"


def write_trained(folder: Path, method: Method, word: NewWord | None, config: TrainConfig, backbone: Backbone, about: About) -> Path:
    """The saved file of what was trained: the network's, or where there is only a word the word's. A word beside a network is in its file, or in a second.

    Raises:
        TrainingError: numbers are not finite, or a file could not be written; older ones stay.
    """
    if word is None:
        return method.write(folder, config, backbone, about)
    alone = config.network.kind == "embedding"
    apart = alone or config.embedding.file == "two"
    if not apart:
        return method.write(folder, config, backbone, replace(about, packed=pack_embeddings({word.text: word.exported()})))
    own = export_word(word_file(folder, config, about.steps, about.planned), word, config, backbone, about)
    return own if alone else method.write(folder, config, backbone, about)


def word_file(folder: Path, config: TrainConfig, steps: int, planned: int) -> Path:
    """Where the word is saved: WORD.safetensors, as a file's name is what is typed; WORD-step00000123.safetensors before the training's end."""
    return folder / (f"{config.word}.safetensors" if steps >= planned else f"{config.word}-step{steps:08}.safetensors")


def export_word(path: Path, word: NewWord, config: TrainConfig, backbone: Backbone, about: About) -> Path:
    """The saved file; its numbers are float32 whatever output.dtype says, as they are few.

    Raises:
        TrainingError: the vectors are not finite, or the file could not be written; an older one stays.
    """
    rate = config.embedding_rate if config.embedding.rates is None else config.embedding.rates
    facts = replace(training_facts(config, backbone, about, {}), name=word.text, form="textual-inversion", module=None, arguments={}, learning_rate=rate,
                    unet_learning_rate=None, text_encoder_learning_rate=None)
    metadata = make_metadata(facts)
    try:
        write_embedding(path, word.exported(), reduce_metadata(metadata) if config.output.metadata == "minimal" else metadata)
    except (LycoError, OSError) as error:
        raise TrainingError(f"the word could not be saved: {error}; {_ADVICE}") from error
    return path


def write_word_picture(folder: Path, word: NewWord, config: TrainConfig, backbone: Backbone, about: About) -> list[str]:
    """Writes WORD.png, a picture of the word with its vectors in it; what failed, in words, as the word itself is saved."""
    try:
        with own_randomness(backbone.device), torch.no_grad():
            picture = np.asarray(backbone.preview(word.text, config.output.preview_seed), dtype=np.uint8)
        short = None if backbone.checkpoint_hash is None else backbone.checkpoint_hash[:10]
        write_embedding_picture(folder / f"{word.text}.png", picture, word.text, word.exported(), about.steps, short, Path(backbone.checkpoint_name).name)
    except Exception as error:  # a host's sampler, too little memory, a full disk: the word is there, its picture can be missed
        return [f"no picture of the word {word.text}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"]
    return []
