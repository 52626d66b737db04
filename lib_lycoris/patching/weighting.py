"""How strongly a network acts: strengths that stay, and dials that are turned while it is on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lib_lycoris.errors import ConfigError, shown


class Dial:
    """A strength that is turned without a new plan; on a UNet the layers under it run beside.

    Its `value` is a number, or [rows]: one for each row of a denoiser step, in the order in which the UNet takes them. On text encoders all rows must agree.
    """

    def __init__(self, value: float | Tensor = 1.0):
        """A dial that stands at `value`.

        Raises:
            ConfigError: the value is neither a finite number nor a row of them.
        """
        self.turns = 0
        self.value: float | Tensor = 0.0
        self.set(value)

    def set(self, value: float | Tensor) -> None:
        """Turns the dial; in force from the next forward on.

        Raises:
            ConfigError: the value is neither a finite number nor a row of them; the dial stays as it was.
        """
        if isinstance(value, Tensor) and value.ndim:
            value = value.detach().to("cpu", torch.float64, copy=True)
            if value.ndim != 1 or not value.numel() or not bool(value.isfinite().all()):
                raise ConfigError(f"a dial's value of shape {list(value.shape)} is no row of finite numbers; give one strength for each row of a step")
        else:
            value = finite(value)
        self.value = value
        self.turns += 1

    @property
    def scalar(self) -> float:
        """The one value of all rows.

        Raises:
            ConfigError: the rows differ.
        """
        if isinstance(self.value, float):
            return self.value
        common = common_value(self.value)
        if common is None:
            raise ConfigError("a dial on a text encoder has different values for its rows; prompts are encoded with one strength each, so give a number")
        return common


@dataclass(frozen=True)
class Weighting:
    """All that a strength can say.

    Attributes:
        te: strength on the text encoders.
        unet: strength on the UNet.
        factor: factor(component, name) multiplies the strength of a layer (block weights); None: 1 everywhere.
        ranks: how many of each layer's ranks to use (DyLoRA); None: all.
    """

    te: float | Dial = 1.0
    unet: float | Dial = 1.0
    factor: Callable[[str, str], float] | None = None
    ranks: int | None = None

    def __post_init__(self) -> None:
        for strength in (self.te, self.unet):
            if not isinstance(strength, Dial):
                finite(strength)

    def of(self, component: str, name: str) -> tuple[float, Dial | None]:
        """The number that stays and the dial that multiplies it, for one target."""
        strength = self.unet if component == "unet" else self.te
        factor = 1.0 if self.factor is None else finite(self.factor(component, name))
        return (factor, strength) if isinstance(strength, Dial) else (factor * strength, None)


def as_weighting(strength: float | tuple[float, float] | Weighting) -> Weighting:
    """The weighting that a number, or (text encoder, unet), stands for.

    Raises:
        ConfigError: it is not finite, or something else.
    """
    if isinstance(strength, Weighting):
        return strength
    te, unet = strength if isinstance(strength, tuple) and len(strength) == 2 else (strength, strength)
    return Weighting(finite(te), finite(unet))


def finite(value: object) -> float:
    """The number as a float.

    Raises:
        ConfigError: it is no finite number.
    """
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"strength {shown(value)} is not a finite number; give a number like 0.8, or (text encoder, unet)")
    return number


def common_value(values: Tensor) -> float | None:
    """The value that all of [rows] have, or None."""
    first = values[0].item()
    return first if bool((values == first).all()) else None
