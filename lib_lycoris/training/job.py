"""One training at a time in a thread of its own, with a state that page and API can ask for at any moment."""

from __future__ import annotations

import math
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..errors import BusyError, LycoError
from .config import TrainConfig
from .progress import StepReport, render_phase
from .result import TrainResult, typed_for
from .watch import OnPhase, Pause

BUSY = ("preparing", "running", "pausing", "paused", "stopping")
_POINTS = 400
_LOG_LINES = 200
_LOG_EVERY = 5.0


@dataclass(frozen=True)
class Leads:
    """What a job hands to the training it runs, by which it hears of it and leads it; `train` takes all but `say`.

    Attributes:
        resume: whether to go on from the newest saved state.
        say: takes a line for the log.
    """

    on_step: Callable[[StepReport], None]
    should_stop: Callable[[], bool]
    on_phase: OnPhase
    pause: Pause
    resume: bool
    say: Callable[[str], None]

    def for_train(self) -> dict[str, Any]:
        """The arguments of `training.loop.train` beside config and backbone."""
        return {"on_step": self.on_step, "should_stop": self.should_stop, "on_phase": self.on_phase, "pause": self.pause, "resume": self.resume}


Run = Callable[[TrainConfig, Leads], TrainResult]
"""Loads what it needs, trains and saves."""


@dataclass(frozen=True)
class JobState:
    """How a training stands, in plain values.

    Attributes:
        version: grows with every change, so that a page knows what it shows already.
        phase: idle, preparing, running, pausing, paused (the model is free), stopping, done, stopped (before its last step; the log says what was saved)
            or failed.
        doing: what is done now, in words, where that is not the steps: "encoding pictures, 3 of 20".
        name: the network's.
        step: steps done, of `steps`.
        loss: smoothed; None before the first step.
        lr: learning rate.
        seconds: spent on all steps so far; seconds_left is an estimate.
        losses: (step, smoothed loss), thinned to some hundred points.
        validations: (step, loss) on what is not trained on.
        log: lines for the user.
        path: of the network file, once there is one.
        tag: what is written into a prompt to use it; None for an adapter, which is chosen beside the prompt.
        error: why it failed, one line.
    """

    version: int = 0
    phase: str = "idle"
    doing: str = ""
    name: str = ""
    step: int = 0
    steps: int = 0
    loss: float | None = None
    lr: float | None = None
    seconds: float = 0.0
    seconds_left: float | None = None
    losses: tuple[tuple[int, float], ...] = ()
    validations: tuple[tuple[int, float], ...] = ()
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
        return {**plain, "losses": [list(point) for point in self.losses], "validations": [list(point) for point in self.validations], "log": list(self.log)}


class TrainJob:
    """Runs a training in a thread; a second one is refused while the first goes on.

    Args:
        run: does the whole work.
        model: nobody else uses the model while this is held; a training holds it from start to end, but for its pauses.
    """

    def __init__(self, run: Run, model: threading.Lock | None = None) -> None:
        self._run = run
        self._model = model or threading.Lock()
        self._guard = threading.Lock()
        self._state = JobState()
        self._config: TrainConfig | None = None
        self._stop = threading.Event()
        self._pause = _JobPause(self._give_model_away)
        self._thread: threading.Thread | None = None
        self._stride = 1
        self._logged = 0.0

    def start(self, config: TrainConfig, resume: bool = False) -> JobState:
        """Starts the training of that config; gives the first state.

        Args:
            config: what to train.
            resume: goes on from the newest saved state of that name.

        Raises:
            BusyError: another one is under way.
        """
        with self._guard:
            if self._state.busy:
                does = "is paused" if self._state.phase == "paused" else "is under way"
                advice = "go on with it, or stop it first" if self._state.phase == "paused" else "stop it first, or wait"
                raise BusyError(f"training {self._state.name!r} {does} (step {self._state.step} of {self._state.steps}): {advice}")
            self._stop.clear()
            self._pause.go_on()
            self._stride, self._logged, self._config = 1, 0.0, config
            self._state = JobState(self._state.version + 1, "preparing", name=config.output.name, log=(f"Training {config.output.name!r}: preparing",))
            self._thread = threading.Thread(target=self._work, args=(config, resume), name="lycoris-train", daemon=True)
            self._thread.start()
            return self._state

    def stop(self) -> JobState:
        """Asks the training to save and end after the step it is in; gives the state. Nothing happens where none is under way."""
        with self._guard:
            if self._state.busy and self._state.phase != "stopping":
                words = "Ending where it is paused" if self._state.phase == "paused" else "Stopping after this step"
                self._stop.set()
                self._pause.end()
                self._change(phase="stopping", log=self._log_with(words))
            return self._state

    def pause(self) -> JobState:
        """Asks the training to save after the step it is in and to give the model away until `resume`; gives the state.

        Nothing happens where none is under way, or it is ending or pausing already.
        """
        with self._guard:
            if self._state.phase in ("preparing", "running"):
                self._pause.ask()
                self._change(phase="pausing", log=self._log_with("Pausing after this step"))
            return self._state

    def resume(self) -> JobState:
        """Lets a paused training go on where it stands, and one that was stopped or failed from its newest saved state; gives the state.

        Raises:
            BusyError: there is none of these, or one is under way.
        """
        with self._guard:
            if self._state.phase in ("paused", "pausing"):
                self._pause.go_on()
                self._change(phase="preparing", log=self._log_with("Going on"))
                return self._state
            config, phase = self._config, self._state.phase
        if config is None or phase not in ("stopped", "failed"):
            raise BusyError(f"no training is paused, stopped or failed (it is {phase}): there is nothing to resume")
        return self.start(config, resume=True)

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

    def _work(self, config: TrainConfig, resume: bool) -> None:
        try:
            with self._held():
                result = self._run(config, Leads(self._on_step, self._stop.is_set, self._on_phase, self._pause, resume, self._say))
            self._finish(result)
        except LycoError as error:
            self._fail(str(error))
        except Exception as error:  # the thread's end: whatever went wrong belongs on the page, its traceback on the console
            traceback.print_exc()
            self._fail(f"unexpected {type(error).__name__}: {' '.join(str(error).split())[:200]}; the console has the details, please report them")

    @contextmanager
    def _held(self) -> Iterator[None]:
        self._take_model()
        try:
            yield
        finally:
            self._model.release()

    def _take_model(self) -> None:
        if not self._model.acquire(blocking=False):
            self._say("Waiting for the model: pictures are being generated")
            self._model.acquire()

    def _give_model_away(self, wait: Callable[[], bool]) -> bool:
        """Lets others have the model while `wait` waits; gives its answer."""
        self._model.release()
        try:
            with self._guard:
                if self._state.phase == "pausing":
                    self._change(phase="paused", doing="", seconds_left=None, log=self._log_with("Paused: everything is saved, the model is free"))
            return wait()
        finally:
            self._take_model()

    def _on_phase(self, phase: str, done: int, total: int) -> None:
        with self._guard:
            self._change(doing=render_phase(phase, done, total))

    def _on_step(self, report: StepReport) -> None:
        loss, judged = _finite(report.smoothed_loss), _finite(report.validation_loss)
        with self._guard:
            losses, validations = self._state.losses, self._state.validations
            if loss is not None and (report.step % self._stride == 0 or report.step == 1 or report.step == report.steps):
                losses = (*losses, (report.step, loss))
                if len(losses) > _POINTS:
                    losses, self._stride = losses[::2], self._stride * 2
            if judged is not None:
                validations = (*validations, (report.step, judged))[-_POINTS:]
            log = self._state.log
            if time.monotonic() - self._logged >= _LOG_EVERY or report.step == report.steps:
                self._logged = time.monotonic()
                log = self._log_with(f"Step {report.step} of {report.steps}, loss {report.smoothed_loss:.4f}, learning rate {report.learning_rate:.3g}")
            phase = "running" if self._state.phase == "preparing" else self._state.phase
            self._change(phase=phase, doing="", step=report.step, steps=report.steps, loss=loss, lr=report.learning_rate, seconds=report.seconds,
                         seconds_left=_finite(report.seconds_left), losses=losses, validations=validations, log=log)

    def _say(self, line: str) -> None:
        with self._guard:
            self._change(log=self._log_with(line))

    def _finish(self, result: TrainResult) -> None:
        with self._guard:
            for problem in result.problems:
                self._change(log=self._log_with(f"Note: {problem}"))
            if result.path is None:
                kept = "before the first step, nothing was saved" if result.state is None or not result.steps else f"{result.state} is still there"
                self._change(phase="stopped", doing="", seconds_left=None, log=self._log_with(f"Stopped: {kept}"))
                return
            typed = None if self._config is None else typed_for(self._config, result.path)
            self._change(phase="stopped" if result.stopped else "done", doing="", seconds_left=None, path=str(result.path), tag=typed,
                         log=self._log_with(f"Saved {result.path} after {result.steps} steps"))

    def _fail(self, line: str) -> None:
        with self._guard:
            self._change(phase="failed", doing="", error=line, seconds_left=None, log=self._log_with(line))

    def _log_with(self, line: str) -> tuple[str, ...]:
        return (*self._state.log, line)[-_LOG_LINES:]

    def _change(self, **values: Any) -> None:
        self._state = replace(self._state, version=self._state.version + 1, **values)


class _JobPause:
    """The pause of a job: asked for and ended from one thread, waited for in the training's. Fulfils `watch.Pause`.

    Args:
        around: called with what waits; frees the model around it and gives its answer.
    """

    def __init__(self, around: Callable[[Callable[[], bool]], bool]) -> None:
        self._around = around
        self._changed = threading.Condition()
        self._asked, self._ended = False, False

    def ask(self) -> None:
        with self._changed:
            self._asked, self._ended = True, False

    def go_on(self) -> None:
        with self._changed:
            self._asked, self._ended = False, False
            self._changed.notify_all()

    def end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wanted(self) -> bool:
        return self._asked and not self._ended

    def wait(self) -> bool:
        return self._around(self._wait)

    def _wait(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._ended or not self._asked)
            return not self._ended


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
