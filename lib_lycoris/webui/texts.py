"""Captions through the host's own text encoders: as plain text, with gradients where they are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from modules import devices, shared
from torch import Tensor

from lib_lycoris.training.material import Framing

from .settled import options

_USUAL = Framing((1024, 1024), (0, 0), (1024, 1024))
_SCORE = 6.0


def encode_captions(model: Any, captions: Sequence[str], clip_skip: int) -> Tensor | dict[str, Tensor]:
    """What the model's UNet is told of the captions: [B,T,D], with T in whole chunks of 77; for SDXL {"crossattn": [B,T,D], "pooled": [B,P]}.

    Brackets in a caption are text, and so is BREAK; the name of an embedding stands for its vectors, as in a prompt.
    """
    plain = {"emphasis": "None", "use_old_emphasis_implementation": False, "textual_inversion_add_hashes_to_infotext": False}
    with options(**plain, CLIP_stop_at_last_layers=clip_skip, sdxl_clip_l_skip=False):
        if hasattr(model, "conditioner"):
            return _encode_for_sdxl(model.conditioner, list(captions))
        return model.cond_stage_model(list(captions))


def _encode_for_sdxl(conditioner: Any, captions: list[str]) -> dict[str, Tensor]:
    """As the host's conditioner does, which keeps no gradients; an empty caption is all zeros, as the host's empty negative prompt is."""
    said = torch.tensor([bool(caption) for caption in captions], device=devices.device)
    rows: list[Tensor] = []
    pooled: list[Tensor] = []
    for embedder in conditioner.embedders:
        if embedder.input_key != "txt":
            continue
        made = embedder(captions)
        for part in made if isinstance(made, (tuple, list)) else (made,):
            part = part * said.to(part.dtype).view(-1, *[1] * (part.ndim - 1))
            (rows if part.ndim == 3 else pooled).append(part)
    return {"crossattn": torch.cat(rows, dim=2), "pooled": torch.cat(pooled, dim=1)}


def join_framings(conditioner: Any, pooled: Tensor, framings: Sequence[Framing | None] | None) -> Tensor:
    """[B,V]: all that SDXL's UNet is told beside the words: the pooled text [B,P], and how the pictures came to their sizes."""
    known = [framing or _USUAL for framing in framings or [None] * len(pooled)]
    told = {
        "original_size_as_tuple": [framing.original for framing in known], "crop_coords_top_left": [framing.crop for framing in known],
        "target_size_as_tuple": [framing.target for framing in known],
        "aesthetic_score": [(shared.opts.data.get("sdxl_refiner_high_aesthetic_score", _SCORE),)] * len(known),
    }
    numbers = [embedder(torch.tensor(told[embedder.input_key], dtype=torch.float32, device=pooled.device))
               for embedder in conditioner.embedders if embedder.input_key != "txt"]
    return torch.cat([pooled, *(number.to(pooled.dtype) for number in numbers)], dim=1)
