"""One optimiser step of a training, and all that changes in it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import TrainingError
from .backbone import Backbone
from .conditioning import autocast, make_captions
from .config import TrainConfig, split_pattern
from .draws import Draw, Order, draw
from .flat import Flat
from .loss import add_noise, debiased_weight, min_snr_weight, target, weighted_loss, zero_terminal_snr
from .material import Material
from .method import Method
from .optimizers import make_optimizer
from .processes import Alone, Processes
from .schedules import rate_factor
from .selection import matches


class NotFiniteError(TrainingError):
    """A loss or gradient that is no number; the parameters are still those of the step before."""


class Trainer:
    """The layers in training with their optimiser; `step` is the only thing that changes them.

    Args:
        config: how to train.
        backbone: the model, with the method's layers attached.
        method: what is trained.
        material: what is learned from.
        steps: of the whole training.
        prior: the class pictures of DreamBooth's prior preservation, or None.
        processes: who else trains the same; each takes its share of every batch.
    """

    def __init__(
        self, config: TrainConfig, backbone: Backbone, method: Method, material: Material, steps: int, prior: Material | None = None,
        processes: Processes | None = None,
    ):
        self._config, self._backbone, self._material, self._steps, self._prior = config, backbone, material, steps, prior
        self.method = method
        self._processes = processes or Alone()
        seed, batch = config.training.seed, config.data.batch_size * self._processes.count
        self._order = Order([material.bucket(sample) for sample in range(material.samples)], batch, seed)
        self._prior_order = None if prior is None else Order([prior.bucket(sample) for sample in range(prior.samples)], batch, seed + 1)
        self._captions = make_captions(backbone, any(component != "unet" for component, _ in method.layers))
        alphas = backbone.alphas_cumprod.to(backbone.device, torch.float32)
        self._alphas_cumprod = zero_terminal_snr(alphas) if config.model.zero_terminal_snr else alphas
        self._prediction = config.model.resolve_prediction(backbone.prediction)
        self.parameters = {
            f"{component}.{name}.{part}": value for (component, name), layer in method.layers.items() for part, value in layer.named_parameters()
            if value.requires_grad
        }
        rates = {name: self._rate(name) for name in self.parameters}
        self._flats = [
            (rate, Flat({name: self.parameters[name] for name, own in rates.items() if own == rate})) for rate in dict.fromkeys(rates.values()) if rate
        ]
        for name, rate in rates.items():
            if not rate:
                self.parameters[name].requires_grad_(False)
        self._optimizer = make_optimizer([{"params": [flat.vector], "lr": rate} for rate, flat in self._flats], config.training)
        self._scaler = _make_scaler(config.training.precision, backbone.device)
        self._average = [flat.vector.detach().clone() for _, flat in self._flats] if config.training.ema else []

    def step(self, step: int) -> float:
        """The loss of that step (counted from 0), after which the parameters are one step further.

        Raises:
            NotFiniteError: loss or gradient are not finite; the parameters are unchanged.
        """
        parts = self._config.training.gradient_accumulation
        for _, flat in self._flats:
            flat.zero_gradients()
        losses = [self._one_part(step * parts + part, parts, step) for part in range(parts)]
        self._settle_gradients(step)
        self._advance(step)
        self.method.after_step(step + 1)
        self._follow_average()
        return sum(losses) / parts

    def learning_rate(self, step: int) -> float:
        """The UNet's learning rate in that step."""
        return self._config.training.learning_rate * self._rate_factor(step)

    def _one_part(self, number: int, parts: int, step: int) -> float:
        """The loss of one batch, whose gradients are added to those that are there."""
        loss = self._loss(self._material, self._order.batch(number), self._config.training.seed)
        if self._prior is not None:
            prior = self._loss(self._prior, self._prior_order.batch(number), self._config.training.seed + 1)
            loss = loss + self._config.training.prior_weight * prior
        value = self._mean(loss.detach())
        if not math.isfinite(value):
            raise NotFiniteError(f"the loss of step {step + 1} is {value}")
        self._backward(loss / parts)
        return value

    def _mean(self, value: Tensor) -> float:
        shared = value.clone()
        self._processes.mean_(shared)
        return float(shared)

    def _own(self, rows: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """This process' share of a batch."""
        return rows[self._processes.rank :: self._processes.count]

    def _loss(self, material: Material, rows: list[tuple[int, int]], seed: int) -> Tensor:
        rows = self._own(rows)
        latents = torch.stack([material.latents(sample, epoch) for epoch, sample in rows])
        return self.loss_of(material, rows, latents, [self._draw(seed, epoch, sample, latents.shape[1:]) for epoch, sample in rows])

    def loss_of(self, material: Material, rows: Sequence[tuple[int, int]], latents: Tensor, draws: Sequence[Draw]) -> Tensor:
        """The loss of these (epoch, sample) rows with what was drawn for them."""
        device, training = self._backbone.device, self._config.training
        noise = torch.stack([drawn.noise for drawn in draws]).to(device)
        t = torch.tensor([drawn.t for drawn in draws], device=device)
        alphas = self._alphas_cumprod[t]
        captions = ["" if drawn.dropped else material.caption(sample, epoch) for (epoch, sample), drawn in zip(rows, draws, strict=True)]
        with autocast(device, training.precision):
            predicted = self._backbone.predict(add_noise(latents, noise, alphas), t, self._captions.encode(captions))
        weight = min_snr_weight(alphas, training.min_snr_gamma, self._prediction) if training.min_snr_gamma else None
        if training.debiased:
            weight = debiased_weight(alphas, self._prediction)
        wanted = target(latents, noise, alphas, self._prediction)
        return weighted_loss(predicted, wanted, weight, _masks(material, rows, latents), training.loss, training.huber_c)

    def _draw(self, seed: int, epoch: int, sample: int, shape: torch.Size) -> Draw:
        return draw(seed, epoch, sample, shape, len(self._alphas_cumprod), self._config.data.caption_dropout, self._config.training.noise_offset)

    def _backward(self, loss: Tensor) -> None:
        (loss if self._scaler is None else self._scaler.scale(loss)).backward()

    def _settle_gradients(self, step: int) -> None:
        """The step's gradients: averaged over all processes, not scaled, with the method's penalty in them, clipped.

        Raises:
            NotFiniteError: they are not finite, and no loss scaler is there to skip the step.
        """
        gradients = [flat.vector.grad for _, flat in self._flats]
        for gradient in gradients:
            self._processes.mean_(gradient)
        if self._scaler is not None:
            self._scaler.unscale_(self._optimizer)
        self.method.add_penalty()
        limit = self._config.training.max_grad_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_([flat.vector for _, flat in self._flats], limit)
        if self._scaler is None and not torch.isfinite(norm):
            raise NotFiniteError(f"the gradient of step {step + 1} is not finite")

    def _advance(self, step: int) -> None:
        factor = self._rate_factor(step)
        for group, (rate, _) in zip(self._optimizer.param_groups, self._flats, strict=True):
            group["lr"] = rate * factor
        if self._scaler is None:
            self._optimizer.step()
        else:
            self._scaler.step(self._optimizer)
            self._scaler.update()

    def _follow_average(self) -> None:
        with torch.no_grad():
            for average, (_, flat) in zip(self._average, self._flats, strict=False):
                average.lerp_(flat.vector, 1 - self._config.training.ema)

    def _rate(self, name: str) -> float:
        """The learning rate of a parameter, by its component and its block."""
        settings = self._config.training
        rate = settings.learning_rate if name.startswith("unet.") else settings.te_learning_rate
        layer = name.split(".", 2)[1]
        for item in settings.block_learning_rates:
            pattern, factor = split_pattern("training.block_learning_rates", item, float)
            if matches(layer, pattern):
                rate = (settings.learning_rate if name.startswith("unet.") else settings.te_learning_rate) * factor
        return rate

    def _rate_factor(self, step: int) -> float:
        training = self._config.training
        return rate_factor(training.schedule, step, self._steps, training.warmup_steps, training.restarts)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, numbers) from which `load` goes on exactly."""
        tensors = {f"network.{name}": value.detach().clone() for name, value in self.parameters.items()}
        tensors |= {f"method.{name}": value.detach().clone() for name, value in self.method.state().items()}
        numbers: dict[str, Any] = {"optimizer": {}}
        for index, (_, flat) in enumerate(self._flats):
            for part, entry in self._optimizer.state.get(flat.vector, {}).items():
                if isinstance(entry, Tensor):
                    tensors[f"optimizer.{index}.{part}"] = entry.detach().clone()
                else:
                    numbers["optimizer"][f"{index}.{part}"] = entry
            if self._average:
                tensors[f"average.{index}"] = self._average[index].clone()
        numbers["groups"] = [{key: value for key, value in group.items() if key != "params" and _is_plain(value)} for group in self._optimizer.param_groups]
        return tensors, numbers if self._scaler is None else {**numbers, "scaler": self._scaler.state_dict()}

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
            for index, average in enumerate(self._average):
                average.copy_(tensors.get(f"average.{index}", self._flats[index][1].vector))
        entries: dict[int, dict[str, Any]] = {index: {} for index in range(len(self._flats))}
        found = {key.removeprefix("optimizer."): value for key, value in tensors.items() if key.startswith("optimizer.")}
        for key, value in {**found, **numbers.get("optimizer", {})}.items():
            index, _, part = key.partition(".")
            entries[int(index)][part] = value
        empty = self._optimizer.state_dict()
        groups = [{**group, **saved} for group, saved in zip(empty["param_groups"], numbers.get("groups", [{}] * len(self._flats)), strict=True)]
        self._optimizer.load_state_dict({**empty, "state": {index: entry for index, entry in entries.items() if entry}, "param_groups": groups})
        self.method.load({key.removeprefix("method."): value for key, value in tensors.items() if key.startswith("method.")})
        if self._scaler is not None and "scaler" in numbers:
            self._scaler.load_state_dict(numbers["scaler"])


def _masks(material: Material, rows: Sequence[tuple[int, int]], latents: Tensor) -> Tensor | None:
    """The rows' masks as one [B,1,h,w], ones where a row has none; None where no row has one."""
    masks = [material.mask(sample, epoch) for epoch, sample in rows]
    if all(mask is None for mask in masks):
        return None
    return torch.stack([latents.new_ones(1, *latents.shape[2:]) if mask is None else mask for mask in masks])


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str)) or (isinstance(value, (list, tuple)) and all(map(_is_plain, value)))


def _make_scaler(precision: str, device: torch.device) -> Any:
    """The loss scaler that fp16's small range of numbers needs; None otherwise."""
    if precision != "fp16":
        return None
    general = getattr(torch.amp, "GradScaler", None)  # from torch 2.3 on
    return torch.cuda.amp.GradScaler() if general is None else general(device.type)
