"""A training from its config to the saved network."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import ConfigError
from ..patching.session import attach
from ..patching.targets import find_targets
from .backbone import Backbone
from .checkpoint import State, States, new_session
from .conditioning import autocast
from .config import OutputSettings, TrainConfig
from .dataset import read_dataset
from .export import About, export_network
from .frozen import frozen
from .latents import encode_dataset
from .material import PlainMaterial
from .methods import make_method
from .progress import SmoothedLoss, StepReport
from .selection import select_targets
from .trainer import NotFiniteError, Trainer

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
    dataset = read_dataset(config.data)
    folder = _make_folder(config.output)
    states = States(folder, config.output.name, config.output.keep)
    state, problems = states.read_latest() if resume else (None, [])
    problems = [*dataset.problems, *problems, *_odd_about_resuming(config, backbone, state, states, resume)]
    for problem in problems:
        _log.warning("%s", problem)

    with backbone.training(), frozen([backbone.unet, *backbone.text_encoders]), _gradients():
        targets = select_targets(find_targets(backbone.unet, backbone.text_encoders), config.network)
        latents = encode_dataset(backbone, dataset, config.data.resolution, config.training.seed)
        material = PlainMaterial([latents[index] for index in dataset.draws], [dataset.pictures[index].caption for index in dataset.draws])
        steps = config.training.total_steps(len(dataset.draws), config.data.batch_size)
        method = make_method(config.network, targets, steps, config.training.seed, backbone.device)
        with attach(targets, method.layers):
            run = _Run(config, backbone, Trainer(config, backbone, method, material, steps), states, steps, state)
            stopped = run.go(on_step, should_stop)

    about = About(dataset=dataset, steps=run.step, planned=steps, started_at=time.time() - (time.monotonic() - began))
    path = export_network(folder, method.export_layers(), config, backbone, about) if run.step else None
    return TrainResult(path, run.step, run.smoothed.value, time.monotonic() - began, stopped, states.latest_path(), tuple(problems))


class _Run:
    """The steps of a training from where it stands to its end, with a saved state every now and then."""

    def __init__(self, config: TrainConfig, backbone: Backbone, trainer: Trainer, states: States, steps: int, state: State | None):
        self._config, self._trainer, self._states, self._steps = config, trainer, states, steps
        self._checkpoint = _checkpoint_mark(backbone)
        self.session = new_session() if state is None else state.session
        self.step = 0 if state is None else state.step
        self.smoothed = SmoothedLoss(*([] if state is None else state.numbers["smoothed"]))
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
            loss = self._one_step()
            if on_step is not None:
                on_step(self._report(loss, time.monotonic() - began, first))
            if every and self.step % every == 0:
                self._save()
        self._save()
        return stopped

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
        numbers = {**numbers, "smoothed": [self.smoothed.total, self.smoothed.weight]}
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


def _checkpoint_mark(backbone: Backbone) -> str:
    return backbone.checkpoint_hash or backbone.checkpoint_name


@contextmanager
def _gradients() -> Iterator[None]:
    """Gradients are on, whatever the caller had set."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


