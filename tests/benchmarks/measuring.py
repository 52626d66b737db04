"""What the benchmarks share: ratios with their interval, and the memory of this process."""

from __future__ import annotations

import resource
import statistics
from pathlib import Path


def ratio(values: list[float], floor: list[float]) -> dict:
    """Median of the quotients and the 95 % interval of that median, from the order of the values alone."""
    quotients = sorted(value / least for value, least in zip(values, floor, strict=True))
    count = len(quotients)
    reach = max(0, int(count / 2 - 0.98 * count**0.5))
    return {"median": statistics.median(quotients), "low": quotients[reach], "high": quotients[count - 1 - reach]}


def resident() -> int:
    """Bytes of main memory that the process has, 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return 0
