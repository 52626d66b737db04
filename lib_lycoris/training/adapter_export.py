"""A trained adapter as the file that T2I-Adapter programs load: TencentARC's names, and in the metadata what its tensors leave open."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from ..errors import LycoError, TrainingError
from ..files.metadata import make_metadata
from ..library.adapters import write_adapter
from ..networks.adapters.parts import PictureAdapter
from .backbone import Backbone
from .config import TrainConfig
from .export import About, file_name, training_facts
from .peft_form import rounded

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def export_adapter(folder: Path, adapter: PictureAdapter, config: TrainConfig, backbone: Backbone, about: About) -> Path:
    """The saved file: NAME.safetensors, or NAME-step00000123.safetensors before the training's end.

    Raises:
        TrainingError: the parameters are not finite in the file's dtype, or the file could not be written; an older one stays.
    """
    path, data = folder / f"{file_name(config, about)}.safetensors", config.data
    for name, value in adapter.tensors().items():
        rounded(value, config.output.dtype, name)
    facts = replace(training_facts(config, backbone, about, {}), form="t2i-adapter", module=None, arguments={}, text_encoder_learning_rate=None)
    metadata = {} if config.output.metadata == "minimal" else make_metadata(facts)
    try:
        write_adapter(path, adapter, metadata, dtype=_DTYPES[config.output.dtype], base_model=backbone.base_model, preprocessor=data.preprocessor,
                      preprocessor_values=", ".join(data.preprocessor_values) or None, resolution=data.preprocessor_resolution or data.resolution)
    except (LycoError, OSError) as error:
        advice = "the training's last state is kept, resuming it saves the adapter again"
        raise TrainingError(f"the adapter could not be saved: {error}; {advice}") from error
    return path
