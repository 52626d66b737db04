"""How a training stands, in plain values that page, API and a file on disk hold alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from .progress import StepReport

BUSY = ("preparing", "running", "pausing", "paused", "stopping")
RESUMABLE = ("stopped", "failed", "interrupted")
"""Phases of a training that has ended and can go on from its newest saved state."""
INTERRUPTED = "interrupted"
_POINTS = 400
_PREVIEWS, _FIRST = 64, 8
_LISTS = ("losses", "validations", "rates")


@dataclass(frozen=True)
class JobState:
    """How a training stands, in plain values.

    Attributes:
        version: grows with every change, so that a page knows what it shows already.
        phase: idle, preparing, running, pausing, paused (the model is free), stopping, done, stopped (before its last step; the log says what was saved),
            failed, or interrupted (the program ended while it was under way; what was saved is there).
        doing: what is done now, in words, where that is not the steps: "encoding pictures, 3 of 20".
        name: the network's; kind: its network.kind.
        step: steps done, of `steps`.
        loss: smoothed; None before the first step.
        lr: learning rate.
        seconds: spent on all steps so far; seconds_left is an estimate.
        losses: (step, smoothed loss), thinned to some hundred points; rates the same of the learning rate.
        validations: (step, loss) on what is not trained on.
        ranks: by layer, where a method takes some away (AdaLoRA); initial_rank is what each began with.
        previews: (step, prompt, path) of each preview picture; those of step 0 show the model before, and at step -1 stands a control picture that an
            adapter's previews follow.
        log: lines for the user.
        path: of the network file, once there is one.
        tag: what is written into a prompt to use it; None for an adapter, which is chosen beside the prompt.
        error: why it failed, one line.
    """

    version: int = 0
    phase: str = "idle"
    doing: str = ""
    name: str = ""
    kind: str = ""
    step: int = 0
    steps: int = 0
    loss: float | None = None
    lr: float | None = None
    seconds: float = 0.0
    seconds_left: float | None = None
    losses: tuple[tuple[int, float], ...] = ()
    validations: tuple[tuple[int, float], ...] = ()
    rates: tuple[tuple[int, float], ...] = ()
    ranks: Mapping[str, int] | None = None
    initial_rank: int | None = None
    previews: tuple[tuple[int, str, str], ...] = ()
    log: tuple[str, ...] = ()
    path: str | None = None
    tag: str | None = None
    error: str | None = None

    @property
    def busy(self) -> bool:
        """Whether a training is under way."""
        return self.phase in BUSY

    def to_dict(self) -> dict[str, Any]:
        """The state as values that JSON can hold."""
        plain = asdict(replace(self, ranks=None))
        pairs = {name: [list(point) for point in plain[name]] for name in (*_LISTS, "previews")}
        return {**plain, **pairs, "log": list(self.log), "ranks": None if self.ranks is None else dict(self.ranks)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> JobState:
        """The state that `to_dict` made these values of; those that it does not know are left out.

        Raises:
            TypeError, ValueError: they are no state's.
        """
        known = {item.name: plain[item.name] for item in fields(cls) if item.name in plain}
        for name in (*_LISTS, "previews"):
            known[name] = tuple(tuple(point) for point in known.get(name) or ())
        return cls(**{**known, "log": tuple(str(line) for line in known.get("log") or ()), "phase": str(known.get("phase", "idle"))})

    def with_preview(self, step: int, prompt: str, path: str) -> tuple[tuple[int, str, str], ...]:
        """The previews with one more; of very many the control pictures, those from before the training and the newest."""
        kept = [one for one in self.previews if one[2] != path]
        first = [one for one in kept if one[0] <= 0][:2 * _FIRST]
        return (*first, *[one for one in kept if one[0] > 0][-_PREVIEWS:], (step, prompt, path))


class Curves:
    """The points that a page draws of a training's steps, thinned as they grow."""

    def __init__(self) -> None:
        self._stride = 1

    def add(self, state: JobState, report: StepReport) -> dict[str, Any]:
        """The state's lists with this step's points."""
        losses, rates, validations = (_before(report.step, points) for points in (state.losses, state.rates, state.validations))
        if report.step % self._stride == 0 or report.step in (1, report.steps):
            loss = finite(report.smoothed_loss)
            losses = losses if loss is None else (*losses, (report.step, loss))
            rates = (*rates, (report.step, report.learning_rate))
            if len(rates) > _POINTS:
                losses, rates, self._stride = losses[::2], rates[::2], self._stride * 2
        judged = finite(report.validation_loss)
        if judged is not None:
            validations = (*validations, (report.step, judged))[-_POINTS:]
        return {"losses": losses, "rates": rates, "validations": validations}


def _before(step: int, points: tuple[tuple[int, float], ...]) -> tuple[tuple[int, float], ...]:
    """The points of earlier steps: what goes on from a saved state makes the steps after it once more."""
    return points if not points or points[-1][0] < step else tuple(point for point in points if point[0] < step)


def finite(value: float | None) -> float | None:
    """The number, or None where it is none that JSON can hold."""
    return value if value is not None and math.isfinite(value) else None
