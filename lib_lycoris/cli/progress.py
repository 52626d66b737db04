"""How a training's progress is shown on a terminal, and in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from ..training.progress import StepReport, render_progress

_QUIET_SECONDS = 15.0


@contextmanager
def training_bar(stream: TextIO | None = None) -> Iterator[Callable[[StepReport], None]]:
    """Gives the `on_step` that draws a bar with loss and time left; where the stream is no terminal, a line now and then."""
    stream = stream or sys.stderr
    if not stream.isatty():
        yield _now_and_then(stream)
        return
    from tqdm import tqdm

    bar = tqdm(file=stream, unit="step", dynamic_ncols=True, desc="training")

    def on_step(report: StepReport) -> None:
        if bar.total is None:
            bar.total, bar.initial = report.steps, report.step - 1
            bar.n = report.step - 1
        bar.set_postfix(loss=f"{report.smoothed_loss:.4f}", refresh=False)
        bar.update(report.step - bar.n)

    try:
        yield on_step
    finally:
        bar.close()


def _now_and_then(stream: TextIO) -> Callable[[StepReport], None]:
    last = -_QUIET_SECONDS

    def on_step(report: StepReport) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _QUIET_SECONDS or report.step == report.steps:
            last = now
            print(render_progress(report), file=stream, flush=True)

    return on_step
