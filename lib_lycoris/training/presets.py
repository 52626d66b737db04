"""Settings by purpose, base model and memory: what a beginner chooses in place of sixty fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError
from .config import TrainConfig

WORLD, SD1, SDXL = "embedded", "SD 1.5", "SDXL"


@dataclass(frozen=True)
class Preset:
    """A named part of a config.

    Attributes:
        name: as it stands in a list: purpose, base model, memory.
        about: one sentence, what it is good for.
        base: the models it is for.
        gib: memory in GiB that a training with it fits into; None where that is no question.
        values: settings by key; all others are the config's defaults.
        own: whether the user made it.
    """

    name: str
    about: str
    base: str = ""
    gib: float | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    own: bool = False

    def config(self) -> TrainConfig:
        """The whole config with these settings.

        Raises:
            ConfigError: a setting is unknown or wrong.
        """
        return TrainConfig.from_dict(nested(self.values))

    def to_dict(self) -> dict[str, Any]:
        """The preset as values that JSON can hold."""
        return {"name": self.name, "about": self.about, "base": self.base, "gib": self.gib, "own": self.own, "values": dict(self.values)}


def nested(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{"network.rank": 4} → {"network": {"rank": 4}}.

    Raises:
        ConfigError: a key has no section.
    """
    sections: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section, dot, name = key.partition(".")
        if not dot:
            raise ConfigError(f"unknown setting {key!r}: expected section.key, as network.rank")
        sections.setdefault(section, {})[name] = value
    return sections


_PREVIEWS = {"output.preview_every": 200}
_SD1 = {"data.resolution": 512, "training.precision": "fp16", "training.gradient_checkpointing": True, "training.min_snr_gamma": 5.0, **_PREVIEWS}
_SDXL = {
    "data.resolution": 1024, "training.precision": "bf16", "training.gradient_checkpointing": True, "network.text_encoder": False,
    "training.min_snr_gamma": 5.0, "output.preview_every": 250,
}
_ADAPTIVE = {"network.kind": "adalora", "network.target_rank": 8, "network.init_rank": 12}
_CHARACTER = {"training.steps": 1500, "training.schedule": "cosine", "training.warmup_steps": 75, "data.keep_tags": 1}
_STYLE = {"training.steps": 3000, "training.schedule": "cosine", "training.warmup_steps": 150, "data.caption_dropout": 0.1}
_EDGES = {
    "network.kind": "adapter", "data.preprocessor": "canny", "data.caption_dropout": 0.1, "training.learning_rate": 1e-5, "training.schedule": "constant",
    "training.warmup_steps": 100, "output.preview_every": 500,
}
_OBJECT = {"training.steps": 1000, "training.schedule": "cosine", "training.warmup_steps": 50}

PRESETS: tuple[Preset, ...] = (
    Preset("first try · embedded model", "Teaches the embedded checkpoint a shape it never saw: a network, from the sample pictures.", WORLD, None, {
        "network.kind": "locon", "network.rank": 16, "network.alpha": 16.0, "data.resolution": 64, "data.batch_size": 4, "training.steps": 300,
        "training.learning_rate": 1e-3, "training.text_encoder_learning_rate": 5e-4, "training.schedule": "cosine", "training.warmup_steps": 20,
        "training.debiased": True, "validation.share": 0.125, "validation.every": 25, "output.preview_every": 100, "output.save_every": 50,
    }),
    Preset("first word · embedded model", "Teaches the embedded checkpoint a word for a shape it knows: an embedding, from the sample pictures.", WORLD, None, {
        "network.kind": "embedding", "embedding.vectors": 1, "data.resolution": 64, "data.batch_size": 8, "training.steps": 150, "training.learning_rate": 0.02,
        "training.schedule": "cosine", "training.warmup_steps": 20, "training.debiased": True, "output.preview_every": 50, "output.save_every": 50,
    }),
    Preset("first adapter · embedded model", "Has the embedded checkpoint put shapes where outlines are: an adapter, from the sample pictures.", WORLD, None, {
        "network.kind": "adapter", "adapter.kind": "light", "adapter.in_channels": 1, "data.resolution": 72, "data.bucket_step": 8, "data.bucket_min": 64,
        "data.upscale": False, "data.batch_size": 16, "data.flip": True, "data.caption_dropout": 0.1, "training.steps": 600, "training.learning_rate": 2e-3,
        "training.schedule": "cosine", "training.warmup_steps": 50, "training.ema": 0.99, "validation.share": 0.05, "validation.every": 100,
        "output.preview_every": 150, "output.save_every": 100,
    }),
    Preset("character · SD 1.5 · 8 GB", "A person, an animal or a figure from ten to thirty pictures.", SD1, 8, {
        **_SD1, **_CHARACTER, "network.kind": "lora", "network.rank": 16, "network.alpha": 8.0, "training.learning_rate": 1e-4,
        "training.text_encoder_learning_rate": 5e-5,
    }),
    Preset("character · AdaLoRA · SD 1.5 · 8 GB", "The same, with ranks given to the layers that need them; a smaller file.", SD1, 8, {
        **_SD1, **_CHARACTER, **_ADAPTIVE, "training.learning_rate": 5e-4, "training.text_encoder_learning_rate": 1e-4,
    }),
    Preset("style · SD 1.5 · 8 GB", "A way of drawing from thirty or more pictures; convolutions too, which carry texture.", SD1, 8, {
        **_SD1, **_STYLE, "network.kind": "locon", "network.rank": 16, "network.alpha": 8.0, "network.conv_rank": 8, "training.learning_rate": 1e-4,
        "network.text_encoder": False,
    }),
    Preset("style · AdaLoRA · SD 1.5 · 8 GB", "A way of drawing, with ranks where they matter most, in attention's outputs and convolutions too.", SD1, 8, {
        **_SD1, **_STYLE, **_ADAPTIVE, "network.targets": ("q", "k", "v", "out", "ff", "resnet"), "training.learning_rate": 5e-4,
        "network.text_encoder": False,
    }),
    Preset("object · SD 1.5 · 8 GB", "A thing from five to twenty pictures, seen from several sides.", SD1, 8, {
        **_SD1, **_OBJECT, "network.kind": "lora", "network.rank": 8, "network.alpha": 8.0, "training.learning_rate": 1e-4,
        "training.text_encoder_learning_rate": 5e-5, "data.flip": True,
    }),
    Preset("anything small · LoKr · SD 1.5 · 6 GB", "A file of about a megabyte; for simple things and for sharing.", SD1, 6, {
        **_SD1, **_OBJECT, "network.kind": "lokr", "network.rank": 8, "network.alpha": 8.0, "network.factor": 8, "training.learning_rate": 3e-4,
        "network.text_encoder": False,
    }),
    Preset("embedding · SD 1.5 · 6 GB", "A new word for the prompt, a file of some kilobytes; changes nothing of the model itself.", SD1, 6, {
        **_SD1, "network.kind": "embedding", "embedding.vectors": 4, "embedding.norm": "keep", "data.templates": "subject_filewords", "training.steps": 3000,
        "training.learning_rate": 5e-3, "training.schedule": "cosine",
    }),
    Preset("embedding · SDXL · 12 GB", "A new word for the prompt of SDXL, with vectors for both text encoders.", SDXL, 12, {
        **{key: value for key, value in _SDXL.items() if key != "network.text_encoder"}, "network.kind": "embedding", "embedding.vectors": 4,
        "embedding.norm": "keep", "data.templates": "subject_filewords", "training.steps": 3000, "training.learning_rate": 5e-3, "training.schedule": "cosine",
    }),
    Preset("edges adapter · SD 1.5 · 12 GB", "An adapter that has pictures follow edges, from thousands of pictures whose edges canny finds.", SD1, 12, {
        **{key: value for key, value in _SD1.items() if key != "training.min_snr_gamma"}, **_EDGES, "training.gradient_accumulation": 8,
        "training.steps": 20_000,
    }),
    Preset("edges adapter · SDXL · 16 GB", "The same for SDXL.", SDXL, 16, {
        **{key: value for key, value in _SDXL.items() if key not in ("network.text_encoder", "training.min_snr_gamma")}, **_EDGES,
        "training.gradient_accumulation": 4, "training.steps": 20_000,
    }),
    Preset("character · SDXL · 12 GB", "A person, an animal or a figure on SDXL, Pony or Illustrious.", SDXL, 12, {
        **_SDXL, **_CHARACTER, "network.kind": "lora", "network.rank": 16, "network.alpha": 8.0, "training.learning_rate": 1e-4,
    }),
    Preset("character · AdaLoRA · SDXL · 12 GB", "The same, with ranks given to the layers that need them.", SDXL, 12, {
        **_SDXL, **_CHARACTER, **_ADAPTIVE, "training.learning_rate": 4e-4,
    }),
    Preset("style · SDXL · 12 GB", "A way of drawing on SDXL, from thirty or more pictures.", SDXL, 12, {
        **_SDXL, **_STYLE, "network.kind": "lora", "network.rank": 16, "network.alpha": 8.0, "training.learning_rate": 1e-4,
    }),
    Preset("object · SDXL · 12 GB", "A thing from five to twenty pictures, on SDXL.", SDXL, 12, {
        **_SDXL, **_OBJECT, "network.kind": "lora", "network.rank": 8, "network.alpha": 8.0, "training.learning_rate": 1e-4, "data.flip": True,
    }),
)
