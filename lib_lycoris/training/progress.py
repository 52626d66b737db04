"""How a training stands: one report after each step, and a line of text for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_SMOOTHING = 0.95
_WIDTH = 24


@dataclass(frozen=True)
class StepReport:
    """The state after a step."""

    step: int
    """Steps done; the first report says 1."""
    steps: int
    loss: float
    smoothed_loss: float
    """Average of the losses, each step counting a twentieth."""
    learning_rate: float
    seconds: float
    """Spent on all steps so far, with the earlier parts of a resumed or paused training."""
    seconds_left: float
    validation_loss: float | None = None
    """Of this step's validation; None in steps without one."""
    ranks: int | None = None
    """How many ranks all layers have together, where a method takes some away (AdaLoRA)."""
    layer_ranks: Mapping[str, int] | None = None
    """The same by layer ("component.layer")."""


class SmoothedLoss:
    """A moving average of the loss without the pull to zero that its start would have."""

    def __init__(self, total: float = 0.0, weight: float = 0.0):
        self.total, self.weight = total, weight

    def add(self, loss: float) -> float:
        """The average with this loss in it."""
        self.total = _SMOOTHING * self.total + (1 - _SMOOTHING) * loss
        self.weight = _SMOOTHING * self.weight + (1 - _SMOOTHING)
        return self.value

    @property
    def value(self) -> float:
        """The average; NaN before the first loss."""
        return self.total / self.weight if self.weight else float("nan")


def render_progress(report: StepReport) -> str:
    """One line: "[#####-----] 120/400 steps, loss 0.1234, 1:05 gone, 2:30 left"."""
    full = _WIDTH * report.step // max(report.steps, 1)
    bar = "#" * full + "-" * (_WIDTH - full)
    return (
        f"[{bar}] {report.step}/{report.steps} steps, loss {report.smoothed_loss:.4f}, "
        + ("" if report.validation_loss is None else f"validation {report.validation_loss:.4f}, ")
        + f"{render_seconds(report.seconds)} gone, {render_seconds(report.seconds_left)} left"
    )


def render_phase(phase: str, done: int = 0, total: int = 0) -> str:
    """What is done now: "encoding pictures, 3 of 20", or the phase alone where nobody knows how much there is to do."""
    return f"{phase}, {done} of {total}" if total else phase


def render_seconds(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any: "1:05", "2:00:05"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
