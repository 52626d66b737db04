"""Memory for merged copies that costs little to get: taken over from copies that are no longer wanted, or fresh in huge pages."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

HUGE = 2 << 20
"""Bytes of a huge page."""

RUN = 64 << 20
"""Bytes of the mappings that pieces of one size share: few are quick to give back, small ones go as soon as the last piece in them does."""

_LINE = 64
_CAN_MAP = all(hasattr(mmap, name) for name in ("MAP_PRIVATE", "MAP_ANONYMOUS", "MADV_HUGEPAGE"))


class Buffers:
    """Flat tensors by size; those that are left over go with it."""

    def __init__(self, spare: Iterable[Tensor] = ()):
        """From flat tensors whose contents nobody needs any more."""
        self._spare: dict[tuple, list[Tensor]] = {}
        self._arena: Tensor | None = None
        self._runs: dict[tuple, list[Tensor]] = {}
        for piece in spare:
            self._spare.setdefault((piece.numel(), piece.dtype, piece.device), []).append(piece)

    def reserve(self, wanted: Iterable[tuple[int, torch.dtype, torch.device]]) -> None:
        """Gets the memory for all of these (values, dtype, device) that nothing spare serves: the small ones in one piece, as single pages are slow to
        come, the others with those of their size."""
        counts: dict[tuple, int] = {}
        for key in wanted:
            counts[key] = counts.get(key, 0) + 1
        missing = {key: count - len(self._spare.get(key, ())) for key, count in counts.items() if key[2].type == "cpu"}
        size = sum(count * _padded(_bytes(key)) for key, count in missing.items() if count > 0 and _bytes(key) < HUGE)
        self._arena = _fresh(size, torch.uint8) if size else None
        self._runs = {key: list(_run(key, count)) for key, count in missing.items() if count > 0 and _bytes(key) >= HUGE}

    def take(self, numel: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A flat tensor of so many values, with any contents."""
        key = (numel, dtype, device)
        if self._spare.get(key):
            return self._spare[key].pop()
        if device.type != "cpu":
            return torch.empty(numel, dtype=dtype, device=device)
        if self._runs.get(key):
            return self._runs[key].pop()
        size = _bytes(key)
        if self._arena is None or size >= HUGE or _padded(size) > self._arena.numel():
            return _fresh(numel, dtype)
        piece, self._arena = self._arena[:size].view(dtype), self._arena[_padded(size):]
        return _alone(piece)


def _run(key: tuple[int, torch.dtype, torch.device], count: int) -> Iterator[Tensor]:
    """So many pieces of this size, those that fit into RUN side by side."""
    step = _padded(_bytes(key))
    while count:
        some = min(count, max(1, RUN // step))
        count -= some
        memory = _fresh(some * step, torch.uint8)
        yield from (_alone(part[:_bytes(key)].view(key[1])) for part in memory.split(step))


def _alone(piece: Tensor) -> Tensor:
    """The same memory with a version of its own: to a graph, and to whoever asks whether a copy is as it was made, a view changes with all its neighbours."""
    return piece.data


def _fresh(numel: int, dtype: torch.dtype) -> Tensor:
    """A flat tensor on the CPU; where the system can, in huge pages, whose first touch costs a tenth of that of as many small ones."""
    size = numel * torch.empty((), dtype=dtype).element_size()
    if size < HUGE or not _CAN_MAP:
        return torch.empty(numel, dtype=dtype)
    pages = mmap.mmap(-1, size + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        pages.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # a kernel without them
        return torch.empty(numel, dtype=dtype)
    raw = torch.frombuffer(pages, dtype=torch.uint8)
    start = -raw.data_ptr() % HUGE
    return raw[start:start + size].view(dtype)


def _bytes(key: tuple[int, torch.dtype, torch.device]) -> int:
    return key[0] * torch.empty((), dtype=key[1]).element_size()


def _padded(size: int) -> int:
    return math.ceil(size / _LINE) * _LINE
