"""How a training's progress is shown on a terminal, in a log, and to a program."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

from ..training.progress import StepReport, render_phase, render_progress

_QUIET_SECONDS = 15.0
_LONG_PHASE = 2.0
"""Seconds after which a phase is worth a line."""


@dataclass(frozen=True)
class Shown:
    """What is told to `train`: after each step, and whenever something else is done."""

    on_step: Callable[[StepReport], None]
    on_phase: Callable[[str, int, int], None]


@contextmanager
def training_bar(stream: TextIO | None = None) -> Iterator[Shown]:
    """Draws a bar with loss and time left, and before it what is prepared; where the stream is no terminal, a line now and then."""
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
        bar.set_description_str("training", refresh=False)
        bar.set_postfix(loss=f"{report.smoothed_loss:.4f}", refresh=False)
        bar.update(report.step - bar.n)

    def on_phase(phase: str, done: int, total: int) -> None:
        bar.set_description_str(render_phase(phase, done, total))

    try:
        yield Shown(on_step, on_phase)
    finally:
        bar.close()


def json_lines(write: Callable[[str], None]) -> Shown:
    """One JSON object a line: for each step, and now and then for a phase that takes long."""
    last = long_phases(lambda phase, done, total: write(json.dumps({"phase": phase, "done": done, "total": total})), every=_LONG_PHASE)

    def on_step(report: StepReport) -> None:
        line: dict[str, Any] = {"step": report.step, "steps": report.steps, "loss": finite(report.loss), "lr": report.learning_rate,
                                "seconds": round(report.seconds, 3)}
        if report.validation_loss is not None:
            line["validation"] = finite(report.validation_loss)
        write(json.dumps(line))

    return Shown(on_step, last)


def no_lines() -> Shown:
    """Nothing: for all processes but the first."""
    return Shown(lambda report: None, lambda phase, done, total: None)


def finite(value: float) -> float | None:
    """A number that JSON can hold."""
    return value if math.isfinite(value) else None


def long_phases(tell: Callable[[str, int, int], None], every: float) -> Callable[[str, int, int], None]:
    """An `on_phase` that tells of a phase once it has lasted so many seconds, and every so many seconds from then on."""
    current, told_at = "", 0.0

    def on_phase(phase: str, done: int, total: int) -> None:
        nonlocal current, told_at
        now = time.monotonic()
        if phase != current:
            current, told_at = phase, now
        elif now - told_at >= every:
            told_at = now
            tell(phase, done, total)

    return on_phase


def _now_and_then(stream: TextIO) -> Shown:
    last = -_QUIET_SECONDS

    def on_step(report: StepReport) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _QUIET_SECONDS or report.step == report.steps:
            last = now
            print(render_progress(report), file=stream, flush=True)

    return Shown(on_step, long_phases(lambda phase, done, total: print(render_phase(phase, done, total), file=stream, flush=True), every=_QUIET_SECONDS))
