"""The model that is trained on, as the trainer sees it: one protocol that the WebUI and the studio both fulfil."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

Conditioning = Any
"""What `predict` takes of `encode_captions`; the trainer only hands it on. A Tensor, or tuples and dicts of Tensors, with B first."""


@runtime_checkable
class Backbone(Protocol):
    """A loaded diffusion model. Whatever its host does to it is settled in `training()` and put back at its end."""

    unet: nn.Module
    text_encoders: tuple[nn.Module, ...]
    device: torch.device
    base_model: str
    """kohya's word for the architecture: "sd_v1"."""
    prediction: str
    """What `predict` gives: "eps" (the noise) or "v" (the velocity)."""
    alphas_cumprod: Tensor
    """[1000] float32, the product of all alphas up to time step t."""
    checkpoint_name: str
    checkpoint_hash: str | None
    # Optional, and False where it is missing: `framed: bool`, whether the model is told how pictures came to their sizes (SDXL). Its `predict` then
    # takes the keyword `framings`, a material.Framing or None for each row; captions are encoded, and cached, without them.
    # Optional: `left() -> str | None`, in words why the training can't go on, where a host may take its model away.
    # Optional too: `count_tokens(caption) -> int`, how many tokens a caption has, for the words before a training.
    # Optional, for embeddings (text encoders are called "clip_l", "clip_h", "clip_g" as in files.embeddings): `words({word: {encoder: float32 [n,D]}})`, a
    # context within which captions and previews' prompts that name a word get its vectors, into which gradients flow; `word_rows(text)`, {encoder: the token
    # table's rows [k,D] of a text}; `word_statistics()`, {encoder: (mean [D], standard deviation [D], median length) of the token table}.

    def encode_pictures(self, pictures: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Latents [B,4,h,w] of pictures [B,3,H,W] in -1..1, already scaled as the UNet wants them."""

    def encode_captions(self, captions: list[str]) -> Conditioning:
        """What `predict` needs of the captions; gradients flow through it where a text encoder is trained."""

    def predict(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """The UNet's answer [B,4,h,w] for noisy latents x_t [B,4,h,w] at time steps t [B] (whole numbers 0–999)."""

    def preview(self, prompt: str, seed: int, **settings: Any) -> Any:
        """A picture uint8 [H,W,3] of that prompt, made with whatever is attached to the model now."""

    def training(self) -> AbstractContextManager[None]:
        """Around a training: settles the host's model before (merged networks off, precision, place), and puts everything back after."""
