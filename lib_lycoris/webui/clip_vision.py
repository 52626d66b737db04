"""CLIP's picture encoder for style adapters, where the user has it; nothing is ever downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from modules import shared

from lib_lycoris.errors import ConfigError
from lib_lycoris.library.clip_vision import find_clip_vision, open_clip_vision

WIDTH = 1024
"""Of ViT-L/14, which every released style adapter wants."""
ADVICE = "put openai/clip-vit-large-patch14's model.safetensors into models/CLIP-vision"


class Seeing:
    """The encoder, loaded when it is first asked for and kept on the CPU."""

    def __init__(self) -> None:
        self._encoder: tuple[Path, Any] | None = None

    @torch.no_grad()
    def __call__(self, picture: Any) -> torch.Tensor:
        """The last hidden states [1,257,1024] of a picture [H,W,3] uint8.

        Raises:
            LycoError: the user has no such encoder, or its file is of no use.
        """
        path = find_clip_vision(places(), WIDTH)
        if path is None:
            raise ConfigError(f"a style adapter needs CLIP's picture encoder, and none is here: {ADVICE}")
        if self._encoder is None or self._encoder[0] != path:
            self._encoder = path, open_clip_vision(path)
        return self._encoder[1](torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255)


def places() -> list[Path]:
    """Where people keep it: our folder, ComfyUI's and ControlNet's, and Hugging Face's cache."""
    models = Path(shared.models_path)
    controlnet = models.parent / "extensions" / "sd-webui-controlnet" / "annotator" / "downloads" / "clip_vision"
    cached = Path.home() / ".cache" / "huggingface" / "hub" / "models--openai--clip-vit-large-patch14" / "snapshots"
    return [models / "CLIP-vision", models / "clip_vision", controlnet, cached]


def describe(width: int) -> str:
    """What a user must know of a style adapter's picture encoder."""
    path = find_clip_vision(places(), width)
    return f"sees by {path.name}" if path is not None else f"needs CLIP's picture encoder, which is not here: {ADVICE}"
