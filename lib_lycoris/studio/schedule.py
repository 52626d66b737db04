"""Noise levels: the 1000 that the model was trained on, the way between sigma and t, and the levels that a sampler visits."""
from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import ConfigError


def alphas_cumprod(betas: tuple[float, float] = (0.00085, 0.012), steps: int = 1000) -> Tensor:
    """How much of the picture's variance is left at each t: [1000] float32, from betas whose square roots are evenly spaced.

    Source: CompVis/stable-diffusion, "linear" schedule of ldm/modules/diffusionmodules/util.py (which is linear in the square root).
    """
    roots = torch.linspace(math.sqrt(betas[0]), math.sqrt(betas[1]), steps, dtype=torch.float64)
    return torch.cumprod(1 - roots ** 2, dim=0).float()


class NoiseLevels:
    """The model's noise levels as sigmas: x = picture + sigma · noise.

    Attributes:
        sigmas: [1000], rising.
    """

    def __init__(self, alphas: Tensor):
        self.sigmas = ((1 - alphas) / alphas) ** 0.5
        self._logs = self.sigmas.log()

    def sigma_to_t(self, sigma: Tensor) -> Tensor:
        """The t, between the whole ones too, of a sigma: linear in the logarithm."""
        log = sigma.log()
        low = (torch.searchsorted(self._logs, log, right=True) - 1).clamp(0, len(self._logs) - 2)
        share = (log - self._logs[low]) / (self._logs[low + 1] - self._logs[low])
        return low + share.clamp(0, 1)

    def t_to_sigma(self, t: Tensor) -> Tensor:
        """The inverse of sigma_to_t."""
        low, high = t.floor().long(), t.ceil().long()
        share = t - t.floor()
        return ((1 - share) * self._logs[low] + share * self._logs[high]).exp()


def _uniform(levels: NoiseLevels, steps: int) -> Tensor:
    return levels.t_to_sigma(torch.linspace(len(levels.sigmas) - 1, 0, steps))


def _karras(levels: NoiseLevels, steps: int, rho: float = 7.0) -> Tensor:
    """Source: Karras et al. 2022 (arXiv:2206.00364), equation 5."""
    low, high = (levels.sigmas[place].item() ** (1 / rho) for place in (0, -1))
    return (high + torch.linspace(0, 1, steps) * (low - high)) ** rho


def _exponential(levels: NoiseLevels, steps: int) -> Tensor:
    return torch.linspace(math.log(levels.sigmas[-1].item()), math.log(levels.sigmas[0].item()), steps).exp()


SCHEDULERS = {"uniform": _uniform, "karras": _karras, "exponential": _exponential}
"""How a sampler's noise levels are spaced: evenly in t, in sigma to the power of 1/7, or in the logarithm of sigma."""


def make_sigmas(levels: NoiseLevels, scheduler: str, steps: int) -> Tensor:
    """The sigmas that a sampler visits, falling, with a final 0: [steps + 1].

    Raises:
        ConfigError: no scheduler has that name.
    """
    if scheduler not in SCHEDULERS:
        raise ConfigError(f"scheduler {scheduler!r} is not known; use one of {', '.join(SCHEDULERS)}")
    return torch.cat([SCHEDULERS[scheduler](levels, steps), torch.zeros(1)])


def ddim_sigmas(levels: NoiseLevels, steps: int) -> Tensor:
    """The sigmas at the evenly spaced whole t that DDIM visits, falling, the last one that of t = 1: [about steps]."""
    count = len(levels.sigmas)
    return levels.sigmas[torch.arange(0, count, count // steps).add(1).clamp(0, count - 1)].flip(0)
