"""Which layers learn how fast: a rate for the UNet, for each text encoder, and factors for single blocks; and a rate of its own for a new word."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import ConfigError
from ..patching.targets import Target
from .config import KINDS_WITHOUT_LAYERS, TrainConfig, TrainingSettings, split_pattern
from .optimizers import check_one_rate
from .selection import Key, matches
from .step_list import StepList, parse_step_list


@dataclass(frozen=True)
class Rate:
    """How fast some parameters learn.

    Attributes:
        base: what the schedule's factor is multiplied with.
        steps: in place of that product, a rate for each step; None where the schedule holds.
        decays: whether the optimiser's weight decay draws the parameters towards zero.
    """

    base: float
    steps: StepList | None = None
    decays: bool = True

    def at(self, step: int, factor: float) -> float:
        """The rate in a step, which counts from 0, with the schedule's factor in it."""
        return self.base * factor if self.steps is None else self.steps.at(step)


def word_rate(config: TrainConfig) -> Rate:
    """The rate of a new word's vectors; towards zero is nowhere for a word, so that nothing draws them there."""
    rates = config.embedding.rates
    if rates is None:
        return Rate(config.embedding_rate, decays=False)
    steps = parse_step_list("embedding.rates", rates)
    return Rate(next(value for value, _ in steps.points if value), steps, decays=False)


def rate_of(key: Key, settings: TrainingSettings) -> float:
    """The learning rate of the layer with that (component, name), before the schedule."""
    component, name = key
    rate = {"unet": settings.unet_learning_rate, "te1": settings.te_learning_rate}.get(component, settings.te2_learning_rate)
    factor = 1.0
    for item in settings.block_learning_rates:
        pattern, own = split_pattern("training.block_learning_rates", item, float)
        if matches(name, pattern):
            factor = own
    return rate * factor


def learning_targets(targets: Mapping[Key, Target], config: TrainConfig) -> dict[Key, Target]:
    """The targets without those whose rate is 0: a fresh layer there would add nothing for ever, so it is neither made nor saved.

    With network.start_from they stay, as they have something to keep: what they are in that file.

    Raises:
        ConfigError: nothing is left, or the optimiser can't have several rates, or AdaLoRA would have to move ranks out of layers that stay.
    """
    if config.network.kind in KINDS_WITHOUT_LAYERS:
        return {}
    learning = {key: target for key, target in targets.items() if rate_of(key, config.training)}
    if not learning:
        raise ConfigError(f"training.block_learning_rates = {list(config.training.block_learning_rates)}: every layer's rate is 0; leave some above it")
    if config.training.optimizer == "prodigy":
        check_one_rate(rate_of(key, config.training) for key in learning)
    if config.network.start_from is None:
        return learning
    if config.network.kind == "adalora" and len(learning) < len(targets):
        raise ConfigError("training.block_learning_rates: a factor of 0 and network.start_from don't go together for adalora, which shares its ranks out "
                          "among all layers; use a small factor")
    return dict(targets)
