"""The studio's model as the trainer sees it."""
from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from ..prompt.request import split_prompt
from .checkpoint import StudioModel
from .conditioning import check_clip_skip, encode_captions
from .encoders import Encoders
from .generate import GenerateSettings, draw_pictures
from .schedule import alphas_cumprod
from .settled import settled
from .steering import Texts


class StudioBackbone(Encoders):
    """Fulfils training.backbone.Backbone over diffusers' and transformers' modules of SD 1.x and SD 2.x.

    Args:
        clip_skip: which of the text encoder's last layers captions are taken from.
        prediction: "eps" or "v" where the checkpoint doesn't tell, or tells wrong; None asks it.

    Raises:
        ConfigError: clip_skip is larger than the text encoder is deep.
    """

    def __init__(self, model: StudioModel, clip_skip: int = 1, prediction: str | None = None):
        self.model = model if prediction is None else replace(model, prediction=prediction)
        self._clip_skip = check_clip_skip(model, clip_skip)
        self.unet: nn.Module = model.unet
        self.text_encoders: tuple[nn.Module, ...] = (model.text_encoder,)
        self.alphas_cumprod = alphas_cumprod(model.betas)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def base_model(self) -> str:
        return self.model.base_model

    @property
    def prediction(self) -> str:
        return self.model.prediction

    @property
    def checkpoint_name(self) -> str:
        return self.model.name

    @property
    def checkpoint_hash(self) -> str | None:
        return self.model.sha256

    def encode_captions(self, captions: list[str]) -> Tensor:
        """The text encoder's vectors [B,T,D]; brackets in captions are text."""
        return encode_captions(self.model, captions, self._clip_skip)

    def predict(self, x_t: Tensor, t: Tensor, conditioning: Tensor) -> Tensor:
        """The UNet's answer [B,4,h,w] in x_t's dtype."""
        dtype = self.model.dtype
        return self.unet(x_t.to(dtype), t, conditioning.to(dtype)).sample.to(x_t.dtype)

    def preview(self, prompt: str, seed: int, **settings) -> np.ndarray:
        """A picture uint8 [H,W,3] with whatever is attached to the model now.

        Args:
            settings: those of GenerateSettings; size is the checkpoint's own where nothing is said.
        """
        defaults = {"width": self.model.side, "height": self.model.side, "clip_skip": self._clip_skip}
        asked = GenerateSettings(prompt=prompt, seed=seed, **{**defaults, **settings})
        texts = Texts(split_prompt(asked.prompt)[0], split_prompt(asked.negative)[0])
        return draw_pictures(self.model, asked, texts, [seed], [])[0].pixels

    def training(self) -> AbstractContextManager[None]:
        """Around a training: parameters are frozen, dropout is off, half precision is widened so that gradients fit; all is put back at the end."""
        return settled((self.unet, self.model.vae, *self.text_encoders))
