"""A progress bar for work on many layers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def layer_bar(title: str, unit: str = "layer") -> Iterator[Callable[[int, int], None]]:
    """Gives what is told (done, total); draws a bar where stderr is a terminal and nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from tqdm import tqdm

    bar = tqdm(file=sys.stderr, unit=unit, dynamic_ncols=True, desc=title, leave=False)

    def on_step(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    try:
        yield on_step
    finally:
        bar.close()
