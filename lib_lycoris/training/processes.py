"""The processes that train together, as the trainer sees them; HF accelerate's are wrapped to this in the studio."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from ..errors import TrainingError


class Processes(Protocol):
    """One process' view of all."""

    rank: int
    """This process' number, from 0."""
    count: int

    def mean_(self, tensor: Tensor) -> None:
        """Makes the tensor the mean over all processes, in place, in every one of them, the same bit for bit in all."""

    def copy_(self, tensor: Tensor, rank: int) -> None:
        """Makes the tensor what it is in the process `rank`, in place, in every one of them; of one shape and dtype in all, on any device."""

    def any(self, flag: bool) -> bool:
        """Whether any process says so; the same answer in all."""

    def agree(self, number: int, what: str, advice: str) -> None:
        """Returns where all processes have the same number.

        Raises:
            TrainingError: they don't; in all of them.
        """


class Alone:
    """A single process."""

    rank, count = 0, 1

    def mean_(self, tensor: Tensor) -> None:
        """Leaves it as it is."""

    def copy_(self, tensor: Tensor, rank: int) -> None:
        """Leaves it as it is."""

    def any(self, flag: bool) -> bool:
        return flag

    def agree(self, number: int, what: str, advice: str) -> None:
        """Returns: there is nobody to disagree with."""


@contextmanager
def together(processes: Processes) -> Iterator[None]:
    """What is done within, by each process for itself, ends well in all of them, or in none: it is left when all have come to its end.

    Raises:
        Exception: what was raised within by this process.
        TrainingError: another process failed, with its words.
    """
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    if not processes.any(failure is not None):
        return
    failed = next(rank for rank in range(processes.count) if processes.any(failure is not None and rank == processes.rank))
    words = str(failure).encode() if failed == processes.rank else b""
    length = torch.tensor(len(words))
    processes.copy_(length, failed)
    text = torch.zeros(int(length), dtype=torch.uint8)
    text[: len(words)] = torch.tensor(list(words), dtype=torch.uint8)
    processes.copy_(text, failed)
    raise failure or TrainingError(f"process {failed} of {processes.count}: {bytes(text.tolist()).decode()}")


def disagreement(what: str, lowest: int, highest: int, advice: str) -> TrainingError:
    """The error for processes that have different numbers."""
    return TrainingError(f"the processes don't agree on the {what}, it is {lowest} in one and {highest} in another: {advice}")
