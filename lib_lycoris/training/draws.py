"""What is drawn at random for each sample of each step, from (seed, epoch, sample) alone: neither the batch's size, nor the order, nor the number of
processes, nor a pause between two steps changes it."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Sequence
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


def make_generator(*parts: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator, on the CPU if nothing else is said, whose numbers depend on these parts alone; other parts, independent numbers."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class Order:
    """Which samples each step takes: those of one batch have one size (bucket), and every epoch takes each sample once, shuffled by (seed, epoch).

    A bucket's samples run on from epoch to epoch, so that no batch is ever short: what is left of an epoch opens the bucket's next batch.

    Args:
        buckets: for each sample of an epoch its bucket; or how many samples there are, all in one.
        batch_size: of all processes together.
        seed: of the shuffling.
    """

    def __init__(self, buckets: Sequence[int] | int, batch_size: int, seed: int):
        buckets = [0] * buckets if isinstance(buckets, int) else list(buckets)
        self.samples, self.batch_size, self.seed = len(buckets), batch_size, seed
        self._members = {bucket: [sample for sample, own in enumerate(buckets) if own == bucket] for bucket in sorted(set(buckets))}
        self._epoch: tuple[int, list[tuple[int, int]]] = (-1, [])
        self._shuffled = functools.lru_cache(maxsize=2 * len(self._members) + 2)(self._shuffle)

    def batch(self, step: int) -> list[tuple[int, int]]:
        """(epoch, sample) of each row of that step's batch; step counts from 0."""
        bucket, number = self._batch(step)
        members = self._members[bucket]
        places = (divmod(index, len(members)) for index in range(number * self.batch_size, (number + 1) * self.batch_size))
        return [(epoch, self._shuffled(bucket, epoch)[place]) for epoch, place in places]

    def _batch(self, step: int) -> tuple[int, int]:
        """The bucket of that step, and how many batches of that bucket come before it."""
        if len(self._members) == 1:
            return next(iter(self._members)), step
        epoch = step * self.batch_size // self.samples  # never past the epoch that is looked for, and near it
        while self._batches_before(epoch + 1) <= step:
            epoch += 1
        if self._epoch[0] != epoch:
            batches = [(bucket, number) for bucket in self._members for number in range(self._full(bucket, epoch), self._full(bucket, epoch + 1))]
            shuffled = torch.randperm(len(batches), generator=make_generator(self.seed, "batches", epoch)).tolist()
            mixed = iter([batches[index][0] for index in shuffled])
            counts = {bucket: itertools.count(self._full(bucket, epoch)) for bucket in self._members}
            self._epoch = epoch, [(bucket, next(counts[bucket])) for bucket in mixed]
        return self._epoch[1][step - self._batches_before(epoch)]

    def _full(self, bucket: int, epochs: int) -> int:
        """How many batches of that bucket are full after so many epochs."""
        return epochs * len(self._members[bucket]) // self.batch_size

    def _batches_before(self, epoch: int) -> int:
        return sum(self._full(bucket, epoch) for bucket in self._members)

    def _shuffle(self, bucket: int, epoch: int) -> list[int]:
        members = self._members[bucket]
        parts = ("order", epoch) if len(self._members) == 1 else ("order", epoch, bucket)
        return [members[index] for index in torch.randperm(len(members), generator=make_generator(self.seed, *parts)).tolist()]


def draw(seed: int, epoch: int, sample: int, shape: torch.Size, steps: int = 1000, caption_dropout: float = 0.0, noise_offset: float = 0.0,
         time_sampling: str = "uniform") -> Draw:
    """What is drawn for one sample of one epoch.

    Args:
        shape: of the sample's latents [4,h,w].
        steps: how many time steps the noise schedule has.
        caption_dropout: share of samples whose caption is left away.
        noise_offset: strength of a noise that is the same over the whole picture, drawn for each channel.
        time_sampling: "uniform", or "cubic": t = (1 - u³)·steps of a uniform u, which draws noisy steps more often.

    Source: Mou et al. 2023, "T2I-Adapter", section 3.4, for the cubic sampling; there a step of the full count can come up, which is none of the schedule's.
    """
    generator = make_generator(seed, "draw", epoch, sample)
    t = cubic_step(float(torch.rand((), generator=generator)), steps) if time_sampling == "cubic" else int(torch.randint(steps, (), generator=generator))
    dropped = float(torch.rand((), generator=generator)) < caption_dropout
    noise = torch.randn(shape, generator=generator)
    if noise_offset:
        noise += noise_offset * torch.randn(shape[0], *(1 for _ in shape[1:]), generator=generator)
    return Draw(epoch, sample, t, dropped, noise)


def cubic_step(share: float, steps: int = 1000) -> int:
    """The time step t = (1 - share³)·steps of a share in 0..1, within the schedule's 0 to steps - 1."""
    return min(int((1 - share**3) * steps), steps - 1)
