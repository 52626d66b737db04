"""PEFT's folders: adapter_config.json and adapter_model.safetensors, one folder for each model (unet, text_encoder, text_encoder_2) where there are several.

Source: huggingface/peft, docs/source/developer_guides/checkpoint.md.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lib_lycoris.errors import ConfigError, LycoError, shown
from lib_lycoris.files.peft import CONFIG_NAME
from lib_lycoris.files.safetensors import write_tensors

WEIGHTS_NAME = "adapter_model.safetensors"


@dataclass(frozen=True)
class Adapter:
    """One module's LoRA as PEFT holds it: A [R,I,…], B [O,R,…], scale (alpha/R), a bias [O] that is added unscaled, and DoRA's magnitude [O] or [1,O,1,1]."""

    a: Tensor
    b: Tensor
    scale: float
    bias: Tensor | None = None
    magnitude: Tensor | None = None


@dataclass(frozen=True)
class Loha:
    """One module's LoHa: its parameters as PEFT names them (hada_w1_a, …), rank and alpha."""

    tensors: Mapping[str, Tensor]
    rank: int
    alpha: float


def checked_folder(out: Path) -> Path:
    """`out` as a folder for an adapter.

    Raises:
        ConfigError: it is a file, or named like one.
    """
    if out.is_file() or out.suffix.lower() in (".safetensors", ".bin", ".pt"):
        raise ConfigError(f"output {shown(out)}: PEFT's form is a folder ({CONFIG_NAME} and {WEIGHTS_NAME}); name a folder")
    return out


def possible_files(out: Path) -> list[Path]:
    """Where `write` may put weights."""
    return [out / folder / WEIGHTS_NAME for folder in ("", "unet", "text_encoder", "text_encoder_2")]


def write(out: Path, parts: Mapping[str, Mapping[str, Adapter]], metadata: Mapping[str, str]) -> int:
    """Writes {component: {dotted module name: adapter}}, into `out` itself where there is one component, else into a folder for each; gives the weights' bytes.

    Raises:
        LycoError: a folder or file could not be written.
    """
    made = {component: (_tensors(component, adapters), _config(component, adapters)) for component, adapters in parts.items()}
    return _write_folders(out, made, metadata)


def write_loha(out: Path, parts: Mapping[str, Mapping[str, Loha]], metadata: Mapping[str, str]) -> int:
    """The same for LoHa.

    Raises:
        LycoError: a folder or file could not be written.
    """
    made = {}
    for component, adapters in parts.items():
        named = {_own_name(component, name): adapter for name, adapter in adapters.items()}
        tensors = {f"base_model.model.{name}.{part}": tensor for name, adapter in named.items() for part, tensor in adapter.tensors.items()}
        cores = any(f"{name}.hada_t1" in key for name in named for key in tensors)
        made[component] = (tensors, {
            "peft_type": "LOHA", **_COMMON, **_ranks({name: adapter.rank for name, adapter in named.items()}, "r"),
            **_ranks({name: adapter.alpha for name, adapter in named.items()}, "alpha"), "target_modules": sorted(named), "use_effective_conv2d": cores,
            "rank_dropout": 0.0, "module_dropout": 0.0, "init_weights": True,
        })
    return _write_folders(out, made, metadata)


def _write_folders(out: Path, parts: Mapping[str, tuple[dict[str, Tensor], dict[str, object]]], metadata: Mapping[str, str]) -> int:
    size = 0
    for component, (tensors, config) in parts.items():
        folder = out if len(parts) == 1 else out / component
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_tensors(folder / WEIGHTS_NAME, tensors, {"format": "pt", **metadata})
            draft = folder / f".{CONFIG_NAME}.tmp"
            draft.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            os.replace(draft, folder / CONFIG_NAME)
        except OSError as error:
            raise LycoError(f"{shown(folder)} could not be written: {error.strerror or error}; free some space or choose another folder") from error
        size += (folder / WEIGHTS_NAME).stat().st_size
    return size


def _own_name(component: str, name: str) -> str:
    # transformers 5 has no text_model level in CLIPTextModel, but in CLIPTextModelWithProjection, and PEFT's loader wants the model's very names
    return name.removeprefix("text_model.") if component == "text_encoder" else name


def _tensors(component: str, adapters: Mapping[str, Adapter]) -> dict[str, Tensor]:
    biased = any(adapter.bias is not None for adapter in adapters.values())
    tensors = {}
    for name, adapter in adapters.items():
        start = f"base_model.model.{_own_name(component, name)}"
        tensors.update({f"{start}.lora_A.weight": adapter.a, f"{start}.lora_B.weight": adapter.b})
        if adapter.magnitude is not None:
            tensors[f"{start}.lora_magnitude_vector"] = adapter.magnitude
        if biased:
            tensors[f"{start}.lora_B.bias"] = torch.zeros(adapter.b.shape[0]) if adapter.bias is None else adapter.bias / (adapter.scale or 1.0)
    return tensors


def _config(component: str, adapters: Mapping[str, Adapter]) -> dict[str, object]:
    named = {_own_name(component, name): adapter for name, adapter in adapters.items()}
    alphas = _ranks({name: adapter.scale * adapter.a.shape[0] for name, adapter in named.items()}, "alpha")
    return {
        "peft_type": "LORA", **_COMMON, "bias": "none", "fan_in_fan_out": False, **_ranks({name: adapter.a.shape[0] for name, adapter in named.items()}, "r"),
        "lora_alpha": alphas["alpha"], "alpha_pattern": alphas["alpha_pattern"], "lora_dropout": 0.0, "target_modules": sorted(named),
        "init_lora_weights": True, "use_rslora": False, "use_dora": any(adapter.magnitude is not None for adapter in adapters.values()),
        "lora_bias": any(adapter.bias is not None for adapter in adapters.values()),
    }


_COMMON = {"task_type": None, "inference_mode": True, "base_model_name_or_path": None}


def _ranks(values: Mapping[str, float], name: str) -> dict[str, object]:
    """The commonest of the modules' values under `name`, and the others by module."""
    common = Counter(values.values()).most_common(1)[0][0]
    pattern = "rank_pattern" if name == "r" else "alpha_pattern"
    # "^": only this very module, not others whose names end so
    return {name: common, pattern: {f"^{module}": value for module, value in values.items() if value != common}}
