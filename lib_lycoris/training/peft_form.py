"""The trained network as PEFT's own classes hold it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import TrainingError
from ..files import peft_folder
from ..files.spelling import dotted_name
from ..functional.finite import is_finite
from ..networks.dora import DecomposedLayer
from ..networks.layer import Layer
from ..networks.loha import LohaLayer
from .selection import Key

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_FOLDERS = {"unet": "unet", "te1": "text_encoder", "te2": "text_encoder_2"}


def write_peft(folder: Path, layers: Mapping[Key, Layer], dtype: str, metadata: Mapping[str, str]) -> None:
    """Writes adapter_config.json and adapter_model.safetensors into the folder, or where text encoders are trained too into a folder of it for each model.

    ΔW is that of the layers; a Tucker core is multiplied into the down factor.

    Raises:
        TrainingError: a value is not finite, or too large for the dtype.
        LycoError: the folder could not be written.
    """
    loha = any(isinstance(layer, LohaLayer) for layer in layers.values())
    parts: dict[str, dict[str, peft_folder.Adapter | peft_folder.Loha]] = {}
    for (component, name), layer in layers.items():
        parts.setdefault(_FOLDERS[component], {})[dotted_name(name)] = _loha(layer, dtype, name) if loha else _adapter(layer, dtype, name)
    (peft_folder.write_loha if loha else peft_folder.write)(folder, parts, metadata)


def rounded(tensor: Tensor, dtype: str, where: str) -> Tensor:
    """The tensor in the file's dtype, on the CPU.

    Raises:
        TrainingError: a value is not finite, or too large for the dtype.
    """
    made = tensor.to(_DTYPES[dtype]).cpu()
    if not is_finite(made):
        raise TrainingError(f'layer {where} has values that {dtype} can\'t hold; set output.dtype = "fp32", or train at a lower rate')
    return made


def _adapter(layer: Layer, dtype: str, name: str) -> peft_folder.Adapter:
    inner = layer.inner if isinstance(layer, DecomposedLayer) else layer
    up, down, scale = inner.lora_up.weight.detach(), inner.lora_down.weight.detach(), inner.scale
    if inner.lora_mid is not None:
        (folded, down), scale = (factor.detach() for factor in inner.factors()), 1.0
        up, down = folded.reshape(up.shape), down.reshape(len(down), -1, *inner.lora_mid.weight.shape[2:])
    magnitude = None
    if inner is not layer:
        magnitude = layer.dora_scale.detach().flatten()
        magnitude = magnitude if down.ndim == 2 else magnitude.reshape(1, -1, *(1 for _ in down.shape[2:]))
    a, b, length = (None if part is None else rounded(part, dtype, name).contiguous() for part in (down, up, magnitude))
    return peft_folder.Adapter(a, b, scale, None, length)


def _loha(layer: LohaLayer, dtype: str, name: str) -> peft_folder.Loha:
    tensors = {part: rounded(tensor, dtype, name) for part, tensor in layer.tensors().items() if part != "alpha"}
    return peft_folder.Loha(tensors, layer.rank, layer.alpha)
