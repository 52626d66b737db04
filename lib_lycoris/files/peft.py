"""What a network's tensors leave to a config: PEFT's adapter_config.json beside the file, and diffusers' JSON in the metadata.

Source: huggingface/peft 5d602fdbf: tuners/*/config.py for the keys and their defaults, tuners/*/model.py and layer.py for what they do, utils/other.py
(`get_pattern_key`) for how patterns match.
"""

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
_DEFAULT_ADALORA_ALPHA = 8  # AdaLoraConfig.lora_alpha, where a config leaves it out
# Initialisations that take something out of the base model, which PEFT does again when it loads: without that the factors mean something else.
_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")

FactsOf = Callable[[str, int], "dict[str, object]"]
"""For a layer's path and the rows of its first factor what a config says of it, by the names of networks.hints.Hints: alpha, scale, init_rank, …"""


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


def facts_from_config(config: Mapping[str, object]) -> FactsOf:
    """What PEFT's config says of each layer.

    LoRA: alpha is `lora_alpha` or the first matching entry of `alpha_pattern`; for rsLoRA times √rank, as alpha / rank is the scale here. AdaLoRA: alpha and
    the rank that every layer was made with. LoHa and LoKr: the scale alpha / r. (IA)³: whether the layer is a feed-forward one. OFT: how it makes rotations.

    Raises:
        NetworkFileError: a number is none, a pattern can't be used, or the factors add to another base than the model's.
    """
    kind = str(config.get("peft_type") or "LORA").upper()
    return {"ADALORA": _adalora, "LOHA": _kronecker, "LOKR": _kronecker, "IA3": _ia3, "OFT": _oft}.get(kind, _lora)(config)


def facts_from_diffusers(metadata: Mapping[str, str]) -> FactsOf:
    """The same out of diffusers' `lora_adapter_metadata`: one PEFT config per component, its keys led by "unet.", "text_encoder.", …; or one for all.

    Raises:
        NetworkFileError: the entry is no JSON object, or as `facts_from_config`.
    """
    try:
        packed = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        entries = dict(packed.items())
    except (ValueError, AttributeError, RecursionError) as error:
        raise NetworkFileError(f"the metadata's lora_adapter_metadata is no JSON object ({shown(error)}); remove it or get the file again") from error
    of_component = {}
    for component in _COMPONENTS:
        start = f"{component}."
        of_component[component] = facts_from_config({key[len(start) :]: value for key, value in entries.items() if key.startswith(start)})
    of_all = facts_from_config({key: value for key, value in entries.items() if not key.startswith(tuple(f"{component}." for component in _COMPONENTS))})

    def facts_of(path: str, rank: int) -> dict[str, object]:
        component, _, rest = path.partition(".")
        return of_component[component](rest, rank) if component in of_component else of_all(path, rank)

    return facts_of


def _lora(config: Mapping[str, object]) -> FactsOf:
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGE_THE_BASE):
        advice = "save it again with save_pretrained(…, path_initial_model_for_weight_conversion=…)"
        raise NetworkFileError(f"the network's config says init_lora_weights = {shown(start, 40)}: its factors add to another base than the model; {advice}")
    alpha_of = _patterned(config, "alpha_pattern", config.get("lora_alpha"))

    def facts_of(path: str, rank: int) -> dict[str, object]:
        alpha = alpha_of(path)
        return {} if alpha is None else {"alpha": alpha * math.sqrt(rank) if config.get("use_rslora") else alpha}

    return facts_of


def _adalora(config: Mapping[str, object]) -> FactsOf:
    alpha, rank = _number(config.get("lora_alpha", _DEFAULT_ADALORA_ALPHA), "lora_alpha"), config.get("init_r", 12)
    if type(rank) is not int or rank < 1:
        raise NetworkFileError(f"init_r {shown(rank, 40)} in the network's config is no whole number of at least 1; mend it")
    # an alpha of nothing stands for the rank that is left
    return lambda path, rows: {"alpha": alpha if alpha > 0 else float(rows), "init_rank": rank}


def _kronecker(config: Mapping[str, object]) -> FactsOf:
    alpha_of = _patterned(config, "alpha_pattern", config.get("alpha", 8))
    rank_of = _patterned(config, "rank_pattern", config.get("r", 8))

    def facts_of(path: str, rank: int) -> dict[str, object]:
        alpha, rank_then = alpha_of(path), rank_of(path)
        if not alpha or not rank_then or rank_then < 1:
            raise NetworkFileError(f"alpha {alpha} and r {rank_then} in the network's config give layer {shown(path)} no scale; mend them")
        return {"scale": alpha / rank_then}

    return facts_of


def _ia3(config: Mapping[str, object]) -> FactsOf:
    listed = config.get("feedforward_modules")
    if listed is None:
        return lambda path, rows: {"feedforward": False}
    if isinstance(listed, str):
        pattern = _compiled(listed)
        return lambda path, rows: {"feedforward": pattern.fullmatch(path) is not None}
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise NetworkFileError(f"feedforward_modules in the network's config is {shown(listed, 40)}, neither a pattern nor a list of names; mend it")
    return lambda path, rows: {"feedforward": any(path == name or path.endswith(f".{name}") for name in listed)}


def _oft(config: Mapping[str, object]) -> FactsOf:
    facts: dict[str, object] = {"cayley_neumann": bool(config.get("use_cayley_neumann", True))}
    terms = config.get("num_cayley_neumann_terms")
    if terms is not None:
        if type(terms) is not int or not 1 <= terms <= 100:
            raise NetworkFileError(f"num_cayley_neumann_terms {shown(terms, 40)} in the network's config is no whole number from 1 to 100; mend it")
        facts["cayley_terms"] = terms
    if config.get("coft"):
        facts["coft_limit"] = _number(config.get("eps", 6e-5), "eps")
    return lambda path, rows: facts


def _patterned(config: Mapping[str, object], key: str, default: object) -> Callable[[str], float | None]:
    """The number for a layer's path: of the first matching pattern under `key`, else `default`."""
    patterns = config.get(key) or {}
    if not isinstance(patterns, Mapping):
        raise NetworkFileError(f"{key} in the network's config is {shown(patterns, 40)}, no table of patterns; mend or remove it")
    table = [(_compiled(rf"(?:.*\.)?(?:{pattern})$", pattern), _number(number, key)) for pattern, number in patterns.items()]
    number = None if default is None else _number(default, key.replace("_pattern", ""))
    return lambda path: next((each for pattern, each in table if pattern.match(path)), number)


def _compiled(pattern: str, said: str | None = None) -> re.Pattern[str]:
    said = pattern if said is None else said
    # The config comes from strangers: repeated groups and many wildcards can take years to match.
    if len(said) > 300 or re.search(r"\)[*+{]", said) or len(re.findall(r"[*+{]", said)) > 3:
        raise NetworkFileError(f"pattern {shown(said)} in the network's config is too complicated; write the layers' names out")
    try:
        return re.compile(pattern)
    except re.error as error:
        raise NetworkFileError(f"pattern {shown(said)} in the network's config is no regular expression ({error}); mend it") from error


def _number(value: object, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise NetworkFileError(f"{key} {shown(value, 40)} in the network's config is no finite number; mend it")
    return float(value)
