"""CLIP's picture encoder for style adapters, where the user has it; nothing is ever downloaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lib_lycoris.errors import ConfigError
from lib_lycoris.library.clip_vision import find_clip_vision, open_clip_vision

WIDTH = 1024
"""Of ViT-L/14, which every released style adapter wants."""
FILE = "openai/clip-vit-large-patch14's model.safetensors"


class Seeing:
    """The encoder (a `making.See`), loaded when it is first asked for and kept on the CPU.

    Args:
        places: gives the files and folders in which it may lie, the likeliest first.
        home: gives where a user is told to put it.
    """

    def __init__(self, places: Callable[[], Sequence[Path]], home: Callable[[], str]) -> None:
        self._places, self._home = places, home
        self._encoder: tuple[Path, Any] | None = None

    @torch.no_grad()
    def __call__(self, picture: Any) -> torch.Tensor:
        """The last hidden states [1,257,1024] of a picture [H,W,3] uint8.

        Raises:
            LycoError: the user has no such encoder, or its file is of no use.
        """
        if self._encoder is None or not self._encoder[0].is_file():
            path = find_clip_vision(self._places(), WIDTH)
            if path is None:
                raise ConfigError(f"a style adapter needs CLIP's picture encoder, and none is here: {self.advice()}")
            self._encoder = path, open_clip_vision(path)
        return self._encoder[1](torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255)

    def describe(self, width: int | None = None) -> str:
        """What a user must know of it before a picture is made.

        Args:
            width: of the tokens that an adapter wants; None: those of ViT-L/14.
        """
        path = find_clip_vision(self._places(), width or WIDTH)
        return f"sees by {path.name}" if path is not None else f"needs CLIP's picture encoder, which is not here: {self.advice()}"

    def advice(self) -> str:
        """What to do where there is none."""
        return f"put {FILE} into {self._home()}"


def hugging_face_cache() -> Path:
    """Where Hugging Face's own programs keep it."""
    return Path.home() / ".cache" / "huggingface" / "hub" / "models--openai--clip-vit-large-patch14" / "snapshots"
