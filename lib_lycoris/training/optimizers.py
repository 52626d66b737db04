"""The optimisers: a table from the config's word to what makes one. All but AdamW come from packages of their own, which nothing else here needs."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import torch

from ..errors import ConfigError
from .config import TrainingSettings

_PACKAGES = {
    "adamw8bit": ("bitsandbytes", "bitsandbytes"), "lion": ("lion_pytorch", "lion-pytorch"), "prodigy": ("prodigyopt", "prodigyopt"),
    "schedule_free": ("schedulefree", "schedulefree"),
}
"""The name to import and the one to install."""
_OLD_TORCH = {"bitsandbytes": "bitsandbytes==0.45.5"}  # the last that runs on a torch below 2.3


def check_optimizer(settings: TrainingSettings) -> None:
    """Returns where the optimiser can be made, so that a missing package is told before any picture is encoded.

    Raises:
        ConfigError: its package is missing or broken, or other settings contradict it.
    """
    if settings.optimizer in _PACKAGES:
        _package(settings.optimizer)
    schedule = settings.schedule_steps or settings.schedule
    if settings.optimizer == "schedule_free" and schedule != "constant":
        raise ConfigError(f'training.schedule = "{schedule}": schedule_free takes the place of a schedule; use "constant", warmup_steps are kept')


def check_one_rate(rates: Iterable[float]) -> None:
    """Returns where prodigy can be made for layers of these rates.

    Raises:
        ConfigError: they are not one and the same.
    """
    several = sorted(set(rates))
    if len(several) > 1:
        shown = ", ".join(f"{rate:g}" for rate in several)
        raise ConfigError(f'training.optimizer = "prodigy": it finds one rate for all layers, the settings have {shown}; make the text encoder\'s and the '
                          "blocks' rates equal to learning_rate")


def odd_about_rates(settings: TrainingSettings) -> list[str]:
    """In words, what looks like a mistake in the rates for that optimiser."""
    if settings.optimizer == "prodigy" and settings.unet_learning_rate < 0.1:
        return [f"training.learning_rate = {settings.unet_learning_rate:g}: prodigy finds the rate itself and multiplies it with this; 1 is usual"]
    return []


def make_optimizer(groups: list[dict[str, Any]], settings: TrainingSettings) -> torch.optim.Optimizer:
    """The optimiser over these parameter groups, each with its own "lr"; ready to train.

    Raises:
        ConfigError: as `check_optimizer`, or it can't have groups of different rates.
    """
    check_optimizer(settings)
    return _OPTIMIZERS[settings.optimizer](groups, settings)


def _adamw(groups: list[dict[str, Any]], settings: TrainingSettings) -> torch.optim.Optimizer:
    """Source: Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2."""
    try:
        return torch.optim.AdamW(groups, weight_decay=settings.weight_decay, fused=True)
    except (RuntimeError, TypeError):
        # torch 2.1 fuses on CUDA alone; foreach gives the same steps with a few more calls.
        return torch.optim.AdamW(groups, weight_decay=settings.weight_decay, foreach=True)


def _adamw8bit(groups: list[dict[str, Any]], settings: TrainingSettings) -> torch.optim.Optimizer:
    """Source: Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization"."""
    return _package("adamw8bit").optim.AdamW8bit(groups, weight_decay=settings.weight_decay)


def _lion(groups: list[dict[str, Any]], settings: TrainingSettings) -> torch.optim.Optimizer:
    """Source: Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", program 1."""
    return _package("lion").Lion(groups, lr=_largest_rate(groups), weight_decay=settings.weight_decay)


def _prodigy(groups: list[dict[str, Any]], settings: TrainingSettings) -> torch.optim.Optimizer:
    """Source: Mishchenko & Defazio 2023, "Prodigy: An Expeditiously Adaptive Parameter-Free Learner", algorithm 1.

    With bias correction and the safeguard for warm-ups, as its authors advise for diffusion models.
    """
    check_one_rate(group["lr"] for group in groups)
    optimizer = _package("prodigy").Prodigy(groups, lr=groups[0]["lr"], use_bias_correction=True, safeguard_warmup=True)
    for group in optimizer.param_groups:  # given to it when it is made, it would print a line into the program's output
        group["weight_decay"] = settings.weight_decay
    return optimizer


def _schedule_free(groups: list[dict[str, Any]], settings: TrainingSettings) -> torch.optim.Optimizer:
    """Its own warm-up stays off: the rate that the trainer sets in each step rises in the same way.

    Source: Defazio et al. 2024, "The Road Less Scheduled", algorithm 1.
    """
    optimizer = _package("schedule_free").AdamWScheduleFree(groups, lr=_largest_rate(groups), weight_decay=settings.weight_decay)
    optimizer.train()
    return optimizer


def _largest_rate(groups: list[dict[str, Any]]) -> float:
    """Of the groups; a package may want a default, though every group has its own."""
    return max(group["lr"] for group in groups)


def _package(optimizer: str) -> ModuleType:
    """The package of that optimiser.

    Raises:
        ConfigError: it is not installed, or broken.
    """
    module, name = _PACKAGES[optimizer]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        wanted = _OLD_TORCH.get(name, name) if _torch_version() < (2, 3) else name
        # without dependencies: all of them need torch and nothing else, and must not bring another one
        raise ConfigError(f'training.optimizer = "{optimizer}": the package {name} is missing; pip install --no-deps {wanted}, or use "adamw"') from error
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(f'training.optimizer = "{optimizer}": the package {name} can\'t be used ({reason}); repair it, or use "adamw"') from error


def _torch_version() -> tuple[int, int]:
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


_OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], TrainingSettings], torch.optim.Optimizer]] = {
    "adamw": _adamw, "adamw8bit": _adamw8bit, "lion": _lion, "prodigy": _prodigy, "schedule_free": _schedule_free,
}
