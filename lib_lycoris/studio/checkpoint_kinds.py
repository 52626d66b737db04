"""What a file is that somebody took for a Stable Diffusion 1 checkpoint, in words that say what to do with it."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..errors import CheckpointError
from . import ldm

_NETWORK_MARKS = (".lora_up.", ".lora_down.", "lora_A", "lora_B", ".hada_w", ".lokr_w", ".oft_", "lora_E")
_FOREIGN = [  # (a part of a name, what the file is)
    ("conditioner.embedders.", "an SDXL checkpoint"),
    ("label_emb.", "an SDXL checkpoint"),
    ("cond_stage_model.model.", "an SD 2 checkpoint"),
    ("joint_blocks.", "an SD 3 checkpoint"),
    ("double_blocks.", "a Flux checkpoint"),
    ("control_model.", "a ControlNet"),
    ("string_to_param", "a textual inversion embedding"),
    ("emb_params", "a textual inversion embedding"),
]
_PARTS = {ldm.UNET: "UNet", ldm.VAE: "autoencoder", ldm.TEXT: "text encoder"}
_NEED = "the studio needs a Stable Diffusion 1.x checkpoint in one file"


def refuse_other_kinds(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Returns for a file with the three parts of Stable Diffusion 1.

    Raises:
        CheckpointError: it is something else; one line says what.
    """
    if not tensors:
        raise CheckpointError(f"checkpoint {path}: holds no tensors; {_NEED}")
    if any(mark in name for name in tensors for mark in _NETWORK_MARKS):
        raise CheckpointError(f"checkpoint {path}: is a network (LoRA) file; put it into the networks folder and write "
                              f"<lyco:{path.stem}> in the prompt")
    for mark, kind in _FOREIGN:
        if any(mark in name for name in tensors):
            raise CheckpointError(f"checkpoint {path}: is {kind}; {_NEED}")
    missing = [part for prefix, part in _PARTS.items() if not any(name.startswith(prefix) for name in tensors)]
    if len(missing) == len(_PARTS):
        diffusers = any(name.startswith(("down_blocks.", "encoder.down_blocks.")) for name in tensors)
        what = "is one part of a diffusers folder" if diffusers else f"is no model that is known here (its first tensor is {min(tensors)})"
        raise CheckpointError(f"checkpoint {path}: {what}; {_NEED}")
    if missing:
        raise CheckpointError(f"checkpoint {path}: has no {' and no '.join(missing)}; {_NEED}, with UNet, autoencoder and text encoder")
    first = tensors.get(f"{ldm.UNET}input_blocks.0.0.weight")
    if first is not None and first.ndim == 4 and first.shape[1] != 4:
        known = {9: "an inpainting checkpoint", 8: "an instruct-pix2pix checkpoint"}
        kind = known.get(first.shape[1], f"a checkpoint with {first.shape[1]} input channels")
        raise CheckpointError(f"checkpoint {path}: is {kind}; {_NEED} for text to image")
    context = tensors.get(f"{ldm.UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight")
    words = next((tensor for name, tensor in tensors.items() if name.startswith(ldm.TEXT) and name.endswith("token_embedding.weight")), None)
    if context is not None and words is not None and context.shape[-1] != words.shape[-1]:
        raise CheckpointError(f"checkpoint {path}: its UNet takes text vectors of width {context.shape[-1]}, its text encoder gives "
                              f"{words.shape[-1]}; {_NEED}")
