"""The steps of a training from where it stands to its end or a break, with whatever is due every now and then."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn, TypeVar

from ..errors import TrainingError
from .backbone import Backbone
from .checkpoint import State, States, new_session
from .config import TrainConfig
from .embedding_export import write_trained, write_word_picture
from .export import About
from .previews import Guide, Previews
from .progress import SmoothedLoss, StepReport
from .rank_plot import write_rank_plot
from .resuming import checkpoint_mark
from .trainer import NotFiniteError, Trainer
from .validation import Validation
from .watch import Watch

_log = logging.getLogger(__name__)

_Made = TypeVar("_Made")

_FALLBACK_PREVIEWS = 2

COMPLETE, STOPPED, PAUSED = "complete", "stopped", "paused"


class Run:
    """One stretch of a training: states, networks, previews and validations between its steps.

    Of several processes all take each step, validate, and end together; the first alone writes and draws.

    Attributes:
        step: steps done.
        state: the newest that was saved, in this stretch or the one before.
        end: how it ended: COMPLETE, STOPPED or PAUSED.
        problems: what went wrong on the way without ending it, in words.
    """

    def __init__(
        self, config: TrainConfig, backbone: Backbone, trainer: Trainer, states: States, about: About, state: State | None, validation: Validation | None,
        watch: Watch | None = None, guide: Guide | None = None,
    ):
        self._config, self._backbone, self._trainer, self._states, self._about, self._validation = config, backbone, trainer, states, about, validation
        self._watch, self._processes = watch or Watch(), trainer.processes
        self._folder, self._steps = states.folder.parent, about.planned
        self._guided = guide is not None
        self._previews = Previews(self._folder, config.output, backbone, guide, _first_captions(about))
        self._session = new_session() if state is None else state.session
        self.step = 0 if state is None else state.step
        numbers = {} if state is None else state.numbers
        self.smoothed = SmoothedLoss(*numbers.get("smoothed", []))
        self.validations = [(int(step), float(loss)) for step, loss in numbers.get("validations", [])]
        self._before, self._first, self._began = float(numbers.get("seconds", 0.0)), self.step, time.monotonic()
        self._about = replace(about, started_at=float(numbers.get("started_at", about.started_at)))
        self._saved_step, self._saved_at = (self.step if state is not None else -1), time.monotonic()
        self._failure: TrainingError | None = None
        self.state, self.end, self.problems = state, COMPLETE, []
        if state is not None:
            trainer.load(state.tensors, state.numbers)

    def go(self) -> None:
        """Takes the steps; a state was saved at the end, whatever ended them.

        Raises:
            TrainingError: loss or gradient became NaN, or a file could not be written.
        """
        if self.step >= self._steps:
            self._tell(f"the saved state has {self.step} of {self._steps} steps already: nothing is left to train; a larger training.steps goes on")
        if self.step == 0 and self._steps:
            self._watch.phase("validating" if self._validation else "training")
        while self.step < self._steps and not self._ends():
            if self.step == 0:
                self._validate()
                self._show_before()
            self._take_step()
        self._together(self._save)

    def finish(self) -> Path | None:
        """The network as it stands, saved by the first process; None in the others, and before the first step."""
        return self._together(self._export) if self.step else None

    def _together(self, work: Callable[[], _Made]) -> _Made | None:
        """What the first process made; None in the others. Where it fails, all do.

        Raises:
            TrainingError: the first process could not do it, now or in an earlier step.
        """
        made = None
        if not self._processes.rank and self._failure is None:
            try:
                made = work()
            except TrainingError as error:
                self._failure = error
        if self._processes.any(self._failure is not None):
            raise self._failure or TrainingError("another process could not save: its message says why")
        return made

    def _export(self) -> Path:
        self._watch.phase("saving")
        with self._trainer.used():
            judged = self.validations[-1][1] if self.validations else None
            about = replace(self._about, steps=self.step, validation_loss=judged)
            path = write_trained(self._folder, self._trainer.method, self._trainer.word, self._config, self._backbone, about)
            self._draw_ranks(path)
            if self._trainer.word is not None and self._config.embedding.picture and self.step == self._steps:
                self._watch.phase("drawing previews")
                self._tell(*write_word_picture(self._folder, self._trainer.word, self._config, self._backbone, about))
            return path

    @property
    def ranks(self) -> dict[str, int] | None:
        """The ranks of the layers, where a method takes some away."""
        return self._trainer.method.figures().get("ranks")

    def _draw_ranks(self, network: Path) -> None:
        """NAME-ranks.png beside the network; what failed is a problem, as the network is there."""
        ranks = self.ranks
        if ranks is None:
            return
        if not any(ranks.values()):
            self._tell("AdaLoRA has taken away every rank of every layer: the network does nothing; train for more steps")
        try:
            write_rank_plot(network.with_name(f"{network.name.removesuffix('.safetensors')}-ranks.png"), ranks, self._config.network.initial_rank)
        except OSError as error:
            self._tell(f"the picture of the ranks could not be written: {error.strerror or error}")

    def _tell(self, *problems: str) -> None:
        for problem in problems:
            _log.warning("%s", problem)
        self.problems += problems

    def _ends(self) -> bool:
        """Whether anybody wants an end before the next step; all processes find the same."""
        if self._processes.any(self._failure is not None or self._watch.stops()):
            self.end = STOPPED
        elif self._watch.pauses():
            self.end = PAUSED
        return self.end != COMPLETE

    def _take_step(self) -> None:
        try:
            loss = self._trainer.step(self.step)
        except NotFiniteError as error:
            self._fail_at(error)
        except TrainingError:  # the host took the model away: the parameters are still those of the step before
            self._save()
            raise
        except RuntimeError as error:  # torch's own words where the host took it away in the middle of a pass
            reason = getattr(self._backbone, "left", lambda: None)()
            if reason is None:
                raise
            self._save()
            raise TrainingError(f"{reason}: resume the training from its last state") from error
        self.step += 1
        self.smoothed.add(loss)
        due = self.step % self._config.validation.every == 0 or self.step == self._steps
        judged = self._validate() if due else None
        self._watch.step(self._report(loss, judged))
        if not self._processes.rank:
            self._do_what_is_due()

    def _fail_at(self, error: NotFiniteError) -> NoReturn:
        self._save()  # The parameters are still those of the step before.
        raise NotFiniteError(
            f"{error}: lower training.learning_rate, or use precision bf16 or fp32 instead of fp16; "
            f"the state after step {self.step} is kept in {self._states.latest_path()}"
        ) from error

    def _report(self, loss: float, judged: float | None) -> StepReport:
        seconds = time.monotonic() - self._began
        left = seconds / (self.step - self._first) * (self._steps - self.step)
        rate = self._trainer.learning_rate(self.step - 1)
        ranks = self.ranks
        total = None if ranks is None else sum(ranks.values())
        return StepReport(self.step, self._steps, loss, self.smoothed.value, rate, self._before + seconds, left, judged, total, ranks)

    def _validate(self) -> float | None:
        """The loss on what is not trained on; None where there is none."""
        if self._validation is None:
            return None
        self._watch.phase("validating")
        with self._trainer.used():
            loss = self._validation.loss()
        self.validations.append((self.step, loss))
        _log.info("validation after step %d: loss %.5f", self.step, loss)
        return loss

    def _show(self) -> None:
        """The network and the pictures that are due after this step."""
        output = self._config.output
        network = self._is_due(output.network_every, output.network_epochs)
        if network and self.step < self._steps:
            self._export()
        due = (network and (output.preview_prompts or self._guided)) or self._is_due(output.preview_every)
        if self._watch.wants_previews() or due:
            self._preview()

    def _show_before(self) -> None:
        """The previews before the first step, where any are due later: a fresh network changes nothing yet."""
        output = self._config.output
        networks = (output.preview_prompts or self._guided) and (output.network_every or output.network_epochs)
        if not self._processes.rank and (output.preview_every or networks):
            self._preview()

    def _preview(self) -> None:
        self._watch.phase("drawing previews")
        with self._trainer.used():
            problems = self._previews.make(self.step, self._watch.preview)
        self._tell(*problems)

    def _is_due(self, every: int, epochs: int = 0) -> bool:
        """Whether so many steps, or epochs, are full with this step."""
        full = self._epochs(self.step), self._epochs(self.step - 1)
        return bool(every and self.step % every == 0) or bool(epochs and full[0] // epochs > full[1] // epochs)

    def _epochs(self, step: int) -> int:
        """Epochs that are full after so many steps."""
        return step * self._trainer.batch // self._trainer.samples

    def _do_what_is_due(self) -> None:
        """Networks, previews and a state, where it is time; of several processes one that can't lets the others end with it."""
        try:
            self._show()
            if self._save_is_due():
                self._save()
        except TrainingError as error:
            if self._processes.count == 1:
                raise
            self._failure = error

    def _rescued(self, error: TrainingError) -> TrainingError:
        """That error, in which the training's state could not be saved, after the network was: it is several times smaller, and may find room."""
        try:
            return TrainingError(f"{error}; the network after step {self.step} is saved as {self._export()}")
        except TrainingError:
            return error

    def _save_is_due(self) -> bool:
        output = self._config.output
        late = bool(output.save_minutes) and time.monotonic() - self._saved_at >= 60 * output.save_minutes
        return late or bool(output.save_every and self.step % output.save_every == 0)

    def _save(self) -> None:
        """Saves the state of this step, in memory and by the first process on disk."""
        if self.step == self._saved_step or self._processes.rank:
            return
        self._watch.phase("saving")
        tensors, numbers = self._trainer.state()
        numbers = {
            **numbers, "smoothed": [self.smoothed.total, self.smoothed.weight], "validations": [list(point) for point in self.validations],
            "seconds": self._before + time.monotonic() - self._began, "started_at": self._about.started_at, "processes": self._processes.count,
        }
        tensors = {name: tensor.cpu() for name, tensor in tensors.items()}
        state = State(self.step, self._session, self._config.to_dict(), tensors, numbers, checkpoint_mark(self._backbone))
        if self.end == PAUSED:
            self.state = state  # going on needs no disk
        try:
            self._states.write(state, last=self.step == self._steps)
        except TrainingError as error:
            if self.end != PAUSED:
                raise self._rescued(error) from error
            self._tell(f"{error}; while this program runs it can go on from memory")
        self._saved_step, self._saved_at = self.step, time.monotonic()


def _first_captions(about: About) -> tuple[str, ...]:
    """What previews show where no prompts are given: the first captions that differ."""
    captions = dict.fromkeys(picture.caption for picture in about.dataset.pictures if picture.caption.strip())
    return tuple(captions)[:_FALLBACK_PREVIEWS]
