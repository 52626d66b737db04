"""alpha of networks whose files leave it to a config: PEFT's adapter_config.json beside the file, and diffusers' JSON in the metadata."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from lib_lycoris.errors import NetworkFileError, shown
from lib_lycoris.files.regular import open_regular

CONFIG_NAME = "adapter_config.json"
_LARGEST_CONFIG = 10_000_000  # bytes
_COMPONENTS = ("unet", "text_encoder_2", "text_encoder", "transformer")

AlphaOf = Callable[[str, int], "float | None"]
"""alpha for a layer's path and rank, so that alpha / rank is its scale; None where the file says nothing."""


def read_config(path: str | os.PathLike[str]) -> dict[str, object]:
    """The adapter_config.json beside the network file at `path`; empty where there is none.

    Raises:
        NetworkFileError: the config is no JSON object of a sensible size.
    """
    config_path = Path(path).parent / CONFIG_NAME
    if not config_path.is_file():
        return {}
    try:
        with open_regular(config_path) as file:
            config = json.loads(file.read(_LARGEST_CONFIG + 1).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise NetworkFileError(f"{shown(config_path)} is no JSON ({shown(error)}); get it again, or move it away to use the network without it") from error
    if not isinstance(config, dict):
        raise NetworkFileError(f"{shown(config_path)} is no JSON object; get it again, or move it away to use the network without it")
    return config


def config_as_metadata(config: Mapping[str, object]) -> dict[str, str]:
    """The config's entries as text, as a network's metadata holds them."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in config.items()}


def alpha_from_config(config: Mapping[str, object]) -> AlphaOf:
    """alpha per layer as PEFT computes it: `lora_alpha`, or the first matching entry of `alpha_pattern`; for rsLoRA times √rank, as alpha / rank is the scale.

    Raises:
        NetworkFileError: an alpha is no finite number, or a pattern can't be used.

    Source: huggingface/peft 5d602fdbf, tuners/lora/model.py and utils/other.py (`get_pattern_key`).
    """
    default = config.get("lora_alpha")
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, Mapping):
        raise NetworkFileError(f"alpha_pattern in the network's config is {shown(patterns, 40)}, no table of patterns; mend or remove it")
    compiled = [(_pattern(pattern), _number(alpha)) for pattern, alpha in patterns.items()]
    if default is not None:
        default = _number(default)

    def alpha_of(path: str, rank: int) -> float | None:
        alpha = next((alpha for pattern, alpha in compiled if pattern.match(path)), default)
        return alpha * math.sqrt(rank) if alpha is not None and config.get("use_rslora") else alpha

    return alpha_of


def alpha_from_diffusers(metadata: Mapping[str, str]) -> AlphaOf:
    """alpha per layer out of diffusers' `lora_adapter_metadata`: one PEFT config per component, its keys led by "unet.", "text_encoder.", …

    Raises:
        NetworkFileError: the entry is no JSON object, or as `alpha_from_config`.
    """
    try:
        packed = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        entries = dict(packed.items())
    except (ValueError, AttributeError, RecursionError) as error:
        raise NetworkFileError(f"the metadata's lora_adapter_metadata is no JSON object ({shown(error)}); remove it or get the file again") from error
    configs = {}
    for component in _COMPONENTS:
        start = f"{component}."
        configs[component] = alpha_from_config({key[len(start) :]: value for key, value in entries.items() if key.startswith(start)})

    def alpha_of(path: str, rank: int) -> float | None:
        component, _, rest = path.partition(".")
        return configs[component](rest, rank) if component in configs else None

    return alpha_of


def _pattern(pattern: str) -> re.Pattern[str]:
    # The config comes from strangers: repeated groups and many wildcards can take years to match.
    if len(pattern) > 300 or re.search(r"\)[*+{]", pattern) or len(re.findall(r"[*+{]", pattern)) > 3:
        raise NetworkFileError(f"pattern {shown(pattern)} in the network's config is too complicated; write the layers' names out")
    try:
        return re.compile(rf"(?:.*\.)?(?:{pattern})$")
    except re.error as error:
        raise NetworkFileError(f"pattern {shown(pattern)} in the network's config is no regular expression ({error}); mend it") from error


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise NetworkFileError(f"alpha {shown(value, 40)} in the network's config is no finite number; mend it")
    return float(value)
