"""Stable Diffusion XL's modules as the trainer sees them. They are handed over as they are: the studio reads no SDXL files yet."""
from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..prompt.chunks import Chunk, empty_chunk, make_chunks
from ..training.material import Framing
from .bpe import tokenize
from .encoders import Encoders
from .noise import PictureNoise
from .picture import decode_latent
from .sampler import find_sampler, sample
from .schedule import NoiseLevels, alphas_cumprod
from .settled import settled
from .words import Words, rows_in_place

_FILLING = 0
"""What fills up a chunk for the second text encoder; the first takes end tokens."""


@dataclass
class SDXLModel:
    """A checkpoint's modules, ready to run.

    Attributes:
        unet: diffusers' UNet2DConditionModel with its "text_time" embedding.
        vae: diffusers' AutoencoderKL, in float32.
        text_encoders: transformers' CLIPTextModel and CLIPTextModelWithProjection.
        tokenizer: transformers' CLIPTokenizer; both text encoders have the same words.
        name: for the network's metadata.
        sha256: of the file that they are from; None where that is unknown.
        prediction: "eps", or "v" for a model that predicts velocity.
        latent_scale: what latents are multiplied by after encoding.
        betas: first and last beta of the noise schedule.
        side: pixels of the square pictures it was made for.
        words: the embeddings that prompts and captions may name.
    """

    unet: nn.Module
    vae: nn.Module
    text_encoders: tuple[nn.Module, nn.Module]
    tokenizer: Any
    name: str
    sha256: str | None = None
    prediction: str = "eps"
    latent_scale: float = 0.13025
    betas: tuple[float, float] = (0.00085, 0.012)
    side: int = 1024
    words: Words = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.words = Words(self.tokenizer, self.encoders)

    @property
    def encoders(self) -> dict[str, nn.Module]:
        """The text encoders, by the names that they have in embeddings."""
        return dict(zip(("clip_l", "clip_g"), self.text_encoders, strict=True))


class SDXLBackbone(Encoders):
    """Fulfils training.backbone.Backbone over the modules of SDXL, which is told of how pictures came to their sizes too."""

    base_model = "sdxl_base_v1-0"
    framed = True

    def __init__(self, model: SDXLModel):
        self.model = model
        self.unet: nn.Module = model.unet
        self.text_encoders: tuple[nn.Module, ...] = model.text_encoders
        self.prediction, self.checkpoint_name, self.checkpoint_hash = model.prediction, model.name, model.sha256
        self.alphas_cumprod = alphas_cumprod(model.betas)

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    def encode_captions(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """{"crossattn": [B,T,D], "pooled": [B,P]}; brackets in captions are text, an empty caption is all zeros.

        T is 77 times the chunks of the longest. The vectors are those before each text encoder's last layer, without a norm; the pooled ones are the second
        text encoder's, of the first chunk.

        Source: Podell et al. 2023 (arXiv:2307.01952), section 2.1; several chunks and empty texts: AUTOMATIC1111/stable-diffusion-webui v1.10.1,
        modules/sd_hijack_clip.py (behaviour).
        """
        narrow, _ = self._encode("clip_l", captions, None)
        wide, pooled = self._encode("clip_g", captions, _FILLING)
        said = torch.tensor([bool(caption) for caption in captions], device=self.device)
        return {"crossattn": torch.cat([narrow, wide], dim=2) * said[:, None, None], "pooled": pooled.text_embeds * said[:, None]}

    def predict(self, x_t: Tensor, t: Tensor, conditioning: dict[str, Tensor], framings: Sequence[Framing | None] | None = None) -> Tensor:
        """The UNet's answer [B,4,h,w] in x_t's dtype. A row without a framing counts as a picture of its own size, uncropped."""
        dtype = next(self.unet.parameters()).dtype
        added = {"text_embeds": conditioning["pooled"].to(dtype), "time_ids": _sizes(x_t, framings).to(dtype)}
        return self.unet(x_t.to(dtype), t, conditioning["crossattn"].to(dtype), added_cond_kwargs=added).sample.to(x_t.dtype)

    @torch.no_grad()
    def preview(self, prompt: str, seed: int, negative: str = "", steps: int = 20, cfg: float = 7.0, sampler: str = "Euler a", width: int | None = None,
                height: int | None = None) -> np.ndarray:
        """A picture uint8 [H,W,3] with whatever is attached to the model now; brackets in the prompts are text.

        Args:
            width, height: in pixels; None: the checkpoint's own.
        """
        shape = (4, (height or self.model.side) // 8, (width or self.model.side) // 8)
        levels, chosen = NoiseLevels(self.alphas_cumprod), find_sampler(sampler)
        texts = self.encode_captions([prompt, negative])

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            """With the scalings of Karras et al. 2022, equation 7; guidance: Ho & Salimans 2022, equation 6."""
            scale = 1 / (sigma**2 + 1) ** 0.5
            output = self.predict((x * scale).expand(2, -1, -1, -1), levels.sigma_to_t(sigma).to(x.device).expand(2), texts)
            found = x / (sigma**2 + 1) - output * sigma * scale if self.prediction == "v" else x - output * sigma
            return found[1:] + cfg * (found[:1] - found[1:])

        latent = sample(levels, denoise, PictureNoise([seed], shape, self.device).draw, *chosen, steps, lambda step, denoised: None)
        return decode_latent(self.model, latent)

    def training(self) -> AbstractContextManager[None]:
        """Around a training: parameters are frozen, dropout is off, half precision is widened so that gradients fit; all is put back at the end."""
        return settled((self.unet, self.model.vae, *self.text_encoders))

    def _encode(self, name: str, captions: Sequence[str], filling: int | None) -> tuple[Tensor, Any]:
        """The vectors [B,T,D] before a text encoder's last layer, and all that it gives of the first chunks."""
        words = self.model.tokenizer
        start, end, comma = words.bos_token_id, words.eos_token_id, words.convert_tokens_to_ids(",</w>")
        rows = [make_chunks(caption, partial(tokenize, words), comma, start, end, emphasis=False, filling=filling, find=self.model.words.find)
                for caption in captions]
        empty = empty_chunk(start, end, filling)
        outputs = [self._encode_chunks(name, [row[place] if place < len(row) else empty for row in rows]) for place in range(max(len(row) for row in rows))]
        return torch.cat([output.hidden_states[-2] for output in outputs], dim=1), outputs[0]

    def _encode_chunks(self, name: str, chunks: Sequence[Chunk]) -> Any:
        encoder = self.model.encoders[name]
        with rows_in_place(encoder, name, chunks):
            return encoder(input_ids=torch.tensor([chunk.tokens for chunk in chunks], device=self.device), output_hidden_states=True)


def _sizes(x_t: Tensor, framings: Sequence[Framing | None] | None) -> Tensor:
    """[B,6]: original size, crop and target size of each row.

    Source: Podell et al. 2023, section 2.2; the order is diffusers', StableDiffusionXLPipeline._get_add_time_ids.
    """
    own = (8 * x_t.shape[2], 8 * x_t.shape[3])
    known = [framing or Framing(own, (0, 0), own) for framing in framings or [None] * len(x_t)]
    return torch.tensor([[*framing.original, *framing.crop, *framing.target] for framing in known], dtype=torch.float32, device=x_t.device)
