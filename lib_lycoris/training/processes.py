"""The processes that train together, as the trainer sees them; HF accelerate's are wrapped to this where the command line starts."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Processes(Protocol):
    """One process' view of all."""

    rank: int
    """This process' number, from 0."""
    count: int

    def mean_(self, tensor: Tensor) -> None:
        """Makes the tensor the mean over all processes, in place, in every one of them."""

    def any(self, flag: bool) -> bool:
        """Whether any process says so; the same answer in all."""

    def wait(self) -> None:
        """Returns when every process has come here."""


class Alone:
    """A single process."""

    rank, count = 0, 1

    def mean_(self, tensor: Tensor) -> None:
        """Leaves it as it is."""

    def any(self, flag: bool) -> bool:
        return flag

    def wait(self) -> None:
        """Returns at once."""
