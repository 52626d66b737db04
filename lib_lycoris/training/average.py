"""The average of the parameters over the steps, which is often better than the last step's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Average:
    """An exponential moving average of some vectors.

    Args:
        vectors: what is followed; their values now are where the average begins.
        decay: how much of it is kept from step to step. Early on less is, as the average would otherwise hold the beginning for long:
            (1 + n)/(10 + n) in step n where that is smaller.

    Source: tf.train.ExponentialMovingAverage of TensorFlow, `num_updates`, for the beginning.
    """

    def __init__(self, vectors: Sequence[Tensor], decay: float):
        self._vectors, self._decay = list(vectors), decay
        self.values = [vector.detach().clone() for vector in vectors]
        self.updates = 0

    @torch.no_grad()
    def follow(self) -> None:
        """One step further; to be called after each step."""
        self.updates += 1
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        for value, vector in zip(self.values, self._vectors, strict=True):
            value.lerp_(vector, 1 - decay)

    @torch.no_grad()
    def put_in(self) -> None:
        """Writes the average into the vectors. What is exactly zero there stays so: a rank that AdaLoRA took away is no part of the network."""
        for value, vector in zip(self.values, self._vectors, strict=True):
            vector.copy_(value * (vector != 0))
