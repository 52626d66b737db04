"""What the picture would be without its noise, as the model sees it under a prompt and a negative prompt."""
from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .checkpoint import StudioModel
from .schedule import NoiseLevels

Extend = Callable[[Tensor, Sequence[tuple[int, bool]]], Tensor]
"""(texts [B,T,D], for each row its picture and whether it is a negative one) → the texts with more behind them."""


class Guidance:
    """The denoiser that samplers call: prompt, negative prompt and guidance over the UNet.

    Args:
        prompts: the vectors [1,T,D] and the strength of each text that AND joins.
        negative: vectors [1,T',D].
        cfg: how strongly the prompt is preferred over the negative one.
        extend: puts more behind each row's text before a call; None: nothing.
    """

    def __init__(self, model: StudioModel, levels: NoiseLevels, prompts: Sequence[tuple[Tensor, float]], negative: Tensor, cfg: float,
                 extend: Extend | None = None):
        self._model, self._levels, self._cfg, self._extend = model, levels, cfg, extend
        self.steer(prompts, negative)

    def steer(self, prompts: Sequence[tuple[Tensor, float]], negative: Tensor) -> None:
        """Takes these texts from the next call on, in place of those before."""
        self._prompts, self._negative = prompts, negative

    def rows(self, batch: int) -> list[tuple[int, bool]]:
        """For each row that a call gives the UNet, in order, its picture of the batch and whether it is one of the negative prompt."""
        return [(picture, False) for _ in self._prompts for picture in range(batch)] + [(picture, True) for picture in range(batch)]

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The picture's latent without noise.

        Args:
            x: [B,4,h,w] with noise of strength sigma.
            sigma: [] on the CPU.

        Source: Ho & Salimans 2022 (arXiv:2207.12598), equation 6; several prompts: Liu et al. 2022 (arXiv:2206.01714), equation 11.
        """
        texts = [vectors for vectors, _ in self._prompts]
        rows = self.rows(len(x))
        if texts[0].shape == self._negative.shape:
            *wanted, unwanted = self._denoise(x, sigma, torch.cat([*texts, self._negative]), rows).unbind(0)
        else:  # texts of unequal length don't fit into one call
            wanted = self._denoise(x, sigma, torch.cat(texts), rows[:-len(x)]).unbind(0)
            (unwanted,) = self._denoise(x, sigma, self._negative, rows[-len(x):]).unbind(0)
        result = unwanted.clone()
        for denoised, (_, strength) in zip(wanted, self._prompts, strict=True):
            result += (denoised - unwanted) * (strength * self._cfg)
        return result

    def _denoise(self, x: Tensor, sigma: Tensor, texts: Tensor, rows: Sequence[tuple[int, bool]]) -> Tensor:
        """The denoised latents for each text: [N,B,4,h,w] for texts [N,T,D]; `rows` are those of this call.

        Source: Karras et al. 2022, equation 7, with the scalings of k-diffusion for models that predict noise or velocity.
        """
        unet, (count, batch) = self._model.unet, (len(texts), len(x))
        scale_in = 1 / (sigma ** 2 + 1) ** 0.5
        t = self._levels.sigma_to_t(sigma).to(x.device).expand(count * batch)
        inputs = (x * scale_in).to(self._model.dtype).repeat(count, 1, 1, 1)
        context = texts.to(self._model.dtype).repeat_interleave(batch, dim=0)
        context = context if self._extend is None else self._extend(context, rows)
        output = unet(inputs, t, context).sample.to(x.dtype).unflatten(0, (count, batch))
        if self._model.prediction == "v":
            return x / (sigma ** 2 + 1) - output * sigma * scale_in
        return x - output * sigma
