"""A loss that tells learning from luck: on pictures that are not trained on, always with the same noise at the same time steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .config import ValidationSettings
from .draws import Draw, make_generator
from .material import Material
from .objective import Objective
from .processes import Alone, Processes


class Validation:
    """The validation of one training.

    Args:
        objective: the training's own loss, with its weights, but without what is dropped or added to the noise.
        material: what is judged on; each sample once, as it is in epoch 0.
        settings: at how many time steps.
        seed: of the noise, which differs from sample to sample and from time step to time step, never from validation to validation.
        batch_size: pictures at once.
        processes: each judges its share.
    """

    def __init__(self, objective: Objective, material: Material, settings: ValidationSettings, seed: int, batch_size: int, processes: Processes | None = None):
        self._objective, self._material, self._seed, self._batch_size = objective, material, seed, batch_size
        self._processes = processes or Alone()
        self.time_steps = spread_time_steps(settings.time_steps, len(objective.alphas_cumprod))

    @torch.no_grad()
    def loss(self) -> float:
        """The mean over all samples and time steps, with the parameters as they are now."""
        own = range(self._processes.rank, self._material.samples, self._processes.count)
        losses = [self._loss_of(sample, steps) for sample in own for steps in _batches(self.time_steps, self._batch_size)]
        device = self._objective.alphas_cumprod.device
        total = torch.tensor([sum(value * count for value, count in losses), sum(count for _, count in losses)], dtype=torch.float32, device=device)
        self._processes.mean_(total)
        return float(total[0] / total[1])

    def _loss_of(self, sample: int, steps: Sequence[int]) -> tuple[float, int]:
        """The mean loss of one sample at these time steps, and how many they are."""
        latents = self._material.latents(sample, 0)
        draws = [self._draw(sample, t, latents) for t in steps]
        rows = [(0, sample)] * len(steps)
        return float(self._objective.loss_of(self._material, rows, torch.stack([latents] * len(steps)), draws)), len(steps)

    def _draw(self, sample: int, t: int, latents: Tensor) -> Draw:
        noise = torch.randn(latents.shape, generator=make_generator(self._seed, "validation", sample, t))
        return Draw(0, sample, t, False, noise)


def spread_time_steps(count: int, steps: int) -> list[int]:
    """So many time steps in the middles of equal parts of the schedule: 125, 375, 625, 875 for four of 1000."""
    return [(2 * place + 1) * steps // (2 * count) for place in range(count)]


def keep_back(pictures: int, share: float, seed: int) -> list[int]:
    """Which of so many pictures are not trained on, sorted: the share, at least one and never all, chosen by the seed alone."""
    count = min(max(1, round(pictures * share)), pictures - 1)
    return sorted(torch.randperm(pictures, generator=make_generator(seed, "kept back")).tolist()[:count])


def _batches(items: Sequence[int], size: int) -> list[Sequence[int]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
