"""One optimiser step of a training, and all that changes in it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import TrainingError
from .backbone import Backbone
from .conditioning import autocast, make_captions
from .config import TrainConfig
from .draws import Draw, Order, draw
from .loss import add_noise, debiased_weight, min_snr_weight, target, weighted_loss
from .optimizers import make_optimizer
from .schedules import rate_factor
from .selection import Key


class NotFiniteError(TrainingError):
    """A loss or gradient that is no number; the parameters are still those of the step before."""


@dataclass(frozen=True)
class Material:
    """What is learned from: for each sample of an epoch its latents [4,h,w] and its caption."""

    latents: Sequence[Tensor]
    captions: Sequence[str]


class Trainer:
    """The layers in training with their optimiser; `step` is the only thing that changes them."""

    def __init__(self, config: TrainConfig, backbone: Backbone, layers: Mapping[Key, nn.Module], material: Material, steps: int):
        self._config, self._backbone, self._material, self._steps = config, backbone, material, steps
        self._order = Order(len(material.latents), config.data.batch_size, config.training.seed)
        self._captions = make_captions(backbone, any(component != "unet" for component, _ in layers))
        self._alphas_cumprod = backbone.alphas_cumprod.to(backbone.device, torch.float32)
        self._prediction = config.model.resolve_prediction(backbone.prediction)
        self.parameters = {
            f"{component}.{name}.{part}": value for (component, name), layer in layers.items() for part, value in layer.named_parameters()
        }
        self._rates, groups = self._parameter_groups()
        self._optimizer = make_optimizer(groups, config.training)
        self._scaler = _make_scaler(config.training.precision, backbone.device)

    def step(self, step: int) -> float:
        """The loss of that step (counted from 0), after which the parameters are one step further.

        Raises:
            NotFiniteError: loss or gradient are not finite; the parameters are unchanged.
        """
        loss = self._loss([self._draw(epoch, sample) for epoch, sample in self._order.batch(step)])
        value = float(loss.detach())
        if not math.isfinite(value):
            raise NotFiniteError(f"the loss of step {step + 1} is {value}")
        self._backward(loss, step)
        self._advance(step)
        return value

    def learning_rate(self, step: int) -> float:
        """The UNet's learning rate in that step."""
        return self._config.training.learning_rate * self._rate_factor(step)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, numbers) from which `load` goes on exactly."""
        tensors = {f"network.{name}": value.detach().clone() for name, value in self.parameters.items()}
        for name, value in self.parameters.items():
            for part, entry in self._optimizer.state.get(value, {}).items():
                tensors[f"optimizer.{part}.{name}"] = torch.as_tensor(entry).detach().clone()
        return tensors, {} if self._scaler is None else {"scaler": self._scaler.state_dict()}

    def load(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Takes up a state that `state` gave.

        Raises:
            TrainingError: the state is of another network.
        """
        with torch.no_grad():
            for name, value in self.parameters.items():
                saved = tensors.get(f"network.{name}")
                if saved is None or saved.shape != value.shape:
                    advice = "resume with the checkpoint and settings it was made with"
                    raise TrainingError(f"the saved state has no {name} of shape {list(value.shape)}: {advice}")
                value.copy_(saved)
        entries: dict[str, dict[str, Tensor]] = {name: {} for name in self.parameters}
        for key, tensor in tensors.items():
            kind, part, name = (key.split(".", 2) + ["", ""])[:3]
            if kind == "optimizer" and name in entries:
                entries[name][part] = tensor
        # In the optimiser's own order, in which `parameters` is not: its groups come one after the other.
        names = {id(value): name for name, value in self.parameters.items()}
        ordered = [names[id(value)] for group in self._optimizer.param_groups for value in group["params"]]
        state = {index: entries[name] for index, name in enumerate(ordered) if entries[name]}
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": state})
        if self._scaler is not None and "scaler" in numbers:
            self._scaler.load_state_dict(numbers["scaler"])

    def _parameter_groups(self) -> tuple[list[float], list[dict[str, Any]]]:
        """Learning rates and parameter groups: the UNet's, and the text encoder's where it is trained."""
        settings = self._config.training
        unet = [value for name, value in self.parameters.items() if name.startswith("unet.")]
        text = [value for name, value in self.parameters.items() if not name.startswith("unet.")]
        pairs = [(rate, values) for rate, values in ((settings.learning_rate, unet), (settings.te_learning_rate, text)) if values]
        return [rate for rate, _ in pairs], [{"params": values, "lr": rate} for rate, values in pairs]

    def _draw(self, epoch: int, sample: int) -> Draw:
        shape = self._material.latents[sample].shape
        return draw(self._config.training.seed, epoch, sample, shape, len(self._alphas_cumprod), self._config.data.caption_dropout)

    def _loss(self, draws: Sequence[Draw]) -> Tensor:
        device, training = self._backbone.device, self._config.training
        latents = torch.stack([self._material.latents[drawn.sample] for drawn in draws])
        noise = torch.stack([drawn.noise for drawn in draws]).to(device)
        t = torch.tensor([drawn.t for drawn in draws], device=device)
        alphas = self._alphas_cumprod[t]
        with autocast(device, training.precision):
            conditioning = self._captions.encode(["" if drawn.dropped else self._material.captions[drawn.sample] for drawn in draws])
            predicted = self._backbone.predict(add_noise(latents, noise, alphas), t, conditioning)
        weight = min_snr_weight(alphas, training.min_snr_gamma, self._prediction) if training.min_snr_gamma else None
        if training.debiased:
            weight = debiased_weight(alphas, self._prediction)
        return weighted_loss(predicted, target(latents, noise, alphas, self._prediction), weight)

    def _backward(self, loss: Tensor, step: int) -> None:
        """Gradients of all parameters, clipped.

        Raises:
            NotFiniteError: they are not finite, and no loss scaler is there to skip the step.
        """
        if self._scaler is None:
            loss.backward()
        else:
            self._scaler.scale(loss).backward()
            self._scaler.unscale_(self._optimizer)
        limit = self._config.training.max_grad_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), limit)
        if self._scaler is None and not torch.isfinite(norm):
            self._optimizer.zero_grad(set_to_none=True)
            raise NotFiniteError(f"the gradient of step {step + 1} is not finite")

    def _advance(self, step: int) -> None:
        factor = self._rate_factor(step)
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        if self._scaler is None:
            self._optimizer.step()
        else:
            self._scaler.step(self._optimizer)
            self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)

    def _rate_factor(self, step: int) -> float:
        training = self._config.training
        return rate_factor(training.schedule, step, self._steps, training.warmup_steps)


def _make_scaler(precision: str, device: torch.device) -> Any:
    """The loss scaler that fp16's small range of numbers needs; None otherwise."""
    if precision != "fp16":
        return None
    general = getattr(torch.amp, "GradScaler", None)  # from torch 2.3 on
    return torch.cuda.amp.GradScaler() if general is None else general(device.type)
