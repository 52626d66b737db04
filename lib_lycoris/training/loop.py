"""A training from its config to the saved network."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..errors import ConfigError
from ..patching.session import attach
from ..patching.targets import find_targets
from .backbone import Backbone
from .checkpoint import State, States, new_session
from .checkpointing import checkpointed, find_blocks
from .conditioning import autocast
from .config import OutputSettings, TrainConfig
from .dataset import Dataset, read_dataset
from .dropout import Dropout
from .export import About, export_network
from .frozen import frozen
from .latents import encode_dataset
from .material import Material, Part, PlainMaterial
from .methods import make_method
from .optimizers import odd_about_rates
from .previews import Previews
from .progress import SmoothedLoss, StepReport
from .rates import learning_targets
from .selection import select_targets
from .start import start_from
from .trainer import NotFiniteError, Trainer, check_settings
from .validation import Validation, keep_back

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """What came of a training."""

    path: Path | None
    """The network; None where it was stopped before its first step."""
    steps: int
    """Steps done, with those of earlier parts of a resumed run."""
    loss: float
    """The smoothed loss at the end; NaN before the first step."""
    seconds: float
    stopped: bool = False
    """Whether it was stopped before its last step; it can be resumed."""
    state: Path | None = None
    """The state from which it can be resumed."""
    problems: tuple[str, ...] = ()
    """What was odd but did not stop it, in words."""
    validation: tuple[tuple[int, float], ...] = ()
    """(step, loss) of each validation, the first before the first step."""


def train(
    config: TrainConfig,
    backbone: Backbone,
    on_step: Callable[[StepReport], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    resume: bool = False,
) -> TrainResult:
    """The trained and saved network. The model is used, not changed: weights, flags and hooks are as before, also after an exception.

    Args:
        config: what to train on what, and how.
        backbone: the model.
        on_step: called after each step.
        should_stop: asked before each step; True saves what there is and ends.
        resume: goes on from the newest saved state of this name, or from the beginning where there is none.

    Raises:
        ConfigError: the settings don't fit the model, or a saved state that is to be resumed.
        DatasetError: pictures or captions can't be used.
        TrainingError: loss or gradient became NaN, or a file could not be written; what was saved before stays.
    """
    began = time.monotonic()
    autocast(backbone.device, config.training.precision)  # made once here, so that a precision that the device lacks is told first
    check_settings(config, backbone)
    dataset = read_dataset(config.data)
    judged = _read_validation(config)
    folder = _make_folder(config.output)
    states = States(folder, config.output.name, config.output.keep)
    state, problems = states.read_latest() if resume else (None, [])
    odd = [*odd_about_rates(config.training), *_odd_about_blocks(config, backbone), *_odd_about_resuming(config, backbone, state, states, resume)]
    problems = [*dataset.problems, *problems, *odd]
    for problem in problems:
        _log.warning("%s", problem)

    with backbone.training(), frozen([backbone.unet, *backbone.text_encoders]), _gradients():
        targets = learning_targets(select_targets(find_targets(backbone.unet, backbone.text_encoders), config.network), config)
        learned, kept_back = _split(config, dataset)
        steps = config.training.total_steps(len(learned), config.data.batch_size)
        method = make_method(config.network, targets, steps, config.training.seed, backbone.device)
        if config.network.start_from is not None:
            start_from(config.network.start_from, method.layers)
        whole = _encode(config, backbone, dataset)
        material, held = Part(whole, learned), Part(whole, kept_back) if judged is None else _encode(config, backbone, judged)
        dropout = Dropout(config.network, config.training.seed)
        blocks = checkpointed([backbone.unet, *backbone.text_encoders]) if config.training.gradient_checkpointing else nullcontext()
        with attach(targets, dropout.wrap(method.layers)), blocks:
            trainer = Trainer(config, backbone, method, material, steps, dropout=dropout, targets=targets)
            validation = trainer.validation(held) if held.samples else None
            about = About(dataset=dataset, steps=0, planned=steps, started_at=time.time() - (time.monotonic() - began))
            run = _Run(config, backbone, trainer, states, about, state, validation)
            stopped = run.go(on_step, should_stop)
            path = run.export() if run.step else None

    problems += run.problems
    seconds = time.monotonic() - began
    return TrainResult(path, run.step, run.smoothed.value, seconds, stopped, states.latest_path(), tuple(problems), tuple(run.validations))


def _read_validation(config: TrainConfig) -> Dataset | None:
    """The pictures of validation.folder, or None where none is named."""
    if config.validation.folder is None:
        return None
    return read_dataset(replace(config.data, folders=(config.validation.folder,), dataset=None))


def _split(config: TrainConfig, dataset: Dataset) -> tuple[list[int], list[int]]:
    """(draws that are learned from, draws that are judged on, one for each picture kept back).

    Raises:
        ConfigError: there is just one picture.
    """
    draws, settings = dataset.draws, config.validation
    if not settings.share or settings.folder is not None:
        return list(range(len(draws))), []
    if len(dataset.pictures) < 2:
        raise ConfigError(f"validation.share = {settings.share:g}: of one picture none can be kept back; add pictures, or name a validation.folder")
    kept = set(keep_back(len(dataset.pictures), settings.share, config.training.seed))
    return [draw for draw, picture in enumerate(draws) if picture not in kept], [draws.index(picture) for picture in sorted(kept)]


def _encode(config: TrainConfig, backbone: Backbone, dataset: Dataset) -> Material:
    latents = encode_dataset(backbone, dataset, config.data.resolution, config.training.seed)
    return PlainMaterial([latents[index] for index in dataset.draws], [dataset.pictures[index].caption for index in dataset.draws])


class _Run:
    """The steps of a training from where it stands to its end, with whatever is due every now and then: states, networks, previews, validations."""

    def __init__(
        self, config: TrainConfig, backbone: Backbone, trainer: Trainer, states: States, about: About, state: State | None, validation: Validation | None
    ):
        self._config, self._backbone, self._trainer, self._states, self._about, self._validation = config, backbone, trainer, states, about, validation
        self._folder, self._steps = states.folder.parent, about.planned
        self._previews = Previews(self._folder, config.output, backbone)
        self._checkpoint = _checkpoint_mark(backbone)
        self.session = new_session() if state is None else state.session
        self.step = 0 if state is None else state.step
        self.smoothed = SmoothedLoss(*([] if state is None else state.numbers["smoothed"]))
        self.validations = [] if state is None else [(int(step), float(loss)) for step, loss in state.numbers.get("validations", [])]
        self.problems: list[str] = []
        self._saved_step = self.step if state is not None else -1
        if state is not None:
            trainer.load(state.tensors, state.numbers)

    def go(self, on_step: Callable[[StepReport], None] | None, should_stop: Callable[[], bool] | None) -> bool:
        """Whether it was stopped before its end. A state was saved either way."""
        first, began, every = self.step, time.monotonic(), self._config.output.save_every
        stopped = False
        while self.step < self._steps and not stopped:
            if should_stop is not None and should_stop():
                stopped = True
                break
            if self.step == 0:
                self._validate()
            loss = self._one_step()
            due = self.step % self._config.validation.every == 0 or self.step == self._steps
            judged = self._validate() if due else None
            if on_step is not None:
                on_step(replace(self._report(loss, time.monotonic() - began, first), validation_loss=judged))
            self._show()
            if every and self.step % every == 0:
                self._save()
        self._save()
        return stopped

    def export(self) -> Path:
        """The network as it stands, saved."""
        with self._trainer.used():
            judged = self.validations[-1][1] if self.validations else None
            about = replace(self._about, steps=self.step, validation_loss=judged)
            return export_network(self._folder, self._trainer.method.export_layers(), self._config, self._backbone, about)

    def _validate(self) -> float | None:
        """The loss on what is not trained on; None where there is none."""
        if self._validation is None:
            return None
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
            self.export()
        if output.preview_prompts and (network or self._is_due(output.preview_every)):
            with self._trainer.used():
                problems = self._previews.make(self.step)
            for problem in problems:
                _log.warning("%s", problem)
            self.problems += problems

    def _is_due(self, every: int, epochs: int = 0) -> bool:
        """Whether so many steps, or epochs, are full with this step."""
        full = self._epochs(self.step), self._epochs(self.step - 1)
        return bool(every and self.step % every == 0) or bool(epochs and full[0] // epochs > full[1] // epochs)

    def _epochs(self, step: int) -> int:
        """Epochs that are full after so many steps."""
        return step * self._trainer.batch // self._trainer.samples

    def _one_step(self) -> float:
        try:
            loss = self._trainer.step(self.step)
        except NotFiniteError as error:
            self._save()  # The parameters are still those of the step before.
            raise NotFiniteError(
                f"{error}: lower training.learning_rate, or use precision bf16 or fp32 instead of fp16; "
                f"the state after step {self.step} is kept in {self._states.latest_path()}"
            ) from error
        self.step += 1
        self.smoothed.add(loss)
        return loss

    def _report(self, loss: float, seconds: float, first: int) -> StepReport:
        left = seconds / (self.step - first) * (self._steps - self.step)
        return StepReport(self.step, self._steps, loss, self.smoothed.value, self._trainer.learning_rate(self.step - 1), seconds, left)

    def _save(self) -> None:
        if self.step == self._saved_step:
            return
        tensors, numbers = self._trainer.state()
        numbers = {**numbers, "smoothed": [self.smoothed.total, self.smoothed.weight], "validations": [list(point) for point in self.validations]}
        self._states.write(State(self.step, self.session, self._config.to_dict(), tensors, numbers, self._checkpoint))
        self._saved_step = self.step


def _make_folder(settings: OutputSettings) -> Path:
    """The output folder, made and writable: better known now than after an hour."""
    folder = Path(settings.folder).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output.folder = {settings.folder}: can't be made ({error.strerror or error}); choose another") from error
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"output.folder = {settings.folder}: is not writable; choose another or change its permissions")
    return folder


def _odd_about_resuming(config: TrainConfig, backbone: Backbone, state: State | None, states: States, resume: bool) -> list[str]:
    """In words, what the user may not expect about saved states.

    Raises:
        ConfigError: the state was trained with another [network].
    """
    if state is None:
        left = states.latest_path()
        name = config.output.name
        if resume:
            return [f"no saved state of {name} in {config.output.folder}: the training begins at step 0"]
        return [f"an earlier training {name} left {left.name}; the first save replaces it, resuming would go on from it"] if left else []
    then, now = state.config, config.to_dict()
    changed = [f"{section}.{key}" for section in now for key in now[section] if then.get(section, {}).get(key) != now[section][key]]
    for key in changed:
        if key.startswith("network."):
            section, _, name = key.partition(".")
            before = then.get(section, {}).get(name)
            raise ConfigError(f"{key} = {now[section][name]}: the saved state was trained with {before}; set it back or do not resume")
    problems = [f"resumed with another {key}" for key in changed if not key.startswith("output.")]
    if state.checkpoint != _checkpoint_mark(backbone):
        problems.append(f"resumed on another checkpoint, {backbone.checkpoint_name}")
    return problems


def _odd_about_blocks(config: TrainConfig, backbone: Backbone) -> list[str]:
    if not config.training.gradient_checkpointing or find_blocks([backbone.unet, *backbone.text_encoders]):
        return []
    return ["training.gradient_checkpointing = true: this model has no blocks that are known, it saves no memory here"]


def _checkpoint_mark(backbone: Backbone) -> str:
    return backbone.checkpoint_hash or backbone.checkpoint_name


@contextmanager
def _gradients() -> Iterator[None]:
    """Gradients are on, whatever the caller had set."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


