"""A training from its config to the saved network."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from ..patching.targets import Target, find_targets
from .adapter import AdapterMethod, make_adapter_method
from .adapter_previews import ControlGuide
from .backbone import Backbone
from .checkpoint import State, States
from .checkpointing import checkpointed, find_blocks
from .conditioning import autocast
from .config import TrainConfig
from .dropout import Dropout
from .export import About
from .folder import held, make_folder
from .frozen import frozen
from .materials import Pictures, StoppedEarly, make_materials, read_pictures
from .method import Method
from .methods import make_method
from .new_word import make_word
from .optimizers import odd_about_rates
from .processes import Alone, Processes, together
from .progress import StepReport
from .rates import learning_targets
from .result import TrainResult
from .resuming import odd_about_resuming, read_state
from .run import PAUSED, STOPPED, Run
from .selection import Key, odd_about_patterns, select_targets
from .start import start_from
from .trainer import Trainer, check_settings
from .watch import OnPhase, Pause, Viewer, Watch

__all__ = ["TrainResult", "train"]

_log = logging.getLogger(__name__)


def train(
    config: TrainConfig,
    backbone: Backbone,
    on_step: Callable[[StepReport], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    resume: bool = False,
    processes: Processes | None = None,
    on_phase: OnPhase | None = None,
    pause: Pause | None = None,
    viewer: Viewer | None = None,
) -> TrainResult:
    """The trained and saved network. The model is used, not changed: weights, flags and hooks are as before, also after an exception.

    Args:
        config: what to train on what, and how.
        backbone: the model.
        on_step: called after each step.
        should_stop: asked before each step; True saves what there is and ends.
        resume: goes on from the newest saved state of this name, or from the beginning where there is none.
        processes: who else trains the same now, each with a copy of the model; they see the same folders.
        on_phase: called with (phase, done, total) whenever something else is done than before, and as that goes on.
        pause: may give the model away for a while; for a single process.
        viewer: hears of previews, and may ask for some out of turn.

    Raises:
        ConfigError: the settings don't fit the model, or a saved state that is to be resumed.
        DatasetError: pictures or captions can't be used.
        BusyError: another training of this name is writing to that folder.
        TrainingError: loss or gradient became NaN, or a file could not be written; what was saved before stays.
    """
    began, started_at = time.monotonic(), time.time()
    processes = processes or Alone()
    watch = Watch(on_step, should_stop, on_phase, pause if processes.count == 1 else None, viewer).of(processes)
    autocast(backbone.device, config.training.precision)  # made once here, so that a precision that the device lacks is told first
    check_settings(config, backbone)
    pictures = read_pictures(config, watch)
    config = pictures.config
    folder = make_folder(config.output)
    states = States(folder, config.output.name, config.output.keep)
    with ExitStack() as stack:
        with together(processes):
            odd = stack.enter_context(held(states.folder, config.output.name)) if processes.rank == 0 else []
        state, passed_over = read_state(states, resume, processes)
        problems = [*pictures.learned.problems, *odd, *passed_over, *odd_about_rates(config.training), *_odd_about_blocks(config, backbone),
                    *odd_about_patterns(find_targets(backbone.unet, backbone.text_encoders), config)]
        problems += odd_about_resuming(config, backbone, state, states, resume, processes)
        for problem in problems if processes.rank == 0 else []:
            _log.warning("%s", problem)
        stretch = _train(config, backbone, pictures, states, state, started_at, processes, watch)
        while stretch.end == PAUSED and pause is not None and _waited(pause):
            problems += stretch.problems
            stretch = _train(config, backbone, pictures, states, stretch.state, started_at, processes, watch)

    stopped = stretch.end in (STOPPED, PAUSED)
    problems += stretch.problems
    seconds = time.monotonic() - began
    latest, validations = states.latest_path(), stretch.validations
    return TrainResult(stretch.path, stretch.steps, stretch.loss, seconds, stopped, latest, tuple(problems), validations, stretch.ranks)


@dataclass(frozen=True)
class _Stretch:
    """What is left of a part of a training, once the model is free again."""

    end: str
    path: Path | None
    state: State | None
    steps: int
    loss: float
    problems: list[str]
    validations: tuple[tuple[int, float], ...]
    ranks: dict[str, int] | None = None


def _train(
    config: TrainConfig, backbone: Backbone, pictures: Pictures, states: States, state: State | None, started_at: float, processes: Processes, watch: Watch
) -> _Stretch:
    """The training from that state to its end or a break. All that it put on the model or its device is gone after it."""
    seed = config.training.seed
    with backbone.training(), frozen([backbone.unet, *backbone.text_encoders]), _gradients():
        targets = learning_targets(select_targets(find_targets(backbone.unet, backbone.text_encoders), config.network), config)
        steps = config.training.total_steps(len(pictures.draws), config.data.batch_size * processes.count)
        method = _make_method(config, backbone, targets, steps)
        word = make_word(config, backbone)
        dropout = Dropout(config.network, seed, processes.rank, processes.count)
        with nullcontext() if word is None else word.put_on(backbone):
            try:
                materials = make_materials(pictures, backbone, watch, processes, any(component != "unet" for component, _ in method.layers), word)
            except StoppedEarly:
                done = 0 if state is None else state.step
                return _Stretch(STOPPED, None, state, done, float("nan"), [], ())
            for problem in materials.problems if processes.rank == 0 else []:
                _log.warning("%s", problem)
            with method.attached(targets, dropout), _blocks(config, backbone):
                trainer = Trainer(config, backbone, method, materials.learned, steps, materials.prior, processes, dropout, targets, materials.captions, word)
                validation = None if materials.judged is None else trainer.validation(materials.judged)
                about = About(dataset=pictures.learned, steps=0, planned=steps, started_at=started_at)
                guide = ControlGuide(method, materials.judged or materials.learned, config.output) if isinstance(method, AdapterMethod) else None
                run = Run(config, backbone, trainer, states, about, state, validation, watch, guide)
                run.go()
                path = run.finish()
    return _Stretch(run.end, path, run.state, run.step, run.smoothed.value, [*materials.problems, *run.problems], tuple(run.validations), run.ranks)


def _make_method(config: TrainConfig, backbone: Backbone, targets: Mapping[Key, Target], steps: int) -> Method:
    if config.network.kind == "adapter":
        return make_adapter_method(config, backbone)
    method = make_method(config.network, targets, steps, config.training.seed, backbone.device)
    if config.network.start_from is not None:
        start_from(config.network.start_from, method.layers)
    return method


def _waited(pause: Pause) -> bool:
    """Whether to go on, after a pause in which others have the device's memory."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return pause.wait()


@contextmanager
def _blocks(config: TrainConfig, backbone: Backbone) -> Iterator[None]:
    with checkpointed([backbone.unet, *backbone.text_encoders]) if config.training.gradient_checkpointing else nullcontext():
        yield


def _odd_about_blocks(config: TrainConfig, backbone: Backbone) -> list[str]:
    if not config.training.gradient_checkpointing or find_blocks([backbone.unet, *backbone.text_encoders]):
        return []
    return ["training.gradient_checkpointing = true: this model has no blocks that are known, it saves no memory here"]


@contextmanager
def _gradients() -> Iterator[None]:
    """Gradients are on, whatever the caller had set."""
    with torch.inference_mode(False), torch.enable_grad():
        yield
