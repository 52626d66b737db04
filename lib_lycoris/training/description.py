"""What the file of a trained network says of its kind, in the words by which other programs load and show it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..networks.dora import DecomposedLayer
from ..networks.layer import Layer
from .config import NetworkSettings
from .selection import Key

_ALGORITHMS = {"lora": "locon", "locon": "locon", "adalora": "locon"}
_DYNAMIC = "Dynamic"
_LARGE = re.compile(r"(^|_)(conv1|conv2|conv_in|conv_out|(down|up)samplers_\d+_conv)$")


def describe_kind(settings: NetworkSettings, layers: Mapping[Key, Layer]) -> dict[str, Any]:
    """TrainingFacts' rank, alpha, module, arguments, conv_rank and conv_alpha for these layers as they are saved.

    Source: kohya-ss/sd-scripts networks/lora.py and networks/resize_lora.py ("Dynamic"); LyCORIS f49d30d, lycoris/kohya.py, for the arguments' names.
    """
    linear, large = _pairs(layers, large=False), _pairs(layers, large=True)
    rank, alpha = _common(linear or large)
    conv_rank, conv_alpha = _common(large)
    plain = settings.kind in ("lora", "locon", "adalora") and not settings.tucker and not settings.dora
    return {
        "rank": rank, "alpha": alpha, **({} if conv_rank == _DYNAMIC else {"conv_rank": conv_rank, "conv_alpha": conv_alpha}),
        "module": "networks.lora" if plain else "lycoris.kohya", "arguments": {} if plain else _arguments(settings),
    }


def _arguments(settings: NetworkSettings) -> dict[str, Any]:
    switches = {
        "use_tucker": settings.tucker, "dora_wd": settings.dora, "wd_on_output": settings.dora and settings.dora_on_output, "rs_lora": settings.rs_lora,
        "decompose_both": settings.decompose_both, "full_matrix": settings.full_matrix, "train_norm": settings.kind == "norm",
    }
    algorithm = _ALGORITHMS.get(settings.kind, settings.kind)
    factor = {"factor": -1 if settings.factor is None else settings.factor} if settings.kind == "lokr" else {}
    return {"algo": "full" if algorithm == "norm" else algorithm, **factor, **{name: True for name, on in switches.items() if on}}


def _pairs(layers: Mapping[Key, Layer], large: bool) -> set[tuple[int, float]]:
    """(rank, alpha) of all layers for convolutions larger than 1×1, or of all others; layers without a rank are left out."""
    inner = (layer.inner if isinstance(layer, DecomposedLayer) else layer for layer in layers.values())
    chosen = (layer for key, layer in zip(layers, inner, strict=True) if bool(key[0] == "unet" and _LARGE.search(key[1])) == large)
    return {(layer.rank, layer.alpha) for layer in chosen if getattr(layer, "rank", None) and layer.alpha is not None}


def _common(pairs: Iterable[tuple[int, float]]) -> tuple[Any, Any]:
    """The one pair that all have; "Dynamic" twice where they differ, and None twice where there is none."""
    pairs = set(pairs)
    if not pairs:
        return None, None
    return next(iter(pairs)) if len(pairs) == 1 else (_DYNAMIC, _DYNAMIC)
