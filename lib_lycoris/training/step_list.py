"""Rates as a list of steps, as the WebUI's users write them: "0.005:100, 1e-3:1000, 1e-5"."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import ConfigError
from ..setting import show


@dataclass(frozen=True)
class StepList:
    """Values and the steps until which they hold, the last one until the end."""

    points: tuple[tuple[float, float], ...]
    """(value, last step counted from 1) in rising order; infinity where none is named."""

    def at(self, step: int) -> float:
        """The value in a step, which counts from 0."""
        return next((value for value, last in self.points if step < last), self.points[-1][0])


def parse_step_list(key: str, text: str) -> StepList:
    """The list that a text means; each value holds up to and including its step, the last one from there on too.

    Args:
        key: of the setting, for the error.
        text: "VALUE:STEP, VALUE:STEP, VALUE"; a single VALUE holds always.

    Raises:
        ConfigError: it is no such list, or its steps don't rise.

    Source: AUTOMATIC1111/stable-diffusion-webui v1.10.1, modules/textual_inversion/learn_schedule.py (behaviour).
    """
    points: list[tuple[float, float]] = []
    items = [item.strip() for item in text.split(",") if item.strip()]
    for number, item in enumerate(items, 1):
        value, last = _read(key, text, item)
        if last == math.inf and number < len(items):
            raise _wrong(key, text, f"{show(item)} has no step, and others follow it")
        if points and last <= points[-1][1]:
            raise _wrong(key, text, f"the steps do not rise at {show(item)}")
        points.append((value, last))
    if not points:
        raise _wrong(key, text, "it is empty")
    if not any(value for value, _ in points):
        raise _wrong(key, text, "nothing in it is above 0")
    return StepList(tuple(points))


def _read(key: str, text: str, item: str) -> tuple[float, float]:
    first, colon, second = item.partition(":")
    try:
        value, last = float(first), float(int(second)) if colon else math.inf
    except ValueError as error:
        raise _wrong(key, text, f"{show(item)} is not VALUE:STEP") from error
    if not math.isfinite(value) or value < 0 or last < 1:
        raise _wrong(key, text, f"{show(item)} is below zero or no number")
    return value, last


def _wrong(key: str, text: str, reason: str) -> ConfigError:
    return ConfigError(f'{key} = {show(text)}: {reason}; write "VALUE:STEP, VALUE:STEP, VALUE", as "0.005:100, 1e-3:1000, 1e-5"')
