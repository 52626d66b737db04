"""The WebUI's loaded model as the trainer sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from modules import devices, sd_models
from torch import Tensor, nn

from lib_lycoris.errors import CheckpointError, ConfigError, TrainingError
from lib_lycoris.training.config import TrainConfig
from lib_lycoris.training.material import Framing

from . import host, settled
from .places import TEXTS, UNET, VAE, Places
from .sampling import make_picture
from .texts import encode_captions, join_framings
from .words import Words

BASE_MODELS = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}
_RELEASED = 320
"""Channels of the first level of every released UNet, SD 1 to SDXL."""


class WebUIBackbone:
    """Fulfils training.backbone.Backbone over the LDM or SGM modules of one of the host's checkpoints.

    Everything but `training` works on the checkpoint while it is the one that is loaded; `training` loads it where another took its place.

    Args:
        config: clip_skip, vae and what the host shows as its job are of interest.
        checkpoint: the host's description of the checkpoint; its model must be loaded.
        leave_model: takes our own networks off the model.

    Raises:
        ConfigError: the settings don't fit the checkpoint, or the way in which the host runs it.
        CheckpointError: a model of another architecture.
    """

    def __init__(self, config: TrainConfig, checkpoint: Any, leave_model: Callable[[], None] = lambda: None):
        self._config, self._checkpoint, self._leave_model = config, checkpoint, leave_model
        self._model = host.loaded_model()
        self._trees = host.trees_of(self._model)
        self._identity: tuple[Any, ...] | None = None
        self._places: Places | None = None
        self._attention: settled.Attention | None = None
        self._with_texts = False
        self.family = family_of(self._model)
        self._words = Words(self._model, self.family)
        self.framed = self.family == "sdxl"
        self.alphas_cumprod = read_schedule(self._model)
        self.checkpoint_name: str = checkpoint.name_for_extra
        self.checkpoint_hash: str | None = checkpoint.sha256
        self._check()

    @property
    def unet(self) -> nn.Module:
        return self._trees.unet

    @property
    def text_encoders(self) -> tuple[nn.Module, ...]:
        return self._trees.text_encoders

    @property
    def device(self) -> torch.device:
        return torch.device(devices.device)

    @property
    def base_model(self) -> str:
        return BASE_MODELS[self.family]

    @property
    def prediction(self) -> str:
        return self._model.parameterization

    @property
    def side(self) -> int | None:
        """Pixels of the pictures that such a model is made for; None where it is none of the released widths, as the embedded checkpoint, and nobody knows."""
        if getattr(self.unet, "model_channels", _RELEASED) != _RELEASED:
            return None
        return {"sd1": 512, "sd2": 768 if self.prediction == "v" else 512, "sdxl": 1024}[self.family]

    @torch.no_grad()
    def encode_pictures(self, pictures: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Latents [B,4,h,w] drawn from the autoencoder's posterior, scaled. One in half precision that gives no numbers is asked again in float32."""
        self._need(VAE)
        vae = self._model.first_stage_model
        mean, deviation = _posterior(vae, pictures)
        if not bool(torch.isfinite(mean).all() and torch.isfinite(deviation).all()):
            dtype = next(vae.parameters()).dtype
            try:
                vae.float()
                mean, deviation = _posterior(vae, pictures)
            finally:
                vae.to(dtype)  # every half-precision number comes back as it was
        place = mean.device if generator is None else generator.device
        noise = torch.randn(mean.shape, generator=generator, device=place).to(mean.device)
        return (mean + deviation * noise) * self._model.scale_factor

    def encode_captions(self, captions: Sequence[str]) -> Tensor | dict[str, Tensor]:
        """The text encoders' vectors [B,T,D]; of SDXL a dict with them and the pooled ones."""
        self._with_texts = torch.is_grad_enabled()
        self._need(UNET, TEXTS) if self._with_texts else self._need(TEXTS)
        with self._words.used():
            return encode_captions(self._model, captions, self._config.model.clip_skip)

    def words(self, vectors: Mapping[str, Mapping[str, Tensor]]) -> AbstractContextManager[None]:
        """Within it captions and prompts that name these words get their vectors {"clip_l": [N,D], …}, with gradients."""
        return self._words.put_on(vectors)

    def word_rows(self, text: str) -> dict[str, Tensor]:
        """By text encoder the token table's rows [K,D] float32 of the text's tokens."""
        return self._words.rows(text)

    def count_tokens(self, caption: str) -> int:
        """How many tokens a caption has, without those that open and end a chunk."""
        return self._words.count(caption)

    def word_statistics(self) -> dict[str, tuple[Tensor, Tensor, float]]:
        """By text encoder the mean [D], deviation [D] and median length of the token table's rows."""
        return self._words.statistics()

    def predict(
        self, x_t: Tensor, t: Tensor, conditioning: Tensor | dict[str, Tensor], framings: Sequence[Framing | None] | None = None
    ) -> Tensor:
        """The UNet's answer [B,4,h,w] in x_t's dtype, under whatever autocast the caller has opened."""
        self._need(UNET, TEXTS) if self._with_texts else self._need(UNET)
        keywords = {}
        if self.framed:
            keywords["y"] = join_framings(self._model.conditioner, conditioning["pooled"], framings).to(x_t.dtype)
            conditioning = conditioning["crossattn"]
        try:
            return self.unet(x_t, t, conditioning.to(x_t.dtype), **keywords).to(x_t.dtype)
        except (RuntimeError, NotImplementedError) as error:
            if self.left() is not None:  # in the middle of it: its weights are on another device now, or nowhere
                raise TrainingError(f"{self.left()}: resume the training from its last state") from error
            raise

    def preview(self, prompt: str, seed: int, **settings: Any) -> np.ndarray:
        """A picture uint8 [H,W,3] by the host's own sampler, with whatever is attached to the model now.

        Args:
            prompt: what it shows.
            seed: of its noise.
            settings: steps, cfg_scale, negative, sampler, width and height; the size is the training's where nothing is said.
        """
        self._raise_if_left()
        side = self._config.data.resolution
        with self._attention.off() if self._attention is not None else ExitStack():
            if self._places is not None:
                self._places.give_back()
            with self._words.used():
                return make_picture(self._model, prompt, seed, self._config.model.clip_skip, **{"width": side, "height": side, **settings})

    @contextmanager
    def training(self) -> Iterator[None]:
        """Around a training, while nobody else may use the model: it is loaded, and free of all that the host and its extensions had put on it.

        Everything is put back, also after an exception; where the host took the model away meanwhile there is nothing to put back on.
        """
        with ExitStack() as stack:
            stack.enter_context(settled.job(f"training {self._config.output.name}"))
            self._take_up()
            self._leave_model()
            stack.enter_context(self._other_vae())
            self._take_up()  # with another autoencoder the host has made some modules anew
            settled.without_builtin_networks(self._trees)
            settled.without_other_unet()
            stack.enter_context(settled.without_hypernetworks())
            everything = [*settled.modules_of(self._trees), *self._model.modules()]
            stack.enter_context(settled.without_tiles({id(module): module for module in everything}.values()))
            stack.callback(self._let_go)
            self._attention, self._places = settled.Attention(self.unet.modules()), Places(self._model)
            stack.enter_context(self._attention.on())
            self._identity = self._find_identity()
            yield

    def left(self) -> str | None:
        """In words, why this training can't go on with the model that the host has now; None where all is as it was at its start."""
        if self._identity is None or self._find_identity() == self._identity:
            return None
        now = getattr(host.loaded_checkpoint(), "name_for_extra", None)
        if now != self.checkpoint_name:
            return f"the WebUI has loaded {now or 'no checkpoint'} in place of {self.checkpoint_name}"
        return f"the WebUI has moved or reloaded {self.checkpoint_name}"

    def _need(self, *parts: str) -> None:
        self._raise_if_left()
        if self._places is not None:
            self._places.need(*parts)

    def _raise_if_left(self) -> None:
        """Cheaply, as it is asked several times in a step."""
        if self._identity is not None and (host.loaded_model() is not self._model or self._model.sd_checkpoint_info != self._identity[0]):
            raise TrainingError(f"{self.left()}: resume the training from its last state")

    def _find_identity(self) -> tuple[Any, ...]:
        model = host.loaded_model()
        if model is not self._model:
            return (None,)
        kind = "moving" if self._places is not None and self._places.moves else str(next(self.unet.parameters()).device)
        return model.sd_checkpoint_info, kind, *host.trees_of(model).identity()

    def _take_up(self) -> None:
        """Has the checkpoint loaded and knows its trees."""
        self._model = host.load_checkpoint(self._checkpoint)
        self._words.model = self._model
        self._trees = host.trees_of(self._model)
        if not getattr(self._model, "lowvram", False) and next(self.unet.parameters()).device.type != self.device.type:
            sd_models.send_model_to_device(self._model)  # unloaded to the CPU by the user

    def _let_go(self) -> None:
        here = self.left() is None or host.loaded_model() is self._model
        if here and self._places is not None:
            self._places.give_back()
        self._places = self._attention = self._identity = None

    @contextmanager
    def _other_vae(self) -> Iterator[None]:
        if self._config.model.vae is None:
            yield
            return
        from modules import sd_vae

        host.check_vae(self._model, self._config.model.vae)
        sd_vae.reload_vae_weights(self._model, vae_file=host.find_vae(self._config.model.vae))
        try:
            yield
        finally:
            if host.loaded_model() is self._model:
                sd_vae.reload_vae_weights(self._model)

    def _check(self) -> None:
        """Raises where this can't be trained, in words that say what to do."""
        model, config = self._model, self._config
        if host.moves_layers(model):
            raise ConfigError("the WebUI runs with --lowvram, which takes layers away before their gradients are computed: start it with --medvram, or without")
        weights = [parameter.dtype for tree in (self.unet, *self.text_encoders) for parameter in tree.parameters()]
        if any("float8" in str(dtype) for dtype in weights):
            raise ConfigError("the checkpoint's weights are kept in 8 bits, too coarse to train on: choose Disable under Settings, Optimizations, FP8 weight")
        if config.training.precision == "fp32" and torch.float16 in weights:
            raise ConfigError('training.precision = "fp32": the WebUI has loaded the checkpoint in half precision; use "fp16" or "bf16", '
                              "or start the WebUI with --no-half")
        if config.model.clip_skip > 1 and self.family != "sd1":
            raise ConfigError(f"model.clip_skip = {config.model.clip_skip}: SD 2.x and SDXL are asked at the layer that they were made with; leave it out")
        host.find_vae(config.model.vae)


def family_of(model: Any) -> str:
    """"sd1", "sd2" or "sdxl".

    Raises:
        CheckpointError: the model wants more than a noisy picture and a text, or predicts something else.
    """
    unet = model.model.diffusion_model
    channels = getattr(unet, "in_channels", 4)
    if channels != 4 or getattr(model.model, "conditioning_key", "crossattn") not in ("crossattn", None):
        raise CheckpointError(f"this checkpoint is for inpainting, editing or variations ({channels} input channels): choose a plain SD 1.x, SD 2.x or SDXL")
    if model.parameterization not in ("eps", "v"):
        raise CheckpointError(f"this checkpoint predicts {model.parameterization!r}, not the noise or the velocity: choose another")
    if hasattr(model, "conditioner"):
        return "sdxl"
    return "sd2" if hasattr(getattr(model.cond_stage_model, "wrapped", model.cond_stage_model), "model") else "sd1"


def read_schedule(model: Any) -> Tensor:
    """[1000] float32: the products of the alphas, computed anew, as the model's own buffers may be in half precision or shifted by an option.

    Source: CompVis/stable-diffusion ldm/modules/diffusionmodules/util.py, make_beta_schedule "linear"; the same in generative-models for SDXL.
    """
    start, end = getattr(model, "linear_start", None) or 0.00085, getattr(model, "linear_end", None) or 0.012
    betas = torch.linspace(start**0.5, end**0.5, 1000, dtype=torch.float64) ** 2
    computed = torch.cumprod(1 - betas, 0).float()
    own = getattr(model, "alphas_cumprod_original", None)
    if own is None or (own.shape == computed.shape and torch.allclose(own.detach().cpu().float(), computed, rtol=0.01, atol=1e-5)):
        return computed
    return own.detach().cpu().float().clone()


def _posterior(vae: nn.Module, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [B,4,h,w] float32 of the latents."""
    parameter = next(vae.parameters())
    moments = vae.quant_conv(vae.encoder(pictures.to(parameter.device, parameter.dtype)))
    mean, logvar = moments.float().chunk(2, dim=1)
    return mean, torch.exp(0.5 * logvar.clamp(-30.0, 20.0))
