"""A trained word as the files that everything loads: .safetensors, and the picture that is shared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..errors import LycoError, TrainingError
from ..files.embeddings import write_embedding
from ..files.metadata import reduce_metadata
from .config import TrainConfig

_ADVICE = "the training's last state is kept, resuming it saves the word again"


def word_file(folder: Path, config: TrainConfig, steps: int, planned: int) -> Path:
    """Where the word is saved: WORD.safetensors, as a file's name is what is typed; WORD-step00000123.safetensors before the training's end."""
    return folder / (f"{config.word}.safetensors" if steps >= planned else f"{config.word}-step{steps:08}.safetensors")


def export_word(path: Path, vectors: Mapping[str, Tensor], config: TrainConfig, metadata: dict[str, str]) -> Path:
    """The saved file; its numbers are float32 whatever output.dtype says, as they are few.

    Raises:
        TrainingError: the vectors are not finite, or the file could not be written; an older one stays.
    """
    try:
        write_embedding(path, vectors, reduce_metadata(metadata) if config.output.metadata == "minimal" else metadata)
    except (LycoError, OSError) as error:
        raise TrainingError(f"the word could not be saved: {error}; {_ADVICE}") from error
    return path
