"""Samplers: from noise to a latent, in the formulas of k-diffusion, which the WebUI runs."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..errors import ConfigError
from .schedule import SCHEDULERS, NoiseLevels, ddim_sigmas, make_sigmas

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x [B,4,h,w], sigma []) → x without noise."""
Draw = Callable[[], Tensor]
"""→ fresh noise [B,4,h,w]."""
OnStep = Callable[[int, Tensor], None]
"""(step, x without noise as the model saw it then); may raise Interrupted."""


class Interrupted(Exception):
    """Raised from inside a sampling that somebody stopped; never leaves the studio."""


def _slope(x: Tensor, sigma: Tensor, denoised: Tensor) -> Tensor:
    """dx/dsigma. Source: Karras et al. 2022 (arXiv:2206.00364), equation 3 with sigma(t) = t."""
    return (x - denoised) / sigma


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor, draw: Draw, on_step: OnStep) -> Tensor:
    """Source: Karras et al. 2022, algorithm 2 without churn and without its second order."""
    for step, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma)
        on_step(step, denoised)
        x = x + _slope(x, sigma, denoised) * (following - sigma)
    return x


def euler_ancestral(denoise: Denoise, x: Tensor, sigmas: Tensor, draw: Draw, on_step: OnStep) -> Tensor:
    """Euler steps that go below the next level, with fresh noise up to it.

    Source: crowsonkb/k-diffusion, sample_euler_ancestral with eta 1 (formula); in variances it is the posterior of Ho et al. 2020 (arXiv:2006.11239).
    """
    for step, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma)
        on_step(step, denoised)
        up = torch.minimum(following, (following ** 2 * (sigma ** 2 - following ** 2) / sigma ** 2) ** 0.5)
        down = (following ** 2 - up ** 2) ** 0.5
        x = x + _slope(x, sigma, denoised) * (down - sigma)
        if following > 0:
            x = x + draw() * up
    return x


def heun(denoise: Denoise, x: Tensor, sigmas: Tensor, draw: Draw, on_step: OnStep) -> Tensor:
    """Source: Karras et al. 2022, algorithm 2 without churn."""
    for step, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma)
        on_step(step, denoised)
        slope, width = _slope(x, sigma, denoised), following - sigma
        if following > 0:
            ahead = x + slope * width
            slope = (slope + _slope(ahead, following, denoise(ahead, following))) / 2
        x = x + slope * width
    return x


def dpm_plus_plus_2m(denoise: Denoise, x: Tensor, sigmas: Tensor, draw: Draw, on_step: OnStep) -> Tensor:
    """Source: Lu et al. 2022 (arXiv:2211.01095), algorithm 2, in lambda = -log sigma."""
    before = last_width = None
    for step, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma)
        on_step(step, denoised)
        if following == 0:
            return denoised
        width = sigma.log() - following.log()
        target = denoised
        if before is not None:
            share = width / last_width / 2
            target = (1 + share) * denoised - share * before
        x = following / sigma * x - torch.expm1(-width) * target
        before, last_width = denoised, width
    return x


@dataclass(frozen=True)
class Sampler:
    """A row of the table of samplers.

    Attributes:
        run: the algorithm.
        scheduler: what "automatic" means for it.
        calls: of the model, a step.
        fewest: the smallest number of steps that gives a picture.
        whole_t: visits whole t only and ends at t = 1, in latents of unit variance.
    """

    run: Callable[[Denoise, Tensor, Tensor, Draw, OnStep], Tensor]
    scheduler: str = "uniform"
    calls: int = 1
    fewest: int = 1
    whole_t: bool = False


SAMPLERS = {
    "Euler": Sampler(euler),
    "Euler a": Sampler(euler_ancestral),
    "Heun": Sampler(heun, calls=2),
    "DPM++ 2M": Sampler(dpm_plus_plus_2m, scheduler="karras"),
    "DDIM": Sampler(euler, fewest=2, whole_t=True),
}
"""By the names they have in the WebUI."""


def find_sampler(name: str, scheduler: str = "automatic") -> tuple[str, str]:
    """The names of sampler and scheduler; "DPM++ 2M Karras" names both, as it did in older WebUIs, and case does not count.

    Raises:
        ConfigError: one is not known.
    """
    known = {key.lower(): key for key in SAMPLERS}
    wanted, chosen = name.strip().lower(), scheduler.strip().lower()
    for ending in SCHEDULERS:
        if wanted.endswith(f" {ending}") and wanted not in known:
            wanted, chosen = wanted.removesuffix(f" {ending}"), ending
    if wanted not in known:
        raise ConfigError(f"sampler {name!r} is not known; use one of {', '.join(SAMPLERS)}, or one of them followed by a scheduler's name")
    if chosen not in ("automatic", *SCHEDULERS):
        raise ConfigError(f"scheduler {scheduler!r} is not known; use one of automatic, {', '.join(SCHEDULERS)}")
    return known[wanted], chosen


def sample(levels: NoiseLevels, denoise: Denoise, draw: Draw, sampler: str, scheduler: str, steps: int, on_step: OnStep) -> Tensor:
    """A latent [B,4,h,w].

    Args:
        draw: its first draw is the starting noise.
        sampler, scheduler: as find_sampler gives them.
        on_step: called once a step; when it raises Interrupted, the picture of the last step is the result.

    Source: AUTOMATIC1111/stable-diffusion-webui v1.10.1, modules/sd_samplers_kdiffusion.py and sd_samplers_timesteps.py (behaviour).
    """
    row, x = SAMPLERS[sampler], draw()
    if row.whole_t:
        sigmas = ddim_sigmas(levels, steps)
        start, end = (sigmas[0] ** 2 + 1) ** 0.5, 1 / (sigmas[-1] ** 2 + 1) ** 0.5
    else:
        sigmas = make_sigmas(levels, row.scheduler if scheduler == "automatic" else scheduler, steps)
        start, end = sigmas[0], 1.0
    return row.run(denoise, x * start, sigmas, draw, on_step) * end
