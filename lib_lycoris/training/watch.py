"""Whoever watches and leads a training from outside: a page, a command line, a program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from .processes import Processes
from .progress import StepReport

OnPhase = Callable[[str, int, int], None]
"""(phase, done, total): what is done now, in words such as "encoding pictures"; total is 0 where nobody knows how much there is to do."""


class Pause(Protocol):
    """Lets a training give its model away for a while."""

    def wanted(self) -> bool:
        """Whether the training is to pause after the step it is in; asked in every step."""

    def wait(self) -> bool:
        """Called with everything saved and the model as it was before. Returns when the training is to go on: True; or to end where it stands: False."""


class Viewer(Protocol):
    """Looks at preview pictures, and may ask for some out of turn."""

    def wanted(self) -> bool:
        """Whether previews are to be made after the step that was just taken; asked once a step, and true once for each time that they were asked for."""

    def show(self, step: int, prompt: str, path: Path) -> None:
        """Told of each preview that was written: after so many steps (0: before the first; -1: what it follows), of which prompt, where."""


@dataclass(frozen=True)
class Watch:
    """What a training tells and asks; None stands for nobody."""

    on_step: Callable[[StepReport], None] | None = None
    should_stop: Callable[[], bool] | None = None
    on_phase: OnPhase | None = None
    pause: Pause | None = None
    viewer: Viewer | None = None

    def of(self, processes: Processes) -> Watch:
        """The same for one of several processes: the first alone tells, all may ask for an end."""
        return self if processes.rank == 0 else replace(self, on_step=None, on_phase=None, viewer=None)

    def step(self, report: StepReport) -> None:
        """Tells of a step."""
        if self.on_step is not None:
            self.on_step(report)

    def phase(self, phase: str, done: int = 0, total: int = 0) -> None:
        """Tells what is done now."""
        if self.on_phase is not None:
            self.on_phase(phase, done, total)

    def stops(self) -> bool:
        """Whether the training is to end."""
        return self.should_stop is not None and self.should_stop()

    def pauses(self) -> bool:
        """Whether the training is to pause."""
        return self.pause is not None and self.pause.wanted()

    def wants_previews(self) -> bool:
        """Whether previews are to be made now, out of turn."""
        return self.viewer is not None and self.viewer.wanted()

    def preview(self, step: int, prompt: str, path: Path) -> None:
        """Tells of a preview that was written."""
        if self.viewer is not None:
            self.viewer.show(step, prompt, path)
