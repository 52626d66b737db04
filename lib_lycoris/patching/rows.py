"""Which rows of a denoiser step the UNet call and the layer in work hold, and what a dial says for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .weighting import Dial, common_value

Telling = Callable[[Tensor], Sequence[int] | None]
"""Which rows of a step a UNet call holds, for its first tensor: their numbers one by one; none at all where it can't be told; None: to be counted."""


class Rows:
    """Counts the rows of a step through its UNet calls.

    A step's rows come in one UNet call or in several, one after the other. A call with more rows than the dial holds, as those who cut pictures into
    tiles make it, has all of them several times over; who knows better tells it. Within a call a layer may see each row k times in a row, as attention over
    parts of a picture does it.

    Args:
        what: the rows' values, for problems in words.
    """

    def __init__(self, what: str = "strengths of single pictures") -> None:
        self._what = what
        self.problems: list[str] = []
        self._next = 0
        self._start = 0
        self._count: int | None = None
        self._telling: Telling | None = None
        self._told: Sequence[int] | None = None
        self._seen: dict[tuple, float | Tensor] = {}

    def begin_step(self, telling: Telling | None = None) -> None:
        """The next UNet call takes rows from the first on; `telling` is asked at each call of the step."""
        self._next, self._telling = 0, telling

    def begin_call(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """A forward pre-hook of the UNet: moves on by the rows of the call's first tensor."""
        x = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        self._count = None if x is None or not x.ndim else x.shape[0]
        self._start = self._next
        self._next += self._count or 0
        self._told = None if self._count is None or self._telling is None else self._telling(x)
        self._seen.clear()

    def values(self, dial: Dial, count: int) -> float | Tensor:
        """The dial's value for a layer whose batch is `count`: a number where all rows agree, else [count] float64 on the CPU.

        Rows that can't be told apart get none of it (0.0), and `problems` says so.
        """
        key = (dial, dial.turns, count)
        if key not in self._seen:
            self._seen[key] = self._find(dial.value, count)
        return self._seen[key]

    def numbers(self, total: int) -> list[int] | None:
        """Which of a step's `total` rows the running call holds, row by row; None where they can't be told apart, and `problems` says so."""
        if self._count is None:
            return list(range(total))
        if self._told:
            return list(self._told)
        span = self._span(total)
        if span is None:
            self._lost(f"a call of the UNet with {self._count} rows does not fit into a step of {total}")
            return None
        return [*range(*span[0])] * span[1]

    def _find(self, value: float | Tensor, count: int) -> float | Tensor:
        if isinstance(value, float):
            return value
        window = self._window(value)
        common = common_value(value if window is None else window)
        if common is not None:
            return common
        if window is None:
            return self._lost(f"a call of the UNet with {self._count} rows does not fit into a step of {len(value)}")
        if count % len(window):
            return self._lost(f"a layer with a batch of {count} does not show which of the {len(window)} rows it holds")
        return window.repeat_interleave(count // len(window))

    def _window(self, value: Tensor) -> Tensor | None:
        """The part of [rows] that this call holds."""
        if self._count is None:  # a layer called on its own
            return value
        if self._told:
            return value[list(self._told)]
        span = self._span(len(value))
        if span is None:
            return None
        return value[slice(*span[0])] if span[1] == 1 else value.repeat(span[1])

    def _span(self, rows: int) -> tuple[tuple[int, int], int] | None:
        """((first, behind the last), how many times) of a step's rows that this call holds."""
        if self._told is not None:
            return None
        start, count = self._start % rows, self._count
        if start + count <= rows:
            return (start, start + count), 1
        return ((0, rows), count // rows) if not start and count % rows == 0 else None

    def _lost(self, why: str) -> float:
        problem = f"{self._what} were left out: {why}"
        if problem not in self.problems:
            self.problems.append(problem)
        return 0.0


def on_device(values: Tensor, like: Tensor) -> Tensor:
    """The values on the device and in the dtype of `like`; without waiting for the device."""
    return values.to(like.dtype).to(like.device, non_blocking=True) if like.device.type != "cpu" else values.to(like.dtype)


def spread(values: Tensor, dimensions: int, channels_first: bool) -> Tensor:
    """[B] or [B,C] with dimensions of one put in, so that it multiplies a tensor [B,C,…] or [B,…,C] of so many dimensions."""
    if values.ndim == 1:
        return values.reshape(-1, *(1,) * (dimensions - 1))
    ones = (1,) * (dimensions - 2)
    return values.reshape(values.shape[0], values.shape[1], *ones) if channels_first else values.reshape(values.shape[0], *ones, values.shape[1])


def acting(values: Tensor) -> slice | Tensor | None:
    """Which rows of [B] or [B,…] have any value but 0: None for all of them, a slice where they follow each other, else their numbers."""
    busy = (values.reshape(values.shape[0], -1) != 0).any(dim=1)
    numbers = torch.nonzero(busy).flatten()
    if len(numbers) == len(busy):
        return None
    first, last = int(numbers[0]), int(numbers[-1])
    return slice(first, last + 1) if last - first + 1 == len(numbers) else numbers
