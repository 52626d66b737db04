"""What is minimised: how far the model's answer for noisy latents is from what it should say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from .backbone import Backbone
from .conditioning import Captions, autocast
from .config import TrainConfig
from .draws import Draw
from .loss import add_noise, debiased_weight, min_snr_weight, target, weighted_loss, zero_terminal_snr
from .material import Material


class Objective:
    """The loss of a batch, with the settings' noise schedule and weights.

    Args:
        config: how to train.
        backbone: the model.
        captions: what encodes the captions.
        around: `Method.around`; None where nothing goes into the model but its layers.

    Raises:
        ConfigError: a zero-terminal schedule on a model that predicts noise.
    """

    def __init__(
        self, config: TrainConfig, backbone: Backbone, captions: Captions,
        around: Callable[[Material, Sequence[tuple[int, int]]], AbstractContextManager[Any]] | None = None,
    ):
        self._config, self._backbone, self._captions = config, backbone, captions
        self._around = around or (lambda material, rows: nullcontext())
        self.prediction = check_prediction(config, backbone)
        alphas = backbone.alphas_cumprod.to(backbone.device, torch.float32)
        self.alphas_cumprod = zero_terminal_snr(alphas) if config.model.zero_terminal_snr else alphas

    def loss_of(self, material: Material, rows: Sequence[tuple[int, int]], latents: Tensor, draws: Sequence[Draw]) -> Tensor:
        """The loss of these (epoch, sample) rows, whose latents are [B,4,h,w], with what was drawn for them."""
        device, training = self._backbone.device, self._config.training
        noise = torch.stack([drawn.noise for drawn in draws]).to(device)
        t = torch.tensor([drawn.t for drawn in draws], device=device)
        alphas = self.alphas_cumprod[t]
        captions = ["" if drawn.dropped else material.caption(sample, epoch) for (epoch, sample), drawn in zip(rows, draws, strict=True)]
        framings = {"framings": [material.framing(sample, epoch) for epoch, sample in rows]} if getattr(self._backbone, "framed", False) else {}
        with autocast(device, training.precision), self._around(material, rows):
            predicted = self._backbone.predict(add_noise(latents, noise, alphas), t, self._captions.encode(captions), **framings)
        weight = min_snr_weight(alphas, training.min_snr_gamma, self.prediction) if training.min_snr_gamma else None
        if training.debiased:
            weight = debiased_weight(alphas, self.prediction)
        wanted = target(latents, noise, alphas, self.prediction)
        return weighted_loss(predicted, wanted, weight, _masks(material, rows, latents), training.loss, training.huber_c)


def check_prediction(config: TrainConfig, backbone: Backbone) -> str:
    """"eps" or "v": what the model is trained to predict.

    Raises:
        ConfigError: a zero-terminal schedule on a model that predicts noise.
    """
    prediction = config.model.resolve_prediction(backbone.prediction)
    if config.model.zero_terminal_snr and prediction == "eps":
        raise ConfigError("model.zero_terminal_snr = true: this model predicts noise, and of pure noise, which the schedule then ends in, that tells "
                          'nothing of a picture; it is for models with v-prediction (model.v_prediction = "true")')
    return prediction


def _masks(material: Material, rows: Sequence[tuple[int, int]], latents: Tensor) -> Tensor | None:
    """The rows' masks as one [B,1,h,w], ones where a row has none; None where no row has one."""
    masks = [material.mask(sample, epoch) for epoch, sample in rows]
    if all(mask is None for mask in masks):
        return None
    return torch.stack([latents.new_ones(1, *latents.shape[2:]) if mask is None else mask for mask in masks])
