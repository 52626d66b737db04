"""A result's metadata: what stays true of the file that it was made from, what has to change, and fingerprints."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lib_lycoris.errors import ConfigError
from lib_lycoris.files.hashes import legacy_hash, tensor_hash
from lib_lycoris.files.metadata import with_hashes
from lib_lycoris.files.safetensors import write_tensors
from lib_lycoris.tools.names import SDXL, Key, kohya_key
from lib_lycoris.tools.source import source_files

RECIPE = "lyco.recipe"
"""How a file was made by these tools, in words; names files without their folders."""

# What speaks of the bytes or of the spelling of one file.
_STALE = re.compile(r"sshs_|modelspec\.hash_sha256$|lora_adapter_metadata$|format$|ss_network_(dim|alpha|args|module)$")
# An adapter_config.json, as a loaded network's metadata holds it.
_PEFT_CONFIG = re.compile(
    r"(peft_type|peft_version|auto_mapping|base_model_name_or_path|revision|task_type|inference_mode|r|lora_\w+|alpha|alpha_pattern|rank_pattern|target_modules|exclude_modules"
    r"|modules_to_save|bias|fan_in_fan_out|use_\w+|init_\w+|layers_\w+|module_dropout|rank_dropout|megatron_\w+|loftq_config|eva_config|corda_config|runtime_config|layer_replication"
    r"|qalora_group_size|arrow_config|ensure_weight_tying|target_parameters|trainable_token_indices|decompose_\w+|target_r|init_r|tinit|tfinal|deltaT|beta1|beta2|orth_reg_weight"
    r"|total_step|feedforward_modules|oft_\w+|boft_\w+|coft|eps|block_share|num_cayley_neumann_terms|rank_dropout_scale)$"
)


def carried_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """What of a file's metadata is true of another spelling of it too."""
    return {key: value for key, value in metadata.items() if not _STALE.match(key) and not _PEFT_CONFIG.match(key)}


def common_metadata(files: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What several files' metadata say alike, and their trigger words and tag counts together."""
    first, *others = [carried_metadata(metadata) for metadata in files]
    common = {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}
    triggers = dict.fromkeys(word.strip() for metadata in files for word in metadata.get("modelspec.trigger_phrase", "").split(",") if word.strip())
    tags = dict(pair for metadata in files for pair in _json_object(metadata.get("ss_tag_frequency")).items())
    if triggers:
        common["modelspec.trigger_phrase"] = ", ".join(triggers)
    if tags:
        common["ss_tag_frequency"] = json.dumps(tags, ensure_ascii=False, sort_keys=True)
    return common


def network_facts(layers: Mapping[Key, Mapping[str, Tensor]], base_model: str | None, name: str) -> dict[str, str]:
    """The entries by which loaders know a low-rank network: name, base model, module, rank and alpha of most layers, and of the larger convolutions."""
    linear, large = Counter(), Counter()
    for tensors in layers.values():
        if "lora_down.weight" in tensors:
            down = tensors["lora_down.weight"]
            (large if down[0].numel() > down.shape[1] else linear)[(down.shape[0], float(tensors["alpha"]))] += 1
    facts = {"ss_output_name": name, "modelspec.title": name}
    if base_model is not None:
        facts.update({"ss_base_model_version": base_model, "ss_v2": str(base_model == "sd_v2")})
    if linear or large:
        rank, alpha = _agreed(linear or large)
        facts |= {"ss_network_module": "networks.lora", "ss_network_dim": rank, "ss_network_alpha": alpha}
    if large:
        rank, alpha = _agreed(large)
        facts["ss_network_args"] = json.dumps({"conv_dim": rank, "conv_alpha": alpha})
    return facts


def _agreed(pairs: Counter[tuple[int, float]]) -> tuple[str, str]:
    """Rank and alpha as text where all layers have the same; else the word that kohya's own tools write there."""
    rank, alpha = next(iter(pairs)) if len(pairs) == 1 else ("Dynamic", "Dynamic")
    return str(rank), str(alpha)


def write_network(path: Path, layers: Mapping[Key, Mapping[str, Tensor]], metadata: Mapping[str, str], base_model: str | None,
                  packed: Mapping[str, Tensor] | None = None) -> int:
    """Writes the layers under kohya's names, what is packed with them, the metadata and fresh fingerprints; gives the file's size in bytes.

    Raises:
        LycoError: the file could not be written; an older one stays.
    """
    tensors = {f"{kohya_key(key, base_model)}.{part}": tensor for key, parts in layers.items() for part, tensor in parts.items()} | dict(packed or {})
    write_tensors(path, tensors, with_hashes(metadata, tensor_hash(tensors), legacy_hash(tensors, metadata)))
    return path.stat().st_size


def single_file(out: str | Path, *sources: str | Path) -> Path:
    """`out` as a path for a network file.

    Raises:
        ConfigError: it does not end in .safetensors, is a folder, or is one of the files that are read.
    """
    out = Path(out)
    if out.suffix.lower() != ".safetensors":
        raise ConfigError(f"output {out}: expected a name that ends in .safetensors")
    if out.is_dir():
        raise ConfigError(f"output {out} is a folder; name a file")
    check_not_source([out], *sources)
    return out


def check_not_source(outputs: Iterable[Path], *sources: str | Path) -> None:
    """Raises ConfigError where one of the outputs is one of the files that are read, also under another name or in a folder that is named."""
    read = {file.resolve(): source for source in sources for file in source_files(source)}
    for out in outputs:
        if out.resolve() in read:
            raise ConfigError(f"output {out} is the input {read[out.resolve()]}: nothing was written; choose another name")


def fitted(tensor: Tensor, dtype: torch.dtype, exact: bool) -> Tensor:
    """`tensor` (float32) in `dtype`; where that would round it (`exact`) or overflow, as it is."""
    small = tensor.to(dtype)
    keeps = bool(torch.equal(small.float(), tensor)) if exact else bool(torch.isfinite(small).all())
    return (small if keeps else tensor).contiguous()


def architecture_of(base_model: str | None) -> str | None:
    """modelspec.architecture of a network for that base model."""
    names = {"sd_v1": "stable-diffusion-v1", "sd_v2": "stable-diffusion-v2-512", SDXL: "stable-diffusion-xl-v1-base"}
    return f"{names[base_model]}/lora" if base_model in names else None


def _json_object(text: str | None) -> dict[str, object]:
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
