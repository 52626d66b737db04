"""One training at a time in a thread of its own, with a state that page and API can ask for at any moment."""

from __future__ import annotations

import math
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from ..errors import BusyError, LycoError
from .config import TrainConfig

BUSY = ("preparing", "running", "stopping")
_POINTS = 400
_LOG_LINES = 200
_LOG_EVERY = 5.0


class Report(Protocol):
    """What is told after a step: training.progress.StepReport."""

    step: int
    steps: int
    loss: float
    smoothed_loss: float
    learning_rate: float
    seconds: float
    seconds_left: float


class Result(Protocol):
    """What a training gives: training.loop.TrainResult."""

    path: Path | None
    steps: int
    stopped: bool
    problems: tuple[str, ...]


Run = Callable[[TrainConfig, Callable[[Report], None], Callable[[], bool], Callable[[str], None]], Result]
"""(config, on_step, should_stop, say) → result; loads what it needs, trains and saves."""


@dataclass(frozen=True)
class JobState:
    """How a training stands, in plain values.

    Attributes:
        version: grows with every change, so that a page knows what it shows already.
        phase: idle, preparing, running, stopping, done, stopped (before its last step; the log says what was saved) or failed.
        name: the network's.
        step: steps done, of `steps`.
        loss: smoothed; None before the first step.
        lr: learning rate.
        seconds: since the first step; seconds_left is an estimate.
        losses: (step, smoothed loss), thinned to some hundred points.
        log: lines for the user.
        path: of the network file, once there is one.
        tag: what is written into a prompt to use it.
        error: why it failed, one line.
    """

    version: int = 0
    phase: str = "idle"
    name: str = ""
    step: int = 0
    steps: int = 0
    loss: float | None = None
    lr: float | None = None
    seconds: float = 0.0
    seconds_left: float | None = None
    losses: tuple[tuple[int, float], ...] = ()
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
        plain = asdict(self)
        return {**plain, "losses": [list(point) for point in self.losses], "log": list(self.log)}


class TrainJob:
    """Runs a training in a thread; a second one is refused while the first goes on.

    Args:
        run: does the whole work.
        model: nobody else uses the model while this is held; a training holds it from start to end.
    """

    def __init__(self, run: Run, model: threading.Lock | None = None) -> None:
        self._run = run
        self._model = model or threading.Lock()
        self._guard = threading.Lock()
        self._state = JobState()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._stride = 1
        self._logged = 0.0

    def start(self, config: TrainConfig) -> JobState:
        """Starts the training of that config; gives the first state.

        Raises:
            BusyError: another one is under way.
        """
        with self._guard:
            if self._state.busy:
                raise BusyError(f"training {self._state.name!r} is under way (step {self._state.step} of {self._state.steps}): stop it first, or wait")
            self._stop.clear()
            self._stride, self._logged = 1, 0.0
            self._state = JobState(self._state.version + 1, "preparing", config.output.name, log=(f"Training {config.output.name!r}: preparing",))
            self._thread = threading.Thread(target=self._work, args=(config,), name="lycoris-train", daemon=True)
            self._thread.start()
            return self._state

    def stop(self) -> JobState:
        """Asks the training to save and end after the step it is in; gives the state. Nothing happens where none is under way."""
        with self._guard:
            if self._state.busy and self._state.phase != "stopping":
                self._stop.set()
                self._change(phase="stopping", log=self._log_with("Stopping after this step"))
            return self._state

    def state(self) -> JobState:
        """The state now."""
        with self._guard:
            return self._state

    def wait(self, timeout: float | None = None) -> JobState:
        """The state once the training has ended, or after `timeout` seconds."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout)
        return self.state()

    def _work(self, config: TrainConfig) -> None:
        try:
            with self._held():
                result = self._run(config, self._on_step, self._stop.is_set, self._say)
            self._finish(result)
        except LycoError as error:
            self._fail(str(error))
        except Exception as error:  # the thread's end: whatever went wrong belongs on the page, its traceback on the console
            traceback.print_exc()
            self._fail(f"unexpected {type(error).__name__}: {' '.join(str(error).split())[:200]}; the console has the details, please report them")

    @contextmanager
    def _held(self) -> Iterator[None]:
        if not self._model.acquire(blocking=False):
            self._say("Waiting for the model: pictures are being generated")
            self._model.acquire()
        try:
            yield
        finally:
            self._model.release()

    def _on_step(self, report: Report) -> None:
        loss = _finite(report.smoothed_loss)
        with self._guard:
            losses = self._state.losses
            if loss is not None and (report.step % self._stride == 0 or report.step == 1 or report.step == report.steps):
                losses = (*losses, (report.step, loss))
                if len(losses) > _POINTS:
                    losses, self._stride = losses[::2], self._stride * 2
            log = self._state.log
            if time.monotonic() - self._logged >= _LOG_EVERY or report.step == report.steps:
                self._logged = time.monotonic()
                log = self._log_with(f"Step {report.step} of {report.steps}, loss {report.smoothed_loss:.4f}, learning rate {report.learning_rate:.3g}")
            phase = "running" if self._state.phase == "preparing" else self._state.phase
            self._change(phase=phase, step=report.step, steps=report.steps, loss=loss, lr=report.learning_rate, seconds=report.seconds,
                         seconds_left=_finite(report.seconds_left), losses=losses, log=log)

    def _say(self, line: str) -> None:
        with self._guard:
            self._change(log=self._log_with(line))

    def _finish(self, result: Result) -> None:
        with self._guard:
            for problem in result.problems:
                self._change(log=self._log_with(f"Note: {problem}"))
            if result.path is None:
                self._change(phase="stopped", seconds_left=None, log=self._log_with("Stopped before the first step: nothing was saved"))
                return
            self._change(phase="stopped" if result.stopped else "done", seconds_left=None, path=str(result.path), tag=f"<lyco:{result.path.stem}:1>",
                         log=self._log_with(f"Saved {result.path} after {result.steps} steps"))

    def _fail(self, line: str) -> None:
        with self._guard:
            self._change(phase="failed", error=line, seconds_left=None, log=self._log_with(line))

    def _log_with(self, line: str) -> tuple[str, ...]:
        return (*self._state.log, line)[-_LOG_LINES:]

    def _change(self, **values: Any) -> None:
        self._state = replace(self._state, version=self._state.version + 1, **values)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
