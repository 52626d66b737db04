"""What is drawn at random for each sample of each step, from (seed, epoch, sample) alone: neither the batch's size, nor the order, nor the number of
processes, nor a pause between two steps changes it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draw:
    """One sample of a step: the place in the epoch's list of draws, and what was drawn for it."""

    epoch: int
    sample: int
    t: int
    """Time step 0–999."""
    dropped: bool
    """Whether the caption is left away."""
    noise: Tensor
    """[4,h,w] float32, standard normal."""


def make_generator(*parts: object) -> torch.Generator:
    """A generator on the CPU whose numbers depend on these parts alone; other parts, independent numbers."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class Order:
    """Which samples each step takes: every epoch all of them once, shuffled by (seed, epoch); batches run on across the end of an epoch."""

    def __init__(self, samples: int, batch_size: int, seed: int):
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self._epoch = -1
        self._shuffled: list[int] = []

    def batch(self, step: int) -> list[tuple[int, int]]:
        """(epoch, sample) of each row of that step's batch; step counts from 0."""
        return [self._place(index) for index in range(step * self.batch_size, (step + 1) * self.batch_size)]

    def _place(self, index: int) -> tuple[int, int]:
        epoch, place = divmod(index, self.samples)
        if epoch != self._epoch:
            self._epoch, self._shuffled = epoch, torch.randperm(self.samples, generator=make_generator(self.seed, "order", epoch)).tolist()
        return epoch, self._shuffled[place]


def draw(seed: int, epoch: int, sample: int, shape: torch.Size, steps: int = 1000, caption_dropout: float = 0.0) -> Draw:
    """What is drawn for one sample of one epoch.

    Args:
        shape: of the sample's latents [4,h,w].
        steps: how many time steps the noise schedule has.
        caption_dropout: share of samples whose caption is left away.
    """
    generator = make_generator(seed, "draw", epoch, sample)
    t = int(torch.randint(steps, (), generator=generator))
    dropped = float(torch.rand((), generator=generator)) < caption_dropout
    return Draw(epoch, sample, t, dropped, torch.randn(shape, generator=generator))
