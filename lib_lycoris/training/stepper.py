"""From gradients to the next parameters: scaled, shared out among processes, clipped, and handed to the optimiser; and the parameters as they are used."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import TrainingError
from .average import Average
from .config import TrainingSettings
from .flat import Flat
from .optimizers import make_optimizer
from .processes import Processes
from .rates import Rate, rate_of

_MOST_SKIPPED = 30


class NotFiniteError(TrainingError):
    """A loss or gradient that is no number; the parameters are still those of the step before."""


class Stepper:
    """The optimiser over all parameters in training; float32, whatever the model computes in.

    Args:
        parameters: by "component.layer.part"; those with a rate of 0 no longer want gradients after this.
        settings: how to train.
        processes: who else trains the same.
        device: of the model.
        own_rates: by component, of those whose rate is none of the layers'.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], settings: TrainingSettings, processes: Processes, device: torch.device,
        own_rates: Mapping[str, Rate] | None = None,
    ):
        self._settings, self._processes = settings, processes
        rates = {name: _rate(name, settings, own_rates or {}) for name in parameters}
        self._flats = [
            (rate, Flat({name: parameters[name] for name, own in rates.items() if own == rate})) for rate in dict.fromkeys(rates.values()) if rate.base
        ]
        for name, rate in rates.items():
            if not rate.base:
                parameters[name].requires_grad_(False)
        self._vectors = [flat.vector for _, flat in self._flats]
        self._optimizer = make_optimizer([{"params": [flat.vector], "lr": rate.base} for rate, flat in self._flats], settings)
        for group, (rate, _) in zip(self._optimizer.param_groups, self._flats, strict=True):
            if not rate.decays:
                group["weight_decay"] = 0.0
        self._scaler = _make_scaler(settings.precision, device)
        self._average = Average(self._vectors, settings.ema) if settings.ema else None
        self._skipped = 0

    def zero_gradients(self) -> None:
        """All gradients zero, before the first part of a step."""
        for _, flat in self._flats:
            flat.zero_gradients()

    def backward(self, loss: Tensor) -> None:
        """Adds that loss' gradients to those that are there."""
        if loss.requires_grad:  # all layers may be left away by dropout
            (loss if self._scaler is None else self._scaler.scale(loss)).backward()

    def step(self, factor: float, add_penalty: Callable[[], Any], step: int = 0) -> bool:
        """Moves the parameters by the gradients that are there; False where fp16's overflowed and the step is skipped, with nothing moved.

        Args:
            factor: of the learning rates in this step.
            add_penalty: adds more to the gradients, once they are averaged over the processes and no longer scaled, before they are clipped.
            step: which step this is, from 0, for rates that are listed by steps.

        Raises:
            NotFiniteError: the gradients are not finite, without a loss scaler, or too often in a row with one.
        """
        for vector in self._vectors:
            self._processes.mean_(vector.grad)
        if self._scaler is not None:
            self._scaler.unscale_(self._optimizer)
        add_penalty()
        norm = torch.nn.utils.clip_grad_norm_(self._vectors, self._settings.max_grad_norm or math.inf)
        finite = bool(torch.isfinite(norm))
        self._count_skipped(finite)
        if finite:
            for group, (rate, _) in zip(self._optimizer.param_groups, self._flats, strict=True):
                group["lr"] = rate.at(step, factor)
            self._optimizer.step()
        if self._scaler is not None:
            self._scaler.update()
        return finite

    def follow(self) -> None:
        """The average over the steps takes in the parameters as they are now."""
        if self._average is not None:
            self._average.follow()

    @contextmanager
    def used(self) -> Iterator[None]:
        """Within it the parameters are those that a file, a preview and a validation get: averaged ones where the settings want them; after it, bit for bit,
        those in training."""
        if self._average is None and not _has_modes(self._optimizer):
            yield
            return
        kept = [vector.detach().clone() for vector in self._vectors]
        try:
            if _has_modes(self._optimizer):
                self._optimizer.eval()
            if self._average is not None:
                self._average.put_in()
            yield
        finally:
            for vector, value in zip(self._vectors, kept, strict=True):
                vector.detach().copy_(value)
            if _has_modes(self._optimizer):
                for group in self._optimizer.param_groups:  # not by train(), which would compute back, and round
                    group["train_mode"] = True

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, numbers) from which `load` goes on exactly, with the parameters apart."""
        tensors: dict[str, Tensor] = {}
        numbers: dict[str, Any] = {"optimizer": {}, "layout": self._layout(), "skipped": self._skipped}
        for index, vector in enumerate(self._vectors):
            for part, entry in self._optimizer.state.get(vector, {}).items():
                if isinstance(entry, Tensor):
                    tensors[f"optimizer.{index}.{part}"] = entry.detach().clone()
                else:
                    numbers["optimizer"][f"{index}.{part}"] = entry
        if self._average is not None:
            tensors |= {f"average.{index}": value.clone() for index, value in enumerate(self._average.values)}
            numbers["averaged"] = self._average.updates
        numbers["groups"] = [{key: value for key, value in group.items() if key != "params" and _is_plain(value)} for group in self._optimizer.param_groups]
        return tensors, numbers if self._scaler is None else {**numbers, "scaler": self._scaler.state_dict()}

    def load(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Takes up a state that `state` gave; the parameters must have been loaded before.

        Raises:
            TrainingError: the state is of another optimiser, or of other groups of rates.
        """
        layout = numbers.get("layout", self._layout())
        if layout != self._layout():
            raise TrainingError(f"the saved state's optimiser was {layout[0]} over {layout[1:]} numbers of one rate each, the settings make "
                                f"{self._layout()[0]} over {self._layout()[1:]}: set training.optimizer and the rates back, or do not resume")
        entries: dict[int, dict[str, Any]] = {index: {} for index in range(len(self._flats))}
        found = {key.removeprefix("optimizer."): value for key, value in tensors.items() if key.startswith("optimizer.")}
        for key, value in {**found, **numbers.get("optimizer", {})}.items():
            index, _, part = key.partition(".")
            entries[int(index)][part] = value
        empty = self._optimizer.state_dict()
        groups = [
            {**group, **saved, "weight_decay": group["weight_decay"]}  # what the settings say now counts
            for group, saved in zip(empty["param_groups"], numbers.get("groups", [{}] * len(self._flats)), strict=True)
        ]
        self._optimizer.load_state_dict({**empty, "state": {index: entry for index, entry in entries.items() if entry}, "param_groups": groups})
        if self._average is not None:
            for index, (value, vector) in enumerate(zip(self._average.values, self._vectors, strict=True)):
                value.copy_(tensors.get(f"average.{index}", vector.detach()))
            self._average.updates = int(numbers.get("averaged", 0))
        if self._scaler is not None and "scaler" in numbers:
            self._scaler.load_state_dict(numbers["scaler"])
        self._skipped = int(numbers.get("skipped", 0))

    def _count_skipped(self, finite: bool) -> None:
        self._skipped = 0 if finite else self._skipped + 1
        if not finite and self._scaler is None:
            raise NotFiniteError("the gradient is not finite")
        if self._skipped > _MOST_SKIPPED:
            raise NotFiniteError(f"the gradient was not finite in {self._skipped} steps in a row, whatever the loss was scaled by")

    def _layout(self) -> list[Any]:
        return [self._settings.optimizer, *(vector.numel() for vector in self._vectors)]


def _rate(name: str, settings: TrainingSettings, own: Mapping[str, Rate]) -> Rate:
    """The rate of the parameter with that "component.layer.part"."""
    component, layer, _ = name.split(".", 2)
    return own[component] if component in own else Rate(rate_of((component, layer), settings))


def _has_modes(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimiser trains other parameters than those that are used (schedule-free)."""
    return callable(getattr(optimizer, "eval", None))


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str)) or (isinstance(value, (list, tuple)) and all(map(_is_plain, value)))


def _make_scaler(precision: str, device: torch.device) -> Any:
    """The loss scaler that fp16's small range of numbers needs; None otherwise."""
    if precision != "fp16":
        return None
    general = getattr(torch.amp, "GradScaler", None)  # from torch 2.3 on
    return torch.cuda.amp.GradScaler() if general is None else general(device.type)
