"""One training at a time in a thread of its own, with a state that page and API can ask for at any moment."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import BusyError, LycoError
from .config import TrainConfig
from .job_record import JobRecord
from .job_state import BUSY, RESUMABLE, Curves, JobState, finite
from .progress import StepReport, render_phase
from .result import TrainResult, typed_for
from .watch import OnPhase, Pause, Viewer

__all__ = ["BUSY", "JobState", "Leads", "Run", "TrainJob"]

_LOG_LINES = 200
_LOG_EVERY = 5.0
_KEEP_EVERY = 10.0
"""Seconds between two writings of the state to disk, while steps are taken."""


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
    viewer: Viewer | None = None

    def for_train(self) -> dict[str, Any]:
        """The arguments of `training.loop.train` beside config and backbone."""
        return {
            "on_step": self.on_step, "should_stop": self.should_stop, "on_phase": self.on_phase, "pause": self.pause, "resume": self.resume,
            "viewer": self.viewer,
        }


Run = Callable[[TrainConfig, Leads], TrainResult]
"""Loads what it needs, trains and saves."""


class TrainJob:
    """Runs a training in a thread; a second one is refused while the first goes on.

    Args:
        run: does the whole work.
        model: nobody else uses the model while this is held; a training holds it from start to end, but for its pauses.
        record: a file in which the newest training's state is kept, so that it is found again after a restart; read when the state is first asked for.
    """

    def __init__(self, run: Run, model: threading.Lock | None = None, record: Path | None = None) -> None:
        self._run = run
        self._model = model or threading.Lock()
        self._guard = threading.Lock()
        self._record, self._known = JobRecord(record), record is None
        self._state = JobState()
        self._config: TrainConfig | None = None
        self._stop = threading.Event()
        self._pause = _JobPause(self._give_model_away)
        self._viewer = _JobViewer(self._on_preview)
        self._thread: threading.Thread | None = None
        self._curves = Curves()
        self._logged = self._kept = 0.0

    def start(self, config: TrainConfig, resume: bool = False) -> JobState:
        """Starts the training of that config; gives the first state.

        Args:
            config: what to train.
            resume: goes on from the newest saved state of that name.

        Raises:
            BusyError: another one is under way.
        """
        with self._guard:
            self._recall()
            if self._state.busy:
                does = "is paused" if self._state.phase == "paused" else "is under way"
                advice = "go on with it, or stop it first" if self._state.phase == "paused" else "stop it first, or wait"
                raise BusyError(f"training {self._state.name!r} {does} (step {self._state.step} of {self._state.steps}): {advice}")
            self._stop.clear()
            self._pause.go_on()
            self._viewer.wanted()
            self._curves, self._logged, self._config = Curves(), 0.0, config
            network, before = config.network, self._state
            self._state = JobState(before.version + 1, "preparing", name=config.output.name, kind=network.kind,
                                   initial_rank=network.initial_rank if network.kind == "adalora" else None,
                                   log=(f"Training {config.output.name!r}: preparing",))
            if resume and before.name == config.output.name:  # what is drawn goes on where it was
                self._state = replace(self._state, losses=before.losses, rates=before.rates, validations=before.validations, previews=before.previews)
            self._record.write(config, self._state)
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

    def preview(self) -> JobState:
        """Asks the training for preview pictures after the step it is in; gives the state.

        Raises:
            BusyError: none is under way, or it is paused or ending.
        """
        with self._guard:
            if self._state.phase not in ("preparing", "running"):
                raise BusyError(f"no preview now: {_STANDS.get(self._state.phase, 'no training is under way')}; previews are made while steps are taken")
            self._viewer.ask()
            self._change(log=self._log_with("Preview pictures come after this step"))
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
            self._recall()
            config, phase = self._config, self._state.phase
        if config is None or phase not in RESUMABLE:
            raise BusyError(f"no training is paused, stopped or failed (it is {phase}): there is nothing to resume")
        return self.start(config, resume=True)

    def state(self) -> JobState:
        """The state now."""
        with self._guard:
            self._recall()
            return self._state

    def config(self) -> TrainConfig | None:
        """What the training that is under way, or was last, was asked to do."""
        with self._guard:
            self._recall()
            return self._config

    def wait(self, timeout: float | None = None) -> JobState:
        """The state once the training has ended, or after `timeout` seconds."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout)
        return self.state()

    def _work(self, config: TrainConfig, resume: bool) -> None:
        try:
            with self._held():
                result = self._run(config, Leads(self._on_step, self._stop.is_set, self._on_phase, self._pause, resume, self._say, self._viewer))
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
        with self._guard:
            log = self._state.log
            if time.monotonic() - self._logged >= _LOG_EVERY or report.step == report.steps:
                self._logged = time.monotonic()
                log = self._log_with(f"Step {report.step} of {report.steps}, loss {report.smoothed_loss:.4f}, learning rate {report.learning_rate:.3g}")
            phase = "running" if self._state.phase == "preparing" else self._state.phase
            self._change(phase=phase, doing="", step=report.step, steps=report.steps, loss=finite(report.smoothed_loss), lr=report.learning_rate,
                         seconds=report.seconds, seconds_left=finite(report.seconds_left), log=log, ranks=report.layer_ranks,
                         **self._curves.add(self._state, report))

    def _on_preview(self, step: int, prompt: str, path: Path) -> None:
        with self._guard:
            self._change(previews=self._state.with_preview(step, prompt, str(path)))

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
        before = self._state
        self._state = replace(before, version=before.version + 1, **values)
        if self._state.phase != before.phase or time.monotonic() - self._kept >= _KEEP_EVERY:
            self._kept = time.monotonic()
            self._record.write(self._config, self._state)

    def _recall(self) -> None:
        """Reads what was kept of a training before this program's start, once."""
        if not self._known:
            self._known = True
            self._config, self._state = self._record.read()


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


class _JobViewer:
    """Asked for previews from one thread, asked whether any are wanted in the training's. Fulfils `watch.Viewer`."""

    def __init__(self, show: Callable[[int, str, Path], None]) -> None:
        self.show = show
        self._asked = threading.Event()

    def ask(self) -> None:
        self._asked.set()

    def wanted(self) -> bool:
        wanted = self._asked.is_set()
        self._asked.clear()
        return wanted


_STANDS = {"paused": "the training is paused, resume it first", "pausing": "the training is pausing", "stopping": "the training is ending"}
