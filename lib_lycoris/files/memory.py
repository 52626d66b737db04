"""Bytes of a file in memory: a copy of one's own, or the system's own pages of the file, mapped.

Measured with tests/benchmarks/read.py on 154 MB that the system has cached, next to a sum over all its bytes (1.0): a copy into fresh pages of 4 KiB takes 6.5,
as making them costs more than filling them; a copy into fresh pages of 2 MiB, looked through for NaN on its way, 2.3; the mapped file, looked through,
1.5. So mapping is what opens a large file in less than twice the time that touching each byte once takes. Its price: who overwrites a mapped file in place
changes the tensors, and who cuts it off lets the next look at them end this process. (Writing beside the file and renaming, as this library and most downloads
do, is harmless: the mapped file lives on.) Whoever keeps networks for long therefore takes copies, as library/cache.py does; files so small that a copy costs
little are copied always; and on Windows, which can't replace a mapped file, nothing is mapped.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from typing import BinaryIO

import numpy as np

MAPPED_FROM = 8 << 20
"""Smaller files are copied always, bytes."""

_HUGE_FROM = 4 << 20


def fresh(size: int) -> np.ndarray:
    """Memory [size] (uint8) of one's own, zeros; in large pages where the system has such."""
    if size < _HUGE_FROM or not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.zeros(size, np.uint8)
    data = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel that was built without
        data.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(data, np.uint8)


def can_map(size: int) -> bool:
    """Whether a file of so many bytes should be mapped where speed counts for more than safety from other programs."""
    return size >= MAPPED_FROM and os.name == "posix"


def mapped(file: BinaryIO, size: int) -> np.ndarray:
    """The file's first `size` bytes (uint8), mapped; what is written into them stays in this process. They stay when the file is closed, renamed or deleted."""
    return np.frombuffer(mmap.mmap(file.fileno(), size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE), np.uint8)
