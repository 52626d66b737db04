"""Settings of kohya's trainers read as ours: the JSON that kohya_ss' page saves, and the TOML that sd-scripts takes as --config_file.

What has an equivalent is taken over; everything else that was set is listed, so that nothing is lost in silence.

Source: bmaltais/kohya_ss, kohya_gui/lora_gui.py (the JSON's names, as "LoRA_type"); kohya-ss/sd-scripts, train_network.py and library/train_util.py
(arguments, which are the TOML's names; tables in it are only for the eye).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError, shown
from ..setting import show
from .config import TrainConfig, settings, toml_reader

LARGEST = 1_000_000
"""Characters of a settings file; a real one has some thousand."""


@dataclass(frozen=True)
class Imported:
    """What came of kohya's settings.

    Attributes:
        values: ours, by key.
        notes: what has no equivalent here, or another meaning, in words.
    """

    values: Mapping[str, Any]
    notes: tuple[str, ...] = field(default_factory=tuple)


def import_settings(text: str) -> Imported:
    """Our settings for a file of kohya_ss (JSON) or sd-scripts (TOML), given as text.

    Raises:
        ConfigError: it is neither, or too long.
    """
    if not isinstance(text, str) or len(text) > LARGEST:
        raise ConfigError(f"the settings to import: expected a text of at most {LARGEST} characters")
    return _Reading(_flat(_parse(text))).run()


def _parse(text: str) -> Mapping[str, Any]:
    text = text.lstrip("\ufeff").strip()
    try:
        plain = json.loads(text) if text.startswith("{") else toml_reader()(text)
    except ValueError as error:
        reason = shown(" ".join(str(error).split()), 120)
        raise ConfigError(f"the settings to import are neither JSON nor TOML ({reason}): choose the file that kohya_ss saved, or the one for "
                          "--config_file") from error
    if not isinstance(plain, Mapping) or not plain:
        raise ConfigError("the settings to import are empty: choose the file that kohya_ss saved, or the one for --config_file")
    return plain


def _flat(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The same without tables."""
    flat: dict[str, Any] = {}
    for key, value in plain.items():
        flat.update(_flat(value) if isinstance(value, Mapping) else {str(key): value})
    return flat


class _Reading:
    """One file on its way to our settings."""

    def __init__(self, given: dict[str, Any]) -> None:
        self._given = given
        self._left = {key: value for key, value in given.items() if value not in _NOTHING and key not in _OF_NO_MATTER}
        self._values: dict[str, Any] = {}
        self._notes: list[str] = []

    def run(self) -> Imported:
        self._unfold_arguments()
        self._kind()
        for key, (ours, convert) in _SAME.items():
            self._take(key, ours, convert)
        for rule in (self._size, self._length, self._rates, self._warmup, self._switches):
            rule()
        self._notes += [f"{key} = {shown(show(value), 60)}: has no equivalent here, it is left out" for key, value in self._left.items()]
        return Imported(self._checked(), tuple(self._notes))

    def _pop(self, key: str) -> Any:
        """The value of that name where it says something; it is then dealt with."""
        return self._left.pop(key, None)

    def _take(self, key: str, ours: str, convert: Callable[[Any], Any]) -> None:
        value = self._pop(key)
        if value is None:
            return
        try:
            self._values[ours] = convert(value)
        except (TypeError, ValueError, KeyError):
            self._notes.append(f"{key} = {shown(show(value), 60)}: not understood, it is left out")

    def _unfold_arguments(self) -> None:
        """network_args and optimizer_args are lists of name=value."""
        for key, known in (("network_args", _NETWORK_ARGUMENTS), ("optimizer_args", _OPTIMIZER_ARGUMENTS)):
            listed = self._pop(key)
            for item in listed if isinstance(listed, list) else str(listed or "").split():
                name, equals, value = str(item).partition("=")
                if equals:
                    self._left[known.get(name.strip(), f"{key}.{name.strip()}")] = value.strip().strip("\"'")

    def _kind(self) -> None:
        words = [str(self._pop(key) or "") for key in ("LoRA_type", "network_module", "algo", "LyCORIS_preset")]
        text = " ".join(words[:3]).lower()
        kind = next((ours for word, ours in _KINDS if word in text), None)
        if kind is None and words[1] in ("networks.lora", "") and ("conv_dim" in self._left or "locon" in text):
            kind = "locon" if _number(self._left.get("conv_dim", 0)) > 0 else "lora"
        if kind is None and text.strip() in _PLAIN:
            kind = "lora"
        if kind is None:
            self._notes.append(f"{shown(text.strip(), 60)}: that kind of network is not trained here; choose one under network.kind")
        else:
            self._values["network.kind"] = kind
        for key in ("conv_dim", "conv_alpha", "factor"):
            meant = kind == "lokr" if key == "factor" else kind in ("locon", "loha", "lokr")
            if not meant or _number(self._left.get(key, 1)) <= 0:  # the page writes them for every kind, and -1 for "by itself"
                self._pop(key)

    def _size(self) -> None:
        value = self._pop("max_resolution") or self._pop("resolution")
        sides = [int(_number(part)) for part in (value if isinstance(value, list) else str(value or "").replace("x", ",").split(",")) if str(part).strip()]
        if not sides:
            return
        if len(set(sides)) > 1:
            self._notes.append(f"resolution = {sides[0]}×{sides[-1]}: here it is one side, of the square with that area")
        side = round((sides[0] * sides[-1]) ** 0.5 / 8) * 8
        self._values["data.resolution"] = side

    def _length(self) -> None:
        """max_train_steps outranks epochs, as it does there only where it is set; kohya_ss says 0 for "not set"."""
        steps, epochs = self._pop("max_train_steps"), self._pop("max_train_epochs") or self._pop("epoch")
        if epochs and not (steps and "epoch" not in self._given and "max_train_epochs" not in self._given) and (not steps or "max_train_epochs" in self._given):
            self._values["training.epochs"] = int(_number(epochs))
        elif steps:
            self._values["training.steps"] = int(_number(steps))

    def _rates(self) -> None:
        whole, unet, text = (self._pop(key) for key in ("learning_rate", "unet_lr", "text_encoder_lr"))
        texts = text if isinstance(text, list) else [text]
        if unet or whole:
            self._values["training.learning_rate"] = _number(unet or whole)
        if texts[0]:
            self._values["training.text_encoder_learning_rate"] = _number(texts[0])
        elif unet and whole:
            self._values["training.text_encoder_learning_rate"] = _number(whole)
        if len(texts) > 1 and texts[1]:
            self._values["training.text_encoder_2_learning_rate"] = _number(texts[1])
        for key in ("t5xxl_lr", "text_encoder_lr_2"):
            self._pop(key)

    def _warmup(self) -> None:
        steps, share = self._pop("lr_warmup_steps"), self._pop("lr_warmup")
        if steps and 0 < _number(steps) < 1:
            steps, share = None, 100 * _number(steps)
        total = self._values.get("training.steps")
        if steps:
            self._values["training.warmup_steps"] = int(_number(steps))
        elif share and total:
            self._values["training.warmup_steps"] = int(total * _number(share) / 100)
        elif share:
            self._notes.append(f"lr_warmup = {share} %: a share of steps that follow from epochs; set training.warmup_steps")

    def _switches(self) -> None:
        if self._pop("network_train_unet_only") or _zero(self._given.get("text_encoder_lr")):
            self._values["network.text_encoder"] = False
            self._values.pop("training.text_encoder_learning_rate", None)
        if self._pop("network_train_text_encoder_only"):
            self._notes.append("network_train_text_encoder_only: the UNet is always trained here; set training.block_learning_rates to 0 for it")
        if self._pop("cache_latents_to_disk"):
            self._values["data.cache"] = "disk"
        if self._pop("bucket_no_upscale"):
            self._values["data.upscale"] = False
        if self._given.get("enable_bucket") is False:
            self._values["data.buckets"] = False
        if self._pop("v_parameterization"):
            self._values["model.v_prediction"] = "true"
        if self._pop("masked_loss"):
            self._values["data.masks"] = "files"
        if self._pop("alpha_mask"):
            self._values["data.masks"] = "alpha"
        kind = self._values.get("network.kind")
        if self._pop("dora_wd") and kind in ("lora", "locon", "loha", "lokr"):
            self._values["network.dora"] = True
        if self._pop("use_tucker") and kind in ("locon", "loha", "lokr"):
            self._values["network.tucker"] = True

    def _checked(self) -> dict[str, Any]:
        """The values that our record takes; what it refuses becomes a note."""
        known = {setting.key: setting for setting in settings()}
        good: dict[str, Any] = {}
        for key, value in sorted(self._values.items(), key=lambda item: item[0] not in _FIRST):  # what others are checked against comes first
            try:
                good[key] = known[key].check(value)
                TrainConfig.from_dict(_sections({**good}))
            except ConfigError as error:
                good.pop(key, None)
                self._notes.append(f"{error}; it is left out")
        return good


def _sections(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    sections: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    return sections


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError(value)
    return float(value)


def _whole(value: Any) -> int:
    return int(_number(value))


def _yes(value: Any) -> bool:
    return value if isinstance(value, bool) else str(value).lower() in ("true", "1", "yes")


def _zero(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == 0


_FIRST = ("network.kind", "data.resolution", "training.steps")
_NOTHING: tuple[Any, ...] = (None, "", 0, 0.0, False, [], "0", "None", "none", "False", "false")
_PLAIN = ("standard", "networks.lora", "standard networks.lora", "")
_KINDS = (("loha", "loha"), ("lokr", "lokr"), ("ia3", "ia3"), ("native", "full"), ("algo=full", "full"), ("locon", "locon"), ("full", "full"))
_PRECISIONS = {"no": "fp32", "float": "fp32", "fp32": "fp32", "fp16": "fp16", "bf16": "bf16"}
_OPTIMIZERS = {
    "adamw": "adamw", "adamw8bit": "adamw8bit", "pagedadamw8bit": "adamw8bit", "pagedadamw": "adamw", "lion": "lion", "lion8bit": "lion", "prodigy": "prodigy",
    "adamwschedulefree": "schedule_free", "radamschedulefree": "schedule_free",
}
_SCHEDULES = {
    "constant": "constant", "constant_with_warmup": "constant", "cosine": "cosine", "linear": "linear", "cosine_with_restarts": "cosine_restarts",
    "polynomial": "polynomial",
}
_LOSSES = {"l2": "mse", "huber": "huber", "smooth_l1": "smooth_l1"}
_NETWORK_ARGUMENTS = {
    "conv_dim": "conv_dim", "conv_alpha": "conv_alpha", "algo": "algo", "dora_wd": "dora_wd", "use_tucker": "use_tucker", "factor": "factor",
    "rank_dropout": "rank_dropout", "module_dropout": "module_dropout", "dropout": "network_dropout", "decompose_both": "decompose_both",
    "full_matrix": "full_matrix", "rs_lora": "rs_lora", "preset": "LyCORIS_preset",
}
_OPTIMIZER_ARGUMENTS = {"weight_decay": "weight_decay"}
_OF_NO_MATTER = (
    "xformers", "sdpa", "mem_eff_attn", "cache_latents", "caption_extension", "lowram", "highvram", "persistent_data_loader_workers",
    "num_cpu_threads_per_process", "max_data_loader_n_workers", "max_token_length", "save_model_as", "logging_dir", "log_with", "sdxl", "v2", "model_list",
    "train_on_input", "full_fp16", "full_bf16", "vae_batch_size", "num_processes", "num_machines", "dynamo_backend", "gpu_ids", "multi_gpu",
    "main_process_port", "save_state", "wandb_run_name", "sdxl_cache_text_encoder_outputs", "sdxl_no_half_vae", "no_half_vae", "LyCORIS_preset",
    "enable_bucket", "constrain", "weighted_captions", "extra_accelerate_launch_args", "huber_schedule", "metadata_author", "unit",
)
"""About the machine or that program alone; or with the same effect here whatever they say."""
_SAME: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "pretrained_model_name_or_path": ("model.checkpoint", str), "vae": ("model.vae", str), "clip_skip": ("model.clip_skip", _whole),
    "zero_terminal_snr": ("model.zero_terminal_snr", _yes), "train_data_dir": ("data.folders", lambda value: [str(value)]),
    "dataset_config": ("data.dataset", str), "reg_data_dir": ("data.prior_folder", str), "train_batch_size": ("data.batch_size", _whole),
    "dataset_repeats": ("data.repeats", _whole), "bucket_reso_steps": ("data.bucket_step", _whole), "min_bucket_reso": ("data.bucket_min", _whole),
    "max_bucket_reso": ("data.bucket_max", _whole), "flip_aug": ("data.flip", _yes), "random_crop": ("data.random_crop", _yes),
    "shuffle_caption": ("data.shuffle_tags", _yes), "keep_tokens": ("data.keep_tags", _whole), "caption_dropout_rate": ("data.caption_dropout", _number),
    "caption_tag_dropout_rate": ("data.tag_dropout", _number), "network_dim": ("network.rank", _whole), "network_alpha": ("network.alpha", _number),
    "conv_dim": ("network.conv_rank", _whole), "conv_alpha": ("network.conv_alpha", _number), "network_weights": ("network.start_from", str),
    "network_dropout": ("network.dropout", _number), "rank_dropout": ("network.rank_dropout", _number), "module_dropout": ("network.module_dropout", _number),
    "scale_weight_norms": ("network.max_norm", _number), "factor": ("network.factor", _whole), "decompose_both": ("network.decompose_both", _yes),
    "full_matrix": ("network.full_matrix", _yes), "rs_lora": ("network.rs_lora", _yes),
    "optimizer": ("training.optimizer", lambda value: _OPTIMIZERS[str(value).lower()]),
    "optimizer_type": ("training.optimizer", lambda value: _OPTIMIZERS[str(value).lower()]), "weight_decay": ("training.weight_decay", _number),
    "lr_scheduler": ("training.schedule", lambda value: _SCHEDULES[str(value).lower()]), "lr_scheduler_num_cycles": ("training.restarts", _whole),
    "mixed_precision": ("training.precision", lambda value: _PRECISIONS[str(value).lower()]), "seed": ("training.seed", _whole),
    "min_snr_gamma": ("training.min_snr_gamma", _number), "debiased_estimation_loss": ("training.debiased", _yes),
    "noise_offset": ("training.noise_offset", _number), "loss_type": ("training.loss", lambda value: _LOSSES[str(value).lower()]),
    "huber_c": ("training.huber_c", _number), "prior_loss_weight": ("training.prior_weight", _number),
    "gradient_accumulation_steps": ("training.gradient_accumulation", _whole), "gradient_checkpointing": ("training.gradient_checkpointing", _yes),
    "max_grad_norm": ("training.max_grad_norm", _number), "output_name": ("output.name", str), "output_dir": ("output.folder", str),
    "save_precision": ("output.dtype", lambda value: _PRECISIONS[str(value).lower()]), "save_every_n_steps": ("output.network_every", _whole),
    "save_every_n_epochs": ("output.network_epochs", _whole), "sample_every_n_steps": ("output.preview_every", _whole),
}
