"""Which layers of a model a network is trained on, by kohya's conventions."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping

from torch import nn

from ..errors import ConfigError, shown
from ..patching.targets import Target
from .config import KINDS_WITHOUT_LAYERS, NetworkSettings, TrainConfig

Key = tuple[str, str]

# Groups of a UNet's layers by their names in diffusers' spelling.
_GROUPS = {
    "q": r".*_attn[12]_to_q",
    "k": r".*_attn[12]_to_k",
    "v": r".*_attn[12]_to_v",
    "out": r".*_attn[12]_to_out_0",
    "ff": r".*_ff_net_(0_proj|2)",
    "proj": r".*_attentions_\d+_proj_(in|out)",
    "resnet": r".*_resnets_\d+_(conv1|conv2|conv_shortcut|time_emb_proj)",
    "sampler": r".*_(down|up)samplers_\d+_conv",
    "time": r"(time|add)_embedding_linear_[12]",
    "io": r"conv_(in|out)",
}
_LAST_NORMS = ("conv_norm_out", "final_layer_norm", "text_model_final_layer_norm")
"""Which neither LyCORIS trains nor the WebUI's built-in extension finds by these names; trained with the group "io" alone."""
_TEXT_ENCODER = re.compile(r".*_(self_attn_(?:q|k|v|out)_proj|mlp_fc[12])")


def select_targets(targets: Mapping[Key, Target], settings: NetworkSettings) -> dict[Key, Target]:
    """The targets that these settings train, of UNet, text encoders or both; none for a kind that trains no layers.

    Source: kohya-ss/sd-scripts networks/lora.py for what LoRA and LoCon cover by default.

    Raises:
        ConfigError: the model has no such layer in its UNet, or in the text encoder though it was asked for, or the patterns leave none.
    """
    if settings.kind in KINDS_WITHOUT_LAYERS:
        return {}
    groups = {key: target for key, target in targets.items() if _is_in_groups(target, settings)}
    if not any(component == "unet" for component, _ in groups):
        raise ConfigError(f"network.targets = {list(settings.groups)}: the model's UNet has no such layer for a {settings.kind}; name other groups")
    if settings.text_encoder and not any(component != "unet" for component, _ in groups):
        raise ConfigError("network.text_encoder = true: this model's text encoder has no layer that can be trained; set it to false")
    chosen = {key: target for key, target in groups.items() if _is_named(target, settings)}
    if not chosen:
        said = " and ".join(f"network.{name} = {list(patterns)}" for name, patterns in (("only", settings.only), ("exclude", settings.exclude)) if patterns)
        raise ConfigError(f"{said}: no layer is left of the {len(groups)} that a {settings.kind} has here, as {next(iter(groups))[1]}; name others")
    return chosen


def odd_about_patterns(targets: Mapping[Key, Target], config: TrainConfig) -> list[str]:
    """In words, which patterns of layers fit no layer that this kind may train on the model: mostly a slip of the pen.

    Args:
        targets: all of the model.
    """
    network = config.network
    names = [] if network.kind in KINDS_WITHOUT_LAYERS else [name for (_, name), target in targets.items() if _is_in_groups(target, network)]
    said = [("network.only", item, item) for item in network.only] + [("network.exclude", item, item) for item in network.exclude]
    said += [("network.block_ranks", item, item.rpartition("=")[0].strip()) for item in network.block_ranks]
    said += [("training.block_learning_rates", item, item.rpartition("=")[0].strip()) for item in config.training.block_learning_rates]
    return [f"{key} = {shown(item, 80)}: no layer's name has that pattern, it changes nothing; a name is {names[0]}"
            for key, item, pattern in said if names and not any(matches(name, pattern) for name in names)]


def is_large_convolution(module: nn.Module) -> bool:
    """Whether it is a convolution with a kernel larger than 1×1, which has its own rank."""
    return isinstance(module, nn.Conv2d) and tuple(module.kernel_size) != (1, 1)


def matches(name: str, pattern: str) -> bool:
    """Whether a layer's name (diffusers' with "_" for ".") has the pattern, with * for anything; blocks may be written with dots."""
    return fnmatch.fnmatchcase(name, f"*{pattern.replace('.', '_')}*")


def _is_named(target: Target, settings: NetworkSettings) -> bool:
    if any(matches(target.name, pattern) for pattern in settings.exclude):
        return False
    return not settings.only or any(matches(target.name, pattern) for pattern in settings.only)


def _is_in_groups(target: Target, settings: NetworkSettings) -> bool:
    if target.component != "unet" and not settings.text_encoder:
        return False
    if settings.kind == "norm":
        return isinstance(target.module, (nn.LayerNorm, nn.GroupNorm)) and ("io" in settings.groups or target.name not in _LAST_NORMS)
    if not isinstance(target.module, (nn.Linear, nn.Conv2d, nn.MultiheadAttention)):
        return False
    groups = settings.groups
    if target.component != "unet":
        found = _TEXT_ENCODER.fullmatch(target.name)
        return found is not None and _text_group(found, settings) in (*groups, "all")
    if settings.kind == "lora" and is_large_convolution(target.module):
        return False
    if settings.kind == "ia3" and target.name.endswith("_ff_net_0_proj"):
        return False  # its output is gated before it is scaled: the factors are net_2's, on its input
    return any(re.fullmatch(_GROUPS[group], target.name) for group in groups)


def _text_group(found: re.Match[str], settings: NetworkSettings) -> str:
    """The group that a text encoder's layer belongs to, where the kind trains only some; "all" where it trains every one."""
    if settings.kind not in ("adalora", "ia3"):
        return "all"
    part = found[1]
    if settings.kind == "ia3" and part == "mlp_fc1":
        return "none"
    return "ff" if part.startswith("mlp") else part.removeprefix("self_attn_").removesuffix("_proj")
