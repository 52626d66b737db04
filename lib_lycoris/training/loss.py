"""What the network is trained for: noisy latents, what should be predicted from them, and how much each time step counts."""

from __future__ import annotations

import torch
from torch import Tensor


def add_noise(latents: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """x_t [B,4,h,w] = √ᾱ·x₀ + √(1-ᾱ)·ε, with ᾱ [B].

    Source: Ho et al. 2020, "Denoising Diffusion Probabilistic Models", equation 4.
    """
    signal, spread = _factors(alphas_cumprod)
    return signal * latents + spread * noise


def target(latents: Tensor, noise: Tensor, alphas_cumprod: Tensor, prediction: str) -> Tensor:
    """What the model should say [B,4,h,w]: ε itself, or the velocity v = √ᾱ·ε - √(1-ᾱ)·x₀.

    Source: Salimans & Ho 2022, "Progressive Distillation for Fast Sampling of Diffusion Models", section 4.
    """
    if prediction == "eps":
        return noise
    signal, spread = _factors(alphas_cumprod)
    return signal * noise - spread * latents


def min_snr_weight(alphas_cumprod: Tensor, gamma: float, prediction: str) -> Tensor:
    """Weight [B] of each sample: min(snr, γ)/snr for ε, min(snr, γ)/(snr + 1) for v, with snr = ᾱ/(1-ᾱ).

    Source: Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy", section 3.4.
    """
    snr = alphas_cumprod / (1 - alphas_cumprod)
    if prediction == "eps":
        # As written the quotient is 0/0 where a zero-terminal schedule has no signal; this form gives the limit, 1.
        return (gamma / snr).clamp(max=1)
    return snr.clamp(max=gamma) / (snr + 1)


def debiased_weight(alphas_cumprod: Tensor, prediction: str) -> Tensor:
    """Weight [B] of each sample: 1/√snr for ε, 1/(snr + 1) for v, so that the noisy time steps, where a picture's layout is decided, count more.

    Where there is next to no signal, snr counts as 0.001, and where there is next to no noise as 1000.

    Source: Yu et al. 2023, "Debias the Training of Diffusion Models", section 4; v as in kohya-ss/sd-scripts, library/custom_train_functions.py (formula).
    """
    snr = (alphas_cumprod / (1 - alphas_cumprod)).clamp(1e-3, 1e3)
    return snr.rsqrt() if prediction == "eps" else 1 / (snr + 1)


def zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """The schedule ᾱ [1000] shifted and stretched so that its last step has no signal left and its first stays.

    Source: Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed", algorithm 1.
    """
    roots = alphas_cumprod.double().sqrt()
    roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    return roots.square().to(alphas_cumprod.dtype)


def errors(predicted: Tensor, wanted: Tensor, kind: str = "mse", c: float = 0.1) -> Tensor:
    """How wrong each value is, float32, in the inputs' shape: "mse" d², "huber" 2c(√(d²+c²)-c), "smooth_l1" 2(√(d²+c²)-c).

    Source: pseudo-Huber loss, Charbonnier et al. 1997; the factors are those of kohya-ss/sd-scripts, library/train_util.py (formula).
    """
    squares = (predicted.float() - wanted.float()).square()
    if kind == "mse":
        return squares
    return 2 * (c if kind == "huber" else 1.0) * ((squares + c * c).sqrt() - c)


def weighted_loss(predicted: Tensor, wanted: Tensor, weight: Tensor | None = None, mask: Tensor | None = None, kind: str = "mse", c: float = 0.1) -> Tensor:
    """Mean over the batch of each sample's mean error (float32) times its weight [B]; a mask [B,1,h,w] weighs the places within a picture."""
    values = errors(predicted, wanted, kind, c)
    values = (values if mask is None else values * mask).flatten(1).mean(1)
    return (values if weight is None else values * weight).mean()


def _factors(alphas_cumprod: Tensor) -> tuple[Tensor, Tensor]:
    column = alphas_cumprod.to(torch.float32).reshape(-1, 1, 1, 1)
    return column.sqrt(), (1 - column).sqrt()
