"""What a network file says about itself: kohya's `ss_…` keys and Stability's `modelspec.…`, made from plain values, reduced for publishing, and read back.

Source: kohya-ss/sd-scripts train_network.py and library/sai_model_spec.py; Stability-AI/ModelSpec.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone

from lib_lycoris.errors import ConfigError, shown

# Every key that a network trained here can hold, and what it says. None holds a path, a user's or a machine's name.
HELD = {
    "ss_output_name": "the network's name",
    "ss_base_model_version": "the base model: sd_v1, sd_v2 or sdxl_base_v1-0",
    "ss_v2": "whether the base is SD 2.x",
    "ss_network_module": "who can load the file",
    "ss_network_dim": "rank of the linear layers",
    "ss_network_alpha": "alpha of the linear layers",
    "ss_network_args": "the kind, and rank and alpha of the convolutions, as JSON",
    "ss_sd_model_name": "file name of the checkpoint it was trained on, without its folder",
    "ss_new_sd_model_hash": "that checkpoint's sha256",
    "ss_resolution": "picture size in training",
    "ss_num_train_images": "number of training pictures",
    "ss_batch_size_per_device": "pictures per step",
    "ss_steps": "steps done",
    "ss_max_train_steps": "steps planned",
    "ss_learning_rate": "learning rate",
    "ss_unet_lr": "learning rate of the UNet",
    "ss_text_encoder_lr": "learning rate of the text encoder",
    "ss_optimizer": "optimiser",
    "ss_lr_scheduler": "learning-rate schedule",
    "ss_mixed_precision": "precision of the arithmetic",
    "ss_seed": "seed",
    "ss_clip_skip": "text-encoder layers left out",
    "ss_validation_loss": "loss on pictures that were not trained on, at the end",
    "ss_training_started_at": "start, in seconds since 1970",
    "ss_training_finished_at": "end, in seconds since 1970",
    "ss_tag_frequency": "how often each caption word group was seen, as JSON",
    "ss_training_comment": "the user's own remark",
    "modelspec.sai_model_spec": "version of the specification",
    "modelspec.architecture": "base model and kind",
    "modelspec.implementation": "whose naming the file has",
    "modelspec.title": "the network's name",
    "modelspec.date": "when the training ended",
    "modelspec.resolution": "picture size",
    "modelspec.prediction_type": "epsilon or v",
    "modelspec.trigger_phrase": "words that call the concept",
    "modelspec.hash_sha256": "sha256 of the tensors",
    "sshs_model_hash": "sha256 of the tensors",
    "sshs_legacy_hash": "the same idea, as older tools look it up",
}
# What an adapter's file can hold besides.
HELD_BY_ADAPTERS = {
    "lyco_adapter_layout": "adapters: whose UNet's sizes the maps have, sd or sdxl",
    "lyco_adapter_preprocessor": "adapters: what the control pictures were made with",
    "lyco_adapter_preprocessor_values": "adapters: its values where they were not its own",
    "lyco_adapter_resolution": "adapters: shorter side of the control pictures, in pixels",
    "lyco_adapter_downscale": "adapters: pixels for each cell of the first map",
    "lyco_adapter_task": "adapters: what it goes by for the CoAdapter fuser",
}
# What a loader can't do without; kohya's tools keep the same set under "no_metadata".
MINIMUM = ("ss_v2", "ss_base_model_version", "ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_network_args")

_ARCHITECTURES = {"sd_v1": "stable-diffusion-v1", "sd_v2": "stable-diffusion-v2-512", "sdxl_base_v1-0": "stable-diffusion-xl-v1-base"}
# Columns that a cross-attention key projection reads: the width of the base model's conditioning.
_CONTEXT_WIDTHS = {768: "sd_v1", 1024: "sd_v2", 2048: "sdxl_base_v1-0"}
_CROSS_ATTENTION = re.compile(r"attn2[._](?:processor[._])?to_[kv](?:_lora)?\.(?:lora_down|lora_A|lora\.down|down)\b")


@dataclass(frozen=True)
class TrainingFacts:
    """What a training run knows when it saves; what is None is left out of the file.

    `rank` and `alpha` are "Dynamic" where layers have their own. `module` is kohya's name of who loads the file, `arguments` what that is to
    be told; `form` is the specification's word for what the file is, "lora", "textual-inversion" or
    "t2i-adapter".
    `checkpoint_name` may be a path: its folder is dropped. `tag_frequency` is {caption part: count}. Times are seconds since 1970.
    """

    name: str
    base_model: str = "sd_v1"
    prediction: str = "eps"
    rank: int | str | None = None
    alpha: float | str | None = None
    module: str | None = "networks.lora"
    arguments: Mapping[str, object] = field(default_factory=dict)
    conv_rank: int | None = None
    conv_alpha: float | None = None
    checkpoint_name: str | None = None
    checkpoint_hash: str | None = None
    resolution: int | None = None
    pictures: int | None = None
    batch_size: int | None = None
    steps: int | None = None
    planned_steps: int | None = None
    learning_rate: float | str | None = None
    unet_learning_rate: float | None = None
    text_encoder_learning_rate: float | None = None
    optimizer: str | None = None
    schedule: str | None = None
    precision: str | None = None
    seed: int | None = None
    clip_skip: int | None = None
    validation_loss: float | None = None
    started: float | None = None
    finished: float | None = None
    trigger_words: Sequence[str] = ()
    tag_frequency: Mapping[str, int] = field(default_factory=dict)
    comment: str | None = None
    form: str = "lora"

    def __post_init__(self) -> None:
        if not self.name or re.search(r"[/\\]", self.name):
            raise ConfigError(f"network name {shown(self.name)!r} is empty or holds a slash; give a name without folders")
        if self.base_model not in _ARCHITECTURES:
            raise ConfigError(f"base model {shown(self.base_model)!r} is unknown; known are {', '.join(_ARCHITECTURES)}")
        if self.prediction not in ("eps", "v"):
            raise ConfigError(f"prediction {shown(self.prediction)!r} is neither eps nor v")


def make_metadata(facts: TrainingFacts) -> dict[str, str]:
    """The metadata of a network trained here; its keys are among those of `HELD`. The hashes are added by `with_hashes` when the tensors are there."""
    values = {**_kohya_values(facts), **_modelspec_values(facts)}
    return {key: str(value) for key, value in values.items() if value is not None}


def with_hashes(metadata: Mapping[str, str], model_hash: str, legacy_hash: str) -> dict[str, str]:
    """The metadata and the fingerprints of the tensors that it goes with, as files.hashes computes them."""
    return {**metadata, "sshs_model_hash": model_hash, "sshs_legacy_hash": legacy_hash, "modelspec.hash_sha256": f"0x{model_hash}"}


def reduce_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """Only what a loader needs (`MINIMUM`), for publishing."""
    return {key: metadata[key] for key in MINIMUM if key in metadata}


def read_base_model(metadata: Mapping[str, str], shapes: Mapping[str, Sequence[int]] | None = None) -> str | None:
    """The base model a network is for ("sd_v1", "sd_v2", "sdxl_base_v1-0") from its metadata, else its tensors' names and shapes, else None."""
    version = metadata.get("ss_base_model_version", "")
    for base in _ARCHITECTURES:
        if version.startswith(base.partition("_base")[0]):
            return base
    architecture = metadata.get("modelspec.architecture", "")
    for base, start in _ARCHITECTURES.items():
        if architecture.startswith(start.removesuffix("-512").removesuffix("-base")):
            return base
    for key, shape in (shapes or {}).items():
        if key.startswith(("lora_te2_", "text_encoder_2.")):
            return "sdxl_base_v1-0"
        if _CROSS_ATTENTION.search(key) and len(shape) > 1 and shape[1] in _CONTEXT_WIDTHS:
            return _CONTEXT_WIDTHS[shape[1]]
    return None


def _kohya_values(facts: TrainingFacts) -> dict[str, object]:
    conv = {"conv_dim": facts.conv_rank, "conv_alpha": facts.conv_alpha} if facts.conv_rank else {}
    arguments = {**facts.arguments, **conv}
    return {
        "ss_output_name": facts.name,
        "ss_base_model_version": facts.base_model,
        "ss_v2": facts.base_model == "sd_v2",
        "ss_network_module": facts.module,
        "ss_network_dim": facts.rank,
        "ss_network_alpha": facts.alpha,
        "ss_network_args": _json({key: str(value) for key, value in arguments.items() if value is not None}) if arguments else None,
        "ss_sd_model_name": re.split(r"[/\\]", facts.checkpoint_name)[-1] if facts.checkpoint_name else None,
        "ss_new_sd_model_hash": facts.checkpoint_hash,
        "ss_resolution": f"({facts.resolution}, {facts.resolution})" if facts.resolution else None,
        "ss_num_train_images": facts.pictures,
        "ss_batch_size_per_device": facts.batch_size,
        "ss_steps": facts.steps,
        "ss_max_train_steps": facts.planned_steps,
        "ss_learning_rate": facts.learning_rate,
        "ss_unet_lr": facts.unet_learning_rate,
        "ss_text_encoder_lr": facts.text_encoder_learning_rate,
        "ss_optimizer": facts.optimizer,
        "ss_lr_scheduler": facts.schedule,
        "ss_mixed_precision": facts.precision,
        "ss_seed": facts.seed,
        "ss_clip_skip": facts.clip_skip,
        "ss_validation_loss": facts.validation_loss,
        "ss_training_started_at": facts.started,
        "ss_training_finished_at": facts.finished,
        # kohya's tools expect the counts per dataset folder; the folder's name stays out
        "ss_tag_frequency": _json({"captions": dict(facts.tag_frequency)}) if facts.tag_frequency else None,
        "ss_training_comment": facts.comment,
    }


def _modelspec_values(facts: TrainingFacts) -> dict[str, object]:
    ended = datetime.fromtimestamp(facts.finished, timezone.utc) if facts.finished is not None else None
    architecture = _ARCHITECTURES[facts.base_model]
    if facts.base_model == "sd_v2" and facts.prediction == "v":
        architecture = "stable-diffusion-v2-768-v"
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/{facts.form}",
        "modelspec.implementation": "diffusers",
        "modelspec.title": facts.name,
        "modelspec.date": ended.strftime("%Y-%m-%dT%H:%M:%S") if ended else None,
        "modelspec.resolution": f"{facts.resolution}x{facts.resolution}" if facts.resolution else None,
        "modelspec.prediction_type": {"eps": "epsilon", "v": "v"}[facts.prediction],
        "modelspec.trigger_phrase": ", ".join(facts.trigger_words) or None,
    }


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
