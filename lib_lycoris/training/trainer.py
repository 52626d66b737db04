"""One optimiser step of a training, and all that changes in it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError, TrainingError
from ..patching.targets import Target
from .backbone import Backbone
from .conditioning import Captions, make_captions
from .config import TrainConfig
from .control_maps import find_values
from .draws import Draw, Order, draw
from .dropout import Dropout
from .material import Material
from .max_norm import limit_norms
from .method import Method
from .new_word import COMPONENT, NewWord
from .objective import Objective, check_prediction
from .optimizers import check_optimizer
from .processes import Alone, Processes
from .rates import Rate, word_rate
from .schedules import rate_factor
from .selection import Key
from .step_list import parse_step_list
from .stepper import NotFiniteError, Stepper
from .validation import Validation

__all__ = ["NotFiniteError", "Trainer", "check_settings"]


class Trainer:
    """The layers in training with their optimiser; `step` is the only thing that changes them.

    Args:
        config: how to train.
        backbone: the model, with the method's layers attached, as `dropout.wrap` gives them.
        method: what is trained.
        material: what is learned from.
        steps: of the whole training.
        prior: the class pictures of DreamBooth's prior preservation, or None.
        processes: who else trains the same; each takes its share of every batch.
        dropout: what the layers were wrapped with; None where the settings leave nothing away.
        targets: of the method's layers; needed for network.max_norm alone.
        captions: what encodes captions.
        word: a new word that is trained, put on the backbone; None where there is none.

    Attributes:
        parameters: by "component.layer.part".
        samples: of an epoch.
        batch: samples of a step, over all its parts and processes.
    """

    def __init__(
        self, config: TrainConfig, backbone: Backbone, method: Method, material: Material, steps: int, prior: Material | None = None,
        processes: Processes | None = None, dropout: Dropout | None = None, targets: Mapping[Key, Target] | None = None, captions: Captions | None = None,
        word: NewWord | None = None,
    ):
        check_settings(config, backbone)
        self._config, self._material, self._steps, self._prior = config, material, steps, prior
        self.method, self.word = method, word
        self.processes = processes or Alone()
        self._dropout = dropout or Dropout(config.network, config.training.seed)
        self._targets = targets or {}
        seed, batch = config.training.seed, config.data.batch_size * self.processes.count
        self.samples, self.batch = material.samples, batch * config.training.gradient_accumulation
        self._order = Order([material.bucket(sample) for sample in range(material.samples)], batch, seed)
        self._prior_order = None if prior is None else Order([prior.bucket(sample) for sample in range(prior.samples)], batch, seed + 1)
        trains_text = any(component != "unet" for component, _ in method.layers)
        self._objective = Objective(config, backbone, captions or make_captions(backbone, trains_text or word is not None), method.around)
        self.parameters = {
            f"{component}.{name}.{part}": value for (component, name), layer in method.layers.items() for part, value in layer.named_parameters()
            if value.requires_grad
        }
        self._word_rate = word_rate(config)
        own_rates = {"unet": Rate(config.learning_rate)} if config.network.kind == "adapter" else {}
        if word is not None:
            self.parameters |= word.parameters
            own_rates[COMPONENT] = self._word_rate
        self._stepper = Stepper(self.parameters, config.training, self.processes, backbone.device, own_rates)

    def step(self, step: int) -> float:
        """The loss of that step (counted from 0), after which the parameters are one step further.

        Raises:
            NotFiniteError: loss or gradient are not finite; the parameters are unchanged.
        """
        parts = self._config.training.gradient_accumulation
        self._stepper.zero_gradients()
        losses = [self._one_part(step * parts + part, parts, step) for part in range(parts)]
        try:
            moved = self._stepper.step(self._rate_factor(step), self.method.add_penalty, step)
        except NotFiniteError as error:
            raise NotFiniteError(f"step {step + 1}: {error}") from error
        if moved:
            if self._config.network.max_norm is not None:
                limit_norms(self.method.layers, self._targets, self._config.network.max_norm)
            self.method.after_step(step + 1)
            if self.word is not None and self._word_rate.at(step, self._rate_factor(step)):
                self.word.after_step()
            self._stepper.follow()
        return sum(losses) / parts

    def learning_rate(self, step: int) -> float:
        """The UNet's learning rate in that step; the word's, where that is trained alone."""
        config = self._config
        rate = self._word_rate if config.network.kind == "embedding" else Rate(config.learning_rate)
        return rate.at(step, self._rate_factor(step))

    @contextmanager
    def used(self) -> Iterator[None]:
        """Within it the layers are what a file of them holds, as a preview and a validation want them; after it they are those in training, bit for bit."""
        with self._stepper.used():
            yield

    def validation(self, material: Material) -> Validation:
        """The validation on that material, with this training's loss; to be asked within `used`."""
        training = self._config.training
        return Validation(self._objective, material, self._config.validation, training.seed, self._config.data.batch_size, self.processes)

    def _one_part(self, number: int, parts: int, step: int) -> float:
        """The loss of one batch, and of the prior's, whose gradients are added to those that are there."""
        training = self._config.training
        value = self._one_loss(self._material, self._order, number, training.seed, 1.0, parts, step)
        if self._prior is None:
            return value
        return value + training.prior_weight * self._one_loss(self._prior, self._prior_order, number, training.seed + 1, training.prior_weight, parts, step)

    def _one_loss(self, material: Material, order: Order, number: int, seed: int, weight: float, parts: int, step: int) -> float:
        """The loss of one batch; its gradient, times the weight, was added."""
        rows = order.batch(number)[self.processes.rank :: self.processes.count]
        with self._dropout.drawing(seed, number):  # also over the backward pass, in which checkpointed blocks run again
            loss = self._loss(material, rows, seed)
            value = self._mean(loss.detach())
            if not math.isfinite(value):
                raise NotFiniteError(f"the loss of step {step + 1} is {value}")
            self._stepper.backward(loss * (weight / parts))
        return value

    def _mean(self, value: Tensor) -> float:
        shared = value.clone()
        self.processes.mean_(shared)
        return float(shared)

    def _loss(self, material: Material, rows: Sequence[tuple[int, int]], seed: int) -> Tensor:
        latents = torch.stack([material.latents(sample, epoch) for epoch, sample in rows])
        return self.loss_of(material, rows, latents, [self._draw(seed, epoch, sample, latents.shape[1:]) for epoch, sample in rows])

    def loss_of(self, material: Material, rows: Sequence[tuple[int, int]], latents: Tensor, draws: Sequence[Draw]) -> Tensor:
        """The loss of these (epoch, sample) rows with what was drawn for them."""
        return self._objective.loss_of(material, rows, latents, draws)

    def _draw(self, seed: int, epoch: int, sample: int, shape: torch.Size) -> Draw:
        steps = len(self._objective.alphas_cumprod)
        return draw(seed, epoch, sample, shape, steps, self._config.data.caption_dropout, self._config.training.noise_offset,
                    self._config.time_sampling)

    def _rate_factor(self, step: int) -> float:
        training = self._config.training
        if training.schedule_steps is not None:
            listed = parse_step_list("training.schedule_steps", training.schedule_steps).at(step)
            return listed * rate_factor("constant", step, self._steps, training.warmup_steps)
        return rate_factor(training.schedule, step, self._steps, training.warmup_steps, training.restarts)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, numbers) from which `load` goes on exactly."""
        tensors, numbers = self._stepper.state()
        tensors |= {f"network.{name}": value.detach().clone() for name, value in self.parameters.items()}
        tensors |= {f"method.{name}": value.detach().clone() for name, value in self.method.state().items()}
        return tensors, numbers

    def load(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Takes up a state that `state` gave.

        Raises:
            TrainingError: the state is of another network or optimiser.
        """
        with torch.no_grad():
            for name, value in self.parameters.items():
                saved = tensors.get(f"network.{name}")
                if saved is None or saved.shape != value.shape:
                    advice = "resume with the checkpoint and settings it was made with"
                    raise TrainingError(f"the saved state has no {name} of shape {list(value.shape)}: {advice}")
                value.copy_(saved)
        self._stepper.load(tensors, numbers)
        self.method.load({key.removeprefix("method."): value for key, value in tensors.items() if key.startswith("method.")})


def check_settings(config: TrainConfig, backbone: Backbone) -> None:
    """Returns where these settings of the optimising can be followed on that model; quick, to be asked before anything is encoded.

    Raises:
        ConfigError: the optimiser's package is missing, a preprocessor is not known, or settings contradict each other or the model.
    """
    check_optimizer(config.training)
    if config.network.kind == "adapter":
        find_values(config.data)
    check_prediction(config, backbone)
    if config.network.max_norm is not None and config.training.optimizer == "schedule_free":
        raise ConfigError(f"network.max_norm = {config.network.max_norm:g}: schedule_free keeps an average that can't be scaled down with the layers; "
                          "leave it out, or use another optimiser")
