"""The processes that `accelerate launch` started, as the trainer sees them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..errors import TrainingError
from ..training.processes import Alone, Processes, disagreement
from .checkpoint import pick_device


class LaunchedProcesses:
    """This process among those that HF accelerate brought together: on one machine or several, over NCCL or gloo.

    Args:
        state: accelerate's PartialState.
    """

    def __init__(self, state: Any):
        self.rank: int = state.process_index
        self.count: int = state.num_processes
        self.device: torch.device = state.device

    def mean_(self, tensor: Tensor) -> None:
        """Makes the tensor, which is on this process' device, the mean over all processes, in place."""
        torch.distributed.all_reduce(tensor)  # a sum, that all get from one and the same place
        tensor.div_(self.count)

    def copy_(self, tensor: Tensor, rank: int) -> None:
        """Makes the tensor, wherever it is, what it is in the process `rank`, in place."""
        if not tensor.numel():
            return
        there = tensor.to(self.device)
        torch.distributed.broadcast(there, rank)
        tensor.copy_(there)

    def any(self, flag: bool) -> bool:
        return bool(self._largest(int(flag)))

    def agree(self, number: int, what: str, advice: str) -> None:
        highest, lowest = self._largest(number), -self._largest(-number)
        if highest != lowest:
            raise disagreement(what, lowest, highest, advice)

    def _largest(self, number: int) -> int:
        value = torch.tensor(number, dtype=torch.int64, device=self.device)
        torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MAX)
        return int(value)


@contextmanager
def launched_processes() -> Iterator[tuple[Processes, torch.device | None]]:
    """The processes of an `accelerate launch` (or torchrun) and this one's device; just this one and None where nobody launched several.

    They part in peace at the end; after an exception they are left to the launcher, as one that waits for the others would wait for ever.

    Raises:
        TrainingError: accelerate can't bring them together.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield Alone(), None
        return
    from accelerate import PartialState

    # accelerate leaves processes alone that it finds without a GPU, unless it is told that they are to be on the CPU
    asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    state = PartialState(cpu=asked or pick_device().type in ("cpu", "mps"))
    if state.num_processes != int(os.environ["WORLD_SIZE"]):
        raise TrainingError(f"{os.environ['WORLD_SIZE']} processes were launched, accelerate brings {state.num_processes} together: "
                            "look at its config (accelerate config), or launch one process")
    yield LaunchedProcesses(state), state.device
    torch.distributed.destroy_process_group()
