"""The processes that train together, as the trainer sees them; HF accelerate's are wrapped to this in the studio."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ..errors import TrainingError


class Processes(Protocol):
    """One process' view of all."""

    rank: int
    """This process' number, from 0."""
    count: int

    def mean_(self, tensor: Tensor) -> None:
        """Makes the tensor the mean over all processes, in place, in every one of them, the same bit for bit in all."""

    def any(self, flag: bool) -> bool:
        """Whether any process says so; the same answer in all."""

    def agree(self, number: int, what: str, advice: str) -> None:
        """Returns where all processes have the same number.

        Raises:
            TrainingError: they don't; in all of them.
        """

    def wait(self) -> None:
        """Returns when every process has come here."""


class Alone:
    """A single process."""

    rank, count = 0, 1

    def mean_(self, tensor: Tensor) -> None:
        """Leaves it as it is."""

    def any(self, flag: bool) -> bool:
        return flag

    def agree(self, number: int, what: str, advice: str) -> None:
        """Returns: there is nobody to disagree with."""

    def wait(self) -> None:
        """Returns at once."""


def disagreement(what: str, lowest: int, highest: int, advice: str) -> TrainingError:
    """The error for processes that have different numbers."""
    return TrainingError(f"the processes don't agree on the {what}, it is {lowest} in one and {highest} in another: {advice}")
